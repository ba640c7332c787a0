package preflight

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/facts"
)

// Cluster is what is known of a cluster.
type Cluster struct {
	// Version is the API server's, such as v1.36.3.
	Version string

	Nodes           []corev1.Node
	Pods            []corev1.Pod
	Services        []corev1.Service
	ConfigMaps      []corev1.ConfigMap
	PDBs            []policyv1.PodDisruptionBudget
	NetworkPolicies []networkingv1.NetworkPolicy
	DaemonSets      []appsv1.DaemonSet
	Deployments     []appsv1.Deployment
	StatefulSets    []appsv1.StatefulSet
	Jobs            []batchv1.Job
	Validating      []admissionv1.ValidatingWebhookConfiguration
	Mutating        []admissionv1.MutatingWebhookConfiguration
	// Others are APIServices, NetworkAttachmentDefinitions, policies of Calico and
	// Cilium, and whatever else a profile asks for.
	Others []unstructured.Unstructured

	// Facts are those of the nodes, by name.
	Facts map[string]facts.Node
	// Problems are what could not be read, as sentences.
	Problems []string

	// known are the objects that Add has seen.
	known map[[4]string]bool
}

// Kind is a kind of objects that a Cluster is made of.
type Kind struct {
	Group, Version, Resource, Kind string
	// Optional kinds are those that not every cluster has.
	Optional bool
}

