package rtnl

import (
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// messageOf is what the kernel says of a link, as far as it is about its kind.
func messageOf(t Tunnel) []byte {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.ZeroTerminated(t.Kind))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	for _, a := range t.attributes() {
		data.AddRtAttr(a.kind, a.value)
	}
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = 7
	return append(head.Serialize(), info.Serialize()...)
}

func FuzzParseTunnel(f *testing.F) {
	for _, t := range []Tunnel{
		{Kind: "vxlan", ID: 1, Port: 8472, GBP: true},
		{Kind: "vxlan", Port: 8473, External: true, VNIFilter: true},
		{Kind: "geneve", ID: 1, Port: 6081},
		{Kind: "veth"},
	} {
		m := messageOf(t)
		index, have, ok, err := parseTunnel(m)
		if index != 7 || err != nil || ok != (t.Kind != "veth") || ok && have != t {
			f.Errorf("made %+v, have %d, %+v, %t, %v", t, index, have, ok, err)
		}
		f.Add(m)
	}
	f.Add([]byte("0000000000000000\x13\x0000000000000000000")) // the last attribute lacks its padding
	f.Fuzz(func(t *testing.T, m []byte) {
		if _, have, ok, err := parseTunnel(m); ok && (err != nil || have.Kind != "vxlan" && have.Kind != "geneve") {
			t.Errorf("%+v, %v", have, err)
		}
	})
}
