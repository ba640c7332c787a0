package daemon

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// Hot plug makes an edit of the networks annotation true for a pod that runs.
// What is to be done is the difference between the annotation and the records,
// so nothing else has to be remembered: after an outage or a restart it is found
// by looking.

const (
	// plugWorkers is how many pods are changed at once.
	plugWorkers = 4
	// plugQuiet is how long an annotation has been the same before it is acted
	// on: people and controllers edit more than once, and the watch may be a
	// moment behind what the ADD was told.
	plugQuiet = 500 * time.Millisecond
	// plugFirst and plugLast bound the pause before another try.
	plugFirst, plugLast = time.Second, time.Minute
	// plugAbsent is how long a pod may have no records before it is asked why,
	// and a hand on the host may be missing before the pod is told. The question
	// is repeated ever later, up to plugRarely.
	plugAbsent, plugRarely = 30 * time.Second, 10 * time.Minute
	// plugLook is how often the pods are looked at although nothing is known to
	// have changed.
	plugLook = time.Minute
	// plugBlind is how often to ask whether memory is behind the API: what it
	// says then may be older than what the pods have.
	plugBlind = time.Second
)

var (
	// errAbsent says that a pod has no records.
	errAbsent = errors.New("the pod has no network of Braid's")
	// errYield says that a request of the runtime waits for the container.
	errYield = errors.New("the runtime goes first")
)

// plugger is what requests and the loop that follows the pods share.
type plugger struct {
	// quiet, first and absent are plugQuiet, plugFirst and plugAbsent.
	quiet, first, absent time.Duration
	// bell is rung when attached has grown.
	bell bell

	mu       sync.Mutex
	attached []store.Sandbox
}

func newPlugger() plugger {
	return plugger{quiet: plugQuiet, first: plugFirst, absent: plugAbsent, bell: newBell()}
}

// served tells that an ADD gave a pod what its annotation asked for then.
func (p *plugger) served(sb store.Sandbox) {
	p.mu.Lock()
	p.attached = append(p.attached, sb)
	p.mu.Unlock()
	p.bell.poke()
}

func (p *plugger) takeServed() []store.Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.attached
	p.attached = nil
	return list
}

// hotplugLoop compares the pods of this node with their records: all of them
// after a start, and each one when its annotation is edited.
func (d *Daemon) hotplugLoop(ctx context.Context) error {
	if d.Cluster == nil {
		return nil
	}
	l := plugLoop{d: d, pods: map[string]*watched{}, ended: make(chan plugged, plugWorkers)}
	defer l.workers.Wait()
	for ctx.Err() == nil {
		pods, changed := d.Cluster.All()
		next := time.Now().Add(plugBlind)
		following := d.Cluster.Following() == nil
		if following {
			l.see(pods, time.Now())
		}
		l.serve(time.Now())
		if following {
			l.start(ctx, time.Now())
			next = l.next(time.Now())
		}
		l.wait(ctx, changed, next)
	}
	return nil
}

// plugLoop is the state of the loop.
type plugLoop struct {
	d *Daemon
	// pods are those of this node by UID.
	pods map[string]*watched
	// began says that the pods have been seen once.
	began   bool
	workers sync.WaitGroup
	running int
	ended   chan plugged
}

// watched is one pod as the loop knows it.
type watched struct {
	pod plan.Pod
	// sandbox is nil as long as no record of the pod is known.
	sandbox *store.Sandbox
	// due is when to compare it with its records, or to ask why it has none.
	// Zero means when something happens.
	due time.Time
	// busy says that a worker is at it.
	busy bool
	// pause is the one after the last failure, 0 without one.
	pause time.Duration
	// absent says that it had no records when they were looked for last, and
	// handless that no hand was there to reach it.
	absent, handless bool
	// old says that it was there when the daemon came and was not edited since.
	// It may have been started without Braid, which is nothing to tell it of.
	old bool
	// said is the failure that was told of last.
	said string
}

func networksOf(pod plan.Pod) string { return pod.Annotations[plan.NetworksAnnotation] }

// see takes in how the pods are now.
func (l *plugLoop) see(pods []plan.Pod, now time.Time) {
	there := map[string]bool{}
	for _, pod := range pods {
		there[pod.UID] = true
		w, known := l.pods[pod.UID]
		switch {
		case !known && !l.began: // it may have been edited while nobody looked
			l.pods[pod.UID] = &watched{pod: pod, due: now, old: true}
		case !known: // its ADD is to come
			w = &watched{pod: pod}
			w.miss(now, l.d.plugs.absent)
			l.pods[pod.UID] = w
		case networksOf(w.pod) != networksOf(pod):
			*w = watched{pod: pod, sandbox: w.sandbox, busy: w.busy, due: now.Add(l.d.plugs.quiet)}
		default:
			w.pod = pod
		}
	}
	for uid := range l.pods {
		if !there[uid] {
			delete(l.pods, uid)
		}
	}
	l.began = true
}

// serve takes in which pods an ADD has served.
func (l *plugLoop) serve(now time.Time) {
	for _, sb := range l.d.plugs.takeServed() {
		w, known := l.pods[sb.Pod.UID]
		if !known {
			continue // it is compared when it comes to memory
		}
		*w = watched{pod: w.pod, sandbox: &sb, busy: w.busy}
		if networksOf(w.pod) != networksOf(sb.Pod) {
			w.due = now.Add(l.d.plugs.quiet)
		}
	}
}

