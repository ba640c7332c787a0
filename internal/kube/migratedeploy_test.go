package kube

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	sigsyaml "sigs.k8s.io/yaml"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate"
)

// migrateManifests are the documents that "kubectl apply -k deploy/migrate/"
// applies, by kind.
func migrateManifests(t *testing.T) map[string][][]byte {
	t.Helper()
	byKind := map[string][][]byte{}
	collect(t, filepath.Join(deployDir, "migrate"), byKind)
	return byKind
}

func collect(t *testing.T, dir string, byKind map[string][][]byte) {
	t.Helper()
	var k struct {
		Resources []string `json:"resources"`
	}
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sigsyaml.UnmarshalStrict(text, &struct {
		APIVersion *string   `json:"apiVersion"`
		Kind       *string   `json:"kind"`
		Resources  *[]string `json:"resources"`
	}{Resources: &k.Resources}); err != nil {
		t.Fatal(err)
	}
	for _, name := range k.Resources {
		if filepath.Ext(name) == "" { // a directory
			collect(t, filepath.Join(dir, name), byKind)
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range split(t, text) {
			if len(bytes.TrimSpace(doc)) == 0 {
				continue
			}
			var meta struct {
				Kind string `json:"kind"`
			}
			if err := sigsyaml.Unmarshal(doc, &meta); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			byKind[meta.Kind] = append(byKind[meta.Kind], doc)
		}
	}
}

func TestMigrateDeployNamesEveryManifest(t *testing.T) {
	got := map[string]int{}
	for kind, docs := range migrateManifests(t) {
		got[kind] = len(docs)
	}
	want := map[string]int{
		"CustomResourceDefinition": 2, "Namespace": 1, "Service": 2, "ServiceAccount": 1, "DaemonSet": 1,
		"ClusterRole": 1, "ClusterRoleBinding": 1, "Role": 3, "RoleBinding": 3,
		"ValidatingAdmissionPolicy": 4, "ValidatingAdmissionPolicyBinding": 4,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("deploy/migrate/ applies %v, want %v", got, want)
	}
	files, err := filepath.Glob(filepath.Join(deployDir, "migrate", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 6 { // those above, without the CRDs, and the kustomization
		t.Errorf("there are %q", files)
	}
}

// TestMigrateDeployNeverTakesBraiddAlong: deleting it must leave a cluster whose
// CNI is Braid as it is.
func TestMigrateDeployNeverTakesBraiddAlong(t *testing.T) {
	mine := map[string]bool{}
	for kind, docs := range manifests(t) {
		for _, doc := range docs {
			mine[kind+" "+nameOf(t, doc)] = true
		}
	}
	for kind, docs := range migrateManifests(t) {
		for _, doc := range docs {
			if id := kind + " " + nameOf(t, doc); mine[id] {
				t.Errorf("%s is in deploy/ and in deploy/migrate/", id)
			}
		}
	}
}

func nameOf(t *testing.T, doc []byte) string {
	t.Helper()
	var o struct {
		Metadata struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}
	if err := sigsyaml.Unmarshal(doc, &o); err != nil {
		t.Fatal(err)
	}
	return o.Metadata.Namespace + "/" + o.Metadata.Name
}

// TestMigrateDeployGrantsExactlyThis is the whole of the rights of a migration's
// daemons. Who adds one adds it here too, and says why in deploy/migrate/rbac.yaml.
func TestMigrateDeployGrantsExactlyThis(t *testing.T) {
	docs := migrateManifests(t)
	got := map[string][]string{"": granted(t, only[rbacv1.ClusterRole](t, docs, "ClusterRole").Rules)}
	for _, role := range all[rbacv1.Role](t, docs, "Role") {
		got[role.Namespace] = granted(t, role.Rules)
	}
	want := map[string][]string{
		"": {
			"/nodes: get list watch",
			"/pods: get list watch",
			"/services: get list watch",
			"discovery.k8s.io/endpointslices: get list watch",
			"policy/poddisruptionbudgets: get list watch",
			"/nodes: patch",
			"/pods/eviction: create",
			"braid.dev/migrations: get list watch",
			"braid.dev/migrations/status: patch",
			"braid.dev/nodemigrations: get list watch create patch delete",
			"braid.dev/nodemigrations/status: patch",
		},
		"braid-system": {
			"coordination.k8s.io/leases: create",
			"coordination.k8s.io/leases braid-migrate: get update",
		},
		"braid-migrate": {"/pods: create delete"},
		"default":       {"/events: create patch"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the daemons of a migration may\n%q\nwant\n%q", got, want)
	}
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "braid-system", Name: "braid-migrate"}}
	cluster := only[rbacv1.ClusterRoleBinding](t, docs, "ClusterRoleBinding")
	if !slices.Equal(cluster.Subjects, subject) || cluster.RoleRef.Kind != "ClusterRole" || cluster.RoleRef.Name != "braid-migrate" {
		t.Errorf("the rights are given as %+v", cluster)
	}
	for _, binding := range all[rbacv1.RoleBinding](t, docs, "RoleBinding") {
		if !slices.Equal(binding.Subjects, subject) || binding.RoleRef.Kind != "Role" || binding.RoleRef.Name != "braid-migrate" || got[binding.Namespace] == nil {
			t.Errorf("the rights are given as %+v", binding)
		}
	}
}

func granted(t *testing.T, rules []rbacv1.PolicyRule) (list []string) {
	t.Helper()
	for _, r := range rules {
		if len(r.NonResourceURLs) > 0 {
			t.Errorf("rule with URLs: %v", r.NonResourceURLs)
		}
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				what := strings.TrimSpace(group + "/" + resource + " " + strings.Join(r.ResourceNames, " "))
				list = append(list, what+": "+strings.Join(r.Verbs, " "))
			}
		}
	}
	return list
}

