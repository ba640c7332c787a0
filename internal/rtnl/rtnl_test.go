package rtnl_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

func open(t *testing.T, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h, err := rtnl.Open(ns)
	try(t, err)
	t.Cleanup(h.Close)
	return h
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		try(t, err)
		return v
	}
}

func named(name string) rtnl.New { return rtnl.New{Name: name} }

// Both ends of a veth come to be in one request, each where it belongs.
func TestVethHasItsOtherEndInTheOtherNamespace(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	ha, hb := open(t, a), open(t, b)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 5}
	near := must(ha.AddVeth(rtnl.Veth{
		New: rtnl.New{Name: "near0", MTU: 1400, Up: true}, Peer: rtnl.New{Name: "far0", MTU: 1300, MAC: mac}, PeerNS: b,
	}))(t)
	far := must(hb.Link("far0"))(t)
	if near.Kind != "veth" || near.MTU != 1400 || !near.Up || near.Running || far.MTU != 1300 || !bytes.Equal(far.MAC, mac) || far.Up {
		t.Errorf("ends: %+v and %+v", near, far)
	}
	if near.Parent != far.Index || far.Parent != near.Index {
		t.Errorf("ends do not name each other: %+v and %+v", near, far)
	}
	if id := must(ha.NSID(b))(t); id < 0 || near.ParentNSID != id {
		t.Errorf("the other end is in namespace %d, want %d", near.ParentNSID, id)
	}
	try(t, hb.Del(far.Index))
	if _, err := ha.Link("near0"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("after the other end is gone: %v", err)
	}
}

func TestVethIsAPortFromTheStart(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth, kerneltest.Bridge)
	h := open(t, kerneltest.NewNS(t))
	br := must(h.AddBridge(rtnl.Bridge{New: named("br0")}))(t)
	near := must(h.AddVeth(rtnl.Veth{New: named("near0"), Master: br.Index, Peer: named("far0")}))(t)
	if far := must(h.Link("far0"))(t); near.Master != br.Index || near.Up || far.Master != 0 {
		t.Errorf("ends: %+v and %+v", near, far)
	}
	if _, err := h.AddVeth(rtnl.Veth{New: named("near1"), Master: 4711, Peer: named("far1")}); err == nil {
		t.Error("it is a port of no bridge")
	}
	if _, err := h.Link("far1"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("what could not be made is there: %v", err)
	}
}

func TestHandleOutlivesTheOneThatIsLent(t *testing.T) {
	h := open(t, kerneltest.NewNS(t))
	lent := h.Lend()
	if _, err := lent.Link("lo"); err != nil {
		t.Error(err)
	}
	lent.Close()
	if _, err := h.Link("lo"); err != nil {
		t.Errorf("it is closed: %v", err)
	}
}

