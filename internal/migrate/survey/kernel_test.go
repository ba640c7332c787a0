package survey

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		try(t, err)
		return v
	}
}

// handle opens ns with its loopback up. Nobody waits there for others to claim
// an IPv6 address.
func handle(t testing.TB, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h := must(rtnl.Open(ns))(t)
	t.Cleanup(h.Close)
	try(t, h.SetUp(must(h.Link("lo"))(t).Index))
	try(t, rtnl.Sysctl{}.Set(ns, rtnl.Setting{Path: "ipv6/conf/default/accept_dad", Value: "0"}))
	return h
}

// end is one end of a veth pair.
type end struct {
	ns    *netns.NS
	h     *rtnl.Handle
	name  string
	mtu   int
	addrs []string
}

// connect makes a veth pair that is up, and returns the indexes of its ends.
func connect(t testing.TB, a, b end) (int, int) {
	t.Helper()
	link := must(a.h.AddVeth(rtnl.Veth{
		New:  rtnl.New{Name: a.name, MTU: a.mtu, MAC: net.HardwareAddr{2, 0, 0, 0, 1, 1}},
		Peer: rtnl.New{Name: b.name, MTU: b.mtu, MAC: net.HardwareAddr{2, 0, 0, 0, 1, 2}}, PeerNS: b.ns,
	}))(t)
	peer := must(b.h.Link(b.name))(t)
	type at struct {
		end
		index int
	}
	ends := []at{{a, link.Index}, {b, peer.Index}}
	for _, e := range ends {
		try(t, e.h.SetMTU(e.index, e.mtu))
		for _, addr := range e.addrs {
			try(t, e.h.AddAddr(e.index, rtnl.Addr{Prefix: netip.MustParsePrefix(addr), NoDAD: strings.Contains(addr, ":")}))
		}
		try(t, e.h.SetUp(e.index))
	}
	// Without a link-local address nobody forwards IPv6.
	for _, e := range ends {
		try(t, rtnl.Await(t.Context(), e.ns, func() (bool, error) {
			addrs, err := e.h.Addrs(e.index)
			return slices.ContainsFunc(addrs, func(a rtnl.Addr) bool { return a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() && !a.Tentative }), err
		}))
	}
	return link.Index, peer.Index
}

func TestTunnelsAndListenersOfANode(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN)
	ns := kerneltest.NewNS(t)
	h := handle(t, ns)
	for name, tunnel := range map[string]rtnl.Tunnel{
		"flannel.1":    {ID: 1, Port: 8472},
		"cilium_vxlan": {Port: 8473, External: true},
		"six":          {ID: 2, Port: 8474, IPv6: true}, // nothing but its socket tells
		"gbp":          {ID: 3, Port: 8475, GBP: true},
	} {
		tunnel.Kind = "vxlan"
		must(h.AddTunnel(rtnl.New{Name: name, Up: true}, tunnel))(t)
	}
	must(h.AddTunnel(rtnl.New{Name: "down"}, rtnl.Tunnel{Kind: "vxlan", ID: 9, Port: 8476}))(t)
	try(t, ns.Do(func() error {
		udp, err := net.ListenPacket("udp4", "0.0.0.0:8476")
		if err != nil {
			return err
		}
		t.Cleanup(func() { udp.Close() })
		tcp, err := net.Listen("tcp6", "[::1]:4240")
		if err != nil {
			return err
		}
		t.Cleanup(func() { tcp.Close() })
		return nil
	}))
	n := Collect(t.Context(), Config{Name: "n1", NS: ns})
	wantUDP := []facts.Listener{
		{Addr: "0.0.0.0", Port: 8472, Kernel: true},
		{Addr: "0.0.0.0", Port: 8473, Kernel: true}, {Addr: "::", Port: 8473, Kernel: true},
		{Addr: "::", Port: 8474, Kernel: true},
		{Addr: "0.0.0.0", Port: 8475, Kernel: true},
		{Addr: "0.0.0.0", Port: 8476},
	}
	if !slices.Equal(n.UDP, wantUDP) {
		t.Errorf("UDP %+v\nwant %+v", n.UDP, wantUDP)
	}
	if want := []facts.Listener{{Addr: "::1", Port: 4240}}; !slices.Equal(n.TCP, want) {
		t.Errorf("TCP %+v, want %+v", n.TCP, want)
	}
	wantTunnels := map[string]facts.Tunnel{
		"flannel.1":    {Kind: "vxlan", ID: 1, Port: 8472},
		"cilium_vxlan": {Kind: "vxlan", Port: 8473, External: true},
		"six":          {Kind: "vxlan", ID: 2, Port: 8474, IPv6: true},
		"gbp":          {Kind: "vxlan", ID: 3, Port: 8475, GBP: true},
		"down":         {Kind: "vxlan", ID: 9, Port: 8476},
	}
	for _, l := range n.Links {
		if want, ok := wantTunnels[l.Name]; ok != (l.Tunnel != nil) || ok && *l.Tunnel != want {
			t.Errorf("%s is %+v, want %+v", l.Name, l.Tunnel, want)
		}
		delete(wantTunnels, l.Name)
	}
	if len(wantTunnels) > 0 {
		t.Errorf("not told: %v", wantTunnels)
	}
	if works, tried := n.Features["vxlan"]; !works || !tried {
		t.Errorf("vxlan: %t, tried %t", works, tried)
	}
}

