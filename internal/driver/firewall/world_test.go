package firewall_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/firewall"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
	"braid.dev/braid/internal/rtnl"
)

// world is a node that forwards nothing by itself, with two bridges and
// somebody outside.
//
//	                              braidbr0 10.1.1.1 ── pod 10.1.1.2, neighbour 10.1.1.3
//	outside 192.0.2.2 ── node ──<
//	                              braidbr1 10.1.2.1 ── stranger 10.1.2.2
//
// The same with 2001:db8:: and fd01::, fd02::.
type world struct {
	node, outside *netns.NS
	// at holds everybody's namespace by name.
	at map[string]*netns.NS
	d  driver.Driver
}

func newWorld(t testing.TB) *world {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth, kerneltest.Bridge)
	w := &world{node: kerneltest.NewNS(t), outside: kerneltest.NewNS(t)}
	w.at = map[string]*netns.NS{"node": w.node, "outside": w.outside}
	w.d = firewall.New(firewall.Config{HostNS: w.node})
	w.quickIPv6(t, w.node)
	w.quickIPv6(t, w.outside)
	w.bridgedFramesAreTheNodes(t, false)
	node := w.handle(t, w.node)
	for i, br := range []string{"braidbr0", "braidbr1"} {
		l := must(node.AddBridge(rtnl.Bridge{New: rtnl.New{Name: br}}))(t)
		up(t, node, l, fmt.Sprintf("10.1.%d.1/24", i+1), fmt.Sprintf("fd0%d::1/64", i+1))
	}
	w.plug(t, "pod", "braidbr0", "10.1.1.2/24", "10.1.1.1", "fd01::2/64", "fd01::1")
	w.plug(t, "neighbour", "braidbr0", "10.1.1.3/24", "10.1.1.1", "fd01::3/64", "fd01::1")
	w.plug(t, "stranger", "braidbr1", "10.1.2.2/24", "10.1.2.1", "fd02::2/64", "fd02::1")
	out := must(node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "out0"}, Peer: rtnl.New{Name: "eth0"}, PeerNS: w.outside}))(t)
	up(t, node, out, "192.0.2.1/24", "2001:db8::1/64")
	configure(t, w.outside, "192.0.2.2/24", "192.0.2.1", "2001:db8::2/64", "2001:db8::1")
	try(t, rtnl.Sysctl{}.Set(w.node, rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}, rtnl.Setting{Path: "ipv6/conf/all/forwarding", Value: "1"}))
	for _, ns := range w.at {
		serve(t, ns)
	}
	running := func() (bool, error) {
		links, err := node.Links()
		for _, l := range links {
			if !l.Running && l.Name != "lo" {
				return false, err
			}
		}
		return true, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	try(t, rtnl.Await(ctx, w.node, running))
	return w
}

// quickIPv6 lets nobody wait for link-local addresses.
func (w *world) quickIPv6(t testing.TB, ns *netns.NS) {
	t.Helper()
	try(t, rtnl.Sysctl{}.Set(ns, rtnl.Setting{Path: "ipv6/conf/all/accept_dad", Value: "0"}, rtnl.Setting{Path: "ipv6/conf/default/accept_dad", Value: "0"}))
}

// bridgedFramesAreTheNodes makes bridged frames pass the node's IP rules
// (br_netfilter), or not. It reports whether the kernel can do so.
func (w *world) bridgedFramesAreTheNodes(t testing.TB, yes bool) bool {
	t.Helper()
	if yes && inGuest() {
		// A module that nobody asks for by a name of the kernel's.
		if out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput(); err != nil {
			t.Fatalf("modprobe br_netfilter: %v: %s", err, out)
		}
	}
	value := map[bool]string{false: "0", true: "1"}[yes]
	for _, key := range []string{"iptables", "ip6tables"} {
		err := rtnl.Sysctl{}.Set(w.node, rtnl.Setting{Path: "bridge/bridge-nf-call-" + key, Value: value})
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
		try(t, err)
	}
	return true
}

func (w *world) plug(t testing.TB, name, bridge string, addrs ...string) {
	t.Helper()
	ns := kerneltest.NewNS(t)
	w.quickIPv6(t, ns)
	w.at[name] = ns
	node := w.handle(t, w.node)
	port := must(node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "v-" + name}, Peer: rtnl.New{Name: "eth0"}, PeerNS: ns}))(t)
	try(t, node.SetMaster(port.Index, must(node.Link(bridge))(t).Index))
	try(t, node.SetUp(port.Index))
	configure(t, ns, addrs[0], addrs[1], addrs[2], addrs[3])
}

func configure(t testing.TB, ns *netns.NS, v4, gw4, v6, gw6 string) {
	t.Helper()
	h := must(rtnl.Open(ns))(t)
	defer h.Close()
	up(t, h, must(h.Link("lo"))(t)) // which IPv6 needs for addresses of its own
	link := must(h.Link("eth0"))(t)
	up(t, h, link, v4, v6)
	for dst, gw := range map[string]string{"0.0.0.0/0": gw4, "::/0": gw6} {
		try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(gw), Link: link.Index}))
	}
}

func up(t testing.TB, h *rtnl.Handle, link rtnl.Link, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		try(t, h.AddAddr(link.Index, rtnl.Addr{Prefix: netip.MustParsePrefix(a), NoDAD: true}))
	}
	try(t, h.SetUp(link.Index))
}

func (w *world) handle(t testing.TB, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h := must(rtnl.Open(ns))(t)
	t.Cleanup(h.Close)
	return h
}

