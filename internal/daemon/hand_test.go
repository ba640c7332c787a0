package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/exec"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// host plays the host of a node: what a standing hand and the shims that it runs
// do there.
type host struct {
	n *node
	// shim, if not nil, is run instead of braid-cni.
	shim func(ctx context.Context, e wire.Exec) wire.ExecResult
	// program, if not nil, is every other program.
	program func(e wire.Exec) wire.ExecResult
	// lose cuts the hand off, ended is how its connection ended.
	lose  func()
	ended chan error
}

// leaveHand is what a shim does that is asked to leave a hand behind.
func (n *node) leaveHand(change ...func(*host)) *host {
	n.t.Helper()
	wanted := n.daemon.wantHand()
	h := &host{n: n, ended: make(chan error, 1)}
	for _, c := range change {
		c(h)
	}
	var ctx context.Context
	ctx, h.lose = context.WithCancel(n.t.Context())
	go func() { h.ended <- h.stay(ctx) }()
	n.t.Cleanup(h.lose)
	receive(n.t, "a hand", wanted)
	return h
}

func (h *host) stay(ctx context.Context) error {
	reply, err := wire.Do(ctx, wire.Call{
		Socket: h.n.socket(), Run: h.run,
		Request: wire.Request{Command: wire.CommandStay, Path: "/opt/cni/bin"},
	})
	if err == nil && reply.Error != nil {
		return reply.Error
	}
	return err
}

func (h *host) run(ctx context.Context, e wire.Exec) wire.ExecResult {
	switch {
	case e.Name != "braid-cni" && h.program != nil:
		return h.program(e)
	case e.Name != "braid-cni":
		return wire.ExecResult{Stdout: []byte(e.Name + " ran")}
	case h.shim != nil:
		return h.shim(ctx, e)
	case slices.Equal(e.Args, []string{"namespaces"}):
		return h.namespaces(e)
	default:
		return h.reach(ctx, e)
	}
}

// env is the value of a variable of the program.
func env(e wire.Exec, name string) string {
	for _, kv := range e.Env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// reach is braid-cni with CNI_COMMAND=REACH.
func (h *host) reach(ctx context.Context, e wire.Exec) wire.ExecResult {
	call := wire.Call{Socket: h.n.socket(), Run: h.run, Request: wire.Request{
		Command: env(e, "CNI_COMMAND"), ContainerID: env(e, "CNI_CONTAINERID"), IfName: env(e, "CNI_IFNAME"),
		NetNS: env(e, "CNI_NETNS"), Stdin: e.Stdin,
	}}
	if f, err := os.Open(call.Request.NetNS); err == nil {
		defer f.Close()
		call.NetNS = f
	}
	reply, err := wire.Do(ctx, call)
	if err != nil {
		return wire.ExecResult{ExitCode: 1, Stderr: []byte(err.Error())}
	}
	if reply.Error != nil {
		said, _ := json.Marshal(reply.Error)
		return wire.ExecResult{ExitCode: 1, Stdout: said}
	}
	return wire.ExecResult{Stdout: reply.Stdout}
}

func (h *host) namespaces(e wire.Exec) wire.ExecResult {
	var paths []string
	if err := json.NewDecoder(bytes.NewReader(e.Stdin)).Decode(&paths); err != nil {
		return wire.ExecResult{ExitCode: 1, Stderr: []byte(err.Error())}
	}
	found := map[string]wire.Namespace{}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		found[path], _ = wire.Identify(f)
		f.Close()
	}
	out, _ := json.Marshal(found)
	return wire.ExecResult{Stdout: out}
}

// sandbox is a container in the node's namespace.
func (n *node) sandbox(id string) store.Sandbox {
	n.t.Helper()
	return store.Sandbox{ContainerID: id, IfName: "eth0", NetNS: n.netns, NSID: idOf(n.t, n.netns), Path: n.dir}
}

func idOf(t testing.TB, path string) netns.ID {
	t.Helper()
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func receive[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatalf("%s: nothing within a minute", what)
	}
	return v
}

