package vrf_test

import (
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/vrf"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
	"braid.dev/braid/internal/rtnl"
)

var (
	dual   = []string{"10.1.0.5/24 10.1.0.1", "fd00:1::5/64 fd00:1::1"}
	routes = []string{"0.0.0.0/0", "::/0", "10.99.0.0/16", "fd00:99::/32"}
)

// subject has no routes through gateways: an Attach that is killed loses them
// with the kernel's help, and who does not give the next call prevResult, as
// the suite then does, does not get them back.
var subject = behind(drivertest.Veth(dual))

// behind is the driver behind others that made this.
func behind(prev func(testing.TB, *drivertest.World, drivertest.Pod) *current.Result) drivertest.Subject {
	return drivertest.Subject{
		Type:      "vrf",
		Needs:     []kerneltest.Feature{kerneltest.Veth, kerneltest.VRF},
		New:       func(*netns.NS) driver.Driver { return vrf.New() },
		Prev:      prev,
		Variants:  []drivertest.Variant{{Name: "free table", Keys: blue}, {Name: "table", Keys: `"vrfname":"blue","table":77`}},
		Addresses: drivertest.Never,
		Tampering: []drivertest.Tampering{
			{Name: "taken out", Want: "net1 is not in vrf blue", Change: link("net1", func(h *rtnl.Handle, i int) error { return h.SetMaster(i, 0) })},
			{Name: "vrf removed", Want: "blue", Change: link("blue", (*rtnl.Handle).Del)},
			{Name: "vrf down", Want: "blue is down", Change: link("blue", (*rtnl.Handle).SetDown)},
			{Name: "link removed", Want: "net1", Change: link("net1", (*rtnl.Handle).Del)},
		},
	}
}

const blue = `"vrfname":"blue"`

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

func link(name string, change func(*rtnl.Handle, int) error) func(testing.TB, *drivertest.World, drivertest.Pod) {
	return func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
		t.Helper()
		h := drivertest.Handle(t, p.NS)
		l, err := h.Link(name)
		try(t, err)
		try(t, change(h, l.Index))
	}
}

// withVRFs makes domains of these tables, called other1, other2, ….
func withVRFs(tables ...uint32) func(testing.TB, *netns.NS) {
	return func(t testing.TB, pod *netns.NS) {
		t.Helper()
		h := drivertest.Handle(t, pod)
		for i, table := range tables {
			_, err := h.AddVRF(rtnl.New{Name: "other" + string(rune('1'+i)), Up: true}, table)
			try(t, err)
		}
	}
}

// existing makes the domain beforehand, with a link in it.
func existing(t testing.TB, pod *netns.NS) {
	h := drivertest.Handle(t, pod)
	d, err := h.AddVRF(rtnl.New{Name: "blue", Up: true}, 50)
	try(t, err)
	l, err := h.AddDummy(rtnl.New{Name: "eth9", Up: true})
	try(t, err)
	try(t, h.SetMaster(l.Index, d.Index))
}

var cases = []struct {
	prev []string
	to   []string
	drivertest.Scenario
}{
	{prev: dual, to: routes, Scenario: drivertest.Scenario{Name: "dual", Keys: blue}},
	{prev: dual[:1], to: routes[:1], Scenario: drivertest.Scenario{Name: "ipv4", Keys: blue}},
	{prev: dual[1:], to: routes[1:2], Scenario: drivertest.Scenario{Name: "ipv6", Keys: blue}},
	{Scenario: drivertest.Scenario{Name: "no-address", Keys: blue}},
	{prev: dual, to: routes, Scenario: drivertest.Scenario{Name: "table", Keys: `"vrfname":"blue","table":77`}},
	{prev: dual, Scenario: drivertest.Scenario{Name: "large-table", Keys: `"vrfname":"blue","table":70000`}},
	{prev: dual, Scenario: drivertest.Scenario{Name: "tables-taken", Keys: blue, Pod: withVRFs(1, 2, 4)}},
	{prev: dual, to: routes, Scenario: drivertest.Scenario{Name: "existing", Keys: blue, Pod: existing}},
	{prev: dual, Scenario: drivertest.Scenario{Name: "existing-table", Keys: `"vrfname":"blue","table":50`, Pod: existing}},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) {
	for _, tc := range cases {
		drivertest.Golden(t, behind(drivertest.Veth(tc.prev, tc.to...)), []drivertest.Scenario{tc.Scenario})
	}
}

// The guest finds what is built here.
func TestReferencePluginCanBeBuilt(t *testing.T) { refplugin.Dir(t, "vrf") }

func TestSameAsTheReferencePlugin(t *testing.T) {
	for _, tc := range cases {
		drivertest.SameAsReferenceInChain(t, behind(drivertest.Veth(tc.prev, tc.to...)), []drivertest.Scenario{tc.Scenario})
	}
}

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject,
		``,
		`"vrfname":""`,
		`"vrfname":7`,
		`"vrfname":"lo"`,
		`"vrfname":"longer-than-15-bytes"`,
		`"vrfname":"blue","table":-1`,
		`"vrfname":"blue","table":4294967296`,
	)
}

