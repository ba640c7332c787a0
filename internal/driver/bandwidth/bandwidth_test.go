package bandwidth_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bandwidth"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

const (
	ingress = `"ingressRate":8000000,"ingressBurst":160000`
	egress  = `"egressRate":4000000,"egressBurst":80000`
	both    = ingress + "," + egress
)

var subject = drivertest.Subject{
	Type:  "bandwidth",
	Needs: []kerneltest.Feature{kerneltest.Veth, kerneltest.Shaping},
	New:   func(node *netns.NS) driver.Driver { return bandwidth.New(bandwidth.Config{HostNS: node}) },
	Prev:  drivertest.Veth([]string{"10.1.0.5/24", "fd00:1::5/64"}),
	Variants: []drivertest.Variant{
		{Name: "both", Keys: both},
		{Name: "ingress", Keys: ingress},
		{Name: "egress", Keys: egress},
		{Name: "unlimited"},
	},
	Addresses: drivertest.Never,
	Observe:   observe,
	Tampering: []drivertest.Tampering{
		{Name: "ifb removed", Want: "redirected", Change: node("bwp", (*rtnl.Handle).Del)},
		{Name: "ifb down", Want: "is down", Change: node("bwp", (*rtnl.Handle).SetDown)},
		{Name: "egress not limited", Want: "egress is limited", Change: node("bwp", (*rtnl.Handle).Unshape)},
		{Name: "nothing limited", Want: "ingress is limited", Change: node("veth", (*rtnl.Handle).Unshape)},
		{Name: "not redirected", Keys: egress, Want: "redirected", Change: node("veth", (*rtnl.Handle).Unshape)},
		{Name: "another rate", Want: "rate is 125000", Change: node("veth", func(h *rtnl.Handle, i int) error {
			if err := h.Unshape(i); err != nil {
				return err
			}
			return h.AddTBF(i, rtnl.TBF{Rate: 125000, Burst: 20000, LatencyMillis: 25})
		})},
		{Name: "link removed", Want: "net1", Change: node("veth", (*rtnl.Handle).Del)},
	},
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

// node changes the links of the node whose name begins like that.
func node(prefix string, change func(*rtnl.Handle, int) error) func(testing.TB, *drivertest.World, drivertest.Pod) {
	return func(t testing.TB, w *drivertest.World, _ drivertest.Pod) {
		t.Helper()
		h := drivertest.Handle(t, w.Node)
		links, err := h.Links()
		try(t, err)
		for _, l := range links {
			if strings.HasPrefix(l.Name, prefix) {
				try(t, change(h, l.Index))
			}
		}
	}
}

// observe adds the queueing disciplines of the node's links.
func observe(t testing.TB, w *drivertest.World, _ drivertest.Pod) string {
	t.Helper()
	h := drivertest.Handle(t, w.Node)
	links, err := h.Links()
	try(t, err)
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	var text strings.Builder
	for _, l := range links {
		s, err := h.Shaping(l.Index)
		try(t, err)
		if s.Root == "" && s.Ingress == "" {
			continue
		}
		fmt.Fprintf(&text, "%s root %q", l.Name, s.Root)
		if s.Root == "tbf" {
			fmt.Fprintf(&text, " rate %d buffer %d limit %d", s.TBF.Rate, s.TBF.Buffer, s.TBF.Limit)
		}
		if s.Ingress != "" {
			fmt.Fprintf(&text, " ingress %q to %s", s.Ingress, names[s.Redirect])
		}
		if l.Kind == "ifb" {
			tuning, err := h.Tuning(l.Index)
			try(t, err)
			fmt.Fprintf(&text, " txqlen %d", tuning.TxQLen)
		}
		text.WriteByte('\n')
	}
	return text.String()
}

var scenarios = []drivertest.Scenario{
	{Name: "both", Keys: both},
	{Name: "ingress", Keys: ingress},
	{Name: "egress", Keys: egress},
	{Name: "runtime", Keys: `"runtimeConfig":{"bandwidth":{` + both + `}}`},
	{Name: "configuration-outweighs-runtime", Keys: ingress + `,"runtimeConfig":{"bandwidth":{` + egress + `}}`},
	{Name: "zero-outweighs-runtime", Keys: `"ingressRate":0,"runtimeConfig":{"bandwidth":{` + egress + `}}`},
	{Name: "unlimited"},
	{Name: "kubernetes", Keys: `"runtimeConfig":{"bandwidth":{"ingressRate":100000000,"ingressBurst":4294967295,"egressRate":100000000,"egressBurst":4294967295}}`},
	{Name: "kubernetes-slow", Keys: `"runtimeConfig":{"bandwidth":{"ingressRate":10000000,"ingressBurst":4294967295}}`,
		Differs: "the kernel cannot express so deep a bucket; the reference plugin's is what remains of it after an overflow, which may be next to nothing"},
	{Name: "fast", Keys: `"ingressRate":80000000000,"ingressBurst":8000000000,"egressRate":80000000000,"egressBurst":8000000000`},
	{Name: "odd", Keys: `"ingressRate":1000001,"ingressBurst":123457,"egressRate":777777,"egressBurst":99999`},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) {
	if os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) {
		t.Skip("compared on the host's kernel in tier net; to start programs in a guest is slow")
	}
	// What the reference did to the veth it leaves for those who remove that. So
	// queueing disciplines are compared as long as there is an ifb.
	same := subject
	same.Observe = func(t testing.TB, w *drivertest.World, p drivertest.Pod) string {
		if text := observe(t, w, p); strings.Contains(text, "bwp") {
			return text
		}
		return ""
	}
	drivertest.SameAsReference(t, same, scenarios)
}

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject,
		`"ingressRate":8000`,
		`"ingressBurst":8000`,
		`"egressRate":8000`,
		`"egressBurst":8000`,
		`"ingressRate":-1`,
		`"ingressRate":"fast"`,
		`"ingressRate":8000,"ingressBurst":34359738360`,
		`"runtimeConfig":{"bandwidth":{"egressRate":8000}}`,
		`"ingressRate":8000,"ingressBurst":7`,
	)
}

