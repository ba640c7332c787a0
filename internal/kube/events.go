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

// Reasons of the events on a pod.
const (
	// ReasonAdded tells of one interface that was attached. Multus uses the
	// same word.
	ReasonAdded = "AddedInterface"
	// ReasonFailed tells why a pod's networks could not be attached.
	ReasonFailed = "NetworkFailed"
)

// maxMessage is the length in bytes that kubectl and the newer events API
// allow a message.
const maxMessage = 1024

// Events are the events on this node's pods. They are sent in the background;
// the same event again counts up, many similar ones become one, and a pod that
// causes too many has its newest dropped.
type Events struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	sink        corev1client.EventsGetter
}

func newEvents(client corev1client.EventsGetter, node string) *Events {
	b := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{
		// A pod may well have more than the default of 10 interfaces, each
		// with a message of its own.
		MaxEvents: 40,
		BurstSize: 50,
	}))
	return &Events{
		broadcaster: b,
		// References are given ready made, so the scheme stays empty.
		recorder: b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: "braid", Host: node}),
		sink:     client,
	}
}

// run sends events until ctx ends.
func (e *Events) run(ctx context.Context) {
	e.broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: e.sink.Events("")})
	<-ctx.Done()
	e.broadcaster.Shutdown()
}

// Added records that an interface was attached.
func (e *Events) Added(pod plan.Pod, message string) {
	e.record(pod, corev1.EventTypeNormal, ReasonAdded, message)
}

// Failed records why a pod's networks could not be attached.
func (e *Events) Failed(pod plan.Pod, message string) {
	e.record(pod, corev1.EventTypeWarning, ReasonFailed, message)
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
