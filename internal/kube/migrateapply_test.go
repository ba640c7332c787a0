package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

func TestManifestsAreReadInEveryForm(t *testing.T) {
	const list = `{"apiVersion":"v1","kind":"List","items":[
		{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}},
		{"apiVersion":"v1","kind":"ConfigMapList","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":"n"}}]}]}`
	for name, tc := range map[string]struct {
		text string
		want string // names, or what the error says
	}{
		"nothing":            {"", ""},
		"only comments":      {"# a\n---\n# b\n", ""},
		"one document":       {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", "ConfigMap a"},
		"many, some empty":   {"---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# x\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: b, namespace: ns}\n---\n", "ConfigMap a, Secret ns/b"},
		"JSON":               {`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, "ConfigMap a"},
		"lists":              {list, "ConfigMap b, ConfigMap n/c"},
		"an empty list":      {`{"apiVersion":"v1","kind":"List","items":[]}`, ""},
		"numbers":            {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, generation: 9007199254740993}\n", "ConfigMap a"},
		"no kind":            {"apiVersion: v1\nmetadata: {name: a}\n", "document 1: an object without kind or apiVersion"},
		"not a namespace":    {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: n}\n", "document 1: ConfigMap a: .metadata.namespace accessor error"},
		"no name":            {"apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n", "document 1: a ConfigMap without a name"},
		"a list of nothings": {`{"apiVersion":"v1","kind":"List","items":[{}]}`, "an object without kind or apiVersion"},
		"not YAML":           {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n{", "document 2: "},
		"a scalar":           {"hello", "document 1: "},
	} {
		objects, err := ParseManifests([]byte(tc.text))
		var names []string
		for _, o := range objects {
			names = append(names, objectOf(o).String())
		}
		got := strings.Join(names, ", ")
		if err != nil {
			got = err.Error()
		}
		if got != tc.want && !(err != nil && tc.want != "" && strings.Contains(got, tc.want)) {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}

func FuzzParseManifests(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# x\n---\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}]}`))
	f.Add([]byte("kind: List\napiVersion: v1\nitems: 7\n"))
	f.Add([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: []\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := ParseManifests(text)
		if err != nil {
			return
		}
		for _, o := range objects {
			if o.GetKind() == "" || o.GetAPIVersion() == "" || o.GetName() == "" || o.IsList() {
				t.Errorf("%q gives %+v", text, o.Object)
			}
		}
	})
}

func TestARolloutSaysWhatItWaitsFor(t *testing.T) {
	for _, tc := range []struct {
		object any
		want   string
	}{
		{&appsv1.DaemonSet{TypeMeta: metav1.TypeMeta{Kind: "DaemonSet"}, ObjectMeta: metav1.ObjectMeta{Generation: 2},
			Status: appsv1.DaemonSetStatus{ObservedGeneration: 1}}, "its controller has not seen it yet"},
		{&appsv1.DaemonSet{TypeMeta: metav1.TypeMeta{Kind: "DaemonSet"},
			Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, UpdatedNumberScheduled: 1, NumberAvailable: 3}}, "1 of 3 pods are of the newest spec"},
		{&appsv1.DaemonSet{TypeMeta: metav1.TypeMeta{Kind: "DaemonSet"},
			Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 2}}, "2 of 3 pods are available"},
		{&appsv1.DaemonSet{TypeMeta: metav1.TypeMeta{Kind: "DaemonSet"}, Spec: appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}},
			Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, NumberAvailable: 3}}, ""},
		{&appsv1.DaemonSet{TypeMeta: metav1.TypeMeta{Kind: "DaemonSet"},
			Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 3}}, ""},
		{&appsv1.Deployment{TypeMeta: metav1.TypeMeta{Kind: "Deployment"}}, "0 of 1 pods are of the newest spec"},
		{&appsv1.Deployment{TypeMeta: metav1.TypeMeta{Kind: "Deployment"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(0))}}, ""},
		{&appsv1.Deployment{TypeMeta: metav1.TypeMeta{Kind: "Deployment"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(2))},
			Status: appsv1.DeploymentStatus{UpdatedReplicas: 2, Replicas: 3, AvailableReplicas: 3}}, "1 pods of an older spec have to end"},
		{&appsv1.Deployment{TypeMeta: metav1.TypeMeta{Kind: "Deployment"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(2))},
			Status: appsv1.DeploymentStatus{UpdatedReplicas: 2, Replicas: 2, AvailableReplicas: 1, Conditions: []appsv1.DeploymentCondition{{
				Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse, Message: "has timed out progressing"}}}}, "1 of 2 pods are available: has timed out progressing"},
		{&appsv1.Deployment{TypeMeta: metav1.TypeMeta{Kind: "Deployment"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(2))},
			Status: appsv1.DeploymentStatus{UpdatedReplicas: 2, Replicas: 2, AvailableReplicas: 2}}, ""},
		{&appsv1.StatefulSet{TypeMeta: metav1.TypeMeta{Kind: "StatefulSet"}, Status: appsv1.StatefulSetStatus{CurrentRevision: "a", UpdateRevision: "b", AvailableReplicas: 1}}, "0 of 1 pods are of the newest spec"},
		{&appsv1.StatefulSet{TypeMeta: metav1.TypeMeta{Kind: "StatefulSet"}, Status: appsv1.StatefulSetStatus{AvailableReplicas: 1}}, ""},
		{&appsv1.ReplicaSet{TypeMeta: metav1.TypeMeta{Kind: "ReplicaSet"}}, "a ReplicaSet has no rollout"},
	} {
		text, err := json.Marshal(tc.object)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := json.Unmarshal(text, &u.Object); err != nil {
			t.Fatal(err)
		}
		if got := waitsFor(u); got != tc.want {
			t.Errorf("%s: got %q, want %q", text, got, tc.want)
		}
	}
}

