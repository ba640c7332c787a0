package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
)

// teller tells the cluster what a pod gets, as early as that is known: the API
// server works while the kernel and the disk do.
type teller struct {
	daemon *Daemon
	pod    plan.Pod
	// latest is the write that counts, nil before there is one.
	latest *writing
}

// follow has an ADD tell what the pod gets as soon as that is known.
func (t *teller) follow(ctx context.Context, reach *attach.Reach) {
	if !t.daemon.WaitForStatus {
		return
	}
	reach.Made = func(done []attach.Attached) { t.begin(ctx, done) }
	if t.daemon.ConfDirNetworks > 1 || len(t.pod.Annotations) > 0 { // or else there is nothing to tell
		reach.Foretold = reach.Made
	}
}

// writing is one write of a network status.
type writing struct {
	text   string
	cancel context.CancelFunc
	done   chan struct{} // closed: err is the outcome
	err    error
	sent   bool // it, or the one before it
}

// begin writes the network status in the background, unless it is being written
// or was. It replaces an earlier one, and comes after it: of two requests under
// way the API server may serve the second first.
func (t *teller) begin(ctx context.Context, done []attach.Attached) {
	text, err := status.Text(outcomesOf(done))
	before := t.latest
	if before != nil && before.text == text {
		return
	}
	if err != nil {
		err = fmt.Errorf("write the network status: %w", err)
	}
	w := &writing{text: text, done: make(chan struct{}), err: err}
	ctx, w.cancel = context.WithCancel(ctx)
	t.latest = w
	go func() {
		defer close(w.done)
		defer w.cancel()
		if before != nil {
			<-before.done
			w.sent = before.sent
		}
		if w.err == nil && (w.sent || statusIsDue(t.pod, text, len(done))) {
			w.sent = true
			w.err = t.daemon.setStatus(ctx, t.pod, text)
		}
	}()
}

// abandon is the end of an ADD that failed: the pod has what it had before, and
// its status says so again. When that cannot be written, the pod's next ADD
// replaces it.
func (t *teller) abandon(ctx context.Context) {
	if t.latest == nil {
		return
	}
	t.latest.cancel()
	<-t.latest.done
	if !t.latest.sent || t.daemon.Cluster == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawLimit)
	defer cancel()
	if err := t.daemon.Cluster.SetNetworkStatus(ctx, t.pod, t.pod.Annotations[status.Annotation]); err != nil {
		t.daemon.Log.Warn("the network status of an ADD that failed stays until the next one", "pod", podName(t.pod), "err", err)
	}
}

// withdrawLimit bounds what a failed ADD waits for its status to be withdrawn.
const withdrawLimit = 5 * time.Second

// end leaves the status and the events to tellLoop. With WaitForStatus it waits
// until the status is written, writes it if begin did not, and tells the events.
func (t *teller) end(ctx context.Context, r request, done []attach.Attached) error {
	if !t.daemon.WaitForStatus {
		t.daemon.tellLater(untold{r.ContainerID, r.IfName, t.pod, done})
		return nil
	}
	t.begin(ctx, done)
	<-t.latest.done
	if err := t.latest.err; err != nil {
		// A pod must not run with networks that it cannot learn of.
		return tryLater(err)
	}
	t.daemon.added(t.pod, done)
	return nil
}

// added tells the events of what a pod got beside its default network.
func (d *Daemon) added(pod plan.Pod, done []attach.Attached) {
	if d.Cluster == nil || pod.Name == "" || len(done) < 2 {
		return
	}
	for _, o := range outcomesOf(done) {
		d.Cluster.Added(pod, status.Added(o))
	}
}

func outcomesOf(done []attach.Attached) []status.Outcome {
	outcomes := make([]status.Outcome, len(done))
	for i, a := range done {
		outcomes[i] = status.Outcome{Attachment: a.Attachment, Result: a.Result, Notes: a.Notes, DeviceInfo: a.DeviceInfo}
	}
	return outcomes
}

// setStatus writes the network status of a pod. While the API server is away the
// pod is not kept waiting: the records know what is to be written, and converge
// does.
func (d *Daemon) setStatus(ctx context.Context, pod plan.Pod, text string) error {
	if d.Cluster == nil {
		return nil
	}
	err := d.Cluster.SetNetworkStatus(ctx, pod, text)
	if errors.Is(err, ErrAway) {
		d.Log.Warn("the network status is written when the API server is back", "pod", podName(pod), "err", err)
		d.late.poke()
		return nil
	}
	return err
}

// statusIsDue reports whether the annotation that the pod has is to be replaced.
// A pod with the default network alone needs none, and costs no API request, but
// what is there is true. A container that is no pod has none.
func statusIsDue(pod plan.Pod, text string, networks int) bool {
	is, has := pod.Annotations[status.Annotation]
	return pod.Name != "" && is != text && (networks > 1 || has)
}
