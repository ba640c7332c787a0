package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/wire"
)

// note leaves a DEL for the next daemon, as a shim does that finds none.
func (n *node) note(id string) {
	n.t.Helper()
	r := n.request("DEL", id)
	f, err := os.Open(r.NetNS)
	if err == nil {
		defer f.Close()
	}
	if _, err := wire.WriteNote(filepath.Join(n.dir, "notes"), r, f); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) notes() (files []string) {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "notes"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		files = append(files, e.Name())
	}
	return files
}

// run runs the daemon's loops until the test ends or calls stop.
func (n *node) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	d := n.daemon
	go func() { ended <- d.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	}
	n.t.Cleanup(stop)
	return stop
}

func TestNotedDelIsServedBeforeTheFirstRequest(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p", "q")
	n.kill()
	n.note("p")
	n.start()
	if diff := cmp.Diff([]string{"q/eth0", "q/net1"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
	if notes := n.notes(); len(notes) > 0 {
		t.Errorf("notes left: %v", notes)
	}
}

// mustGo returns when everything of the kernel is gone, but for these links.
func (n *node) mustGo(but ...string) {
	n.t.Helper()
	eventually(n.t, "everything to go but "+strings.Join(but, ", "), func() bool {
		return cmp.Equal(append([]string{}, but...), append([]string{}, n.kernel.left()...))
	})
}

func TestNoteThatAppearsLaterIsServed(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.run()
	n.note("p")
	n.mustGo()
	eventually(t, "the note to go", func() bool { return len(n.notes()) == 0 })
	n.nothingLeft()
}

// lender is a driver that has lent something of the node to the container.
type lender struct{ *kernel }

func (lender) Lends() {}

func (n *node) lend() {
	n.daemon.Attacher.Drivers["lender"] = lender{n.kernel}
	n.define("device", `{"cniVersion":"1.0.0","type":"lender"}`)
}

func TestNoteThatNeedsTheNamespaceWaitsForAHand(t *testing.T) {
	n := newNode(t)
	n.lend()
	n.pod("p", "device")
	n.ok("ADD", "p")
	n.note("p")
	n.run()
	// The loop says that it wants a hand when it has looked at the note.
	eventually(t, "a hand to be wanted", n.daemon.hands.wanted)
	if left := n.kernel.left(); len(left) != 2 {
		t.Fatalf("left %v: it did not wait", left)
	}
	n.leaveHand()
	n.mustGo()
	eventually(t, "the note to go", func() bool { return len(n.notes()) == 0 })
}

func (s *hands) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready != nil
}

// A namespace that was gone when the note was written needs nobody to look.
func TestNoteOfAContainerThatIsGoneIsServedAtOnce(t *testing.T) {
	n := newNode(t)
	n.lend()
	n.space("p")
	n.pod("p", "device")
	n.ok("ADD", "p")
	n.unspace("p")
	n.note("p")
	n.daemon.serveNotes(t.Context())
	n.nothingLeft()
}

func TestAddComesAfterANotedDelOfTheSameContainer(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.kernel.takeDetached()
	n.note("p")
	n.ok("ADD", "p")
	if notes := n.notes(); len(notes) > 0 {
		t.Errorf("notes left: %v", notes)
	}
	if diff := cmp.Diff([]string{"p/net1", "p/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Errorf("the earlier DEL: %s", diff)
	}
	n.daemon.reconcile(t.Context())
	n.ok("CHECK", "p")
	if diff := cmp.Diff([]string{"p/eth0", "p/net1"}, n.kernel.left()); diff != "" {
		t.Errorf("the note took the new one down: %s", diff)
	}
}

func TestAddIsRefusedWhileANotedDelCannotBeServed(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.daemon.Attacher.Drivers["fake"] = stuck{n.kernel}
	n.note("p")
	n.refused(n.do("ADD", "p"), 11, "noted before", "device or resource busy")
	if notes := n.notes(); len(notes) != 1 {
		t.Errorf("notes %v", notes)
	}
	n.daemon.Attacher.Drivers["fake"] = n.kernel
	n.ok("ADD", "p")
}

var errBusy = errors.New("device or resource busy")

// stuck is a driver that cannot take down.
type stuck struct{ *kernel }

func (stuck) Detach(context.Context, driver.Spec) error { return errBusy }

func TestNoteStaysUntilEverythingIsGone(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.daemon.Attacher.Drivers["fake"] = stuck{n.kernel}
	n.note("p")
	n.cluster.takeEvents()
	n.daemon.serveNotes(t.Context())
	if notes := n.notes(); len(notes) != 1 {
		t.Fatalf("notes %v", notes)
	}
	n.daemon.serveNotes(t.Context()) // too soon
	n.daemon.pace.advance(time.Minute)
	n.daemon.serveNotes(t.Context())
	if events := n.cluster.takeEvents(); len(events) != 1 || !strings.Contains(events[0], "STUCK") || !strings.Contains(events[0], "2 times") {
		t.Errorf("events %q, want one at the second failure", events)
	}
	n.daemon.Attacher.Drivers["fake"] = n.kernel
	n.daemon.pace.advance(time.Hour)
	n.daemon.serveNotes(t.Context())
	n.nothingLeft()
	if notes := n.notes(); len(notes) > 0 {
		t.Errorf("notes %v", notes)
	}
}

// advance lets time pass for everything that waits.
func (p *pace) advance(by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, a := range p.tries {
		a.next = a.next.Add(-by)
		p.tries[name] = a
	}
}

func TestDelServesItsNoteToo(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.note("p")
	n.ok("DEL", "p")
	if notes := n.notes(); len(notes) > 0 {
		t.Errorf("notes %v", notes)
	}
}

func TestDamagedNoteIsServedByItsName(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p", "q")
	n.cluster.takeEvents()
	n.note("p")
	if err := os.Truncate(filepath.Join(n.dir, "notes", n.notes()[0]), 20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "notes", "rubbish"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		n.daemon.serveNotes(t.Context())
	}
	if diff := cmp.Diff([]string{"q/eth0", "q/net1"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"rubbish"}, n.notes()); diff != "" {
		t.Error(diff)
	}
	if events := n.cluster.takeEvents(); len(events) != 2 {
		t.Errorf("events %q, want one about each", events)
	}
}

// A container from before Braid, or one whose ADD never came, has no records.
func TestNoteOfAContainerWithoutRecords(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.links["old/eth0"] = true })
	n.note("old")
	n.daemon.serveNotes(t.Context())
	n.nothingLeft()
	if notes := n.notes(); len(notes) > 0 {
		t.Errorf("notes %v", notes)
	}
}