func TestErrorsTellWhatIsTheMatter(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	h := open(t, kerneltest.NewNS(t))
	l := must(h.AddVeth(rtnl.Veth{New: named("one"), Peer: named("two")}))(t)
	addr := rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.1/24")}
	try(t, h.AddAddr(l.Index, addr))
	try(t, h.SetUp(l.Index))
	_, taken := h.AddVeth(rtnl.Veth{New: named("one"), Peer: named("three")})
	_, long := h.AddBridge(rtnl.Bridge{New: named("sixteen-bytes-xx")})
	_, none := h.Link("none")
	_, noneLong := h.Link("a-name-of-more-than-15-bytes")
	_, noIndex := h.LinkByIndex(4711)
	for _, tc := range []struct {
		what string
		err  error
		is   error
		text string
	}{
		{"a taken name", taken, rtnl.ErrExists, "one"},
		{"a long name", long, nil, "sixteen-bytes-xx"},
		{"no link", none, rtnl.ErrNotFound, "none"},
		{"no link of a long name", noneLong, rtnl.ErrNotFound, "a-name"},
		{"no index", noIndex, rtnl.ErrNotFound, "4711"},
		{"a deleted link", h.Del(4711), rtnl.ErrNotFound, "4711"},
		{"an address twice", h.AddAddr(l.Index, addr), rtnl.ErrExists, "192.0.2.1/24"},
		{"no such address", h.DelAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.9/24")}), rtnl.ErrNotFound, "192.0.2.9/24"},
		{"no such route", h.DelRoute(rtnl.Route{Dst: netip.MustParsePrefix("198.51.100.0/24"), Link: l.Index}), rtnl.ErrNotFound, "198.51.100.0/24"},
	} {
		if tc.err == nil || tc.is != nil && !errors.Is(tc.err, tc.is) || !strings.Contains(tc.err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v and %q", tc.what, tc.err, tc.is, tc.text)
		}
	}
}

func TestLinksOfEveryKind(t *testing.T) {
	kerneltest.Need(t, kerneltest.Dummy, kerneltest.VLAN, kerneltest.IPVlan, kerneltest.Macvlan, kerneltest.VRF, kerneltest.VXLAN)
	ns := kerneltest.NewNS(t)
	h := open(t, ns)
	base := must(h.AddDummy(rtnl.New{Name: "base0", Up: true}))(t)
	must(h.AddVLAN(rtnl.VLAN{New: named("base0.7"), Parent: base.Index, ID: 7}))(t)
	must(h.AddMacvlan(named("mac0"), base.Index))(t)
	must(h.AddVXLAN(named("vx0"), 42))(t)
	vrf := must(h.AddVRF(named("vrf0"), 100))(t)
	port := must(h.AddDummy(named("port0")))(t)
	try(t, h.SetMaster(port.Index, vrf.Index))
	under := must(h.AddDummy(named("under0")))(t)
	must(h.AddIPVlan(named("ip0"), under.Index))(t)
	try(t, h.SetPromisc(base.Index, true))
	try(t, h.SetMTU(port.Index, 1234))
	compare(t, ns, `base0 dummy up mtu 1500 promisc
base0.7 vlan down mtu 1500 vlan 7 on base0
ip0 ipvlan down mtu 1500 on under0
lo device down mtu 65536
mac0 macvlan down mtu 1500 on base0
port0 dummy down mtu 1234 master vrf0
under0 dummy down mtu 1500
vrf0 vrf down mtu 65575
vx0 vxlan down mtu 1500
`)
	try(t, h.SetPromisc(base.Index, false))
	try(t, h.SetMaster(port.Index, 0))
	if l := must(h.Link("port0"))(t); l.Master != 0 {
		t.Errorf("still a port: %+v", l)
	}
	if l := must(h.LinkByIndex(base.Index))(t); l.Promisc {
		t.Error("still promiscuous")
	}
}

func compare(t *testing.T, ns *netns.NS, want string) {
	t.Helper()
	if got := must(rtnl.Observe(ns))(t); got != want {
		t.Errorf("--- got\n%s--- want\n%s", got, want)
	}
}

func TestNamesOfALink(t *testing.T) {
	kerneltest.Need(t, kerneltest.Bridge)
	h := open(t, kerneltest.NewNS(t))
	l := must(h.AddBridge(rtnl.Bridge{New: named("first")}))(t)
	try(t, h.SetName(l.Index, "second"))
	try(t, h.SetAlias(l.Index, "for people"))
	try(t, h.AddAltName(l.Index, "third"))
	l = must(h.Link("third"))(t)
	if l.Name != "second" || l.Alias != "for people" || !slices.Equal(l.AltNames, []string{"third"}) {
		t.Errorf("%+v", l)
	}
	try(t, h.DelAltName(l.Index, "third"))
	if _, err := h.Link("third"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("a name that was taken away: %v", err)
	}
}

func TestAddressesRoutesAndNeighbours(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h := open(t, ns)
	l := must(h.AddVeth(rtnl.Veth{New: named("a0"), Peer: named("b0")}))(t)
	try(t, h.SetUp(l.Index))
	try(t, h.SetUp(must(h.Link("b0"))(t).Index))
	for _, a := range []rtnl.Addr{
		{Prefix: netip.MustParsePrefix("192.0.2.1/24")},
		{Prefix: netip.MustParsePrefix("198.51.100.1/32"), Peer: netip.MustParsePrefix("198.51.100.2/32")},
		{Prefix: netip.MustParsePrefix("2001:db8::1/64"), NoDAD: true},
	} {
		try(t, h.AddAddr(l.Index, a))
	}
	gw, gw6 := netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("2001:db8::fe")
	everything := []rtnl.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gw, Metric: 5},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gw, Table: 100, MTU: 1280, AdvMSS: 1200},
		{Dst: netip.MustParsePrefix("::/0"), Via: gw6},
		{Dst: netip.MustParsePrefix("203.0.113.0/24"), Via: netip.MustParseAddr("10.9.9.9"), OnLink: true},
		{Dst: netip.MustParsePrefix("203.0.113.7/32"), Scope: 253, Src: netip.MustParseAddr("192.0.2.1")},
	}
	for _, r := range everything {
		r.Link = l.Index
		try(t, h.AddRoute(r))
		if err := h.AddRoute(r); !errors.Is(err, rtnl.ErrExists) {
			t.Errorf("twice %s: %v", r, err)
		}
		try(t, h.ReplaceRoute(r))
	}
	compare(t, ns, `a0 veth up mtu 1500
  addr 192.0.2.1/24
  addr 198.51.100.1/32 peer 198.51.100.2/32
  addr 2001:db8::1/64
b0 veth up mtu 1500
lo device down mtu 65536
route 0.0.0.0/0 via 192.0.2.254 dev a0 metric 5
route 0.0.0.0/0 via 192.0.2.254 dev a0 table 100 mtu 1280 advmss 1200
route 192.0.2.0/24 dev a0 src 192.0.2.1 scope link
route 198.51.100.2/32 dev a0 src 198.51.100.1 scope link
route 2001:db8::/64 dev a0 metric 256
route 203.0.113.0/24 via 10.9.9.9 dev a0 onlink
route 203.0.113.7/32 dev a0 src 192.0.2.1 scope link
route ::/0 via 2001:db8::fe dev a0 metric 1024
`)
	for _, r := range everything {
		r.Link = l.Index
		try(t, h.DelRoute(r))
	}
	peer := rtnl.Neigh{Addr: gw, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, Permanent: true}
	try(t, h.SetNeigh(l.Index, peer))
	known := must(h.Neighs(l.Index))(t)
	if i := slices.IndexFunc(known, func(n rtnl.Neigh) bool { return n.Addr == gw }); i < 0 || !known[i].Permanent || !bytes.Equal(known[i].MAC, peer.MAC) {
		t.Errorf("neighbours: %v", known)
	}
	try(t, h.DelNeigh(l.Index, gw))
}

