package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
	"braid.dev/braid/internal/wire"
)

func (n *node) define(name, conf string) {
	n.set(func(c *cluster, _ *kernel) { c.definitions["default/"+name] = conf })
}

func TestPodGetsItsNetworksAndLosesThem(t *testing.T) {
	n := newNode(t)
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "vlan,vlan@data")
	var result struct {
		CNIVersion string
		Interfaces []struct{ Name string }
	}
	if err := json.Unmarshal(n.ok("ADD", "p"), &result); err != nil {
		t.Fatal(err)
	}
	if result.CNIVersion != "1.0.0" || len(result.Interfaces) != 1 || result.Interfaces[0].Name != "eth0" {
		t.Errorf("result %+v, want that of the default network", result)
	}
	if diff := cmp.Diff([]string{"p/data", "p/eth0", "p/net1"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
	var entries []status.Entry
	var text string
	n.set(func(c *cluster, _ *kernel) { text = c.statuses["default/p"] })
	if err := json.Unmarshal([]byte(text), &entries); err != nil || len(entries) != 3 {
		t.Errorf("status %s, %v", text, err)
	}
	const same = "; 10.1.0.0/24 is reached through eth0 too: packets to it leave by eth0, which comes first"
	want := []string{"p: Add eth0 [10.1.0.7/24] from cbr0", "p: Add net1 [10.1.0.7/24] from default/vlan" + same, "p: Add data [10.1.0.7/24] from default/vlan" + same}
	if diff := cmp.Diff(want, n.cluster.takeEvents()); diff != "" {
		t.Error(diff)
	}
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	if diff := cmp.Diff([]string{"p/data", "p/net1", "p/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Error(diff)
	}
	n.nothingLeft()
	if !strings.Contains(n.log.String(), "pod=default/p") {
		t.Errorf("the log names no pod: %s", n.log)
	}
}

func TestPodWithoutExtraNetworksCostsNoAPIWrite(t *testing.T) {
	n := newNode(t)
	n.pod("p", "")
	n.set(func(c *cluster, _ *kernel) { c.statusErr = errors.New("nobody may write") })
	n.ok("ADD", "p")
	if len(n.cluster.takeEvents()) != 0 {
		t.Error("it caused events")
	}
}

func TestResultIsInTheVersionOfTheRequest(t *testing.T) {
	n := newNode(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		n.pod("p"+version, "")
		r := n.request("ADD", "p"+version)
		r.Stdin = []byte(`{"cniVersion":"` + version + `","name":"braid"}`)
		reply := n.ask(r)
		if reply.Error != nil || !strings.Contains(string(reply.Stdout), `"cniVersion": "`+version+`"`) {
			t.Errorf("%s: %s, %v", version, reply.Stdout, reply.Error)
		}
	}
	n.pod("old", "")
	r := n.request("ADD", "old")
	r.Stdin = []byte(`{"cniVersion":"7.0.0","name":"braid"}`)
	n.refused(n.ask(r), 1, "7.0.0")
	if left := n.kernel.left(); len(left) != 4 {
		t.Errorf("the refused request left something: %v", left)
	}
}

func TestBadRequestsOfPodsLeaveNothing(t *testing.T) {
	for name, c := range map[string]struct {
		networks, conf string
		code           uint
		words          string
	}{
		"unknown network":   {"nosuch", "", 11, "nosuch"},
		"broken annotation": {`[{"name":`, "", 7, "annotation"},
		"broken definition": {"vlan", `{"cniVersion":"1.0.0",`, 7, "default/vlan"},
		"missing plugin":    {"vlan", `{"cniVersion":"1.0.0","type":"nosuch"}`, 999, "nosuch"},
		"long name":         {"vlan@a-very-long-name", `{"cniVersion":"1.0.0","type":"fake"}`, 7, "a-very-long-name"},
		"driver panics":     {"vlan", `{"cniVersion":"1.0.0","type":"crash"}`, 999, "panic: driver bug"},
		"taken name":        {"vlan@lo", `{"cniVersion":"1.0.0","type":"fake"}`, 7, "lo"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if c.conf != "" {
				n.define("vlan", c.conf)
			}
			n.pod("p", c.networks)
			n.refused(n.do("ADD", "p"), c.code, c.words)
			events := n.cluster.takeEvents()
			if len(events) != 1 || !strings.Contains(events[0], "FAILED") || !strings.Contains(events[0], c.words) {
				t.Errorf("events %q", events)
			}
			n.nothingLeft()
			n.ok("DEL", "p")
			n.pod("q", "")
			n.ok("ADD", "q") // the daemon goes on
		})
	}
}

func TestUnknownPodIsTriedAgainAndNeverFaked(t *testing.T) {
	n := newNode(t)
	n.refused(n.do("ADD", "ghost"), 11, "default/ghost", "uid-ghost")
	n.nothingLeft()
}

func TestDefinitionThatCannotBeAskedForIsTriedAgain(t *testing.T) {
	n := newNode(t)
	n.pod("p", "vlan")
	n.set(func(c *cluster, _ *kernel) { c.apiErr = errors.New("API server does not answer") })
	n.refused(n.do("ADD", "p"), 11, "does not answer")
	n.nothingLeft()
}

func TestRefusedStatusUndoesThePod(t *testing.T) {
	n := newNode(t)
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "vlan")
	n.set(func(c *cluster, _ *kernel) { c.statusErr = errors.New(`pods "p" is forbidden`) })
	n.refused(n.do("ADD", "p"), 11, "is forbidden")
	n.nothingLeft()
}

