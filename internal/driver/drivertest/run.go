package drivertest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Run runs the suite. It needs Main in the package's TestMain.
func Run(t *testing.T, s Subject) {
	if len(s.Variants) == 0 {
		t.Fatal("a subject without a variant tests nothing")
	}
	known := map[string]bool{}
	for _, c := range cases {
		known[c.name] = true
		if c.own && s.Prev != nil {
			continue // the interface is another driver's
		}
		t.Run(c.name, func(t *testing.T) {
			if why, ok := s.Except[c.name]; ok {
				t.Skip("means nothing for this driver: " + why)
			}
			c.run(t, s)
		})
	}
	for name := range s.Except {
		if !known[name] {
			t.Errorf("Subject.Except names %q, which is no test", name)
		}
	}
}

// cases are the suite. Those with own are for drivers that make the interface.
var cases = []struct {
	name string
	own  bool
	run  func(*testing.T, Subject)
}{
	{"AttachCheckDetach", false, attachCheckDetach},
	{"WhatIsForetoldComesTrue", false, foretold},
	{"RepeatedAttach", false, repeatedAttach},
	{"DetachOfNothing", false, detachOfNothing},
	{"DetachTwice", false, detachTwice},
	{"DetachWithoutNamespace", false, detachWithoutNamespace},
	{"DetachAfterTheNamespaceIsGone", false, detachAfterGone},
	{"FailureLeavesNothing", false, failureLeavesNothing},
	{"CancelledAttachLeavesNothing", false, cancelled},
	{"KilledAttachIsRepeatedOrRemoved", false, killed},
	{"ManyAtOnce", false, manyAtOnce},
	{"CheckNamesWhatChanged", true, tampering},
	{"CheckNamesWhatElseChanged", false, ownTampering},
	{"MTU", true, mtu},
	{"MAC", true, mac},
	{"TakenNameIsRefusedAndLeftAlone", true, nameTaken},
	{"TakenAlternativeNameIsRefused", true, altNameTaken},
	{"TheNodeMayHaveALinkOfThatName", true, nameOnTheNode},
	{"MalformedNameIsRefused", true, nameMalformed},
	{"MalformedConfigurationIsRefused", false, confMalformed},
	{"AttachNeedsANamespace", false, needsNamespace},
}

// settled returns a world in which what containers share is there, and its
// only container p as it was before.
func settled(t *testing.T, s Subject, keys string) (w *World, p Pod, before string) {
	t.Helper()
	w = NewWorld(t, s)
	if s.Shared {
		first := w.Spec(w.Pod(t), s.conf(keys, s.some(), 99))
		first = w.Attached(t, first)
		try(t, w.Driver.Detach(t.Context(), first))
		w.pods = 0
	}
	p = w.Pod(t)
	return w, p, w.Text(t, p)
}

func (w *World) wantText(t *testing.T, before string, pods ...Pod) {
	t.Helper()
	if after := w.Text(t, pods...); after != before {
		t.Errorf("left behind:\n--- before\n%s--- after\n%s", before, after)
	}
}

func wantReleased(t *testing.T, s driver.Spec) {
	t.Helper()
	if ipam, ok := s.IPAM.(*Static); ok && !ipam.Released() {
		t.Error("the address is not released")
	}
}

// everyWay runs a test with each variant of the configuration and each family
// of addresses.
func everyWay(t *testing.T, s Subject, run func(*testing.T, Variant, family)) {
	for _, v := range s.Variants {
		for _, f := range s.families() {
			t.Run(v.Name+"/"+f.name, func(t *testing.T) {
				kerneltest.Need(t, v.Needs...)
				run(t, v, f)
			})
		}
	}
}

func attachCheckDetach(t *testing.T, s Subject) {
	everyWay(t, s, func(t *testing.T, v Variant, f family) {
		w, p, before := settled(t, s, v.Keys)
		spec := w.Attached(t, w.Spec(p, s.conf(v.Keys, f, p.N)))
		if s.Prev == nil {
			wantInterface(t, s, f, p, spec.Prev)
		} else {
			wantPrevKept(t, p.Prev, spec.Prev)
		}
		given := Plain(t, spec.Prev)
		if err := w.Driver.Check(t.Context(), spec); err != nil {
			t.Errorf("Check of what was just built: %v", err)
		}
		if after := Plain(t, spec.Prev); after != given {
			t.Errorf("Check changed its result\n--- given\n%s--- after\n%s", given, after)
		}
		try(t, w.Driver.Detach(t.Context(), spec))
		w.wantText(t, before, p)
		wantReleased(t, spec)
	})
}