func TestLinkMovesToAnotherNamespace(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	h := open(t, a)
	l := must(h.AddVeth(rtnl.Veth{New: named("a0"), Peer: named("b0")}))(t)
	try(t, h.MoveTo(l.Index, b))
	must(open(t, b).Link("a0"))(t)
	if _, err := h.Link("a0"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("still here: %v", err)
	}
}

func TestBridgeVLANs(t *testing.T) {
	kerneltest.Need(t, kerneltest.BridgeVLAN)
	ns := kerneltest.NewNS(t)
	h := open(t, ns)
	br := must(h.AddBridge(rtnl.Bridge{New: named("br0"), VLANFiltering: true}))(t)
	if !br.VLANFiltering || br.DefaultPVID != 1 {
		t.Errorf("new bridge: %+v", br)
	}
	port := must(h.AddVeth(rtnl.Veth{New: named("p0"), Peer: named("q0")}))(t)
	try(t, h.SetMaster(port.Index, br.Index))
	try(t, h.AddVLANs(port.Index, rtnl.OfPort, rtnl.VLANs{From: 2, To: 4094}))
	try(t, h.AddVLANs(port.Index, rtnl.OfPort, rtnl.VLANs{From: 7, PVID: true, Untagged: true}))
	try(t, h.DelVLANs(port.Index, rtnl.OfPort, rtnl.VLANs{From: 100, To: 199}))
	try(t, h.AddVLANs(br.Index, rtnl.OfBridge, rtnl.VLANs{From: 7, To: 8}))
	try(t, h.SetHairpin(port.Index, true))
	try(t, h.SetIsolated(port.Index, true))
	compare(t, ns, `br0 bridge down mtu 1500 vlan_filtering
  vlan 1 pvid untagged
  vlan 7-8
lo device down mtu 65536
p0 veth down mtu 1500 master br0 hairpin isolated
  vlan 1 untagged
  vlan 2-6
  vlan 7 pvid untagged
  vlan 8-99
  vlan 200-4094
q0 veth down mtu 1500
`)
	try(t, h.DelVLANs(br.Index, rtnl.OfBridge, rtnl.VLANs{From: 7, To: 8}))
	try(t, h.SetVLANFiltering(br.Index, false))
	if l := must(h.Link("br0"))(t); l.VLANFiltering {
		t.Error("still filters")
	}
}

func TestRandomNamesAreNumbered(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h := open(t, ns)
	must(h.AddVeth(rtnl.Veth{New: named("vethffffffff"), Peer: named("net1")}))(t)
	must(h.AddVeth(rtnl.Veth{New: named("veth00000000"), Peer: named("veth0")}))(t)
	compare(t, ns, `lo device down mtu 65536
net1 veth down mtu 1500
veth0 veth down mtu 1500
veth#1 veth down mtu 1500
veth#2 veth down mtu 1500
`)
}

