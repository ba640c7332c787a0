package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/wire"
)

var statusRequest = wire.Request{Command: "STATUS", Path: "/opt/cni/bin", Stdin: []byte(`{"cniVersion":"1.1.0","name":"braid"}`)}

// TestStatusIsAnsweredWhileTheDiskHangs: here it is the conf dir's.
func TestStatusIsAnsweredWhileTheDiskHangs(t *testing.T) {
	hang, entered := make(chan struct{}), make(chan struct{}, 8)
	var hangs atomic.Bool
	n := newNode(t, func(c *Config) {
		c.Installed = func() error {
			if hangs.Load() {
				entered <- struct{}{}
				<-hang
			}
			return nil
		}
	})
	hangs.Store(true)
	n.refused(n.ask(statusRequest), 50, "a disk may hang")
	n.refused(n.ask(statusRequest), 50, "a disk may hang")
	<-entered
	select {
	case <-entered:
		t.Error("every STATUS hangs one more goroutine")
	default:
	}
	hangs.Store(false)
	close(hang)
	// What was begun ends, and is the answer from then on.
	n.daemon.statusWait = time.Minute
	if reply := n.ask(statusRequest); reply.Error != nil {
		t.Error(reply.Error)
	}
}

func TestLastFindingIsGoodForSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		hang := make(chan struct{})
		find := func(what func(context.Context) ([]plan.Network, error)) (string, time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), statusWait)
			defer cancel()
			start := time.Now()
			_, err := h.find(ctx, what)
			return fmt.Sprint(err), time.Since(start)
		}
		broken := func(context.Context) ([]plan.Network, error) { return nil, errors.New("no space") }
		hanging := func(context.Context) ([]plan.Network, error) { <-hang; return nil, nil }
		if got, took := find(broken); got != "no space" || took != 0 {
			t.Errorf("%s after %v", got, took)
		}
		if got, took := find(hanging); got != "no space" || took != statusWait {
			t.Errorf("%s after %v, want what was found last", got, took)
		}
		time.Sleep(nodeStale)
		if got, took := find(broken); !strings.Contains(got, "a disk may hang") || took != statusWait {
			t.Errorf("%s after %v", got, took)
		}
		close(hang)
		synctest.Wait()
		if got, took := find(broken); got != "no space" || took != 0 {
			t.Errorf("%s after %v, want what is found now", got, took)
		}
	})
}

const otherNetwork = `{"cniVersion":"1.1.0","name":"other","plugins":[{"type":"fake"},{"type":"other"}]}`

// newStatusNode has a default network with a program that answers STATUS with
// run, and a file that keeps the answer.
func newStatusNode(t *testing.T, run func(context.Context, wire.Exec) wire.ExecResult) *node {
	file := filepath.Join(t.TempDir(), "status")
	n := newNode(t, func(c *Config) {
		c.Networks = networks{[]plan.Network{conflist(t, otherNetwork)}}
		c.StatusFile = file
	})
	n.program = run
	return n
}

func said(code int, msg string) wire.ExecResult {
	return wire.ExecResult{ExitCode: 1, Stdout: []byte(fmt.Sprintf(`{"cniVersion":"1.1.0","code":%d,"msg":%q}`, code, msg))}
}

// TestStatusDoesNotWaitForTheDefaultNetworksProgram: the one here never ends.
func TestStatusDoesNotWaitForTheDefaultNetworksProgram(t *testing.T) {
	n := newStatusNode(t, func(ctx context.Context, _ wire.Exec) wire.ExecResult {
		<-ctx.Done()
		return wire.ExecResult{Failure: wire.Canceled}
	})
	for range 3 {
		n.refused(n.ask(statusRequest), 50, "being asked")
	}
	// A probe does not ask it at all, nor is it told what it said.
	probe := statusRequest
	probe.NoStay = true
	if reply := n.ask(probe); reply.Error != nil {
		t.Error(reply.Error)
	}
}

func TestStatusOfTheDefaultNetworkIsKnownToTheNextDaemon(t *testing.T) {
	var runs atomic.Int32
	n := newStatusNode(t, func(context.Context, wire.Exec) wire.ExecResult {
		runs.Add(1)
		return said(51, "no more colours")
	})
	n.daemon.statusWait = time.Minute
	n.refused(n.ask(statusRequest), 51, "no more colours")
	n.program = func(context.Context, wire.Exec) wire.ExecResult { runs.Add(1); return wire.ExecResult{} }
	n.refused(n.ask(statusRequest), 51, "no more colours") // just now
	n.kill()
	n.start()
	n.daemon.statusWait = time.Minute
	n.refused(n.ask(statusRequest), 51, "no more colours")
	if got := runs.Load(); got != 1 {
		t.Errorf("the program was run %d times", got)
	}
	// Of another network nothing is known.
	n.kill()
	n.config.Networks = networks{[]plan.Network{conflist(t, strings.Replace(otherNetwork, `"name":"other"`, `"name":"another"`, 1))}}
	n.start()
	n.daemon.statusWait = time.Minute
	if reply := n.ask(statusRequest); reply.Error != nil || runs.Load() != 2 {
		t.Errorf("%v after %d runs", reply.Error, runs.Load())
	}
}

