package sbr_test

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/sbr"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var (
	dual     = []string{"10.1.0.5/24 10.1.0.1", "fd00:1::5/64 fd00:1::1"}
	defaults = []string{"0.0.0.0/0", "::/0", "10.99.0.0/16", "fd00:99::/32"}
)

var subject = behind(drivertest.Veth(dual, defaults...))

// behind is the driver behind others that made this.
func behind(prev func(testing.TB, *drivertest.World, drivertest.Pod) *current.Result) drivertest.Subject {
	return drivertest.Subject{
		Type:      "sbr",
		Needs:     []kerneltest.Feature{kerneltest.Veth},
		New:       func(*netns.NS) driver.Driver { return sbr.New() },
		Prev:      prev,
		Variants:  []drivertest.Variant{{Name: "own tables"}, {Name: "table", Keys: `"table":77`}},
		Addresses: drivertest.Never,
		Observe: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) string {
			text, err := rtnl.ObserveRules(drivertest.Handle(t, p.NS))
			try(t, err)
			return text
		},
		Tampering: []drivertest.Tampering{
			{Name: "rule removed", Want: "rule from fd00:1::5 is missing", Change: rules("fd00:1::5/128", (*rtnl.Handle).DelRule)},
			{Name: "rule of the table removed", Keys: `"table":77`, Want: "rule from 10.1.0.5/32 lookup 77 is missing", Change: rules("10.1.0.5/32", (*rtnl.Handle).DelRule)},
			{Name: "default route removed", Want: "default route via 10.1.0.1 is missing in table 100", Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
				h := drivertest.Handle(t, p.NS)
				routes, err := h.Routes()
				try(t, err)
				for _, r := range routes {
					if r.Table == 100 && r.Dst.Bits() == 0 && r.Dst.Addr().Is4() {
						try(t, h.DelRoute(r))
					}
				}
			}},
			{Name: "link removed", Want: "net1", Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
				h := drivertest.Handle(t, p.NS)
				l, err := h.Link("net1")
				try(t, err)
				try(t, h.Del(l.Index))
			}},
		},
	}
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

// rules changes the rules for a source.
func rules(from string, change func(*rtnl.Handle, rtnl.Rule) error) func(testing.TB, *drivertest.World, drivertest.Pod) {
	return func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
		t.Helper()
		h := drivertest.Handle(t, p.NS)
		all, err := h.Rules()
		try(t, err)
		for _, r := range all {
			if r.From == netip.MustParsePrefix(from) {
				try(t, change(h, r))
			}
		}
	}
}

// takenTables makes rules and routes of somebody else.
func takenTables(t testing.TB, pod *netns.NS) {
	h := drivertest.Handle(t, pod)
	try(t, h.AddRule(rtnl.Rule{From: netip.MustParsePrefix("192.0.2.1/32"), Table: 100}))
	try(t, h.AddRule(rtnl.Rule{From: netip.MustParsePrefix("192.0.2.0/24"), Table: 102}))
}

// secondLink makes a link that has the default route.
func secondLink(t testing.TB, pod *netns.NS) {
	h := drivertest.Handle(t, pod)
	l, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "eth0", Up: true}, Peer: rtnl.New{Name: "eth0-far", Up: true}})
	try(t, err)
	far, err := h.Link("eth0-far")
	try(t, err)
	try(t, h.SetUp(far.Index))
	try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.244.0.5/24")}))
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.244.0.1"), Link: l.Index}))
}

// cases are scenarios, each behind other plugins.
var cases = []struct {
	prev []string
	to   []string
	drivertest.Scenario
}{
	{prev: dual, to: defaults, Scenario: drivertest.Scenario{Name: "dual"}},
	{prev: dual[:1], Scenario: drivertest.Scenario{Name: "ipv4"}},
	{prev: dual[1:], Scenario: drivertest.Scenario{Name: "ipv6"}},
	{prev: []string{"10.1.0.5/24"}, Scenario: drivertest.Scenario{Name: "no-gateway"}},
	{prev: []string{"10.1.0.5/24 10.1.0.1", "10.1.0.6/24 10.1.0.1"}, Scenario: drivertest.Scenario{Name: "one-subnet-twice"}},
	{prev: []string{"10.1.0.5/24 10.1.0.1", "10.2.0.5/24 10.2.0.1", "fd00:1::5/64", "fd00:2::5/64 fd00:2::1"}, to: []string{"10.99.0.0/16"},
		Scenario: drivertest.Scenario{Name: "four"}},
	{prev: dual, to: defaults, Scenario: drivertest.Scenario{Name: "table", Keys: `"table":77`}},
	{prev: dual, Scenario: drivertest.Scenario{Name: "large-table", Keys: `"table":70000`}},
	{prev: dual, Scenario: drivertest.Scenario{Name: "tables-taken", Pod: takenTables}},
	{prev: dual, Scenario: drivertest.Scenario{Name: "second-link", Pod: secondLink}},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) {
	for _, tc := range cases {
		drivertest.Golden(t, behind(drivertest.Veth(tc.prev, tc.to...)), []drivertest.Scenario{tc.Scenario})
	}
}

