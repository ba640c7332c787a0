package ipvlan_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/ipvlan"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:  "ipvlan",
	Needs: []kerneltest.Feature{kerneltest.Veth, kerneltest.IPVlan},
	New:   func(node *netns.NS) driver.Driver { return ipvlan.New(ipvlan.Config{HostNS: node}) },
	Node:  drivertest.Parent("up0"),
	Variants: []drivertest.Variant{
		{Name: "l2", Keys: `"master":"up0"`},
		{Name: "l3", Keys: `"master":"up0","mode":"l3"`},
		{Name: "l3s", Keys: `"master":"up0","mode":"l3s"`},
	},
	MTU: true, Addresses: drivertest.Required,
	Observe: modeOf,
	Tampering: []drivertest.Tampering{
		{Name: "other mode", Keys: `"master":"up0"`, Want: "mode l3, not l2", Change: instead(rtnl.Stacked{Kind: "ipvlan", Mode: "l3"}, "up0")},
		{Name: "other master", Keys: `"master":"up0"`, Want: "has mac", Change: instead(rtnl.Stacked{Kind: "ipvlan"}, "up0-far")},
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

const looksUpNothing = "it looks for a master without a name"

var scenarios = []drivertest.Scenario{
	{Name: "address", Keys: `"master":"up0"`, IPAM: drivertest.OneIPv4},
	{Name: "ipv6", Keys: `"master":"up0"`, IPAM: drivertest.OneIPv6},
	{Name: "dual", Keys: `"master":"up0","dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.Dual},
	{Name: "routes", Keys: `"master":"up0"`, IPAM: drivertest.WithRoutes},
	{Name: "route-tables", Keys: `"master":"up0"`, IPAM: drivertest.OtherTable, CheckFails: "it looks only into the main table"},
	{Name: "l2", Keys: `"master":"up0","mode":"l2"`, IPAM: drivertest.OneIPv4},
	{Name: "l3", Keys: `"master":"up0","mode":"l3"`, IPAM: drivertest.Dual},
	{Name: "l3s", Keys: `"master":"up0","mode":"l3s"`, IPAM: drivertest.Dual},
	{Name: "mtu", Keys: `"master":"up0","mtu":1400`, IPAM: drivertest.OneIPv4},
	{Name: "default-master", Keys: `"mode":"l2"`, IPAM: drivertest.OneIPv4, Node: drivertest.DefaultRoute("up0"), CheckFails: looksUpNothing},
	{Name: "in-container", Keys: `"master":"in0","linkInContainer":true`, IPAM: drivertest.OneIPv4, Pod: drivertest.Parent("in0")},
	{Name: "master-of-the-chain", Keys: `"mode":"l2"`, IPAM: drivertest.OneIPv4, Prev: `{"interfaces":[{"name":"up0"}]}`, CheckFails: looksUpNothing},
	{Name: "addresses-of-the-chain", Keys: `"master":"up0","dns":{"domain":"own.test"}`,
		Prev: `{"interfaces":[{"name":"other0"}],"ips":[{"address":"10.1.0.7/24","gateway":"10.1.0.1"}],"routes":[{"dst":"10.99.0.0/16"}],"dns":{"domain":"prev.test"}}`},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) { drivertest.SameAsReference(t, subject, scenarios) }

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject,
		`"master":"none0"`, `"master":"up0","mode":"bridge"`,
		`"mode":"l2"`, `"master":"up0","linkInContainer":true`, `"master":7`)
}

func TestChainThatLeavesTheMasterOrTheAddressesOpenIsRefused(t *testing.T) {
	for _, tc := range []struct{ conf, prev, want string }{
		{`{"master":"up0"}`, "", "neither ipam"},
		{`{"master":"up0"}`, `{"interfaces":[{"name":"up0"}]}`, "neither ipam"},
		{`{"ipam":{"type":"static"}}`, `{"interfaces":[{"name":"a"},{"name":"b"}]}`, "made 2 interfaces"},
	} {
		w := drivertest.NewWorld(t, subject)
		p := w.Pod(t)
		s := w.Spec(p, tc.conf)
		if tc.prev != "" {
			s.Prev = &current.Result{}
			try(t, json.Unmarshal([]byte(tc.prev), s.Prev))
		}
		_, err := w.Driver.Attach(t.Context(), s)
		drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, tc.want)
	}
}

// The kernel keeps one mode for all links on a master: the last one counts.
func TestCheckSeesThatAnotherContainerChangedTheMode(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	first, second := w.Pod(t), w.Pod(t)
	l2 := drivertest.Scenario{Keys: `"master":"up0"`, IPAM: drivertest.OneIPv4}
	l3 := drivertest.Scenario{Keys: `"master":"up0","mode":"l3"`, IPAM: drivertest.OneIPv6}
	a := w.Attached(t, w.Spec(first, l2.Conf("ipvlan")))
	try(t, w.Driver.Check(t.Context(), a))
	w.Attached(t, w.Spec(second, l3.Conf("ipvlan")))
	if err := w.Driver.Check(t.Context(), a); err == nil || !strings.Contains(err.Error(), "mode l3, not l2") {
		t.Errorf("Check: %v", err)
	}
}

// In every mode containers on one master reach each other.
func TestContainersHearEachOther(t *testing.T) {
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			w := drivertest.NewWorld(t, subject)
			a, b := w.Pod(t), w.Pod(t)
			keys := `"master":"up0","mode":"` + mode + `"`
			w.Attached(t, w.Spec(a, drivertest.Scenario{Keys: keys, IPAM: drivertest.OneIPv4}.Conf("ipvlan")))
			w.Attached(t, w.Spec(b, drivertest.Scenario{Keys: keys, IPAM: `{"type":"static","addresses":[{"address":"10.1.0.6/24"}]}`}.Conf("ipvlan")))
			if !drivertest.Hears(t, a.NS, b.NS, "10.1.0.6") {
				t.Error("they do not")
			}
		})
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	for _, sc := range []drivertest.Scenario{{Name: "address", Keys: `"master":"up0"`, IPAM: drivertest.OneIPv4}} {
		b.Run(sc.Name, func(b *testing.B) {
			drivertest.Bench(b, subject, sc, drivertest.BareStacked(rtnl.Stacked{Kind: "ipvlan"}, "up0", sc.IPAM != ""))
		})
	}
}

func FuzzConf(f *testing.F) {
	f.Add([]byte(`{"master":"up0","mode":"l3s","mtu":1400,"ipam":{"type":"static"}}`), "net1")
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
