package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"braid.dev/braid/internal/e2e/recorder/note"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

const (
	// crashPods are worked on at once, each with a network of every kind.
	crashPods = 8
	// crashes is how often braidd or a shim is killed. BRAID_CRASHES changes it.
	crashes = 560
)

// A6, by chance: braidd and shims are killed again and again, at any moment of ADD and DEL
// of several pods, while the runtime does what runtimes do: it asks again, or
// gives the sandbox up and makes another one. No pod whose ADD succeeded may
// lack a network, and in the end nothing may be left of any of them.
func TestCrashAtAnyMomentLosesNothingAndLeavesNothing(t *testing.T) {
	seed := seedOf(t)
	h := newHost(t, func(h *host) { h.prepareCrash(t) })
	c := &crashTest{t: t, host: h, seed: seed, want: numberOf(t, "BRAID_CRASHES", crashes), seen: map[string]int{}}
	h.network(t, "bridged", h.bridged("braidextra0", "10.77.0.0/16", h.recording("")))
	h.network(t, "lan", fmt.Sprintf(`{"cniVersion":"1.0.0","type":"macvlan","master":"braiduplink0","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.75.0.0/16"}}`, h.path("addresses")))
	h.network(t, "theirs", `{"cniVersion":"1.0.0","type":"theirs","bridge":"braidtheirs0","ipam":{"type":"static","addresses":[{"address":"10.74.0.9/24"}]}}`)
	var pods []*pod
	for i := range crashPods {
		pods = append(pods, h.createPod(t, fmt.Sprintf("pod-%d", i), map[string]string{networksKey: "bridged,lan,theirs,bridged"}))
	}
	// What is there to stay, such as bridges and tables of rules, is there after
	// the first pod.
	first := &runner{crashTest: c, pod: pods[0], rng: c.random(1000)}
	c.quiet.Store(true)
	must(t, first.story(t.Context()))
	took := measure(func() { must(t, first.story(t.Context())) })
	c.quiet.Store(false)
	before := h.lasting(t)

	ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
	defer stop()
	var running sync.WaitGroup
	for i, p := range pods {
		r := &runner{crashTest: c, pod: p, rng: c.random(uint64(i))}
		c.runners = append(c.runners, r)
		running.Go(func() { r.run(ctx) })
	}
	began := time.Now()
	c.kill(ctx, took)
	t.Logf("%d kills (%d of braidd) in %v, during %d ADDs and %d DELs; a story without any took %v",
		c.kills(), c.daemons, time.Since(began).Round(time.Millisecond), c.adds.Load(), c.dels.Load(), took.Round(time.Millisecond))
	c.quiet.Store(true)
	c.over.Store(true)
	running.Wait()
	for _, where := range slices.Sorted(maps.Keys(c.seen)) {
		t.Logf("killed %d times with %s", c.seen[where], where)
	}

	h.mustKill(t)
	h.mustStart(t) // what nobody will ask for again is released at start
	err := within(ctx, 60*time.Second, "nothing is left", func() error {
		if err := h.status(ctx); err != nil { // a hand for what needs the host
			return err
		}
		if left := h.lasting(t); left != before {
			return fmt.Errorf("the host is not what it was before:\n%s\nbefore:\n%s", left, before)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
		h.tellStories(t)
	}
	h.nothingIsLeft(t)
	h.noNamespaceIsHeld(t)
	h.mustKill(t)
	if left := h.records(t); len(left) > 0 {
		t.Errorf("%d records are left, the first: %+v", len(left), left[0])
	}
	if notes, err := filepath.Glob(h.path("state/notes/*")); err != nil || len(notes) > 0 {
		t.Errorf("notes are left: %v, %v", notes, err)
	}
}

// A6, step by step: a plugin at the end of every network stops the daemon there,
// and then it, the shim, or both are killed.
func TestA06KilledBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		h.defaultNetwork(t, "10-default.conflist", h.recording(""))
	})
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra,extra"})
	settle := p.newSandbox(t)
	settle.mustAdd(t)
	settle.mustDel(t)
	before := h.lasting(t)
	for _, verb := range []string{"ADD", "DEL"} {
		for _, ifName := range []string{"eth0", "net1", "net2"} {
			for _, whom := range []string{"daemon", "shim", "both"} {
				t.Run(verb+" "+ifName+" "+whom, func(t *testing.T) {
					s := p.newSandbox(t)
					if verb == "DEL" {
						s.mustAdd(t)
					}
					h.behave(t, verb+"-"+ifName, note.Hang)
					done := make(chan error, 1)
					go func() {
						if verb == "DEL" {
							done <- s.del(t.Context())
							return
						}
						_, err := s.add(t.Context())
						done <- err
					}()
					h.awaitCall(t, s.id, verb, ifName)
					if whom != "shim" {
						h.mustKill(t)
					}
					if whom != "daemon" {
						must(t, s.shim.Load().Kill())
					}
					h.behave(t, verb+"-"+ifName, "")
					if whom != "shim" {
						h.mustStart(t)
					}
					err := <-done
					if survives := whom == "daemon"; survives != (err == nil) {
						t.Errorf("%s: %v", verb, err)
					}
					if verb == "ADD" && err == nil {
						s.mustCheck(t)
					}
					s.mustDel(t)
					s.isEmpty(t)
					h.nothingIsLeft(t)
					if left := h.lasting(t); left != before {
						t.Errorf("the host is not what it was before:\n%s\nbefore:\n%s", left, before)
					}
				})
			}
		}
	}
	h.mustKill(t)
	if left := h.records(t); len(left) > 0 {
		t.Errorf("%d records are left, the first: %+v", len(left), left[0])
	}
}

