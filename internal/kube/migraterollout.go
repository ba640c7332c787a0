package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// WaitRollout waits until a DaemonSet, Deployment or StatefulSet runs everywhere
// as its newest spec says, and tells progress what it waits for whenever that
// changes. An object that is not there yet is waited for too. The error says
// what was missing when ctx ended.
func (m *Migrations) WaitRollout(ctx context.Context, o Object, progress func(string)) error {
	client, err := m.resource(ctx, &kinds{m: m}, o)
	if err != nil {
		return fmt.Errorf("wait for %s: %w", o, err)
	}
	only := fields.OneTermEqualSelector("metadata.name", o.Name).String()
	t := newTable(o.String(), source{
		list: func(ctx context.Context, lo metav1.ListOptions) (runtime.Object, error) {
			lo.FieldSelector = only
			return client.List(ctx, lo)
		},
		watch: func(ctx context.Context, lo metav1.ListOptions) (watch.Interface, error) {
			lo.FieldSelector = only
			return client.Watch(ctx, lo)
		},
		client: m.dyn,
	}, reduceRollout, m.log)
	following, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); t.run(following) }()
	defer func() { stop(); <-ended }()

	wait := "it has not been read yet"
	for k := (key{cmp.Or(o.Namespace, metav1.NamespaceDefault), o.Name}); ; {
		r, ok, changed := t.follow(k)
		now := r.wait
		switch {
		case t.pending() != nil:
			now = t.pending().Error()
		case !ok:
			now = "it is not there"
		case r.wait == "":
			return nil
		}
		if now != wait {
			wait = now
			progress(wait)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %s: %w", o, wait, ctx.Err())
		}
	}
}

// rollout says what a workload still waits for; nothing when it is complete.
type rollout struct{ wait string }

func reduceRollout(obj any) (key, rollout) {
	u := obj.(*unstructured.Unstructured) // the client decodes nothing else
	return key{u.GetNamespace(), u.GetName()}, rollout{waitsFor(u)}
}

func waitsFor(u *unstructured.Unstructured) string {
	text, err := json.Marshal(u)
	if err != nil {
		return err.Error()
	}
	switch u.GetKind() {
	case "DaemonSet":
		return decoded(text, daemonSetWaitsFor)
	case "Deployment":
		return decoded(text, deploymentWaitsFor)
	case "StatefulSet":
		return decoded(text, statefulSetWaitsFor)
	}
	return "a " + u.GetKind() + " has no rollout"
}

func decoded[T any](text []byte, f func(T) string) string {
	var o T
	if err := json.Unmarshal(text, &o); err != nil {
		return err.Error()
	}
	return f(o)
}

const notSeen = "its controller has not seen it yet"

func daemonSetWaitsFor(d appsv1.DaemonSet) string {
	s := d.Status
	switch {
	case s.ObservedGeneration < d.Generation:
		return notSeen
	case d.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType && s.UpdatedNumberScheduled < s.DesiredNumberScheduled:
		return fmt.Sprintf("%d of %d pods are of the newest spec", s.UpdatedNumberScheduled, s.DesiredNumberScheduled)
	case s.NumberAvailable < s.DesiredNumberScheduled:
		return fmt.Sprintf("%d of %d pods are available", s.NumberAvailable, s.DesiredNumberScheduled)
	}
	return ""
}

func deploymentWaitsFor(d appsv1.Deployment) string {
	s, want := d.Status, int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	why := ""
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse {
			why = ": " + c.Message
		}
	}
	switch {
	case s.ObservedGeneration < d.Generation:
		return notSeen
	case s.UpdatedReplicas < want:
		return fmt.Sprintf("%d of %d pods are of the newest spec%s", s.UpdatedReplicas, want, why)
	case s.Replicas > s.UpdatedReplicas:
		return fmt.Sprintf("%d pods of an older spec have to end%s", s.Replicas-s.UpdatedReplicas, why)
	case s.AvailableReplicas < want:
		return fmt.Sprintf("%d of %d pods are available%s", s.AvailableReplicas, want, why)
	}
	return ""
}

func statefulSetWaitsFor(d appsv1.StatefulSet) string {
	s, want := d.Status, int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	switch {
	case s.ObservedGeneration < d.Generation:
		return notSeen
	case d.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType && s.UpdateRevision != s.CurrentRevision:
		return fmt.Sprintf("%d of %d pods are of the newest spec", s.UpdatedReplicas, want)
	case s.AvailableReplicas < want:
		return fmt.Sprintf("%d of %d pods are available", s.AvailableReplicas, want)
	}
	return ""
}
