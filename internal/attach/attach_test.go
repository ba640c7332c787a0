package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/exec"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

func TestSpec33AttachmentsAreMadeInOrderAndRemovedInReverse(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+", "foreign"), network("net1", "two"))
	done, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	if len(done) != 2 || done[0].IfName != "eth0" || len(done[0].Result.IPs) != 1 {
		t.Errorf("Add = %+v", done)
	}
	for _, r := range m.records(t) {
		if !r.Complete() {
			t.Errorf("%v has no result", r.Key())
		}
	}
	// A program's result is stored beside the next attachment's work.
	var order []string
	for _, line := range m.takeLog() {
		if line != "store attached" {
			order = append(order, line)
		}
	}
	want := []string{"store begin", "attach c/eth0/address", "attach c/eth0/one", "attach c/eth0/foreign", "attach c/net1/two"}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("ADD (-want +got):\n%s", diff)
	}
	d, err := m.Del(t.Context(), "c", "eth0", m.reach())
	if err != nil || d.Records != 2 {
		t.Errorf("Del = %+v, %v", d, err)
	}
	want = []string{"detach c/net1/two", "detach c/eth0/foreign", "detach c/eth0/one", "detach c/eth0/address", "store remove"}
	if diff := cmp.Diff(want, m.takeLog()); diff != "" {
		t.Errorf("DEL (-want +got):\n%s", diff)
	}
	m.nothingLeft(t)
}

func TestSpec37OneFailureUndoesTheWholeSandbox(t *testing.T) {
	for _, types := range [][]string{{"fails"}, {"two", "fails"}, {"fails+", "two"}, {"foreign", "fails", "two"}} {
		m := newMachine(t, t.TempDir())
		m.broken["attach c/net2/fails"] = errors.New("no such uplink")
		p := planOf(network("eth0", "one+"), network("net1", "foreign", "two"), network("net2", types...), network("net3", "one"))
		_, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
		if err == nil || !strings.Contains(err.Error(), "attach net2 (default/net-net2, plugin fails): no such uplink") {
			t.Errorf("Add = %v", err)
		}
		for _, line := range m.takeLog() {
			if strings.Contains(line, "net3") {
				t.Errorf("net3 was touched: %s", line)
			}
		}
		m.nothingLeft(t)
	}
}

func TestForeignPluginThatFailsIsAskedToCleanUp(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.broken["attach c/eth0/foreign"] = &driver.ExitError{Program: "foreign", Code: 1, Stdout: []byte(`{"code":11,"msg":"busy"}`)}
	_, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one", "foreign", "two")), m.reach())
	var coded *types.Error
	if !errors.As(err, &coded) || coded.Code != 11 {
		t.Errorf("Add = %v", err)
	}
	want := []string{"store begin", "attach c/eth0/one", "attach c/eth0/foreign", "detach c/eth0/foreign", "detach c/eth0/one", "store remove"}
	if diff := cmp.Diff(want, m.takeLog()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	m.nothingLeft(t)
}

func TestMissingForeignPluginLeavesNothing(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.broken["run nosuch"] = errors.New("not found")
	_, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "two", "nosuch")), m.reach())
	if err == nil || !strings.Contains(err.Error(), "/usr/lib/cni, /opt/cni/bin") {
		t.Errorf("Add = %v", err)
	}
	m.nothingLeft(t)
}

func TestInterruptedAttachmentOfAMissingPluginCanBeDeleted(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.broken["run nosuch"] = errors.New("not found")
	at := network("eth0", "one", "nosuch")
	if err := m.store.Begin(t.Context(), []store.Record{{Sandbox: sandbox("c"), Attachment: at}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.nothingLeft(t)
}

func TestCompleteAttachmentWaitsForItsMissingPlugin(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "foreign")), m.reach()); err != nil {
		t.Fatal(err)
	}
	m.broken["run foreign"] = errors.New("not found")
	for range 3 {
		if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err == nil {
			t.Fatal("Del succeeded although nothing could be removed")
		}
	}
	delete(m.broken, "run foreign")
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.nothingLeft(t)
}

func TestPluginThatFailsBothWaysDoesNotMakeThePodImmortal(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.broken["attach c/net1/foreign"] = context.DeadlineExceeded
	m.broken["detach c/net1/foreign"] = context.DeadlineExceeded
	_, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "foreign")), m.reach())
	if err == nil || !strings.Contains(err.Error(), "roll back: detach net1") {
		t.Fatalf("Add = %v", err)
	}
	if left := m.records(t); len(left) != 1 || left[0].FailedDels != 1 {
		t.Fatalf("records: %+v", left)
	}
	d, err := m.Del(t.Context(), "c", "eth0", m.reach())
	if err != nil || len(d.GaveUp) != 1 {
		t.Errorf("Del = %+v, %v", d, err)
	}
	m.nothingLeft(t)
}

