package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
	"braid.dev/braid/internal/store"
)

// change gives one pod that runs what its annotation asks for. It takes the
// container's turn, as a request of the runtime does.
func (d *Daemon) change(ctx context.Context, w watched) error {
	sb := *w.sandbox
	ctx, cancel := context.WithTimeoutCause(ctx, d.RequestTimeout,
		fmt.Errorf("the change did not finish within %v: %w", d.RequestTimeout, context.DeadlineExceeded))
	defer cancel()
	leave, err := d.queue.enter(ctx, sb.ContainerID)
	if err != nil {
		return fmt.Errorf("wait for the request of this container: %w", err)
	}
	defer leave()
	pod, ok := d.Cluster.Known(w.pod.Namespace, w.pod.Name, w.pod.UID)
	if !ok {
		return ErrGone
	}
	records, err := d.Records.Sandbox(sb.ContainerID, sb.IfName)
	if err != nil {
		return err
	}
	if !isAttached(records) {
		return errAbsent
	}
	c, planErr := d.changeOf(ctx, sb, pod, inUse(records))
	going := going(c, records)
	if len(going) == 0 && len(c.Add) == 0 {
		return planErr
	}
	reach, done, err := d.reachSandbox(ctx, sb)
	if err != nil {
		return errors.Join(planErr, err)
	}
	defer done()
	if reach.NS == nil {
		return errAbsent // its DEL is on the way
	}
	made, err := d.apply(ctx, sb, c, going, reach)
	if err != nil {
		d.forgetDevices(pod)
	}
	return errors.Join(planErr, err, d.tell(ctx, pod, sb, made))
}

// isAttached reports whether an ADD has finished with a sandbox. One that was
// cut off is the runtime's to repeat or to give up.
func isAttached(records []store.Record) bool {
	return len(records) > 0 && !slices.ContainsFunc(records, func(r store.Record) bool {
		return !r.Complete() && !r.Plugged
	})
}

func inUse(records []store.Record) []plan.Attachment {
	var list []plan.Attachment
	for _, r := range records {
		if r.InUse() {
			list = append(list, r.Attachment)
		}
	}
	return list
}

// going are the records to take down: those that the pod no longer asks for,
// and what an earlier change left unfinished.
func going(c plan.Change, records []store.Record) []store.Record {
	var list []store.Record
	for _, r := range records {
		unwanted := slices.ContainsFunc(c.Remove, func(a plan.Attachment) bool { return a.IfName == r.Attachment.IfName })
		if attach.Unfinished(r) || unwanted {
			list = append(list, r)
		}
	}
	return list
}

// made is what a change came to.
type made struct {
	removed []plan.Attachment
	added   []attach.Attached
}

// apply takes down and attaches. One attachment that fails keeps no other one
// from being made, but a request of the runtime goes before the next.
func (d *Daemon) apply(ctx context.Context, sb store.Sandbox, c plan.Change, going []store.Record, reach attach.Reach) (m made, err error) {
	if len(going) > 0 {
		m.removed, err = d.unplug(ctx, sb, c, going, reach)
	}
	errs := []error{err}
	for _, at := range c.Add {
		if d.queue.waited(sb.ContainerID) {
			errs = append(errs, errYield)
			break
		}
		added, err := d.Attacher.Plug(ctx, sb.ContainerID, sb.IfName, at, reach)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m.added = append(m.added, added)
	}
	return m, errors.Join(errs...)
}

// unplug takes attachments down and says which ones the pod had, and why it has
// them no longer.
func (d *Daemon) unplug(ctx context.Context, sb store.Sandbox, c plan.Change, going []store.Record, reach attach.Reach) ([]plan.Attachment, error) {
	goes := func(r store.Record) bool {
		return slices.ContainsFunc(going, func(g store.Record) bool { return g.Key() == r.Key() })
	}
	deleted, err := d.Attacher.Unplug(ctx, sb.ContainerID, sb.IfName, goes, reach)
	d.logGaveUp(sb.ContainerID, deleted)
	left, readErr := d.Records.Sandbox(sb.ContainerID, sb.IfName)
	if readErr != nil {
		return nil, errors.Join(err, readErr)
	}
	var removed []plan.Attachment
	for _, r := range going {
		if !r.Complete() || slices.ContainsFunc(left, func(l store.Record) bool { return l.Key() == r.Key() }) {
			continue
		}
		a := r.Attachment
		if i := slices.IndexFunc(c.Remove, func(o plan.Attachment) bool { return o.IfName == a.IfName }); i >= 0 {
			a = c.Remove[i]
		} else {
			a.Reasons = []string{"no longer asked for"}
		}
		removed = append(removed, a)
	}
	return removed, err
}

// tell has the cluster know what the pod has now, as an ADD does.
func (d *Daemon) tell(ctx context.Context, pod plan.Pod, sb store.Sandbox, m made) error {
	if len(m.removed) == 0 && len(m.added) == 0 {
		return nil
	}
	d.Log.Info("the networks of a running pod were changed", "pod", podName(pod), "container", sb.ContainerID,
		"removed", names(m.removed), "added", names(attachmentsOf(m.added)))
	records, err := d.Records.Sandbox(sb.ContainerID, sb.IfName)
	if err != nil {
		return err
	}
	text, _, err := statusOf(records)
	if err != nil {
		return err
	}
	// What memory has of the annotation may be older than the last change.
	if err := d.setStatus(ctx, pod, text); err != nil {
		return err
	}
	for _, a := range m.removed {
		d.Cluster.Removed(pod, status.Removed(a))
	}
	for _, a := range m.added {
		d.Cluster.Added(pod, status.Added(status.Outcome{Attachment: a.Attachment, Result: a.Result, Notes: a.Notes}))
	}
	return nil
}

func attachmentsOf(done []attach.Attached) []plan.Attachment {
	list := make([]plan.Attachment, len(done))
	for i, a := range done {
		list[i] = a.Attachment
	}
	return list
}

func names(list []plan.Attachment) []string {
	var names []string
	for _, a := range list {
		names = append(names, a.IfName+" "+a.Network)
	}
	return names
}
