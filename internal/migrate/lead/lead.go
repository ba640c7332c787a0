// Package lead drives a migration from one of the cluster's daemons: it sees
// the world, has package migrate decide, and carries the decision out. It keeps
// nothing that another leader would lack.
package lead

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate"
)

// pace is the least time between two decisions: many changes come at once.
const pace = 500 * time.Millisecond

// heartbeat is how often a decision is made when nothing has changed: time
// itself is one of the things that decisions depend on.
const heartbeat = 2 * time.Second

// Leader drives. All fields are required but Log.
type Leader struct {
	Cluster *kube.Migrations
	// Node is the node of this daemon.
	Node string
	Log  *slog.Logger

	// refused are the latest answers to evictions, by the pod's UID. They only
	// explain, so that a new leader soon has them again.
	refused map[types.UID]string
	// anew says that no decision has been carried out since the cluster was seen
	// last, if it ever was.
	anew bool
	said string
}

// Run drives until ctx ends, which it does when the lease is lost.
func (l *Leader) Run(ctx context.Context) {
	l.refused, l.anew = map[types.UID]string{}, true
	view := l.Cluster.LeaderView()
	defer view.Follow(ctx)()
	if err := view.WaitSynced(ctx); err != nil {
		return
	}
	for ctx.Err() == nil {
		begun := time.Now()
		if err := view.Trouble(); err == nil {
			l.once(ctx, view, begun)
		} else {
			l.say("see the cluster", err)
			l.anew = true
		}
		wait(ctx, view.Changed(), begun)
	}
}

// wait returns after a change, but not too soon, and after a while anyway.
func wait(ctx context.Context, changed <-chan struct{}, begun time.Time) {
	pause := time.NewTimer(pace - time.Since(begun))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return
	}
	beat := time.NewTimer(heartbeat)
	defer beat.Stop()
	select {
	case <-changed:
	case <-beat.C:
	case <-ctx.Done():
	}
}

// once makes one decision and carries it out.
func (l *Leader) once(ctx context.Context, view *kube.View, now time.Time) {
	snap := view.Snapshot()
	m := migrate.Current(snap.Migrations)
	if m == nil {
		return
	}
	world := l.world(snap, *m, now)
	d := migrate.Decide(world)
	if err := l.carryOut(ctx, view, world, d); err != nil {
		l.say("carry out a decision", err)
		l.anew = l.anew || !errors.Is(err, kube.ErrConflict)
		return
	}
	if reflect.DeepEqual(d.Status, m.Status) {
		l.anew = false
		return
	}
	written, err := l.Cluster.UpdateMigrationStatus(ctx, m, d.Status)
	if err != nil {
		// Nothing is lost: the next decision is made from what is there then.
		l.say("write the status", err)
		l.anew = l.anew || !errors.Is(err, kube.ErrConflict)
		return
	}
	l.anew = false
	view.SawMigration(written)
	l.tell(m, d)
	l.say("", nil)
}

// tell puts what happened where people look.
func (l *Leader) tell(m *v1alpha1.Migration, d migrate.Decision) {
	kind, reason := corev1.EventTypeNormal, kube.ReasonMigration
	if d.Status.Phase == v1alpha1.PhaseStopped {
		kind, reason = corev1.EventTypeWarning, kube.ReasonMigrationStopped
	}
	for _, text := range d.Events {
		l.Log.Info(text, "migration", m.Name)
		l.Cluster.Events.Migration(m, kind, reason, text)
	}
}

// say logs a problem once, and that it is over.
func (l *Leader) say(what string, err error) {
	text := ""
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, kube.ErrConflict) {
		text = what + ": " + err.Error()
	}
	if text != l.said && text != "" {
		l.Log.Warn("migration: cannot "+what+"; trying again", "err", err)
	}
	l.said = text
}

// carryOut does what was decided. What cannot be done is tried with the next
// decision; the status is not written then, so that nobody takes it for done.
func (l *Leader) carryOut(ctx context.Context, view *kube.View, w migrate.World, d migrate.Decision) error {
	var errs []error
	add := func(err error) {
		if err != nil && !errors.Is(err, kube.ErrNotFound) && !errors.Is(err, kube.ErrExists) {
			errs = append(errs, err)
		}
	}
	for _, node := range d.Forget {
		part := w.Parts[node]
		add(l.Cluster.DeleteNodeMigration(ctx, &part))
	}
	for node, spec := range d.Parts {
		add(l.part(ctx, view, w, node, spec))
	}
	for _, node := range d.Cordon {
		_, err := l.Cluster.Cordon(ctx, node, w.Migration.Name)
		add(err)
	}
	for _, node := range d.Uncordon {
		add(l.Cluster.Uncordon(ctx, node, w.Migration.Name))
	}
	for _, p := range d.EndProbes {
		add(l.Cluster.DeletePod(ctx, &p, nil))
	}
	for _, p := range d.StartProbes {
		_, err := l.Cluster.CreatePod(ctx, p.Manifest(w.Migration.Spec.Probes.Image))
		add(err)
	}
	for _, p := range d.Evict {
		l.evict(ctx, p)
	}
	return errors.Join(errs...)
}

func (l *Leader) part(ctx context.Context, view *kube.View, w migrate.World, node string, spec v1alpha1.NodeMigrationSpec) error {
	part, ok := w.Parts[node]
	if !ok {
		part.Name, part.Spec = node, spec
		_, err := l.Cluster.CreateNodeMigration(ctx, &part)
		return err
	}
	written, err := l.Cluster.UpdateNodeMigrationSpec(ctx, &part, spec)
	if err == nil {
		view.SawNodeMigration(written)
	}
	return err
}

// evict asks for one eviction. A budget that has something against it explains
// what the migration waits for; everything else is tried again anyway.
func (l *Leader) evict(ctx context.Context, p corev1.Pod) {
	err := l.Cluster.Evict(ctx, &p, nil)
	var blocked *kube.BlockedError
	switch {
	case errors.As(err, &blocked):
		l.refused[p.UID] = blocked.Message
	case err == nil, errors.Is(err, kube.ErrNotFound):
		delete(l.refused, p.UID)
	default:
		l.refused[p.UID] = err.Error()
	}
}
