package kube

import (
	"context"
	"encoding/json"
	"errors"
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
	// patchRetryLimit is the longest pause between two tries.
	patchRetryLimit = 2 * time.Second
	// maxRefusals is how often in a row the API server may say that it is
	// forbidden: one that has just started refuses everybody until it has read
	// the rules of RBAC.
	maxRefusals = 6
)

// SetNetworkStatus writes the network-status annotation of exactly this pod, or
// removes it when text is empty: a pod of the same name and another UID is never
// touched. It tries again until ctx ends when trying may help. The error is
// ErrNotFound when the pod is gone, and ErrAway, within a few seconds, when the
// API cannot be asked; with that one the annotation may have been written.
func (p *Pods) SetNetworkStatus(ctx context.Context, pod plan.Pod, text string) error {
	err := p.setStatus(ctx, pod, text)
	if err != nil {
		return fmt.Errorf("write the network status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

func (p *Pods) setStatus(ctx context.Context, pod plan.Pod, text string) error {
	pod, err := p.inAPI(pod)
	if err != nil {
		return err
	}
	patch, err := annotationPatch(pod.UID, status.Annotation, text)
	if err != nil {
		return err
	}
	refusals := 0
	for failures := 0; ; failures++ {
		// Twice: a connection that nobody used for a while may be dead.
		hopeless := p.api.away() || failures > 0
		err := p.api.ask(ctx, func(ctx context.Context) error { return p.patchStatus(ctx, pod, patch) })
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrAway) && hopeless:
			return err
		case apierrors.IsForbidden(err):
			refusals++
		default:
			refusals = 0
		}
		if refusals == maxRefusals {
			return err
		}
		if final, reason := p.isFinal(ctx, pod, err); final {
			return reason
		}
		pause(ctx, max(min(delayAsked(err), patchRetryLimit), backoff(failures, patchRetryLimit)))
		if ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}

// inAPI is the pod with the UID that it has in the API, which for a static pod
// is that of its mirror. As long as there is none, nothing can be written.
func (p *Pods) inAPI(pod plan.Pod) (plan.Pod, error) {
	if pod.UID == "" || isAPIUID(pod.UID) {
		return pod, nil
	}
	mirror, ok := p.Known(pod.Namespace, pod.Name, pod.UID)
	if !ok {
		return pod, &awayError{errors.New("the mirror of this static pod is not in the API")}
	}
	return mirror, nil
}

// annotationPatch is a merge patch of one annotation, which an empty text
// removes. The UID makes the API server refuse it for any other pod.
func annotationPatch(uid, annotation, text string) ([]byte, error) {
	var value any // null removes it (RFC 7386)
	if text != "" {
		value = text
	}
	metadata := map[string]any{"annotations": map[string]any{annotation: value}}
	if uid != "" {
		metadata["uid"] = uid
	}
	return json.Marshal(map[string]any{"metadata": metadata})
}

func (p *Pods) patchStatus(ctx context.Context, pod plan.Pod, patch []byte) error {
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
		var live *metav1.PartialObjectMetadata
		getErr := p.api.ask(ctx, func(ctx context.Context) (err error) {
			live, err = p.client.Namespace(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
			return err
		})
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
