package vrf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"vrfname":"blue","table":7}`, `{"vrfname":""}`, `{"vrfname":"a/b"}`, `{"table":-1}`, `{"vrfname":"net1"}`, `[]`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(driver.Spec{Conf: []byte(text), IfName: "net1"})
		if err == nil && (c.VRF == "" || c.VRF == "net1" || len(c.VRF) > rtnl.MaxName) {
			t.Errorf("vrfname %q is accepted", c.VRF)
		}
	})
}

func TestFreeTableIsNobodyElses(t *testing.T) {
	all := func(upTo uint32) (tables []uint32) {
		for i := uint32(1); i <= upTo; i++ {
			tables = append(tables, i)
		}
		return tables
	}
	route := rtnl.Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Table: 2}
	for _, tc := range []struct {
		vrfs   []uint32
		routes []rtnl.Route
		want   uint32
	}{
		{nil, nil, 1},
		{[]uint32{1, 3}, nil, 2},
		{[]uint32{1}, []rtnl.Route{route}, 3},
		{all(unix.RT_TABLE_DEFAULT - 1), nil, unix.RT_TABLE_LOCAL + 1},
	} {
		if got := freeTable(tc.vrfs, tc.routes); got != tc.want {
			t.Errorf("freeTable(%v, %v) = %d, want %d", tc.vrfs, tc.routes, got, tc.want)
		}
	}
}
