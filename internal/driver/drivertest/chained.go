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
	"braid.dev/braid/internal/refplugin"
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

// SameAsReferenceInChain is SameAsReference for a driver behind others of which
// the reference plugin leaves something to those: the worlds are compared once
// more when these have removed the container's link, as they do next.
func SameAsReferenceInChain(t *testing.T, s Subject, scenarios []Scenario) {
	for _, sc := range scenarios {
		t.Run(sc.Name, func(t *testing.T) {
			if sc.Differs != "" {
				t.Skip("different on purpose: " + sc.Differs)
			}
			ours, ourPod := sc.world(t, s)
			theirs, theirPod := sc.world(t, s)
			a, b := ours.Spec(ourPod, sc.Conf(s.Type)), theirs.Spec(theirPod, sc.Conf(s.Type))
			ref := reference{dir: refplugin.Dir(t, s.Type), typ: s.Type}
			a = ours.Attached(t, a)
			res, err := ref.attach(t, theirs, b)
			try(t, err)
			b.Prev = res
			same(t, "result", Plain(t, a.Prev), Plain(t, b.Prev))
			same(t, "world", ours.Text(t, ourPod), theirs.Text(t, theirPod))
			if err := theirs.Driver.Check(t.Context(), b); err != nil {
				t.Errorf("Check of what the reference built: %v", err)
			}
			if _, err := ref.run(t, ours, "CHECK", a); (err != nil) != (sc.CheckFails != "") {
				t.Errorf("the reference's CHECK of what the driver built: %v; expected to fail because: %q", err, sc.CheckFails)
			}
			try(t, theirs.Driver.Detach(t.Context(), b))
			if _, err := ref.run(t, ours, "DEL", a); err != nil {
				t.Errorf("the reference's DEL of what the driver built: %v", err)
			}
			for _, p := range []Pod{ourPod, theirPod} {
				h := Handle(t, p.NS)
				l, err := h.Link(s.ifName())
				try(t, err)
				try(t, h.Del(l.Index))
			}
			same(t, "world after the other removed it", ours.Text(t, ourPod), theirs.Text(t, theirPod))
		})
	}
}

// BenchInChain is Bench for a driver behind others, without the bare requests.
// What the reference plugin leaves to those, repair removes between its rounds.
func BenchInChain(b *testing.B, s Subject, sc Scenario, repair func(w *World, p Pod) error) {
	b.Run("driver", func(b *testing.B) {
		w, p := sc.world(b, s)
		spec := w.Spec(p, sc.Conf(s.Type))
		for b.Loop() {
			res, err := w.Driver.Attach(b.Context(), spec)
			try(b, err)
			done := spec
			done.Prev = res
			try(b, w.Driver.Detach(b.Context(), done))
		}
	})
	b.Run("reference", func(b *testing.B) {
		w, p := sc.world(b, s)
		spec := w.Spec(p, sc.Conf(s.Type))
		ref := reference{dir: refplugin.Dir(b, s.Type), typ: s.Type}
		for b.Loop() {
			for _, verb := range []string{"ADD", "DEL"} {
				_, err := ref.run(b, w, verb, spec)
				try(b, err)
			}
			b.StopTimer()
			try(b, repair(w, p))
			b.StartTimer()
		}
	})
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