func TestATunnelInAVRFIsBoundToIt(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN, kerneltest.VRF)
	ns := kerneltest.NewNS(t)
	h := handle(t, ns)
	red := must(h.AddVRF(rtnl.New{Name: "red", Up: true}, 7))(t)
	lower := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "eth0", Up: true}, Peer: rtnl.New{Name: "peer"}}))(t)
	try(t, h.SetMaster(lower.Index, red.Index))
	must(h.AddTunnel(rtnl.New{Name: "vx"}, rtnl.Tunnel{Kind: "vxlan", ID: 1, Port: 8472, Lower: lower.Index}))(t)
	for _, l := range Collect(t.Context(), Config{NS: ns}).Links {
		if l.Name == "vx" && (l.Parent != "eth0" || l.Tunnel == nil || l.Tunnel.L3MDev != "red") {
			t.Errorf("%+v %+v", l, l.Tunnel)
		}
	}
}

func TestRoutesOfAllTables(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h := handle(t, ns)
	a, _ := connect(t, end{ns, h, "a0", 1500, []string{"192.0.2.1/24", "2001:db8::1/64"}}, end{ns, h, "b0", 1500, nil})
	route := func(dst, via string, table int) {
		try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via), Link: a, Table: table}))
	}
	route("0.0.0.0/0", "192.0.2.254", 0)
	route("10.244.1.0/24", "192.0.2.2", 0)
	route("10.244.2.0/24", "192.0.2.3", 2004)
	n := Collect(t.Context(), Config{NS: ns})
	want := []facts.Route{
		{Dst: "0.0.0.0/0", Via: "192.0.2.254", Dev: "a0"},
		{Dst: "10.244.1.0/24", Via: "192.0.2.2", Dev: "a0"},
		{Dst: "192.0.2.0/24", Dev: "a0", Src: "192.0.2.1", Protocol: 2},
		{Dst: "2001:db8::/64", Dev: "a0", Protocol: 2},
		{Dst: "10.244.2.0/24", Via: "192.0.2.3", Dev: "a0", Table: 2004},
	}
	have := slices.Clone(n.Routes)
	for i := range have {
		if have[i].Protocol != 2 { // the library's own default
			have[i].Protocol = 0
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("have %+v\nwant %+v", have, want)
	}
	try(t, ns.Do(func() error {
		links, routes, err := Network()
		if !reflect.DeepEqual(links, n.Links) || !slices.Equal(routes, n.Routes) {
			t.Errorf("a part of it is %+v, %+v", links, routes)
		}
		return err
	}))
}

