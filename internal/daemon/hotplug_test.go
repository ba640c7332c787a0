package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
	"braid.dev/braid/internal/store"
)

// follow runs the loop that follows the pods, until the daemon is killed.
func (n *node) follow() {
	n.t.Helper()
	n.daemon.plugs.quiet, n.daemon.plugs.first, n.daemon.plugs.absent = 0, time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.daemon.hotplugLoop(ctx) }()
	stop := n.stop
	n.stop = func() {
		stop() // as braidd does it: requests first
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	}
}

// newFollowed is a node whose pods are followed, with a hand on the host and a
// network vlan.
func newFollowed(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	n := newNode(t, change...)
	n.define("vlan", vlanConf)
	n.follow()
	n.leaveHand()
	return n
}

// has waits until the kernel has these links and no others.
func (n *node) has(links ...string) {
	n.t.Helper()
	slices.Sort(links)
	var have []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if have = n.kernel.left(); slices.Equal(have, links) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("links (-want +have):\n%s\nevents %q", cmp.Diff(links, have), n.cluster.takeEvents())
		}
	}
}

// toldOf waits for an event that has all of these words, and returns those before
// it.
func (n *node) toldOf(words ...string) (before []string) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		for _, e := range n.cluster.takeEvents() {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e, w) }) {
				return before
			}
			before = append(before, e)
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("no event has the words %q; there were %q", words, before)
		}
	}
}

// statusHas waits until the network status has these networks.
func (n *node) statusHas(id string, want ...string) {
	n.t.Helper()
	var text string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		n.set(func(c *cluster, _ *kernel) { text = c.statuses["default/"+id] })
		var entries []status.Entry
		var have []string
		if json.Unmarshal([]byte(text), &entries) == nil {
			for _, e := range entries {
				have = append(have, e.Name)
			}
		}
		if slices.Equal(have, want) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("network status %s, want %v", text, want)
		}
	}
}

func TestEditedAnnotationChangesARunningPod(t *testing.T) {
	n := newFollowed(t)
	n.define("other", vlanConf)
	n.pod("p", "vlan")
	first := n.ok("ADD", "p")
	n.cluster.takeEvents()

	n.pod("p", "vlan,other@data")
	n.has("p/eth0", "p/net1", "p/data")
	n.toldOf("p: Add data [10.1.0.7/24] from default/other", "10.1.0.0/24 is reached through eth0 too")
	n.statusHas("p", "cbr0", "default/vlan", "default/other")
	n.ok("CHECK", "p")
	if again := n.ok("ADD", "p"); string(again) != string(first) {
		t.Errorf("the repeated ADD says %s", again)
	}

	n.cluster.takeEvents()
	n.pod("p", "other@data,other")
	n.has("p/eth0", "p/net1", "p/data")
	if before := n.toldOf("p: Add net1 ", "from default/other"); !slices.Equal(before, []string{"p: Remove net1 from default/vlan; no longer asked for"}) {
		t.Errorf("events before: %q", before)
	}
	n.statusHas("p", "cbr0", "default/other", "default/other")
	n.ok("CHECK", "p")
	if again := n.ok("ADD", "p"); string(again) != string(first) {
		t.Errorf("the repeated ADD says %s", again)
	}

	// What is gone takes no definition, and what is left is the default network.
	n.set(func(c *cluster, _ *kernel) { clear(c.definitions) })
	n.pod("p", "")
	n.has("p/eth0")
	n.statusHas("p", "cbr0")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestDeletedPodReleasesWhatWasPlugged(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "")
	n.ok("ADD", "p")
	n.pod("p", "vlan,vlan")
	n.has("p/eth0", "p/net1", "p/net2")
	n.statusHas("p", "cbr0", "default/vlan", "default/vlan")
	n.kill()
	n.start()
	n.outage(true)
	n.set(func(c *cluster, _ *kernel) { clear(c.pods); clear(c.definitions) })
	n.kernel.takeDetached()
	n.ok("DEL", "p")
	if diff := cmp.Diff([]string{"p/net2", "p/net1", "p/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Error(diff)
	}
	n.nothingLeft()
}

func TestEditThatCannotBeMadeTrueChangesNothing(t *testing.T) {
	n := newFollowed(t, func(c *Config) { c.Isolation = plan.Isolation{On: true} })
	n.define("crash", `{"cniVersion":"1.0.0","type":"crash"}`)
	n.set(func(c *cluster, _ *kernel) { c.definitions["elsewhere/vlan"] = vlanConf })
	n.pod("p", "vlan")
	n.ok("ADD", "p")
	n.cluster.takeEvents()
	for name, c := range map[string]struct{ networks, words string }{
		"null":              {`[null]`, "element 1"},
		"object":            {`{}`, "annotation"},
		"nothing named":     {`[{}]`, "name: missing"},
		"comma":             {`vlan,`, "comma too many"},
		"long":              {strings.Repeat("vlan,", 300<<10/5), "too long"},
		"many":              {strings.Repeat("vlan,", 300) + "vlan", "too many"},
		"foreign namespace": {`vlan,elsewhere/vlan`, "namespace"},
		"missing network":   {`vlan,nosuch`, "no NetworkAttachmentDefinition"},
		"capability":        {`[{"name":"vlan"},{"name":"vlan","ips":["10.1.0.8"]}]`, "ips"},
		"default route":     {`[{"name":"vlan"},{"name":"vlan","default-route":["10.1.0.1"]}]`, "default route of a pod that runs"},
		"driver panics":     {`vlan,crash`, "panic: driver bug"},
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			n.pod("p", c.networks)
			if before := n.toldOf("p: FAILED the networks of the running pod are not changed yet", c.words); len(before) > 0 {
				t.Errorf("events before: %q", before)
			}
			n.has("p/eth0", "p/net1")
			n.ok("CHECK", "p")
		})
	}
	n.t = t
	n.pod("p", "vlan,vlan")
	n.has("p/eth0", "p/net1", "p/net2")
}

