package drivertest

import (
	"net/netip"
	"testing"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// DefaultRoute returns a Scenario.Node that makes the named link the one of
// the default route, by an address of its own.
func DefaultRoute(name string) func(testing.TB, *netns.NS) {
	return func(t testing.TB, node *netns.NS) {
		t.Helper()
		h := Handle(t, node)
		l, err := h.Link(name)
		try(t, err)
		try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.2/24")}))
		try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.1"), Link: l.Index}))
	}
}

// BareStacked returns for Bench the requests that make and remove a link on
// top of another one, and nothing beside them.
func BareStacked(link rtnl.Stacked, parent string, address bool) func(*testing.B, *World, Pod) func() error {
	return func(b *testing.B, w *World, p Pod) func() error {
		node, pod := Handle(b, w.Node), Handle(b, p.NS)
		up, err := node.Link(parent)
		try(b, err)
		link.Name, link.Parent, link.NS = "net1", up.Index, p.NS
		return func() error {
			if err := node.AddStacked(link); err != nil {
				return err
			}
			l, err := pod.Link("net1")
			if err != nil {
				return err
			}
			if address {
				if err := pod.AddAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.1.0.5/24")}); err != nil {
					return err
				}
			}
			if err := pod.SetUp(l.Index); err != nil {
				return err
			}
			return pod.Del(l.Index)
		}
	}
}
