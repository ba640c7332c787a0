package attach

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// called picks records by the interface of their attachments.
func called(names ...string) func(store.Record) bool {
	return func(r store.Record) bool { return slices.Contains(names, r.Attachment.IfName) }
}

func (m *machine) plugged(t testing.TB) []string {
	t.Helper()
	var list []string
	for _, r := range m.records(t) {
		list = append(list, fmt.Sprintf("%d %s inUse=%v", r.Index, r.Attachment.IfName, r.InUse()))
	}
	return list
}

func TestSandboxThatRunsGetsAndLosesAttachments(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+"), network("net1", "two")), m.reach()); err != nil {
		t.Fatal(err)
	}
	m.takeLog()
	for _, at := range []plan.Attachment{network("net2", "one+", "foreign"), network("net3", "two")} {
		done, err := m.Plug(t.Context(), "c", "eth0", at, m.reach())
		if err != nil || done.IfName != at.IfName || done.Result == nil {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	if diff := cmp.Diff([]string{
		"store begin", "attach c/net2/address", "attach c/net2/one", "attach c/net2/foreign", "store attached",
		"store begin", "attach c/net3/two", "store attached",
	}, m.takeLog()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"0 eth0 inUse=true", "1 net1 inUse=true", "2 net2 inUse=true", "3 net3 inUse=true"}, m.plugged(t)); diff != "" {
		t.Error(diff)
	}
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.boot(t)
	if _, err := m.Unplug(t.Context(), "c", "eth0", called("net1", "net2"), m.reach()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"store begin", "detach c/net2/foreign", "detach c/net2/one", "detach c/net2/address", "detach c/net1/two", "store remove",
	}, m.takeLog()); diff != "" {
		t.Error(diff)
	}
	if _, err := m.Plug(t.Context(), "c", "eth0", network("net1", "two"), m.reach()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"0 eth0 inUse=true", "3 net3 inUse=true", "4 net1 inUse=true"}, m.plugged(t)); diff != "" {
		t.Error(diff)
	}
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.nothingLeft(t)
}

func TestSandboxThatNobodyAttachedCannotBeChanged(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Plug(t.Context(), "c", "eth0", network("net1", "one"), m.reach()); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	m.nothingLeft(t)
}

func TestCheckCoversWhatWasPlugged(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one")), m.reach()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Plug(t.Context(), "c", "eth0", network("net1", "two"), m.reach()); err != nil {
		t.Fatal(err)
	}
	delete(m.made, "c/net1/two")
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); err == nil || !strings.Contains(err.Error(), "check net1") {
		t.Errorf("%v, want an error that names net1", err)
	}
}

func TestFailedPlugLeavesTheSandboxAsItWas(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+")), m.reach()); err != nil {
		t.Fatal(err)
	}
	before, records := m.things(), m.plugged(t)
	m.broken["attach c/net1/fails"] = errors.New("broken as designed")
	for _, chain := range [][]string{{"fails"}, {"two", "fails"}, {"two+", "foreign", "fails"}, {"two", "panics"}} {
		if _, err := m.Plug(t.Context(), "c", "eth0", network("net1", chain...), m.reach()); err == nil {
			t.Errorf("%v was attached", chain)
		}
		if diff := cmp.Diff(before, m.things()); diff != "" {
			t.Errorf("%v: %s", chain, diff)
		}
		if diff := cmp.Diff(records, m.plugged(t)); diff != "" {
			t.Errorf("%v: %s", chain, diff)
		}
	}
}