// eventually asks again and again for what there is no event of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAShimIsAskedForAHandOnlyWhenOneIsWanted(t *testing.T) {
	n := newNode(t)
	if reply := n.do("STATUS", ""); reply.Stay {
		t.Error("a hand was asked for that nobody wants")
	}
	wanted := n.daemon.wantHand()
	probe := n.request("STATUS", "")
	probe.NoStay = true
	if reply := n.ask(probe); reply.Stay {
		t.Error("a probe was asked, which cannot leave a hand and keeps shims from being asked")
	}
	if reply := n.do("STATUS", ""); !reply.Stay {
		t.Error("no hand was asked for")
	}
	if reply := n.do("STATUS", ""); reply.Stay {
		t.Error("two were asked at once")
	}
	n.askedBefore(handPause)
	if reply := n.do("DEL", "c"); !reply.Stay {
		t.Error("the one that was asked never came, and no other is asked")
	}
	select {
	case <-wanted:
		t.Error("there is a hand")
	default:
	}
	n.leaveHand()
	receive(t, "the hand", wanted)
	receive(t, "the hand once more", n.daemon.wantHand())
	n.askedBefore(time.Hour)
	if reply := n.do("STATUS", ""); reply.Stay {
		t.Error("a second hand was asked for")
	}
}

// hasNoHand reports whether the daemon lets nobody use a hand.
func (n *node) hasNoHand() bool {
	_, release, err := n.daemon.standingHost()
	if err == nil {
		release()
	}
	return errors.Is(err, errNoHand)
}

// askedBefore has a shim have been asked for a hand that long ago.
func (n *node) askedBefore(ago time.Duration) {
	n.daemon.hands.mu.Lock()
	defer n.daemon.hands.mu.Unlock()
	n.daemon.hands.asked = time.Now().Add(-ago)
}

func TestThereIsNeverASecondHand(t *testing.T) {
	n := newNode(t)
	second := &host{n: n}
	var refused *wire.Error
	if err := second.stay(within(t)); !errors.As(err, &refused) {
		t.Errorf("a hand that nobody wants: %v", err)
	}
	first := n.leaveHand()
	if err := second.stay(within(t)); !errors.As(err, &refused) {
		t.Errorf("the second hand: %v", err)
	}
	host, done, err := n.daemon.standingHost()
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if out, err := host.Exec(within(t), driver.Program{Name: "true"}); err != nil || string(out) != "true ran" {
		t.Errorf("the first hand: %q, %v", out, err)
	}
	first.lose()
	receive(t, "the end of the first", first.ended)
}

func TestSandboxIsReachedWithoutARequest(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	sb := n.sandbox("c")
	reach, done, err := n.daemon.reachSandbox(within(t), sb)
	if err != nil {
		t.Fatal(err)
	}
	if reach.NS == nil || reach.Path != n.dir {
		t.Fatalf("%+v", reach)
	}
	if id, err := reach.NS.ID(); err != nil || id != sb.NSID {
		t.Errorf("namespace %v, %v; want %v", id, err, sb.NSID)
	}
	var links []net.Interface
	if err := reach.NS.Do(func() (err error) { links, err = net.Interfaces(); return err }); err != nil || len(links) != 1 {
		t.Errorf("its links: %v, %v", links, err)
	}
	if out, err := reach.Host.Exec(within(t), driver.Program{Name: "plugin"}); err != nil || string(out) != "plugin ran" {
		t.Errorf("a program: %q, %v", out, err)
	}
	done()
	var lost *exec.LostError
	if _, err := reach.Host.Exec(within(t), driver.Program{Name: "plugin"}); !errors.Is(err, wire.ErrLost) || !errors.As(err, &lost) {
		t.Errorf("a program after the end: %v", err)
	}
}

func TestNamespaceThatIsGoneOrAnotherIsNotReached(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	_, other := kerneltest.NewNamedNS(t)
	for name, change := range map[string]func(*store.Sandbox){
		"gone":           func(sb *store.Sandbox) { sb.NetNS = "/run/netns/braid-nowhere" },
		"another by now": func(sb *store.Sandbox) { sb.NetNS = other },
		"never known":    func(sb *store.Sandbox) { sb.NetNS = "" },
	} {
		sb := n.sandbox("c")
		change(&sb)
		reach, done, err := n.daemon.reachSandbox(within(t), sb)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if reach.NS != nil || reach.Host == nil {
			t.Errorf("%s: %+v", name, reach)
		}
		done()
		done() // once too often does no harm
	}
	sb := n.sandbox("c")
	sb.NSID = netns.ID{}
	reach, done, err := n.daemon.reachSandbox(within(t), sb)
	if err != nil || reach.NS == nil {
		t.Fatalf("of unknown identity: %+v, %v", reach, err)
	}
	done()
}