func TestAnswersOfProgramsGetOld(t *testing.T) {
	q := question{about: "a"}
	p := programs{due: newBell()}
	now := time.Now()
	if got, ask := p.answer(q, now); got != nil || !ask {
		t.Errorf("before the first: %+v, ask %v", got, ask)
	}
	if err := p.learn(newAnswer(q, nil)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		age     time.Duration
		ask     bool
		refused string
	}{
		{answerFresh / 2, false, ""},
		{answerFresh * 2, true, ""},
		{answerStale + time.Minute, true, "have not said for"},
	} {
		got, ask := p.answer(q, now.Add(tc.age))
		if ask != tc.ask || (got.status() == nil) != (tc.refused == "") || !strings.Contains(got.Msg, tc.refused) {
			t.Errorf("after %v: %+v, ask %v", tc.age, got, ask)
		}
	}
	if got, ask := p.answer(question{about: "b"}, now); got != nil || !ask {
		t.Errorf("another network: %+v, ask %v", got, ask)
	}
}

func TestErrorsOfProgramsAreCodesOfStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		result wire.ExecResult
		code   uint
		words  string
	}{
		"ready":                {wire.ExecResult{}, 0, ""},
		"limited connectivity": {said(51, "half of it"), 51, "half of it"},
		"not available":        {said(50, "not yet"), 50, "not yet"},
		"another error":        {said(7, "bad configuration"), 50, "bad configuration"},
		"missing":              {wire.ExecResult{Failure: wire.NotFound}, 50, "other"},
	} {
		n := newStatusNode(t, func(context.Context, wire.Exec) wire.ExecResult { return tc.result })
		n.daemon.statusWait = time.Minute
		reply := n.ask(statusRequest)
		if tc.code != 0 {
			n.refused(reply, tc.code, tc.words)
		} else if reply.Error != nil {
			t.Errorf("%s: %v", name, reply.Error)
		}
		n.kill()
	}
}

func TestStatusFollowsTheDefaultNetworkByTheHandOnTheHost(t *testing.T) {
	n := newStatusNode(t, func(context.Context, wire.Exec) wire.ExecResult { return said(51, "no more colours") })
	n.daemon.statusWait = time.Minute
	n.refused(n.ask(statusRequest), 51, "no more colours")
	n.leaveHand() // its programs succeed
	if err := n.daemon.refreshAnswer(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.program = nil // and those of the shim that asks are not needed
	if reply := n.ask(statusRequest); reply.Error != nil {
		t.Error(reply.Error)
	}
}

func TestHandThatIsLostIsNoAnswer(t *testing.T) {
	n := newStatusNode(t, func(context.Context, wire.Exec) wire.ExecResult { return wire.ExecResult{} })
	n.daemon.statusWait = time.Minute
	if reply := n.ask(statusRequest); reply.Error != nil {
		t.Error(reply.Error)
	}
	n.leaveHand(func(h *host) {
		h.program = func(wire.Exec) wire.ExecResult { h.lose(); return said(50, "killed") }
	})
	if err := n.daemon.refreshAnswer(t.Context()); err == nil {
		t.Error("an answer out of nothing")
	}
	if reply := n.ask(statusRequest); reply.Error != nil {
		t.Error(reply.Error)
	}
}

// TestStatusLoopAsksWhenTheAnswerIsOld: the STATUS that finds it old is what
// makes it new, for the next one.
func TestStatusLoopAsksWhenTheAnswerIsOld(t *testing.T) {
	n := newStatusNode(t, func(context.Context, wire.Exec) wire.ExecResult { return said(51, "no more colours") })
	n.daemon.statusWait = time.Minute
	n.refused(n.ask(statusRequest), 51, "no more colours")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.daemon.programsLoop(ctx) }()
	asked := make(chan struct{}, 1)
	n.leaveHand(func(h *host) {
		h.program = func(wire.Exec) wire.ExecResult { asked <- struct{}{}; return wire.ExecResult{} }
	})
	select {
	case <-asked:
		t.Error("asked although the answer is new")
	default:
	}
	n.daemon.programs.mu.Lock()
	n.daemon.programs.last.at = time.Now().Add(-2 * answerFresh)
	n.daemon.programs.mu.Unlock()
	n.refused(n.ask(statusRequest), 51, "no more colours") // what is known, at once
	receive(t, "the question", asked)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