func TestMigrateDeployPoliciesFailClosed(t *testing.T) {
	docs := migrateManifests(t)
	bound := map[string]bool{}
	for _, binding := range all[admissionv1.ValidatingAdmissionPolicyBinding](t, docs, "ValidatingAdmissionPolicyBinding") {
		bound[binding.Spec.PolicyName] = true
		if !slices.Equal(binding.Spec.ValidationActions, []admissionv1.ValidationAction{admissionv1.Deny}) || binding.Spec.MatchResources != nil || binding.Spec.ParamRef != nil {
			t.Errorf("the binding %s is %+v", binding.Name, binding.Spec)
		}
	}
	for _, policy := range all[admissionv1.ValidatingAdmissionPolicy](t, docs, "ValidatingAdmissionPolicy") {
		if policy.Spec.FailurePolicy == nil || *policy.Spec.FailurePolicy != admissionv1.Fail {
			t.Errorf("the policy %s lets pass what it cannot judge", policy.Name)
		}
		if !bound[policy.Name] {
			t.Errorf("the policy %s is not in force", policy.Name)
		}
		for _, v := range policy.Spec.Validations {
			if v.Reason == nil || *v.Reason != "Forbidden" {
				t.Errorf("the policy %s refuses with %v", policy.Name, v.Reason)
			}
		}
	}
}

// TestMigratePolicyKnowsAllOfANodesSpec: the policy compares member by member,
// because it cannot say "all but one". A new member has to be put there.
func TestMigratePolicyKnowsAllOfANodesSpec(t *testing.T) {
	text := ""
	for _, doc := range migrateManifests(t)["ValidatingAdmissionPolicy"] {
		if strings.HasSuffix(nameOf(t, doc), "/braid-migrate-nodes") {
			text = string(doc)
		}
	}
	spec := reflect.TypeFor[corev1.NodeSpec]()
	for i := range spec.NumField() {
		name, _, _ := strings.Cut(spec.Field(i).Tag.Get("json"), ",")
		if !strings.Contains(text, "object.spec."+name+")") {
			t.Errorf("the policy braid-migrate-nodes says nothing of a node's %s", name)
		}
	}
}

// TestMigrateDeployDaemonHasNoMorePrivilege than what is explained beside it.
func TestMigrateDeployDaemonHasNoMorePrivilege(t *testing.T) {
	ds := only[appsv1.DaemonSet](t, migrateManifests(t), "DaemonSet")
	pod := ds.Spec.Template.Spec
	if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Errorf("hostPID %v, hostIPC %v, hostNetwork %v; want only the last", pod.HostPID, pod.HostIPC, pod.HostNetwork)
	}
	if s := pod.SecurityContext; s == nil || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("the pod does not run under the runtime's seccomp profile")
	}
	if len(pod.InitContainers) != 0 || len(pod.Containers) != 1 {
		t.Fatalf("containers are %v and %v", pod.InitContainers, pod.Containers)
	}
	c := pod.Containers[0]
	checkContainer(t, c, []corev1.Capability{"DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_CHROOT"})
	if !slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) || pod.PriorityClassName != "system-node-critical" {
		t.Errorf("tolerations are %v, the priority class is %q", pod.Tolerations, pod.PriorityClassName)
	}
	if c.ReadinessProbe == nil || c.LivenessProbe == nil || c.Lifecycle != nil {
		t.Errorf("probes %v and %v, lifecycle %v; want both and none", c.ReadinessProbe, c.LivenessProbe, c.Lifecycle)
	}
	if len(c.Ports) != 1 || c.Ports[0].ContainerPort != migrate.NodePort {
		t.Errorf("ports are %+v, want %d", c.Ports, migrate.NodePort)
	}
	for _, v := range pod.Volumes {
		if v.HostPath == nil && v.EmptyDir == nil || v.HostPath != nil && v.HostPath.Path != "/" {
			t.Errorf("volume %+v", v)
		}
	}
}

// TestMigrateDeployAgreesWithTheCode on names that are written twice.
func TestMigrateDeployAgreesWithTheCode(t *testing.T) {
	docs := migrateManifests(t)
	ns := only[corev1.Namespace](t, docs, "Namespace").Name
	for _, want := range []string{MigrateNamespace, migrate.ProbeNamespace} {
		if ns != want {
			t.Errorf("the probes' namespace is %q, want %q", ns, want)
		}
	}
	if CordonedBy != migrate.CordonedBy {
		t.Errorf("CordonedBy is %q and %q", CordonedBy, migrate.CordonedBy)
	}
	for i, side := range []v1alpha1.Side{v1alpha1.Source, v1alpha1.Target} {
		service := all[corev1.Service](t, docs, "Service")[i]
		pod := migrate.ProbePod{Node: "n", Side: side}.Manifest("x")
		if service.Name != migrate.ProbeService(side) || service.Namespace != pod.Namespace ||
			service.Spec.Ports[0].TargetPort.IntValue() != migrate.ProbePort {
			t.Errorf("the service of probes on the %s is %+v", side, service)
		}
		for k, v := range service.Spec.Selector {
			if pod.Labels[k] != v {
				t.Errorf("service %s selects %s=%s, the pod has %q", service.Name, k, v, pod.Labels[k])
			}
		}
	}
}
