package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/status"
)

const deployDir = "../../deploy"

// manifests are the documents that "kubectl apply -k deploy/" applies, by kind.
func manifests(t *testing.T) map[string][][]byte {
	t.Helper()
	var k struct {
		Resources []string `json:"resources"`
	}
	text, err := os.ReadFile(filepath.Join(deployDir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sigsyaml.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	byKind := map[string][][]byte{}
	for _, name := range k.Resources {
		text, err := os.ReadFile(filepath.Join(deployDir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range split(t, text) {
			var meta struct {
				Kind string `json:"kind"`
			}
			if err := sigsyaml.Unmarshal(doc, &meta); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			byKind[meta.Kind] = append(byKind[meta.Kind], doc)
		}
	}
	return byKind
}

func split(t *testing.T, text []byte) (docs [][]byte) {
	t.Helper()
	r := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer r.Close()
	buf := make([]byte, len(text)+1)
	for {
		n, err := r.Read(buf)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, slices.Clone(buf[:n]))
	}
}

// only decodes the one document of a kind.
func only[T any](t *testing.T, byKind map[string][][]byte, kind string) T {
	t.Helper()
	list := all[T](t, byKind, kind)
	if len(list) != 1 {
		t.Fatalf("there are %d objects of kind %s, want one", len(list), kind)
	}
	return list[0]
}

// all decodes the documents of a kind; a key that the kind does not have is an
// error.
func all[T any](t *testing.T, byKind map[string][][]byte, kind string) []T {
	t.Helper()
	list := make([]T, len(byKind[kind]))
	for i, doc := range byKind[kind] {
		if err := sigsyaml.UnmarshalStrict(doc, &list[i]); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	return list
}

func TestDeployNamesEveryManifest(t *testing.T) {
	var got []string
	for kind, docs := range manifests(t) {
		for range docs {
			got = append(got, kind)
		}
	}
	slices.Sort(got)
	want := []string{"ClusterRole", "ClusterRoleBinding", "ConfigMap", "CustomResourceDefinition", "DaemonSet", "Namespace",
		"ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicyBinding"}
	if !slices.Equal(got, want) {
		t.Errorf("deploy/ applies %v, want %v", got, want)
	}
}

// TestDeployGrantsExactlyThis is the whole of braidd's rights. Who adds one
// adds it here too, and says why in deploy/rbac.yaml.
func TestDeployGrantsExactlyThis(t *testing.T) {
	role := only[rbacv1.ClusterRole](t, manifests(t), "ClusterRole")
	var got []string
	for _, r := range role.Rules {
		if len(r.NonResourceURLs) > 0 {
			t.Errorf("rule with URLs: %v", r.NonResourceURLs)
		}
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				got = append(got, group+"/"+resource+": "+strings.Join(r.Verbs, " "))
			}
		}
	}
	want := []string{
		"/pods: get list watch",
		"/pods/status: patch",
		"/events: create patch",
		"k8s.cni.cncf.io/network-attachment-definitions: get list watch",
		"resource.k8s.io/resourceslices: list",
	}
	if !slices.Equal(got, want) {
		t.Errorf("braidd may\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if strings.Contains(strings.Join(got, ""), "*") {
		t.Error("a wildcard is granted")
	}
	binding := only[rbacv1.ClusterRoleBinding](t, manifests(t), "ClusterRoleBinding")
	if len(binding.Subjects) != 1 || binding.Subjects[0].Name != "braidd" || binding.Subjects[0].Namespace != "braid-system" {
		t.Errorf("the rights are given to %+v", binding.Subjects)
	}
}

func TestDeployPoliciesFailClosed(t *testing.T) {
	docs := manifests(t)
	bound := map[string]bool{}
	for _, binding := range all[admissionv1.ValidatingAdmissionPolicyBinding](t, docs, "ValidatingAdmissionPolicyBinding") {
		bound[binding.Spec.PolicyName] = true
		if !slices.Equal(binding.Spec.ValidationActions, []admissionv1.ValidationAction{admissionv1.Deny}) || binding.Spec.MatchResources != nil || binding.Spec.ParamRef != nil {
			t.Errorf("the binding %s is %+v", binding.Name, binding.Spec)
		}
	}
	var judged []string
	for _, policy := range all[admissionv1.ValidatingAdmissionPolicy](t, docs, "ValidatingAdmissionPolicy") {
		if policy.Spec.FailurePolicy == nil || *policy.Spec.FailurePolicy != admissionv1.Fail {
			t.Errorf("the policy %s lets pass what it cannot judge", policy.Name)
		}
		if !bound[policy.Name] {
			t.Errorf("the policy %s is not in force", policy.Name)
		}
		for _, rule := range policy.Spec.MatchConstraints.ResourceRules {
			judged = append(judged, fmt.Sprintf("%v: %v", rule.Resources, rule.Operations))
		}
	}
	if want := []string{"[pods pods/status]: [UPDATE]", "[events]: [CREATE UPDATE]"}; !slices.Equal(judged, want) {
		t.Errorf("the policies judge %q, want %q", judged, want)
	}
	if !strings.Contains(string(docs["ValidatingAdmissionPolicy"][0]), status.Annotation) {
		t.Errorf("the first policy does not name %s", status.Annotation)
	}
	if !strings.Contains(string(docs["ValidatingAdmissionPolicy"][1]), "component == '"+component+"'") {
		t.Errorf("the policy of events does not name their source, %s", component)
	}
}

// TestDeployDaemonHasLeastPrivilege: what Multus and its like have and Braid
// must never need.
func TestDeployDaemonHasLeastPrivilege(t *testing.T) {
	pod := only[appsv1.DaemonSet](t, manifests(t), "DaemonSet").Spec.Template.Spec
	if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Errorf("hostPID %v, hostIPC %v, hostNetwork %v; want only the last", pod.HostPID, pod.HostIPC, pod.HostNetwork)
	}
	if s := pod.SecurityContext; s == nil || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("the pod does not run under the runtime's seccomp profile")
	}
	capabilities := map[string][]corev1.Capability{
		"install": {"DAC_OVERRIDE"},
		"braidd":  {"NET_ADMIN", "NET_RAW", "SYS_ADMIN"},
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		want, known := capabilities[c.Name]
		if !known {
			t.Errorf("container %s is not expected", c.Name)
			continue
		}
		checkContainer(t, c, want)
	}
	checkVolumes(t, pod)
}

func checkContainer(t *testing.T, c corev1.Container, capabilities []corev1.Capability) {
	t.Helper()
	s := c.SecurityContext
	if s == nil || s.Capabilities == nil {
		t.Fatalf("%s has the runtime's capabilities", c.Name)
	}
	if s.Privileged != nil && *s.Privileged {
		t.Errorf("%s is privileged", c.Name)
	}
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
		t.Errorf("%s may gain privileges", c.Name)
	}
	if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Errorf("%s may write into its image", c.Name)
	}
	if s.SeccompProfile != nil || s.ProcMount != nil {
		t.Errorf("%s has a seccomp profile or /proc of its own", c.Name)
	}
	if !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, capabilities) {
		t.Errorf("%s drops %v and adds %v, want all and %v", c.Name, s.Capabilities.Drop, s.Capabilities.Add, capabilities)
	}
	if c.Image != image.Ref || c.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("%s runs %s, pulled %s; want %s, if not present", c.Name, c.Image, c.ImagePullPolicy, image.Ref)
	}
	if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("%s has no bound on its memory", c.Name)
	}
}