// forwardNothing gives the node the policy that Docker gives it.
func (w *world) forwardNothing(t testing.TB) {
	t.Helper()
	for _, program := range []string{"iptables", "ip6tables"} {
		w.run(t, program, "-P", "FORWARD", "DROP")
	}
}

func (w *world) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return string(must(inNode{w.node}.Exec(t.Context(), driver.Program{Name: name, Args: args}))(t))
}

// spec is the attachment of one of the containers, "pod" or "stranger".
func (w *world) spec(who, keys string) driver.Spec {
	if keys != "" {
		keys = "," + keys
	}
	one := 1
	bridge, v4, v6 := "braidbr0", "10.1.1.2/24", "fd01::2/64"
	if who == "stranger" {
		bridge, v4, v6 = "braidbr1", "10.1.2.2/24", "fd02::2/64"
	}
	return driver.Spec{
		ContainerID: who, IfName: "eth0", NetNS: w.at[who], NetNSPath: "/run/netns/" + who, Host: inNode{w.node},
		Conf: []byte(`{"cniVersion":"1.0.0","name":"testnet","type":"firewall"` + keys + `}`),
		Prev: &current.Result{
			CNIVersion: "1.0.0",
			Interfaces: []*current.Interface{{Name: bridge}, {Name: "eth0", Sandbox: "/run/netns/" + who}},
			IPs:        []*current.IPConfig{{Interface: &one, Address: ipNet(v4)}, {Interface: &one, Address: ipNet(v6)}},
		},
	}
}

func ipNet(s string) net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	n.IP = ip
	return *n
}

// inNode runs programs in the world's node, as the shim does on a real one.
type inNode struct{ ns *netns.NS }

func (n inNode) Exec(ctx context.Context, p driver.Program) (out []byte, err error) {
	var stderr bytes.Buffer
	name := p.Name
	if inGuest() { // whose kernel serves only the old iptables
		name = strings.Replace(name, "tables", "tables-legacy", 1)
	}
	cmd := exec.CommandContext(ctx, name, p.Args...)
	cmd.Stdin, cmd.Stderr, cmd.Env = bytes.NewReader(p.Stdin), &stderr, append(os.Environ(), p.Env...)
	err = n.ns.Do(func() error {
		out, err = cmd.Output()
		return err
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &driver.ExitError{Program: p.Name, Code: exit.ExitCode(), Stdout: out, Stderr: stderr.Bytes()}
	}
	return out, err
}

func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

// rules are all filter rules of the node, in the words of iptables, without
// the driver's notes.
func (w *world) rules(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, program := range []string{"iptables", "ip6tables"} {
		for line := range strings.Lines(w.run(t, program, "-S")) {
			if !strings.Contains(line, "CNI-FW-") {
				fmt.Fprintf(&b, "%s %s", program, line)
			}
		}
	}
	return b.String()
}

// reference runs one verb of the reference plugin in the world's node.
func (w *world) reference(t testing.TB, verb string, s driver.Spec) error {
	t.Helper()
	var c map[string]any
	try(t, json.Unmarshal(s.Conf, &c))
	c["prevResult"] = s.Prev
	dir := refplugin.Dir(t, "firewall")
	_, path := kerneltest.NewNamedNS(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "firewall"))
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.ContainerID, "CNI_IFNAME=" + s.IfName,
		"CNI_NETNS=" + path, "CNI_PATH=" + dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
	cmd.Stdin = bytes.NewReader(must(json.Marshal(c))(t))
	return w.node.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("reference plugin: %s: %w: %s", verb, err, out)
		}
		return nil
	})
}

// serve says yes to everybody who asks by TCP.
func serve(t testing.TB, ns *netns.NS) {
	t.Helper()
	var l net.Listener
	try(t, ns.Do(func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("yes"))
			c.Close()
		}
	}()
}

// address is where somebody is found.
var address = map[string][2]string{
	"pod": {"10.1.1.2", "fd01::2"}, "neighbour": {"10.1.1.3", "fd01::3"}, "stranger": {"10.1.2.2", "fd02::2"},
	"outside": {"192.0.2.2", "2001:db8::2"},
}

// expect asks "WHO to WHOM" by both families, all at once.
func (w *world) expect(t *testing.T, answers map[string]bool) {
	t.Helper()
	var asking sync.WaitGroup
	for question, want := range answers {
		var who, whom string
		fmt.Sscanf(question, "%s to %s", &who, &whom)
		for _, addr := range address[whom] {
			asking.Go(func() {
				if got := w.ask(who, addr, patience[want]); got != want {
					t.Errorf("%s (%s): %v, want %v", question, addr, got, want)
				}
			})
		}
	}
	asking.Wait()
}

// patience is how long an answer is waited for that is expected, or not. A
// first packet may be lost while neighbours are looked for, and a guest be slow.
var patience = map[bool]time.Duration{true: 15 * time.Second, false: time.Second}

func (w *world) ask(who, addr string, limit time.Duration) bool {
	var c net.Conn
	err := w.at[who].Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: limit}).Dial("tcp", net.JoinHostPort(addr, "80"))
		return err
	})
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	buf := make([]byte, 3)
	_, err = c.Read(buf)
	return err == nil
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		try(t, os.WriteFile(path, []byte(got), 0o644))
	}
	if want := must(os.ReadFile(path))(t); got != string(want) {
		t.Errorf("%s differs (UPDATE_GOLDEN=1 writes it anew)\n--- got\n%s--- want\n%s", path, got, want)
	}
}

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
