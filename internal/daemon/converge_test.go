package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

const vlanConf = `{"cniVersion":"1.0.0","type":"fake"}`

// outage takes the API server away, and back.
func (n *node) outage(away bool) {
	n.set(func(c *cluster, _ *kernel) {
		c.away, c.statusErr = nil, nil
		if away {
			c.away = errors.New("connection refused")
			c.statusErr = fmt.Errorf("%w: connection refused", ErrAway)
		}
	})
}

// told is the ADD of a runtime that passes the pod's annotations on.
func (n *node) told(id, networks string) wire.Request {
	r := n.request("ADD", id)
	annotations, err := json.Marshal(map[string]string{plan.NetworksAnnotation: networks, "config.seen": "today"})
	if err != nil {
		n.t.Fatal(err)
	}
	r.Stdin = []byte(`{"cniVersion":"1.0.0","name":"braid","type":"braid-cni","runtimeConfig":{"` + plan.PodAnnotations + `":` + string(annotations) + `}}`)
	return r
}

// statusIs returns the annotation of a pod, and makes it what memory has.
func (n *node) statusIs(id string) string {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	text, ok := n.cluster.statuses["default/"+id]
	if pod, known := n.cluster.pods["default/"+id]; known && ok {
		pod.Annotations = maps.Clone(pod.Annotations) // the daemon may be reading it
		pod.Annotations[status.Annotation] = text
		n.cluster.pods["default/"+id] = pod
	}
	return text
}

func (n *node) writes() []string {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	w := n.cluster.written
	n.cluster.written = nil
	return w
}

// converged runs one round, and fails if it leaves something.
func (n *node) converged() {
	n.t.Helper()
	if !n.daemon.converge(n.t.Context(), refusals{}) {
		n.t.Error("something is still missing")
	}
}

func TestPodStartsWhileTheAPIServerIsAway(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.pod("known", "vlan")
	n.outage(true)
	n.ok("ADD", "known")
	if reply := n.ask(n.told("told", "vlan@data")); reply.Error != nil {
		t.Fatal(reply.Error)
	}
	// Without annotations nobody can say which networks it has.
	n.refused(n.do("ADD", "unknown"), 11, "default/unknown")
	if have := n.kernel.left(); !slices.Equal(have, []string{"known/eth0", "known/net1", "told/data", "told/eth0"}) {
		t.Errorf("links %v", have)
	}
	if w := n.writes(); len(w) > 0 {
		t.Errorf("written: %v", w)
	}
	if n.daemon.converge(t.Context(), refusals{}) {
		t.Error("nothing is missing while nobody can know")
	}

	// The next daemon knows from the records what is missing.
	n.kill()
	n.start()
	n.outage(false)
	n.pod("told", "vlan@data")
	n.converged()
	for id, names := range map[string][]string{"known": {"cbr0", "default/vlan"}, "told": {"cbr0", "default/vlan"}} {
		var entries []status.Entry
		if err := json.Unmarshal([]byte(n.statusIs(id)), &entries); err != nil || len(entries) != 2 ||
			entries[0].Name != names[0] || entries[1].Name != names[1] {
			t.Errorf("%s: status %s, %v", id, n.statusIs(id), err)
		}
	}
	n.writes()
	n.converged()
	if w := n.writes(); len(w) > 0 {
		t.Errorf("written again: %v", w)
	}
	n.outage(true)
	n.ok("DEL", "known")
	n.ok("DEL", "told")
	n.nothingLeft()
}

// TestRecordsHoldNoAnnotationsOfTheRuntime: they may be long, they change, and
// the default network has not asked for them.
func TestRecordsHoldNoAnnotationsOfTheRuntime(t *testing.T) {
	for declared, conf := range map[bool]string{
		false: `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"fake"},{"type":"fake2","capabilities":{"portMappings":true}}]}`,
		true:  `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"fake"},{"type":"fake2","capabilities":{"` + plan.PodAnnotations + `":true}}]}`,
	} {
		n := newNode(t, func(c *Config) { c.Networks = networks{[]plan.Network{conflist(t, conf)}} })
		n.pod("p", "")
		if reply := n.ask(n.told("p", "")); reply.Error != nil {
			t.Fatal(reply.Error)
		}
		records, err := n.store.All()
		if err != nil || len(records) != 1 {
			t.Fatalf("%+v, %v", records, err)
		}
		if _, has := records[0].Attachment.RuntimeConfig[plan.PodAnnotations]; has != declared {
			t.Errorf("declared %v: the record holds the annotations: %v", declared, has)
		}
	}
}