func TestWithoutAHandNothingIsReached(t *testing.T) {
	n := newNode(t)
	if _, _, err := n.daemon.reachSandbox(within(t), n.sandbox("c")); !errors.Is(err, errNoHand) {
		t.Errorf("reachSandbox: %v", err)
	}
	if _, _, err := n.daemon.standingHost(); !errors.Is(err, errNoHand) {
		t.Errorf("standingHost: %v", err)
	}
	if _, err := n.daemon.lookAt(within(t), nil); !errors.Is(err, errNoHand) {
		t.Errorf("lookAt: %v", err)
	}
}

func TestHandThatIsLostIsAnErrorToItsUserAndWantedAnew(t *testing.T) {
	n := newNode(t)
	h := n.leaveHand()
	running := make(chan struct{})
	h.shim = func(ctx context.Context, e wire.Exec) wire.ExecResult {
		close(running)
		<-ctx.Done()
		return wire.ExecResult{Failure: wire.Canceled}
	}
	failed := make(chan error, 1)
	go func() {
		_, _, err := n.daemon.reachSandbox(within(t), n.sandbox("c"))
		failed <- err
	}()
	receive(t, "the shim", running)
	h.lose()
	if err := receive(t, "the loss", failed); !errors.Is(err, errNoHand) || !errors.Is(err, wire.ErrLost) {
		t.Errorf("reachSandbox: %v", err)
	}
	receive(t, "its end", h.ended)
	n.nobodyIsExpected()
	eventually(t, "the daemon has no hand", n.hasNoHand)
	n.leaveHand()
	_, done, err := n.daemon.reachSandbox(within(t), n.sandbox("c"))
	if err != nil {
		t.Fatal(err)
	}
	done()
}

func (n *node) nobodyIsExpected() {
	n.t.Helper()
	n.daemon.hands.mu.Lock()
	defer n.daemon.hands.mu.Unlock()
	if left := len(n.daemon.hands.visits); left > 0 {
		n.t.Errorf("%d visits are still expected", left)
	}
}

func TestVisitThatIsLostEndsItsPrograms(t *testing.T) {
	n := newNode(t)
	h := n.leaveHand()
	shims, kill := context.WithCancel(t.Context())
	defer kill()
	h.shim = func(_ context.Context, e wire.Exec) wire.ExecResult { return h.reach(shims, e) }
	reach, done, err := n.daemon.reachSandbox(within(t), n.sandbox("c"))
	if err != nil {
		t.Fatal(err)
	}
	kill()
	// The hand itself still stands: only this visit is over.
	if _, err := reach.Host.Exec(context.WithoutCancel(shims), driver.Program{Name: "plugin"}); !errors.Is(err, wire.ErrLost) {
		t.Errorf("a program: %v", err)
	}
	if err := reach.NS.Do(func() error { return nil }); err != nil {
		t.Errorf("the namespace: %v", err)
	}
	done()
	if _, _, err := n.daemon.standingHost(); err != nil {
		t.Errorf("the hand: %v", err)
	}
}

func TestReachEndsWithItsCallersPatience(t *testing.T) {
	n := newNode(t)
	h := n.leaveHand()
	running := make(chan struct{})
	h.shim = func(ctx context.Context, e wire.Exec) wire.ExecResult {
		close(running)
		<-ctx.Done()
		return wire.ExecResult{Failure: wire.Canceled}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, _, err := n.daemon.reachSandbox(ctx, n.sandbox("c"))
		failed <- err
	}()
	receive(t, "the shim", running)
	enough := errors.New("enough")
	cancel(enough)
	if err := receive(t, "the end", failed); !errors.Is(err, enough) {
		t.Errorf("reachSandbox: %v", err)
	}
	n.nobodyIsExpected()
}

func TestShimThatCannotReachSaysWhy(t *testing.T) {
	n := newNode(t)
	h := n.leaveHand()
	for want, result := range map[string]wire.ExecResult{
		"CNI_NETNS is not usable":     {ExitCode: 1, Stdout: []byte(`{"code":4,"msg":"CNI_NETNS is not usable"}`)},
		"unknown arguments":           {ExitCode: 2, Stderr: []byte("unknown arguments")},
		"not found: no braid-cni":     {Failure: wire.NotFound, Detail: "no braid-cni"},
		"the shim ended without a wo": {},
	} {
		h.shim = func(context.Context, wire.Exec) wire.ExecResult { return result }
		_, _, err := n.daemon.reachSandbox(within(t), n.sandbox("c7"))
		if err == nil || errors.Is(err, errNoHand) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "c7") {
			t.Errorf("%v; want %q", err, want)
		}
		n.nobodyIsExpected()
	}
}

