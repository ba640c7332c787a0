package kube

import (
	"context"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"braid.dev/braid/internal/plan"
)

// Reasons of the events on a pod and on the node.
const (
	// ReasonAdded tells of one interface that was attached. Multus uses the
	// same word.
	ReasonAdded = "AddedInterface"
	// ReasonRemoved tells of one that was taken away from a pod that runs.
	ReasonRemoved = "RemovedInterface"
	// ReasonFailed tells why a pod's networks could not be attached.
	ReasonFailed = "NetworkFailed"
	// ReasonRenamed tells that an agent has renamed a configuration of the conf
	// dir, and which one.
	ReasonRenamed = "ConfigurationRenamed"
	// ReasonGuarded tells of an agent that may do so.
	ReasonGuarded = "ConfigurationGuarded"
	// ReasonDamaged tells that records of a pod, or of the node, were lost, and
	// what became of it.
	ReasonDamaged = "RecordsDamaged"
	// ReasonStuck tells of something that could not be cleaned up, several times.
	ReasonStuck = "CleanupFailed"
)

// maxMessage is the length in bytes that kubectl and the newer events API
// allow a message.
const maxMessage = 1024

// component is the source of all events, beside the node.
const component = "braid"

// Events are the events on this node and its pods. They are sent in the
// background; the same event again counts up, many similar ones become one, and
// an object that causes too many has its newest dropped.
type Events struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	node        string
}

func newEvents(client corev1client.EventsGetter, node string) *Events {
	b := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{
		// A pod may well have more than the default of 10 interfaces, each
		// with a message of its own.
		MaxEvents: 40,
		BurstSize: 50,
		// Each of three caches holds the messages of so many events. The
		// default would come to 10 MB on a busy node.
		LRUCacheSize: 512,
	}))
	// From here on, not from run on: an event that is recorded while nobody
	// listens is lost, and the conf dir is looked at as soon as the cluster is.
	b.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.Events("")})
	return &Events{
		broadcaster: b,
		// References are given ready made, so the scheme stays empty.
		recorder: b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: component, Host: node}),
		node:     node,
	}
}

// run ends the sending of events when ctx ends.
func (e *Events) run(ctx context.Context) {
	<-ctx.Done()
	e.broadcaster.Shutdown()
}

// Added records that an interface was attached.
func (e *Events) Added(pod plan.Pod, message string) {
	e.record(pod, corev1.EventTypeNormal, ReasonAdded, message)
}

// Removed records that an interface was taken away from a pod that runs.
func (e *Events) Removed(pod plan.Pod, message string) {
	e.record(pod, corev1.EventTypeNormal, ReasonRemoved, message)
}

// Failed records why a pod's networks could not be attached.
func (e *Events) Failed(pod plan.Pod, message string) {
	e.record(pod, corev1.EventTypeWarning, ReasonFailed, message)
}

// Renamed records on the node that an agent has renamed a configuration.
func (e *Events) Renamed(message string) {
	e.recordNode(corev1.EventTypeWarning, ReasonRenamed, message)
}

// Guarded records on the node that an agent may rename configurations.
func (e *Events) Guarded(message string) {
	e.recordNode(corev1.EventTypeNormal, ReasonGuarded, message)
}

// Damaged records that records were lost: on the pod, or on the node when the
// pod has no name.
func (e *Events) Damaged(pod plan.Pod, message string) {
	if pod.Name == "" {
		e.recordNode(corev1.EventTypeWarning, ReasonDamaged, message)
		return
	}
	e.record(pod, corev1.EventTypeWarning, ReasonDamaged, message)
}

// Stuck records on the node what could not be cleaned up several times.
func (e *Events) Stuck(message string) {
	e.recordNode(corev1.EventTypeWarning, ReasonStuck, message)
}

func (e *Events) record(pod plan.Pod, kind, reason, message string) {
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1",
		Kind:       "Pod",
		Namespace:  pod.Namespace,
		Name:       pod.Name,
		UID:        types.UID(pod.UID),
	}, kind, reason, clip(message, maxMessage))
}

// recordNode records on this node. As with the kubelet's events, the UID is the
// node's name, where "kubectl describe node" looks for them, and the namespace
// is "default".
func (e *Events) recordNode(kind, reason, message string) {
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1",
		Kind:       "Node",
		Name:       e.node,
		UID:        types.UID(e.node),
	}, kind, reason, clip(message, maxMessage))
}

// clip shortens a text to at most n bytes, between two characters, and shows
// that it did.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const more = "…"
	end := n - len(more)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + more
}