func TestAwaitIsWokenByAChange(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h := open(t, ns)
	must(h.AddVeth(rtnl.Veth{New: named("a0"), Peer: named("b0")}))(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	asked := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() {
		done <- rtnl.Await(ctx, ns, func() (bool, error) {
			asked <- struct{}{}
			l, err := h.Link("a0")
			return l.Running, err
		})
	}()
	<-asked // before the socket is open
	<-asked // and after
	other := open(t, ns)
	try(t, other.SetUp(must(other.Link("a0"))(t).Index))
	try(t, other.SetUp(must(other.Link("b0"))(t).Index))
	try(t, <-done)
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	ns := kerneltest.NewNS(t)
	because := errors.New("patience is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := 0
	err := rtnl.Await(ctx, ns, func() (bool, error) {
		if asked++; asked == 2 {
			cancel(because)
		}
		return false, nil
	})
	if !errors.Is(err, because) {
		t.Errorf("Await: %v", err)
	}
	broken := errors.New("broken")
	if err := rtnl.Await(t.Context(), ns, func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("Await: %v", err)
	}
}

func TestSysctlIsOfTheNamespace(t *testing.T) {
	kerneltest.Need(t, kerneltest.Bridge)
	ns := kerneltest.NewNS(t)
	must(open(t, ns).AddBridge(rtnl.Bridge{New: named("with.dot")}))(t)
	s := rtnl.Sysctl{Root: "/proc/sys/net"}
	try(t, s.Set(ns, rtnl.Setting{Path: "ipv4/conf/with.dot/arp_notify", Value: "1"}))
	if got := must(s.Get(ns, "ipv4/conf/with.dot/arp_notify"))(t); got != "1" {
		t.Errorf("arp_notify = %s", got)
	}
	for _, err := range []error{
		s.Set(nil, rtnl.Setting{Path: "ipv4/conf/with.dot/arp_notify", Value: "1"}), // not in this namespace
		s.Set(ns, rtnl.Setting{Path: "ipv4/conf/none/arp_notify", Value: "1"}),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a setting that is not there: %v", err)
		}
	}
}

// The daemon's container has the host's settings under another path, and /proc
// itself read-only.
func TestSysctlWritesOnlyWhatDiffers(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "ipv4")
	try(t, os.Mkdir(path, 0o755))
	file := filepath.Join(path, "ip_forward")
	try(t, os.WriteFile(file, []byte("1\n"), 0o444))
	old := time.Unix(1000, 0)
	try(t, os.Chtimes(file, old, old))
	s := rtnl.Sysctl{Root: root}
	try(t, s.Set(nil, rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}))
	if info := must(os.Stat(file))(t); !info.ModTime().Equal(old) {
		t.Error("written although it had the value")
	}
	try(t, os.Chmod(file, 0o644))
	try(t, s.Set(nil, rtnl.Setting{Path: "ipv4/ip_forward", Value: "0"}))
	if got := must(s.Get(nil, "ipv4/ip_forward"))(t); got != "0" && got != "0\n" {
		t.Errorf("ip_forward = %q", got)
	}
	if err := s.Set(nil, rtnl.Setting{Path: "ipv4/new", Value: "1"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a new file: %v", err)
	}
	for _, path := range []string{"../etc/x", "/etc/x", "ipv4/conf/../../../x"} {
		if err := s.Set(nil, rtnl.Setting{Path: path, Value: "1"}); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("path %s: %v", path, err)
		}
	}
}

// A list that is read while others change it is read again.
func TestDumpsSucceedWhileTheWorldChanges(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h, other := open(t, ns), open(t, ns)
	must(h.AddVeth(rtnl.Veth{New: named("a0"), Peer: named("b0")}))(t)
	a0 := must(h.Link("a0"))(t)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			addr := rtnl.Addr{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/32", i%100+1))}
			change := other.AddAddr
			if i/100%2 == 1 {
				change = other.DelAddr
			}
			if err := change(a0.Index, addr); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 100 {
		must(h.Addrs(a0.Index))(t)
		must(h.Links())(t)
		must(h.Routes())(t)
	}
	close(stop)
	try(t, <-done)
}

// The answer is longer than what is first made room for.
func TestLinkWithManyNames(t *testing.T) {
	kerneltest.Need(t, kerneltest.Bridge)
	h := open(t, kerneltest.NewNS(t))
	l := must(h.AddBridge(rtnl.Bridge{New: named("many0")}))(t)
	var names []string
	for i := range 100 {
		name := fmt.Sprintf("%0120d", i)
		try(t, h.AddAltName(l.Index, name))
		names = append(names, name)
	}
	got := must(h.LinkByIndex(l.Index))(t)
	if !slices.Equal(got.AltNames, names) {
		t.Errorf("%d names, want %d: %v", len(got.AltNames), len(names), got.AltNames)
	}
	if again := must(h.Link("many0"))(t); again.Index != l.Index {
		t.Errorf("then the link is %+v", again)
	}
}
