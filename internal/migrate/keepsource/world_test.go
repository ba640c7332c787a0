package keepsource

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// world is two nodes with two overlays between them, and on each node a pod of
// the old and one of the new network. The links between the nodes stand for
// the tunnels: what counts are their names, addresses and routes.
//
//	f1 10.243.1.2 ── cni0 ┐                           ┌ cni0 ── f2 10.243.2.2
//	                    node1 ══ flannel.1, cilium_host ══ node2
//	c1 172.20.1.2 ── lxc0 ┘                           └ lxc0 ── c2 172.20.2.2
//
// The same with fd10:243:N::2 and fd17:20:N::2.
type world struct {
	at map[string]*netns.NS
	// firewall says which iptables everybody on the nodes uses.
	firewall Backend
}

// address is where somebody is: a pod by its name, or a link of a node such as
// "node1 cni0".
func address(who string, is6 bool) netip.Addr {
	hosts := map[string]string{"f": ":2", "c": ":2", "cni0": ":1", "lxc0": ":1", "flannel.1": ":fe", "cilium_host": ":fe"}
	kind, node := who[:1], who[1:]
	if n, link, ok := strings.Cut(who, " "); ok {
		kind, node = link, n[len("node"):]
	}
	old := kind == "f" || kind == "cni0" || kind == "flannel.1"
	if is6 {
		net := map[bool]string{true: "fd10:243:", false: "fd17:20:"}[old]
		return netip.MustParseAddr(net + node + ":" + hosts[kind])
	}
	net := map[bool]string{true: "10.243.", false: "172.20."}[old]
	host := map[string]string{":1": "1", ":2": "2", ":fe": "254"}[hosts[kind]]
	return netip.MustParseAddr(net + node + "." + host)
}

func newWorld(t *testing.T, firewall Backend) *world {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth)
	if firewall == Legacy {
		kerneltest.Need(t, kerneltest.IptablesLegacy)
	} else {
		kerneltest.Need(t, kerneltest.NftInet)
	}
	w := &world{at: map[string]*netns.NS{}, firewall: firewall}
	for _, who := range []string{"node1", "node2", "f1", "f2", "c1", "c2"} {
		w.at[who] = kerneltest.NewNS(t)
		try(t, rtnl.Sysctl{}.Set(w.at[who],
			rtnl.Setting{Path: "ipv6/conf/all/accept_dad", Value: "0"}, rtnl.Setting{Path: "ipv6/conf/default/accept_dad", Value: "0"},
			// As on a real node; a test that needs strictness asks for it.
			rtnl.Setting{Path: "ipv4/conf/all/rp_filter", Value: "0"}, rtnl.Setting{Path: "ipv4/conf/default/rp_filter", Value: "0"}))
		up(t, w.handle(t, who), must(w.handle(t, who).Link("lo"))(t))
	}
	for _, n := range []string{"1", "2"} {
		try(t, rtnl.Sysctl{}.Set(w.at["node"+n], rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}, rtnl.Setting{Path: "ipv6/conf/all/forwarding", Value: "1"}))
		w.pod(t, n, "f", "cni0")
		w.pod(t, n, "c", "lxc0")
	}
	w.overlay(t, "flannel.1", "cni0")
	w.overlay(t, "cilium_host", "lxc0")
	for _, who := range []string{"f1", "f2", "c1", "c2"} {
		serve(t, w.at[who])
	}
	for who := range w.at {
		w.awaitLinks(t, who)
	}
	return w
}

// awaitLinks waits until all links pass traffic, which on a busy machine takes
// the kernel seconds.
func (w *world) awaitLinks(t *testing.T, who string) {
	t.Helper()
	h := w.handle(t, who)
	running := func() (bool, error) {
		links, err := h.Links()
		return !slices.ContainsFunc(links, func(l rtnl.Link) bool { return l.Up && !l.Running && l.Name != "lo" }), err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	try(t, rtnl.Await(ctx, w.at[who], running))
}

func (w *world) handle(t *testing.T, who string) *rtnl.Handle {
	t.Helper()
	h := must(rtnl.Open(w.at[who]))(t)
	t.Cleanup(h.Close)
	return h
}

// pod plugs a pod into its node, whose end of the link is its gateway.
func (w *world) pod(t *testing.T, node, kind, port string) {
	t.Helper()
	h, pod := w.handle(t, "node"+node), w.handle(t, kind+node)
	l := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: port}, Peer: rtnl.New{Name: "eth0"}, PeerNS: w.at[kind+node]}))(t)
	eth := must(pod.Link("eth0"))(t)
	gw4, gw6 := address("node"+node+" "+port, false), address("node"+node+" "+port, true)
	up(t, h, l, netip.PrefixFrom(gw4, 24), netip.PrefixFrom(gw6, 48))
	up(t, pod, eth, netip.PrefixFrom(address(kind+node, false), 24), netip.PrefixFrom(address(kind+node, true), 48))
	for _, gw := range []netip.Addr{gw4, gw6} {
		try(t, pod.AddRoute(rtnl.Route{Dst: netip.PrefixFrom(gw, 0).Masked(), Via: gw, Link: eth.Index}))
	}
}

