package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/snapshot"
	"braid.dev/braid/internal/wire"
)

const (
	// statusWait is how long a STATUS waits for what is being found out. Mostly
	// that takes much less; when it does not, what was found last is the answer.
	statusWait = 12 * time.Millisecond
	// nodeStale is how long the last finding about the node is good while the
	// next one does not come, as on a disk that hangs, and for a moment on a
	// machine that is very busy.
	nodeStale = 30 * time.Second
	// nodeTimeout ends the finding out about the node where it can be ended.
	nodeTimeout = 5 * time.Second
	// answerFresh is how old an answer of the default network's programs may be
	// before they are asked again. A kubelet asks every 5 seconds.
	answerFresh = 3 * time.Second
	// answerStale is how long an answer is good while no other comes.
	answerStale = 2 * time.Minute
	// handWait is how long a hand on the host is waited for.
	handWait = time.Minute
)

// status says whether an ADD would have a chance (CNI specification 1.1,
// STATUS). It answers from what is known: neither a disk nor a program can keep
// the runtime waiting, which asks every few seconds and has the node not ready
// meanwhile.
func (d *Daemon) status(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeout(ctx, d.statusWait)
	defer cancel()
	networks, err := d.health.find(ctx, d.findHealth)
	if err != nil {
		return notAvailable(err)
	}
	asked := d.withPrograms(networks)
	// A probe is none of the host's: nothing can be run through it.
	if len(asked) == 0 || r.NoStay {
		return nil
	}
	q, err := newQuestion(asked, r.Path)
	if err != nil {
		return notAvailable(err)
	}
	answer, ask := d.programs.answer(q, time.Now())
	if answer == nil {
		answer, ask = d.firstAnswer(ctx, q, r.reach)
	}
	if ask {
		d.programs.due.poke()
	}
	return answer.status()
}

// notAvailable has an error say that no ADD has a chance now, unless it says
// itself what is to be expected.
func notAvailable(err error) error {
	if code := codeOf(err); code == types.ErrPluginNotAvailable || code == types.ErrLimitedConnectivity {
		return err
	}
	return &codedError{types.ErrPluginNotAvailable, err}
}

// findHealth finds out about everything that is in Braid's own hands, and
// returns the networks that a pod would get which asks for nothing.
func (d *Daemon) findHealth(ctx context.Context) ([]plan.Network, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, nodeTimeout,
		fmt.Errorf("no answer within %v: %w", nodeTimeout, context.DeadlineExceeded))
	defer cancel()
	p, err := d.plan(ctx, request{Request: wire.Request{IfName: "eth0"}}, plan.Pod{})
	if err != nil {
		return nil, err
	}
	if err := d.Records.Healthy(ctx); err != nil {
		return nil, err
	}
	if d.Installed != nil {
		if err := d.Installed(); err != nil {
			return nil, err
		}
	}
	if d.Cluster != nil {
		if err := d.Cluster.Synced(); err != nil {
			return nil, err
		}
	}
	networks := make([]plan.Network, len(p.Attachments))
	for i, a := range p.Attachments {
		networks[i] = a.Config
	}
	return networks, nil
}

// withPrograms are those of the networks whose programs are to be asked.
func (d *Daemon) withPrograms(networks []plan.Network) []plan.Network {
	var asked []plan.Network
	for _, n := range networks {
		if d.Attacher.AsksPrograms(n) {
			asked = append(asked, n)
		}
	}
	return asked
}

// health is what was last found of the node itself.
type health struct {
	mu   sync.Mutex
	last finding
	// next is closed when what is being found out is known, nil when nobody
	// does. began is since when.
	next  chan struct{}
	began time.Time
}

// finding is what findHealth returned, and when.
type finding struct {
	at       time.Time
	networks []plan.Network
	err      error
}

// find runs what, once for all who ask meanwhile, and returns what it found. If
// ctx ends before, that is what was found last, or how long this takes already.
func (h *health) find(ctx context.Context, what func(context.Context) ([]plan.Network, error)) ([]plan.Network, error) {
	h.mu.Lock()
	if h.next == nil {
		next := make(chan struct{})
		h.next, h.began = next, time.Now()
		go func() { // ends when what does
			networks, err := what(context.WithoutCancel(ctx))
			h.mu.Lock()
			defer h.mu.Unlock()
			h.last, h.next = finding{time.Now(), networks, err}, nil
			close(next)
		}()
	}
	next := h.next
	h.mu.Unlock()
	select {
	case <-next:
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.last.at) <= nodeStale {
		return h.last.networks, h.last.err
	}
	return nil, fmt.Errorf("this node's records and configuration are being looked at since %v; a disk may hang",
		time.Since(h.began).Round(time.Millisecond))
}

// question is what the programs of networks are asked.
type question struct {
	networks []plan.Network
	// path is the CNI_PATH of the one who asks.
	path string
	// about is equal for equal networks.
	about string
}

