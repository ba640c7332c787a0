package ptp_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/nftables"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/ptp"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:  "ptp",
	Needs: []kerneltest.Feature{kerneltest.Veth},
	New:   func(node *netns.NS) driver.Driver { return ptp.New(ptp.Config{HostNS: node}) },
	Variants: []drivertest.Variant{
		{Name: "plain", Keys: `"ipMasq":false`},
		{Name: "masquerade", Keys: `"ipMasq":true,"ipMasqBackend":"nftables"`, Needs: []kerneltest.Feature{kerneltest.NftInet}},
	},
	Addresses: drivertest.Required,
	MTU:       true,
	Observe:   masqRules,
	Tampering: []drivertest.Tampering{
		{Name: "gateway's address gone", Want: "gateway 10.1.0.1", Change: onNode(func(h *rtnl.Handle, l rtnl.Link) error {
			return h.DelAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.1.0.1/32")})
		})},
		{Name: "route on the node gone", Want: "no route to fd00:1::10/128", Change: onNode(func(h *rtnl.Handle, l rtnl.Link) error {
			return h.DelRoute(rtnl.Route{Dst: netip.MustParsePrefix("fd00:1::10/128"), Link: l.Index})
		})},
		{Name: "node's end down", Want: "is down", Change: onNode(func(h *rtnl.Handle, l rtnl.Link) error { return h.SetDown(l.Index) })},
	},
}

// onNode changes the node's end of the only veth.
func onNode(change func(*rtnl.Handle, rtnl.Link) error) func(testing.TB, *drivertest.World, drivertest.Pod) {
	return func(t testing.TB, w *drivertest.World, _ drivertest.Pod) {
		t.Helper()
		h := drivertest.Handle(t, w.Node)
		links, err := h.Links()
		try(t, err)
		for _, l := range links {
			if l.Kind == "veth" {
				try(t, change(h, l))
			}
		}
	}
}

func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

// masqRules counts the masquerading rules of the node, where there are any.
func masqRules(t testing.TB, w *drivertest.World, _ drivertest.Pod) (text string) {
	t.Helper()
	if inGuest() {
		return "" // its kernel has no such nftables
	}
	try(t, w.Node.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		for _, c := range chains {
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return err
			}
			if c.Name == "masq_checks" && len(rules) > 0 {
				text += fmt.Sprintf("%d rules in %s %s\n", len(rules), c.Table.Name, c.Name)
			}
		}
		return nil
	}))
	return text
}

const (
	oneIPv4    = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"}]}`
	oneIPv6    = `{"type":"static","addresses":[{"address":"fd00:1::5/64","gateway":"fd00:1::1"}]}`
	defaults   = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"address":"fd00:1::5/64","gateway":"fd00:1::1"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}`
	twoSubnets = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"address":"10.2.0.5/24","gateway":"10.2.0.1"}]}`
	oneSubnet  = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"address":"10.1.0.6/24","gateway":"10.1.0.1"}]}`
	alone      = `{"type":"static","addresses":[{"address":"10.1.0.5/32","gateway":"169.254.1.1"}]}`
)

var scenarios = []drivertest.Scenario{
	{Name: "ipv4", IPAM: oneIPv4},
	{Name: "ipv6", IPAM: oneIPv6},
	{Name: "dual", IPAM: drivertest.Dual},
	{Name: "default-routes", IPAM: defaults},
	{Name: "routes", IPAM: drivertest.WithRoutes},
	{Name: "two-subnets", IPAM: twoSubnets},
	{Name: "mtu", Keys: `"mtu":1400`, IPAM: oneIPv4},
	{Name: "dns", Keys: `"dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.Dual},
	{Name: "masquerade", Keys: `"ipMasq":true,"ipMasqBackend":"nftables"`, IPAM: drivertest.Dual, Needs: []kerneltest.Feature{kerneltest.NftInet}},
	{Name: "gateway-outside", IPAM: `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"169.254.1.1"}]}`},
	{Name: "two-addresses-of-one-subnet", IPAM: oneSubnet, Differs: "the reference plugin fails at the second address's route"},
	{Name: "single-address", IPAM: alone, Differs: "the reference plugin fails, because there is no subnet whose route it could remove"},
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) {
	if inGuest() {
		t.Skip("compared on the host's kernel in tier net; to start programs in a guest is slow")
	}
	drivertest.SameAsReference(t, subject, scenarios)
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct{ name, keys, ipam, want string }{
		{"no ipam", "", "", "needs ipam"},
		{"no gateway", "", drivertest.OneIPv4, "10.1.0.5/24 comes without a gateway"},
		{"gateway of another family", "", `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"fd00::1"}]}`, "10.1.0.5/24 comes without a gateway"},
		{"own gateway", "", `{"type":"static","addresses":[{"address":"10.1.0.1/24","gateway":"10.1.0.1"}]}`, "is its own gateway"},
		{"unknown backend", `"ipMasqBackend":"pf"`, oneIPv4, `"pf"`},
		{"mtu", `"mtu":67`, oneIPv4, "mtu 67"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := drivertest.NewWorld(t, subject)
			p := w.Pod(t)
			before := w.Text(t, p)
			_, err := w.Driver.Attach(t.Context(), w.Spec(p, drivertest.Scenario{Keys: tc.keys, IPAM: tc.ipam}.Conf("ptp")))
			drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, tc.want)
			if after := w.Text(t, p); after != before {
				t.Errorf("left:\n%s", after)
			}
		})
	}
}

