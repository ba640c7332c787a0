package preflight

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

type (
	daemonSet = appsv1.DaemonSet
	other     = unstructured.Unstructured
)

// checkHostPorts is B3.15.
func (k *checker) checkHostPorts() {
	var with []string
	for _, p := range k.moving {
		for _, port := range hostPorts(p) {
			with = append(with, fmt.Sprintf("%s: hostPort %d", nameOf(p), port))
		}
	}
	if len(with) > 0 {
		k.judgeHostPorts(with)
	}
	for _, n := range k.nodes {
		k.checkStaleHostPorts(n)
	}
}

func (k *checker) judgeHostPorts(with []string) {
	fix := k.to.set("hostport", "on")
	switch k.to.HostPort {
	case "none":
		k.find(finding{code: HostPortLost, evidence: with, fix: fix}, "%s serves no host ports as it is configured", k.to.Profile)
	case "":
		k.find(finding{code: HostPortUnknown, evidence: with}, "whether %s serves host ports is not known", k.to.Profile)
	default:
		if k.to.HostPort != k.from.HostPort {
			k.find(finding{code: HostPortMoves, evidence: with}, "host ports are served by %s today and by %s then", orUnknown(k.from.HostPort), k.to.HostPort)
		}
	}
}

func hostPorts(p *corev1.Pod) []int32 {
	var list []int32
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort > 0 {
				list = append(list, port.HostPort)
			}
		}
	}
	return list
}

// checkStaleHostPorts finds rules that portmap made for pods that are no more:
// they stand before the new ones.
func (k *checker) checkStaleHostPorts(n node) {
	if len(n.facts.Sandboxes) == 0 {
		return
	}
	live := map[string]bool{}
	for _, s := range n.facts.Sandboxes {
		live[s.ID] = true
	}
	var stale []string
	for backend, tables := range n.rulesets("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy") {
		for _, rule := range tables["nat"].rules["CNI-HOSTPORT-DNAT"] {
			// The comment is: dnat name: "cbr0" id: "0123…".
			_, after, ok := strings.Cut(strings.Join(rule, " "), `id: "`)
			id, _, ok2 := strings.Cut(after, `"`)
			if ok && ok2 && !live[id] {
				stale = append(stale, fmt.Sprintf("%s: %s: rule of the sandbox %.13s, which does not exist", n.Name, backend, id))
			}
		}
	}
	if len(stale) > 0 {
		slices.Sort(stale)
		k.find(finding{code: HostPortStale, on: onNode(n.Name), evidence: stale}, "rules of host ports lead to pods that do not exist any more")
	}
}

// checkCapabilities is B3.16.
func (k *checker) checkCapabilities() {
	for _, plugin := range k.from.Chained {
		if plugin == "portmap" || plugin == "bandwidth" || slices.Contains(k.to.Chained, plugin) || slices.Contains(k.to.Plugins, plugin) {
			continue
		}
		k.find(finding{code: ChainedLost, evidence: line("%s: %s", k.from.ConfFile, strings.Join(append([]string{"…"}, k.from.Chained...), ", ")), fix: fmt.Sprintf("add %s to the target's configuration, or have its own installer do so", plugin)},
			"the plugin %s is chained into the configuration of %s, and not into that of %s", plugin, k.from.Profile, k.to.Profile)
	}
	uses := map[string][]string{}
	for _, p := range k.moving {
		for key, value := range p.Annotations {
			if by := capability(key); by != "" {
				uses[by] = append(uses[by], fmt.Sprintf("%s: %s: %s", nameOf(p), key, value))
			}
		}
	}
	for _, by := range sortedKeys(uses) {
		slices.Sort(uses[by])
		if by == "bandwidth" && (slices.Contains(k.to.Chained, "bandwidth") || k.to.Settings["bandwidth"] == "on") {
			continue
		}
		if by != "bandwidth" && strings.HasPrefix(by, k.to.Profile) {
			continue
		}
		k.find(finding{code: CapabilityLost, evidence: uses[by]}, "pods ask, by annotations, for %s, which %s does not give them", capabilityNames[by], k.to.Profile)
	}
}