// A plugin that did not finish ADD and fails on DEL is given up in the end, so
// that its pod can go. That somebody killed it is no such failure.
func TestClusterAPluginThatIsKilledOnDelIsAskedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	s := p.newSandbox(t)
	h.behave(t, "ADD-net1", note.Linger)
	h.behave(t, "DEL-net1", note.Hang)
	verbs := map[string]func() error{"ADD": func() error { _, err := s.add(t.Context()); return err }, "DEL": func() error { return s.del(t.Context()) }}
	for i, verb := range []string{"ADD", "DEL", "DEL", "DEL", "DEL"} {
		done := make(chan error, 1)
		go func() { done <- verbs[verb]() }()
		h.awaitCalls(t, s.id, verb, "net1", max(i, 1))
		must(t, s.shim.Load().Kill())
		if err := <-done; err == nil {
			t.Errorf("%s succeeded although its shim was killed", verb)
		}
	}
	if held := h.held(t); len(held) != 1 {
		t.Fatalf("the recorder holds %v: the test does not test what it should", held)
	}
	h.behave(t, "ADD-net1", "")
	h.behave(t, "DEL-net1", "")
	s.mustDel(t)
	h.nothingIsLeft(t)
}

// prepareCrash gives the host what the networks of the crash test need.
func (h *host) prepareCrash(t *testing.T) {
	t.Helper()
	h.defaultNetwork(t, "10-default.conflist", `{"type":"portmap","capabilities":{"portMappings":true}}`)
	must(t, os.Symlink(h.lab.Program("bridge"), h.path("bin/theirs")))
	handle, err := rtnl.Open(h.ns)
	must(t, err)
	defer handle.Close()
	// The reference plugin's CHECK finds fault with a bridge whose address is
	// another one by now, as those without one of their own follow their ports.
	for name, mac := range map[string]string{"braiduplink0": "02:00:00:00:75:01", "braidtheirs0": "02:00:00:00:74:01"} {
		address, err := net.ParseMAC(mac)
		must(t, err)
		link, err := handle.AddBridge(rtnl.Bridge{New: rtnl.New{Name: name, MAC: address}})
		must(t, err)
		must(t, handle.SetUp(link.Index))
	}
}