// wantInterface compares the container's link with what the result says.
func wantInterface(t *testing.T, s Subject, f family, p Pod, res *current.Result) {
	t.Helper()
	i := slices.IndexFunc(res.Interfaces, func(i *current.Interface) bool {
		return i.Name == s.ifName() && i.Sandbox == p.Path
	})
	if i < 0 {
		t.Fatalf("the result has no interface %s in %s:\n%s", s.ifName(), p.Path, Plain(t, res))
	}
	h := Handle(t, p.NS)
	l, err := h.Link(s.ifName())
	try(t, err)
	if mac := res.Interfaces[i].Mac; mac != l.MAC.String() {
		t.Errorf("the result says mac %q, the link has %s", mac, l.MAC)
	}
	if !l.Up {
		t.Errorf("link %s is down", l.Name)
	}
	addrs, err := h.Addrs(l.Index)
	try(t, err)
	families := map[bool]bool{}
	for _, ip := range res.IPs {
		if ip.Interface == nil || *ip.Interface != i {
			t.Errorf("address %s of the result is not for interface %d", ip.Address.String(), i)
		}
		want, err := driver.Prefix(ip.Address)
		try(t, err)
		families[want.Addr().Is6()] = true
		have := slices.IndexFunc(addrs, func(a rtnl.Addr) bool { return a.Prefix == want })
		if have < 0 {
			t.Errorf("link %s does not have address %s of the result", l.Name, want)
		} else if a := addrs[have]; a.Tentative || a.DADFailed {
			t.Errorf("address %s cannot be used: %+v", want, a)
		}
	}
	if families[false] != f.v4 || families[true] != f.v6 {
		t.Errorf("families of the result are %v:\n%s", families, Plain(t, res))
	}
}

// wantPrevKept says that a chained driver hands on what it was given.
func wantPrevKept(t *testing.T, prev, res *current.Result) {
	t.Helper()
	if prev == nil {
		return
	}
	if res == nil {
		t.Fatal("no result")
	}
	for _, want := range prev.Interfaces {
		if !slices.ContainsFunc(res.Interfaces, func(i *current.Interface) bool {
			return i.Name == want.Name && i.Sandbox == want.Sandbox
		}) {
			t.Errorf("interface %s of the previous result is lost", want.Name)
		}
	}
	for _, want := range prev.IPs {
		if !slices.ContainsFunc(res.IPs, func(ip *current.IPConfig) bool { return ip.Address.String() == want.Address.String() }) {
			t.Errorf("address %s of the previous result is lost", want.Address.String())
		}
	}
}

// again is a Spec as a call that knows nothing of the last one gets it.
func again(p Pod, spec driver.Spec) driver.Spec {
	spec.Prev = clone(p.Prev)
	return spec
}

func repeatedAttach(t *testing.T, s Subject) {
	for _, v := range s.Variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			w, p, before := settled(t, s, v.Keys)
			spec := w.Attached(t, w.Spec(p, s.conf(v.Keys, s.some(), p.N)))
			first, text := Plain(t, spec.Prev), w.Text(t, p)
			spec = w.Attached(t, again(p, spec))
			if second := Plain(t, spec.Prev); second != first {
				t.Errorf("the result changed\n--- first\n%s--- second\n%s", first, second)
			}
			w.wantText(t, text, p)
			if err := w.Driver.Check(t.Context(), spec); err != nil {
				t.Errorf("Check: %v", err)
			}
			try(t, w.Driver.Detach(t.Context(), spec))
			w.wantText(t, before, p)
		})
	}
}

func detachOfNothing(t *testing.T, s Subject) {
	for _, v := range s.Variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			w := NewWorld(t, s)
			p := w.Pod(t)
			before := w.Text(t, p)
			spec := w.Spec(p, s.conf(v.Keys, s.some(), p.N))
			spec.Prev = nil
			try(t, w.Driver.Detach(t.Context(), spec))
			try(t, w.Driver.Detach(t.Context(), spec))
			spec.NetNS = nil
			try(t, w.Driver.Detach(t.Context(), spec))
			w.wantText(t, before, p)
		})
	}
}