var capabilityNames = map[string]string{
	"bandwidth": "limits of their bandwidth", "calico": "what Calico does (such as fixed addresses)",
	"cilium": "what Cilium does", "aws": "security groups of their own", "ovn": "what OVN-Kubernetes does",
}

// capability is whose annotation it is, of those that ask the CNI for something.
func capability(key string) string {
	prefix, _, _ := strings.Cut(key, "/")
	switch {
	case key == "kubernetes.io/ingress-bandwidth" || key == "kubernetes.io/egress-bandwidth":
		return "bandwidth"
	case prefix == "cni.projectcalico.org" && !calicoStatus[key]:
		return "calico"
	case prefix == "vpc.amazonaws.com":
		return "aws"
	case prefix == "k8s.ovn.org" && key != "k8s.ovn.org/pod-networks":
		return "ovn"
	}
	return ""
}

// calicoStatus are annotations that Calico itself puts on pods.
var calicoStatus = map[string]bool{
	"cni.projectcalico.org/podIP": true, "cni.projectcalico.org/podIPs": true, "cni.projectcalico.org/containerID": true,
}

const mirror = "kubernetes.io/config.mirror"

// checkOwners is B3.17: pods that nobody makes again are restarted where they
// are, with a new sandbox. Kubelet makes none for a pod that is not to be
// restarted.
func (k *checker) checkOwners() {
	var bare, static, lost []*corev1.Pod
	for _, p := range k.moving {
		switch {
		case p.Annotations[mirror] != "":
			static = append(static, p)
		case len(p.OwnerReferences) > 0:
		case p.Spec.RestartPolicy == corev1.RestartPolicyNever:
			lost = append(lost, p)
		default:
			bare = append(bare, p)
		}
	}
	if len(lost) > 0 {
		k.find(finding{code: PodLost, on: podSubjects(lost), evidence: podNames(lost)}, "pods that nobody makes again have restartPolicy Never: they end when they have to move")
	}
	if len(bare) > 0 {
		k.find(finding{code: BarePod, on: podSubjects(bare), evidence: podNames(bare)}, "pods that nobody makes again are restarted in place: the same pod, on the same node, with a new address")
	}
	if len(static) > 0 {
		k.find(finding{code: StaticPod, on: podSubjects(static), evidence: podNames(static)}, "static pods with a network of their own are restarted in place")
	}
}

// checkDisruption is B3.18.
func (k *checker) checkDisruption() {
	for i := range k.PDBs {
		k.checkPDB(&k.PDBs[i])
	}
	for i := range k.StatefulSets {
		s := &k.StatefulSets[i]
		k.checkReplicas("StatefulSet", s, s.Spec.Replicas, s.Spec.Template.Spec.HostNetwork)
	}
	for i := range k.Deployments {
		d := &k.Deployments[i]
		k.checkReplicas("Deployment", d, d.Spec.Replicas, d.Spec.Template.Spec.HostNetwork)
	}
	k.checkVolumes()
	k.checkJobs()
	k.checkGrace()
}

// checkPDB asks what a budget permits now. One without pods, or one whose pods
// stay on the host's network, blocks nobody.
func (k *checker) checkPDB(b *policyv1.PodDisruptionBudget) {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil || b.Status.DisruptionsAllowed > 0 {
		return
	}
	pods := k.selected(b.Namespace, selector)
	if len(pods) == 0 {
		return
	}
	evidence := append(line("%s: %d healthy, %d desired, 0 disruptions allowed", nameOf(b), b.Status.CurrentHealthy, b.Status.DesiredHealthy), podNames(pods)...)
	if !k.evicts() {
		k.find(finding{code: PDBBlocks, severity: Warning, on: onObject("PodDisruptionBudget", b), evidence: evidence}, "a budget permits no disruption, and pods are restarted in place, which no budget hinders")
		return
	}
	k.find(finding{code: PDBBlocks, on: onObject("PodDisruptionBudget", b), evidence: evidence}, "a budget permits no disruption: its pods cannot be evicted")
}

