package tap_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/tap"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

var subject = drivertest.Subject{
	Type:  "tap",
	Needs: []kerneltest.Feature{kerneltest.Tap},
	New:   func(*netns.NS) driver.Driver { return tap.New(tap.Config{}) },
	Variants: []drivertest.Variant{
		{Name: "plain", Keys: `"multiQueue":false`},
		{Name: "many queues", Keys: `"multiQueue":true,"owner":1000,"group":1001`},
	},
	MAC: true, MTU: true,
	Observe: taps,
}

// taps describes what is particular to taps.
func taps(t testing.TB, _ *drivertest.World, p drivertest.Pod) string {
	t.Helper()
	h := drivertest.Handle(t, p.NS)
	links, err := h.Links()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range links {
		if l.Kind != "tuntap" {
			continue
		}
		tap, err := h.TapOf(l.Index)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "tap %s", l.Name)
		if tap.MultiQueue {
			b.WriteString(" multiqueue")
		}
		if tap.Owner != nil {
			fmt.Fprintf(&b, " owner %d", *tap.Owner)
		}
		if tap.Group != nil {
			fmt.Fprintf(&b, " group %d", *tap.Group)
		}
		b.WriteString("\n")
	}
	return b.String()
}

const noCarrier = "the reference plugin waits for duplicate address detection, which a tap without a carrier never ends, and fails after 5 s"