func newQuestion(networks []plan.Network, path string) (question, error) {
	about, err := json.Marshal(networks)
	return question{networks, path, string(about)}, err
}

// answer is what the programs said. It is kept in a file, too.
type answer struct {
	About string `json:"about"`
	// Code is 0 when they are ready.
	Code uint   `json:"code,omitempty"`
	Msg  string `json:"msg,omitempty"`
	at   time.Time
}

func newAnswer(q question, err error) *answer {
	a := &answer{About: q.about, at: time.Now()}
	if err != nil {
		err = notAvailable(err)
		a.Code, a.Msg = codeOf(err), err.Error()
	}
	return a
}

// status is the answer to STATUS.
func (a *answer) status() error {
	if a.Code == 0 {
		return nil
	}
	return types.NewError(a.Code, a.Msg, "")
}

func (a *answer) same(b *answer) bool {
	return b != nil && a.About == b.About && a.Code == b.Code && a.Msg == b.Msg
}

// programs is what the programs of the default network answered last.
type programs struct {
	// file has the answer for the next daemon, which would otherwise not know
	// whether the node is ready until it could ask.
	file string
	due  bell

	mu   sync.Mutex
	last *answer
	// next is what is to be asked, and tried what was asked by somebody's STATUS.
	next  question
	tried string
}

// load takes the answer over that an earlier daemon left.
func (p *programs) load() error {
	if p.file == "" {
		return nil
	}
	last := &answer{at: time.Now()}
	_, err := snapshot.Read(p.file, func(d *json.Decoder) error { return d.Decode(last) })
	if err == nil {
		p.last = last
	}
	return err
}

// answer is what is known, nil when nothing is, and whether to ask anew.
func (p *programs) answer(q question, now time.Time) (known *answer, ask bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = q
	if p.last == nil || p.last.About != q.about {
		return nil, true
	}
	age := now.Sub(p.last.at)
	if age <= answerStale {
		return p.last, age > answerFresh
	}
	return newAnswer(q, fmt.Errorf("the default network's programs have not said for %v whether they are ready", age.Round(time.Second))), true
}

// isFirst reports whether q is asked for the first time.
func (p *programs) isFirst(q question) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.tried != q.about
	p.tried = q.about
	return first
}

func (p *programs) question() question {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

// learn takes an answer. An error says that the file could not be written.
func (p *programs) learn(a *answer) error {
	p.mu.Lock()
	news := !a.same(p.last)
	p.last = a
	p.mu.Unlock()
	if p.file == "" || !news {
		return nil
	}
	return snapshot.Write(p.file, func(e *json.Encoder) error { return e.Encode(a) })
}

// firstAnswer asks by means of the one who asks, for as long as that one can
// wait: mostly, programs take longer. That is done once; from then on the
// background has to do it.
func (d *Daemon) firstAnswer(ctx context.Context, q question, reach attach.Reach) (a *answer, ask bool) {
	unknown := newAnswer(q, errors.New("the default network's programs are being asked whether they are ready"))
	if !d.programs.isFirst(q) {
		return unknown, true
	}
	answered := make(chan error, 1)
	go func() { answered <- d.askPrograms(ctx, q, reach) }() // ends with the connection at the latest
	select {
	case err := <-answered:
		if ctx.Err() == nil {
			a = newAnswer(q, err)
			d.learn(a)
			return a, false
		}
	case <-ctx.Done(): // before the program was killed, which takes time
	}
	return unknown, true
}

func (d *Daemon) askPrograms(ctx context.Context, q question, reach attach.Reach) error {
	for _, n := range q.networks {
		if err := d.Attacher.Status(ctx, n, reach); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) learn(a *answer) {
	if err := d.programs.learn(a); err != nil {
		d.Log.Warn("the default network's answer to STATUS is not kept for a restart", "err", err)
	}
}

// programsLoop asks the default network's programs whether they are ready, when
// a STATUS has found the last answer too old.
func (d *Daemon) programsLoop(ctx context.Context) error {
	for {
		select {
		case <-d.programs.due:
		case <-ctx.Done():
			return nil
		}
		err := d.refreshAnswer(ctx)
		if err != nil && ctx.Err() == nil {
			d.Log.Debug("the default network's programs could not be asked", "err", err)
		}
	}
}

// refreshAnswer asks by the hand on the host, once there is one.
func (d *Daemon) refreshAnswer(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, handWait)
	defer cancel()
	select {
	case <-d.wantHand():
	case <-waiting.Done():
		return waiting.Err()
	}
	host, done, err := d.standingHost()
	if err != nil {
		return err
	}
	defer done()
	q := d.programs.question()
	err = d.askPrograms(ctx, q, attach.Reach{Host: host, Path: q.path})
	if ctx.Err() != nil || errors.Is(err, wire.ErrLost) {
		return err // the hand's end, not an answer
	}
	d.learn(newAnswer(q, err))
	return nil
}
