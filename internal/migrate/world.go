// Package migrate decides how a cluster moves from one CNI to another: what the
// leader of a migration does next, given everything that is known. It does
// nothing itself. Each decision is made anew from the objects in the cluster, so
// that any daemon can go on where another was lost.
package migrate

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/probe/round"
)

const (
	// ProbeNamespace is the namespace of the probes' pods.
	ProbeNamespace = v1alpha1.ProbeNamespace
	// SideLabel on a probe's pod is the side that it is on.
	SideLabel = "braid.dev/side"
	// CordonedBy on a node says that the migration of that name cordoned it.
	CordonedBy = v1alpha1.CordonedBy
	// staleAfter is how old a daemon's last sign of life may be.
	staleAfter = 90 * time.Second
)

// World is everything that a decision depends on.
type World struct {
	Now       time.Time
	Migration v1alpha1.Migration
	Nodes     []corev1.Node
	// Pods are all pods of the cluster.
	Pods []corev1.Pod
	// Parts are the NodeMigrations by node.
	Parts map[string]v1alpha1.NodeMigration
	// Refused are the answers to evictions that were refused, by the pod's UID.
	Refused map[types.UID]string
	// Leader is the node of the daemon that decides: it moves last.
	Leader string
	// Anew says that the leader has begun, or begun again, to see the cluster:
	// steps get their time once more, as nobody could act in between.
	Anew bool

	// Asks is what rounds of probes ask besides the probes' pods.
	Asks round.World
}

// Decision is what the leader does. All of it may be done again.
type Decision struct {
	// Status is the migration's status from now on.
	Status v1alpha1.MigrationStatus
	// Parts are the NodeMigrations as they shall be, by node: those that have to
	// be made or whose spec has to change. Forget are those of nodes that are
	// no more.
	Parts  map[string]v1alpha1.NodeMigrationSpec
	Forget []string
	// Cordon and Uncordon are nodes.
	Cordon, Uncordon []string
	Evict            []corev1.Pod
	// StartProbes and EndProbes are probes' pods.
	StartProbes []ProbePod
	EndProbes   []corev1.Pod
	// Events are what people should read, about the Migration.
	Events []string
}

// ProbePod is a probe's pod that shall be.
type ProbePod struct {
	Node string
	Side v1alpha1.Side
}

// Name is the name of the pod.
func (p ProbePod) Name() string {
	return map[v1alpha1.Side]string{v1alpha1.Source: "source-", v1alpha1.Target: "target-"}[p.Side] + p.Node
}

// Current is the migration that is driven: one at a time, the oldest that has not
// been deleted; nil when there is none.
func Current(list []v1alpha1.Migration) *v1alpha1.Migration {
	list = slices.DeleteFunc(slices.Clone(list), func(m v1alpha1.Migration) bool { return m.DeletionTimestamp != nil })
	if len(list) == 0 {
		return nil
	}
	first := slices.MinFunc(list, func(a, b v1alpha1.Migration) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	return &first
}

// node returns the cluster's node of that name.
func (w *World) node(name string) (corev1.Node, bool) {
	i := slices.IndexFunc(w.Nodes, func(n corev1.Node) bool { return n.Name == name })
	if i < 0 {
		return corev1.Node{}, false
	}
	return w.Nodes[i], true
}

// fresh reports whether a node's daemon has seen the spec it is to have and
// still lives; wait says what it is waited for otherwise.
func (w *World) fresh(name string, want v1alpha1.NodeMigrationSpec) (part v1alpha1.NodeMigration, wait string) {
	part, ok := w.Parts[name]
	switch {
	case !ok:
		return part, "its daemon braid-migrate"
	case w.Now.Sub(part.Status.Heartbeat.Time) > staleAfter:
		return part, "its daemon braid-migrate, which was last heard of " + w.Now.Sub(part.Status.Heartbeat.Time).Round(time.Second).String() + " ago"
	case !sameSpec(part.Spec, want) || part.Status.ObservedGeneration != part.Generation:
		return part, cmp.Or(part.Status.Message, "its daemon to look")
	}
	return part, part.Status.Message
}

func nodeReady(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// runtimeOf is the state of the runtime at rest on that side.
func runtimeOf(s v1alpha1.Side) v1alpha1.RuntimeState {
	return map[v1alpha1.Side]v1alpha1.RuntimeState{
		v1alpha1.Source: v1alpha1.RuntimeSource, v1alpha1.Target: v1alpha1.RuntimeTarget}[s]
}

func closedTo(s v1alpha1.Side) v1alpha1.RuntimeState {
	return map[v1alpha1.Side]v1alpha1.RuntimeState{
		v1alpha1.Source: v1alpha1.RuntimeClosedToSource, v1alpha1.Target: v1alpha1.RuntimeClosedToTarget}[s]
}

func openTo(s v1alpha1.Side) v1alpha1.RuntimeState {
	return map[v1alpha1.Side]v1alpha1.RuntimeState{
		v1alpha1.Source: v1alpha1.RuntimeOpenToSource, v1alpha1.Target: v1alpha1.RuntimeOpenToTarget}[s]
}
