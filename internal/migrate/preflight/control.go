package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

// backend is something that the API server calls in pods.
type backend struct {
	who                string // as "ValidatingWebhookConfiguration x: y"
	namespace, service string
	// closed says that requests are refused while it does not answer.
	closed bool
}

// backends are those of webhooks and of APIServices.
func (k *checker) backends() []backend {
	var list []backend
	add := func(kind, name, hook string, c admissionv1.WebhookClientConfig, policy *admissionv1.FailurePolicyType) {
		if c.Service != nil {
			closed := policy == nil || *policy == admissionv1.Fail
			list = append(list, backend{fmt.Sprintf("%s %s: %s", kind, name, hook), c.Service.Namespace, c.Service.Name, closed})
		}
	}
	for _, w := range k.Validating {
		for _, h := range w.Webhooks {
			add("ValidatingWebhookConfiguration", w.Name, h.Name, h.ClientConfig, h.FailurePolicy)
		}
	}
	for _, w := range k.Mutating {
		for _, h := range w.Webhooks {
			add("MutatingWebhookConfiguration", w.Name, h.Name, h.ClientConfig, h.FailurePolicy)
		}
	}
	for _, u := range k.Others {
		if u.GetKind() != "APIService" {
			continue
		}
		name, _, _ := unstructured.NestedString(u.Object, "spec", "service", "name")
		namespace, _, _ := unstructured.NestedString(u.Object, "spec", "service", "namespace")
		if name != "" {
			list = append(list, backend{"APIService " + u.GetName(), namespace, name, false})
		}
	}
	return list
}

// behind are the pods of a Service that move.
func (k *checker) behind(namespace, name string) []*corev1.Pod {
	for _, s := range k.Services {
		if s.Namespace == namespace && s.Name == name && len(s.Spec.Selector) > 0 {
			return k.selected(namespace, labels.SelectorFromSet(s.Spec.Selector))
		}
	}
	return nil
}

// checkWebhooks is B3.21.
func (k *checker) checkWebhooks() {
	var outside []string
	controlPlane := k.controlPlane()
	for _, b := range k.backends() {
		pods := k.behind(b.namespace, b.service)
		if len(pods) == 0 {
			continue
		}
		if len(controlPlane) == 0 {
			outside = append(outside, b.who)
		}
		if b.closed && k.together(pods) {
			k.find(finding{code: WebhookFailsClosed, evidence: append([]string{b.who}, podNames(pods)...)},
				"the API server refuses requests while a webhook does not answer, and all of its pods move at once")
		}
	}
	if len(outside) > 0 {
		k.find(finding{code: APIServerOutside, evidence: outside}, "no node runs the control plane: the API server, wherever it is, calls pods, and has to reach their new addresses before the first of them moves")
	}
	k.checkTunnelAgents()
	k.checkCoverage()
}

// together tells whether all of the pods may be away in one step.
func (k *checker) together(pods []*corev1.Pod) bool {
	nodes := len(nodesOf(pods))
	return nodes > 0 && nodes <= max(1, k.opts.Batch)
}

func nodesOf(pods []*corev1.Pod) []string {
	var list []string
	for _, p := range pods {
		if p.Spec.NodeName != "" {
			list = appendNew(list, p.Spec.NodeName)
		}
	}
	return list
}

func (k *checker) controlPlane() []string {
	var list []string
	for _, n := range k.Nodes {
		_, a := n.Labels["node-role.kubernetes.io/control-plane"]
		_, b := n.Labels["node-role.kubernetes.io/master"]
		if a || b {
			list = append(list, n.Name)
		}
	}
	return list
}

// checkTunnelAgents: with konnectivity the API server reaches pods through pods.
func (k *checker) checkTunnelAgents() {
	var agents []*corev1.Pod
	for _, p := range k.moving {
		if strings.Contains(p.Name, "konnectivity-agent") {
			agents = append(agents, p)
		}
	}
	if len(agents) > 0 {
		k.find(finding{code: Konnectivity, evidence: podNames(agents)}, "the API server reaches pods through agents that are pods themselves, and move")
	}
}

// checkCoverage: the target's datapath must be on every node before the first
// pod moves, on those of the control plane too.
func (k *checker) checkCoverage() {
	for i := range k.DaemonSets {
		d := &k.DaemonSets[i]
		if !slices.Contains(k.to.Workloads, "DaemonSet/"+nameOf(d)) {
			continue
		}
		var without []string
		for _, n := range k.Nodes {
			if isWindows(n) {
				continue
			}
			if why := refuses(d, n); why != "" {
				without = append(without, fmt.Sprintf("%s: %s", n.Name, why))
			}
		}
		if len(without) > 0 {
			k.find(finding{code: NotEverywhere, on: onObject("DaemonSet", d), evidence: without, fix: "tolerate every taint (operator: Exists) and select all nodes"},
				"the datapath of %s does not come to every node", k.to.Profile)
		}
	}
}

