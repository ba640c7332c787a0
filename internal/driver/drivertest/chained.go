package drivertest

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Veth returns a Subject.Prev that makes what driver ptp or bridge would have
// made: a veth, whose end in the container has these addresses with these
// gateways ("10.1.0.10/24 10.1.0.1"), and routes ("10.99.0.0/16").
func Veth(addrs []string, routes ...string) func(testing.TB, *World, Pod) *current.Result {
	return func(t testing.TB, w *World, p Pod) *current.Result {
		t.Helper()
		kerneltest.Need(t, kerneltest.Veth)
		h := Handle(t, w.Node)
		name, inside := fmt.Sprintf("veth%08x", p.N), w.subject.ifName()
		host, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: name, Up: true}, Peer: rtnl.New{Name: inside}, PeerNS: p.NS})
		try(t, err)
		l, err := Handle(t, p.NS).Link(inside)
		try(t, err)
		res := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{
			{Name: name, Mac: host.MAC.String()},
			{Name: inside, Mac: l.MAC.String(), Sandbox: p.Path},
		}}
		for _, text := range addrs {
			var addr, gw string
			fmt.Sscan(text, &addr, &gw) // gw may be missing
			res.IPs = append(res.IPs, &current.IPConfig{Interface: current.Int(1), Address: ipNet(addr), Gateway: net.ParseIP(gw)})
		}
		for _, dst := range routes {
			res.Routes = append(res.Routes, &types.Route{Dst: ipNet(dst)})
		}
		try(t, Configure(t, p.NS, inside, res))
		return clone(res)
	}
}

// Configure gives a link of the container what the result says.
func Configure(t testing.TB, ns *netns.NS, name string, res *current.Result) error {
	t.Helper()
	return driver.Interface{NS: ns, Name: name}.Configure(t.Context(), res)
}

func ipNet(text string) net.IPNet {
	p := netip.MustParsePrefix(text)
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
