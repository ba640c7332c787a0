package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

func TestOrphansAreThoseThatAreProvenToBe(t *testing.T) {
	now := time.Now()
	ids := map[string]netns.ID{"/a": {Dev: 1, Ino: 1}, "/reused": {Dev: 1, Ino: 2}, "/unknown": {}}
	sb := func(id, path string, ino uint64) sandboxState {
		return sandboxState{Sandbox: store.Sandbox{
			ContainerID: id, IfName: "eth0", NetNS: path, NSID: netns.ID{Dev: 1, Ino: ino}, Boot: "now", Added: now.Add(-time.Hour),
		}}
	}
	interrupted := func(s sandboxState, ago time.Duration) sandboxState {
		s.interrupted, s.Added = true, now.Add(-ago)
		return s
	}
	marked := func(s sandboxState) sandboxState { s.marks = []string{"mark"}; return s }
	earlier := func(s sandboxState) sandboxState { s.Boot = "before"; return s }
	for name, c := range map[string]struct {
		s    sandboxState
		e    evidence
		want string
	}{
		"alive":                          {sb("a", "/a", 1), evidence{sight: sight{spaces: ids}}, ""},
		"gone":                           {sb("b", "/b", 1), evidence{sight: sight{spaces: ids}}, "gone"},
		"gone, but its veth is there":    {marked(sb("b", "/b", 1)), evidence{sight: sight{spaces: ids, ends: map[string]bool{"mark": true}}}, "doubt"},
		"gone with its veth":             {marked(sb("b", "/b", 1)), evidence{sight: sight{spaces: ids, ends: map[string]bool{"other": true}}}, "gone"},
		"another by now":                 {sb("c", "/reused", 1), evidence{sight: sight{spaces: ids}}, "gone"},
		"could not be found out":         {sb("c", "/unknown", 1), evidence{sight: sight{spaces: ids}}, ""},
		"nobody looked":                  {sb("b", "/b", 1), evidence{}, ""},
		"without a path":                 {sb("d", "", 0), evidence{sight: sight{spaces: ids}}, ""},
		"of an earlier boot":             {earlier(sb("a", "/a", 1)), evidence{sight: sight{boot: "now"}}, "gone"},
		"of this boot":                   {sb("a", "/a", 1), evidence{sight: sight{boot: "now"}}, ""},
		"of a boot that nobody noted":    {sandboxState{}, evidence{sight: sight{boot: "now"}}, ""},
		"just not named":                 {sb("a", "/a", 1), evidence{running: map[string]bool{"x": true}}, ""},
		"not named twice":                {sb("a", "/a", 1), evidence{running: map[string]bool{"x": true}, suspects: map[string]bool{"a/eth0": true}}, "runtime"},
		"named again":                    {sb("a", "/a", 1), evidence{running: map[string]bool{"a": true}, suspects: map[string]bool{"a/eth0": true}}, ""},
		"the runtime was not asked":      {sb("a", "/a", 1), evidence{suspects: map[string]bool{"a/eth0": true}}, ""},
		"interrupted a moment ago":       {interrupted(sb("a", "/a", 1), time.Minute), evidence{sight: sight{spaces: ids}}, ""},
		"interrupted, nobody came":       {interrupted(sb("a", "/a", 1), 2*interruptedAfter), evidence{sight: sight{spaces: ids}}, "interrupted"},
		"interrupted, namespace is gone": {interrupted(sb("b", "/b", 1), 0), evidence{sight: sight{spaces: ids}}, "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			c.e.now = now
			found, doubt := orphans([]sandboxState{c.s}, c.e)
			if doubt != (c.want == "doubt") {
				t.Errorf("in doubt: %t", doubt)
			}
			c.want = strings.TrimPrefix(c.want, "doubt")
			switch {
			case c.want == "" && len(found) > 0:
				t.Errorf("taken for an orphan: %s", found[0].why)
			case c.want != "" && (len(found) != 1 || !strings.Contains(found[0].why, c.want)):
				t.Errorf("found %+v, want one because of %q", found, c.want)
			}
		})
	}
}

func TestOrphansAreReleasedAndTheLivingAreNot(t *testing.T) {
	n := newNode(t)
	n.space("dead", "alive", "reused")
	n.podWithVLAN("dead", "alive", "reused")
	n.unspace("dead")
	// The path leads to another namespace by now.
	n.unspace("reused")
	if err := os.Symlink("/proc/self/ns/net", n.spaces["reused"]); err != nil {
		t.Fatal(err)
	}
	n.run()
	n.leaveHand()
	n.mustGo("alive/eth0", "alive/net1")
	n.ok("CHECK", "alive")
	n.set(func(c *cluster, _ *kernel) { c.apiErr = errors.New("no API server is needed for it") })
}

func TestOrphansOfAnEarlierBootNeedNoHand(t *testing.T) {
	n := newNode(t, func(c *Config) { c.BootID = "before" })
	n.podWithVLAN("p", "q")
	n.kill()
	n.config.BootID = "after"
	n.start()
	n.daemon.reconcile(t.Context())
	n.nothingLeft()
}