func TestSpec34NoDefaultNetworkYet(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Networks = networks{} })
	n.pod("p", "")
	n.refused(n.do("ADD", "p"), 11, "no default network")
	n.refused(n.ask(wire.Request{Command: "STATUS", Stdin: []byte(`{"cniVersion":"1.1.0"}`)}), 50, "no default network")
	n.ok("DEL", "p")
}

func TestStatusFollowsTheCluster(t *testing.T) {
	n := newNode(t)
	ask := wire.Request{Command: "STATUS", Stdin: []byte(`{"cniVersion":"1.1.0","name":"braid"}`)}
	if reply := n.ask(ask); reply.Error != nil {
		t.Error(reply.Error)
	}
	n.set(func(c *cluster, _ *kernel) { c.unsynced = errors.New("the pods have not been read yet") })
	n.refused(n.ask(ask), 50, "not been read")
}

func TestNotReadyWhileTheRuntimeDoesNotKnowBraid(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Installed = func() error { return errors.New("00-braid.conflist is missing") } })
	n.refused(n.ask(wire.Request{Command: "STATUS", Stdin: []byte(`{"cniVersion":"1.1.0"}`)}), 50, "00-braid.conflist")
}

func TestContainerWithoutPodGetsTheDefaultNetwork(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Cluster = nil })
	n.ok("ADD", "c")
	n.ok("CHECK", "c")
	n.ok("DEL", "c")
	n.nothingLeft()
	r := n.request("ADD", "c")
	r.Args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p"
	n.refused(n.ask(r), 11, "without a cluster")
}

func TestRequestWithoutNamespace(t *testing.T) {
	n := newNode(t)
	n.pod("p", "")
	r := n.request("ADD", "p")
	r.NetNS = ""
	n.refused(n.ask(r), 8, "ADD needs a network namespace")
	n.ok("ADD", "p")
	r.Command = "DEL"
	if reply := n.ask(r); reply.Error != nil {
		t.Errorf("DEL after the namespace is gone: %v", reply.Error)
	}
	n.nothingLeft()
}

func TestRestartedDaemonAnswersTheSameAddAndServesDel(t *testing.T) {
	n := newNode(t)
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "vlan")
	first := n.ok("ADD", "p")
	n.kill()
	n.set(func(_ *cluster, k *kernel) { k.broken = errors.New("must not be asked again") })
	n.start()
	if second := n.ok("ADD", "p"); string(second) != string(first) {
		t.Errorf("%s became %s", first, second)
	}
	// DEL needs neither the definition nor the pod.
	n.define("vlan", `gone`)
	n.set(func(c *cluster, _ *kernel) { c.pods = nil })
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestContainerFromBeforeBraidIsRemovedByTodaysNetwork(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.links["old/eth0"] = true })
	n.ok("DEL", "old")
	n.nothingLeft()
	n.kernel.takeDetached()
	n.ok("DEL", "old")
	if again := n.kernel.takeDetached(); len(again) != 0 {
		t.Errorf("a repeated DEL did it all again: %v", again)
	}
}

func TestSpec39DelWaitsForTheAddItOvertook(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.pod("p", "")
	n.pod("q", "")
	hold := make(chan struct{})
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = hold })
	added := n.begin("ADD", "p")
	<-n.kernel.arrived
	deleted := n.begin("DEL", "p")
	n.inLine("p", 1)
	n.ok("ADD", "q") // others do not wait
	n.ok("DEL", "q")
	n.kernel.takeDetached()
	close(hold)
	if reply := <-added; reply.Error != nil {
		t.Errorf("ADD: %v", reply.Error)
	}
	if reply := <-deleted; reply.Error != nil {
		t.Errorf("DEL: %v", reply.Error)
	}
	n.nothingLeft()
	if diff := cmp.Diff([]string{"p/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Error(diff)
	}
}