func TestFailedUnplugIsThePodsNoLongerAndIsTriedAgain(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one"), network("net1", "two"))
	if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
		t.Fatal(err)
	}
	m.broken["detach c/net1/two"] = errors.New("busy")
	if _, err := m.Unplug(t.Context(), "c", "eth0", called("net1"), m.reach()); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("%v, want what the driver said", err)
	}
	if diff := cmp.Diff([]string{"0 eth0 inUse=true", "1 net1 inUse=false"}, m.plugged(t)); diff != "" {
		t.Error(diff)
	}
	delete(m.made, "c/net1/two") // half gone
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Errorf("the pod is held responsible for what is being taken away: %v", err)
	}
	if done, err := m.Again(t.Context(), sandbox("c"), m.reach()); done != nil || err != nil {
		t.Errorf("a half removed sandbox is as it was: %v", err)
	}
	delete(m.broken, "detach c/net1/two")
	if _, err := m.Unplug(t.Context(), "c", "eth0", Unfinished, m.reach()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"0 eth0 inUse=true"}, m.plugged(t)); diff != "" {
		t.Error(diff)
	}
}

// The runtime repeats an ADD whose answer it lost, and the sandbox may have
// been changed since.
func TestRepeatedAddOfAChangedSandboxFindsWhatItHas(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), network("net1", "two"), network("net2", "two")), m.reach()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Unplug(t.Context(), "c", "eth0", called("net1"), m.reach()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Plug(t.Context(), "c", "eth0", network("net3", "one"), m.reach()); err != nil {
		t.Fatal(err)
	}
	m.boot(t)
	m.takeLog()
	done, err := m.Again(t.Context(), sandbox("c"), m.reach())
	if err != nil || len(done) != 3 || done[0].IfName != "eth0" || done[1].IfName != "net2" || done[2].IfName != "net3" {
		t.Errorf("%+v, %v", done, err)
	}
	other := sandbox("c")
	other.NSID.Ino++
	if done, err := m.Again(t.Context(), other, m.reach()); done != nil || err != nil {
		t.Errorf("another namespace is the same: %v", err)
	}
	if done, err := m.Again(t.Context(), sandbox("d"), m.reach()); done != nil || err != nil {
		t.Errorf("another container is the same: %v", err)
	}
	if log := m.takeLog(); len(log) != 0 {
		t.Errorf("a question did %q", log)
	}
}

// TestPowerCutAtEveryStepOfAChange cuts the power before and after every step
// of a Plug or an Unplug. Afterwards the daemon takes down what is unfinished,
// and the pod has never lost anything else.
func TestPowerCutAtEveryStepOfAChange(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(m *machine) error
		results []string // what the pod may have afterwards
	}{
		"plug": {func(m *machine) error {
			_, err := m.Plug(t.Context(), "c", "eth0", network("net2", "one+", "foreign", "two"), m.reach())
			return err
		}, []string{"eth0 net1", "eth0 net1 net2"}},
		"plug that fails": {func(m *machine) error {
			_, err := m.Plug(t.Context(), "c", "eth0", network("net2", "one+", "foreign", "fails"), m.reach())
			return err
		}, []string{"eth0 net1"}},
		"unplug": {func(m *machine) error {
			_, err := m.Unplug(t.Context(), "c", "eth0", called("net1"), m.reach())
			return err
		}, []string{"eth0", "eth0 net1"}},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				m := newMachine(t, t.TempDir())
				m.broken["attach c/net2/fails"] = errors.New("broken as designed")
				if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+"), network("net1", "two+", "foreign")), m.reach()); err != nil {
					t.Fatal(err)
				}
				m.powerCutAfter(n)
				err := c.change(m)
				m.boot(t)
				if _, err := m.Unplug(t.Context(), "c", "eth0", Unfinished, m.reach()); err != nil {
					t.Errorf("finish: %v", err)
				}
				var has []string
				for _, r := range m.records(t) {
					has = append(has, r.Attachment.IfName)
				}
				if !slices.Contains(c.results, strings.Join(has, " ")) {
					t.Errorf("the pod has %v", has)
				}
				if err := m.Check(t.Context(), "c", "eth0", m.reach()); err != nil {
					t.Error(err)
				}
				if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
					t.Errorf("DEL: %v", err)
				}
				m.nothingLeft(t)
				if t.Failed() {
					t.Fatalf("power cut at step %d: %v", n, err)
				}
				m.store.Close()
				if !errors.Is(err, errPower) {
					t.Logf("%d steps", n)
					return
				}
			}
		})
	}
}

