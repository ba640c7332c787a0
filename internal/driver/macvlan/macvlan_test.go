package macvlan_test

import (
	"testing"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/macvlan"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:  "macvlan",
	Needs: []kerneltest.Feature{kerneltest.Veth, kerneltest.Macvlan},
	New:   func(node *netns.NS) driver.Driver { return macvlan.New(macvlan.Config{HostNS: node}) },
	Node:  drivertest.Parent("up0"),
	Variants: []drivertest.Variant{
		{Name: "bridge", Keys: `"master":"up0"`},
		{Name: "private", Keys: `"master":"up0","mode":"private"`},
		{Name: "vepa", Keys: `"master":"up0","mode":"vepa","bcqueuelen":500`},
		{Name: "passthru", Keys: `"master":"up0","mode":"passthru"`},
	},
	MAC: true, MTU: true,
	Observe: modeOf,
	Tampering: []drivertest.Tampering{
		{Name: "other mode", Keys: `"master":"up0"`, Want: "mode private, not bridge", Change: instead(rtnl.Stacked{Kind: "macvlan", Mode: "private"}, "up0")},
		{Name: "other master", Keys: `"master":"up0"`, Want: "not on master up0", Change: instead(rtnl.Stacked{Kind: "macvlan"}, "up0-far")},
		{Name: "other kind", Keys: `"master":"up0"`, Want: "of kind veth", Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
			h := drivertest.Handle(t, p.NS)
			l, err := h.Link("net1")
			try(t, err)
			try(t, h.Del(l.Index))
			_, err = h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "net1"}, Peer: rtnl.New{Name: "far0"}})
			try(t, err)
		}},
	},
}

// modeOf adds the mode to what golden files say of net1.
func modeOf(t testing.TB, _ *drivertest.World, p drivertest.Pod) string {
	t.Helper()
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	if err != nil {
		return "" // it is not there
	}
	mode, err := h.Mode(l.Index)
	try(t, err)
	return "net1 mode " + mode + "\n"
}

// instead puts a link with the same MAC in the place of net1.
func instead(s rtnl.Stacked, parent string) func(testing.TB, *drivertest.World, drivertest.Pod) {
	return func(t testing.TB, w *drivertest.World, p drivertest.Pod) {
		t.Helper()
		node, pod := drivertest.Handle(t, w.Node), drivertest.Handle(t, p.NS)
		l, err := pod.Link("net1")
		try(t, err)
		try(t, pod.Del(l.Index))
		up, err := node.Link(parent)
		try(t, err)
		s.Name, s.MAC, s.Parent, s.NS = "net1", l.MAC, up.Index, p.NS
		try(t, node.AddStacked(s))
	}
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

var scenarios = []drivertest.Scenario{
	{Name: "l2only", Keys: `"master":"up0"`},
	{Name: "address", Keys: `"master":"up0"`, IPAM: drivertest.OneIPv4},
	{Name: "ipv6", Keys: `"master":"up0"`, IPAM: drivertest.OneIPv6},
	{Name: "dual", Keys: `"master":"up0","dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.Dual},
	{Name: "routes", Keys: `"master":"up0"`, IPAM: drivertest.WithRoutes},
	{Name: "route-tables", Keys: `"master":"up0"`, IPAM: drivertest.OtherTable, CheckFails: "it looks only into the main table"},
	{Name: "bridge", Keys: `"master":"up0","mode":"bridge"`, IPAM: drivertest.OneIPv4},
	{Name: "private", Keys: `"master":"up0","mode":"private"`, IPAM: drivertest.OneIPv4},
	{Name: "vepa", Keys: `"master":"up0","mode":"vepa"`, IPAM: drivertest.OneIPv4},
	{Name: "passthru", Keys: `"master":"up0","mode":"passthru"`, IPAM: drivertest.OneIPv4},
	{Name: "mtu", Keys: `"master":"up0","mtu":1400`, IPAM: drivertest.OneIPv4},
	{Name: "bcqueuelen", Keys: `"master":"up0","bcqueuelen":200`, IPAM: drivertest.OneIPv4},
	{Name: "mac", Keys: `"master":"up0","mac":"02:00:00:00:00:06"`, IPAM: drivertest.OneIPv4},
	{Name: "mac-of-the-runtime", Keys: `"master":"up0","mac":"02:00:00:00:00:06","runtimeConfig":{"mac":"02:00:00:00:00:07"}`, IPAM: drivertest.OneIPv4},
	{Name: "default-master", Keys: `"mode":"bridge"`, IPAM: drivertest.OneIPv4, Node: drivertest.DefaultRoute("up0")},
	{Name: "in-container", Keys: `"master":"in0","linkInContainer":true`, IPAM: drivertest.OneIPv4, Pod: drivertest.Parent("in0")},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) { drivertest.SameAsReference(t, subject, scenarios) }

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject,
		`"master":"none0"`, `"master":"up0","mode":"bridg"`, `"master":"up0","mtu":1501`, `"master":"up0","mtu":-1`,
		`"mode":"bridge"`, `"master":"up0","linkInContainer":true`, `"master":"up0","mac":"zz"`, `"master":7`)
}

// Frames go where the mode says.
func TestModesDecideWhoHearsWhom(t *testing.T) {
	for mode, want := range map[string]bool{"bridge": true, "private": false, "vepa": false} {
		t.Run(mode, func(t *testing.T) {
			w := drivertest.NewWorld(t, subject)
			a, b := w.Pod(t), w.Pod(t)
			keys := `"master":"up0","mode":"` + mode + `"`
			w.Attached(t, w.Spec(a, drivertest.Scenario{Keys: keys, IPAM: drivertest.OneIPv4}.Conf("macvlan")))
			w.Attached(t, w.Spec(b, drivertest.Scenario{Keys: keys, IPAM: `{"type":"static","addresses":[{"address":"10.1.0.6/24"}]}`}.Conf("macvlan")))
			if got := drivertest.Hears(t, a.NS, b.NS, "10.1.0.6"); got != want {
				t.Errorf("containers on one master hear each other: %t, want %t", got, want)
			}
		})
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	for _, sc := range []drivertest.Scenario{{Name: "l2", Keys: `"master":"up0"`}, {Name: "address", Keys: `"master":"up0"`, IPAM: drivertest.OneIPv4}} {
		b.Run(sc.Name, func(b *testing.B) {
			drivertest.Bench(b, subject, sc, drivertest.BareStacked(rtnl.Stacked{Kind: "macvlan"}, "up0", sc.IPAM != ""))
		})
	}
}

func FuzzConf(f *testing.F) {
	f.Add([]byte(`{"master":"up0","mode":"vepa","mtu":1400,"mac":"02:00:00:00:00:07","bcqueuelen":9}`), "net1")
	f.Add([]byte(`{"mtu":-1,"mode":7}`), "")
	d := subject.New(nil)
	f.Fuzz(func(t *testing.T, conf []byte, ifName string) {
		// Without a namespace nothing is built, whatever conf says.
		if _, err := d.Attach(t.Context(), driver.Spec{IfName: ifName, Conf: conf}); err == nil {
			t.Errorf("%s is attached to nothing", conf)
		}
	})
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
