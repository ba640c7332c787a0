package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"

	"braid.dev/braid/internal/plan"
)

// A static pod's mirror in the API has a UID of its own. The kubelet gives the
// runtime the hash of the manifest instead and leaves it in these annotations.
const (
	mirrorAnnotation = "kubernetes.io/config.mirror"
	hashAnnotation   = "kubernetes.io/config.hash"
)

// appliedAnnotation is a second copy of the whole manifest, not worth keeping.
const appliedAnnotation = "kubectl.kubernetes.io/last-applied-configuration"

var podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// Pods are the pods of this node. Only their metadata is asked for: the API
// server sends neither spec nor status.
type Pods struct {
	client metadata.Getter
	table  *table[plan.Pod]
}

func newPods(client metadata.Interface, node string, log *slog.Logger) *Pods {
	resource := client.Resource(podResource)
	here := fields.OneTermEqualSelector("spec.nodeName", node).String()
	source := source{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = here
			return resource.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = here
			return resource.Watch(ctx, o)
		},
		client: client,
	}
	return &Pods{client: resource, table: newTable("pods of node "+node, source, reducePod, log)}
}

func reducePod(obj any) (key, plan.Pod) {
	o := obj.(metav1.Object) // the client decodes nothing else
	annotations := o.GetAnnotations()
	delete(annotations, appliedAnnotation)
	return key{o.GetNamespace(), o.GetName()}, plan.Pod{
		Namespace:   o.GetNamespace(),
		Name:        o.GetName(),
		UID:         string(o.GetUID()),
		Annotations: annotations,
	}
}

// Get returns the pod that the runtime calls by this UID; any pod of the name
// when uid is empty. The UID of a static pod may be its manifest's hash, as the
// kubelet has it; the pod that is returned carries the API's.
//
// A pod that is not known yet is asked for once and then waited for until ctx
// ends. The error is ErrNotFound when the API said that there is none.
func (p *Pods) Get(ctx context.Context, namespace, name, uid string) (plan.Pod, error) {
	k := key{namespace, name}
	pod, ok, changed := p.table.follow(k)
	if ok && isPod(pod, uid) {
		return pod, nil
	}
	// The watch lags or is down: ask while waiting for it.
	ctx, cancel := context.WithCancel(ctx)
	answers := p.ask(ctx, k)
	defer func() {
		cancel()
		if answers != nil {
			<-answers
		}
	}()
	reason := errors.New("the API server has not answered")
	for {
		select {
		case <-changed:
			if pod, ok, changed = p.table.follow(k); ok && isPod(pod, uid) {
				return pod, nil
			}
		case a := <-answers:
			answers = nil
			if a.err == nil && isPod(a.pod, uid) {
				return a.pod, nil
			}
			var final bool
			if reason, final = judge(a, uid); final {
				return plan.Pod{}, fmt.Errorf("pod %s (UID %s): %w", k, uid, reason)
			}
		case <-ctx.Done():
			return plan.Pod{}, fmt.Errorf("pod %s (UID %s): %w (%w)", k, uid, reason, context.Cause(ctx))
		}
	}
}

// answer is what the API said of a pod.
type answer struct {
	pod plan.Pod
	err error
}

func (p *Pods) ask(ctx context.Context, k key) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		obj, err := p.client.Namespace(k.namespace).Get(ctx, k.name, metav1.GetOptions{})
		if err != nil {
			answers <- answer{err: err}
			return
		}
		_, pod := reducePod(obj)
		answers <- answer{pod: pod}
	}()
	return answers
}

// judge says why an answer is not the pod with this UID, and whether waiting
// for that pod is useless. The kubelet learns of an ordinary pod from the API,
// which a GET asks for its newest state: what is not there now will not come.
// The mirror of a static pod may well come after the pod has been started.
func judge(a answer, uid string) (reason error, final bool) {
	switch {
	case apierrors.IsNotFound(a.err):
		return ErrNotFound, isAPIUID(uid)
	case a.err != nil:
		return fmt.Errorf("ask the API server: %w", a.err), false
	default:
		return fmt.Errorf("%w: the pod of this name has the UID %s", ErrNotFound, a.pod.UID), isAPIUID(uid)
	}
}

// isAPIUID tells the UID of an object of the API, a UUID, from the hash that
// the kubelet gives to a static pod.
func isAPIUID(uid string) bool {
	return len(uid) == 36 && uid[8] == '-' && uid[13] == '-' && uid[18] == '-' && uid[23] == '-'
}

// isPod reports whether the runtime means this pod by the UID.
func isPod(pod plan.Pod, uid string) bool {
	if uid == "" || pod.UID == uid {
		return true
	}
	mirror, isMirror := pod.Annotations[mirrorAnnotation]
	return isMirror && (mirror == uid || pod.Annotations[hashAnnotation] == uid)
}