func TestStatusOfPodsFollowsTheirRecords(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	annotate := func(id, text string) {
		n.set(func(c *cluster, _ *kernel) {
			if text == "" {
				delete(c.pods["default/"+id].Annotations, status.Annotation)
			} else {
				c.pods["default/"+id].Annotations[status.Annotation] = text
			}
		})
	}
	for id, networks := range map[string]string{"plain": "", "stale": "", "removed": "vlan", "changed": "vlan", "right": "vlan", "gone": "vlan", "new": "vlan"} {
		n.pod(id, networks)
		n.ok("ADD", id)
		n.statusIs(id)
	}
	annotate("removed", "")
	annotate("changed", `[{"name":"what somebody made of it"}]`)
	annotate("stale", `[{"name":"of a sandbox before, by somebody else"}]`)
	n.set(func(c *cluster, _ *kernel) {
		delete(c.pods, "default/gone")
		again := c.pods["default/new"] // a pod of the name, but another one
		again.UID = "another"
		c.pods["default/new"] = again
	})
	n.writes()
	// A pod that is not known may be new to the node: that is looked at again.
	if n.daemon.converge(t.Context(), refusals{}) {
		t.Error("pods that are not known yet are not waited for")
	}
	w := n.writes()
	slices.Sort(w)
	if !slices.Equal(w, []string{"default/changed", "default/removed", "default/stale"}) {
		t.Errorf("written: %v", w)
	}
	for _, id := range []string{"changed", "removed", "stale"} {
		if text := n.statusIs(id); !strings.Contains(text, `"cbr0"`) || strings.Contains(text, "vlan") != (id != "stale") {
			t.Errorf("%s: %s", id, text)
		}
	}
}

func TestStatusOfABusyPodIsLeftToItsRequest(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.pod("p", "vlan")
	n.ok("ADD", "p")
	n.writes() // and memory has not heard of it
	leave, err := n.daemon.queue.enter(t.Context(), "p")
	if err != nil {
		t.Fatal(err)
	}
	if n.daemon.converge(t.Context(), refusals{}) {
		t.Error("it counts as compared, and is not looked at again for a minute")
	}
	if w := n.writes(); len(w) > 0 {
		t.Errorf("written: %v", w)
	}
	leave()
	n.converged()
	if w := n.writes(); len(w) != 1 {
		t.Errorf("written: %v", w)
	}
}

func TestOutageEndsARoundAndARefusalDoesNot(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.outage(true)
	for i := range 5 {
		id := fmt.Sprint("p", i)
		n.pod(id, "vlan")
		n.ok("ADD", id)
	}
	tries := func(err error, refused refusals) int {
		n.set(func(c *cluster, _ *kernel) { c.away, c.statusErr, c.tries = nil, err, 0 })
		n.daemon.converge(t.Context(), refused)
		n.cluster.mu.Lock()
		defer n.cluster.mu.Unlock()
		return n.cluster.tries
	}
	if got := tries(ErrAway, refusals{}); got != 1 {
		t.Errorf("an API server that is away was asked %d times", got)
	}
	refused := refusals{}
	if got := tries(errors.New("forbidden"), refused); got != 5 {
		t.Errorf("%d of 5 pods were tried", got)
	}
	if got := tries(errors.New("forbidden"), refused); got != 0 {
		t.Errorf("%d pods were tried at once again", got)
	}
	now := time.Now()
	sb := store.Sandbox{ContainerID: "p0", IfName: "eth0"}
	var waits []time.Duration
	for range 8 {
		waits = append(waits, refused[keyOf(sb)].pause)
		refused.add(sb, now)
	}
	if want := "[1m0s 2m0s 4m0s 8m0s 16m0s 32m0s 1h0m0s 1h0m0s]"; fmt.Sprint(waits) != want {
		t.Errorf("pauses %v, want %s", waits, want)
	}
	for i := range 5 {
		n.ok("DEL", fmt.Sprint("p", i))
	}
	tries(nil, refused)
	if len(refused) > 0 {
		t.Errorf("pods that are gone are remembered: %v", refused)
	}
}

