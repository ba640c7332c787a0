package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"braid.dev/braid/internal/store"
)

func statusLater(c *Config) { c.WaitForStatus = false }

// newUntold is a node with one pod, p, whose network status is to be written.
func newUntold(t *testing.T) *node {
	t.Helper()
	n := newNode(t, statusLater)
	n.define("vlan", vlanConf)
	n.pod("p", "vlan")
	n.ok("ADD", "p")
	return n
}

// tellNow writes what waits to be written.
func (n *node) tellNow() {
	n.t.Helper()
	for {
		select {
		case u := <-n.daemon.untold:
			n.daemon.tellUntold(n.t.Context(), u)
		default:
			return
		}
	}
}

func TestAddDoesNotWaitForAStatusThatIsWrittenLater(t *testing.T) {
	n := newUntold(t)
	if w := n.writes(); len(w) > 0 {
		t.Errorf("written before the ADD ended: %v", w)
	}
	if events := n.cluster.takeEvents(); len(events) != 0 {
		t.Errorf("told before the ADD ended: %v", events)
	}
	if waiting := n.daemon.Untold(); waiting != 1 {
		t.Errorf("%d wait", waiting)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.daemon.tellLoop(ctx) }()
	eventually(t, "the status", func() bool { return strings.Contains(n.statusIs("p"), "default/vlan") })
	var events []string
	eventually(t, "the events", func() bool {
		events = append(events, n.cluster.takeEvents()...)
		return len(events) == 2
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if waiting := n.daemon.Untold(); waiting != 0 {
		t.Errorf("%d still wait", waiting)
	}
	n.converged()
	if w := n.writes(); !slices.Equal(w, []string{"default/p"}) {
		t.Errorf("written: %v", w)
	}
	n.ok("DEL", "p")
	n.nothingLeft()
}

// TestDaemonThatEndsWritesWhatWaits: the next one may first have to be fetched.
func TestDaemonThatEndsWritesWhatWaits(t *testing.T) {
	n := newUntold(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.daemon.tellLoop(ctx); err != nil {
		t.Error(err)
	}
	if text := n.statusIs("p"); !strings.Contains(text, "default/vlan") {
		t.Errorf("status %q", text)
	}
	n.set(func(c *cluster, _ *kernel) { c.statusErr = ErrAway })
	n.ok("DEL", "p")
	n.ok("ADD", "p")
	if err := n.daemon.tellLoop(ctx); err != nil {
		t.Error(err)
	}
}

// TestPodWithoutExtraNetworksIsNotToldOfLater: it costs no API write this way
// either.
func TestPodWithoutExtraNetworksIsNotToldOfLater(t *testing.T) {
	n := newNode(t, statusLater)
	n.pod("p", "")
	n.ok("ADD", "p")
	n.tellNow()
	if w := n.writes(); len(w) > 0 {
		t.Errorf("written: %v", w)
	}
}

func TestSandboxThatIsGoneIsNotToldOfLater(t *testing.T) {
	n := newUntold(t)
	n.ok("DEL", "p")
	n.tellNow()
	if w := n.writes(); len(w) > 0 {
		t.Errorf("written: %v", w)
	}
}

// TestStatusThatIsWrittenLaterFollowsTheRecords: an edit of the annotation may
// be written first, and overtaken.
func TestStatusThatIsWrittenLaterFollowsTheRecords(t *testing.T) {
	n := newUntold(t)
	n.cluster.wrote = sync.OnceFunc(func() {
		if err := n.store.Remove(t.Context(), store.Key{ContainerID: "p", IfName: "eth0", Index: 1}); err != nil {
			t.Error(err)
		}
	})
	n.tellNow()
	if text := n.statusIs("p"); !strings.Contains(text, "cbr0") || strings.Contains(text, "vlan") {
		t.Errorf("status %s", text)
	}
	if w := n.writes(); len(w) != 2 {
		t.Errorf("written: %v", w)
	}
}

// TestRefusedStatusIsWrittenLaterAgain: nobody waits who could be refused.
func TestRefusedStatusIsWrittenLaterAgain(t *testing.T) {
	for _, refusal := range []error{errors.New("forbidden"), ErrAway} {
		n := newNode(t, statusLater)
		n.define("vlan", vlanConf)
		n.pod("p", "vlan")
		n.set(func(c *cluster, _ *kernel) { c.statusErr = refusal })
		n.ok("ADD", "p")
		n.tellNow()
		if len(n.daemon.late) != 1 {
			t.Errorf("%v: nobody was woken", refusal)
		}
		n.outage(false)
		n.converged()
		if text := n.statusIs("p"); !strings.Contains(text, "default/vlan") {
			t.Errorf("%v: status %s", refusal, text)
		}
	}
}

// TestStatusThatADaemonLeavesIsWrittenByTheNext: it was killed right after the
// ADD.
func TestStatusThatADaemonLeavesIsWrittenByTheNext(t *testing.T) {
	n := newUntold(t)
	n.kill()
	n.start()
	n.converged()
	if text := n.statusIs("p"); !strings.Contains(text, "default/vlan") {
		t.Errorf("status %s", text)
	}
}

func TestTooManyStatusesForLaterAreLeftToTheComparison(t *testing.T) {
	n := newNode(t, statusLater)
	n.define("vlan", vlanConf)
	n.pod("p", "vlan")
	n.daemon.untold = nil // no room
	n.ok("ADD", "p")
	if len(n.daemon.late) != 1 {
		t.Error("nobody was woken")
	}
	n.converged()
	if text := n.statusIs("p"); !strings.Contains(text, "default/vlan") {
		t.Errorf("status %s", text)
	}
}

// TestBurstIsToldOfWhenItIsOver or, if it does not end, after a while.
func TestBurstIsToldOfWhenItIsOver(t *testing.T) {
	n := newNode(t, statusLater)
	for range 3 {
		n.daemon.tellLater(untold{containerID: "c"})
	}
	if burst := n.daemon.nextUntold(t.Context()); len(burst) != 3 {
		t.Errorf("%d of 3", len(burst))
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			n.daemon.tellLater(untold{containerID: "c"})
			sleep(ctx, tellQuiet/10)
		}
	}()
	if burst := n.daemon.nextUntold(t.Context()); len(burst) < 2 {
		t.Errorf("a burst of %d", len(burst))
	}
	cancel()
	<-ended
	for range 3 {
		n.daemon.tellLater(untold{containerID: "c"})
	}
	if burst := n.daemon.nextUntold(ctx); len(burst) < 3 || len(n.daemon.untold) > 0 {
		t.Errorf("at the end: %d, and %d are left", len(burst), len(n.daemon.untold))
	}
}