func detachTwice(t *testing.T, s Subject) {
	w, p, before := settled(t, s, s.Variants[0].Keys)
	spec := w.Attached(t, w.Spec(p, s.conf(s.Variants[0].Keys, s.some(), p.N)))
	try(t, w.Driver.Detach(t.Context(), spec))
	try(t, w.Driver.Detach(t.Context(), spec))
	spec.Prev = nil
	try(t, w.Driver.Detach(t.Context(), spec))
	w.wantText(t, before, p)
}

// detachWithoutNamespace: the namespace cannot be found any more, but still
// lives. Nothing but what is on the node can be removed then.
func detachWithoutNamespace(t *testing.T, s Subject) {
	for _, v := range s.Variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			w, p, _ := settled(t, s, v.Keys)
			before := w.Text(t)
			spec := w.Attached(t, w.Spec(p, s.conf(v.Keys, s.some(), p.N)))
			spec.NetNS = nil
			try(t, w.Driver.Detach(t.Context(), spec))
			try(t, w.Driver.Detach(t.Context(), spec))
			w.wantText(t, before)
			wantReleased(t, spec)
		})
	}
}

func detachAfterGone(t *testing.T, s Subject) {
	w, _, _ := settled(t, s, s.Variants[0].Keys)
	before := w.Text(t)
	p := Pod{N: 50, ID: "container-50"}
	name := fmt.Sprintf("braid-test-%d-gone", os.Getpid())
	ns, err := netns.New(name)
	try(t, err)
	t.Cleanup(func() { netns.Delete(name) })
	p.NS, p.Path = ns, netns.Path(name)
	withoutDAD(t, ns)
	if s.Prev != nil {
		p.Prev = s.Prev(t, w, p)
		before = w.Text(t) // what the others of the chain have on the node
	}
	spec := w.Attached(t, w.Spec(p, s.conf(s.Variants[0].Keys, s.some(), p.N)))
	try(t, ns.Close())
	try(t, netns.Delete(name))
	spec.NetNS = nil
	try(t, w.Driver.Detach(t.Context(), spec))
	wantReleased(t, spec)
	if s.Prev != nil {
		return // the others' things may be gone with the namespace by now
	}
	// The kernel takes a namespace apart in its own time.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := rtnl.Await(ctx, w.Node, func() (bool, error) { return w.Text(t) == before, nil }); err != nil {
		w.wantText(t, before)
	}
}

func failureLeavesNothing(t *testing.T, s Subject) {
	if s.Addresses == Never {
		t.Skip("the driver asks nobody who could fail")
	}
	for _, v := range s.Variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			w := NewWorld(t, s)
			p := w.Pod(t)
			before := w.Text(t, p)
			spec := w.Spec(p, s.conf(v.Keys, s.some(), p.N))
			spec.IPAM = &Static{Conf: spec.Conf, Fail: types.NewError(types.ErrTryAgainLater, "the pool is full", "")}
			_, err := w.Driver.Attach(t.Context(), spec)
			WantError(t, err, types.ErrTryAgainLater, "the pool is full")
			w.wantText(t, before, p)
			wantReleased(t, spec)
			// An address that the link cannot have is found late.
			twice := strings.Replace(string(spec.Conf), `{"address":"10.1.0.`, fmt.Sprintf(`{"address":"10.1.0.%d/24"},{"address":"10.1.0.`, p.N+10), 1)
			spec.IPAM = &Static{Conf: []byte(twice)}
			if _, err := w.Driver.Attach(t.Context(), spec); err == nil {
				t.Error("an address that comes twice was accepted")
			}
			w.wantText(t, before, p)
			wantReleased(t, spec)
		})
	}
}