// overlay joins the nodes by one more link, and leads what is for the other
// node's port there.
func (w *world) overlay(t *testing.T, name, port string) {
	t.Helper()
	h1, h2 := w.handle(t, "node1"), w.handle(t, "node2")
	try2 := must(h1.AddVeth(rtnl.Veth{New: rtnl.New{Name: name}, Peer: rtnl.New{Name: name}, PeerNS: w.at["node2"]}))(t)
	links := map[string]rtnl.Link{"node1": try2, "node2": must(h2.Link(name))(t)}
	for self, h := range map[string]*rtnl.Handle{"node1": h1, "node2": h2} {
		for _, is6 := range []bool{false, true} {
			a := address(self+" "+name, is6)
			up(t, h, links[self], netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for self, h := range map[string]*rtnl.Handle{"node1": h1, "node2": h2} {
		other := map[string]string{"node1": "node2", "node2": "node1"}[self]
		for _, is6 := range []bool{false, true} {
			via := address(other+" "+name, is6)
			bits := map[bool]int{false: 24, true: 48}[is6]
			try(t, h.AddRoute(rtnl.Route{Dst: netip.PrefixFrom(via, bits).Masked(), Via: via, Link: links[self].Index, OnLink: true}))
		}
	}
}

func up(t *testing.T, h *rtnl.Handle, link rtnl.Link, addrs ...netip.Prefix) {
	t.Helper()
	for _, a := range addrs {
		try(t, h.AddAddr(link.Index, rtnl.Addr{Prefix: a, NoDAD: true}))
	}
	try(t, h.SetUp(link.Index))
}

// podNets are the networks of the pods of one node.
func podNet(kind, node string, is6 bool) netip.Prefix {
	bits := map[bool]int{false: 24, true: 48}[is6]
	return netip.PrefixFrom(address(kind+node, is6), bits).Masked()
}

var (
	oldNets = []netip.Prefix{netip.MustParsePrefix("10.243.0.0/16"), netip.MustParsePrefix("fd10:243::/32")}
	newNets = []netip.Prefix{netip.MustParsePrefix("172.20.0.0/16"), netip.MustParsePrefix("fd17:20::/32")}
)

// masquerades writes the rules of Flannel and Cilium (migration-confdir.md C1)
// into the nodes, in their order.
func (w *world) masquerades(t *testing.T, flannelInNFT bool) {
	t.Helper()
	for _, n := range []string{"1", "2"} {
		for _, is6 := range []bool{false, true} {
			if flannelInNFT {
				w.flannelNFT(t, n, is6)
			} else {
				w.flannelIPTables(t, n, is6)
			}
			w.ciliumIPTables(t, n, is6)
		}
	}
}

func (w *world) flannelIPTables(t *testing.T, n string, is6 bool) {
	t.Helper()
	pod, cluster, multicast := podNet("f", n, is6), oldNets[number(is6)], []string{"224.0.0.0/4", "ff00::/8"}[number(is6)]
	w.ipt(t, "node"+n, is6, fmt.Sprintf(`*nat
:FLANNEL-POSTRTG -
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s %[1]s -d %[2]s -j RETURN
-A FLANNEL-POSTRTG -s %[2]s -d %[1]s -j RETURN
-A FLANNEL-POSTRTG ! -s %[2]s -d %[1]s -j RETURN
-A FLANNEL-POSTRTG -s %[2]s ! -d %[3]s -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s %[2]s -d %[2]s -j MASQUERADE --random-fully
-A POSTROUTING -j FLANNEL-POSTRTG
COMMIT
`, pod, cluster, multicast))
}

func (w *world) flannelNFT(t *testing.T, n string, is6 bool) {
	t.Helper()
	pod, cluster, f := podNet("f", n, is6), oldNets[number(is6)], familyName(is6)
	w.nft(t, "node"+n, fmt.Sprintf(`table %[3]s flannel-%[3]s {
 chain postrtg {
  type nat hook postrouting priority srcnat
  meta mark 0x4000 return
  %[3]s saddr %[1]s %[3]s daddr %[2]s return
  %[3]s saddr %[2]s %[3]s daddr %[1]s return
  %[3]s saddr != %[1]s %[3]s daddr %[2]s return
  %[3]s saddr %[2]s masquerade fully-random
  %[3]s saddr != %[2]s %[3]s daddr %[2]s masquerade fully-random
 }
}
`, pod, cluster, f))
}

func (w *world) ciliumIPTables(t *testing.T, n string, is6 bool) {
	t.Helper()
	w.ipt(t, "node"+n, is6, fmt.Sprintf(`*nat
:CILIUM_POST_nat -
-A CILIUM_POST_nat -s %[1]s ! -d %[1]s ! -o cilium_+ -j MASQUERADE
-A CILIUM_POST_nat ! -s %[1]s ! -d %[1]s -o cilium_host -j SNAT --to-source %[2]s
-I POSTROUTING 1 -j CILIUM_POST_nat
COMMIT
`, podNet("c", n, is6), address("node"+n+" cilium_host", is6)))
}

// deliversUnseen lets packets from the new overlay reach pods, and those of pods
// the new overlay, past the node's connection tracking, as eBPF does.
func (w *world) deliversUnseen(t *testing.T) {
	t.Helper()
	for n, other := range map[string]string{"1": "2", "2": "1"} {
		for _, is6 := range []bool{false, true} {
			w.ipt(t, "node"+n, is6, fmt.Sprintf(`*raw
-A PREROUTING -i cilium_host ! -d %s -j CT --notrack
-A PREROUTING -i lxc0 -d %s -j CT --notrack
COMMIT
`, address("node"+n+" cilium_host", is6), podNet("c", other, is6)))
		}
	}
}

// dropsInvalid lets the nodes drop what looks like no connection, as kube-proxy
// does.
func (w *world) dropsInvalid(t *testing.T) {
	t.Helper()
	for _, n := range []string{"1", "2"} {
		for _, is6 := range []bool{false, true} {
			w.ipt(t, "node"+n, is6, `*filter
:KUBE-FORWARD -
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
COMMIT
`)
		}
	}
}

// service sends connections with an address of a service to c2; a second
// address does the same with kube-proxy's mark for masquerade.
func (w *world) service(t *testing.T, is6 bool) (plain, marked netip.AddrPort) {
	t.Helper()
	ips := map[bool][2]string{false: {"10.96.0.10", "10.96.0.11"}, true: {"fd10:96::10", "fd10:96::11"}}[is6]
	plain = netip.AddrPortFrom(netip.MustParseAddr(ips[0]), 80)
	marked = netip.AddrPortFrom(netip.MustParseAddr(ips[1]), 80)
	w.ipt(t, "node1", is6, fmt.Sprintf(`*nat
:KUBE-SERVICES -
:KUBE-POSTROUTING -
-A KUBE-SERVICES -d %[1]s -p tcp --dport 80 -j DNAT --to-destination %[3]s
-A KUBE-SERVICES -d %[2]s -p tcp --dport 80 -j MARK --or-mark 0x4000
-A KUBE-SERVICES -d %[2]s -p tcp --dport 80 -j DNAT --to-destination %[3]s
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A PREROUTING -j KUBE-SERVICES
-I POSTROUTING 1 -j KUBE-POSTROUTING
COMMIT
`, plain.Addr(), marked.Addr(), at("c2", is6)))
	return plain, marked
}

// strict makes a node's settings those that break asymmetric ways.
func (w *world) strict(t *testing.T) {
	t.Helper()
	for _, n := range []string{"node1", "node2"} {
		for _, link := range []string{"all", "flannel.1", "cilium_host"} {
			try(t, rtnl.Sysctl{}.Set(w.at[n], rtnl.Setting{Path: rpFilterPath(link), Value: "1"}))
		}
	}
}

func (w *world) ipt(t *testing.T, who string, is6 bool, rules string) {
	t.Helper()
	must(host{w.at[who]}.Run(t.Context(), []byte(rules), program(w.firewall, is6)+"-restore", "-w", "--noflush"))(t)
}

func (w *world) nft(t *testing.T, who, rules string) {
	t.Helper()
	must(host{w.at[who]}.Run(t.Context(), []byte(rules), "nft", "-f", "-"))(t)
}

// config is that of a node. Each test has one directory for the state.
func (w *world) config(t *testing.T, node, dir string) Config {
	t.Helper()
	return Config{
		Old: oldNets, New: newNets, OldDevices: []string{"flannel.*", "cni0"}, NewDevices: []string{"cilium_*", "lxc*"},
		NS: w.at[node], Host: host{w.at[node]}, StateFile: filepath.Join(dir, node, "keepsource.json"),
	}
}

// host runs programs in a node.
type host struct{ ns *netns.NS }

func (h host) Run(ctx context.Context, stdin []byte, args ...string) (out []byte, err error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	err = h.ns.Do(func() error {
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, err
}

const port = 8080

// serve tells everybody who connects who that is, and again for every line.
func serve(t *testing.T, ns *netns.NS) {
	t.Helper()
	var l net.Listener
	try(t, ns.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				who := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap()
				for lines := bufio.NewReader(c); ; {
					if _, err := fmt.Fprintln(c, who); err != nil {
						return
					}
					if _, err := lines.ReadString('\n'); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// conversation is a connection to a server that says whom it sees.
type conversation struct {
	net.Conn
	lines *bufio.Reader
	wait  time.Duration
}

const (
	// brief is how long a test waits for an answer that should not come: enough
	// for a SYN to be sent again once.
	brief = 2500 * time.Millisecond
	// patient is for one that should, on a busy machine.
	patient = 15 * time.Second
)

func (w *world) connect(from string, to netip.AddrPort, wait time.Duration) (*conversation, netip.Addr, error) {
	var c *net.TCPConn
	err := w.at[from].Do(func() (err error) {
		// Made in the pod, the socket is of the pod from then on.
		dialer := net.Dialer{Timeout: wait}
		c, err = dialer.DialTCP(context.Background(), "tcp", netip.AddrPort{}, to)
		return err
	})
	if err != nil {
		return nil, netip.Addr{}, fmt.Errorf("%s connects to %s: %w", from, to, err)
	}
	k := &conversation{c, bufio.NewReader(c), wait}
	seen, err := k.hear()
	if err != nil {
		c.Close()
		return nil, netip.Addr{}, fmt.Errorf("%s hears from %s: %w", from, to, err)
	}
	return k, seen, nil
}

func (k *conversation) hear() (netip.Addr, error) {
	if err := k.SetReadDeadline(time.Now().Add(k.wait)); err != nil {
		return netip.Addr{}, err
	}
	line, err := k.lines.ReadString('\n')
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(strings.TrimSpace(line))
}

// again asks once more on the same connection.
func (k *conversation) again() (netip.Addr, error) {
	if _, err := io.WriteString(k, "again\n"); err != nil {
		return netip.Addr{}, err
	}
	return k.hear()
}

// seen is the address that the server sees, or "nobody" when nothing comes of
// it.
func (w *world) seen(t *testing.T, from string, to netip.AddrPort, wait time.Duration) string {
	t.Helper()
	k, a, err := w.connect(from, to, wait)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return "nobody"
	}
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	return a.String()
}

// hears reports whether one of so many datagrams, one in a tenth of a second,
// comes from one to the other.
func (w *world) hears(t *testing.T, who, from string, at netip.Addr, tries int) bool {
	t.Helper()
	var in, out net.PacketConn
	try(t, w.at[who].Do(func() (err error) {
		in, err = net.ListenPacket("udp4", ":9999")
		return err
	}))
	defer in.Close()
	try(t, w.at[from].Do(func() (err error) {
		out, err = net.ListenPacket("udp4", ":0")
		return err
	}))
	defer out.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 9999))
	buf := make([]byte, 16)
	for range tries {
		if _, err := out.WriteTo([]byte("hello"), to); err != nil {
			t.Fatal(err)
		}
		try(t, in.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		if _, _, err := in.ReadFrom(buf); err == nil {
			return true
		}
	}
	return false
}

// four are the directions between the networks, and who is seen there while
// everybody masquerades.
var four = []struct{ from, to, hidden string }{
	{"f1", "c2", "node1 cilium_host"},
	{"c1", "f2", "node1 flannel.1"},
	{"f1", "c1", "node1 lxc0"},
	{"c1", "f1", "node1 cni0"},
}

func at(who string, is6 bool) netip.AddrPort { return netip.AddrPortFrom(address(who, is6), port) }

var (
	counters  = regexp.MustCompile(`\[\d+:\d+\]|packets \d+ bytes \d+`)
	generated = regexp.MustCompile(`(?m)^# (Generated|Completed|Warning).*\n`)
)

// text is all of a node that this package may change, without counters.
func (w *world) text(t *testing.T, node string) string {
	t.Helper()
	var b strings.Builder
	h := host{w.at[node]}
	commands := [][]string{{"iptables-legacy-save"}, {"ip6tables-legacy-save"}}
	if w.firewall == NFT || !inGuest() {
		commands = append(commands, []string{"nft", "list", "ruleset"})
	}
	for _, args := range commands {
		out := must(h.Run(t.Context(), nil, args...))(t)
		fmt.Fprintf(&b, "%s\n%s", strings.Join(args, " "), counters.ReplaceAll(generated.ReplaceAll(out, nil), []byte("N")))
	}
	links := must(w.handle(t, node).Links())(t)
	for _, name := range append([]string{"all", "default"}, linkNames(links)...) {
		fmt.Fprintf(&b, "%s %s\n", name, must(rtnl.Sysctl{}.Get(w.at[node], rpFilterPath(name)))(t))
	}
	return b.String()
}

func linkNames(links []rtnl.Link) (names []string) {
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

// usual is the firewall of a test that is not about it.
func usual() Backend {
	if inGuest() {
		return Legacy
	}
	return NFT
}

// inGuest is under user-mode-linux, which has no nftables for IP.
func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

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