// refuses says why a DaemonSet has no pod on a node.
func refuses(d *daemonSet, n corev1.Node) string {
	spec := d.Spec.Template.Spec
	for key, value := range spec.NodeSelector {
		if n.Labels[key] != value {
			return fmt.Sprintf("nodeSelector %s=%s", key, value)
		}
	}
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule || t.Key == corev1.TaintNodeUnschedulable || strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			continue
		}
		if !tolerated(spec.Tolerations, t) {
			return fmt.Sprintf("taint %s:%s", t.Key, t.Effect)
		}
	}
	return ""
}

func tolerated(list []corev1.Toleration, t corev1.Taint) bool {
	return slices.ContainsFunc(list, func(o corev1.Toleration) bool {
		return (o.Effect == "" || o.Effect == t.Effect) &&
			(o.Operator == corev1.TolerationOpExists && (o.Key == "" || o.Key == t.Key) || o.Operator != corev1.TolerationOpExists && o.Key == t.Key && o.Value == t.Value)
	})
}

// checkDNS is B3.22.
func (k *checker) checkDNS() {
	pods := k.behind("kube-system", "kube-dns")
	nodes := nodesOf(pods)
	severity := Blocker
	if len(k.Nodes) == 1 {
		severity = Warning
	}
	switch {
	case len(pods) == 0:
	case len(pods) == 1:
		k.find(finding{code: DNSSingle, severity: severity, evidence: podNames(pods), fix: "kubectl -n kube-system scale deployment coredns --replicas=2"}, "one pod serves DNS, and nobody does while it moves")
	case len(nodes) == 1:
		k.find(finding{code: DNSOneNode, severity: severity, evidence: prefixed(nodes[0]+": ", podNames(pods))}, "all pods that serve DNS are on one node, and nobody does while it moves")
	case k.opts.Batch > 1 && len(nodes) <= k.opts.Batch:
		k.find(finding{code: DNSBatch, evidence: podNames(pods), fix: fmt.Sprintf("set --batch to %d or less", len(nodes)-1)}, "%d nodes may move at once, and all pods that serve DNS are on %d", k.opts.Batch, len(nodes))
	}
	k.checkNodeLocalDNS()
}

func (k *checker) checkNodeLocalDNS() {
	for i := range k.DaemonSets {
		d := &k.DaemonSets[i]
		if d.Name != "node-local-dns" && d.Labels["k8s-app"] != "node-local-dns" {
			continue
		}
		fix := "keep it; it stays on the host's network"
		if k.to.KubeProxyReplacement {
			fix = "make a CiliumLocalRedirectPolicy for kube-dns first, and run it without the host's network"
		}
		k.find(finding{code: NodeLocalDNS, on: onObject("DaemonSet", d), fix: fix}, "pods ask a DNS cache of the node (169.254.20.10), whose rules exempt it from connection tracking")
	}
}

// checkNeeded is B3.23: what the migration itself needs must not be on the
// network that it moves.
func (k *checker) checkNeeded() {
	for _, image := range k.opts.Images {
		if why := k.inCluster(image); why != "" {
			k.find(finding{code: RegistryInside, evidence: line("%s: %s", image, why)}, "images that the migration needs come from a registry in the cluster")
		}
	}
	var csi []string
	for _, p := range k.moving {
		if k.ownedBy(p, k.from) || k.ownedBy(p, k.to) {
			k.find(finding{code: OperatorOnPods, on: onPod(p), evidence: line("%s on %s", nameOf(p), p.Spec.NodeName), fix: "set hostNetwork: true for it"},
				"a part of a CNI is itself on the pods' network")
		}
		for _, c := range p.Spec.Containers {
			if strings.HasPrefix(c.Name, "csi-") || strings.Contains(c.Image, "/csi-") {
				csi = appendNew(csi, nameOf(p)+": container "+c.Name)
			}
		}
	}
	if len(csi) > 0 {
		k.find(finding{code: CSIOnPods, evidence: csi}, "controllers of storage are on the pods' network: volumes are not attached while they move")
	}
}

// inCluster says by what an image's registry is one in the cluster.
func (k *checker) inCluster(image string) string {
	host, _, ok := strings.Cut(image, "/")
	if !ok {
		return ""
	}
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		name = host[:i]
	}
	if strings.HasSuffix(name, ".svc") || strings.Contains(name, ".svc.") {
		return "the name of a Service"
	}
	if a, err := netip.ParseAddr(name); err == nil {
		for _, s := range k.Services {
			if slices.Contains(clusterIPs(s), a.String()) {
				return "the address of Service " + nameOf(&s)
			}
		}
		if contains(k.from.PodCIDRs, a) {
			return "the address of a pod"
		}
	}
	return ""
}

