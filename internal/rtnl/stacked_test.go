package rtnl_test

import (
	"errors"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

func TestStackedIsMadeInItsNamespace(t *testing.T) {
	for _, tc := range []struct {
		link rtnl.Stacked
		need kerneltest.Feature
		want string
	}{
		{rtnl.Stacked{Kind: "macvlan"}, kerneltest.Macvlan, "bridge"},
		{rtnl.Stacked{Kind: "macvlan", Mode: "private"}, kerneltest.Macvlan, "private"},
		{rtnl.Stacked{Kind: "macvlan", Mode: "vepa", BroadcastQueue: 99}, kerneltest.Macvlan, "vepa"},
		{rtnl.Stacked{Kind: "macvlan", Mode: "passthru"}, kerneltest.Macvlan, "passthru"},
		{rtnl.Stacked{Kind: "ipvlan"}, kerneltest.IPVlan, "l2"},
		{rtnl.Stacked{Kind: "ipvlan", Mode: "l3"}, kerneltest.IPVlan, "l3"},
		{rtnl.Stacked{Kind: "ipvlan", Mode: "l3s"}, kerneltest.IPVlan, "l3s"},
		{rtnl.Stacked{Kind: "vlan", ID: 2001}, kerneltest.VLAN, ""},
	} {
		t.Run(tc.link.Kind+tc.link.Mode, func(t *testing.T) {
			kerneltest.Need(t, tc.need)
			node, pod := kerneltest.NewNS(t), kerneltest.NewNS(t)
			h, inPod := opened(t, node), opened(t, pod)
			up, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "up0"}, Peer: rtnl.New{Name: "far0"}})
			check(t, err)
			tc.link.Name, tc.link.Parent, tc.link.NS, tc.link.MTU = "net1", up.Index, pod, 1400
			check(t, h.AddStacked(tc.link))
			l, err := inPod.Link("net1")
			check(t, err)
			id, err := inPod.NSID(node)
			check(t, err)
			if l.Kind != tc.link.Kind || l.VLAN != tc.link.ID || l.MTU != 1400 || l.Up || l.Parent != up.Index || l.ParentNSID != id {
				t.Errorf("link %+v", l)
			}
			if mode, err := inPod.Mode(l.Index); err != nil || mode != tc.want {
				t.Errorf("Mode = %q, %v, want %q", mode, err, tc.want)
			}
			// A second passthru link is refused whatever its name is.
			if err := h.AddStacked(tc.link); !errors.Is(err, rtnl.ErrExists) && tc.link.Mode != "passthru" {
				t.Errorf("a taken name: %v", err)
			}
			// Index numbers of the node mean nothing in the container.
			text, err := rtnl.Observe(pod)
			check(t, err)
			if !strings.Contains(text, "on elsewhere") {
				t.Errorf("Observe:\n%s", text)
			}
		})
	}
}

func TestStackedOfUnknownKindOrModeIsRefused(t *testing.T) {
	h := opened(t, kerneltest.NewNS(t))
	for _, s := range []rtnl.Stacked{{Kind: "veth"}, {Kind: "macvlan", Mode: "l2"}, {Kind: "ipvlan", Mode: "bridge"}, {Kind: "vlan", New: rtnl.New{Name: "sixteen-bytes-xx"}}} {
		if err := h.AddStacked(s); err == nil {
			t.Errorf("%+v was made", s)
		}
	}
}

func opened(t *testing.T, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h, err := rtnl.Open(ns)
	check(t, err)
	t.Cleanup(h.Close)
	return h
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
