package dummy_test

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/dummy"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:      "dummy",
	Needs:     []kerneltest.Feature{kerneltest.Dummy},
	New:       func(*netns.NS) driver.Driver { return dummy.New(dummy.Config{}) },
	Variants:  []drivertest.Variant{{Name: "plain"}},
	Addresses: drivertest.Required,
}

var scenarios = []drivertest.Scenario{
	{Name: "ipv4", IPAM: drivertest.OneIPv4},
	{Name: "ipv6", IPAM: drivertest.OneIPv6},
	{Name: "dual", IPAM: drivertest.Dual},
	{Name: "routes", IPAM: drivertest.WithRoutes},
	{Name: "other-table", IPAM: drivertest.OtherTable},
	{Name: "dns-is-not-read", Keys: `"dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.OneIPv4},
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) {
	refplugin.Dir(t, "dummy", "static") // built here for the guest, where nothing can be
	drivertest.SameAsReference(t, subject, scenarios)
}

func TestWithoutIPAMItIsRefused(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	_, err := w.Driver.Attach(t.Context(), w.Spec(w.Pod(t), drivertest.Scenario{}.Conf("dummy")))
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "ipam")
}

func TestCheckNoticesAnotherKindOfLink(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	s := w.Attached(t, w.Spec(p, scenarios[0].Conf("dummy")))
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	if err == nil {
		err = h.Del(l.Index)
	}
	if err == nil {
		_, err = h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "net1", MAC: l.MAC}, Peer: rtnl.New{Name: "far0"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Driver.Check(t.Context(), s); err == nil || err.Error() != "interface net1 is of kind veth, not a dummy" {
		t.Errorf("Check: %v", err)
	}
}

// What runs in the container may rename its links.
func TestDetachFindsALinkThatWasRenamed(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	s := w.Attached(t, w.Spec(p, scenarios[0].Conf("dummy")))
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	if err == nil {
		err = h.SetDown(l.Index)
	}
	if err == nil {
		err = h.SetName(l.Index, "other0")
	}
	if err == nil {
		err = w.Driver.Detach(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.Bench(b, subject, scenarios[0], func(b *testing.B, _ *drivertest.World, p drivertest.Pod) func() error {
		h := drivertest.Handle(b, p.NS)
		return func() error {
			l, err := h.AddDummy(rtnl.New{Name: "net1"})
			if err != nil {
				return err
			}
			return h.Del(l.Index)
		}
	})
}