func (k *checker) selected(namespace string, selector labels.Selector) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, p := range k.moving {
		if p.Namespace == namespace && selector.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		}
	}
	return pods
}

func (k *checker) checkReplicas(kind string, obj object, replicas *int32, hostNetwork bool) {
	if hostNetwork || replicas != nil && *replicas != 1 {
		return
	}
	k.find(finding{code: SingleReplica, on: onObject(kind, obj), evidence: line("%s %s", kind, nameOf(obj))}, "workloads with one replica are away while it moves")
}

// checkVolumes: a volume that only one node can have follows slowly; one that is
// of the node itself does not follow at all.
func (k *checker) checkVolumes() {
	if !k.evicts() {
		return
	}
	var claims, local []string
	for _, p := range k.moving {
		for _, v := range p.Spec.Volumes {
			switch {
			case len(p.OwnerReferences) == 0 || p.OwnerReferences[0].Kind == "DaemonSet":
			case v.PersistentVolumeClaim != nil:
				claims = append(claims, fmt.Sprintf("%s: claim %s", nameOf(p), v.PersistentVolumeClaim.ClaimName))
			case v.EmptyDir != nil && v.EmptyDir.Medium == "" && strings.Contains(v.Name, "data"):
				local = append(local, fmt.Sprintf("%s: emptyDir %s", nameOf(p), v.Name))
			}
		}
	}
	if len(claims)+len(local) > 0 {
		k.find(finding{code: VolumesMove, evidence: append(claims, local...)}, "pods with volumes are evicted: claims are detached and attached again elsewhere, local ones keep the pod waiting for its node, and an emptyDir ends with the pod")
	}
}

// checkJobs: a pod of a Job that is evicted or stopped counts as failed.
func (k *checker) checkJobs() {
	jobs := map[string]*batchv1.Job{}
	for i := range k.Jobs {
		jobs[nameOf(&k.Jobs[i])] = &k.Jobs[i]
	}
	var restarts, fails []string
	for _, p := range k.moving {
		for _, o := range p.OwnerReferences {
			if o.Kind != "Job" || p.Status.Phase != corev1.PodRunning {
				continue
			}
			j := jobs[p.Namespace+"/"+o.Name]
			if j != nil && j.Spec.BackoffLimit != nil && *j.Spec.BackoffLimit <= j.Status.Failed {
				fails = append(fails, fmt.Sprintf("%s: Job %s has no retry left (backoffLimit %d)", nameOf(p), o.Name, *j.Spec.BackoffLimit))
			} else {
				restarts = append(restarts, fmt.Sprintf("%s: Job %s", nameOf(p), o.Name))
			}
		}
	}
	if len(fails) > 0 {
		k.find(finding{code: JobFails, evidence: fails}, "Jobs fail for good when their pods move")
	}
	if len(restarts) > 0 {
		k.find(finding{code: JobRestarts, evidence: restarts}, "Jobs that run begin anew when their pods move, which counts as a failure")
	}
}

func (k *checker) checkGrace() {
	limit := k.opts.StepTimeout
	if k.evicts() {
		limit = k.opts.EvictTimeout
	}
	if limit == 0 {
		limit = map[bool]time.Duration{false: 5 * time.Minute, true: 10 * time.Minute}[k.evicts()]
	}
	var long []string
	for _, p := range k.moving {
		if g := p.Spec.TerminationGracePeriodSeconds; g != nil && time.Duration(*g)*time.Second >= limit {
			long = append(long, fmt.Sprintf("%s: %s", nameOf(p), time.Duration(*g)*time.Second))
		}
	}
	if len(long) > 0 {
		option := map[bool]string{false: "--step-timeout", true: "--evict-timeout"}[k.evicts()]
		k.find(finding{code: LongGrace, evidence: long, fix: fmt.Sprintf("set %s above the longest", option)}, "pods may take longer to end than the %s that a node waits for them", limit)
	}
}