// Whoever runs the programs may go away at any moment, and a machine may be too
// busy to start one: that is no word of the plugin's about what it has made.
func TestPluginThatCouldNotBeAskedIsAskedAgain(t *testing.T) {
	for name, unasked := range map[string]error{
		"lost":        &exec.LostError{Err: errors.New("connection lost")},
		"not started": &exec.NotRunError{Err: errors.New("resource temporarily unavailable"), Temporary: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			m.broken["attach c/net1/foreign"] = &exec.LostError{Err: errors.New("connection lost")}
			m.broken["detach c/net1/foreign"] = unasked
			if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "foreign")), m.reach()); err == nil {
				t.Fatal("Add succeeded")
			}
			m.made["c/net1/foreign"] = true // before it was killed
			for range 3 {
				d, err := m.Del(t.Context(), "c", "eth0", m.reach())
				if err == nil || len(d.GaveUp) > 0 {
					t.Fatalf("Del = %+v, %v", d, err)
				}
				if left := m.records(t); len(left) != 1 || left[0].FailedDels != 0 {
					t.Fatalf("records: %+v", left)
				}
			}
			delete(m.broken, "detach c/net1/foreign")
			if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
				t.Error(err)
			}
			m.nothingLeft(t)
		})
	}
}

func TestSpec38FailedDetachKeepsTheRecordUntilItSucceeds(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "two+"), network("net2", "one")), m.reach()); err != nil {
		t.Fatal(err)
	}
	m.broken["detach c/net1/two"] = errors.New("device busy")
	for range 3 {
		_, err := m.Del(t.Context(), "c", "eth0", m.reach())
		if err == nil || !strings.Contains(err.Error(), "detach net1 (default/net-net1, plugin two): device busy") {
			t.Fatalf("Del = %v", err)
		}
		if diff := cmp.Diff([]string{"c/net1/two"}, m.things()); diff != "" {
			t.Fatalf("the others are not gone:\n%s", diff)
		}
	}
	delete(m.broken, "detach c/net1/two")
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.nothingLeft(t)
}

func TestRollbackGoesOnWhenTheRequestIsOver(t *testing.T) {
	m := newMachine(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	m.Drivers["cancels"] = cancels{native{m.world}, cancel}
	_, err := m.Add(ctx, sandbox("c"), planOf(network("eth0", "one+"), network("net1", "cancels"), network("net2", "two")), m.reach())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Add = %v", err)
	}
	m.nothingLeft(t)
}

// cancels is a driver during whose work the runtime goes away.
type cancels struct {
	native
	cancel func()
}

func (c cancels) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	defer c.cancel()
	return c.native.Attach(ctx, s)
}

func TestPanickingDriverIsUndone(t *testing.T) {
	m := newMachine(t, t.TempDir())
	_, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "panics")), m.reach())
	var crash *PanicError
	if !errors.As(err, &crash) || !strings.Contains(string(crash.Stack), "Attach") {
		t.Errorf("Add = %v", err)
	}
	if log := m.takeLog(); !strings.Contains(strings.Join(log, "\n"), "detach c/net1/panics") {
		t.Errorf("what the driver had begun was not removed: %q", log)
	}
	m.nothingLeft(t)
}

func TestRepeatedAddReturnsTheSameResults(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+"), network("net1", "foreign"))
	first, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	m.boot(t)
	m.takeLog()
	p.Attachments[1].Reasons = []string{"worded differently today"}
	second, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	if log := m.takeLog(); len(log) != 0 {
		t.Errorf("the repeated request did %q", log)
	}
	for i := range first {
		a, _ := json.Marshal(first[i].Result)
		b, _ := json.Marshal(second[i].Result)
		if string(a) != string(b) {
			t.Errorf("result %s became %s", a, b)
		}
	}
}