// reverters are marks of controllers that put an object back as they know it.
var reverters = []struct{ key, who string }{
	{"argocd.argoproj.io/instance", "Argo CD"},
	{"argocd.argoproj.io/tracking-id", "Argo CD"},
	{"kustomize.toolkit.fluxcd.io/name", "Flux"},
	{"helm.toolkit.fluxcd.io/name", "Flux"},
	{"addonmanager.kubernetes.io/mode", "the addon manager"},
	{"objectset.rio.cattle.io/owner-name", "the Helm controller of k3s or RKE2"},
	{"operator.tigera.io/managed", "the Tigera operator"},
	{"kots.io/app-slug", "KOTS"},
	{"fleet.cattle.io/bundle-id", "Fleet"},
	{"configmanagement.gke.io/managed", "Config Sync"},
}

// checkReverters is B3.24.
func (k *checker) checkReverters() {
	look := func(kind string, obj metav1.Object) {
		if !k.isOfSides(kind, obj) {
			return
		}
		for _, r := range reverters {
			value, ok := obj.GetAnnotations()[r.key]
			if !ok {
				value, ok = obj.GetLabels()[r.key]
			}
			if ok {
				k.find(finding{code: Reverted, on: onObject(kind, obj), evidence: line("%s %s: %s: %s", kind, nameOf(obj), r.key, value), fix: "pause it for these objects, or make the change there"},
					"%s keeps objects of the two sides as it knows them, and undoes what the migration changes", r.who)
				break
			}
		}
		for _, o := range obj.GetOwnerReferences() {
			k.find(finding{code: Reverted, on: onObject(kind, obj), evidence: line("%s %s: owner %s %s", kind, nameOf(obj), o.Kind, o.Name), fix: "make the change in its owner, or pause the operator"},
				"%s keeps objects of the two sides as it knows them, and undoes what the migration changes", "the operator of "+o.Kind+" "+o.Name)
		}
	}
	for i := range k.DaemonSets {
		look("DaemonSet", &k.DaemonSets[i])
	}
	for i := range k.Deployments {
		look("Deployment", &k.Deployments[i])
	}
	for i := range k.ConfigMaps {
		look("ConfigMap", &k.ConfigMaps[i])
	}
	k.checkBuiltIn()
	k.checkAutoscaler()
}

func (k *checker) isOfSides(kind string, obj object) bool {
	id := kind + "/" + nameOf(obj)
	return slices.Contains(k.from.Workloads, id) || slices.Contains(k.to.Workloads, id) ||
		kind == "ConfigMap" && (k.isOwnConfig(nameOf(obj)) || nameOf(obj) == "kube-system/kube-proxy")
}

// checkBuiltIn finds CNIs that kubelet's own program brings.
func (k *checker) checkBuiltIn() {
	for _, n := range k.Nodes {
		v := n.Status.NodeInfo.KubeletVersion
		switch {
		case strings.Contains(v, "+k3s") && k.from.Profile == "flannel" && len(k.from.Workloads) == 0:
			k.find(finding{code: BuiltIn, on: onNode(n.Name), evidence: line("%s: kubelet %s", n.Name, v), fix: "set --flannel-backend=none (and --disable-network-policy) on every server, when all pods have moved; not before"},
				"Flannel is a part of k3s and comes back with every restart of it")
		case strings.Contains(v, "+rke2"):
			k.find(finding{code: BuiltIn, on: onNode(n.Name), evidence: line("%s: kubelet %s", n.Name, v), fix: "set cni: none in /etc/rancher/rke2/config.yaml on every server, when all pods have moved; not before"},
				"RKE2 installs its CNI again with every restart of it")
		}
	}
}

// checkAutoscaler finds who makes nodes, with the CNI that they know.
func (k *checker) checkAutoscaler() {
	var who []string
	for i := range k.Deployments {
		d := &k.Deployments[i]
		if strings.Contains(d.Name, "cluster-autoscaler") || strings.Contains(d.Name, "karpenter") {
			who = append(who, "Deployment "+nameOf(d))
		}
	}
	for _, n := range k.Nodes {
		if m := n.Annotations["cluster.x-k8s.io/machine"]; m != "" {
			who = append(who, fmt.Sprintf("node %s is machine %s of Cluster API", n.Name, m))
		}
	}
	if len(who) > 0 {
		k.find(finding{code: NodesComeNew, evidence: who}, "nodes are made and replaced by somebody: new ones come with the CNI of their template")
	}
}
