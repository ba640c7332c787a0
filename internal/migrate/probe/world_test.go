package probe

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// serveEnv has this test's program be a Server on that address instead, as a
// process of its own: what its addresses are depends on the namespace.
const serveEnv = "BRAID_TEST_PROBE"

func TestMain(m *testing.M) {
	if address := os.Getenv(serveEnv); address != "" {
		if err := serveForEver(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveForEver(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	return (&Server{Pod: os.Getenv("POD_NAME"), Node: os.Getenv("NODE_NAME")}).Serve(context.Background(), l)
}

// serve starts a Server inside ns and ends it with the test.
func serve(t *testing.T, ns *netns.NS, address, pod, node string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+address, "POD_NAME="+pod, "NODE_NAME="+node)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	try(t, err)
	try(t, ns.Do(cmd.Start)) // a process begins in the namespace of the thread that starts it
	t.Cleanup(func() {
		try(t, cmd.Process.Kill()) // how a server ends otherwise is tested elsewhere
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "listening\n" {
		t.Fatalf("server of %s said %q: %v", pod, line, err)
	}
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A world is a node between an old pod, a new pod and a host outside:
//
//	old 10.243.1.2 ── cni0 ─┐             ┌─ cilium_host ── 172.20.1.2 new
//	                        node 192.0.2.1
//	                           └ eth0 ── 192.0.2.2 outside
type world struct{ node, old, new, outside *netns.NS }

func newWorld(t *testing.T) world {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth, kerneltest.NftInet)
	w := world{kerneltest.NewNS(t), kerneltest.NewNS(t), kerneltest.NewNS(t), kerneltest.NewNS(t)}
	connect(t, w.node, "cni0", "10.243.1.1/24", w.old, "10.243.1.2/24")
	connect(t, w.node, "cilium_host", "172.20.1.1/24", w.new, "172.20.1.2/24")
	connect(t, w.node, "eth0", "192.0.2.1/24", w.outside, "192.0.2.2/24")
	// The node knows pods, its neighbour outside does not.
	h, err := rtnl.Open(w.node)
	try(t, err)
	defer h.Close()
	eth0, err := h.Link("eth0")
	try(t, err)
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.2"), Link: eth0.Index}))
	try(t, rtnl.Sysctl{}.Set(w.node, rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}))
	return w
}

// connect joins two namespaces by a veth; the other end, eth0, has its default
// route through the first.
func connect(t *testing.T, ns *netns.NS, name, addr string, other *netns.NS, otherAddr string) {
	t.Helper()
	h, err := rtnl.Open(ns)
	try(t, err)
	defer h.Close()
	l, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: name, Up: true}, Peer: rtnl.New{Name: "eth0"}, PeerNS: other})
	try(t, err)
	gateway := netip.MustParsePrefix(addr)
	try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: gateway}))
	p, err := rtnl.Open(other)
	try(t, err)
	defer p.Close()
	eth0, err := p.Link("eth0")
	try(t, err)
	try(t, p.SetUp(eth0.Index))
	try(t, p.AddAddr(eth0.Index, rtnl.Addr{Prefix: netip.MustParsePrefix(otherAddr)}))
	try(t, p.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gateway.Addr(), Link: eth0.Index}))
}

// masquerade is what CNIs do on nodes between networks, in both directions.
const masquerade = `table ip cni {
	chain post {
		type nat hook postrouting priority srcnat
		ip saddr 10.243.1.0/24 ip daddr != 10.243.1.0/24 masquerade
		ip saddr 172.20.1.0/24 ip daddr != 172.20.1.0/24 masquerade
	}
}`

// keepSource exempts old and new pods from it.
const keepSource = `table ip keep {
	chain post {
		type nat hook postrouting priority srcnat - 10
		ip saddr 10.243.1.0/24 ip daddr 172.20.1.0/24 snat to ip saddr
		ip saddr 172.20.1.0/24 ip daddr 10.243.1.0/24 snat to ip saddr
	}
}`

// service leads 10.97.0.80 to the new pod, also from there.
const service = `table ip service {
	chain post {
		type nat hook postrouting priority srcnat
		ip saddr 172.20.1.2 ip daddr 172.20.1.2 masquerade
	}
	chain pre {
		type nat hook prerouting priority dstnat
		ip daddr 10.97.0.80 tcp dport 80 dnat to 172.20.1.2:8080
	}
}`

// blackhole drops what is as long as a full packet, without telling anyone.
const blackhole = `table ip hole {
	chain forward {
		type filter hook forward priority 0
		ip length > 1000 drop
	}
}`

// rules loads nftables rules as nft reads them.
func rules(t *testing.T, ns *netns.NS, text string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Run); err != nil {
		t.Fatalf("nft: %v\n%s", err, out.String())
	}
}

// listen opens a TCP port inside ns.
func listen(t *testing.T, ns *netns.NS, address string) net.Listener {
	t.Helper()
	var l net.Listener
	open := func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}
	if ns == nil {
		try(t, open())
	} else {
		try(t, ns.Do(open))
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// soon are options for what is expected to fail, or to answer at once.
func soon(o Options) Options {
	o.Timeout, o.Pause = 500*time.Millisecond, time.Millisecond
	return o
}
