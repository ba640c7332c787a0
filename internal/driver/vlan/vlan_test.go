package vlan_test

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/vlan"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:  "vlan",
	Needs: []kerneltest.Feature{kerneltest.Veth, kerneltest.VLAN},
	New:   func(node *netns.NS) driver.Driver { return vlan.New(vlan.Config{HostNS: node}) },
	Node:  drivertest.Parent("up0"),
	Variants: []drivertest.Variant{
		{Name: "vlan", Keys: `"master":"up0","vlanId":2001`},
		{Name: "highest", Keys: `"master":"up0","vlanId":4094`},
		{Name: "priority tag", Keys: `"master":"up0","vlanId":0`},
	},
	MTU: true, Addresses: drivertest.Required, Exclusive: true,
	Tampering: []drivertest.Tampering{
		{Name: "other vlan", Keys: `"master":"up0","vlanId":2001`, Want: "vlan 2002, not 2001", Change: instead(rtnl.Stacked{Kind: "vlan", ID: 2002}, "up0")},
		{Name: "other master", Keys: `"master":"up0","vlanId":2001`, Want: "not on master up0", Change: instead(rtnl.Stacked{Kind: "vlan", ID: 2001}, "up0-far")},
		{Name: "other kind", Keys: `"master":"up0","vlanId":2001`, Want: "of kind veth", Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
			h := drivertest.Handle(t, p.NS)
			l, err := h.Link("net1")
			try(t, err)
			try(t, h.Del(l.Index))
			_, err = h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "net1"}, Peer: rtnl.New{Name: "far0"}})
			try(t, err)
		}},
	},
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
	{Name: "address", Keys: `"master":"up0","vlanId":2001`, IPAM: drivertest.OneIPv4},
	{Name: "ipv6", Keys: `"master":"up0","vlanId":2001`, IPAM: drivertest.OneIPv6},
	{Name: "dual", Keys: `"master":"up0","vlanId":2001,"dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.Dual},
	{Name: "routes", Keys: `"master":"up0","vlanId":2001`, IPAM: drivertest.WithRoutes},
	{Name: "route-tables", Keys: `"master":"up0","vlanId":2001`, IPAM: drivertest.OtherTable, CheckFails: "it looks only into the main table"},
	{Name: "lowest", Keys: `"master":"up0","vlanId":1`, IPAM: drivertest.OneIPv4},
	{Name: "highest", Keys: `"master":"up0","vlanId":4094`, IPAM: drivertest.OneIPv4},
	{Name: "priority-tag", Keys: `"master":"up0","vlanId":0`, IPAM: drivertest.OneIPv4},
	{Name: "mtu", Keys: `"master":"up0","vlanId":2001,"mtu":1400`, IPAM: drivertest.OneIPv4},
	{Name: "in-container", Keys: `"master":"in0","vlanId":7,"linkInContainer":true`, IPAM: drivertest.OneIPv4, Pod: drivertest.Parent("in0")},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) { drivertest.SameAsReference(t, subject, scenarios) }

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject,
		`"master":"none0","vlanId":7`, `"vlanId":7`, `"master":"up0","vlanId":4095`, `"master":"up0","vlanId":-1`,
		`"master":"up0","vlanId":7,"mtu":1501`, `"master":"up0","vlanId":7,"mtu":-1`,
		`"master":"up0","vlanId":7,"linkInContainer":true`, `"master":"up0","vlanId":"7"`)
}

func TestForgottenKeysAreNamed(t *testing.T) {
	for conf, want := range map[string]string{
		`{"vlanId":7,"ipam":{"type":"static"}}`:        "master is missing",
		`{"master":"up0","ipam":{"type":"static"}}`:    "vlanId is missing",
		`{"master":"up0","vlanId":7}`:                  "ipam is missing",
		`{"master":"up0","vlanId":7,"ipam":{"x":"y"}}`: "ipam is missing",
	} {
		w := drivertest.NewWorld(t, subject)
		_, err := w.Driver.Attach(t.Context(), w.Spec(w.Pod(t), conf))
		drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, want)
	}
}

// A VLAN of a master is one link. Who comes second is told so, and gets it once
// the first one is gone.
func TestSecondContainerInAVLANWaits(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	conf := scenarios[0].Conf("vlan")
	first, second := w.Spec(w.Pod(t), conf), w.Spec(w.Pod(t), conf)
	first = w.Attached(t, first)
	_, err := w.Driver.Attach(t.Context(), second)
	drivertest.WantError(t, err, types.ErrTryAgainLater, "vlan 2001 of master up0 is in use")
	try(t, w.Driver.Check(t.Context(), first))
	try(t, w.Driver.Detach(t.Context(), second))
	try(t, w.Driver.Check(t.Context(), first))
	try(t, w.Driver.Detach(t.Context(), first))
	w.Attached(t, second)
}

// The far end of the master stands for the switch: same VLAN, same segment.
func TestFramesCarryTheVLAN(t *testing.T) {
	for id, want := range map[string]bool{"2001": true, "2002": false} {
		t.Run(id, func(t *testing.T) {
			w := drivertest.NewWorld(t, subject)
			a, b := w.Pod(t), w.Pod(t)
			w.Attached(t, w.Spec(a, drivertest.Scenario{Keys: `"master":"up0","vlanId":2001`, IPAM: drivertest.OneIPv4}.Conf("vlan")))
			w.Attached(t, w.Spec(b, drivertest.Scenario{Keys: `"master":"up0-far","vlanId":` + id,
				IPAM: `{"type":"static","addresses":[{"address":"10.1.0.6/24"}]}`}.Conf("vlan")))
			if got := drivertest.Hears(t, a.NS, b.NS, "10.1.0.6"); got != want {
				t.Errorf("VLAN 2001 hears VLAN %s: %t, want %t", id, got, want)
			}
		})
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	b.Run("address", func(b *testing.B) {
		drivertest.Bench(b, subject, scenarios[0], drivertest.BareStacked(rtnl.Stacked{Kind: "vlan", ID: 2001}, "up0", true))
	})
}

func FuzzConf(f *testing.F) {
	f.Add([]byte(`{"master":"up0","vlanId":7,"mtu":1400,"ipam":{"type":"static"}}`), "net1")
	f.Add([]byte(`{"mtu":-1,"vlanId":-7}`), "")
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