// tellStories shows how containers came to leave something with the recorder.
func (h *host) tellStories(t *testing.T) {
	t.Helper()
	calls, err := note.Read(h.path("recorder"))
	must(t, err)
	text, err := os.ReadFile(h.path("braidd.log"))
	must(t, err)
	for _, held := range h.held(t) {
		id := strings.Split(held, "_")[1]
		for _, c := range calls {
			if c.ContainerID == id {
				t.Logf("%s %s %s by %d, beside another: %t, done: %t, failed: %t", id, c.Command, c.IfName, c.PID, c.Beside, c.Done, c.Failed)
			}
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, id) {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
}

// lasting is everything of the host that outlives pods: links, addresses,
// routes, rules, reserved addresses and what plugins hold.
func (h *host) lasting(t *testing.T) string {
	t.Helper()
	handle, err := rtnl.Open(h.ns)
	must(t, err)
	defer handle.Close()
	rules, err := rtnl.ObserveRules(handle)
	must(t, err)
	list := exec.Command("nft", "list", "ruleset")
	var out strings.Builder
	list.Stdout, list.Stderr = &out, &out
	must(t, h.ns.Do(list.Start))
	if err := list.Wait(); err != nil {
		t.Fatalf("nft: %v: %s", err, out.String())
	}
	return h.state(t) + rules + out.String()
}

// noNamespaceIsHeld expects no process of Braid to keep namespaces of sandboxes
// alive.
func (h *host) noNamespaceIsHeld(t *testing.T) {
	t.Helper()
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	must(t, err)
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, "net:[") {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "cmdline"))
		if err == nil && strings.Contains(string(cmdline), h.dir) {
			t.Errorf("%s, of %q, is the namespace %s", fd, cmdline, target)
		}
	}
}

// crashTest is what its runners and the one who kills have in common.
type crashTest struct {
	t       *testing.T
	host    *host
	seed    uint64
	want    int
	runners []*runner
	// quiet is set while nobody is killed: then everything succeeds at once.
	quiet atomic.Bool
	// over has the runners end, once their pod is gone.
	over       atomic.Bool
	adds, dels atomic.Int64
	daemons    int
	shims      int
	// seen counts in which state braidd's records were when it was killed.
	seen map[string]int
}

func (c *crashTest) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(c.seed, stream)) }

func (c *crashTest) kills() int { return c.daemons + c.shims }

// kill kills until it is enough: braidd, or the shims of one to three pods,
// after a time that leads to any moment of a story.
func (c *crashTest) kill(ctx context.Context, took time.Duration) {
	rng := c.random(2000)
	for c.kills() < c.want && ctx.Err() == nil && !c.t.Failed() {
		<-time.After(time.Duration(rng.Int64N(int64(took * 3 / 2)))) // the moment of the kill is what the test varies
		if rng.IntN(2) == 0 {
			for _, i := range rng.Perm(len(c.runners))[:1+rng.IntN(3)] {
				if p := c.runners[i].shim(); p != nil && p.Kill() == nil {
					c.shims++
				}
			}
			continue
		}
		if err := c.host.kill(); err != nil {
			c.t.Error(err)
			return
		}
		c.daemons++
		c.look()
		if err := c.host.launch(); err != nil {
			c.t.Error(err)
			return
		}
	}
}

// look takes down how far each sandbox had come.
func (c *crashTest) look() {
	s, err := store.Open(context.Background(), c.host.path("state/braid.db"))
	if err != nil {
		c.t.Errorf("the store after a kill: %v", err)
		return
	}
	defer s.Close()
	records, err := s.All()
	if err != nil {
		c.t.Errorf("the records after a kill: %v", err)
	}
	complete := map[string][]string{}
	for _, r := range records {
		if r.Complete() {
			complete[r.Sandbox.ContainerID] = append(complete[r.Sandbox.ContainerID], r.Attachment.IfName)
		} else if _, ok := complete[r.Sandbox.ContainerID]; !ok {
			complete[r.Sandbox.ContainerID] = nil
		}
	}
	for _, r := range c.runners {
		if verb, id := r.doing(); verb != "" {
			done, ok := complete[id]
			text := "nothing recorded"
			if ok {
				text = fmt.Sprintf("%d of 5 attachments complete", len(done))
			}
			c.seen[verb+" and "+text]++
		}
	}
}