func TestTheNodeAsksItsOwnPods(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	node, pod := kerneltest.NewNS(t), kerneltest.NewNS(t)
	h := handle(t, node)
	connect(t, end{node, h, "cni0", 1500, []string{"10.244.1.1/24", "2001:db8::1/64"}},
		end{pod, handle(t, pod), "eth0", 1500, []string{"10.244.1.5/24", "2001:db8::5/64"}})
	s := survey{node: facts.Node{Sandboxes: []facts.Sandbox{
		{Namespace: "default", Pod: "web", Ready: true, IPs: []string{"10.244.1.5", "2001:db8::5"}},
		{Namespace: "default", Pod: "ended", IPs: []string{"10.244.1.6"}},
		{Namespace: "default", Pod: "host", Ready: true, HostNetwork: true},
		{Namespace: "default", Pod: "away", Ready: true, IPs: []string{"10.99.0.1"}},
		{Namespace: "default", Pod: "odd", Ready: true, IPs: []string{"?"}},
		{Namespace: "default", Pod: "one too many", Ready: true, IPs: []string{"10.244.1.7"}},
	}}}
	try(t, node.Do(func() error { s.reaches(t.Context()); return nil }))
	if len(s.node.Reaches) != 4 {
		t.Fatalf("%+v", s.node.Reaches)
	}
	for i, want := range []struct{ pod, ip, dev, err string }{
		{"default/web", "10.244.1.5", "cni0", ""},
		{"default/web", "2001:db8::5", "cni0", ""},
		{"default/away", "10.99.0.1", "", "not found"},
		{"default/odd", "?", "", "unable to parse"},
	} {
		r := s.node.Reaches[i]
		if r.Pod != want.pod || r.IP != want.ip || r.Dev != want.dev || (want.err == "") != (r.Error == "") || !strings.Contains(r.Error, want.err) {
			t.Errorf("have %+v, want %+v", r, want)
		}
	}
}

func TestAPodThatIsSilentIsReported(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	node, pod := kerneltest.NewNS(t), kerneltest.NewNS(t)
	h, p := handle(t, node), handle(t, pod)
	connect(t, end{node, h, "cni0", 1500, []string{"10.244.1.1/24"}}, end{pod, p, "eth0", 1500, []string{"10.244.1.5/24"}})
	try(t, rtnl.Sysctl{}.Set(pod, rtnl.Setting{Path: "ipv4/icmp_echo_ignore_all", Value: "1"}))
	err := node.Do(func() error { return ping(t.Context(), netip.Addr{}, netip.MustParseAddr("10.244.1.5")) })
	if err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := node.Do(func() error { return ping(ctx, netip.Addr{}, netip.MustParseAddr("10.244.1.5")) }); err == nil {
		t.Error("a cancelled ping was answered")
	}
}

// Two nodes with a router between them, one of whose links takes less.
func TestPathsBetweenNodes(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	a, b, router := kerneltest.NewNS(t), kerneltest.NewNS(t), kerneltest.NewNS(t)
	ha, hb, hr := handle(t, a), handle(t, b), handle(t, router)
	ia, _ := connect(t, end{a, ha, "eth0", 1500, []string{"192.0.2.1/24", "2001:db8:a::1/64"}},
		end{router, hr, "to-a", 1500, []string{"192.0.2.254/24", "2001:db8:a::fe/64"}})
	ib, _ := connect(t, end{b, hb, "eth0", 1500, []string{"198.51.100.1/24", "2001:db8:b::1/64"}},
		end{router, hr, "to-b", 1407, []string{"198.51.100.254/24", "2001:db8:b::fe/64"}})
	try(t, rtnl.Sysctl{}.Set(router, rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}, rtnl.Setting{Path: "ipv6/conf/all/forwarding", Value: "1"}))
	for _, r := range []struct {
		h     *rtnl.Handle
		index int
		vias  []string
	}{{ha, ia, []string{"192.0.2.254", "2001:db8:a::fe"}}, {hb, ib, []string{"198.51.100.254", "2001:db8:b::fe"}}} {
		for i, dst := range []string{"0.0.0.0/0", "::/0"} {
			try(t, r.h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(r.vias[i]), Link: r.index}))
		}
	}
	four, six := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:b::1")
	serve(t, b, netip.AddrPortFrom(four, 8473))
	serve(t, b, netip.AddrPortFrom(six, 8473))
	n := Collect(t.Context(), Config{NS: a, Peers: []Peer{
		{Node: "b", Addr: four, Ports: []uint16{8473, 8474}},
		{Node: "b6", Addr: six, Ports: []uint16{8473}},
		{Node: "c", Addr: netip.MustParseAddr("198.51.100.9"), Ports: []uint16{8473}},
	}})
	if len(n.Paths) != 4 {
		t.Fatalf("%+v", n.Paths)
	}
	for i, want := range []facts.Path{
		{Node: "b", Port: 8473, MTU: 1407},
		{Node: "b", Port: 8474, Error: "nobody answers"},
		{Node: "b6", Port: 8473, MTU: 1407},
		{Node: "c", Port: 8473, Error: "no"}, // route to host, or answer
	} {
		p := n.Paths[i]
		if p.Node != want.Node || p.Port != want.Port || p.MTU != want.MTU || (p.Error == "") != (want.Error == "") || !strings.Contains(p.Error, want.Error) {
			t.Errorf("have %+v, want %+v", p, want)
		}
	}
}