// inLine waits until so many requests wait behind the container's current one.
func (n *node) inLine(id string, count int) {
	n.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		n.daemon.queue.mu.Lock()
		now := len(n.daemon.queue.waiting[id])
		n.daemon.queue.mu.Unlock()
		if now == count {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%d requests wait for %s, want %d", now, id, count)
		}
		time.Sleep(time.Millisecond) // the queue offers no event, and needs none
	}
}

func TestShimThatGoesAwayEndsItsAdd(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "")
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = make(chan struct{}) }) // for ever
	ctx, killShim := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.call(ctx, n.request("ADD", "p"))
		ended <- err
	}()
	<-n.kernel.arrived
	killShim()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("shim: %v", err)
	}
	n.ok("DEL", "p") // waits for the ADD to end
	n.nothingLeft()
}

func TestRequestEndsAtItsDeadline(t *testing.T) {
	n := newNode(t, func(c *Config) { c.RequestTimeout = 50 * time.Millisecond })
	n.pod("p", "")
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = make(chan struct{}) })
	n.refused(n.do("ADD", "p"), 11, "did not finish within 50ms")
	n.nothingLeft()
}

func TestDaemonThatStopsLeavesTheAddToTheNext(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.pod("p", "")
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = make(chan struct{}) })
	ended := make(chan error, 1)
	go func() {
		_, err := n.call(t.Context(), n.request("ADD", "p"))
		ended <- err
	}()
	<-n.kernel.arrived
	n.kill() // no grace: the request is cut off
	if err := <-ended; !errors.Is(err, wire.ErrLost) {
		t.Errorf("shim: %v, want that it asks again", err)
	}
	if e := n.cluster.takeEvents(); len(e) != 0 {
		t.Errorf("the pod was told of a failure that is none: %q", e)
	}
	n.set(func(_ *cluster, k *kernel) { k.hold, k.arrived = nil, nil })
	n.start()
	n.ok("ADD", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestManyAddsDoNotStarveDel(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Parallel = 2 })
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string, 8) })
	n.pod("old", "")
	n.ok("ADD", "old")
	hold := make(chan struct{})
	for i := range 5 {
		id := fmt.Sprintf("p%d", i)
		n.pod(id, "")
		n.set(func(_ *cluster, k *kernel) { k.hold[id] = hold })
	}
	var replies []<-chan wire.Reply
	for i := range 5 {
		replies = append(replies, n.begin("ADD", fmt.Sprintf("p%d", i)))
	}
	<-n.kernel.arrived
	<-n.kernel.arrived
	n.ok("DEL", "old")
	select {
	case id := <-n.kernel.arrived:
		t.Errorf("%s is the third of two at once", id)
	default:
	}
	close(hold)
	for _, r := range replies {
		if reply := <-r; reply.Error != nil {
			t.Error(reply.Error)
		}
	}
}

func gcRequest(list string) wire.Request {
	return wire.Request{Command: "GC", Stdin: []byte(`{"cniVersion":"1.1.0","name":"braid"` + list + `}`)}
}

func TestGarbageCollectionKeepsWhatTheRuntimeKnows(t *testing.T) {
	n := newNode(t)
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	for _, id := range []string{"a", "b", "c"} {
		n.pod(id, "vlan")
		n.ok("ADD", id)
	}
	other := n.request("ADD", "d")
	n.pod("d", "")
	other.Stdin = []byte(`{"cniVersion":"1.0.0","name":"another-conf"}`)
	if reply := n.ask(other); reply.Error != nil {
		t.Fatal(reply.Error)
	}
	all := n.kernel.left()
	for _, list := range []string{"", `,"cni.dev/valid-attachments":null`} {
		if reply := n.ask(gcRequest(list)); reply.Error != nil {
			t.Error(reply.Error)
		}
	}
	for _, list := range []string{`,"cni.dev/valid-attachments":[{}]`, `,"cni.dev/valid-attachments":7`, `,"cni.dev/valid-attachments":[{"containerID":"a"}]`} {
		if reply := n.ask(gcRequest(list)); reply.Error == nil {
			t.Errorf("GC with %s succeeded", list)
		}
	}
	if diff := cmp.Diff(all, n.kernel.left()); diff != "" {
		t.Fatalf("GC without a sound list removed something:\n%s", diff)
	}
	reply := n.ask(gcRequest(`,"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"},{"containerID":"c","ifname":"eth1"}]`))
	if reply.Error != nil {
		t.Fatal(reply.Error)
	}
	if diff := cmp.Diff([]string{"b/eth0", "b/net1", "d/eth0"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
}

func TestGarbageCollectionLeavesARunningAddAlone(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.pod("p", "")
	hold := make(chan struct{})
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = hold })
	added := n.begin("ADD", "p")
	<-n.kernel.arrived
	if reply := n.ask(gcRequest(`,"cni.dev/valid-attachments":[]`)); reply.Error != nil {
		t.Error(reply.Error)
	}
	close(hold)
	if reply := <-added; reply.Error != nil {
		t.Error(reply.Error)
	}
	n.ok("CHECK", "p")
}

