package loopback_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/loopback"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:      "loopback",
	Needs:     []kerneltest.Feature{kerneltest.NetNS},
	New:       func(*netns.NS) driver.Driver { return loopback.New() },
	Variants:  []drivertest.Variant{{Name: "plain"}},
	Addresses: drivertest.Never,
	IfName:    "lo",
	// A loopback that was up once keeps its address: so has it in every test.
	Prev: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) *current.Result {
		h := drivertest.Handle(t, p.NS)
		if err := errors.Join(h.SetUp(1), h.SetDown(1)); err != nil {
			t.Fatal(err)
		}
		return nil
	},
	Tampering: []drivertest.Tampering{{Name: "down", Want: "lo is down", Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
		if err := drivertest.Handle(t, p.NS).SetDown(1); err != nil {
			t.Fatal(err)
		}
	}}},
}

var scenarios = []drivertest.Scenario{{Name: "plain"}}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) {
	drivertest.SameAsReference(t, subject, scenarios)
}

func TestInterfaceNameOfTheRequestIsNotUsed(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	s := w.Spec(w.Pod(t), scenarios[0].Conf("loopback"))
	s.IfName = "eth0"
	s = w.Attached(t, s)
	if name := s.Prev.Interfaces[0].Name; name != "lo" {
		t.Errorf("result is about %s", name)
	}
	if err := w.Driver.Check(t.Context(), s); err != nil {
		t.Error(err)
	}
}

func TestPreviousResultIsHandedOn(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	s := w.Spec(p, scenarios[0].Conf("loopback"))
	s.Prev = &current.Result{CNIVersion: "1.1.0", Interfaces: []*current.Interface{{Name: "eth0", Sandbox: p.Path}}}
	want := drivertest.Plain(t, s.Prev)
	if got := drivertest.Plain(t, w.Attached(t, s).Prev); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAddressOfTheWorldOnTheLoopbackIsRefused(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	err := drivertest.Handle(t, p.NS).AddAddr(1, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.1/32")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Driver.Attach(t.Context(), w.Spec(p, scenarios[0].Conf("loopback")))
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "192.0.2.1/32")
}

func BenchmarkAttachDetach(b *testing.B) { drivertest.Bench(b, subject, scenarios[0], nil) }