func TestPlugKeepsTheDefaultRoutesOfAPodThatRuns(t *testing.T) {
	for _, c := range []struct {
		name, def, annotation, plugged string
		want                           []string
		notes                          string
	}{
		{"it has both", "pods", "", "lan", []string{"eth0 10.244.1.1", "eth0 fd00:244::1"},
			"its default route by 192.168.7.1 is not kept, as the pod has one and runs; its default route by fd00:7::1 is not kept"},
		{"it has one of IPv4", "pods4", "", "lan", []string{"eth0 10.244.1.1", "net1 fd00:7::1"},
			"its default route by 192.168.7.1 is not kept"},
		{"it has none", "no-default", "", "lan", []string{"net1 192.168.7.1", "net1 fd00:7::1"}, ""},
		{"it has two hops", "no-default", "two-hops", "lan", []string{"net1 192.168.8.1", "net1 192.168.8.2", "net2 fd00:7::1"},
			"its default route by 192.168.7.1 is not kept"},
		{"it asked for one", "pods", `[{"name":"lan6","default-route":["fd00:6::9"]}]`, "lan", []string{"eth0 10.244.1.1", "net1 fd00:6::9"},
			"its default route by 192.168.7.1 is not kept"},
		{"the new one brings none", "pods4", "", "plain", []string{"eth0 10.244.1.1"}, ""},
		{"the new one keeps it to itself", "pods4", "", "by-source", []string{"eth0 10.244.1.1"}, ""},
		{"routes overlap", "pods4", "", "wide", []string{"eth0 10.244.1.1"}, "10.0.0.0/8 covers 10.244.1.0/24 of eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPod(t)
			planned, err := p.plan(c.def, c.annotation)
			if err != nil {
				t.Fatal(err)
			}
			done, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
			if err != nil {
				t.Fatal(err)
			}
			before := p.observe()
			ifName := fmt.Sprintf("net%d", len(done))
			more, err := p.plan(c.def, c.plugged+"@"+ifName)
			if err != nil {
				t.Fatal(err)
			}
			plugged, err := p.Plug(t.Context(), "c", "eth0", more.Attachments[1], Reach{NS: p.ns})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, p.defaults()); diff != "" {
				t.Errorf("default routes (-want +kernel):\n%s", diff)
			}
			again, err := p.Again(t.Context(), p.sandbox(), Reach{NS: p.ns})
			if again == nil || err != nil {
				t.Fatalf("%v, %v", again, err)
			}
			for from, list := range map[string][]Attached{"results": append(done, plugged), "records": again} {
				results, statuses := told(list)
				for what, have := range map[string][]string{"results": results, "status": statuses} {
					if diff := cmp.Diff(c.want, have); diff != "" && c.plugged != "by-source" {
						t.Errorf("default routes (-want +%s of the %s):\n%s", what, from, diff)
					}
				}
			}
			if notes := strings.Join(plugged.Notes, "; "); !strings.Contains(notes, c.notes) || c.notes == "" && notes != "" {
				t.Errorf("notes %q lack %q", notes, c.notes)
			}
			if err := p.Check(t.Context(), "c", "eth0", Reach{NS: p.ns}); err != nil {
				t.Error(err)
			}
			if _, err := p.Unplug(t.Context(), "c", "eth0", called(ifName), Reach{NS: p.ns}); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, p.observe()); diff != "" {
				t.Errorf("after it is gone again: %s", diff)
			}
		})
	}
}

func TestPlugRefusesANameThatTheContainerHas(t *testing.T) {
	p := newPod(t)
	planned, err := p.plan("pods4", "lan@x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns}); err != nil {
		t.Fatal(err)
	}
	before := p.observe()
	again := planned.Attachments[1]
	if _, err := p.Plug(t.Context(), "c", "eth0", again, Reach{NS: p.ns}); err == nil || !strings.Contains(err.Error(), "already has an interface of this name") {
		t.Error(err)
	}
	if diff := cmp.Diff(before, p.observe()); diff != "" {
		t.Error(diff)
	}
}