func TestFailureIsToldOnceAndTriedAgain(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "")
	n.ok("ADD", "p")
	n.set(func(_ *cluster, k *kernel) { k.broken = errors.New("no such parent") })
	n.cluster.takeEvents()
	n.pod("p", "vlan")
	n.toldOf("p: FAILED", "net1", "no such parent")
	n.has("p/eth0")
	// It fails again and again, and is silent about it.
	tries := 0
	eventually(t, "more tries", func() bool {
		n.set(func(_ *cluster, k *kernel) { tries = k.attaches })
		return tries > 4
	})
	if more := n.cluster.takeEvents(); len(more) > 0 {
		t.Errorf("told again: %q", more)
	}
	n.set(func(_ *cluster, k *kernel) { k.broken = nil })
	n.has("p/eth0", "p/net1")
	n.toldOf("p: Add net1")
}

func TestNetworkThatComesLateIsAttached(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "")
	n.ok("ADD", "p")
	n.pod("p", "late")
	n.toldOf("p: FAILED", `no NetworkAttachmentDefinition "late"`)
	n.define("late", vlanConf)
	n.has("p/eth0", "p/net1")
}

func TestEditWhileNobodyLooksIsFoundAfterwards(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "vlan")
	n.pod("q", "vlan")
	n.ok("ADD", "p")
	n.ok("ADD", "q")
	n.kill()
	n.pod("p", "vlan@data")
	n.start()
	n.follow()
	n.leaveHand()
	n.has("p/eth0", "p/data", "q/eth0", "q/net1")

	// Memory that is behind the API is not acted on.
	n.set(func(c *cluster, _ *kernel) { c.away = errors.New("connection refused") })
	n.pod("p", "")
	n.pod("q", "vlan,vlan")
	n.ok("ADD", "q") // whatever the loop does meanwhile
	n.has("p/eth0", "p/data", "q/eth0", "q/net1", "q/net2")
	n.set(func(c *cluster, _ *kernel) { c.away = nil })
	n.has("p/eth0", "q/eth0", "q/net1", "q/net2")
}

// A daemon that was killed in the middle of changes leaves an intent that was
// plugged, and an attachment that is leaving.
func TestChangesThatWereCutOffAreFinished(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.pod("p", "vlan,vlan@data")
	n.ok("ADD", "p")
	records, err := n.store.All()
	if err != nil {
		t.Fatal(err)
	}
	begun := records[1]
	begun.Index, begun.Plugged, begun.Result = 3, true, nil
	begun.Attachment.IfName, begun.Attachment.Asked = "half", &plan.Selection{Namespace: "default", Name: "vlan", IfName: "half"}
	leaving := records[2]
	leaving.Leaving = true
	if err := n.store.Begin(t.Context(), []store.Record{begun, leaving}); err != nil {
		t.Fatal(err)
	}
	n.set(func(_ *cluster, k *kernel) { k.links["p/half"] = true; delete(k.links, "p/data") })
	n.ok("CHECK", "p") // none of it is the pod's
	n.kill()
	n.cluster.takeEvents()
	n.pod("p", "vlan,vlan@half")
	n.start()
	n.leaveHand() // or else that it is waited for is told first
	n.follow()
	if before := n.toldOf("p: Add half "); !slices.Equal(before, []string{"p: Remove data from default/vlan; no longer asked for"}) {
		t.Errorf("events before: %q", before)
	}
	n.has("p/eth0", "p/net1", "p/half")
	all, err := n.store.All()
	if err != nil || len(all) != 3 || slices.ContainsFunc(all, attach.Unfinished) {
		t.Errorf("records %+v, %v", all, err)
	}
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestEditsInQuickSuccessionEndWithTheLast(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "")
	n.ok("ADD", "p")
	for i := range 60 {
		n.pod("p", []string{"vlan", "vlan@data", "vlan,vlan@data,vlan", ""}[i%4])
	}
	n.pod("p", "vlan@last")
	n.has("p/eth0", "p/last")
	n.statusHas("p", "cbr0", "default/vlan")
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestEditDuringTheAddIsMadeTrueAfterIt(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "vlan")
	hold := make(chan struct{})
	n.set(func(_ *cluster, k *kernel) { k.hold["p"], k.arrived = hold, make(chan string, 10) })
	added := n.begin("ADD", "p")
	<-n.kernel.arrived
	n.pod("p", "vlan@data")
	close(hold)
	if reply := <-added; reply.Error != nil {
		t.Fatal(reply.Error)
	}
	n.has("p/eth0", "p/data")
}

