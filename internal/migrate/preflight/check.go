package preflight

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/facts"
)

// Options is what a person wants of the migration, as far as it decides
// whether something is in the way.
type Options struct {
	// PreserveSource exempts traffic between the two sides from NAT.
	PreserveSource bool `json:"preserveSource,omitempty"`
	// Pods is how pods move; empty for Auto.
	Pods v1alpha1.PodMove `json:"pods,omitempty"`
	// Batch is how many nodes move at once; 0 for one.
	Batch int `json:"batch,omitempty"`
	// EvictTimeout and StepTimeout are the Strategy's; 0 for its defaults.
	EvictTimeout time.Duration `json:"evictTimeout,omitempty"`
	StepTimeout  time.Duration `json:"stepTimeout,omitempty"`
	// Uses are networks outside of the cluster that pods reach.
	Uses []netip.Prefix `json:"uses,omitempty"`
	// Images are what the migration itself needs: Braid's and the target's.
	Images []string `json:"images,omitempty"`
	// Accept are codes of blockers that a person accepts; they become warnings.
	Accept []string `json:"accept,omitempty"`
	// Brings says that the target is installed by manifests of the migration, which
	// bring its programs: they are waited for, node by node, before it begins.
	Brings bool `json:"brings,omitempty"`
	// Rollback says that the pods were on the target before.
	Rollback bool `json:"rollback,omitempty"`
}

// Check says what stands in the way of moving the cluster's pods from one side
// to the other. It is a pure function.
func Check(c Cluster, from, to Side, o Options) Report {
	k := newChecker(c, from, to, o)
	for _, check := range conditions {
		check(k)
	}
	return report(from, to, k.out, o)
}

// Both checks the migration, and the way back from its end, where the target is
// the source and the source the target.
func Both(c Cluster, from, to Side, o Options) (forth, back Report) {
	b := o
	b.Rollback = true
	return Check(c, from, to, o), Check(c, to, from, b)
}

// conditions are those of the list in docs/migrate-preflight.md, in its order.
var conditions = []func(*checker){
	(*checker).checkIPAM, (*checker).checkPodCIDRs, (*checker).checkOtherCIDRs,
	(*checker).checkCapacity,
	(*checker).checkFamilies,
	(*checker).checkGateway,
	(*checker).checkForwarding,
	(*checker).checkTunnels, (*checker).checkKernel,
	(*checker).checkPorts,
	(*checker).checkMTU,
	(*checker).checkAutodetection,
	(*checker).checkKubeProxy,
	(*checker).checkMasquerades,
	(*checker).checkInvalidDrop,
	(*checker).checkPolicies,
	(*checker).checkMentions,
	(*checker).checkHostPorts,
	(*checker).checkCapabilities,
	(*checker).checkOwners,
	(*checker).checkDisruption,
	(*checker).checkAdvertised,
	(*checker).checkNodeBound,
	(*checker).checkWebhooks,
	(*checker).checkDNS,
	(*checker).checkNeeded,
	(*checker).checkReverters,
	(*checker).checkRuntime, (*checker).checkLatent,
	(*checker).checkNADs,
	(*checker).checkNodes,
	(*checker).checkForeign,
	(*checker).checkBackup,
}

// checker is a report in the making.
type checker struct {
	Cluster
	opts     Options
	from, to Side
	// nodes are the cluster's, each with its facts when there are any.
	nodes []node
	// living are the pods that run or will; moving are those of them that have a
	// network namespace of their own, on nodes that move.
	living, moving []*corev1.Pod
	// ranges are those of used, which looks at everything once; taken are those
	// and what pods have.
	ranges []used
	taken  []netip.Prefix
	out    []Finding
}

// node is a node with its facts; known tells whether there are any.
type node struct {
	corev1.Node
	facts facts.Node
	known bool
	// rules are the tables of iptables by backend.
	rules map[string]map[string]table
	// pods are those of moving that are on it.
	pods []*corev1.Pod
	// installed tells whether the target is on it already, by pods of its workloads
	// or by links of its own: what is seen there may be its.
	installed bool
}

