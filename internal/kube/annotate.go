package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
)

const (
	// fieldManager owns the annotation in the pod's managed fields.
	fieldManager = "braid"
	// patchTimeout bounds one try, so that a connection that died without a
	// word does not use up the whole request.
	patchTimeout = 10 * time.Second
	// patchRetryLimit is the longest pause between two tries.
	patchRetryLimit = 2 * time.Second
	// maxRefusals is how often in a row the API server may say that it is
	// forbidden: one that has just started refuses everybody until it has read
	// the rules of RBAC.
	maxRefusals = 6
)

// SetNetworkStatus writes the network-status annotation of exactly this pod: a
// pod of the same name and another UID is never touched. It tries again until
// ctx ends, except when trying cannot help. The error is ErrNotFound when the
// pod is gone.
func (p *Pods) SetNetworkStatus(ctx context.Context, pod plan.Pod, text string) error {
	patch, err := annotationPatch(pod.UID, status.Annotation, text)
	if err != nil {
		return fmt.Errorf("write the network status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	refusals := 0
	for failures := 0; ; failures++ {
		err := p.patchStatus(ctx, pod, patch)
		if err == nil {
			return nil
		}
		if apierrors.IsForbidden(err) {
			refusals++
		} else {
			refusals = 0
		}
		if refusals == maxRefusals {
			return fmt.Errorf("write the network status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		if final, reason := p.isFinal(ctx, pod, err); final {
			return fmt.Errorf("write the network status of pod %s/%s: %w", pod.Namespace, pod.Name, reason)
		}
		pause(ctx, max(delayAsked(err), backoff(failures, patchRetryLimit)))
		if ctx.Err() != nil {
			return fmt.Errorf("write the network status of pod %s/%s: %w (%w)", pod.Namespace, pod.Name, err, context.Cause(ctx))
		}
	}
}

// annotationPatch is a merge patch of one annotation. The UID makes the API
// server refuse it for any other pod.
func annotationPatch(uid, annotation, text string) ([]byte, error) {
	metadata := map[string]any{"annotations": map[string]string{annotation: text}}
	if uid != "" {
		metadata["uid"] = uid
	}
	return json.Marshal(map[string]any{"metadata": metadata})
}

func (p *Pods) patchStatus(ctx context.Context, pod plan.Pod, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	_, err := p.client.Namespace(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch,
		metav1.PatchOptions{FieldManager: fieldManager}, "status")
	return err
}

// isFinal reports whether trying again is useless, and why.
func (p *Pods) isFinal(ctx context.Context, pod plan.Pod, err error) (bool, error) {
	switch {
	case apierrors.IsNotFound(err):
		return true, ErrNotFound
	case apierrors.IsConflict(err), apierrors.IsInvalid(err):
		// The UID differs, or else someone else wrote at the same time.
		live, getErr := p.client.Namespace(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(getErr) {
			return true, ErrNotFound
		}
		if getErr == nil && pod.UID != "" && string(live.UID) != pod.UID {
			return true, fmt.Errorf("%w: the pod of this name has the UID %s now", ErrNotFound, live.UID)
		}
		return apierrors.IsInvalid(err), err
	case apierrors.IsBadRequest(err),
		apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err):
		return true, err
	}
	return false, nil
}

// delayAsked is how long the API server asks to be left alone.
func delayAsked(err error) time.Duration {
	seconds, _ := apierrors.SuggestsClientDelay(err)
	return time.Duration(seconds) * time.Second
}