func TestRequestOfTheRuntimeGoesBeforeTheRestOfAChange(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "")
	n.ok("ADD", "p")
	hold := make(chan struct{})
	n.set(func(_ *cluster, k *kernel) { k.hold["p"], k.arrived = hold, make(chan string, 10) })
	n.pod("p", "vlan,vlan,vlan")
	<-n.kernel.arrived
	deleted := n.begin("DEL", "p")
	n.inLine("p", 1)
	close(hold)
	if reply := <-deleted; reply.Error != nil {
		t.Fatal(reply.Error)
	}
	if gone := n.kernel.takeDetached(); len(gone) != 2 {
		t.Errorf("taken down: %v, want net1 and eth0", gone)
	}
	n.nothingLeft()
}

func TestChangeWaitsForAHand(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.follow()
	n.pod("p", "")
	n.ok("ADD", "p")
	n.pod("p", "vlan")
	n.toldOf("p: FAILED", "no shim has come by yet")
	n.leaveHand()
	n.has("p/eth0", "p/net1")
}

func TestStatusOfAChangeFollowsWhenTheAPIServerIsBack(t *testing.T) {
	n := newFollowed(t)
	n.pod("p", "vlan")
	n.ok("ADD", "p")
	n.set(func(c *cluster, _ *kernel) { c.statusErr = fmt.Errorf("%w: connection refused", ErrAway) })
	n.pod("p", "vlan,vlan")
	n.toldOf("p: Add net2")
	n.has("p/eth0", "p/net1", "p/net2")
	eventually(t, "the end of the change", func() bool { return !n.daemon.queue.busy("p") })
	n.set(func(c *cluster, _ *kernel) { c.statusErr = nil })
	n.converged()
	n.statusHas("p", "cbr0", "default/vlan", "default/vlan")
}

func TestPodThatCannotBeChangedIsToldWhy(t *testing.T) {
	n := newFollowed(t)
	n.set(func(c *cluster, _ *kernel) {
		c.lives = map[string]Life{"host": {HostNetwork: true}, "before": {Running: true}}
	})
	n.pod("p", "")
	n.ok("ADD", "p")
	n.pod("p", "vlan")
	n.toldOf("p: Add net1") // the pods that were there at the start have been seen
	n.pod("quiet", "")
	n.pod("waits", "vlan")
	n.pod("host", "vlan")
	n.toldOf("host: FAILED", "hostNetwork")
	n.pod("before", "vlan")
	n.toldOf("before: FAILED", "started without Braid")
	n.ok("ADD", "waits")
	n.toldOf("waits: Add net1")
	n.has("waits/eth0", "waits/net1", "p/eth0", "p/net1")
	n.pod("host", "vlan,vlan") // asked for anew, told anew
	n.toldOf("host: FAILED", "hostNetwork")
}

// Pods of before Braid have networks that somebody else gave them. That they
// cannot be changed is told to who changes them.
func TestPodFromBeforeBraidIsToldNothingUntilItIsEdited(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.pod("before", "vlan")
	n.set(func(c *cluster, _ *kernel) { c.lives = map[string]Life{"before": {Running: true}} })
	n.follow()
	n.leaveHand()
	n.pod("p", "")
	n.ok("ADD", "p")
	for i := range 5 { // rounds of the loop
		n.pod("p", fmt.Sprintf("vlan@data%d", i))
		if told := n.toldOf(fmt.Sprintf("p: Add data%d", i)); strings.Contains(strings.Join(told, "\n"), "before:") {
			t.Fatalf("events %q", told)
		}
	}
	n.pod("before", "vlan,vlan")
	n.toldOf("before: FAILED", "started without Braid")
}

func TestFewPodsAreChangedAtOnce(t *testing.T) {
	n := newFollowed(t)
	const pods = 3 * plugWorkers
	hold := make(chan struct{})
	var want []string
	for i := range pods {
		id := fmt.Sprintf("p%d", i)
		n.pod(id, "")
		n.ok("ADD", id)
		want = append(want, id+"/eth0", id+"/net1")
	}
	n.set(func(_ *cluster, k *kernel) {
		k.arrived = make(chan string, pods)
		for i := range pods {
			k.hold[fmt.Sprintf("p%d", i)] = hold
		}
	})
	for i := range pods {
		n.pod(fmt.Sprintf("p%d", i), "vlan")
	}
	for range plugWorkers {
		<-n.kernel.arrived
	}
	close(hold)
	n.has(want...)
	n.set(func(_ *cluster, k *kernel) {
		if k.most != plugWorkers {
			t.Errorf("%d pods were changed at once, want %d", k.most, plugWorkers)
		}
	})
}