func TestStatusIsThatOfThePodsLatestSandbox(t *testing.T) {
	at := time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)
	record := func(container string, minute int, pod string, complete bool) store.Record {
		r := store.Record{Sandbox: store.Sandbox{
			ContainerID: container, IfName: "eth0", Pod: plan.Pod{Name: pod, UID: "uid-" + pod}, Added: at.Add(time.Duration(minute) * time.Minute),
		}}
		if complete {
			r.Result = json.RawMessage(`{}`)
		}
		return r
	}
	second := record("c", 2, "p", true)
	second.Index = 1
	living := livingSandboxes([]store.Record{
		record("a", 1, "p", true), record("c", 2, "p", true), second, record("d", 0, "p", true),
		record("e", 1, "q", true), record("f", 2, "q", false), // its ADD is under way
		record("g", 1, "", true),  // no pod
		record("h", 1, "r", true), // one
	})
	var got []string
	for _, records := range living {
		got = append(got, fmt.Sprintf("%s %d", records[0].Sandbox.ContainerID, len(records)))
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"c 2", "h 1"}) {
		t.Errorf("got %v", got)
	}
}

// TestRecordsMakeTheSameStatusAsTheAdd: a difference would be written a minute
// after every ADD.
func TestRecordsMakeTheSameStatusAsTheAdd(t *testing.T) {
	results := []string{
		`{"cniVersion":"1.1.0"}`,
		`{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.7/24","interface":0}]}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"br0","mac":"02:00:00:00:00:02"},{"name":"eth0","mac":"02:00:00:00:00:01","mtu":1450,"sandbox":"/run/netns/x"},
			{"name":"eth1","sandbox":"/run/netns/x"}],
			"ips":[{"address":"10.1.0.7/24","gateway":"10.1.0.1","interface":1},{"address":"fd00::7/64","gateway":"fd00::1","interface":2},{"address":"10.9.0.1/32"}],
			"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"},{"dst":"10.0.0.0/8","gw":"10.1.0.1","mtu":1400,"priority":7}],
			"dns":{"nameservers":["10.1.0.1"],"domain":"x","search":["a","b"],"options":["ndots:5"]}}`,
	}
	claims := []*plan.RouteClaim{nil, {}, {Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00::9")}}}
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir+"/db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, text := range results {
		for j, claim := range claims {
			id := fmt.Sprintf("c%d-%d", i, j)
			result := new(current.Result)
			if err := json.Unmarshal([]byte(text), result); err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
			a := plan.Attachment{Network: "default/vlan", IfName: "eth0", Default: j == 0, Claim: claim, Reasons: []string{"because"}}
			info := json.RawMessage(`{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:00.1"}}`)
			added, err := status.Text([]status.Outcome{{Attachment: a, Result: result, Notes: []string{"for the event"}, DeviceInfo: info}})
			if err != nil {
				t.Fatal(err)
			}
			r := store.Record{Sandbox: store.Sandbox{ContainerID: id, IfName: "eth0"}, Attachment: a}
			if err := s.Begin(t.Context(), []store.Record{r}); err != nil {
				t.Fatal(err)
			}
			r.Result, r.DeviceInfo = raw, info
			if err := s.Attached(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			records, err := s.Sandbox(id, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			if recorded, n, err := statusOf(records); err != nil || n != 1 || recorded != added {
				t.Errorf("from the record:\n%s\nfrom the ADD:\n%s\n%d, %v", recorded, added, n, err)
			}
		}
	}
}

func TestMissedStatusIsWrittenSoonAndWithoutBeingAsked(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.pod("before", "vlan")
	n.outage(true)
	n.ok("ADD", "before")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.daemon.convergeLoop(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	arrives := func(id string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); n.statusIs(id) == ""; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the status of %s is not written", id)
			}
		}
	}
	n.outage(false)
	arrives("before")
	// The loop sleeps now; a write that fails wakes it.
	n.pod("after", "vlan")
	n.set(func(c *cluster, _ *kernel) { c.statusErr = ErrAway })
	n.ok("ADD", "after")
	n.outage(false)
	arrives("after")
}