func cancelled(t *testing.T, s Subject) {
	w := NewWorld(t, s)
	p := w.Pod(t)
	before := w.Text(t, p)
	keys := s.Variants[0].Keys
	spec := w.Spec(p, s.conf(keys, s.some(), p.N))
	if s.Addresses != Never {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		blocked := &Static{Conf: spec.Conf, Block: true}
		spec.IPAM = blocked
		if _, err := w.Driver.Attach(ctx, spec); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Attach: %v, want the end of its time", err)
		}
		w.wantText(t, before, p)
		wantReleased(t, spec)
	}
	// Whatever a driver makes of a context that is over: all or nothing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	spec = w.Spec(p, s.conf(keys, s.some(), p.N))
	res, err := w.Driver.Attach(ctx, spec)
	if err != nil {
		w.wantText(t, before, p)
		wantReleased(t, spec)
		return
	}
	spec.Prev = res
	try(t, w.Driver.Check(t.Context(), spec))
}

func manyAtOnce(t *testing.T, s Subject) {
	if s.Exclusive {
		t.Skip("one container at a time can have it")
	}
	w, _, _ := settled(t, s, s.Variants[0].Keys)
	before := w.Text(t)
	const n = 12
	var pods [n]Pod
	var texts [n]string
	var specs [n]driver.Spec
	for i := range n {
		pods[i] = w.Pod(t)
		specs[i] = w.Spec(pods[i], s.conf(s.Variants[0].Keys, s.some(), pods[i].N))
	}
	for i := range n { // once what the others of the chain make is there for all
		texts[i] = w.Text(t, pods[i])
	}
	each := func(what string, do func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if err := do(i); err != nil {
					t.Errorf("container %d: %s: %v", i, what, err)
				}
			})
		}
		wg.Wait()
	}
	each("Attach", func(i int) (err error) {
		specs[i].Prev, err = w.Driver.Attach(t.Context(), specs[i])
		return err
	})
	if t.Failed() {
		return
	}
	each("Check", func(i int) error { return w.Driver.Check(t.Context(), specs[i]) })
	each("Detach", func(i int) error { return w.Driver.Detach(t.Context(), specs[i]) })
	for i := range n {
		w.wantText(t, texts[i], pods[i])
	}
	if s.Prev == nil {
		w.wantText(t, before)
	}
}

// tampering is what any driver's Check must notice on a link with addresses.
func tampering(t *testing.T, s Subject) {
	pod := func(change func(h *rtnl.Handle, l rtnl.Link) error) func(testing.TB, *World, Pod) {
		return func(t testing.TB, w *World, p Pod) {
			t.Helper()
			h := Handle(t, p.NS)
			l, err := h.Link(s.ifName())
			try(t, err)
			try(t, change(h, l))
		}
	}
	tampered := []Tampering{
		{Name: "link down", Want: s.ifName(), Change: pod(func(h *rtnl.Handle, l rtnl.Link) error { return h.SetDown(l.Index) })},
		{Name: "link removed", Want: s.ifName(), Change: pod(func(h *rtnl.Handle, l rtnl.Link) error { return h.Del(l.Index) })},
	}
	if s.Addresses != Never {
		tampered = append(tampered, []Tampering{
			{Name: "IPv4 address removed", Want: "10.1.0.10/24", Change: pod(func(h *rtnl.Handle, l rtnl.Link) error {
				return h.DelAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.1.0.10/24")})
			})},
			{Name: "IPv6 address removed", Want: "fd00:1::10/64", Change: pod(func(h *rtnl.Handle, l rtnl.Link) error {
				return h.DelAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("fd00:1::10/64")})
			})},
			{Name: "IPv4 route removed", Want: "10.99.0.0/16", Change: pod(func(h *rtnl.Handle, l rtnl.Link) error {
				return delRoute(h, l, "10.99.0.0/16")
			})},
			{Name: "IPv6 route removed", Want: "fd00:99::/32", Change: pod(func(h *rtnl.Handle, l rtnl.Link) error {
				return delRoute(h, l, "fd00:99::/32")
			})},
			{Name: "connected route removed", Want: "10.1.0.0/24", Change: pod(func(h *rtnl.Handle, l rtnl.Link) error {
				return delRoute(h, l, "10.1.0.0/24")
			})},
		}...)
	}
	if s.MTU {
		tampered = append(tampered, Tampering{Name: "MTU changed", Keys: s.Variants[0].Keys + `,"mtu":1400`, Want: "1400",
			Change: pod(func(h *rtnl.Handle, l rtnl.Link) error { return h.SetMTU(l.Index, 1300) })})
	}
	if s.MAC {
		tampered = append(tampered, Tampering{Name: "MAC changed", Want: "02:00:00:00:00:01",
			Change: pod(func(h *rtnl.Handle, l rtnl.Link) error { return h.SetMAC(l.Index, []byte{2, 0, 0, 0, 0, 1}) })})
	}
	for _, tc := range tampered {
		t.Run(tc.Name, func(t *testing.T) { notices(t, s, tc) })
	}
}