// checkAdvertised is B3.19: who tells others the address that it has.
func (k *checker) checkAdvertised() {
	uses := map[string][]string{}
	for _, p := range k.moving {
		if p.Namespace == "kube-system" || k.ownedBy(p, k.from) || k.ownedBy(p, k.to) {
			continue
		}
		for _, c := range p.Spec.Containers {
			for _, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && strings.HasPrefix(e.ValueFrom.FieldRef.FieldPath, "status.podIP") {
					uses[workload(p)] = append(uses[workload(p)], fmt.Sprintf("%s: %s is %s", workload(p), e.Name, e.ValueFrom.FieldRef.FieldPath))
				}
			}
			if name := gossiper(c.Image); name != "" {
				uses[workload(p)] = append(uses[workload(p)], fmt.Sprintf("%s: image %s", workload(p), c.Image))
			}
		}
	}
	for _, w := range sortedKeys(uses) {
		k.find(finding{code: AddressAdvertised, on: []string{"workload " + w}, evidence: appendNew(nil, uses[w]...)}, "pods know their own address, and may tell it to others who keep it")
	}
}

// workload is namespace/name of who made the pod, or of the pod.
func workload(p *corev1.Pod) string {
	if name := ownerName(p); name != "" {
		return p.Namespace + "/" + name
	}
	return nameOf(p)
}

// gossipers are programs whose members find each other by address.
var gossipers = []string{"redis", "valkey", "kafka", "etcd", "consul", "cassandra", "elasticsearch", "opensearch", "zookeeper", "nats", "rabbitmq", "mongo", "cockroach", "hazelcast"}

// gossiper is the part of an image's name that says so.
func gossiper(image string) string {
	base := image[strings.LastIndexByte(image, '/')+1:]
	base, _, _ = strings.Cut(base, "@")
	base, _, _ = strings.Cut(base, ":")
	for _, g := range gossipers {
		if base == g || strings.HasPrefix(base, g+"-") && !strings.HasSuffix(base, "exporter") {
			return g
		}
	}
	return ""
}

// checkNodeBound is B3.20: who cannot go to another node, and who would come
// back to a cordoned one.
func (k *checker) checkNodeBound() {
	if !k.evicts() {
		return
	}
	var bound, back []string
	for _, p := range k.moving {
		if len(p.OwnerReferences) == 0 || p.OwnerReferences[0].Kind == "DaemonSet" || p.Annotations[mirror] != "" {
			continue
		}
		if host := p.Spec.NodeSelector[corev1.LabelHostname]; host != "" {
			bound = append(bound, fmt.Sprintf("%s: nodeSelector %s", workload(p), host))
		}
		for _, t := range p.Spec.Tolerations {
			if t.Operator == corev1.TolerationOpExists && (t.Key == "" || t.Key == corev1.TaintNodeUnschedulable) && t.Effect != corev1.TaintEffectNoExecute {
				back = append(back, fmt.Sprintf("%s: tolerates %s", workload(p), orAll(t.Key)))
			}
		}
	}
	if len(bound) > 0 {
		k.find(finding{code: NodeBound, evidence: appendNew(nil, bound...)}, "pods that may only be on one node wait until it is back")
	}
	if len(back) > 0 {
		k.find(finding{code: ToleratesCordon, evidence: appendNew(nil, back...)}, "pods that tolerate a cordon are put back on the node that they were evicted from")
	}
}

func orAll(key string) string {
	if key == "" {
		return "everything"
	}
	return key
}