func TestDifferentRequestReplacesWhatWasThere(t *testing.T) {
	change := map[string]func(*store.Sandbox, *plan.Plan){
		"namespace": func(sb *store.Sandbox, _ *plan.Plan) { sb.NSID.Ino++ },
		"args":      func(sb *store.Sandbox, _ *plan.Plan) { sb.Args += ";X=1" },
		"fewer":     func(_ *store.Sandbox, p *plan.Plan) { p.Attachments = p.Attachments[:1] },
		"config":    func(_ *store.Sandbox, p *plan.Plan) { p.Attachments[1].Config.Name = "other" },
	}
	for name, change := range change {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+"), network("net1", "two")), m.reach()); err != nil {
				t.Fatal(err)
			}
			m.takeLog()
			sb, p := sandbox("c"), planOf(network("eth0", "one+"), network("net1", "two"))
			change(&sb, &p)
			if _, err := m.Add(t.Context(), sb, p, m.reach()); err != nil {
				t.Fatal(err)
			}
			if log := strings.Join(m.takeLog(), "\n"); !strings.Contains(log, "detach c/net1/two\ndetach c/eth0/one\ndetach c/eth0/address\nstore remove\nstore begin\nattach c/eth0/address") {
				t.Errorf("it was not taken down first:\n%s", log)
			}
			if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
				t.Error(err)
			}
			m.nothingLeft(t)
		})
	}
}

func TestDamagedRecordIsReportedAndReplaced(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+"), network("net1", "two"))
	if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
		t.Fatal(err)
	}
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(m.path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("attachments")).Put([]byte("c\x00eth0\x00\x00\x00"), []byte("[]"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	m.boot(t)
	// Whatever the lost record stood for is replaced by the driver.
	if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
		t.Fatal(err)
	}
	d, err := m.Del(t.Context(), "c", "eth0", m.reach())
	if err != nil || d.Damaged != nil || d.Records != 2 {
		t.Errorf("Del = %+v, %v", d, err)
	}
	m.nothingLeft(t)
}

// A program in a chain checks what it made itself, in each network of the pod.
func TestCheckAsksTheProgramsOfEveryNetwork(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+", "program"), network("net1", "two", "program", "other"))
	if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.mu.Lock()
	delete(m.made, "c/net1/other")
	m.mu.Unlock()
	err := m.Check(t.Context(), "c", "eth0", m.reach())
	if err == nil || !strings.Contains(err.Error(), "check net1 (default/net-net1, plugin other)") || !strings.Contains(err.Error(), "its rule is gone") {
		t.Errorf("Check = %v", err)
	}
}

func TestCheckNamesTheFirstDifference(t *testing.T) {
	m := newMachine(t, t.TempDir())
	exempt, old := network("net2", "two"), network("net3", "two")
	exempt.Config.DisableCheck, old.Config.CNIVersion = true, "0.3.1"
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); !errors.Is(err, ErrUnknown) {
		t.Errorf("Check before ADD = %v", err)
	}
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "two"), exempt, old), m.reach()); err != nil {
		t.Fatal(err)
	}
	m.specs = nil
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	if len(m.specs) != 2 || m.specs[0].Prev == nil || !strings.Contains(string(m.specs[0].Conf), `"prevResult"`) {
		t.Errorf("checked with %+v", m.specs)
	}
	m.made = map[string]bool{"c/eth0/one": true}
	err := m.Check(t.Context(), "c", "eth0", m.reach())
	if err == nil || !strings.Contains(err.Error(), "check net1 (default/net-net1, plugin two): it is gone") {
		t.Errorf("Check = %v", err)
	}
}

// TestPowerCutAtEveryStep cuts the power before and after every change that an
// ADD, and then a DEL, makes to the kernel or to the disk.
func TestPowerCutAtEveryStep(t *testing.T) {
	plans := map[string]plan.Plan{
		"plain":    planOf(network("eth0", "one+")),
		"mixed":    planOf(network("eth0", "one+", "foreign"), network("net1", "two+"), network("net2", "foreign", "one+")),
		"broken":   planOf(network("eth0", "one+"), network("net1", "two", "fails")),
		"foreseen": planOf(network("eth0", "foreign"), network("net1", "sees+"), network("net2", "sees+")),
		"device":   planOf(network("eth0", "one"), papers{}.of("c", network("net1", "two", "foreign"))),
	}
	for name, p := range plans {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			m.broken["attach c/net1/fails"] = errors.New("broken as designed")
			for n := 0; ; n++ {
				m.powerCutAfter(n)
				reach := m.reach()
				reach.Foretold = func([]Attached) {}
				_, err := m.Add(t.Context(), sandbox("c"), p, reach)
				cut := errors.Is(err, errPower)
				m.boot(t)
				afterPower(t, m, p, n, name == "broken")
				m.nothingLeft(t)
				if t.Failed() {
					t.Fatalf("power cut at step %d of ADD: %v", n, err)
				}
				if !cut {
					t.Logf("%d steps", n)
					return
				}
			}
		})
	}
}