func TestCheckFindsAMissingLink(t *testing.T) {
	n := newNode(t)
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "vlan")
	n.ok("ADD", "p")
	n.set(func(_ *cluster, k *kernel) { delete(k.links, "p/net1") })
	n.refused(n.do("CHECK", "p"), 999, "net1", "default/vlan", "the link is gone")
	n.refused(n.do("CHECK", "never-seen"), 3)
}

// twoOfTheConfDir has every pod get the first two networks of the conf dir.
func twoOfTheConfDir(t testing.TB, confs ...string) func(*Config) {
	return func(c *Config) {
		var list []plan.Network
		for _, conf := range confs {
			list = append(list, conflist(t, conf))
		}
		c.ConfDirNetworks, c.Networks = 2, networks{list}
	}
}

const (
	confFirst  = `{"cniVersion":"1.0.0","name":"first","plugins":[{"type":"fake"}]}`
	confSecond = `{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"fake2"}]}`
	confThird  = `{"cniVersion":"1.0.0","name":"third","plugins":[{"type":"fake2"}]}`
)

func TestEveryPodGetsTheFirstNetworksOfTheConfDir(t *testing.T) {
	n := newNode(t, twoOfTheConfDir(t, confFirst, confSecond, confThird))
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "vlan")
	n.ok("ADD", "p")
	if have := n.kernel.left(); !slices.Equal(have, []string{"p/eth0", "p/eth1", "p/net1"}) {
		t.Errorf("links %v", have)
	}
	if status := n.cluster.statuses["default/p"]; !strings.Contains(status, `"second"`) {
		t.Errorf("network-status %s", status)
	}
	n.ok("CHECK", "p")
	// DEL works from the records, whatever the conf dir has now.
	n.kill()
	n.config.Networks = networks{[]plan.Network{conflist(t, confThird)}}
	n.start()
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestEveryRequestIsCountedWithItsOutcome(t *testing.T) {
	var mu sync.Mutex
	var counted []string
	n := newNode(t, func(c *Config) {
		c.Served = func(command string, code uint, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if took <= 0 {
				t.Errorf("%s took %v", command, took)
			}
			counted = append(counted, fmt.Sprint(command, " ", code))
		}
	})
	n.pod("p", "")
	n.ok("ADD", "p")
	n.ok("DEL", "p")
	n.pod("q", "nowhere")
	n.refused(n.do("ADD", "q"), 11, "nowhere")
	eventually(t, "all are counted", func() bool {
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(counted) // they are counted after they were answered
		return slices.Equal(counted, []string{"ADD 0", "ADD 11", "DEL 0"})
	})
}

func TestContainerThatIsNoPodHasNoStatusToBeWritten(t *testing.T) {
	for _, wait := range []bool{true, false} {
		n := newNode(t, twoOfTheConfDir(t, confFirst, confSecond), func(c *Config) { c.WaitForStatus = wait })
		r := n.request("ADD", "c")
		r.Args = ""
		if reply := n.ask(r); reply.Error != nil {
			t.Fatal(reply.Error)
		}
		if w := n.writes(); len(w) > 0 {
			t.Errorf("written: %v", w)
		}
		if events := n.cluster.takeEvents(); len(events) > 0 {
			t.Errorf("events: %v", events)
		}
		n.ok("DEL", "c")
		n.nothingLeft()
	}
}

func TestPodWaitsUntilTheConfDirHasAllItsNetworks(t *testing.T) {
	n := newNode(t, twoOfTheConfDir(t, confFirst))
	n.pod("p", "")
	n.refused(n.do("ADD", "p"), 11, "first 2 networks", "it has 1")
	n.refused(n.ask(wire.Request{Command: "STATUS", Stdin: []byte(`{"cniVersion":"1.1.0"}`)}), 50, "first 2 networks", "it has 1")
	n.nothingLeft()
}