func TestSameAsTheReferencePlugin(t *testing.T) {
	if os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) {
		t.Skip("compared on the host's kernel in tier net; to start programs in a guest is slow")
	}
	for _, tc := range cases {
		drivertest.SameAsReferenceInChain(t, behind(drivertest.Veth(tc.prev, tc.to...)), []drivertest.Scenario{tc.Scenario})
	}
}

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, behind(drivertest.Veth(nil)), ``)
	drivertest.SameRefusals(t, subject, `"table":"main"`)
}

func spec(t testing.TB, keys string) (*drivertest.World, drivertest.Pod, driver.Spec) {
	t.Helper()
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	return w, p, w.Spec(p, drivertest.Scenario{Keys: keys}.Conf("sbr"))
}

// Without an address there is nothing to route by; the reference plugin takes
// the link's routes away nevertheless.
func TestResultWithoutAnAddressOfTheInterfaceIsRefused(t *testing.T) {
	w, p, s := spec(t, "")
	before := w.Text(t, p)
	for _, ip := range s.Prev.IPs {
		ip.Interface = current.Int(0)
	}
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "no address for interface net1")
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

// CHECK asks every plugin of the chain.
func TestPluginBeforeStillFindsItsRoutes(t *testing.T) {
	w, p, s := spec(t, "")
	var err error
	s.Prev, err = w.Driver.Attach(t.Context(), s)
	try(t, err)
	if err := (driver.Interface{NS: p.NS, Name: s.IfName}).Check(s.Prev); err != nil {
		t.Error(err)
	}
}

func TestImpossibleTableIsRefused(t *testing.T) {
	for _, keys := range []string{`"table":0`, `"table":-1`, `"table":4294967296`} {
		w, _, s := spec(t, keys)
		_, err := w.Driver.Attach(t.Context(), s)
		drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "table")
	}
}

// TestAnswersLeaveByTheInterfaceThatWasAsked is the scenario that sbr is for:
// a client that is in no subnet of the container asks by net1, and the default
// route goes through eth0, where the answer would be lost.
func TestAnswersLeaveByTheInterfaceThatWasAsked(t *testing.T) {
	w := drivertest.NewWorld(t, behind(drivertest.Veth(dual)))
	p := w.Pod(t)
	s := w.Spec(p, drivertest.Scenario{}.Conf("sbr"))
	secondLink(t, p.NS)
	node := drivertest.Handle(t, w.Node)
	host, err := node.Link(s.Prev.Interfaces[0].Name)
	try(t, err)
	lo, err := node.Link("lo")
	try(t, err)
	client := netip.MustParsePrefix("198.51.100.9/32")
	try(t, node.AddAddr(lo.Index, rtnl.Addr{Prefix: client}))
	try(t, node.SetUp(lo.Index))
	try(t, node.AddAddr(host.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.1.0.1/24")}))
	if err := ask(t, w.Node, p.NS, client.Addr()); err == nil {
		t.Fatal("the answer finds its way without sbr: the test tests nothing")
	}
	s.Prev, err = w.Driver.Attach(t.Context(), s)
	try(t, err)
	if err := ask(t, w.Node, p.NS, client.Addr()); err != nil {
		t.Errorf("with sbr: %v", err)
	}
	try(t, w.Driver.Detach(t.Context(), s))
	if err := ask(t, w.Node, p.NS, client.Addr()); err == nil {
		t.Error("the answer finds its way after sbr was taken away")
	}
}

// ask sends a datagram from the client's address to the container's and waits
// for the echo.
func ask(t *testing.T, node, pod *netns.NS, client netip.Addr) error {
	t.Helper()
	var server, from *net.UDPConn
	try(t, pod.Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("10.1.0.5")})
		return err
	}))
	defer server.Close()
	try(t, node.Do(func() (err error) {
		from, err = net.DialUDP("udp", &net.UDPAddr{IP: client.AsSlice()}, server.LocalAddr().(*net.UDPAddr))
		return err
	}))
	defer from.Close()
	try(t, from.SetDeadline(time.Now().Add(500*time.Millisecond)))
	try(t, server.SetDeadline(time.Now().Add(500*time.Millisecond)))
	if _, err := from.Write([]byte("who is there?")); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, back, err := server.ReadFromUDP(buf)
	if err != nil {
		return err
	}
	if _, err := server.WriteToUDP(buf[:n], back); err != nil {
		return err
	}
	_, err = from.Read(buf)
	return err
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.BenchInChain(b, behind(drivertest.Veth(dual)), drivertest.Scenario{}, func(_ *drivertest.World, p drivertest.Pod) error {
		// The kernel drops all routes of a link that goes down, and makes those
		// that come with addresses when it comes up.
		h := drivertest.Handle(b, p.NS)
		l, err := h.Link("net1")
		try(b, err)
		try(b, h.SetDown(l.Index))
		return h.SetUp(l.Index)
	})
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
