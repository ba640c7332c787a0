package portmap_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/portmap"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// world is a node with a bridge, two containers on it, and somebody outside.
//
//	outside 192.0.2.2 ── 192.0.2.1 node 10.1.1.1 ── 10.1.1.2 pod
//	                                            └── 10.1.1.3 neighbour
//
// The same with 2001:db8:: and fd01::.
type world struct {
	node, pod, neighbour, outside *netns.NS
	podPath                       string
	d                             driver.Driver
}

func newWorld(t testing.TB) *world {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth, kerneltest.Bridge)
	w := &world{node: kerneltest.NewNS(t), neighbour: kerneltest.NewNS(t), outside: kerneltest.NewNS(t)}
	w.pod, w.podPath = kerneltest.NewNamedNS(t)
	w.d = portmap.New(portmap.Config{HostNS: w.node})
	for _, ns := range []*netns.NS{w.node, w.pod, w.neighbour, w.outside} {
		// Nobody waits for the link-local addresses of the neighbours.
		try(t, rtnl.Sysctl{}.Set(ns, rtnl.Setting{Path: "ipv6/conf/all/accept_dad", Value: "0"}, rtnl.Setting{Path: "ipv6/conf/default/accept_dad", Value: "0"}))
	}
	for _, key := range []string{"iptables", "ip6tables"} { // Bridged frames are not the node's.
		err := rtnl.Sysctl{}.Set(w.node, rtnl.Setting{Path: "bridge/bridge-nf-call-" + key, Value: "0"})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	node := handle(t, w.node)
	up(t, node, must(node.Link("lo"))(t))
	br := must(node.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0"}}))(t)
	up(t, node, br, "10.1.1.1/24", "fd01::1/64")
	for name, ns := range map[string]*netns.NS{"veth0": w.pod, "veth1": w.neighbour} {
		port := plug(t, node, name, ns)
		try(t, node.SetMaster(port.Index, br.Index))
		up(t, node, port)
	}
	up(t, node, plug(t, node, "out0", w.outside), "192.0.2.1/24", "2001:db8::1/64")
	configure(t, w.pod, "10.1.1.2/24", "10.1.1.1", "fd01::2/64", "fd01::1")
	configure(t, w.neighbour, "10.1.1.3/24", "10.1.1.1", "fd01::3/64", "fd01::1")
	configure(t, w.outside, "192.0.2.2/24", "192.0.2.1", "2001:db8::2/64", "2001:db8::1")
	try(t, rtnl.Sysctl{}.Set(w.node, rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}, rtnl.Setting{Path: "ipv6/conf/all/forwarding", Value: "1"}))
	return w
}

func plug(t testing.TB, node *rtnl.Handle, name string, ns *netns.NS) rtnl.Link {
	t.Helper()
	return must(node.AddVeth(rtnl.Veth{New: rtnl.New{Name: name}, Peer: rtnl.New{Name: "eth0"}, PeerNS: ns}))(t)
}

// configure gives a container an address of each family and default routes.
func configure(t testing.TB, ns *netns.NS, v4, gw4, v6, gw6 string) {
	t.Helper()
	h := handle(t, ns)
	up(t, h, must(h.Link("lo"))(t))
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

func handle(t testing.TB, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h := must(rtnl.Open(ns))(t)
	t.Cleanup(h.Close)
	return h
}

// result is what the plugin before gave the pod.
func result() *current.Result {
	one := 1
	return &current.Result{
		CNIVersion: "1.0.0",
		Interfaces: []*current.Interface{{Name: "veth0"}, {Name: "eth0", Sandbox: "/run/netns/pod"}},
		IPs: []*current.IPConfig{
			{Interface: &one, Address: ipNet("10.1.1.2/24")},
			{Interface: &one, Address: ipNet("fd01::2/64")},
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

const someMappings = `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8053,"containerPort":53,"protocol":"udp"}]`

// conf is a configuration with these keys and port mappings.
func conf(keys, mappings string) string {
	if keys != "" {
		keys += ","
	}
	return `{"cniVersion":"1.0.0","name":"testnet","type":"portmap",` + keys + `"runtimeConfig":{"portMappings":` + mappings + `}}`
}

func (w *world) spec(conf string) driver.Spec {
	return driver.Spec{
		ContainerID: "test-container", IfName: "eth0", NetNSPath: "/run/netns/pod", NetNS: w.pod,
		Conf: []byte(conf), Prev: result(), Host: inNode{w.node},
	}
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

// rules are all rules of the node that port mappings may consist of: those of
// table cni_hostport, and those of iptables.
func (w *world) rules(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	if !inGuest() {
		for _, family := range []string{"ip", "ip6"} {
			out, err := inNode{w.node}.Exec(t.Context(), driver.Program{Name: "nft", Args: []string{"list", "table", family, "cni_hostport"}})
			var none *driver.ExitError
			if err != nil && !errors.As(err, &none) {
				t.Fatalf("nft (Debian's package nftables): %v", err)
			}
			b.Write(out)
		}
	}
	for _, program := range []string{"iptables", "ip6tables"} {
		out := must(inNode{w.node}.Exec(t.Context(), driver.Program{Name: program, Args: []string{"-t", "nat", "-S"}}))(t)
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "-P ") {
				fmt.Fprintf(&b, "%s %s", program, line)
			}
		}
	}
	return b.String()
}

// serve answers everybody who asks the pod by TCP or UDP with the address that
// the question came from.
func serve(t testing.TB, ns *netns.NS) {
	t.Helper()
	for _, port := range []string{"80", "81"} {
		var l net.Listener
		try(t, ns.Do(func() (err error) {
			l, err = net.Listen("tcp", ":"+port)
			return err
		}))
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s from %s", port, host(c.RemoteAddr()))
				c.Close()
			}
		}()
	}
	for _, address := range []string{"10.1.1.2:53", "[fd01::2]:53"} {
		var p net.PacketConn
		try(t, ns.Do(func() (err error) {
			p, err = net.ListenPacket("udp", address)
			return err
		}))
		t.Cleanup(func() { p.Close() })
		go func() {
			buf := make([]byte, 16)
			for {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				p.WriteTo([]byte("53 from "+host(from)), from)
			}
		}()
	}
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// ask asks from a namespace and returns the answer, or why there is none.
func ask(ns *netns.NS, network, address string) string {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 2 * time.Second}).Dial(network, address)
		return err
	})
	if err != nil {
		return "no connection"
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if network == "udp" {
		c.Write([]byte("?"))
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return "no answer"
	}
	return string(buf[:n])
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