// afterPower is what a runtime does after the power came back: a DEL, or the same
// ADD again and later a DEL.
func afterPower(t *testing.T, m *machine, p plan.Plan, n int, broken bool) {
	t.Helper()
	if n%2 == 1 {
		if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil && !broken {
			t.Errorf("ADD again: %v", err)
		}
	}
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Errorf("DEL: %v", err)
	}
}

func TestPowerCutAtEveryStepOfDel(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+", "foreign"), papers{}.of("c", network("net1", "two+")))
	for n := 0; ; n++ {
		if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
			t.Fatal(err)
		}
		m.powerCutAfter(n)
		_, err := m.Del(t.Context(), "c", "eth0", m.reach())
		m.boot(t)
		if left := m.things(); len(left) > 0 && len(m.records(t)) == 0 {
			t.Fatalf("power cut at step %d of DEL: %v are left without a record", n, left)
		}
		afterPower(t, m, p, n, false)
		m.nothingLeft(t)
		if t.Failed() {
			t.Fatalf("power cut at step %d of DEL: %v", n, err)
		}
		if err == nil {
			return
		}
	}
}

// TestNothingIsLeftAfterAnyHistory plays random requests for two containers
// with random failures and power cuts, and ends with a DEL of each.
func TestNothingIsLeftAfterAnyHistory(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "braid-attach-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		m := newMachine(t, dir)
		defer m.store.Close()
		kinds := rapid.SampledFrom([]string{"one", "one+", "two", "two+", "sees", "sees+", "foreign"})
		ids := rapid.SampledFrom([]string{"c", "d"})
		for range rapid.IntRange(1, 8).Draw(rt, "requests") {
			id := ids.Draw(rt, "container")
			m.powerCutAfter(rapid.IntRange(-1, 30).Draw(rt, "power"))
			draw := func(name string) plan.Attachment {
				chain := rapid.SliceOfNDistinct(kinds, 1, 2, func(s string) string { return s[:1] }).Draw(rt, "chain")
				at := network(name, chain...)
				if rapid.Bool().Draw(rt, "device") {
					at = papers{}.of(id, at)
				}
				return at
			}
			name := fmt.Sprintf("net%d", rapid.IntRange(0, 3).Draw(rt, "name"))
			switch rapid.SampledFrom([]string{"add", "del", "plug", "unplug"}).Draw(rt, "request") {
			case "add":
				var p plan.Plan
				for i := range rapid.IntRange(1, 3).Draw(rt, "networks") {
					p.Attachments = append(p.Attachments, draw(fmt.Sprintf("net%d", i)))
				}
				reach := m.reach()
				reach.Foretold = func([]Attached) {}
				_, _ = m.Add(context.Background(), sandbox(id), p, reach)
			case "del":
				_, _ = m.Del(context.Background(), id, "eth0", m.reach())
			case "plug":
				// Planning gives no name twice.
				if !slices.ContainsFunc(m.records(t), called(name)) {
					_, _ = m.Plug(context.Background(), id, "eth0", draw(name), m.reach())
				}
			case "unplug":
				_, _ = m.Unplug(context.Background(), id, "eth0", called(name), m.reach())
			}
			m.boot(t)
			// At every moment the store knows what the world holds.
			known := map[string]bool{}
			for _, r := range m.records(t) {
				known[r.Sandbox.ContainerID+"/"+r.Attachment.IfName] = true
			}
			for _, thing := range m.things() {
				if !known[filepath.Dir(thing)] {
					rt.Fatalf("%s is known to no record", thing)
				}
			}
		}
		for _, id := range []string{"c", "d"} {
			if _, err := m.Del(context.Background(), id, "eth0", m.reach()); err != nil {
				rt.Fatalf("DEL %s: %v", id, err)
			}
		}
		if left := m.things(); len(left) > 0 || len(m.records(t)) > 0 {
			rt.Fatalf("left: %v, %v", left, m.records(t))
		}
	})
}

func TestTakenInterfaceNameIsRefusedBeforeAnythingIsMade(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	taken := hostLink(t)
	m := newMachine(t, t.TempDir())
	reach := m.reach()
	reach.NS = ns
	_, err = m.Add(t.Context(), sandbox("c"), planOf(network("braidfree0", "one"), network(taken, "foreign")), reach)
	var coded *types.Error
	if !errors.As(err, &coded) || coded.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), "attach "+taken) {
		t.Errorf("Add = %v", err)
	}
	if log := m.takeLog(); len(log) != 0 {
		t.Errorf("it did %q", log)
	}
}

