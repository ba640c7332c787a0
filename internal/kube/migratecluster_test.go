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

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"braid.dev/braid/api/v1alpha1"
)

// viewed runs a view until the test ends.
func viewed(t *testing.T, v *View) *View {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("Run does not end with its context")
		}
	})
	if err := v.WaitSynced(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	return v
}

// until waits for a snapshot, looking only when there is word of a change.
func until(t *testing.T, v *View, what string, f func(Snapshot) bool) Snapshot {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		if snap := v.Snapshot(); f(snap) {
			return snap
		}
		select {
		case <-v.Changed():
		case <-limit:
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func podOf(snap Snapshot, namespace, name string) *corev1.Pod {
	i := slices.IndexFunc(snap.Pods, func(p corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return nil
	}
	return &snap.Pods[i]
}

func partOf(snap Snapshot, name string) *v1alpha1.NodeMigration {
	i := slices.IndexFunc(snap.NodeMigrations, func(p v1alpha1.NodeMigration) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &snap.NodeMigrations[i]
}

func TestClusterALeaderSeesWhatItDecidesOn(t *testing.T) {
	s := migrating(t)
	ns := s.namespace(t)
	m := s.migrations(t, "view-1")
	migration := s.migration(t, "view")
	v := viewed(t, m.LeaderView())

	grace := int64(7)
	made, err := s.admin.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"},
			Annotations:     map[string]string{appliedAnnotation: "{}", "keep": "me"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "x", Controller: new(true)}}},
		Spec: corev1.PodSpec{NodeName: "view-1", TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: "example.test/c:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.running(t, made, "10.244.1.5")
	s.budget(t, ns, "web", 0)
	s.nodeMigration(t, "view-1")
	snap := until(t, v, "everything is seen", func(snap Snapshot) bool {
		p := podOf(snap, ns, "web")
		return p != nil && p.Status.PodIP != "" && partOf(snap, "view-1") != nil &&
			slices.ContainsFunc(snap.PDBs, func(b policyv1.PodDisruptionBudget) bool { return b.Namespace == ns && b.Status.ExpectedPods == 1 })
	})
	p := podOf(snap, ns, "web")
	if p.Spec.NodeName != "view-1" || *p.Spec.TerminationGracePeriodSeconds != 7 || p.Labels["app"] != "web" || p.Annotations["keep"] != "me" ||
		p.Annotations[appliedAnnotation] != "" || metav1.GetControllerOf(p).Name != "web" || p.Status.Phase != corev1.PodRunning ||
		p.Status.PodIPs[0].IP != "10.244.1.5" || len(p.ManagedFields) != 0 || len(p.Spec.Containers) != 0 || p.UID != made.UID {
		t.Errorf("the pod is %+v", p)
	}
	if i := slices.IndexFunc(snap.Migrations, func(o v1alpha1.Migration) bool { return o.UID == migration.UID }); i < 0 || snap.Migrations[i].Spec.To.Profile != "cilium" {
		t.Errorf("migrations are %+v", snap.Migrations)
	}
	if !slices.ContainsFunc(snap.Nodes, func(n corev1.Node) bool { return n.Name == "view-1" }) ||
		!slices.ContainsFunc(snap.Services, func(o corev1.Service) bool { return o.Name == "kubernetes" && o.Spec.ClusterIP != "" }) {
		t.Error("there is no node, or no service")
	}
	if !slices.IsSortedFunc(snap.Pods, func(a, b corev1.Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	}) {
		t.Error("the pods are in no order")
	}
	s.deletePod(t, made)
	until(t, v, "the pod's end is seen", func(snap Snapshot) bool { return podOf(snap, ns, "web") == nil })
}

// running has a pod run and be ready, as its kubelet would say.
func (s *apiServer) running(t *testing.T, pod *corev1.Pod, ip string) {
	t.Helper()
	status := map[string]any{"status": corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}}
	patch, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.admin.CoreV1().Pods(pod.Namespace).Patch(t.Context(), pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// budget makes a disruption budget over app=web that allows so many evictions,
// as the disruption controller would say.
func (s *apiServer) budget(t *testing.T, namespace, name string, allowed int32) {
	t.Helper()
	client := s.admin.PolicyV1().PodDisruptionBudgets(namespace)
	b, err := client.Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: new(intstr.FromInt32(1)),
			Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.Status = policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: b.Generation, DisruptionsAllowed: allowed, CurrentHealthy: 1 + allowed, DesiredHealthy: 1, ExpectedPods: 1,
	}
	if _, err := client.UpdateStatus(t.Context(), b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestClusterAnEvictionWaitsForItsBudget(t *testing.T) {
	s := migrating(t)
	ns := s.namespace(t)
	m := s.migrations(t, "evict-1")
	web := func(name string) *corev1.Pod {
		pod := s.pod(t, ns, name, "evict-1", nil)
		if out, err := s.kubectl("label", "-n", ns, "pod", name, "app=web"); err != nil {
			t.Fatal(out)
		}
		s.running(t, pod, "10.244.1.5")
		return pod
	}
	first := web("first")
	s.budget(t, ns, "web", 0)

	err := m.Evict(t.Context(), first, nil)
	var blocked *BlockedError
	if !errors.As(err, &blocked) || !strings.Contains(blocked.Message, "disruption budget web needs 1 healthy pods and has 1") {
		t.Fatalf("a budget that allows nothing: got %v (%T), want it blocked, with the budget's name", err, errors.Unwrap(err))
	}
	if _, err := s.admin.CoreV1().Pods(ns).Get(t.Context(), "first", metav1.GetOptions{}); err != nil {
		t.Errorf("the pod: %v", err)
	}

	other := first.DeepCopy()
	other.UID = "6d1f0a52-0000-4000-8000-000000000000"
	if err := m.Evict(t.Context(), other, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod of the same name and another UID: got %v, want ErrNotFound", err)
	}

	// The budget allows one.
	if _, err := s.admin.PolicyV1().PodDisruptionBudgets(ns).Patch(t.Context(), "web", types.MergePatchType,
		[]byte(`{"status":{"disruptionsAllowed":1,"currentHealthy":2}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	if err := m.Evict(t.Context(), other, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod of the same name and another UID, which could be evicted: got %v, want ErrNotFound", err)
	}
	if err := m.Evict(t.Context(), first, nil); err != nil {
		t.Errorf("a budget that allows one: %v", err)
	}
	if _, err := s.admin.CoreV1().Pods(ns).Get(t.Context(), "first", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the pod that was evicted: %v", err)
	}
	if b, err := s.admin.PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), "web", metav1.GetOptions{}); err != nil || b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != 1 {
		t.Errorf("after one eviction the budget is %+v, %v", b.Status, err)
	}
	if err := m.Evict(t.Context(), first, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod that is gone: got %v, want ErrNotFound", err)
	}

	// Two budgets for one pod are for a person to sort out.
	second := web("second")
	s.budget(t, ns, "also", 5)
	if err := m.Evict(t.Context(), second, nil); !errors.As(err, &blocked) || !strings.Contains(blocked.Message, "more than one PodDisruptionBudget") {
		t.Errorf("two budgets: got %v, want it blocked", err)
	}
}

func TestClusterACordonOfAPersonStays(t *testing.T) {
	s := migrating(t)
	m := s.migrations(t, "cordon-1")
	look := func() (unschedulable bool, by string) {
		t.Helper()
		n, err := s.admin.CoreV1().Nodes().Get(t.Context(), "cordon-1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return n.Spec.Unschedulable, n.Annotations[CordonedBy]
	}
	expect := func(when string, unschedulable bool, by string) {
		t.Helper()
		if u, b := look(); u != unschedulable || b != by {
			t.Errorf("%s: unschedulable %v by %q, want %v by %q", when, u, b, unschedulable, by)
		}
	}
	cordon := func(migration string, want bool) {
		t.Helper()
		if ours, err := m.Cordon(t.Context(), "cordon-1", migration); err != nil || ours != want {
			t.Errorf("cordon by %s: ours %v, %v; want %v", migration, ours, err, want)
		}
	}
	uncordon := func(migration string) {
		t.Helper()
		if err := m.Uncordon(t.Context(), "cordon-1", migration); err != nil {
			t.Error(err)
		}
	}
	kubectl := func(args ...string) {
		t.Helper()
		if out, err := s.kubectl(args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}

	cordon("a", true)
	expect("cordoned", true, "a")
	cordon("a", true)
	cordon("b", false)
	uncordon("b")
	expect("another migration leaves it", true, "a")
	uncordon("a")
	expect("uncordoned", false, "")
	uncordon("a")

	kubectl("cordon", "cordon-1")
	cordon("a", false)
	expect("a person's cordon is not taken over", true, "")
	uncordon("a")
	expect("a person's cordon stays", true, "")
	kubectl("uncordon", "cordon-1")

	cordon("a", true)
	kubectl("uncordon", "cordon-1") // in the middle
	expect("a person has uncordoned", false, "a")
	uncordon("a")
	expect("only the annotation goes", false, "")

	cordon("a", true)
	kubectl("uncordon", "cordon-1")
	cordon("a", true)
	expect("it cordons again", true, "a")
	kubectl("annotate", "node", "cordon-1", CordonedBy+"-") // a person wants to keep it
	uncordon("a")
	expect("a cordon that a person has taken over stays", true, "")

	if _, err := m.Cordon(t.Context(), "no-such-node", "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a node that is not there: got %v, want ErrNotFound", err)
	}
	if err := m.Uncordon(t.Context(), "no-such-node", "a"); err != nil {
		t.Errorf("uncordon of a node that is gone: %v", err)
	}
}

// TestClusterACordonGetsThroughBetweenOthersWrites: the kubelet writes all the
// time, and each write is a reason to look again.
func TestClusterACordonGetsThroughBetweenOthersWrites(t *testing.T) {
	s := migrating(t)
	m := s.migrations(t, "busy-1")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			<-tick.C
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"n":"%d"}}}`, n)
			if _, err := s.admin.CoreV1().Nodes().Patch(ctx, "busy-1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	defer func() { stop(); <-ended }()
	for range 20 {
		if ours, err := m.Cordon(t.Context(), "busy-1", "a"); err != nil && !errors.Is(err, ErrConflict) || err == nil && !ours {
			t.Errorf("cordon: ours %v, %v", ours, err)
		}
		if err := m.Uncordon(t.Context(), "busy-1", "a"); err != nil && !errors.Is(err, ErrConflict) {
			t.Errorf("uncordon: %v", err)
		}
	}
}

func TestClusterAStaleDecisionIsNotWritten(t *testing.T) {
	s := migrating(t)
	leader, agent := s.migrations(t, "stale-1"), s.migrations(t, "stale-1")
	migration := s.migration(t, "stale")
	seen := s.nodeMigration(t, "stale-1")
	spec := v1alpha1.NodeMigrationSpec{Migration: "stale", From: migration.Spec.From, To: migration.Spec.To, Runtime: v1alpha1.RuntimeClosedToTarget}

	if _, err := leader.CreateNodeMigration(t.Context(), &v1alpha1.NodeMigration{ObjectMeta: metav1.ObjectMeta{Name: "stale-1"}}); !errors.Is(err, ErrExists) {
		t.Errorf("making it again: got %v, want ErrExists", err)
	}
	// That the agent reports is no conflict for the leader, nor the other way.
	if _, err := agent.UpdateNodeMigrationStatus(t.Context(), seen, v1alpha1.NodeMigrationStatus{Heartbeat: metav1.Now(), Runtime: v1alpha1.RuntimeSource}); err != nil {
		t.Fatal(err)
	}
	written, err := leader.UpdateNodeMigrationSpec(t.Context(), seen, spec)
	if err != nil {
		t.Fatal(err)
	}
	if written.Status.Runtime != v1alpha1.RuntimeSource || written.Spec.Runtime != v1alpha1.RuntimeClosedToTarget || written.Generation == seen.Generation {
		t.Errorf("written: %+v", written)
	}
	if o, err := agent.UpdateNodeMigrationStatus(t.Context(), seen, v1alpha1.NodeMigrationStatus{ObservedGeneration: written.Generation}); err != nil || o.Spec.Runtime != v1alpha1.RuntimeClosedToTarget {
		t.Errorf("report: %+v, %v", o, err)
	}
	// A leader that decided on the spec before that.
	stale := spec
	stale.Runtime = v1alpha1.RuntimeTarget
	if _, err := leader.UpdateNodeMigrationSpec(t.Context(), seen, stale); !errors.Is(err, ErrConflict) {
		t.Errorf("a spec decided on an older one: got %v, want ErrConflict", err)
	}
	live, err := leader.GetNodeMigration(t.Context(), "stale-1")
	if err != nil || live.Spec.Runtime != v1alpha1.RuntimeClosedToTarget {
		t.Errorf("the spec is %+v, %v", live.Spec, err)
	}
	// What is not valid is no conflict.
	wrong := spec
	wrong.Runtime = "Elsewhere"
	if _, err := leader.UpdateNodeMigrationSpec(t.Context(), live, wrong); err == nil || errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), `Unsupported value: "Elsewhere"`) {
		t.Errorf("a state that there is not: got %v", err)
	}
	// Deleted and made again is another one.
	if err := leader.DeleteNodeMigration(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{
		func() error {
			return second(agent.UpdateNodeMigrationStatus(t.Context(), live, v1alpha1.NodeMigrationStatus{}))
		},
		func() error { return second(leader.UpdateNodeMigrationSpec(t.Context(), live, spec)) },
		func() error { return second(leader.GetNodeMigration(t.Context(), "stale-1")) },
	} {
		if err := f(); !errors.Is(err, ErrNotFound) {
			t.Errorf("of one that is gone: got %v, want ErrNotFound", err)
		}
	}
	again := s.nodeMigration(t, "stale-1")
	if _, err := agent.UpdateNodeMigrationStatus(t.Context(), live, v1alpha1.NodeMigrationStatus{Message: "x"}); !errors.Is(err, ErrConflict) {
		t.Errorf("a report about the one before: got %v, want ErrConflict", err)
	}
	if err := leader.DeleteNodeMigration(t.Context(), live); err != nil {
		t.Errorf("deleting the one before: %v", err)
	}
	if o, err := leader.GetNodeMigration(t.Context(), "stale-1"); err != nil || o.UID != again.UID {
		t.Errorf("the one after: %+v, %v", o, err)
	}

	// The status of a migration is a decision about all of it.
	if _, err := s.person(t).ChangeMigration(t.Context(), "stale", func(s *v1alpha1.MigrationSpec) error { s.Paused = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := leader.UpdateMigrationStatus(t.Context(), migration, v1alpha1.MigrationStatus{Phase: v1alpha1.PhaseMoving}); !errors.Is(err, ErrConflict) {
		t.Errorf("a status decided on an older spec: got %v, want ErrConflict", err)
	}
	newest, err := leader.GetMigration(t.Context(), "stale")
	if err != nil {
		t.Fatal(err)
	}
	after, err := leader.UpdateMigrationStatus(t.Context(), newest, v1alpha1.MigrationStatus{
		Phase: v1alpha1.PhasePaused, Nodes: []v1alpha1.NodeProgress{{Name: "stale-1", On: v1alpha1.Source, Want: v1alpha1.Target, Step: v1alpha1.StepPending}},
	})
	if err != nil || !after.Spec.Paused || after.Generation != newest.Generation || len(after.Status.Nodes) != 1 {
		t.Errorf("%+v, %v", after, err)
	}
	if _, err := leader.UpdateMigrationStatus(t.Context(), newest, v1alpha1.MigrationStatus{}); !errors.Is(err, ErrConflict) {
		t.Errorf("a second leader's status: got %v, want ErrConflict", err)
	}
}

func TestClusterTwoPeopleChangeAMigrationAtOnce(t *testing.T) {
	s := migrating(t)
	s.migration(t, "people")
	a, b := s.person(t), s.person(t)
	const each = 10
	errs := make(chan error, 2)
	add := func(m *Migrations, prefix string) {
		for i := range each {
			if _, err := m.ChangeMigration(t.Context(), "people", func(s *v1alpha1.MigrationSpec) error {
				s.Hold = append(s.Hold, fmt.Sprint(prefix, i))
				return nil
			}); err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}
	go add(a, "a")
	go add(b, "b")
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	o, err := a.GetMigration(t.Context(), "people")
	if err != nil || len(o.Spec.Hold) != 2*each {
		t.Errorf("hold is %q, %v; want %d", o.Spec.Hold, err, 2*each)
	}
	stop := errors.New("not like this")
	if _, err := a.ChangeMigration(t.Context(), "people", func(*v1alpha1.MigrationSpec) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

// TestClusterAMigrationWrittenByHandHasDefaults: kubectl users leave out most.
func TestClusterAMigrationWrittenByHandHasDefaults(t *testing.T) {
	s := migrating(t)
	m := s.person(t)
	objects, err := ParseManifests([]byte(`
apiVersion: braid.dev/v1alpha1
kind: Migration
metadata: {name: by-hand}
spec:
  from: {profile: flannel, confFile: 10-flannel.conflist, podCIDRs: [10.244.0.0/16]}
  to: {profile: cilium, confFile: 05-cilium.conflist, podCIDRs: [172.20.0.0/16]}
`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), objects, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	o, err := m.GetMigration(t.Context(), "by-hand")
	if err != nil {
		t.Fatal(err)
	}
	defer m.DeleteMigration(context.Background(), o)
	want := v1alpha1.Strategy{Canary: 1, Batch: 1, Pods: v1alpha1.MoveAuto,
		EvictTimeout: metav1.Duration{Duration: 10 * time.Minute}, StepTimeout: metav1.Duration{Duration: 5 * time.Minute}}
	if o.Spec.Strategy != want || o.Spec.Goal != v1alpha1.Target {
		t.Errorf("the strategy is %+v, the goal %q", o.Spec.Strategy, o.Spec.Goal)
	}
	changed, err := m.ChangeMigration(t.Context(), "by-hand", func(s *v1alpha1.MigrationSpec) error { s.Strategy.Canary = 0; return nil })
	if err != nil || changed.Spec.Strategy.Canary != 0 || changed.Spec.Strategy.Batch != 1 {
		t.Errorf("without canaries: %+v, %v", changed, err)
	}
	out, err := s.kubectl("get", "cnimig", "by-hand", "--no-headers")
	if err != nil || !strings.Contains(out, "flannel") || !strings.Contains(out, "cilium") || !strings.Contains(out, "Target") {
		t.Errorf("kubectl shows %s", out)
	}
}

func TestClusterAMigrationsEventsAreSeen(t *testing.T) {
	s := migrating(t)
	m := s.migrations(t, "events-1")
	migration := s.migration(t, "events")
	for range 3 {
		m.Events.Migration(migration, corev1.EventTypeWarning, ReasonMigrationStopped, "3 of 10 probes failed")
	}
	m.Events.Node("events-1", corev1.EventTypeNormal, ReasonMigration, "the node is on cilium")
	eventually(t, "kubectl shows the events", 30*time.Second, func() error {
		described, err := s.kubectl("describe", "migration", "events")
		if err != nil || strings.Count(described, "3 of 10 probes failed") != 1 || !strings.Contains(described, "x3 over") {
			return fmt.Errorf("%v\n%s", err, described)
		}
		described, err = s.kubectl("describe", "node", "events-1")
		if err != nil || !strings.Contains(described, "the node is on cilium") {
			return fmt.Errorf("%v\n%s", err, described)
		}
		return nil
	})
}

func TestClusterAMigrationGoesOnAfterTheAPIWasAway(t *testing.T) {
	s := migrating(t)
	ns := s.namespace(t)
	m := s.migrations(t, "away-1")
	seen := s.nodeMigration(t, "away-1")
	s.pod(t, ns, "before", "away-1", nil)
	running := viewed(t, m.LeaderView())
	until(t, running, "the pod is seen", func(snap Snapshot) bool { return podOf(snap, ns, "before") != nil })

	s.stopAPI()
	eventually(t, "the trouble is known", 20*time.Second, func() error {
		if err := running.Trouble(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			return fmt.Errorf("it is %v", err)
		}
		return nil
	})
	if snap := running.Snapshot(); podOf(snap, ns, "before") == nil || partOf(snap, "away-1") == nil {
		t.Error("what was known is forgotten")
	}
	if err := running.Synced(); err != nil {
		t.Errorf("Synced: %v", err)
	}
	if _, err := m.UpdateNodeMigrationStatus(within(t, 5*time.Second), seen, v1alpha1.NodeMigrationStatus{}); err == nil || errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
		t.Errorf("a write without an API: got %v, want an error that is neither a conflict nor an end", err)
	}
	// One that starts now says what it waits for.
	started := m.LeaderView()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); started.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	eventually(t, "Synced names the trouble", 10*time.Second, func() error {
		if err := started.Synced(); err == nil || !strings.Contains(err.Error(), "the migrations have not been read yet") || !strings.Contains(err.Error(), "connection refused") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})

	if err := s.startAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := started.WaitSynced(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
	s.pod(t, ns, "after", "away-1", nil)
	for name, v := range map[string]*View{"running": running, "started": started} {
		until(t, v, name+" sees a pod made after that", func(snap Snapshot) bool {
			return podOf(snap, ns, "after") != nil && podOf(snap, ns, "before") != nil
		})
	}
	eventually(t, "no trouble is left", 20*time.Second, func() error { return errors.Join(running.Trouble(), started.Trouble()) })
	if _, err := m.UpdateNodeMigrationStatus(within(t, 5*time.Second), seen, v1alpha1.NodeMigrationStatus{Message: "here again"}); err != nil {
		t.Error(err)
	}
}

// TestClusterAViewIsNotOlderThanWhatWasWritten: whoever has just written must
// not decide again on what was there before.
func TestClusterAViewIsNotOlderThanWhatWasWritten(t *testing.T) {
	s := migrating(t)
	m := s.migrations(t, "fresh-1")
	s.nodeMigration(t, "fresh-1")
	other := s.nodeMigration(t, "fresh-2")
	v := viewed(t, m.NodeView("fresh-1"))
	if snap := v.Snapshot(); len(snap.NodeMigrations) != 1 || snap.Pods != nil {
		t.Fatalf("an agent sees %+v", snap)
	}
	for n := range int64(20) {
		seen := v.Snapshot().NodeMigrations[0]
		seen.Spec.Facts = n + 1
		written, err := m.UpdateNodeMigrationSpec(t.Context(), &seen, seen.Spec)
		if err != nil {
			t.Fatal(err)
		}
		v.SawNodeMigration(written)
		if got := v.Snapshot().NodeMigrations[0].Spec.Facts; got != n+1 {
			t.Fatalf("the view has %d after %d was written", got, n+1)
		}
		// The watch may still bring what was before, but then what is now.
		until(t, v, "the watch has it too", func(snap Snapshot) bool { return snap.NodeMigrations[0].ResourceVersion == written.ResourceVersion })
	}
	v.SawNodeMigration(other)
	if snap := v.Snapshot(); len(snap.NodeMigrations) != 1 {
		t.Errorf("an agent sees %+v", snap)
	}
}
