package rtnl_test

import (
	"errors"
	"net/netip"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

func TestTunnelsAreReadAsTheyWereMade(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN)
	h := open(t, kerneltest.NewNS(t))
	lower := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "lower0", Up: true}, Peer: rtnl.New{Name: "peer0"}}))(t)
	for _, want := range []rtnl.Tunnel{
		{Kind: "vxlan", ID: 1, Port: 8472},
		{Kind: "vxlan", ID: 2, Port: 8472, Local: netip.MustParseAddr("192.0.2.1"), Lower: lower.Index},
		{Kind: "vxlan", ID: 3, Port: 4789, Remote: netip.MustParseAddr("192.0.2.9")},
		{Kind: "vxlan", ID: 1, Port: 8472, Local: netip.MustParseAddr("2001:db8::1"), IPv6: true},
		{Kind: "vxlan", ID: 4, Port: 4790, Remote: netip.MustParseAddr("2001:db8::9"), IPv6: true},
		{Kind: "vxlan", Port: 8473, External: true},
		{Kind: "vxlan", Port: 8474, External: true, VNIFilter: true},
		{Kind: "vxlan", Port: 8475, External: true, GPE: true},
		{Kind: "vxlan", ID: 5, Port: 8476, GBP: true},
		{Kind: "vxlan", ID: 6, Port: 8477, UDPZeroCsum6RX: true},
		{Kind: "vxlan", ID: 7, Port: 8478, RemCsumRX: true},
	} {
		l, err := h.AddTunnel(rtnl.New{Name: "tun0", MTU: 1400}, want)
		if err != nil {
			t.Errorf("%+v: %v", want, err)
			continue
		}
		have := must(h.Tunnels())(t)
		if len(have) != 1 || have[l.Index] != want {
			t.Errorf("made %+v, have %+v", want, have)
		}
		if l.MTU != 1400 || l.Up {
			t.Errorf("%+v: the link is %+v", want, l)
		}
		try(t, h.Del(l.Index))
	}
}

func TestGeneveIsReadAsItWasMade(t *testing.T) {
	kerneltest.Need(t, kerneltest.Geneve)
	h := open(t, kerneltest.NewNS(t))
	for _, want := range []rtnl.Tunnel{
		{Kind: "geneve", ID: 1, Port: 6081, Remote: netip.MustParseAddr("192.0.2.1")},
		{Kind: "geneve", ID: 2, Port: 6082, Remote: netip.MustParseAddr("2001:db8::1"), IPv6: true},
		{Kind: "geneve", Port: 6081, External: true},
	} {
		l := must(h.AddTunnel(rtnl.New{Name: "tun0"}, want))(t)
		if have := must(h.Tunnels())(t); len(have) != 1 || have[l.Index] != want {
			t.Errorf("made %+v, have %+v", want, have)
		}
		try(t, h.Del(l.Index))
	}
}

func TestATunnelOnATakenPortCannotBeSetUp(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN)
	h := open(t, kerneltest.NewNS(t))
	flannel := rtnl.Tunnel{Kind: "vxlan", ID: 1, Port: 8472}
	cilium := rtnl.Tunnel{Kind: "vxlan", Port: 8472, External: true}
	must(h.AddTunnel(rtnl.New{Name: "flannel.1", Up: true}, flannel))(t)
	l := must(h.AddTunnel(rtnl.New{Name: "cilium_vxlan"}, cilium))(t)
	if err := h.SetUp(l.Index); err == nil {
		t.Error("an external link is up on a port with another one")
	}
	if have := must(h.Tunnels())(t); have[l.Index] != cilium {
		t.Errorf("have %+v", have[l.Index])
	}
}

func TestAllAddrsAreThoseOfEachLink(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	h := open(t, kerneltest.NewNS(t))
	must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "a0", Up: true}, Peer: rtnl.New{Name: "b0"}}))(t)
	links := must(h.Links())(t)
	for i, l := range links {
		try(t, h.SetUp(l.Index))
		try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 32)}))
		try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("2001:db8::1/64"), NoDAD: true}))
	}
	all := must(h.AllAddrs())(t)
	for _, l := range links {
		want := must(h.Addrs(l.Index))(t)
		if len(want) < 2 || len(all[l.Index]) != len(want) {
			t.Errorf("%s: have %v, want %v", l.Name, all[l.Index], want)
		}
	}
}

func TestWayToIsTheKernelsChoice(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	h := open(t, kerneltest.NewNS(t))
	a := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "a0", Up: true}, Peer: rtnl.New{Name: "b0"}}))(t)
	try(t, h.AddAddr(a.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.1/24")}))
	gateway := netip.MustParseAddr("192.0.2.254")
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("198.51.100.0/24"), Via: gateway, Link: a.Index}))
	want := rtnl.Way{Link: a.Index, Via: gateway, Src: netip.MustParseAddr("192.0.2.1")}
	if have := must(h.WayTo(netip.MustParseAddr("198.51.100.7")))(t); have != want {
		t.Errorf("have %+v, want %+v", have, want)
	}
	if _, err := h.WayTo(netip.MustParseAddr("203.0.113.1")); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("without a route: %v", err)
	}
}
