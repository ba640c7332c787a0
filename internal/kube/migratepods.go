package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"braid.dev/braid/api/v1alpha1"
)

// CordonedBy is the annotation on a node that a migration has cordoned: the
// migration's name. A cordon without it is a person's, and stays.
const CordonedBy = v1alpha1.CordonedBy

// maxConflicts is how often in a row somebody else may write a node first. Its
// kubelet does so every few seconds at most.
const maxConflicts = 5

// Cordon has the scheduler give a node no more pods, in the name of a migration.
// ours is false when somebody else had cordoned it before: then nothing changes,
// and it stays cordoned after the migration.
func (m *Migrations) Cordon(ctx context.Context, node, migration string) (ours bool, err error) {
	err = m.changeNode(ctx, node, func(o *corev1.Node) ([]byte, error) {
		if o.Spec.Unschedulable {
			ours = o.Annotations[CordonedBy] == migration
			return nil, nil
		}
		ours = true
		return cordonPatch(o, true, migration)
	})
	if err != nil {
		return false, fmt.Errorf("cordon node %s: %w", node, err)
	}
	return ours, nil
}

// Uncordon ends what Cordon began in the name of that migration, and nothing
// else: a node that somebody else has cordoned stays so, and one that somebody
// has uncordoned loses only the annotation. Who wants a node to stay cordoned
// after its migration removes the annotation.
func (m *Migrations) Uncordon(ctx context.Context, node, migration string) error {
	err := m.changeNode(ctx, node, func(o *corev1.Node) ([]byte, error) {
		if o.Annotations[CordonedBy] != migration {
			return nil, nil
		}
		return cordonPatch(o, nil, nil)
	})
	if err != nil && !errors.Is(err, ErrNotFound) { // a node that is gone is fine
		return fmt.Errorf("uncordon node %s: %w", node, err)
	}
	return nil
}

// changeNode sends what decide makes of a node's newest version; without a patch
// the node is as it should be.
func (m *Migrations) changeNode(ctx context.Context, name string, decide func(*corev1.Node) (patch []byte, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for conflicts := 0; ; conflicts++ {
		node, err := m.core.Nodes().Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return ErrNotFound
		case err != nil:
			return err
		}
		patch, err := decide(node)
		if err != nil || patch == nil {
			return err
		}
		_, err = m.core.Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: migrateManager})
		if !apierrors.IsConflict(err) {
			return err
		}
		if conflicts == maxConflicts {
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
	}
}

// cordonPatch is a merge patch that is refused unless the node is as it was read.
func cordonPatch(node *corev1.Node, unschedulable, by any) ([]byte, error) {
	return json.Marshal(map[string]any{
		"metadata": map[string]any{
			"uid": node.UID, "resourceVersion": node.ResourceVersion,
			"annotations": map[string]any{CordonedBy: by},
		},
		"spec": map[string]any{"unschedulable": unschedulable},
	})
}

// BlockedError says that a pod cannot be evicted for now, in the API server's
// words.
type BlockedError struct {
	Message string
	// After is how long the API server wants to be left alone; 0 when it does not
	// say.
	After time.Duration
}

func (e *BlockedError) Error() string { return e.Message }

// Evict has exactly this pod end, if its disruption budgets permit. The error is
// a *BlockedError when they do not, ErrNotFound when the pod is gone, also when
// another has its name by now, and something else when the API server could not
// be asked or is not willing to answer now. A pod that is ending already is left
// alone. grace is in place of the pod's own; nil leaves that.
func (m *Migrations) Evict(ctx context.Context, pod *corev1.Pod, grace *int64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// The API server looks at the budgets first and at the UID then: evicting a pod
	// that is another by now fails, but uses up what its budget allows.
	live, err := m.core.Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || err == nil && live.UID != pod.UID:
		return fmt.Errorf("evict %s/%s: %w", pod.Namespace, pod.Name, ErrNotFound)
	case err != nil:
		return fmt.Errorf("evict %s/%s: %w", pod.Namespace, pod.Name, err)
	case live.DeletionTimestamp != nil:
		return nil
	}
	err = m.policy.Evictions(pod.Namespace).Evict(ctx, &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{
			GracePeriodSeconds: grace,
			Preconditions:      metav1.NewUIDPreconditions(string(pod.UID)),
		},
	})
	if err != nil {
		return fmt.Errorf("evict %s/%s: %w", pod.Namespace, pod.Name, m.whyNotEvicted(ctx, pod, err))
	}
	return nil
}

// whyNotEvicted sorts the API server's answers (registry/core/pod/storage/eviction.go).
func (m *Migrations) whyNotEvicted(ctx context.Context, pod *corev1.Pod, err error) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsNotFound(err):
		return ErrNotFound
	case apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause):
		return &BlockedError{Message: budgetMessage(err), After: delayAsked(err)}
	case apierrors.IsInternalError(err) && errors.As(err, &status):
		// More than one budget for one pod: the server wants a person.
		return &BlockedError{Message: status.Status().Message}
	case apierrors.IsConflict(err):
		// The UID differs, or budgets were written at the same time.
		live, getErr := m.core.Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(getErr) || getErr == nil && live.UID != pod.UID {
			return ErrNotFound
		}
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return err
}

// budgetMessage is what the API server says of the budget that blocks.
func budgetMessage(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return err.Error()
	}
	for _, cause := range status.Status().Details.Causes {
		if cause.Type == policyv1.DisruptionBudgetCause && cause.Message != "" {
			return cause.Message
		}
	}
	return status.Status().Message
}

// CreatePod makes a probe's pod; ErrExists when there is one of its name.
func (m *Migrations) CreatePod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	made, err := m.core.Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{FieldManager: migrateManager})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil, fmt.Errorf("make pod %s/%s: %w", pod.Namespace, pod.Name, ErrExists)
	case err != nil:
		return nil, fmt.Errorf("make pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return made, nil
}

// DeletePod ends exactly this pod; one that is gone is fine. grace is in place of
// the pod's own; nil leaves that.
func (m *Migrations) DeletePod(ctx context.Context, pod *corev1.Pod, grace *int64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := m.core.Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: grace,
		Preconditions:      metav1.NewUIDPreconditions(string(pod.UID)),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // conflict: of that name there is another by now
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