// manyDocuments has every order wrong: what depends on others comes first.
const manyDocuments = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: NS}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: c, image: "example.test/c:1"}]}
---
apiVersion: test.braid.dev/v1
kind: Thing
metadata: {name: first}
---
# nothing
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: NS}
data: {a: "1"}
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: ServiceAccount
    metadata: {name: agent, namespace: NS}
  - apiVersion: rbac.authorization.k8s.io/v1
    kind: ClusterRole
    metadata: {name: NS, namespace: is-ignored}
    rules: []
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.test.braid.dev}
spec:
  group: test.braid.dev
  scope: Cluster
  names: {plural: things, singular: thing, kind: Thing}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: v1
kind: Namespace
metadata: {name: NS}
`

func TestClusterManyDocumentsAreApplied(t *testing.T) {
	s := migrating(t)
	m := s.person(t)
	ns := "apply-" + s.namespace(t)
	text := strings.ReplaceAll(manyDocuments, "NS", ns)
	parse := func(text string) []*unstructured.Unstructured {
		objects, err := ParseManifests([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return objects
	}
	expect := func(when string, got []Applied, err error, change Change, namespace string) {
		t.Helper()
		var lines []string
		for _, a := range got {
			lines = append(lines, a.String()+" "+string(a.Change))
		}
		c := " " + string(change)
		want := []string{"Namespace " + ns + " " + namespace, "CustomResourceDefinition things.test.braid.dev" + c,
			"Thing first" + c, "ConfigMap " + ns + "/settings" + c, "ServiceAccount " + ns + "/agent" + c, "ClusterRole " + ns + c, "DaemonSet " + ns + "/agent" + c}
		if err != nil || !slices.Equal(lines, want) {
			t.Errorf("%s: %v\n%s\nwant\n%s", when, err, strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	}

	dry, err := m.Apply(t.Context(), parse(text), ApplyOptions{DryRun: true})
	expect("dry run", dry, err, Created, "created")
	if _, err := m.Get(t.Context(), Object{"v1", "Namespace", "", ns}); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the dry run the namespace: %v", err)
	}
	first, err := m.Apply(t.Context(), parse(text), ApplyOptions{})
	expect("first", first, err, Created, "created")
	things := []Object{{"test.braid.dev/v1", "Thing", "", "first"}, {"apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "things.test.braid.dev"}}
	defer m.Delete(context.Background(), things)
	again, err := m.Apply(t.Context(), parse(text), ApplyOptions{})
	expect("again", again, err, Unchanged, "unchanged")
	dry, err = m.Apply(t.Context(), parse(text), ApplyOptions{DryRun: true})
	expect("dry run of what is there", dry, err, Unchanged, "unchanged")

	// One setting changes; what others have added stays.
	if out, err := s.kubectl("annotate", "-n", ns, "configmap", "settings", "keep=me"); err != nil {
		t.Fatal(out)
	}
	changed, err := m.Apply(t.Context(), parse(strings.ReplaceAll(text, `a: "1"`, `b: "2"`)), ApplyOptions{})
	i := slices.IndexFunc(changed, func(a Applied) bool { return a.Kind == "ConfigMap" })
	if err != nil || i < 0 || changed[i].Change != Changed {
		t.Fatalf("a setting that changes: %v, %+v", err, changed)
	}
	cm, err := m.Get(t.Context(), changed[i].Object)
	if err != nil {
		t.Fatal(err)
	}
	data, _, _ := unstructured.NestedStringMap(cm.Object, "data")
	if len(data) != 1 || data["b"] != "2" || cm.GetAnnotations()["keep"] != "me" {
		t.Errorf("the settings are %v, the annotations %v", data, cm.GetAnnotations())
	}

	// What somebody else has set is not overwritten unasked.
	if out, err := s.kubectl("patch", "-n", ns, "configmap", "settings", "--type=merge", "-p", `{"data":{"b":"3"}}`, "--field-manager=somebody"); err != nil {
		t.Fatal(out)
	}
	settings := parse("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {b: \"2\"}\n")
	if _, err := m.Apply(t.Context(), settings, ApplyOptions{Namespace: ns}); err == nil || !strings.Contains(err.Error(), "ConfigMap settings") || !strings.Contains(err.Error(), `"somebody"`) {
		t.Errorf("a setting that is somebody else's: got %v", err)
	}
	if got, err := m.Apply(t.Context(), settings, ApplyOptions{Namespace: ns, Force: true}); err != nil || got[0].Change != Changed || got[0].Namespace != ns {
		t.Errorf("by force: %+v, %v", got, err)
	}
	if _, err := m.Apply(t.Context(), parse("apiVersion: nowhere.test/v1\nkind: Thing\nmetadata: {name: x}\n"), ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "the cluster has no such kind") {
		t.Errorf("an unknown kind: got %v", err)
	}

	// Only the daemon's service account is gone: the namespace is not asked for.
	all := append(slices.Clone(things), Object{"apps/v1", "DaemonSet", ns, "agent"}, Object{"v1", "ServiceAccount", ns, "agent"}, Object{"v1", "ServiceAccount", ns, "never"})
	deleted, err := m.Delete(t.Context(), all)
	if err != nil || len(deleted) != 4 || deleted[0].Kind != "DaemonSet" || deleted[3].Kind != "CustomResourceDefinition" {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	if err := m.WaitGone(within(t, 30*time.Second), all); err != nil {
		t.Error(err)
	}
	if deleted, err := m.Delete(t.Context(), all); err != nil || len(deleted) != 0 {
		t.Errorf("deleted again: %v, %v", deleted, err)
	}
	if err := m.WaitGone(within(t, time.Second), []Object{{"v1", "ConfigMap", ns, "settings"}}); err == nil || !strings.Contains(err.Error(), "ConfigMap "+ns+"/settings") {
		t.Errorf("waiting for what stays: got %v", err)
	}
}

// TestClusterALeaseThatALeaderMadeAgainIsUninstalled: it makes one as long as it
// runs, which is some time after its DaemonSet was deleted.
func TestClusterALeaseThatALeaderMadeAgainIsUninstalled(t *testing.T) {
	s := migrating(t)
	m := s.person(t)
	ns := s.namespace(t)
	leases, maps := s.admin.CoordinationV1().Leases(leaseNamespace), s.admin.CoreV1().ConfigMaps(ns)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseName}}
	if _, err := leases.Create(t.Context(), lease, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	// What stands for the leader is there for as long as its finalizer.
	leader := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "leader", Finalizers: []string{"test.braid.dev/runs"}}}
	if _, err := maps.Create(t.Context(), leader, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 1)
	go func() {
		ends <- poll(t.Context(), func() (bool, error) {
			c, err := maps.Get(t.Context(), "leader", metav1.GetOptions{})
			if err != nil || c.DeletionTimestamp == nil {
				return false, err
			}
			if _, err := leases.Create(t.Context(), lease, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return false, err
			}
			c.Finalizers = nil
			_, err = maps.Update(t.Context(), c, metav1.UpdateOptions{})
			return true, err
		})
	}()
	var gone []Object
	err := m.Uninstall(within(t, 30*time.Second), []Object{{"v1", "ConfigMap", ns, "leader"}}, func(o []Object) { gone = append(gone, o...) })
	if err != nil || len(gone) != 2 || gone[1].Kind != "Lease" {
		t.Errorf("%v, gone are %v", err, gone)
	}
	if err := <-ends; err != nil {
		t.Error(err)
	}
	if _, err := leases.Get(t.Context(), leaseName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the lease: %v", err)
	}
}

func TestClusterARolloutIsWaitedFor(t *testing.T) {
	s := migrating(t)
	m := s.person(t)
	ns := s.namespace(t)
	o := Object{"apps/v1", "DaemonSet", ns, "agent"}
	said := make(chan string, 100)
	done := make(chan error, 1)
	ctx := within(t, 60*time.Second)
	go func() { done <- m.WaitRollout(ctx, o, func(text string) { said <- text }) }()
	heard := func(want string) {
		t.Helper()
		limit := time.After(20 * time.Second)
		for {
			select {
			case text := <-said:
				if text == want {
					return
				}
			case err := <-done:
				t.Fatalf("it is over: %v", err)
			case <-limit:
				t.Fatalf("nothing says %q", want)
			}
		}
	}
	heard("it is not there")
	ds, err := s.admin.AppsV1().DaemonSets(ns).Create(t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "agent"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "agent"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "agent"}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.test/c:1"}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	heard("its controller has not seen it yet")
	status := func(text string) {
		t.Helper()
		if _, err := s.admin.AppsV1().DaemonSets(ns).Patch(t.Context(), "agent", types.MergePatchType, []byte(text), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	status(fmt.Sprintf(`{"status":{"observedGeneration":%d,"desiredNumberScheduled":2,"updatedNumberScheduled":2,"numberAvailable":1}}`, ds.Generation))
	heard("1 of 2 pods are available")
	status(`{"status":{"numberAvailable":2}}`)
	if err := <-done; err != nil {
		t.Error(err)
	}
	status(`{"status":{"numberAvailable":0}}`)
	err = m.WaitRollout(within(t, 2*time.Second), o, func(string) {})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for DaemonSet "+ns+"/agent: 0 of 2 pods are available") {
		t.Errorf("got %v", err)
	}
}

func TestClusterEverythingIsListed(t *testing.T) {
	s := migrating(t)
	m := s.person(t)
	ns := s.namespace(t)
	const more = pageSize + 20
	for i := range more {
		if _, err := s.admin.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := m.List(t.Context(), schema.GroupVersionResource{Version: "v1", Resource: "configmaps"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, o := range objects {
		if o.GetManagedFields() != nil {
			t.Fatalf("%s has managed fields", o.GetName())
		}
		if o.GetKind() != "ConfigMap" || o.GetAPIVersion() != "v1" {
			t.Fatalf("an object is %v", o.Object)
		}
		if o.GetNamespace() == ns {
			n++
		}
	}
	if n != more {
		t.Errorf("%d of %d are listed", n, more)
	}
	if _, err := m.List(t.Context(), schema.GroupVersionResource{Group: "nowhere.test", Version: "v1", Resource: "things"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a resource that there is not: got %v, want ErrNotFound", err)
	}
	if v, err := m.ServerVersion(t.Context()); err != nil || !strings.HasPrefix(v, "v1.") {
		t.Errorf("the version is %q, %v", v, err)
	}
	if svc, err := m.Service(t.Context(), "default", "kubernetes"); err != nil || svc.Spec.ClusterIP != "10.96.0.1" {
		t.Errorf("service kubernetes: %+v, %v", svc, err)
	}
}