func TestRateBelowOneByteIsRefused(t *testing.T) {
	w, p, s := attachment(t, `"ingressRate":7,"ingressBurst":8000`)
	before := w.Text(t, p)
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "one byte")
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%s", after)
	}
}

func attachment(t testing.TB, keys string) (*drivertest.World, drivertest.Pod, driver.Spec) {
	t.Helper()
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	return w, p, w.Spec(p, drivertest.Scenario{Keys: keys}.Conf("bandwidth"))
}

func TestInterfaceWithoutAnotherEndOnTheNodeIsRefused(t *testing.T) {
	w, p, s := attachment(t, both)
	h := drivertest.Handle(t, p.NS)
	_, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "inside"}, Peer: rtnl.New{Name: "inside2"}})
	try(t, err)
	before := w.Text(t, p)
	s.IfName = "inside"
	_, err = w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "inside")
	s.IfName = "lo"
	_, err = w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "only a veth")
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

func TestOtherEndThatTheResultDoesNotTellIsRefused(t *testing.T) {
	w, _, s := attachment(t, both)
	s.Prev.Interfaces = s.Prev.Interfaces[1:]
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "not in prevResult")
}

// One network may be attached twice to a container; the reference plugin
// cannot do that.
func TestTwoInterfacesOfOneNetwork(t *testing.T) {
	w, p, first := attachment(t, both)
	before := w.Text(t, p)
	second := first
	second.IfName = "net2"
	node := drivertest.Handle(t, w.Node)
	host, err := node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "vethfffffff2", Up: true}, Peer: rtnl.New{Name: "net2"}, PeerNS: p.NS})
	try(t, err)
	second.Prev = &current.Result{Interfaces: []*current.Interface{{Name: host.Name}, {Name: "net2", Sandbox: p.Path}}}
	for _, s := range []*driver.Spec{&first, &second} {
		s.Prev, err = w.Driver.Attach(t.Context(), *s)
		try(t, err)
	}
	for _, s := range []driver.Spec{first, second} {
		try(t, w.Driver.Check(t.Context(), s))
	}
	try(t, w.Driver.Detach(t.Context(), first))
	try(t, w.Driver.Check(t.Context(), second))
	try(t, w.Driver.Detach(t.Context(), second))
	try(t, node.Del(host.Index))
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

// What another program does to the veth is left alone.
func TestForeignShapingIsRefused(t *testing.T) {
	w, p, s := attachment(t, both)
	h := drivertest.Handle(t, w.Node)
	host, err := h.Link(s.Prev.Interfaces[0].Name)
	try(t, err)
	try(t, h.AddClsact(host.Index))
	before := w.Text(t, p)
	_, err = w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "clsact")
	try(t, w.Driver.Detach(t.Context(), s))
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

// TestTrafficIsLimited sends more than the burst both ways and looks at the
// clock: 300 kB at 1 MB/s and 500 kB/s, with 20 kB and 10 kB at once.
func TestTrafficIsLimited(t *testing.T) {
	w, p, s := attachment(t, both)
	h := drivertest.Handle(t, w.Node)
	host, err := h.Link(s.Prev.Interfaces[0].Name)
	try(t, err)
	try(t, h.AddAddr(host.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.1.0.1/24")}))
	s.Prev, err = w.Driver.Attach(t.Context(), s)
	try(t, err)
	if took := transfer(t, w.Node, p.NS, "10.1.0.5"); took < 250*time.Millisecond {
		t.Errorf("300 kB came in within %s", took)
	}
	if took := transfer(t, p.NS, w.Node, "10.1.0.1"); took < 500*time.Millisecond {
		t.Errorf("300 kB went out within %s", took)
	}
	try(t, w.Driver.Detach(t.Context(), s))
	// The machine may be busy; once it is fast enough there is no limit.
	var took time.Duration
	for range 5 {
		if took = transfer(t, p.NS, w.Node, "10.1.0.1"); took < 500*time.Millisecond {
			return
		}
	}
	t.Errorf("300 kB went out in %s after the limit was taken away", took)
}

// transfer sends 300 kB from one namespace to an address of another and
// returns how long that took.
func transfer(t *testing.T, from, to *netns.NS, addr string) time.Duration {
	t.Helper()
	const size = 300_000
	var l net.Listener
	try(t, to.Do(func() (err error) {
		l, err = net.Listen("tcp", addr+":0")
		return err
	}))
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_, err = io.CopyN(io.Discard, c, size)
		}
		got <- err
	}()
	start := time.Now()
	try(t, from.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write(make([]byte, size)); err != nil {
			return err
		}
		return <-got
	}))
	return time.Since(start)
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.BenchInChain(b, subject, drivertest.Scenario{Keys: both}, func(w *drivertest.World, p drivertest.Pod) error {
		h := drivertest.Handle(b, w.Node)
		l, err := h.Link(p.Prev.Interfaces[0].Name)
		try(b, err)
		return h.Unshape(l.Index)
	})
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