func TestSecondNetworkOfTheConfDirFailsAndNothingIsLeft(t *testing.T) {
	n := newNode(t, twoOfTheConfDir(t, confFirst, `{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"crash"}]}`))
	n.pod("p", "")
	n.refused(n.do("ADD", "p"), 999, "eth1", "second")
	n.nothingLeft()
}

func TestContainerFromBeforeBraidLosesAllNetworksOfTheConfDir(t *testing.T) {
	n := newNode(t, twoOfTheConfDir(t, confFirst, confSecond))
	n.set(func(_ *cluster, k *kernel) { k.links["old/eth0"], k.links["old/eth1"] = true, true })
	n.ok("DEL", "old")
	n.nothingLeft()
}

func TestFlannelIsWaitedForAndRemovedWithoutItsSubnetFile(t *testing.T) {
	var mu sync.Mutex
	text, err := "", error(fs.ErrNotExist)
	set := func(t string, e error) {
		mu.Lock()
		defer mu.Unlock()
		text, err = t, e
	}
	n := newNode(t, func(c *Config) {
		c.Networks = networks{[]plan.Network{conflist(t, `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel","delegate":{"type":"fake"}}]}`)}}
		c.SubnetFile = func(string) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			return []byte(text), err
		}
	})
	status := wire.Request{Command: "STATUS", Stdin: []byte(`{"cniVersion":"1.1.0"}`)}
	n.pod("p", "")
	n.refused(n.do("ADD", "p"), 11, "/run/flannel/subnet.env", "cbr0")
	n.refused(n.ask(status), 50, "/run/flannel/subnet.env")
	set("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", nil)
	if reply := n.ask(status); reply.Error != nil {
		t.Error(reply.Error)
	}
	n.ok("ADD", "p") // there is no program flannel here
	set("", fs.ErrNotExist)
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestSpec41RuntimeConfigReachesOnlyTheDefaultNetwork(t *testing.T) {
	n := newNode(t, func(c *Config) {
		c.Networks = networks{[]plan.Network{conflist(t, `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"fake","capabilities":{"portMappings":true}}]}`)}}
	})
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake","capabilities":{"portMappings":true}}`)
	n.pod("p", "vlan")
	r := n.request("ADD", "p")
	r.Stdin = []byte(`{"cniVersion":"1.0.0","name":"braid","runtimeConfig":{"portMappings":[{"hostPort":80}]}}`)
	if reply := n.ask(r); reply.Error != nil {
		t.Fatal(reply.Error)
	}
	records, err := n.store.All()
	if err != nil || len(records) != 2 {
		t.Fatal(records, err)
	}
	if len(records[0].Attachment.RuntimeConfig) != 1 || len(records[1].Attachment.RuntimeConfig) != 0 {
		t.Errorf("runtimeConfig: %v and %v", records[0].Attachment.RuntimeConfig, records[1].Attachment.RuntimeConfig)
	}
}

func TestInterruptedAttachmentIsLoggedAtStart(t *testing.T) {
	n := newNode(t)
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.kill()
	n.start()
	n.pod("p", "")
	r, err := parseRequest(n.request("ADD", "p"))
	if err != nil {
		t.Fatal(err)
	}
	sb, err := n.daemon.sandbox(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.store.Begin(t.Context(), intent(sb, plan.Attachment{IfName: "net7"})); err != nil {
		t.Fatal(err)
	}
	n.kill()
	n.start()
	if !strings.Contains(n.log.String(), "net7") {
		t.Errorf("log: %s", n.log)
	}
}

// A runtime that lost the answer asks again. What the pod has by then is what it
// was given, whatever manifests say today.
func TestRepeatedAddAnswersWithWhatThePodHas(t *testing.T) {
	n := newNode(t)
	n.define("vlan", `{"cniVersion":"1.0.0","type":"fake"}`)
	n.pod("p", "vlan,vlan@data")
	first := n.ok("ADD", "p")
	n.kernel.takeDetached()
	n.set(func(c *cluster, k *kernel) {
		delete(c.definitions, "default/vlan")
		k.broken = errors.New("must not be asked again")
	})
	n.pod("p", `[{"name":"vlan","interface":"data"},{"name":"vlan","interface":"net1"}]`)
	if second := n.ok("ADD", "p"); string(second) != string(first) {
		t.Errorf("%s became %s", first, second)
	}
	if gone := n.kernel.takeDetached(); len(gone) > 0 {
		t.Errorf("taken down: %v", gone)
	}
	n.ok("DEL", "p")
	n.nothingLeft()
}
