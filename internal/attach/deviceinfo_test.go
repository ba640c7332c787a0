package attach

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/store"
)

func TestSpec31DeviceInformationIsReadAfterADDAndRemovedAfterDEL(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one"), papers{}.of("c", network("net1", "two", "foreign")))
	done, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"type":"pci","of":"c/net1/info"}`
	if string(done[0].DeviceInfo) != "" || string(done[1].DeviceInfo) != want || len(done[1].Notes) > 0 {
		t.Errorf("Add = %+v", done)
	}
	if r := m.records(t); string(r[1].DeviceInfo) != want {
		t.Errorf("recorded: %s", r[1].DeviceInfo)
	}
	without := func(log []string, verb string) []string {
		return slices.DeleteFunc(log, func(line string) bool { return strings.HasPrefix(line, verb) })
	}
	order := []string{"attach c/eth0/one", "prepare c/net1/info", "attach c/net1/two", "attach c/net1/foreign"}
	if diff := cmp.Diff(order, without(m.takeLog(), "store")); diff != "" {
		t.Errorf("ADD (-want +got):\n%s", diff)
	}
	// The runtime repeats it.
	if again, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil || string(again[1].DeviceInfo) != want {
		t.Errorf("Add again = %+v, %v", again, err)
	}
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Fatal(err)
	}
	order = []string{"detach c/net1/foreign", "detach c/net1/two", "discard c/net1/info", "detach c/eth0/one"}
	if diff := cmp.Diff(order, without(m.takeLog(), "store")); diff != "" {
		t.Errorf("DEL (-want +got):\n%s", diff)
	}
	m.nothingLeft(t)
}

func TestUnreadableDeviceInformationIsToldAndNoMore(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.broken["read c/net1/info"] = errors.New("it is no device information")
	done, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), papers{}.of("c", network("net1", "two"))), m.reach())
	if err != nil || done[1].DeviceInfo != nil || !slices.Equal(done[1].Notes, []string{"it is no device information"}) {
		t.Errorf("Add = %+v, %v", done, err)
	}
	if !m.records(t)[1].Complete() {
		t.Error("the attachment is not complete")
	}
}

func TestDeviceInformationThatCannotBeWrittenFailsTheAttachment(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.broken["prepare c/net1/info"] = errors.New("no space left on device")
	_, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one"), papers{}.of("c", network("net1", "two"))), m.reach())
	if err == nil || !strings.Contains(err.Error(), "attach net1 (default/net-net1): no space left on device") {
		t.Errorf("Add = %v", err)
	}
	m.nothingLeft(t)
}

func TestDeviceInformationStaysForADELThatIsRepeated(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(papers{}.of("c", network("eth0", "one"))), m.reach()); err != nil {
		t.Fatal(err)
	}
	m.broken["detach c/eth0/one"] = errors.New("busy")
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err == nil {
		t.Fatal("DEL succeeded")
	}
	if left := m.things(); !slices.Contains(left, "c/eth0/info") {
		t.Errorf("left: %v", left)
	}
	delete(m.broken, "detach c/eth0/one")
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.nothingLeft(t)
}

// A plugin that is given up must not leave the file behind for ever.
func TestDeviceInformationGoesWithAPluginThatIsGivenUp(t *testing.T) {
	m := newMachine(t, t.TempDir())
	at := papers{}.of("c", network("net1", "foreign"))
	if err := (papers{m.world}).Prepare(at); err != nil {
		t.Fatal(err)
	}
	if err := m.store.Begin(t.Context(), []store.Record{{Sandbox: sandbox("c"), Attachment: at}}); err != nil {
		t.Fatal(err)
	}
	m.broken["detach c/net1/foreign"] = &driver.ExitError{Program: "foreign", Code: 1}
	_, first := m.Del(t.Context(), "c", "eth0", m.reach())
	d, second := m.Del(t.Context(), "c", "eth0", m.reach())
	if first == nil || second != nil || len(d.GaveUp) != 1 {
		t.Errorf("DEL: %v, then %+v, %v", first, d, second)
	}
	m.nothingLeft(t)
}
