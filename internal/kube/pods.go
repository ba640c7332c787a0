package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
)

// A static pod's mirror in the API has a UID of its own. The kubelet gives the
// runtime the hash of the manifest instead and leaves it in these annotations.
const (
	mirrorAnnotation = "kubernetes.io/config.mirror"
	hashAnnotation   = "kubernetes.io/config.hash"
)

// keptAnnotations are all that Braid looks at. The others may be large and are
// nobody's business here.
var keptAnnotations = []string{
	plan.NetworksAnnotation, plan.DefaultNetworkAnnotation, status.Annotation, mirrorAnnotation, hashAnnotation,
}

var podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// Pods are the pods of this node. Only their metadata is asked for: the API
// server sends neither spec nor status.
type Pods struct {
	client metadata.Getter
	// whole is for the rare question that metadata does not answer.
	whole dynamic.NamespaceableResourceInterface
	table *table[plan.Pod]
	api   *reach
}

func newPods(client metadata.Interface, dyn dynamic.Interface, node string, api *reach, log *slog.Logger) *Pods {
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
	p := &Pods{client: resource, whole: dyn.Resource(podResource), table: newTable("pods of node "+node, source, reducePod, log), api: api}
	p.table.api = api
	return p
}

func reducePod(obj any) (key, plan.Pod) {
	o := obj.(metav1.Object) // the client decodes nothing else
	return key{o.GetNamespace(), o.GetName()}, plan.Pod{
		Namespace:   o.GetNamespace(),
		Name:        o.GetName(),
		UID:         string(o.GetUID()),
		Annotations: keptOf(o.GetAnnotations()),
	}
}

// keptOf are the annotations that are kept, nil for none. Their text is copied:
// it may be a part of something larger.
func keptOf(all map[string]string) map[string]string {
	var kept map[string]string
	for _, name := range keptAnnotations {
		value, ok := all[name]
		if !ok {
			continue
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[name] = strings.Clone(value)
	}
	return kept
}

// Known returns the pod if it is in memory.
func (p *Pods) Known(namespace, name, uid string) (plan.Pod, bool) {
	pod, ok := p.table.get(key{namespace, name})
	return pod, ok && isPod(pod, uid)
}

// All returns the pods in memory, in no order, and a channel that is closed when
// any of them changes, comes or goes after that. The annotations are shared and
// must not be changed.
func (p *Pods) All() (pods []plan.Pod, changed <-chan struct{}) {
	rows, changed := p.table.followAll()
	pods = make([]plan.Pod, 0, len(rows))
	for _, pod := range rows {
		pods = append(pods, pod)
	}
	return pods, changed
}

// Life is how a pod lives.
type Life struct {
	// HostNetwork pods are in the network of the node: no runtime makes one for
	// them.
	HostNetwork bool
	// Running pods have their sandbox, and it has its networks.
	Running bool
}

// Life asks the API how this very pod lives. The error is ErrNotFound when it is
// gone, or ErrAway.
func (p *Pods) Life(ctx context.Context, pod plan.Pod) (life Life, err error) {
	var obj *unstructured.Unstructured
	err = p.api.ask(ctx, func(ctx context.Context) (err error) {
		obj, err = p.whole.Namespace(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		return err
	})
	switch {
	case apierrors.IsNotFound(err), err == nil && string(obj.GetUID()) != pod.UID:
		err = ErrNotFound
	case err == nil:
		// The schema of the API leaves nothing but these types, or nothing.
		life.HostNetwork, _, _ = unstructured.NestedBool(obj.Object, "spec", "hostNetwork")
		phase, _, _ := unstructured.NestedString(obj.Object, "status", "phase")
		life.Running = phase == string(corev1.PodRunning)
		return life, nil
	}
	return life, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
}

// mirrorPatience is how long the mirror of a static pod is waited for that the
// runtime has told the annotations of. The kubelet makes it at the same time,
// except where the API refuses it.
const mirrorPatience = 2 * time.Second

// Get returns the pod that the runtime tells of, as it is in the API. What it
// tells is a namespace, a name and mostly a UID; without one, any pod of the
// name is meant. For a static pod the UID is its manifest's hash, as the kubelet
// has it, and the pod that is returned carries the API's. Its annotations are
// nil when the runtime tells nothing of them, and otherwise as old as the
// kubelet's knowledge.
//
// A pod that is not known yet is asked for once and then waited for until ctx
// ends. When the API cannot be asked, or has no mirror of a static pod yet, and
// the runtime tells the annotations, then the pod is as told. The error is
// ErrNotFound when the API said that there is none.
func (p *Pods) Get(ctx context.Context, told plan.Pod) (plan.Pod, error) {
	k, uid := key{told.Namespace, told.Name}, told.UID
	pod, ok, changed := p.table.follow(k)
	if ok && isPod(pod, uid) {
		return pod, nil
	}
	isTold := told.Annotations != nil
	told.Annotations = keptOf(told.Annotations)
	if isTold && p.api.away() {
		return told, nil // the watch will find out when it is back
	}
	var enough <-chan time.Time
	if isTold && !isAPIUID(uid) {
		timer := time.NewTimer(mirrorPatience)
		defer timer.Stop()
		enough = timer.C
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
			if isTold && errors.Is(a.err, ErrAway) {
				return told, nil
			}
			var final bool
			if reason, final = judge(a, uid); final {
				return plan.Pod{}, fmt.Errorf("pod %s (UID %s): %w", k, uid, reason)
			}
		case <-enough:
			return told, nil
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
		var pod plan.Pod
		err := p.api.ask(ctx, func(ctx context.Context) error {
			obj, err := p.client.Namespace(k.namespace).Get(ctx, k.name, metav1.GetOptions{})
			if err == nil {
				_, pod = reducePod(obj)
			}
			return err
		})
		answers <- answer{pod, err}
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