// listen waits on an address of ns for a packet and returns its source.
func listen(t *testing.T, ns *netns.NS, addr string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	try(t, ns.Do(func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// sourceSeen sends from ns to a listener and returns the address that arrives.
func sourceSeen(t *testing.T, ns *netns.NS, to net.PacketConn) string {
	t.Helper()
	var c net.Conn
	try(t, ns.Do(func() (err error) {
		c, err = net.Dial("udp", to.LocalAddr().String())
		return err
	}))
	defer c.Close()
	buf := make([]byte, 16)
	// The first packet may be lost while the neighbours are asked.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if _, err := c.Write([]byte("hello")); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Logf("send: %v", err)
		}
		to.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, from, err := to.ReadFrom(buf); err == nil {
			host, _, err := net.SplitHostPort(from.String())
			try(t, err)
			return host
		}
	}
	t.Fatalf("nothing arrives at %s", to.LocalAddr())
	return ""
}

// Containers of one subnet have only the node in common, which forwards.
func TestContainersReachEachOtherThroughTheNode(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	a, b := w.Pod(t), w.Pod(t)
	conf := func(n int) string {
		return drivertest.Scenario{IPAM: fmt.Sprintf(`{"type":"static","addresses":[{"address":"10.1.0.%d/24","gateway":"10.1.0.1"},`+
			`{"address":"fd00:1::%d/64","gateway":"fd00:1::1"}]}`, n, n)}.Conf("ptp")
	}
	w.Attached(t, w.Spec(a, conf(5)))
	w.Attached(t, w.Spec(b, conf(6)))
	for to, want := range map[string]string{"10.1.0.6:7777": "10.1.0.5", "[fd00:1::6]:7777": "fd00:1::5"} {
		if got := sourceSeen(t, a.NS, listen(t, b.NS, to)); got != want {
			t.Errorf("%s hears from %s, not from %s", to, got, want)
		}
	}
}

func TestWhatLeavesTheSubnetHasTheNodesAddress(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet)
	w := drivertest.NewWorld(t, subject)
	p, far := w.Pod(t), kerneltest.NewNS(t)
	node, end := drivertest.Handle(t, w.Node), drivertest.Handle(t, far)
	near, err := node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "out0", Up: true}, Peer: rtnl.New{Name: "in0"}, PeerNS: far})
	try(t, err)
	try(t, node.AddAddr(near.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.1/24")}))
	in, err := end.Link("in0")
	try(t, err)
	try(t, end.AddAddr(in.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.2/24")}))
	try(t, end.SetUp(in.Index))
	sc := drivertest.Scenario{Keys: `"ipMasq":true`, IPAM: defaults}
	w.Attached(t, w.Spec(p, sc.Conf("ptp"))) // without a Host it is nftables
	if got := sourceSeen(t, p.NS, listen(t, far, "192.0.2.2:7777")); got != "192.0.2.1" {
		t.Errorf("the world hears from %s", got)
	}
}

// A route that a dead container left would steal the new one's traffic.
func TestForgottenRouteToTheAddressIsReplaced(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	h := drivertest.Handle(t, w.Node)
	old, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "old0", Up: true}, Peer: rtnl.New{Name: "old1", Up: true}})
	try(t, err)
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("10.1.0.5/32"), Link: old.Index, Scope: 254}))
	s := w.Attached(t, w.Spec(p, drivertest.Scenario{IPAM: oneIPv4}.Conf("ptp")))
	if text := w.Text(t); !strings.Contains(text, "route 10.1.0.5/32 dev veth#1 scope host\n") {
		t.Errorf("node:\n%s", text)
	}
	try(t, w.Driver.Check(t.Context(), s))
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.Bench(b, subject, scenarios[0], func(b *testing.B, w *drivertest.World, p drivertest.Pod) func() error {
		h := drivertest.Handle(b, w.Node)
		return func() error {
			l, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "veth00000001", Up: true}, Peer: rtnl.New{Name: "net1"}, PeerNS: p.NS})
			if err != nil {
				return err
			}
			return h.Del(l.Index)
		}
	})
}