// serve answers in ns for as long as the test runs.
func serve(t *testing.T, ns *netns.NS, at netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ns.Do(func() error { return Echo(ctx, at) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	// It listens soon: what the kernel lists tells when.
	for deadline := t.Context(); ; {
		var listed []facts.Listener
		s := survey{}
		try(t, ns.Do(func() error { listed = s.protocol("udp"); return nil }))
		if slices.Contains(listed, facts.Listener{Addr: at.Addr().String(), Port: at.Port()}) {
			return
		}
		if err := deadline.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEchoAnswersOnlyWhatAsksForIt(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	ns := kerneltest.NewNS(t)
	handle(t, ns)
	at := netip.MustParseAddrPort("127.0.0.1:8473")
	serve(t, ns, at)
	var conn net.Conn
	try(t, ns.Do(func() (err error) { conn, err = net.Dial("udp", at.String()); return err }))
	defer conn.Close()
	question := mark + "12345678 and more"
	for _, text := range []string{"hello", mark, mark + "1234567", "x" + question, question} {
		fmt.Fprint(conn, text)
	}
	// Datagrams on the loopback keep their order: the first answer is the only one.
	buf := make([]byte, 100)
	if n := must(conn.Read(buf))(t); string(buf[:n]) != question {
		t.Errorf("answer %q", buf[:n])
	}
}

// The machine's own programs, in a namespace with rules of both kinds.
func TestRulesOfBothKinds(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet)
	ns := kerneltest.NewNS(t)
	handle(t, ns)
	for _, args := range [][]string{
		{"iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "10.244.0.0/16", "-j", "MASQUERADE"},
		{"ip6tables-nft", "-t", "filter", "-P", "FORWARD", "DROP"},
		{"nft", "add table inet braid-test { chain forward { type filter hook forward priority 0; policy drop; counter accept; }; }"},
	} {
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Fatalf("%v (Debian packages iptables and nftables)", err)
		}
		try(t, ns.Do(func() error {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w: %s", args, err, out)
			}
			return nil
		}))
	}
	texts := map[string]string{}
	for _, r := range Collect(t.Context(), Config{NS: ns}).Firewall {
		texts[r.Backend] = r.Text
	}
	for backend, want := range map[string]string{
		"iptables-nft":  "-A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE",
		"ip6tables-nft": ":FORWARD DROP [0:0]",
		"nftables":      "counter accept",
	} {
		if !strings.Contains(texts[backend], want) {
			t.Errorf("%s: %q, want %q", backend, texts[backend], want)
		}
	}
	if len(texts) != 3 || strings.Contains(texts["nftables"], "table ip ") || strings.Contains(texts["nftables"], "packets") {
		t.Errorf("%v", texts)
	}
}

func TestLegacyRulesAreReadOnlyWhereThereAreSome(t *testing.T) {
	kerneltest.Need(t, kerneltest.IptablesLegacy)
	ns := kerneltest.NewNS(t)
	handle(t, ns)
	s := survey{}
	names := func() (text string) {
		try(t, ns.Do(func() error { text = s.legacyTables("ip_tables_names"); return nil }))
		return text
	}
	legacy := func() (text string) {
		for _, r := range Collect(t.Context(), Config{NS: ns}).Firewall {
			if r.Backend == "iptables-legacy" {
				text = r.Text
			}
		}
		return text
	}
	if before, text, after := names(), legacy(), names(); before != "" || text != "" || after != "" {
		t.Errorf("tables %q, rules %q, then tables %q", before, text, after)
	}
	try(t, ns.Do(func() error {
		if out, err := exec.Command("iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-s", "10.244.0.0/16", "-j", "ACCEPT").CombinedOutput(); err != nil {
			return fmt.Errorf("iptables-legacy: %w: %s", err, out)
		}
		return nil
	}))
	if text := legacy(); !strings.Contains(text, "-A POSTROUTING -s 10.244.0.0/16 -j ACCEPT") {
		t.Errorf("rules %q", text)
	}
	if len(s.node.Problems) > 0 {
		t.Error(s.node.Problems)
	}
}
