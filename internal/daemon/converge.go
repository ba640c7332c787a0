package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
	"braid.dev/braid/internal/store"
)

const (
	// convergeEvery is how often annotations are compared with records although
	// nobody knows of a difference.
	convergeEvery = time.Minute
	// convergeSoon and convergeLate bound the pause while something is known to
	// be missing. The annotations of a node are compared in memory, so a short
	// one costs the API server nothing.
	convergeSoon, convergeLate = time.Second, 5 * time.Second
	// convergePace is the pause between two writes of one round: those of ADDs
	// come first.
	convergePace = 50 * time.Millisecond
	// knownLate is how long after its ADD a pod may come to memory.
	knownLate = 2 * time.Minute
	// refusedFirst and refusedLast bound the pause before a status is offered
	// again that the API server refused.
	refusedFirst, refusedLast = time.Minute, time.Hour
)

// convergeLoop makes the network status of every pod of this node what its
// records say: after a start, every minute, and soon after a write came to
// nothing, whether it was this daemon's or an earlier one's.
func (d *Daemon) convergeLoop(ctx context.Context) error {
	if d.Cluster == nil {
		return nil
	}
	refused := refusals{}
	pause := convergeSoon
	for ctx.Err() == nil {
		next := convergeEvery
		if d.converge(ctx, refused) {
			pause = convergeSoon
		} else {
			next = pause
			pause = min(2*pause, convergeLate)
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-d.late:
			// The API server was away a moment ago.
			sleep(ctx, convergeSoon)
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// converge compares once, and writes what is missing. It returns false when
// something may still be.
func (d *Daemon) converge(ctx context.Context, refused refusals) bool {
	if d.Cluster.Following() != nil {
		return false // what the pods have now is not known
	}
	records, err := d.Records.All()
	if err := store.ExceptDamaged(err); err != nil {
		d.Log.Error("network statuses are not compared", "err", err)
		return false
	}
	sandboxes := livingSandboxes(records)
	refused.keepOnly(sandboxes)
	all := true
	for _, records := range sandboxes {
		sb := records[0].Sandbox
		if refused.waits(sb, time.Now()) {
			continue
		}
		if d.queue.busy(sb.ContainerID) {
			all = false // whoever is at it may write the status, or may not
			continue
		}
		pod, ok := d.Cluster.Known(sb.Pod.Namespace, sb.Pod.Name, sb.Pod.UID)
		if !ok {
			// It is gone, or it comes to memory in a moment, as the mirror of a
			// static pod may.
			all = all && time.Since(sb.Added) > knownLate
			continue
		}
		written, err := d.convergeOne(ctx, pod, records)
		switch {
		case ctx.Err() != nil:
			return false
		case errors.Is(err, ErrAway):
			return false
		case errors.Is(err, ErrGone):
		case err != nil:
			d.Log.Warn("the network status cannot be written", "pod", podName(sb.Pod), "err", err)
			refused.add(sb, time.Now())
		case written:
			d.Log.Info("the network status was missing and is written now", "pod", podName(sb.Pod))
			all = all && d.isStill(records)
			sleep(ctx, convergePace)
		}
	}
	return all
}

// convergeOne writes the status of one sandbox if its pod has another one.
func (d *Daemon) convergeOne(ctx context.Context, pod plan.Pod, records []store.Record) (written bool, err error) {
	text, due, err := dueStatus(pod, records)
	if err != nil || !due {
		return false, err
	}
	return true, d.Cluster.SetNetworkStatus(ctx, pod, text)
}

// dueStatus is the network status of a sandbox by its records, and whether it is
// to be written. One that was taken down has none.
func dueStatus(pod plan.Pod, records []store.Record) (text string, due bool, err error) {
	text, networks, err := statusOf(records)
	return text, err == nil && len(records) > 0 && statusIsDue(pod, text, networks), err
}

// isStill reports whether a sandbox has the status that was just written. A
// request that came meanwhile may have written its own before that.
func (d *Daemon) isStill(records []store.Record) bool {
	sb := records[0].Sandbox
	now, err := d.Records.Sandbox(sb.ContainerID, sb.IfName)
	if err != nil || len(now) == 0 {
		return true // it is being taken down
	}
	before, _, err := statusOf(records)
	after, _, errAfter := statusOf(now)
	return err == nil && errAfter == nil && before == after
}

// livingSandboxes are the records of the sandboxes whose pods may have a status:
// of each pod the latest sandbox, if its default network is attached. What an
// earlier one left is on its way out.
func livingSandboxes(records []store.Record) [][]store.Record {
	type name struct{ namespace, name, uid string }
	latest := map[name][]store.Record{}
	for len(records) > 0 {
		first, n := records[0].Sandbox, 1
		for n < len(records) && records[n].Sandbox.ContainerID == first.ContainerID && records[n].Sandbox.IfName == first.IfName {
			n++
		}
		group := records[:n]
		records = records[n:]
		if first.Pod.Name == "" {
			continue
		}
		of := name{first.Pod.Namespace, first.Pod.Name, first.Pod.UID}
		if other, ok := latest[of]; !ok || first.Added.After(other[0].Sandbox.Added) {
			latest[of] = group
		}
	}
	var living [][]store.Record
	for _, group := range latest {
		if group[0].Index == 0 && group[0].InUse() {
			living = append(living, group)
		}
	}
	return living
}

// refusals remembers the sandboxes whose status the API server refused.
type refusals map[[2]string]refusal

type refusal struct {
	until time.Time
	pause time.Duration
}

func keyOf(sb store.Sandbox) [2]string { return [2]string{sb.ContainerID, sb.IfName} }

func (r refusals) waits(sb store.Sandbox, now time.Time) bool { return now.Before(r[keyOf(sb)].until) }

// add has the sandbox wait, twice as long as the last time.
func (r refusals) add(sb store.Sandbox, now time.Time) {
	pause := min(max(2*r[keyOf(sb)].pause, refusedFirst), refusedLast)
	r[keyOf(sb)] = refusal{now.Add(pause), pause}
}

// keepOnly forgets those that are no more.
func (r refusals) keepOnly(sandboxes [][]store.Record) {
	there := map[[2]string]bool{}
	for _, records := range sandboxes {
		there[keyOf(records[0].Sandbox)] = true
	}
	maps.DeleteFunc(r, func(k [2]string, _ refusal) bool { return !there[k] })
}

// statusOf is the network-status annotation of a sandbox, by its records, and
// how many networks it has. ADD writes the same text.
func statusOf(records []store.Record) (text string, networks int, err error) {
	var outcomes []status.Outcome
	for _, r := range records {
		if !r.InUse() {
			continue
		}
		result := new(current.Result)
		if err := json.Unmarshal(r.Result, result); err != nil {
			return "", 0, fmt.Errorf("network status of %s: %w", r.Attachment.IfName, err)
		}
		outcomes = append(outcomes, status.Outcome{Attachment: r.Attachment, Result: result, DeviceInfo: r.DeviceInfo})
	}
	text, err = status.Text(outcomes)
	return text, len(outcomes), err
}