func TestVisitThatNobodySentForIsRefused(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	for _, stdin := range []string{`{}`, `{"reach":""}`, `{"reach":"guessed"}`, `no JSON`, ``} {
		r := n.request(wire.CommandReach, "c")
		r.Stdin = []byte(stdin)
		n.refused(n.ask(r), 999, "REACH")
	}
	// A visit that comes after its time is nobody's either.
	token, arrival := n.daemon.hands.expect()
	n.daemon.hands.forget(token)
	r := n.request(wire.CommandReach, "c")
	r.Stdin = fmt.Appendf(nil, `{"reach":%q}`, token)
	n.refused(n.ask(r), 999, "nobody has sent for it")
	if len(arrival) > 0 {
		t.Error("it arrived")
	}
}

func TestManySandboxesAreReachedAtOnce(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			id := fmt.Sprintf("c%d", i)
			reach, done, err := n.daemon.reachSandbox(within(t), n.sandbox(id))
			if err != nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			defer done()
			out, err := reach.Host.Exec(within(t), driver.Program{Name: id})
			if err != nil || string(out) != id+" ran" {
				t.Errorf("%s: %q, %v", id, out, err)
			}
		})
	}
	all.Wait()
	n.nobodyIsExpected()
	n.daemon.hands.mu.Lock()
	defer n.daemon.hands.mu.Unlock()
	if users := n.daemon.hands.hand.users; users != 0 {
		t.Errorf("the hand has %d users", users)
	}
}

func TestHandThatNobodyUsesIsLetGo(t *testing.T) {
	n := newNode(t)
	n.daemon.hands.idle = time.Hour
	h := n.leaveHand()
	_, done, err := n.daemon.standingHost()
	if err != nil {
		t.Fatal(err)
	}
	// Its time runs out while it is used, which counts for nothing.
	n.daemon.hands.tire(n.daemon.hands.hand)
	if _, second, err := n.daemon.standingHost(); err != nil {
		t.Errorf("a hand that is used was let go: %v", err)
	} else {
		second()
	}
	n.daemon.hands.idle = time.Millisecond
	done()
	if err := receive(t, "the end of the hand", h.ended); err != nil {
		t.Errorf("the hand: %v", err)
	}
	if _, _, err := n.daemon.standingHost(); !errors.Is(err, errNoHand) {
		t.Errorf("after its end: %v", err)
	}
}

func TestHandDoesNotHoldUpTheEndOfTheDaemon(t *testing.T) {
	n := newNode(t)
	n.kill()
	n.grace = time.Hour
	n.start()
	h := n.leaveHand()
	_, done, err := n.daemon.reachSandbox(within(t), n.sandbox("c"))
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { n.kill(); close(stopped) }()
	eventually(t, "no new user is let in", n.hasNoHand)
	select {
	case <-stopped:
		t.Error("the daemon ended while a container was being worked on")
	default:
	}
	done()
	receive(t, "the end of the daemon", stopped)
	if err := receive(t, "the end of the hand", h.ended); err != nil {
		t.Errorf("the hand: %v", err)
	}
}

func TestEndOfTheGraceCutsAVisitOff(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	reach, done, err := n.daemon.reachSandbox(within(t), n.sandbox("c"))
	if err != nil {
		t.Fatal(err)
	}
	n.kill() // without any grace
	if _, err := reach.Host.Exec(within(t), driver.Program{Name: "plugin"}); !errors.Is(err, wire.ErrLost) {
		t.Errorf("a program: %v", err)
	}
	// The namespace is the user's until he is through.
	if err := reach.NS.Do(func() error { return nil }); err != nil {
		t.Errorf("the namespace: %v", err)
	}
	done()
}

func TestLookAtTellsWhichNamespacesThereAre(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	found, err := n.daemon.lookAt(within(t), []string{n.netns, "/run/netns/braid-nowhere"})
	if err != nil || len(found) != 1 || found[n.netns] != idOf(t, n.netns) {
		t.Errorf("%v, %v; want %v", found, err, idOf(t, n.netns))
	}
}
