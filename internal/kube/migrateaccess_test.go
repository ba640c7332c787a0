package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate"
)

// migrating is the shared API server with deploy/migrate/ applied by a real
// kubectl.
func migrating(t *testing.T) *apiServer {
	t.Helper()
	s := needAPIServer(t)
	applyMigrate.Do(func() {
		for range 2 { // again is the same
			if out, err := s.kubectl("apply", "-k", "../../deploy/migrate"); err != nil {
				applyMigrateErr = fmt.Errorf("kubectl apply -k deploy/migrate/: %w\n%s", err, out)
				return
			}
		}
		if out, err := s.kubectl("wait", "--for=condition=established", "--timeout=30s", "crd/migrations.braid.dev", "crd/nodemigrations.braid.dev"); err != nil {
			applyMigrateErr = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if applyMigrateErr != nil {
		t.Fatal(applyMigrateErr)
	}
	return s
}

var (
	applyMigrate    sync.Once
	applyMigrateErr error
)

// node makes a node, and removes it after the test.
func (s *apiServer) node(t *testing.T, name string) {
	t.Helper()
	_, err := s.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.admin.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
}

// migrateConfig is how the daemon braid-migrate on that node reaches the API.
// Without a node, the token names none.
func (s *apiServer) migrateConfig(t *testing.T, node string) *rest.Config {
	t.Helper()
	request := &authv1.TokenRequest{}
	if node != "" {
		s.node(t, node)
		pod, err := s.admin.CoreV1().Pods("braid-system").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "braid-migrate-"},
			Spec: corev1.PodSpec{
				NodeName:           node,
				ServiceAccountName: "braid-migrate",
				Containers:         []corev1.Container{{Name: "braid-migrate", Image: "braid.dev/braid:dev"}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = s.admin.CoreV1().Pods("braid-system").Delete(context.Background(), pod.Name, *metav1.NewDeleteOptions(0))
		})
		request.Spec.BoundObjectRef = &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	token, err := s.admin.CoreV1().ServiceAccounts("braid-system").CreateToken(t.Context(), "braid-migrate", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.CopyConfig(s.config)
	config.BearerToken = token.Status.Token
	return config
}

// migrations connects as the daemon of that node, once its rights are in force.
func (s *apiServer) migrations(t *testing.T, node string) *Migrations {
	t.Helper()
	m, err := connectMigrations(s.migrateConfig(t, node), Config{NodeName: node, UserAgent: "braid-test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	eventually(t, "the daemon's rights are in force", 30*time.Second, func() error {
		_, err := m.ListMigrations(t.Context())
		return err
	})
	return m
}

// person connects with all rights, as the command line does.
func (s *apiServer) person(t *testing.T) *Migrations {
	t.Helper()
	m, err := connectMigrations(s.config, Config{UserAgent: "braid-test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// migration makes a Migration that is gone after the test.
func (s *apiServer) migration(t *testing.T, name string) *v1alpha1.Migration {
	t.Helper()
	m := s.person(t)
	o, err := m.CreateMigration(t.Context(), &v1alpha1.Migration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.MigrationSpec{
			From: v1alpha1.Network{Profile: "flannel", ConfFile: "10-flannel.conflist", PodCIDRs: []string{"10.244.0.0/16"}},
			To:   v1alpha1.Network{Profile: "cilium", ConfFile: "05-cilium.conflist", PodCIDRs: []string{"172.20.0.0/16"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.DeleteMigration(context.Background(), o); err != nil {
			t.Error(err)
		}
	})
	return o
}

// nodeMigration makes a node's part, gone after the test.
func (s *apiServer) nodeMigration(t *testing.T, node string) *v1alpha1.NodeMigration {
	t.Helper()
	m := s.person(t)
	o, err := m.CreateNodeMigration(t.Context(), &v1alpha1.NodeMigration{ObjectMeta: metav1.ObjectMeta{Name: node}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.DeleteNodeMigration(context.Background(), o); err != nil {
			t.Error(err)
		}
	})
	return o
}

// TestClusterMigrationDaemonMayDoItsWorkAndNothingElse holds
// deploy/migrate/rbac.yaml and admission.yaml against a real API server.
func TestClusterMigrationDaemonMayDoItsWorkAndNothingElse(t *testing.T) {
	s := migrating(t)
	ns := s.namespace(t)
	migration := s.migration(t, "access")
	mine, theirs := s.nodeMigration(t, "macc-1"), s.nodeMigration(t, "macc-2")
	m := s.migrations(t, "macc-1")
	me := callerOf(t, s.migrateConfig(t, "macc-1"))
	unbound := callerOf(t, s.migrateConfig(t, ""))
	s.node(t, "macc-2")
	s.node(t, "macc-cordoned")
	if _, err := s.admin.CoreV1().Nodes().Patch(t.Context(), "macc-cordoned", types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := s.pod(t, ns, "web", "macc-2", nil)
	evicted := s.pod(t, ns, "evicted", "macc-2", nil)
	probe := migrate.ProbePod{Node: "macc-2", Side: v1alpha1.Source}.Manifest("braid.dev/braid:dev")
	if out, err := s.kubectl("delete", "-n", "braid-system", "lease", "braid-migrate", "--ignore-not-found"); err != nil {
		t.Fatal(out)
	}

	status := func(c caller, name, subresource string) error {
		_, err := c.dyn.Resource(nodeMigrationResource).Patch(t.Context(), name, types.MergePatchType,
			[]byte(`{"status":{"onSource":1,"onTarget":0}}`), metav1.PatchOptions{}, subresource)
		return err
	}
	node := func(name, patch string) error {
		return second(me.CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
	}
	lease := func(c caller, name, holder string) error {
		o := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}
		return second(c.CoordinationV1().Leases("braid-system").Create(t.Context(), o, metav1.CreateOptions{}))
	}
	hold := func(holder string) error {
		o, err := me.CoordinationV1().Leases("braid-system").Get(t.Context(), "braid-migrate", metav1.GetOptions{})
		if err != nil {
			return err
		}
		o.Spec.HolderIdentity = &holder
		return second(me.CoordinationV1().Leases("braid-system").Update(t.Context(), o, metav1.UpdateOptions{}))
	}
	event := func(c caller, namespace, kind, component, host string) error {
		e := &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{GenerateName: "e-"},
			InvolvedObject: corev1.ObjectReference{Kind: kind, Name: "x", Namespace: map[bool]string{true: namespace}[kind == "Pod"]},
			Source:         corev1.EventSource{Component: component, Host: host},
		}
		return second(c.CoreV1().Events(namespace).Create(t.Context(), e, metav1.CreateOptions{}))
	}
	evict := func(p *corev1.Pod) error {
		return me.PolicyV1().Evictions(ns).Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: p.Name}})
	}
	makePod := func(namespace string, change func(*corev1.Pod)) error {
		p := probe.DeepCopy()
		p.Namespace = namespace
		change(p)
		return second(me.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{}))
	}
	// The API server enforces a policy a moment after it was made.
	for what, f := range map[string]func() error{
		"reports": func() error { return status(me, "macc-2", "status") },
		"nodes":   func() error { return node("macc-2", `{"metadata":{"labels":{"x":"y"}}}`) },
		"lease":   func() error { return lease(me, "other", "") },
		"events":  func() error { return event(me, "default", "Pod", migrateManager, "macc-1") },
	} {
		eventually(t, "the policy of "+what+" is enforced", 30*time.Second, func() error {
			if err := f(); err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
				return fmt.Errorf("not refused by it: %v", err)
			}
			return nil
		})
	}
	const allowed = ""
	for _, tc := range []struct {
		name string
		err  error
		want string // part of the refusal
	}{
		{"reporting of the own node", second(m.UpdateNodeMigrationStatus(t.Context(), mine, v1alpha1.NodeMigrationStatus{Message: "x"})), allowed},
		{"reporting of another node", second(m.UpdateNodeMigrationStatus(t.Context(), theirs, v1alpha1.NodeMigrationStatus{Message: "x"})), `own node only: this is "macc-2"`},
		{"reporting with a token that names no node", status(unbound, "macc-1", "status"), "this one names no node"},
		{"writing another node's spec, as the leader does", second(m.UpdateNodeMigrationSpec(t.Context(), theirs, v1alpha1.NodeMigrationSpec{Migration: "access"})), allowed},
		{"writing what the leader knows", second(m.UpdateMigrationStatus(t.Context(), migration, v1alpha1.MigrationStatus{Message: "x"})), allowed},
		{"changing what a person wants", second(m.ChangeMigration(t.Context(), "access", func(s *v1alpha1.MigrationSpec) error { s.Clean = true; return nil })), "cannot patch resource"},
		{"making a migration", second(m.CreateMigration(t.Context(), &v1alpha1.Migration{ObjectMeta: metav1.ObjectMeta{Name: "own"}})), "cannot create resource"},
		{"deleting a migration", m.DeleteMigration(t.Context(), migration), "cannot delete resource"},

		{"cordoning without saying so", node("macc-2", `{"spec":{"unschedulable":true}}`), "says so when it cordons"},
		{"cordoning", node("macc-2", `{"metadata":{"annotations":{"braid.dev/cordoned-by":"access"}},"spec":{"unschedulable":true}}`), allowed},
		{"uncordoning", node("macc-2", `{"metadata":{"annotations":{"braid.dev/cordoned-by":null}},"spec":{"unschedulable":null}}`), allowed},
		{"uncordoning for somebody else", node("macc-cordoned", `{"spec":{"unschedulable":null}}`), "only what it has cordoned"},
		{"taking over a cordon", node("macc-cordoned", `{"metadata":{"annotations":{"braid.dev/cordoned-by":"access"}}}`), "may not call the cordon of somebody else its own"},
		{"taking over a cordon to end it", node("macc-cordoned", `{"metadata":{"annotations":{"braid.dev/cordoned-by":"access"}},"spec":{"unschedulable":false}}`), "only what it has cordoned"},
		{"another annotation of a node", node("macc-2", `{"metadata":{"annotations":{"x":"y"}}}`), "no annotation of a node but"},
		{"a label of a node", node("macc-2", `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`), "labels, finalizers or owners"},
		{"a taint", node("macc-2", `{"spec":{"taints":[{"key":"x","effect":"NoExecute"}]}}`), "nothing of a node's spec but unschedulable"},
		{"a node's pod CIDR", node("macc-2", `{"spec":{"podCIDR":"10.9.0.0/24","podCIDRs":["10.9.0.0/24"]}}`), "nothing of a node's spec but unschedulable"},
		{"a node's provider", node("macc-2", `{"spec":{"providerID":"x"}}`), "nothing of a node's spec but unschedulable"},
		{"a node's status", second(me.CoreV1().Nodes().Patch(t.Context(), "macc-2", types.MergePatchType, []byte(`{"status":{"phase":"x"}}`), metav1.PatchOptions{}, "status")), "cannot patch resource"},
		{"deleting a node", me.CoreV1().Nodes().Delete(t.Context(), "macc-2", metav1.DeleteOptions{}), "cannot delete resource"},

		{"evicting a pod", evict(evicted), allowed},
		{"deleting a pod", me.CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}), "cannot delete resource"},
		{"changing a pod", second(me.CoreV1().Pods(ns).Patch(t.Context(), pod.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})), "cannot patch resource"},
		{"a probe's pod", makePod(migrate.ProbeNamespace, func(*corev1.Pod) {}), allowed},
		{"a probe's pod elsewhere", makePod(ns, func(*corev1.Pod) {}), "cannot create resource"},
		{"a probe on the host's network", makePod(migrate.ProbeNamespace, func(p *corev1.Pod) { p.Name, p.Spec.HostNetwork = "host", true }), "violates PodSecurity"},
		{"a probe with a directory of the host", makePod(migrate.ProbeNamespace, func(p *corev1.Pod) {
			p.Name = "dir"
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
		}), "violates PodSecurity"},
		{"ending a probe", me.CoreV1().Pods(migrate.ProbeNamespace).Delete(t.Context(), probe.Name, *metav1.NewDeleteOptions(0)), allowed},

		{"another lease", lease(me, "kube-scheduler", "macc-1_x"), "one lease only"},
		{"the lease for another node", lease(me, "braid-migrate", "macc-2_x"), `this is for "macc-2_x"`},
		{"the lease for a node whose name begins alike", lease(me, "braid-migrate", "macc-10_x"), `this is for "macc-10_x"`},
		{"the lease with a token that names no node", lease(unbound, "braid-migrate", ""), "this one names no node"},
		{"the lease", lease(me, "braid-migrate", "macc-1_x"), allowed},
		{"handing the lease to another node", hold("macc-2_x"), `this is for "macc-2_x"`},
		{"giving up the lease", hold(""), allowed},

		{"an event about a migration", event(me, "default", "Migration", migrateManager, "macc-1"), allowed},
		{"an event about a node", event(me, "default", "Node", migrateManager, "macc-1"), allowed},
		{"an event about a pod", event(me, "default", "Pod", migrateManager, "macc-1"), "this one is about Pod"},
		{"an event as if from another node", event(me, "default", "Node", migrateManager, "macc-2"), "in its own name"},
		{"an event as if from braidd", event(me, "default", "Node", component, "macc-1"), "in its own name"},
		{"an event in another namespace", event(me, ns, "Migration", migrateManager, "macc-1"), "cannot create resource"},

		{"reading secrets", second(me.CoreV1().Secrets("braid-system").List(t.Context(), metav1.ListOptions{})), "cannot list resource"},
		{"reading config maps", second(me.CoreV1().ConfigMaps("kube-system").List(t.Context(), metav1.ListOptions{})), "cannot list resource"},
		{"reading budgets", second(me.PolicyV1().PodDisruptionBudgets("").List(t.Context(), metav1.ListOptions{})), allowed},
		{"reading services", second(me.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})), allowed},
		{"a token for somebody", second(me.CoreV1().ServiceAccounts("braid-system").CreateToken(t.Context(), "braidd", nil, metav1.CreateOptions{})), "cannot create resource"},
	} {
		switch {
		case tc.want == allowed && tc.err != nil:
			t.Errorf("%s: refused: %v", tc.name, tc.err)
		case tc.want != allowed && tc.err == nil:
			t.Errorf("%s: allowed", tc.name)
		case tc.want != allowed && (!isForbidden(tc.err) || !strings.Contains(tc.err.Error(), tc.want)):
			t.Errorf("%s: got %v, want it forbidden with %q", tc.name, tc.err, tc.want)
		}
	}

	// The policies are about this daemon alone.
	if out, err := s.kubectl("label", "node", "macc-2", "x=y"); err != nil {
		t.Errorf("an administrator may not label a node: %s", out)
	}
}

// isForbidden is apierrors.IsForbidden for wrapped errors.
func isForbidden(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Reason == metav1.StatusReasonForbidden
}