func delRoute(h *rtnl.Handle, l rtnl.Link, dst string) error {
	routes, err := h.Routes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Link == l.Index && r.Dst == netip.MustParsePrefix(dst) {
			return h.DelRoute(r)
		}
	}
	return fmt.Errorf("link %s has no route to %s to remove", l.Name, dst)
}

func ownTampering(t *testing.T, s Subject) {
	for _, tc := range s.Tampering {
		t.Run(tc.Name, func(t *testing.T) { notices(t, s, tc) })
	}
}

func notices(t *testing.T, s Subject, tc Tampering) {
	keys := tc.Keys
	if keys == "" {
		keys = s.Variants[0].Keys
	}
	w, p, _ := settled(t, s, keys)
	spec := w.Attached(t, w.Spec(p, s.conf(keys, s.some(), p.N)))
	if err := w.Driver.Check(t.Context(), spec); err != nil {
		t.Fatalf("Check before: %v", err)
	}
	tc.Change(t, w, p)
	if err := w.Driver.Check(t.Context(), spec); err == nil || !strings.Contains(err.Error(), tc.Want) {
		t.Errorf("Check: %v, want an error with %q", err, tc.Want)
	}
	// What was changed is no reason to keep the rest.
	try(t, w.Driver.Detach(t.Context(), spec))
}

func mtu(t *testing.T, s Subject) {
	if !s.MTU {
		t.Skip("the driver has no option mtu")
	}
	w, p, before := settled(t, s, s.Variants[0].Keys)
	spec := w.Attached(t, w.Spec(p, s.conf(s.Variants[0].Keys+`,"mtu":1400`, s.some(), p.N)))
	l, err := Handle(t, p.NS).Link(s.ifName())
	try(t, err)
	if l.MTU != 1400 {
		t.Errorf("mtu is %d, not 1400", l.MTU)
	}
	try(t, w.Driver.Check(t.Context(), spec))
	try(t, w.Driver.Detach(t.Context(), spec))
	w.wantText(t, before, p)
	bad := w.Spec(p, s.conf(s.Variants[0].Keys+`,"mtu":-1`, s.some(), p.N))
	_, err = w.Driver.Attach(t.Context(), bad)
	WantError(t, err, types.ErrInvalidNetworkConfig, "mtu")
	w.wantText(t, before, p)
}

func mac(t *testing.T, s Subject) {
	if !s.MAC {
		t.Skip("the driver takes no mac")
	}
	const env = "IgnoreUnknown=1;K8S_POD_NAME=a;MAC=02:00:00:00:00:09"
	for _, tc := range []struct{ name, keys, args, want string }{
		{"runtimeConfig", `,"runtimeConfig":{"mac":"02:00:00:00:00:07"}`, env, "02:00:00:00:00:07"},
		{"args", `,"args":{"cni":{"mac":"02:00:00:00:00:08"}}`, "", "02:00:00:00:00:08"},
		{"CNI_ARGS", ``, env, "02:00:00:00:00:09"},
		{"CNI_ARGS of others", ``, env + ";TOKEN=a=b==;novalue;", "02:00:00:00:00:09"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, p, before := settled(t, s, s.Variants[0].Keys)
			spec := w.Spec(p, s.conf(s.Variants[0].Keys+tc.keys, s.some(), p.N))
			spec.Args = tc.args
			spec = w.Attached(t, spec)
			l, err := Handle(t, p.NS).Link(s.ifName())
			try(t, err)
			if l.MAC.String() != tc.want {
				t.Errorf("mac is %s, not %s", l.MAC, tc.want)
			}
			try(t, w.Driver.Check(t.Context(), spec))
			try(t, w.Driver.Detach(t.Context(), spec))
			w.wantText(t, before, p)
		})
	}
	for _, bad := range []string{"zz", "02:00", "01:00:5e:00:00:01", "00:00:00:00:00:00"} {
		w := NewWorld(t, s)
		p := w.Pod(t)
		spec := w.Spec(p, s.conf(s.Variants[0].Keys+fmt.Sprintf(`,"runtimeConfig":{"mac":%q}`, bad), s.some(), p.N))
		_, err := w.Driver.Attach(t.Context(), spec)
		WantError(t, err, types.ErrInvalidNetworkConfig, bad)
	}
}