// runner is the runtime as far as one pod is concerned.
type runner struct {
	*crashTest
	pod *pod
	rng *rand.Rand

	mu      sync.Mutex
	verb    string
	sandbox *sandbox
}

func (r *runner) shim() *os.Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandbox == nil {
		return nil
	}
	return r.sandbox.shim.Load()
}

func (r *runner) doing() (verb, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandbox == nil {
		return "", ""
	}
	return r.verb, r.sandbox.id
}

func (r *runner) begin(verb string, s *sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verb, r.sandbox = verb, s
}

func (r *runner) run(ctx context.Context) {
	for !r.over.Load() && ctx.Err() == nil && !r.t.Failed() {
		if err := r.story(ctx); err != nil {
			r.t.Errorf("%s: %v", r.pod.name, err)
		}
	}
}

// story starts the pod, in as many sandboxes as it takes, and stops it.
func (r *runner) story(ctx context.Context) error {
	for ctx.Err() == nil {
		s, err := r.pod.openSandbox()
		if err != nil {
			return err
		}
		s.capabilities["portMappings"] = []map[string]any{{"hostPort": 20000 + r.rng.IntN(20000), "containerPort": 80, "protocol": "tcp"}}
		runs, err := r.start(ctx, s)
		if err == nil && runs {
			err = r.complete(s)
		}
		if err == nil && runs && r.rng.IntN(4) == 0 {
			r.begin("CHECK", s)
			if checkErr := s.check(ctx); checkErr != nil && !excused(checkErr) {
				err = fmt.Errorf("CHECK: %w", checkErr)
			}
		}
		if err := errors.Join(err, r.stop(ctx, s)); err != nil || runs {
			return err
		}
	}
	return context.Cause(ctx)
}

// start calls ADD, perhaps several times.
func (r *runner) start(ctx context.Context, s *sandbox) (runs bool, err error) {
	for ctx.Err() == nil {
		quiet := r.quiet.Load()
		r.begin("ADD", s)
		_, err := s.add(ctx)
		r.begin("", s)
		r.adds.Add(1)
		switch {
		case err == nil:
			return true, nil
		case quiet || !excused(err):
			return false, fmt.Errorf("ADD: %w", err)
		case r.rng.IntN(2) == 0:
			return false, nil // this sandbox is given up
		}
	}
	return false, context.Cause(ctx)
}

// excused reports whether an error is what somebody who is killed says, or an
// invitation to try again.
func excused(err error) bool {
	return strings.Contains(err.Error(), "signal: killed") || codeOf(err) == 11
}

// complete expects every network in the sandbox of a pod that runs.
func (r *runner) complete(s *sandbox) error {
	h, err := rtnl.Open(s.ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range []string{"eth0", "net1", "net2", "net3", "net4"} {
		link, err := h.Link(name)
		if err != nil {
			return fmt.Errorf("ADD succeeded and the pod lacks %s: %w", name, err)
		}
		addrs, err := h.Addrs(link.Index)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(addrs, func(a rtnl.Addr) bool { return a.Prefix.Addr().Is4() }) {
			return fmt.Errorf("ADD succeeded and %s has no address", name)
		}
	}
	return nil
}

// stop calls DEL until it succeeds, then removes the namespace; sometimes the
// other way round.
func (r *runner) stop(ctx context.Context, s *sandbox) error {
	if r.rng.IntN(8) == 0 {
		if err := s.remove(); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		quiet := r.quiet.Load()
		r.begin("DEL", s)
		err := s.del(ctx)
		r.begin("", nil)
		r.dels.Add(1)
		switch {
		case err == nil:
			return s.remove()
		case quiet || !excused(err):
			return errors.Join(fmt.Errorf("DEL: %w", err), s.remove())
		}
	}
	return errors.Join(context.Cause(ctx), s.remove())
}

// seedOf is the seed of a test with chance in it: BRAID_SEED, or another one
// each time.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BRAID_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BRAID_SEED=%d replays it", seed)
	return seed
}

func numberOf(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