// miss notes that a pod has no records.
func (w *watched) miss(now time.Time, pause time.Duration) {
	w.sandbox, w.absent, w.due = nil, true, time.Time{}
	if networksOf(w.pod) != "" {
		w.pause = min(max(2*w.pause, pause), plugRarely)
		w.due = now.Add(w.pause)
	}
}

// start gives the pods that are due to workers, as many as there are.
func (l *plugLoop) start(ctx context.Context, now time.Time) {
	var due []*watched
	for _, w := range l.pods {
		if !w.busy && !w.due.IsZero() && !w.due.After(now) {
			due = append(due, w)
		}
	}
	if len(due) == 0 || l.running == plugWorkers || !l.findSandboxes(due, now) {
		return
	}
	slices.SortFunc(due, func(a, b *watched) int { return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.pod.UID, b.pod.UID)) })
	for _, w := range due {
		work := l.d.change
		if w.sandbox == nil {
			if !w.absent || w.old {
				w.miss(now, l.d.plugs.absent)
				continue
			}
			work = l.d.askWhyAbsent
		}
		if l.running == plugWorkers {
			return
		}
		l.running++
		w.busy, w.due = true, time.Time{}
		job := *w
		l.workers.Go(func() { l.ended <- plugged{job.pod.UID, work(ctx, job)} })
	}
}

// findSandboxes looks up the records of pods of which none are known yet.
func (l *plugLoop) findSandboxes(due []*watched, now time.Time) bool {
	if !slices.ContainsFunc(due, func(w *watched) bool { return w.sandbox == nil }) {
		return true
	}
	records, err := l.d.Records.All()
	if err := store.ExceptDamaged(err); err != nil {
		l.d.Log.Error("running pods are not compared with their annotations", "err", err)
		for _, w := range due {
			w.due = now.Add(plugLast)
		}
		return false
	}
	sandboxes := map[string]store.Sandbox{}
	for _, records := range livingSandboxes(records) {
		sb := records[0].Sandbox
		if pod, ok := l.d.Cluster.Known(sb.Pod.Namespace, sb.Pod.Name, sb.Pod.UID); ok {
			sandboxes[pod.UID] = sb
		}
	}
	for _, w := range due {
		if sb, ok := sandboxes[w.pod.UID]; ok && w.sandbox == nil {
			w.sandbox = &sb
		}
	}
	return true
}

// next is when to look again, should nothing happen.
func (l *plugLoop) next(now time.Time) time.Time {
	next := now.Add(plugLook)
	for _, w := range l.pods {
		if !w.busy && !w.due.IsZero() && l.running < plugWorkers && w.due.Before(next) {
			next = w.due
		}
	}
	return next
}

// wait waits until there may be something to do.
func (l *plugLoop) wait(ctx context.Context, changed <-chan struct{}, next time.Time) {
	var hand <-chan struct{}
	for _, w := range l.pods {
		if w.handless {
			hand = l.d.wantHand()
			break
		}
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-l.d.plugs.bell:
	case <-timer.C:
	case <-hand:
		for _, w := range l.pods {
			if w.handless {
				w.handless, w.due = false, time.Now()
			}
		}
	case p := <-l.ended:
		l.running--
		if w, ok := l.pods[p.uid]; ok {
			w.busy = false
			l.finish(w, p.err, time.Now())
		}
	}
}

// plugged is what became of one pod.
type plugged struct {
	uid string
	err error
}

// finish decides when to look at a pod again. One that was edited meanwhile is
// due already, and what was tried before that is of no interest.
func (l *plugLoop) finish(w *watched, err error, now time.Time) {
	if errors.Is(err, errAbsent) {
		w.sandbox = nil
	}
	switch {
	case !w.due.IsZero():
	case err == nil, errors.Is(err, ErrGone), errors.Is(err, context.Canceled):
		w.pause, w.said = 0, ""
	case errors.Is(err, errAbsent):
		w.miss(now, l.d.plugs.absent)
	case errors.Is(err, errYield):
		w.due = now.Add(l.d.plugs.quiet)
	case errors.Is(err, errNoHand) && !w.handless:
		// Soon enough a request of the runtime brings one.
		w.handless, w.due = true, now.Add(l.d.plugs.absent)
	default:
		w.pause = min(max(2*w.pause, l.d.plugs.first), plugLast)
		w.due = now.Add(w.pause)
		l.tell(w, err)
	}
}

// tell has the pod know why it is not changed yet, once for each reason that
// does not go away by itself.
func (l *plugLoop) tell(w *watched, err error) {
	text := err.Error()
	if text == w.said {
		return
	}
	w.said = text
	l.d.Log.Warn("a running pod cannot be changed yet", "pod", podName(w.pod), "err", err)
	if errors.Is(err, ErrAway) || errors.Is(err, wire.ErrLost) {
		return
	}
	l.d.Cluster.Failed(w.pod, "the networks of the running pod are not changed yet: "+text)
}

// askWhyAbsent tells a pod why it gets none of the networks that it asks for.
func (d *Daemon) askWhyAbsent(ctx context.Context, w watched) error {
	life, err := d.Cluster.Life(ctx, w.pod)
	switch {
	case err != nil:
		return err
	case life.HostNetwork:
		d.Cluster.Failed(w.pod, "the pod is in the network of its node (hostNetwork): it gets no networks of its own")
	case life.Running:
		d.Cluster.Failed(w.pod, "the pod was started without Braid, so that its networks cannot be changed; make the pod anew")
	default:
		return errAbsent // its ADD may come yet
	}
	return nil
}
