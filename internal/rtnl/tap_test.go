package rtnl_test

import (
	"errors"
	"net"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

func TestTapHasWhatItWasMadeWith(t *testing.T) {
	kerneltest.Need(t, kerneltest.Tap, kerneltest.Veth)
	h := open(t, kerneltest.NewNS(t))
	owner, group := uint32(1000), uint32(1001)
	l := must(h.AddTap(rtnl.Tap{
		New:        rtnl.New{Name: "tap0", MTU: 1400, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 5}},
		MultiQueue: true, Owner: &owner, Group: &group,
	}))(t)
	if l.Kind != "tuntap" || l.MTU != 1400 || l.MAC.String() != "02:00:00:00:00:05" || l.Up {
		t.Errorf("link: %+v", l)
	}
	tap := must(h.TapOf(l.Index))(t)
	if !tap.MultiQueue || tap.Owner == nil || *tap.Owner != owner || tap.Group == nil || *tap.Group != group {
		t.Errorf("tap: %+v", tap)
	}
	plain := must(h.TapOf(must(h.AddTap(rtnl.Tap{New: rtnl.New{Name: "tap1", Up: true}}))(t).Index))(t)
	if plain.MultiQueue || plain.Owner != nil || plain.Group != nil {
		t.Errorf("plain tap: %+v", plain)
	}
	if _, err := h.AddTap(rtnl.Tap{New: named("tap0")}); !errors.Is(err, rtnl.ErrExists) {
		t.Errorf("a taken name: %v", err)
	}
	veth := must(h.AddVeth(rtnl.Veth{New: named("one"), Peer: named("two")}))(t)
	if _, err := h.TapOf(veth.Index); err == nil {
		t.Error("a veth is no tap")
	}
	if _, err := h.AddTap(rtnl.Tap{New: named("one")}); !errors.Is(err, rtnl.ErrExists) {
		t.Errorf("a name of another kind of link: %v", err)
	}
	if _, err := h.AddTap(rtnl.Tap{New: rtnl.New{Name: "tap2", MTU: 1}}); err == nil {
		t.Error("an MTU of 1")
	}
	if _, err := h.Link("tap2"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("what failed is left behind: %v", err)
	}
}
