package rtnl_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Once Del has returned the world is as if the link had never been, although
// the kernel still has to free it: on both ends of a veth, for its name, its
// addresses and the routes through it.
func TestRemoverReturnsWhenTheLinkIsGone(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth, kerneltest.Bridge)
	node, pod := kerneltest.NewNS(t), kerneltest.NewNS(t)
	h, inPod := opened(t, node), opened(t, pod)
	br, err := h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "br0", Up: true}})
	check(t, err)
	before := observed(t, node) + observed(t, pod)
	r := rtnl.NewRemover()
	for range 50 {
		l, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "veth0"}, Peer: rtnl.New{Name: "net1"}, PeerNS: pod})
		check(t, err)
		check(t, h.SetMaster(l.Index, br.Index))
		check(t, h.SetUp(l.Index))
		peer, err := inPod.Link("net1")
		check(t, err)
		check(t, inPod.AddAddr(peer.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.1.0.5/24")}))
		check(t, inPod.SetUp(peer.Index))
		check(t, r.Del(h, l.Index))
		if after := observed(t, node) + observed(t, pod); after != before {
			t.Fatalf("left:\n%s", after)
		}
		if err := r.Del(h, l.Index); !errors.Is(err, rtnl.ErrNotFound) {
			t.Fatalf("second Del: %v", err)
		}
	}
}

// More removals at once than may wait in the background are no different.
func TestRemoverUnderLoad(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	node := kerneltest.NewNS(t)
	h := opened(t, node)
	before := observed(t, node)
	r := rtnl.NewRemover()
	var wg sync.WaitGroup
	for i := range 80 {
		l, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: fmt.Sprintf("a%d", i)}, Peer: rtnl.New{Name: fmt.Sprintf("b%d", i)}})
		check(t, err)
		wg.Go(func() {
			if err := r.Del(h, l.Index); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if after := observed(t, node); after != before {
		t.Errorf("left:\n%s", after)
	}
}

func observed(t *testing.T, ns *netns.NS) string {
	t.Helper()
	text, err := rtnl.Observe(ns)
	check(t, err)
	return text
}