// APIVersion is as objects have it.
func (k Kind) APIVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// Kinds is what is read of a cluster, in all namespaces. Secrets are not.
var Kinds = []Kind{
	{"", "v1", "nodes", "Node", false},
	{"", "v1", "pods", "Pod", false},
	{"", "v1", "services", "Service", false},
	{"", "v1", "configmaps", "ConfigMap", false},
	{"policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", false},
	{"networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", false},
	{"apps", "v1", "daemonsets", "DaemonSet", false},
	{"apps", "v1", "deployments", "Deployment", false},
	{"apps", "v1", "statefulsets", "StatefulSet", false},
	{"batch", "v1", "jobs", "Job", false},
	{"admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false},
	{"admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false},
	{"apiregistration.k8s.io", "v1", "apiservices", "APIService", false},
	{"k8s.cni.cncf.io", "v1", "network-attachment-definitions", "NetworkAttachmentDefinition", true},
	{"cilium.io", "v2", "ciliumnetworkpolicies", "CiliumNetworkPolicy", true},
	{"cilium.io", "v2", "ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy", true},
	{"cilium.io", "v2", "ciliumnodes", "CiliumNode", true},
	{"crd.projectcalico.org", "v1", "networkpolicies", "NetworkPolicy", true},
	{"crd.projectcalico.org", "v1", "globalnetworkpolicies", "GlobalNetworkPolicy", true},
	{"crd.projectcalico.org", "v1", "ippools", "IPPool", true},
	{"crd.projectcalico.org", "v1", "felixconfigurations", "FelixConfiguration", true},
	{"crd.projectcalico.org", "v1", "bgppeers", "BGPPeer", true},
	{"policy.networking.k8s.io", "v1alpha1", "adminnetworkpolicies", "AdminNetworkPolicy", true},
	{"operator.tigera.io", "v1", "installations", "Installation", true},
	{"helm.cattle.io", "v1", "helmcharts", "HelmChart", true},
}

// Add puts one object, as JSON, into the cluster; a list is taken apart. An
// object of a kind that is not asked for goes to Others. The object that comes
// first of two with one name is kept.
func (c *Cluster) Add(raw []byte) error {
	var head struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Items             []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return fmt.Errorf("object: %w", err)
	}
	if head.Kind == "" || head.APIVersion == "" {
		return fmt.Errorf("object without kind or apiVersion")
	}
	if head.Items != nil {
		return c.addAll(head.Items, head.TypeMeta)
	}
	if head.Name == "" {
		return fmt.Errorf("%s without a name", head.Kind)
	}
	id := [4]string{head.APIVersion, head.Kind, head.Namespace, head.Name}
	if c.known[id] {
		return nil
	}
	if err := c.add(head.APIVersion+" "+head.Kind, raw); err != nil {
		return fmt.Errorf("%s %s/%s: %w", head.Kind, head.Namespace, head.Name, err)
	}
	if c.known == nil {
		c.known = map[[4]string]bool{}
	}
	c.known[id] = true
	return nil
}

// addAll adds a list's items, as many as can be read.
func (c *Cluster) addAll(items []json.RawMessage, list metav1.TypeMeta) error {
	var errs []error
	for i, item := range items {
		if err := c.addItem(item, list); err != nil {
			errs = append(errs, fmt.Errorf("%s: item %d: %w", list.Kind, i, err))
		}
	}
	return errors.Join(errs...)
}

// addItem adds one item of a list. Those of a typed list may lack their kind.
func (c *Cluster) addItem(item json.RawMessage, list metav1.TypeMeta) error {
	var obj map[string]json.RawMessage
	if err := json.Unmarshal(item, &obj); err != nil {
		return err
	}
	if _, nested := obj["items"]; nested {
		return errors.New("a list in a list")
	}
	if kind, ok := strings.CutSuffix(list.Kind, "List"); ok && kind != "" && obj != nil && obj["kind"] == nil {
		obj["kind"], _ = json.Marshal(kind)
		obj["apiVersion"], _ = json.Marshal(list.APIVersion)
		item, _ = json.Marshal(obj)
	}
	return c.Add(item)
}

func (c *Cluster) add(kind string, raw []byte) error {
	switch kind {
	case "v1 Node":
		return decode(raw, &c.Nodes)
	case "v1 Pod":
		return decode(raw, &c.Pods)
	case "v1 Service":
		return decode(raw, &c.Services)
	case "v1 ConfigMap":
		return decode(raw, &c.ConfigMaps)
	case "policy/v1 PodDisruptionBudget":
		return decode(raw, &c.PDBs)
	case "networking.k8s.io/v1 NetworkPolicy":
		return decode(raw, &c.NetworkPolicies)
	case "apps/v1 DaemonSet":
		return decode(raw, &c.DaemonSets)
	case "apps/v1 Deployment":
		return decode(raw, &c.Deployments)
	case "apps/v1 StatefulSet":
		return decode(raw, &c.StatefulSets)
	case "batch/v1 Job":
		return decode(raw, &c.Jobs)
	case "admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration":
		return decode(raw, &c.Validating)
	case "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration":
		return decode(raw, &c.Mutating)
	case "v1 Secret":
		return fmt.Errorf("secrets are not wanted in a dump")
	}
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(raw); err != nil {
		return err
	}
	c.Others = append(c.Others, u)
	return nil
}

// decode appends raw, as a T, to list.
func decode[T any](raw []byte, list *[]T) error {
	var obj T
	if err := json.Unmarshal(raw, &obj); err != nil {
		return err
	}
	*list = append(*list, obj)
	return nil
}

// object is what all kinds have.
type object interface {
	GetNamespace() string
	GetName() string
}

// each calls f with every object and its kind, in the order of Kinds.
func (c Cluster) each(f func(apiVersion, kind string, obj object)) {
	eachOf(c.Nodes, "v1", "Node", f)
	eachOf(c.Pods, "v1", "Pod", f)
	eachOf(c.Services, "v1", "Service", f)
	eachOf(c.ConfigMaps, "v1", "ConfigMap", f)
	eachOf(c.PDBs, "policy/v1", "PodDisruptionBudget", f)
	eachOf(c.NetworkPolicies, "networking.k8s.io/v1", "NetworkPolicy", f)
	eachOf(c.DaemonSets, "apps/v1", "DaemonSet", f)
	eachOf(c.Deployments, "apps/v1", "Deployment", f)
	eachOf(c.StatefulSets, "apps/v1", "StatefulSet", f)
	eachOf(c.Jobs, "batch/v1", "Job", f)
	eachOf(c.Validating, "admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", f)
	eachOf(c.Mutating, "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", f)
	for i := range c.Others {
		f(c.Others[i].GetAPIVersion(), c.Others[i].GetKind(), &c.Others[i])
	}
}

func eachOf[T any, P interface {
	*T
	object
}](list []T, apiVersion, kind string, f func(apiVersion, kind string, obj object)) {
	for i := range list {
		f(apiVersion, kind, P(&list[i]))
	}
}

// sorted is the cluster with every list in the order of namespaces and names, so
// that what is said of it does not depend on the order in which it was read.
func (c Cluster) sorted() Cluster {
	c.Nodes = sortedOf(c.Nodes)
	c.Pods = sortedOf(c.Pods)
	c.Services = sortedOf(c.Services)
	c.ConfigMaps = sortedOf(c.ConfigMaps)
	c.PDBs = sortedOf(c.PDBs)
	c.NetworkPolicies = sortedOf(c.NetworkPolicies)
	c.DaemonSets = sortedOf(c.DaemonSets)
	c.Deployments = sortedOf(c.Deployments)
	c.StatefulSets = sortedOf(c.StatefulSets)
	c.Jobs = sortedOf(c.Jobs)
	c.Validating = sortedOf(c.Validating)
	c.Mutating = sortedOf(c.Mutating)
	c.Others = sortedOf(c.Others)
	slices.SortStableFunc(c.Others, func(a, b unstructured.Unstructured) int {
		return cmp.Or(cmp.Compare(a.GetAPIVersion(), b.GetAPIVersion()), cmp.Compare(a.GetKind(), b.GetKind()))
	})
	c.Problems = slices.Sorted(slices.Values(c.Problems))
	return c
}

func sortedOf[T any, P interface {
	*T
	object
}](list []T) []T {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b T) int {
		return cmp.Or(cmp.Compare(P(&a).GetNamespace(), P(&b).GetNamespace()), cmp.Compare(P(&a).GetName(), P(&b).GetName()))
	})
	return list
}
