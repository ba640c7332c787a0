package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
)

// follow runs a Cluster with these credentials until the test ends.
func follow(t *testing.T, config *rest.Config, node string) *Cluster {
	t.Helper()
	return followWith(t, config, Config{NodeName: node})
}

func followWith(t *testing.T, config *rest.Config, with Config) *Cluster {
	t.Helper()
	with.UserAgent = "braid-test"
	c, err := connect(config, with)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("Run does not end with its context")
		}
	})
	return c
}

// synced is follow, and waits for the first read.
func synced(t *testing.T, config *rest.Config, node string) *Cluster {
	t.Helper()
	c := follow(t, config, node)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func within(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func (s *apiServer) define(t *testing.T, namespace, name, config string) {
	t.Helper()
	obj := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"name": name},
		"spec":     map[string]any{"config": config},
	}}
	if _, err := s.dyn.Resource(definitionResource).Namespace(namespace).Create(t.Context(), obj, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestClusterPodsOfThisNodeAreInMemory(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	early := s.pod(t, ns, "early", node, map[string]string{
		"k8s.v1.cni.cncf.io/networks": "vlan-2001", appliedAnnotation: "{}",
	})
	elsewhere := s.pod(t, ns, "elsewhere", "other-"+ns, nil)
	c := synced(t, s.braiddConfig(t, node), node)
	late := s.pod(t, ns, "late", node, nil)

	pod, err := c.Pods.Get(within(t, 10*time.Second), plan.Pod{Namespace: ns, Name: "early", UID: string(early.UID)})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Name != "early" || pod.Namespace != ns || pod.UID != string(early.UID) ||
		len(pod.Annotations) != 1 || pod.Annotations["k8s.v1.cni.cncf.io/networks"] != "vlan-2001" {
		t.Errorf("got %+v", pod)
	}
	if _, err := c.Pods.Get(within(t, 10*time.Second), plan.Pod{Namespace: ns, Name: "late", UID: string(late.UID)}); err != nil {
		t.Errorf("a pod made after the first read: %v", err)
	}
	eventually(t, "the late pod is in memory", 10*time.Second, func() error {
		if _, ok := c.Pods.table.get(key{ns, "late"}); !ok {
			return errors.New("it is not")
		}
		return nil
	})
	if _, ok := c.Pods.table.get(key{ns, elsewhere.Name}); ok {
		t.Error("a pod of another node is in memory")
	}
	s.deletePod(t, late)
	forgets(t, c, ns, "late")
}

func TestClusterHowAPodLives(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	c := synced(t, s.braiddConfig(t, node), node)
	created := s.pod(t, ns, "web-0", node, nil)
	pod := plan.Pod{Namespace: ns, Name: "web-0", UID: string(created.UID)}
	if life, err := c.Pods.Life(t.Context(), pod); err != nil || life != (Life{}) {
		t.Errorf("a pod that waits lives as %+v, %v", life, err)
	}
	created.Status.Phase = corev1.PodRunning
	if _, err := s.admin.CoreV1().Pods(ns).UpdateStatus(t.Context(), created, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if life, err := c.Pods.Life(t.Context(), pod); err != nil || life != (Life{Running: true}) {
		t.Errorf("a pod that runs lives as %+v, %v", life, err)
	}
	agent, err := s.admin.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "agent"},
		Spec: corev1.PodSpec{
			NodeName: node, HostNetwork: true,
			Containers: []corev1.Container{{Name: "c", Image: "example.test/c:1"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	life, err := c.Pods.Life(t.Context(), plan.Pod{Namespace: ns, Name: "agent", UID: string(agent.UID)})
	if err != nil || life != (Life{HostNetwork: true}) {
		t.Errorf("a pod in the node's network lives as %+v, %v", life, err)
	}
	pod.UID = "another"
	if _, err := c.Pods.Life(t.Context(), pod); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod of an earlier life: %v", err)
	}
	pod.Name = "web-1"
	if _, err := c.Pods.Life(t.Context(), pod); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod that is not there: %v", err)
	}
}

// forgets waits until the watch has told of a pod's end: until then the pod
// is answered for from memory.
func forgets(t *testing.T, c *Cluster, namespace, name string) {
	t.Helper()
	eventually(t, "a deleted pod leaves memory", 10*time.Second, func() error {
		if _, ok := c.Pods.table.get(key{namespace, name}); ok {
			return errors.New("it is there")
		}
		return nil
	})
}

func TestClusterAPodThatIsGoneIsNotWaitedFor(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	c := synced(t, s.braiddConfig(t, node), node)
	old := s.pod(t, ns, "web-0", node, nil)
	s.deletePod(t, old)
	forgets(t, c, ns, "web-0")

	start := time.Now()
	_, err := c.Pods.Get(within(t, 30*time.Second), plan.Pod{Namespace: ns, Name: "web-0", UID: string(old.UID)})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted pod: got %v, want ErrNotFound", err)
	}
	// A StatefulSet's pod comes back under the same name.
	s.pod(t, ns, "web-0", node, nil)
	_, err = c.Pods.Get(within(t, 30*time.Second), plan.Pod{Namespace: ns, Name: "web-0", UID: string(old.UID)})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "the pod of this name has the UID") {
		t.Errorf("recreated pod: got %v, want ErrNotFound and the other UID", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the answers took %v", took)
	}
}

func TestClusterStaticPodsAreFoundByTheirHash(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	c := synced(t, s.braiddConfig(t, node), node)
	const hash = "0f3c1d9d2f0b4a6e8c7d5b3a19283746"

	// The kubelet starts the pod first and makes its mirror then.
	type got struct {
		pod plan.Pod
		err error
	}
	found := make(chan got, 1)
	ctx := within(t, 30*time.Second)
	go func() {
		pod, err := c.Pods.Get(ctx, plan.Pod{Namespace: ns, Name: "etcd-node", UID: hash})
		found <- got{pod, err}
	}()
	// A mirror of the manifest as it was before is another pod.
	before := s.pod(t, ns, "etcd-node", node, map[string]string{mirrorAnnotation: "00000000000000000000000000000000", hashAnnotation: "00000000000000000000000000000000"})
	eventually(t, "the old mirror is in memory", 10*time.Second, func() error {
		if _, ok := c.Pods.table.get(key{ns, "etcd-node"}); !ok {
			return errors.New("it is not")
		}
		return nil
	})
	select {
	case g := <-found:
		t.Fatalf("answered %+v, %v before the mirror was there", g.pod, g.err)
	default:
	}
	s.deletePod(t, before)
	mirror := s.pod(t, ns, "etcd-node", node, map[string]string{mirrorAnnotation: hash, hashAnnotation: hash})
	g := <-found
	if g.err != nil || g.pod.UID != string(mirror.UID) {
		t.Errorf("got %+v, %v, want the mirror pod %s", g.pod, g.err, mirror.UID)
	}
	// One that was served by its hash has its status on the mirror.
	g.pod.UID = hash
	if err := c.Pods.SetNetworkStatus(within(t, 20*time.Second), g.pod, "[]"); err != nil {
		t.Error(err)
	}
	after, err := s.admin.CoreV1().Pods(ns).Get(t.Context(), "etcd-node", metav1.GetOptions{})
	if err != nil || after.Annotations[status.Annotation] != "[]" {
		t.Errorf("annotations %v, %v", after.Annotations, err)
	}
}

func TestClusterStatusIsWrittenToThisPodOnly(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	c := synced(t, s.braiddConfig(t, node), node)
	object := s.pod(t, ns, "web-0", node, map[string]string{"keep": "me"})
	pod, err := c.Pods.Get(within(t, 10*time.Second), plan.Pod{Namespace: ns, Name: "web-0", UID: string(object.UID)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := status.Text([]status.Outcome{{Attachment: plan.Attachment{Network: "flannel", Default: true}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is the same
		if err := c.Pods.SetNetworkStatus(within(t, 20*time.Second), pod, text); err != nil {
			t.Fatal(err)
		}
	}
	after, err := s.admin.CoreV1().Pods(ns).Get(t.Context(), "web-0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if after.Annotations[status.Annotation] != text || after.Annotations["keep"] != "me" {
		t.Errorf("annotations are %v", after.Annotations)
	}

	s.deletePod(t, object)
	if err := c.Pods.SetNetworkStatus(within(t, 20*time.Second), pod, text); !errors.Is(err, ErrNotFound) {
		t.Errorf("pod that is gone: got %v, want ErrNotFound", err)
	}
	recreated := s.pod(t, ns, "web-0", node, nil)
	err = c.Pods.SetNetworkStatus(within(t, 20*time.Second), pod, text)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), string(recreated.UID)) {
		t.Errorf("recreated pod: got %v, want ErrNotFound and its UID", err)
	}
	after, err = s.admin.CoreV1().Pods(ns).Get(t.Context(), "web-0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Annotations) != 0 {
		t.Errorf("the recreated pod got the annotations %v", after.Annotations)
	}
}

func TestClusterARefusedStatusIsGivenUp(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	config := s.braiddConfig(t, "node-"+ns)
	c := synced(t, config, "node-"+ns)
	object := s.pod(t, ns, "p", "other-"+ns, nil)
	s.awaitPolicy(t, callerOf(t, config), object)
	start := time.Now()
	err := c.Pods.SetNetworkStatus(within(t, 30*time.Second), plan.Pod{Namespace: ns, Name: "p", UID: string(object.UID)}, "[]")
	if err == nil || !strings.Contains(err.Error(), "braidd may change pods of its own node only") {
		t.Errorf("got %v, want the policy's refusal", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("giving up took %v", took)
	}
}

func TestClusterEventsAreSeenOnThePod(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	c := synced(t, s.braiddConfig(t, node), node)
	object := s.pod(t, ns, "web-0", node, nil)
	pod := plan.Pod{Namespace: ns, Name: "web-0", UID: string(object.UID)}

	c.Events.Added(pod, "Add net1 [10.20.1.11/24] from default/vlan-2001")
	c.Events.Removed(pod, "Remove net1 from default/vlan-2001; no longer asked for")
	const why = "attach net2 (bridge on vlanbr0): no such bridge"
	for range 3 {
		c.Events.Failed(pod, why)
	}
	eventually(t, "the events are in the API", 20*time.Second, func() error {
		list, err := s.admin.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + pod.UID})
		if err != nil {
			return err
		}
		var got []string
		for _, e := range list.Items {
			got = append(got, fmt.Sprintf("%s %s %s %s x%d", e.Type, e.Reason, e.Source.Host, e.Message, e.Count))
		}
		want := []string{
			"Normal AddedInterface " + node + " Add net1 [10.20.1.11/24] from default/vlan-2001 x1",
			"Normal RemovedInterface " + node + " Remove net1 from default/vlan-2001; no longer asked for x1",
			"Warning NetworkFailed " + node + " " + why + " x3",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			return fmt.Errorf("have %q", got)
		}
		return nil
	})
}

// TestClusterEventsAreSeenOnTheNode: kubectl shows them without asking for a
// namespace, and with the node, as it does the kubelet's.
func TestClusterEventsAreSeenOnTheNode(t *testing.T) {
	s := needAPIServer(t)
	node := "node-" + s.namespace(t)
	config := s.braiddConfig(t, node) // which makes the node
	c, err := connect(config, Config{NodeName: node, UserAgent: "braid-test"})
	if err != nil {
		t.Fatal(err)
	}
	// Before Run, as the conf dir may be looked at before.
	const renamed, guarded = "Cilium has renamed 10-flannel.conflist", "Cilium may rename others"
	c.Events.Guarded(guarded)
	for range 2000 { // recording does not wait for the API
		c.Events.Renamed(renamed)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "kubectl shows the events", 30*time.Second, func() error {
		list, err := s.kubectl("get", "events", "--field-selector=involvedObject.kind=Node,source=braid,involvedObject.name="+node, "--no-headers")
		if err != nil {
			return fmt.Errorf("%w: %s", err, list)
		}
		described, err := s.kubectl("describe", "node", node)
		if err != nil {
			return fmt.Errorf("%w: %s", err, described)
		}
		for _, text := range []string{list, described} {
			for _, want := range []string{ReasonRenamed, renamed, ReasonGuarded, guarded} {
				if strings.Count(text, want) != 1 {
					return fmt.Errorf("not once %q in\n%s", want, text)
				}
			}
		}
		if !strings.Contains(list, "Warning") {
			return fmt.Errorf("no warning in\n%s", list)
		}
		return nil
	})
}

func TestClusterDefinitionsFollowTheirCRD(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	remove := func() {
		if out, err := s.kubectl("delete", "--wait=true", "--ignore-not-found", "-f", "../../deploy/crds/network-attachment-definitions.yaml"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	install := func() {
		if out, err := s.kubectl("apply", "-f", "../../deploy/crds/network-attachment-definitions.yaml"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if out, err := s.kubectl("wait", "--for=condition=established", "--timeout=30s", "crd/network-attachment-definitions.k8s.cni.cncf.io"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	remove()
	defer install()

	// Pods without networks of their own must start all the same.
	c := synced(t, s.braiddConfig(t, node), node)
	if _, ok := c.Definitions.Get(ns, "vlan-2001"); ok {
		t.Fatal("a definition without a CRD")
	}
	if _, err := c.Definitions.Lookup(within(t, 10*time.Second), ns, "vlan-2001"); !errors.Is(err, ErrNotFound) {
		t.Errorf("lookup without a CRD: got %v, want ErrNotFound", err)
	}

	install()
	s.define(t, ns, "vlan-2001", `{"type":"bridge"}`)
	want := plan.Definition{Namespace: ns, Name: "vlan-2001", Config: `{"type":"bridge"}`}
	// Before any watch knows of it.
	if got, err := c.Definitions.Lookup(within(t, 10*time.Second), ns, "vlan-2001"); err != nil || got != want {
		t.Errorf("lookup: got %+v, %v, want %+v", got, err, want)
	}
	eventually(t, "the definition is in memory", 30*time.Second, func() error {
		if got, ok := c.Definitions.Get(ns, "vlan-2001"); !ok || got != want {
			return fmt.Errorf("got %+v, %v", got, ok)
		}
		return nil
	})

	if _, err := s.dyn.Resource(definitionResource).Namespace(ns).Patch(t.Context(), "vlan-2001", "application/merge-patch+json",
		[]byte(`{"spec":{"config":"{}"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change is in memory", 10*time.Second, func() error {
		if got, _ := c.Definitions.Get(ns, "vlan-2001"); got.Config != "{}" {
			return fmt.Errorf("config is %q", got.Config)
		}
		return nil
	})
	remove()
	eventually(t, "the definitions go with their CRD", 30*time.Second, func() error {
		if _, ok := c.Definitions.Get(ns, "vlan-2001"); ok {
			return errors.New("it is still there")
		}
		return nil
	})
}

func TestClusterTheAPIMayComeLateAndGoAway(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	config := s.braiddConfig(t, node)
	s.define(t, ns, "net", "{}")
	object := s.pod(t, ns, "before", node, nil)
	pod := plan.Pod{Namespace: ns, Name: "before", UID: string(object.UID)}
	file := filepath.Join(t.TempDir(), "definitions")
	running := followWith(t, config, Config{NodeName: node, DefinitionsFile: file})
	if err := running.WaitSynced(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}

	s.stopAPI()
	// What is known is served on.
	if _, err := running.Pods.Get(within(t, 5*time.Second), plan.Pod{Namespace: ns, Name: "before", UID: pod.UID}); err != nil {
		t.Errorf("pod known before the API went: %v", err)
	}
	if _, ok := running.Definitions.Get(ns, "net"); !ok {
		t.Error("the definition is forgotten")
	}
	if err := running.Synced(); err != nil {
		t.Errorf("Synced: %v", err)
	}
	// What is not known is no "not found".
	_, err := running.Pods.Get(within(t, 500*time.Millisecond), plan.Pod{Namespace: ns, Name: "unknown", UID: "6d1f0a52-0000-4000-8000-000000000000"})
	if err == nil || errors.Is(err, ErrNotFound) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unknown pod without an API: got %v, want a deadline and no ErrNotFound", err)
	}
	// A daemon that starts now says what it waits for.
	started := follow(t, config, node)
	eventually(t, "Synced names the trouble", 10*time.Second, func() error {
		if err := started.Synced(); err == nil || !strings.Contains(err.Error(), "connection refused") ||
			!strings.Contains(err.Error(), "pods of node "+node) {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	// What the runtime tells is as good, and a status says that it is late.
	unknown := plan.Pod{Namespace: ns, Name: "unknown", UID: "6d1f0a52-0000-4000-8000-000000000000", Annotations: map[string]string{}}
	if pod, err := running.Pods.Get(within(t, 5*time.Second), unknown); err != nil || pod.UID != unknown.UID {
		t.Errorf("pod that the runtime tells of: got %+v, %v", pod, err)
	}
	if err := running.Pods.SetNetworkStatus(within(t, 20*time.Second), pod, "[]"); !errors.Is(err, ErrAway) {
		t.Errorf("status without an API: got %v, want ErrAway", err)
	}
	eventually(t, "Following names the trouble", 20*time.Second, func() error {
		if err := running.Following(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	// The next daemon of a node that was ready has the definitions of before.
	eventually(t, "the copy is written", 20*time.Second, func() error {
		_, err := os.Stat(file)
		return err
	})
	next := followWith(t, config, Config{NodeName: node, DefinitionsFile: file})
	eventually(t, "a start without the API is ready", 20*time.Second, next.Synced)
	if def, err := next.Definitions.Lookup(within(t, 10*time.Second), ns, "net"); err != nil || def.Config != "{}" {
		t.Errorf("definition of the copy: got %+v, %v", def, err)
	}

	if err := s.startAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API is followed again", 30*time.Second, running.Following)
	if err := running.Pods.SetNetworkStatus(within(t, 20*time.Second), pod, "[]"); err != nil {
		t.Errorf("status after the restart: %v", err)
	}
	eventually(t, "the API is followed by the next daemon", 30*time.Second, next.Following)
	eventually(t, "the copy is of no use any more", 10*time.Second, func() error {
		if next.Definitions.copy.loaded() {
			return errors.New("it is in use")
		}
		return nil
	})
	if err := started.WaitSynced(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
	s.pod(t, ns, "after", node, nil)
	for name, c := range map[string]*Cluster{"running": running, "started": started} {
		eventually(t, name+" sees a pod made after the restart", 30*time.Second, func() error {
			if _, ok := c.Pods.table.get(key{ns, "after"}); !ok {
				return errors.New("not in memory")
			}
			return nil
		})
	}
}

// TestClusterTheAnnotationHasAnOwner: whoever asks who wrote the annotation is
// told, and that it was nothing else.
func TestClusterTheAnnotationHasAnOwner(t *testing.T) {
	s := needAPIServer(t)
	ns := s.namespace(t)
	node := "node-" + ns
	c := synced(t, s.braiddConfig(t, node), node)
	object := s.pod(t, ns, "p", node, nil)
	if err := c.Pods.SetNetworkStatus(within(t, 20*time.Second), plan.Pod{Namespace: ns, Name: "p", UID: string(object.UID)}, "[]"); err != nil {
		t.Fatal(err)
	}
	after, err := s.admin.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range after.ManagedFields {
		if m.Manager != fieldManager {
			continue
		}
		const want = `{"f:metadata":{"f:annotations":{".":{},"f:k8s.v1.cni.cncf.io/network-status":{}}}}`
		if got := compact(t, m.FieldsV1); m.Subresource != "status" || got != want {
			t.Errorf("%s owns %s of subresource %q, want %s", fieldManager, got, m.Subresource, want)
		}
		return
	}
	t.Errorf("%s owns nothing: %+v", fieldManager, after.ManagedFields)
}

func compact(t *testing.T, f *metav1.FieldsV1) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(f.GetRawBytes(), &v); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