func spec(t testing.TB, s drivertest.Subject, keys string) (*drivertest.World, drivertest.Pod, driver.Spec) {
	t.Helper()
	w := drivertest.NewWorld(t, s)
	p := w.Pod(t)
	return w, p, w.Spec(p, drivertest.Scenario{Keys: keys}.Conf("vrf"))
}

func TestDomainOfAnotherTableIsRefused(t *testing.T) {
	w, p, s := spec(t, subject, `"vrfname":"blue","table":51`)
	existing(t, p.NS)
	before := w.Text(t, p)
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "blue has table 50")
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

func TestInterfaceInAnotherDomainIsRefused(t *testing.T) {
	w, p, s := spec(t, subject, `"vrfname":"red"`)
	h := drivertest.Handle(t, p.NS)
	d, err := h.AddVRF(rtnl.New{Name: "blue", Up: true}, 50)
	try(t, err)
	link("net1", func(h *rtnl.Handle, i int) error { return h.SetMaster(i, d.Index) })(t, w, p)
	before := w.Text(t, p)
	_, err = w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "in blue (vrf) already")
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

func TestDomainGoesWithItsLastInterface(t *testing.T) {
	w, p, first := spec(t, subject, blue)
	second := first
	second.IfName = "net2"
	h := drivertest.Handle(t, p.NS)
	_, err := h.AddDummy(rtnl.New{Name: "net2", Up: true})
	try(t, err)
	before := w.Text(t, p)
	for _, s := range []driver.Spec{first, second} {
		_, err := w.Driver.Attach(t.Context(), s)
		try(t, err)
	}
	try(t, w.Driver.Detach(t.Context(), first))
	try(t, w.Driver.Check(t.Context(), second))
	try(t, w.Driver.Detach(t.Context(), second))
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

// Routes in tables of their own, and those to the link itself, are lost by the
// reference plugin.
func TestAllRoutesSurvive(t *testing.T) {
	w, p, s := spec(t, behind(drivertest.Veth(dual, routes...)), blue)
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	try(t, err)
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("10.55.0.0/16"), Link: l.Index, Scope: 253}))
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("10.56.0.0/16"), Via: netip.MustParseAddr("10.55.0.1"), Link: l.Index}))
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("10.57.0.0/16"), Via: netip.MustParseAddr("10.1.0.1"), Link: l.Index, Table: 99}))
	before := w.Text(t, p)
	_, err = w.Driver.Attach(t.Context(), s)
	try(t, err)
	have, err := h.Routes()
	try(t, err)
	for dst, table := range map[string]int{"10.55.0.0/16": 1, "10.56.0.0/16": 1, "10.57.0.0/16": 99, "0.0.0.0/0": 1, "::/0": 1} {
		if !contains(have, dst, table) {
			t.Errorf("route to %s is not in table %d", dst, table)
		}
	}
	try(t, w.Driver.Detach(t.Context(), s))
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

func contains(routes []rtnl.Route, dst string, table int) bool {
	for _, r := range routes {
		if r.Dst == netip.MustParsePrefix(dst) && r.Table == table {
			return true
		}
	}
	return false
}

// A daemon that is killed right after the kernel has dropped the routes and
// addresses finds them again in the result.
func TestWhatTheKernelDroppedIsFoundInTheResult(t *testing.T) {
	w, p, s := spec(t, behind(drivertest.Veth(dual, routes...)), blue)
	_, err := w.Driver.Attach(t.Context(), s)
	try(t, err)
	want := w.Text(t, p)
	try(t, w.Driver.Detach(t.Context(), s))
	h := drivertest.Handle(t, p.NS)
	d, err := h.AddVRF(rtnl.New{Name: "blue", Up: true}, 1)
	try(t, err)
	try(t, rtnl.Sysctl{}.Set(p.NS, rtnl.Setting{Path: "ipv6/conf/net1/keep_addr_on_down", Value: "0"}))
	link("net1", func(h *rtnl.Handle, i int) error { return h.SetMaster(i, d.Index) })(t, w, p)
	if w.Text(t, p) == want {
		t.Fatal("the kernel dropped nothing: the test tests nothing")
	}
	_, err = w.Driver.Attach(t.Context(), s)
	try(t, err)
	if got := w.Text(t, p); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestPluginBeforeStillFindsItsRoutes(t *testing.T) {
	w, p, s := spec(t, behind(drivertest.Veth(dual, routes...)), blue)
	_, err := w.Driver.Attach(t.Context(), s)
	try(t, err)
	if err := (driver.Interface{NS: p.NS, Name: s.IfName}).Check(s.Prev); err != nil {
		t.Error(err)
	}
}

func TestNameOfTheInterfaceItselfIsRefused(t *testing.T) {
	w, _, s := spec(t, subject, `"vrfname":"net1"`)
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "net1")
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.BenchInChain(b, subject, drivertest.Scenario{Keys: blue}, func(*drivertest.World, drivertest.Pod) error { return nil })
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