func TestNamespaceThatTookOverANumberIsAttachedAnew(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	ns := kerneltest.NewNS(t)
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, t.TempDir())
	sb, p, reach := sandbox("c"), planOf(network("eth0", "one")), m.reach()
	sb.NSID, reach.NS = id, ns
	for range 2 { // the driver makes no real link: to the second ADD it is gone
		m.takeLog()
		if _, err := m.Add(t.Context(), sb, p, reach); err != nil {
			t.Fatal(err)
		}
		if log := strings.Join(m.takeLog(), "\n"); !strings.Contains(log, "attach c/eth0/one") {
			t.Errorf("ADD did %q", log)
		}
	}
}

// hostLink is the name of a link of this machine that is not a loopback.
func hostLink(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		kind, err := os.ReadFile("/sys/class/net/" + e.Name() + "/type")
		if err == nil && strings.TrimSpace(string(kind)) == "1" { // ARPHRD_ETHER
			return e.Name()
		}
	}
	t.Fatal("this machine has no Ethernet link")
	return ""
}

func TestDetachLeavesAReusedNamespaceAlone(t *testing.T) {
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one")), m.reach()); err != nil {
		t.Fatal(err)
	}
	var seen []driver.Spec
	m.Drivers["one"] = spying{native{m.world}, &seen}
	reach := m.reach()
	reach.NS = ns // not the one of the ADD
	if _, err := m.Del(t.Context(), "c", "eth0", reach); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0].NetNS != nil {
		t.Errorf("Detach was given a namespace that the record does not speak of")
	}
}

type spying struct {
	native
	seen *[]driver.Spec
}

func (s spying) Detach(ctx context.Context, spec driver.Spec) error {
	*s.seen = append(*s.seen, spec)
	return s.native.Detach(ctx, spec)
}

// lateStore stores results once told is closed.
type lateStore struct {
	Store
	told chan struct{}
	err  error
}

func (s lateStore) Attached(ctx context.Context, records ...store.Record) error {
	select {
	case <-s.told:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.err != nil {
		return s.err
	}
	return s.Store.Attached(ctx, records...)
}

// listingStore lists which attachments' results it was given together.
type listingStore struct {
	Store
	calls *[][]int
}

func (s listingStore) Attached(ctx context.Context, records ...store.Record) error {
	var call []int
	for _, r := range records {
		call = append(call, r.Index)
	}
	*s.calls = append(*s.calls, call)
	return s.Store.Attached(ctx, records...)
}

// TestResultsAreStoredInOneStep: only a program's DEL may need its result
// while the ADD as a whole has none.
func TestResultsAreStoredInOneStep(t *testing.T) {
	for _, c := range []struct {
		plugins []string
		want    [][]int
	}{
		{[]string{"one", "two", "one"}, [][]int{{0, 1, 2}}},
		{[]string{"one", "foreign", "two"}, [][]int{{1}, {0, 1, 2}}},
		{[]string{"one", "two", "foreign"}, [][]int{{0, 1, 2}}},
	} {
		m := newMachine(t, t.TempDir())
		var calls [][]int
		m.Store = listingStore{m.Store, &calls}
		var p plan.Plan
		for i, plugin := range c.plugins {
			p.Attachments = append(p.Attachments, network(fmt.Sprint("net", i), plugin))
		}
		if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, calls); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.plugins, diff)
		}
	}
}

// TestWhatIsMadeIsToldWhileItIsStored: the cluster hears of it meanwhile.
func TestWhatIsMadeIsToldWhileItIsStored(t *testing.T) {
	for _, broken := range []error{nil, errors.New("no space")} {
		m := newMachine(t, t.TempDir())
		s := lateStore{m.Store, make(chan struct{}), broken}
		m.Store = s
		reach := m.reach()
		var told []Attached
		reach.Made = func(done []Attached) {
			told = done
			close(s.told)
		}
		p := planOf(network("eth0", "one"), network("net1", "two"))
		done, err := m.Add(t.Context(), sandbox("c"), p, reach)
		if !errors.Is(err, broken) {
			t.Errorf("Add: %v", err)
		}
		if len(told) != 2 || told[1].Result == nil || broken == nil && !cmp.Equal(told, done) {
			t.Errorf("told of %+v", told)
		}
		if broken != nil {
			m.Store = s.Store
			m.nothingLeft(t)
			continue
		}
		// The same again is an answer, and no news.
		reach.Made = func([]Attached) { t.Error("told again") }
		if _, err := m.Add(t.Context(), sandbox("c"), p, reach); err != nil {
			t.Error(err)
		}
	}
}
