package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// caller is one set of credentials.
type caller struct {
	kubernetes.Interface
	dyn dynamic.Interface
}

func callerOf(t *testing.T, config *rest.Config) caller {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return caller{client, dyn}
}

// TestClusterBraiddMayDoItsWorkAndNothingElse holds deploy/rbac.yaml and
// deploy/admission.yaml against a real API server.
func TestClusterBraiddMayDoItsWorkAndNothingElse(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	mine := s.pod(t, ns, "mine", "access-1", map[string]string{"keep": "me"})
	other := s.pod(t, ns, "other", "access-2", nil)
	pending := s.pod(t, ns, "pending", "", nil)
	braidd := callerOf(t, s.braiddConfig(t, "access-1"))
	unbound := callerOf(t, s.braiddConfig(t, ""))
	s.awaitPolicy(t, braidd, other)

	const status = `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`
	patch := func(c caller, pod *corev1.Pod, patch string, subresources ...string) error {
		_, err := c.CoreV1().Pods(ns).Patch(t.Context(), pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...)
		return err
	}
	own, there := corev1.EventSource{Component: component, Host: "access-1"}, corev1.EventSource{Component: component, Host: "access-2"}
	about := func(kind, namespace, name string) corev1.ObjectReference {
		return corev1.ObjectReference{Kind: kind, Namespace: namespace, Name: name}
	}
	event := func(c caller, namespace string, object corev1.ObjectReference, source corev1.EventSource, name ...string) error {
		e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{GenerateName: "e-", Name: strings.Join(name, "")}, InvolvedObject: object, Source: source}
		return second(c.CoreV1().Events(namespace).Create(t.Context(), e, metav1.CreateOptions{}))
	}
	for name, source := range map[string]corev1.EventSource{"mine": own, "theirs": there} {
		if err := event(callerOf(t, s.config), ns, about("Pod", ns, "mine"), source, name); err != nil {
			t.Fatal(err)
		}
	}
	change := func(name, patch string) error {
		return second(braidd.CoreV1().Events(ns).Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}))
	}
	eventually(t, "the policy of events is enforced", 30*time.Second, func() error {
		e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "dry"}, InvolvedObject: about("Node", "", "access-2"), Source: own}
		_, err := braidd.CoreV1().Events("default").Create(context.Background(), e, metav1.CreateOptions{DryRun: []string{"All"}})
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
			return fmt.Errorf("an event about another node: %v", err)
		}
		return nil
	})
	const allowed = ""
	for _, tc := range []struct {
		name string
		err  error
		want string // part of the refusal
	}{
		{"network-status of a pod of the node", patch(braidd, mine, status, "status"), allowed},
		{"network-status of a pod of another node", patch(braidd, other, status, "status"), `this pod is on "access-2"`},
		{"network-status of a pod of no node", patch(braidd, pending, status, "status"), `this pod is on ""`},
		{"network-status with a token that names no node", patch(unbound, mine, status, "status"), "this one names no node"},
		{"the networks that a pod asks for", patch(braidd, mine, `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/networks":"x"}}}`, "status"), "no annotation but"},
		{"changing somebody's annotation", patch(braidd, mine, `{"metadata":{"annotations":{"keep":"changed"}}}`, "status"), "no annotation but"},
		{"removing somebody's annotation", patch(braidd, mine, `{"metadata":{"annotations":{"keep":null}}}`, "status"), "no annotation but"},
		{"removing network-status again", patch(braidd, mine, `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":null}}}`, "status"), allowed},
		{"a label", patch(braidd, mine, `{"metadata":{"labels":{"app":"x"}}}`, "status"), "labels, finalizers or owners"},
		{"a finalizer", patch(braidd, mine, `{"metadata":{"finalizers":["example.test/x"]}}`, "status"), "labels, finalizers or owners"},
		{"the pod's phase", patch(braidd, mine, `{"status":{"phase":"Failed"}}`, "status"), "neither spec nor status"},
		{"the pod's readiness", patch(braidd, mine, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status"), "neither spec nor status"},
		{"the pod itself", patch(braidd, mine, status), "cannot patch resource"},
		{"the pod's image", patch(braidd, mine, `{"spec":{"containers":[{"name":"c","image":"evil"}]}}`), "cannot patch resource"},
		{"deleting the pod", braidd.CoreV1().Pods(ns).Delete(t.Context(), "mine", metav1.DeleteOptions{}), "cannot delete resource"},
		{"listing pods", second(braidd.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})), allowed},
		{"listing definitions", second(braidd.dyn.Resource(definitionResource).List(t.Context(), metav1.ListOptions{})), allowed},
		{"deleting definitions", braidd.dyn.Resource(definitionResource).Namespace(ns).Delete(t.Context(), "x", metav1.DeleteOptions{}), "cannot delete resource"},
		{"listing what drivers publish of devices", second(braidd.ResourceV1().ResourceSlices().List(t.Context(), metav1.ListOptions{})), allowed},
		{"watching what drivers publish of devices", second(braidd.ResourceV1().ResourceSlices().Watch(t.Context(), metav1.ListOptions{})), "cannot watch resource"},
		{"reading claims", second(braidd.ResourceV1().ResourceClaims(ns).List(t.Context(), metav1.ListOptions{})), "cannot list resource"},
		{"reading secrets", second(braidd.CoreV1().Secrets("braid-system").List(t.Context(), metav1.ListOptions{})), "cannot list resource"},
		{"reading config maps", second(braidd.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})), "cannot list resource"},
		{"reading nodes", second(braidd.CoreV1().Nodes().Get(t.Context(), "access-1", metav1.GetOptions{})), "cannot get resource"},
		{"a token for somebody", second(braidd.CoreV1().ServiceAccounts("braid-system").CreateToken(t.Context(), "braidd", nil, metav1.CreateOptions{})), "cannot create resource"},
		{"an event about a pod", event(braidd, ns, about("Pod", ns, "mine"), own), allowed},
		{"an event about the node", event(braidd, "default", about("Node", "", "access-1"), own), allowed},
		{"an event about another node", event(braidd, "default", about("Node", "", "access-2"), own), `this one is about Node "access-2"`},
		{"an event about another node as if from there", event(braidd, "default", about("Node", "", "access-2"), there), `this one is about Node "access-2"`},
		{"an event about something else", event(braidd, ns, about("ConfigMap", ns, "c"), own), `this one is about ConfigMap "c"`},
		{"an event about nothing", event(braidd, ns, about("", ns, ""), own), `this one is about  ""`},
		{"an event as if from another node", event(braidd, ns, about("Pod", ns, "mine"), there), "in its own name"},
		{"an event as if from the kubelet", event(braidd, "default", about("Node", "", "access-1"), corev1.EventSource{Component: "kubelet", Host: "access-1"}), "in its own name"},
		{"an event from nobody", event(braidd, ns, about("Pod", ns, "mine"), corev1.EventSource{}), "in its own name"},
		{"an event with a token that names no node", event(unbound, "default", about("Node", "", "access-1"), own), "this one names no node"},
		{"an event of the newer API", second(braidd.EventsV1().Events(ns).Create(t.Context(), &eventsv1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: "newer"}, Regarding: about("Pod", ns, "mine"),
		}, metav1.CreateOptions{})), "cannot create resource"},
		{"counting up its own event", change("mine", `{"count":2}`), allowed},
		{"moving its own event to another pod", change("mine", `{"involvedObject":{"name":"other"}}`), "not what they are about"},
		{"giving its own event to another node", change("mine", `{"source":{"host":"access-2"}}`), "in its own name"},
		{"changing the event of another node", change("theirs", `{"message":"all is well"}`), "in its own name"},
		{"taking over the event of another node", change("theirs", `{"source":{"host":"access-1"}}`), "events of its own only"},
		{"deleting its own event", braidd.CoreV1().Events(ns).Delete(t.Context(), "mine", metav1.DeleteOptions{}), "cannot delete resource"},
	} {
		switch {
		case tc.want == allowed && tc.err != nil:
			t.Errorf("%s: refused: %v", tc.name, tc.err)
		case tc.want != allowed && tc.err == nil:
			t.Errorf("%s: allowed", tc.name)
		case tc.want != allowed && (!apierrors.IsForbidden(tc.err) || !strings.Contains(tc.err.Error(), tc.want)):
			t.Errorf("%s: got %v, want it forbidden with %q", tc.name, tc.err, tc.want)
		}
	}

	// The policy is about braidd alone.
	if err := patch(callerOf(t, s.config), mine, `{"metadata":{"labels":{"app":"x"}}}`); err != nil {
		t.Errorf("an administrator may not label a pod: %v", err)
	}
}

// awaitPolicy waits until the API server enforces the admission policy, which
// it begins a moment after the policy was made.
func (s *apiServer) awaitPolicy(t *testing.T, braidd caller, elsewhere *corev1.Pod) {
	t.Helper()
	eventually(t, "the admission policy is enforced", 30*time.Second, func() error {
		_, err := braidd.CoreV1().Pods(elsewhere.Namespace).Patch(context.Background(), elsewhere.Name, types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`), metav1.PatchOptions{DryRun: []string{"All"}}, "status")
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
			return fmt.Errorf("a pod of another node: %v", err)
		}
		return nil
	})
}

func second[T any](_ T, err error) error { return err }