func checkVolumes(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	allowed := map[string]string{ // the host's path, and where it is in a container
		"/etc/cni/net.d":        "/etc/cni/net.d",
		"/opt/cni/bin":          "/host/opt/cni/bin",
		"/run/braid":            "/run/braid",
		"/var/lib/braid":        "/var/lib/braid",
		"/var/lib/cni/networks": "/var/lib/cni/networks",
		"/var/lib/cni":          "/var/lib/cni",
		"/run/cni/tuning":       "/run/cni/tuning",
		"/etc/cni/tuning":       "/etc/cni/tuning",
		"/proc/sys/net":         "/host/proc/sys/net",
		"/run/flannel":          "/run/flannel",

		"/var/lib/kubelet/pod-resources":   "/var/lib/kubelet/pod-resources",
		"/var/run/k8s.cni.cncf.io/devinfo": "/var/run/k8s.cni.cncf.io/devinfo",
	}
	places := map[string]string{}
	for _, v := range pod.Volumes {
		if v.ConfigMap != nil && v.ConfigMap.Name == "braidd" {
			places[v.Name] = "/etc/braid"
			continue
		}
		if v.HostPath == nil {
			t.Errorf("volume %s is not a directory of the host", v.Name)
			continue
		}
		place, ok := allowed[v.HostPath.Path]
		if !ok {
			t.Errorf("volume %s shows the host's %s", v.Name, v.HostPath.Path)
		}
		places[v.Name] = place
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, m := range c.VolumeMounts {
			if m.MountPath != places[m.Name] || m.MountPropagation != nil {
				t.Errorf("%s mounts %s at %s (propagation %v)", c.Name, m.Name, m.MountPath, m.MountPropagation)
			}
			if m.Name == "pod-resources" && !m.ReadOnly {
				t.Errorf("%s can put another socket in the place of the kubelet's", c.Name)
			}
			if m.Name == "results" && !m.ReadOnly {
				t.Errorf("%s can change what the runtime remembers", c.Name)
			}
			if m.Name == "cni-bin" && c.Name != "install" {
				t.Errorf("%s can replace the host's plugins", c.Name)
			}
		}
	}
}

// The manifest that takes Braid off the nodes is one that the API server takes,
// and has no right that braidd lacks, but to remove the files of others.
func TestDeployOfTheUninstallIsSound(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deployDir, "uninstall", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := sigsyaml.UnmarshalStrict(text, &ds); err != nil {
		t.Fatal(err)
	}
	pod := ds.Spec.Template.Spec
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || pod.HostPID || pod.HostIPC {
		t.Error("it has more of the cluster or the host than it needs")
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		if !slices.Equal(c.SecurityContext.Capabilities.Add, []corev1.Capability{"DAC_OVERRIDE", "NET_ADMIN"}) || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("container %s: %v, %v", c.Name, c.SecurityContext, c.Resources)
		}
	}
}

// TestDeployReachesEveryNode: a network daemon that a taint or a lower priority
// keeps away takes its node with it.
func TestDeployReachesEveryNode(t *testing.T) {
	ds := only[appsv1.DaemonSet](t, manifests(t), "DaemonSet")
	pod := ds.Spec.Template.Spec
	if !slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
		t.Errorf("tolerations are %v, want all", pod.Tolerations)
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority class is %q", pod.PriorityClassName)
	}
	for _, c := range pod.Containers {
		if c.ReadinessProbe == nil || c.LivenessProbe == nil || c.Lifecycle != nil {
			t.Errorf("%s: probes %v and %v, lifecycle %v; want both and none", c.Name, c.ReadinessProbe, c.LivenessProbe, c.Lifecycle)
		}
	}
}