var scenarios = []drivertest.Scenario{
	{Name: "l2only"},
	{Name: "ipv4", IPAM: drivertest.OneIPv4},
	{Name: "routes", IPAM: drivertest.WithRoutes},
	{Name: "other-table", IPAM: drivertest.OtherTable, CheckFails: "it looks for routes in the main table only"},
	{Name: "ipv6", IPAM: drivertest.OneIPv6},
	{Name: "dual", IPAM: drivertest.Dual, Differs: noCarrier},
	{Name: "mtu", Keys: `"mtu":1400`},
	{Name: "mac", Keys: `"mac":"02:00:00:00:00:05"`},
	{Name: "owner", Keys: `"owner":1000`},
	{Name: "group", Keys: `"group":1001`},
	{Name: "owner-and-group", Keys: `"owner":1000,"group":1001`},
	{Name: "owner-and-group-mtu", Keys: `"owner":1000,"group":1001,"mtu":1400,"mac":"02:00:00:00:00:05"`,
		Differs: "the reference plugin ignores mtu and mac when it gets both owner and group"},
	{Name: "multiqueue", Keys: `"multiQueue":true`},
	{Name: "multiqueue-owner-and-group", Keys: `"multiQueue":true,"owner":1000,"group":1001`},
	{Name: "dns", Keys: `"dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.OneIPv4},
	{Name: "bridge", Keys: `"bridge":"br0"`, Needs: []kerneltest.Feature{kerneltest.Bridge}, Pod: func(t testing.TB, pod *netns.NS) {
		if _, err := drivertest.Handle(t, pod).AddBridge(rtnl.Bridge{New: rtnl.New{Name: "br0", Up: true}}); err != nil {
			t.Fatal(err)
		}
	}},
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) {
	if os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) {
		t.Skip("compared on the host's kernel in tier net; to start programs in a guest is slow")
	}
	drivertest.SameAsReference(t, subject, scenarios)
}

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject, `"bridge":"none"`, `"mac":"zz"`, `"mtu":7`, `"owner":"root"`, `"selinuxContext":"-t"`)
}

// hand runs programs as the shim does, in the namespace of the test's node.
type hand struct {
	ns   *netns.NS
	seen []driver.Program
}

func (h *hand) Exec(ctx context.Context, p driver.Program) (out []byte, err error) {
	h.seen = append(h.seen, p)
	args := slices.Clone(p.Args)
	// No machine of ours has SELinux: run what runcon would have run.
	if i := slices.Index(args, "runcon"); i >= 0 {
		args = slices.Delete(args, i, i+2)
	}
	cmd := exec.CommandContext(ctx, p.Name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = h.ns.Do(func() error {
		out, err = cmd.Output()
		return err
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &driver.ExitError{Program: p.Name, Code: exit.ExitCode(), Stderr: stderr.Bytes()}
	}
	return out, err
}

func TestTapWithAnSELinuxContextIsMadeByAProgramOfTheHost(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	sc := drivertest.Scenario{Keys: `"selinuxContext":"system_u:system_r:container_t:s0","multiQueue":true,"owner":1000,"group":1001,"mtu":1400,"mac":"02:00:00:00:00:05"`}
	s := w.Spec(p, sc.Conf("tap"))
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrTryAgainLater, "SELinux")
	h := &hand{ns: w.Node}
	s.Host = h
	s = w.Attached(t, s)
	if args := strings.Join(h.seen[0].Args, " "); !strings.Contains(args, "-- runcon system_u:system_r:container_t:s0 ip tuntap add mode tap") {
		t.Errorf("program: %s %s", h.seen[0].Name, args)
	}
	got := w.Text(t, p)
	if err := w.Driver.Check(t.Context(), s); err != nil {
		t.Error(err)
	}
	if err := w.Driver.Detach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
	same := drivertest.Scenario{Keys: `"multiQueue":true,"owner":1000,"group":1001,"mtu":1400,"mac":"02:00:00:00:00:05"`}
	w.Attached(t, w.Spec(p, same.Conf("tap")))
	if want := w.Text(t, p); got != want {
		t.Errorf("made by a program:\n%sin process:\n%s", got, want)
	}
}

// envHost is set in the test's second life, where /dev/net is empty as it is in
// braidd's container. It holds the mount namespace of the first.
const envHost = "BRAID_TEST_TAP_HOST"

// outside runs programs in the host's mount namespace, where the tap device is.
type outside struct{ hand }

func (o *outside) Exec(ctx context.Context, p driver.Program) ([]byte, error) {
	p.Args = append([]string{"--mount=" + os.Getenv(envHost), "--", p.Name}, p.Args...)
	p.Name = "nsenter"
	return o.hand.Exec(ctx, p)
}

func TestTapIsMadeOnTheHostWhereTheDaemonHasNoTapDevice(t *testing.T) {
	if os.Getenv(envHost) == "" {
		kerneltest.Need(t, kerneltest.Tap)
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh",
			os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=/proc/%d/ns/mnt", envHost, os.Getpid()), kerneltest.EnvTier+"=")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("without /dev/net/tun: %v\n%s", err, out)
		}
		return
	}
	s := subject
	s.Needs = nil // it cannot do that here
	w := drivertest.NewWorld(t, s)
	p := w.Pod(t)
	spec := w.Spec(p, drivertest.Scenario{Keys: `"multiQueue":true,"owner":1000,"mtu":1400`, IPAM: drivertest.OneIPv4}.Conf("tap"))
	// The name of the namespace is mounted here only.
	spec.NetNSPath = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.NS.Fd())
	if _, err := w.Driver.Attach(t.Context(), spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a hand on the host: %v", err)
	}
	h := &outside{hand{ns: w.Node}}
	spec.Host = h
	spec = w.Attached(t, spec)
	if len(h.seen) != 1 || !strings.Contains(taps(t, w, p), "tap net1 multiqueue owner 1000") {
		t.Errorf("programs %v made %s", h.seen, taps(t, w, p))
	}
	if err := w.Driver.Check(t.Context(), spec); err != nil {
		t.Error(err)
	}
	if err := w.Driver.Detach(t.Context(), spec); err != nil {
		t.Error(err)
	}
}

func TestProgramThatFailsLeavesNothing(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	s := w.Spec(p, drivertest.Scenario{Keys: `"selinuxContext":"x"`}.Conf("tap"))
	s.Host = refuses{}
	if _, err := w.Driver.Attach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "only on a SELinux kernel") {
		t.Errorf("Attach: %v", err)
	}
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
}

type refuses struct{}

func (refuses) Exec(context.Context, driver.Program) ([]byte, error) {
	return nil, &driver.ExitError{Program: "nsenter", Code: 1, Stderr: []byte("runcon may be used only on a SELinux kernel")}
}

func TestCheckNoticesATapThatLeftItsBridge(t *testing.T) {
	sc := scenarios[len(scenarios)-1]
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	sc.Pod(t, p.NS)
	s := w.Attached(t, w.Spec(p, sc.Conf("tap")))
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	if err == nil {
		err = h.SetMaster(l.Index, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Driver.Check(t.Context(), s); err == nil || err.Error() != "interface net1 is no port of bridge br0" {
		t.Errorf("Check: %v", err)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.Bench(b, subject, scenarios[1], func(b *testing.B, _ *drivertest.World, p drivertest.Pod) func() error {
		h := drivertest.Handle(b, p.NS)
		return func() error {
			l, err := h.AddTap(rtnl.Tap{New: rtnl.New{Name: "net1"}})
			if err != nil {
				return err
			}
			return h.Del(l.Index)
		}
	})
}