// foreign puts a link that is somebody else's into the container.
func foreign(t *testing.T, p Pod, name string) *rtnl.Handle {
	t.Helper()
	h := Handle(t, p.NS)
	_, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: name}, Peer: rtnl.New{Name: "far0"}})
	try(t, err)
	return h
}

func nameTaken(t *testing.T, s Subject) {
	for _, v := range s.Variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			w := NewWorld(t, s)
			p := w.Pod(t)
			foreign(t, p, s.ifName())
			refusesTaken(t, s, w, p, v.Keys)
		})
	}
}

func altNameTaken(t *testing.T, s Subject) {
	w := NewWorld(t, s)
	p := w.Pod(t)
	h := foreign(t, p, "other0")
	l, err := h.Link("other0")
	try(t, err)
	try(t, h.AddAltName(l.Index, s.ifName()))
	refusesTaken(t, s, w, p, s.Variants[0].Keys)
}

// nameOnTheNode has a link with the name of the interface where the driver's
// requests are made: older kernels then refuse to make another one elsewhere.
func nameOnTheNode(t *testing.T, s Subject) {
	for _, v := range s.Variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			w, p, _ := settled(t, s, v.Keys)
			_, err := Handle(t, w.Node).AddVeth(rtnl.Veth{New: rtnl.New{Name: s.ifName()}, Peer: rtnl.New{Name: "far0"}})
			try(t, err)
			before := w.Text(t, p)
			spec := w.Attached(t, w.Spec(p, s.conf(v.Keys, s.some(), p.N)))
			try(t, w.Driver.Check(t.Context(), spec))
			try(t, w.Driver.Detach(t.Context(), spec))
			w.wantText(t, before, p)
		})
	}
}

func refusesTaken(t *testing.T, s Subject, w *World, p Pod, keys string) {
	t.Helper()
	before := w.Text(t, p)
	spec := w.Spec(p, s.conf(keys, s.some(), p.N))
	_, err := w.Driver.Attach(t.Context(), spec)
	WantError(t, err, types.ErrInvalidEnvironmentVariables, s.ifName())
	w.wantText(t, before, p)
	try(t, w.Driver.Detach(t.Context(), spec))
	w.wantText(t, before, p)
}

func nameMalformed(t *testing.T, s Subject) {
	for _, name := range []string{"sixteen-bytes-xx", "a/b", "a b", "..", ""} {
		w := NewWorld(t, s)
		p := w.Pod(t)
		before := w.Text(t, p)
		spec := w.Spec(p, s.conf(s.Variants[0].Keys, s.some(), p.N))
		spec.IfName = name
		_, err := w.Driver.Attach(t.Context(), spec)
		WantError(t, err, types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%q", name))
		try(t, w.Driver.Detach(t.Context(), spec))
		w.wantText(t, before, p)
	}
}

func confMalformed(t *testing.T, s Subject) {
	w := NewWorld(t, s)
	p := w.Pod(t)
	before := w.Text(t, p)
	for _, conf := range []string{`{"name":`, `[]`, `{"name":7}`} {
		spec := w.Spec(p, conf)
		_, err := w.Driver.Attach(t.Context(), spec)
		WantError(t, err, types.ErrDecodingFailure, "")
		try(t, w.Driver.Detach(t.Context(), spec))
		w.wantText(t, before, p)
	}
}

func needsNamespace(t *testing.T, s Subject) {
	w := NewWorld(t, s)
	p := w.Pod(t)
	before := w.Text(t, p)
	spec := w.Spec(p, s.conf(s.Variants[0].Keys, s.some(), p.N))
	spec.NetNS = nil
	if _, err := w.Driver.Attach(t.Context(), spec); err == nil {
		t.Error("Attach without a namespace succeeds")
	}
	if err := w.Driver.Check(t.Context(), spec); err == nil {
		t.Error("Check without a namespace succeeds")
	}
	w.wantText(t, before, p)
	wantReleased(t, spec)
}