func TestContainerWithARequestUnderWayIsNoOrphan(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.pod("p", "")
	n.space("p")
	hold := make(chan struct{})
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = hold })
	added := n.begin("ADD", "p")
	<-n.kernel.arrived
	n.unspace("p") // nobody sees it
	n.leaveHand()
	n.daemon.releaseOrphans(t.Context())
	if left := n.kernel.left(); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	close(hold)
	if reply := <-added; reply.Error != nil {
		t.Error(reply.Error)
	}
}

func TestOrphanThatCannotBeReleasedIsTriedAgainLater(t *testing.T) {
	n := newNode(t, func(c *Config) { c.BootID = "before" })
	n.podWithVLAN("p")
	n.kill()
	n.config.BootID = "after"
	n.start()
	n.cluster.takeEvents()
	n.daemon.Attacher.Drivers["fake"] = stuck{n.kernel}
	for range 3 {
		n.daemon.releaseOrphans(t.Context())
	}
	if failures := strings.Count(n.log.String(), "could not release"); failures != 1 {
		t.Errorf("tried %d times without a pause", failures)
	}
	n.daemon.pace.advance(releaseFirst)
	n.daemon.releaseOrphans(t.Context())
	if events := n.cluster.takeEvents(); len(events) != 1 || !strings.Contains(events[0], "2 times") {
		t.Errorf("events %q", events)
	}
	n.daemon.Attacher.Drivers["fake"] = n.kernel
	n.daemon.pace.advance(releaseLast)
	n.daemon.releaseOrphans(t.Context())
	n.nothingLeft()
}

func TestPauseDoublesUpToItsEnd(t *testing.T) {
	var p pace
	now := time.Now()
	var pauses []time.Duration
	for range 7 {
		p.failed("x", now)
		pauses = append(pauses, p.tries["x"].next.Sub(now))
	}
	want := []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 8 * time.Minute, 8 * time.Minute}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Error(diff)
	}
	if p.due("x", now.Add(time.Minute)) || !p.due("x", now.Add(time.Hour)) || !p.due("y", now) {
		t.Error("due at the wrong time")
	}
	p.done("x")
	if !p.due("x", now) {
		t.Error("what succeeded waits")
	}
}

func TestContainersThatTheRuntimeDoesNotKnowAreReleasedTheSecondTime(t *testing.T) {
	var running []string
	var failure error
	n := newNode(t, func(c *Config) {
		c.Containers = func(context.Context) ([]string, error) { return running, failure }
	})
	n.podWithVLAN("known", "unknown")
	n.leaveHand()
	all := n.kernel.left()
	still := func(why string, want ...string) {
		t.Helper()
		n.daemon.releaseOrphans(t.Context())
		if diff := cmp.Diff(want, n.kernel.left()); diff != "" {
			t.Fatalf("%s: %s", why, diff)
		}
	}
	for range 2 {
		still("an empty list", all...)
		failure = errors.New("connection refused")
		still("a list that failed", all...)
		failure = nil
	}
	running = []string{"known"}
	still("not named once", all...)
	still("not named twice", "known/eth0", "known/net1")
}

// An ADD that was cut off and that nobody repeats or deletes.
func TestInterruptedAddIsReleasedWhenNobodyComesBackForIt(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.leaveHand()
	begin := func(id string, ago time.Duration, change func(*store.Record)) {
		t.Helper()
		sb := n.sandbox(id)
		sb.Added = time.Now().Add(-ago)
		at := plan.Attachment{IfName: "eth0", Config: conflist(t, `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"fake"}]}`)}
		r := store.Record{Sandbox: sb, Attachment: at}
		change(&r)
		if err := n.store.Begin(t.Context(), []store.Record{r}); err != nil {
			t.Fatal(err)
		}
		n.set(func(_ *cluster, k *kernel) { k.links[id+"/eth0"] = true })
	}
	begin("old", time.Hour, func(*store.Record) {})
	begin("young", time.Second, func(*store.Record) {})
	// What a change of a pod that runs left is not for the runtime to repeat.
	begin("plugged", time.Hour, func(r *store.Record) { r.Plugged = true })
	n.daemon.releaseOrphans(t.Context())
	if diff := cmp.Diff([]string{"p/eth0", "p/net1", "plugged/eth0", "young/eth0"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
}

func TestReconcileSurvivesAPanicOfADriver(t *testing.T) {
	n := newNode(t, func(c *Config) { c.BootID = "before" })
	n.podWithVLAN("p")
	n.kill()
	n.config.BootID = "after"
	n.start()
	n.daemon.Attacher.Drivers["fake"] = panics{n.kernel}
	n.daemon.reconcile(t.Context())
	if !strings.Contains(n.log.String(), "panic: driver bug") {
		t.Error("nothing was said of it")
	}
}

// BenchmarkReconcileOfAFullNode is what every minute costs with 110 pods that
// have two networks each, without the program on the host that looks.
func BenchmarkReconcileOfAFullNode(b *testing.B) {
	n := newNode(b)
	n.define("vlan", fakeVLAN)
	for i := range 110 {
		id := fmt.Sprint("p", i)
		n.pod(id, "vlan")
		n.ok("ADD", id)
	}
	n.leaveHand()
	for b.Loop() {
		n.daemon.reconcile(b.Context())
	}
}