func newChecker(c Cluster, from, to Side, o Options) *checker {
	k := &checker{Cluster: c.sorted(), from: from, to: to, opts: o}
	windows, at := map[string]bool{}, map[string]int{}
	for i, n := range k.Nodes {
		f, ok := c.Facts[n.Name]
		k.nodes = append(k.nodes, node{Node: n, facts: f, known: ok, rules: parseRules(f.Firewall), installed: k.hasLinks(f)})
		windows[n.Name], at[n.Name] = isWindows(n), i
	}
	for i := range k.Pods {
		p := &k.Pods[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || windows[p.Spec.NodeName] {
			continue
		}
		k.living = append(k.living, p)
		i, placed := at[p.Spec.NodeName]
		if placed && k.ownedBy(p, to) {
			k.nodes[i].installed = true
		}
		if p.Spec.HostNetwork || p.Namespace == probes {
			continue
		}
		k.moving = append(k.moving, p)
		if placed {
			k.nodes[i].pods = append(k.nodes[i].pods, p)
		}
	}
	return k
}

// probes is the namespace of the migration's own pods.
const probes = "braid-migrate"

func isWindows(n corev1.Node) bool {
	return n.Labels[corev1.LabelOSStable] == "windows" || n.Status.NodeInfo.OperatingSystem == "windows"
}

// finding is what a condition says; the rest is its rule's.
type finding struct {
	code Code
	// on are the subjects.
	on       []string
	evidence []string
	fix      string
	// severity is the rule's when it is empty.
	severity Severity
}

func (k *checker) find(f finding, format string, args ...any) {
	rule := Rules[f.code]
	if f.severity == "" {
		f.severity = rule.Severity
	}
	if f.fix == "" {
		f.fix = strings.ReplaceAll(rule.Fix, "`", "")
	}
	if f.on == nil {
		f.on = []string{"cluster"}
	}
	k.out = append(k.out, Finding{
		Code: f.code, Severity: f.severity, Condition: rule.Condition, Subjects: f.on,
		Message: fmt.Sprintf(format, args...), Evidence: f.evidence, Fix: f.fix,
	})
}

func onNode(name string) []string { return []string{"node " + name} }

func onObject(kind string, obj object) []string {
	return []string{kind + " " + nameOf(obj)}
}

// nameOf is namespace/name, or the name of what has no namespace.
func nameOf(obj object) string {
	if obj.GetNamespace() == "" {
		return obj.GetName()
	}
	return obj.GetNamespace() + "/" + obj.GetName()
}

func onPod(p *corev1.Pod) []string { return onObject("pod", p) }

func line(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }

// names of pods, for evidence.
func podNames(pods []*corev1.Pod) []string {
	var names []string
	for _, p := range pods {
		names = append(names, nameOf(p))
	}
	return names
}

func podSubjects(pods []*corev1.Pod) []string {
	var names []string
	for _, p := range pods {
		names = append(names, "pod "+nameOf(p))
	}
	return names
}

// matchesAny tells whether a link is one of the patterns.
func matchesAny(patterns []string, link string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, link)
		return err == nil && ok
	})
}

// evicts tells whether pods leave a node for others before it moves.
func (k *checker) evicts() bool {
	switch k.opts.Pods {
	case v1alpha1.MoveEvict:
		return true
	case v1alpha1.MoveRestart:
		return false
	}
	return k.schedulable() > 1
}

func (k *checker) schedulable() int {
	count := 0
	for _, n := range k.Nodes {
		if !n.Spec.Unschedulable && !isWindows(n) {
			count++
		}
	}
	return count
}

// underlay is the link of the node that has its address, as Kubernetes knows it.
func (n node) underlay() (facts.Link, bool) {
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		for _, l := range n.facts.Links {
			for _, p := range l.Addrs {
				if prefix, err := netip.ParsePrefix(p); err == nil && prefix.Addr().String() == a.Address {
					return l, true
				}
			}
		}
	}
	return facts.Link{}, false
}

// hasLinks tells whether links of the target alone are on a node.
func (k *checker) hasLinks(f facts.Node) bool {
	return slices.ContainsFunc(f.Links, func(l facts.Link) bool {
		return matchesAny(k.to.Links, l.Name) && !matchesAny(k.from.Links, l.Name) && !strings.HasPrefix(l.Name, "veth")
	})
}

// ownedBy tells whether a pod is of one of the side's workloads.
func (k *checker) ownedBy(p *corev1.Pod, s Side) bool {
	for _, w := range s.Workloads {
		parts := strings.Split(w, "/")
		if len(parts) == 3 && parts[1] == p.Namespace && ownerName(p) == parts[2] {
			return true
		}
	}
	return false
}

// ownerName is the name of the workload that a pod is of: that of its owner,
// without the hash of a Deployment's ReplicaSet.
func ownerName(p *corev1.Pod) string {
	if len(p.OwnerReferences) == 0 {
		return ""
	}
	o := p.OwnerReferences[0]
	if i := strings.LastIndexByte(o.Name, '-'); o.Kind == "ReplicaSet" && i > 0 {
		return o.Name[:i]
	}
	return o.Name
}
