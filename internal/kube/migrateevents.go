package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"braid.dev/braid/api/v1alpha1"
)

// Reasons of a migration's events.
const (
	// ReasonMigration tells of a step of a migration.
	ReasonMigration = "Migration"
	// ReasonMigrationStopped tells why one stopped.
	ReasonMigrationStopped = "MigrationStopped"
)

// MigrationEvents are events on Migrations and on nodes, in the namespace
// "default". They are sent in the background; the same event again counts up,
// and an object that causes too many has its newest dropped.
type MigrationEvents struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

func newMigrationEvents(client corev1client.EventsGetter, node string) *MigrationEvents {
	b := record.NewBroadcaster(record.WithCorrelatorOptions(record.CorrelatorOptions{
		// A step of every node of a cluster is an event on the one Migration,
		// and no two have the same message.
		MaxEvents: 1000,
		BurstSize: 500,
		QPS:       1,
	}))
	b.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.Events("")})
	return &MigrationEvents{
		broadcaster: b,
		recorder:    b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: migrateManager, Host: node}),
	}
}

// Migration records on a Migration; kind is corev1.EventTypeNormal or Warning.
func (e *MigrationEvents) Migration(o *v1alpha1.Migration, kind, reason, message string) {
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion,
		Kind:       "Migration",
		Name:       o.Name,
		UID:        o.UID,
	}, kind, reason, clip(message, maxMessage))
}

// Node records on a node, where "kubectl describe node" looks.
func (e *MigrationEvents) Node(name, kind, reason, message string) {
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1",
		Kind:       "Node",
		Name:       name,
		UID:        types.UID(name),
	}, kind, reason, clip(message, maxMessage))
}
