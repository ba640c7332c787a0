package migrate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/probe/round"
)

// A cluster is what a migration acts on, as far as decisions can tell: nodes
// with runtimes, kubelets, agents, controllers and disruption budgets, each of
// which moves by a step when it is told to.
type cluster struct {
	t     testing.TB
	now   time.Time
	m     v1alpha1.Migration
	nodes []corev1.Node
	pods  []corev1.Pod
	parts map[string]v1alpha1.NodeMigration
	// down nodes have neither kubelet nor agent; broken is the side whose
	// datapath loses every probe; blocked pods cannot be evicted.
	down    map[string]bool
	broken  v1alpha1.Side
	blocked map[string]bool
	leader  string
	anew    bool
	uid     int
	refused map[types.UID]string
	events  []string
	exempt  string // a node that does not come to removing its exemption from NAT
}

var goals = v1alpha1.MigrationSpec{
	From: v1alpha1.Network{Profile: "flannel", ConfFile: "10-flannel.conflist", PodCIDRs: []string{"10.243.0.0/16"}},
	To:   v1alpha1.Network{Profile: "cilium", ConfFile: "05-cilium.conflist", PodCIDRs: []string{"172.20.0.0/16"}},
	Goal: v1alpha1.Target, Strategy: v1alpha1.Strategy{Canary: 1, Batch: 1, Pods: v1alpha1.MoveAuto},
}

func newCluster(t testing.TB, nodes int) *cluster {
	c := &cluster{
		t: t, now: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), parts: map[string]v1alpha1.NodeMigration{},
		down: map[string]bool{}, blocked: map[string]bool{}, refused: map[types.UID]string{}, leader: "node1",
	}
	c.m = v1alpha1.Migration{ObjectMeta: metav1.ObjectMeta{Name: "m", Generation: 1}, Spec: goals}
	for i := range nodes {
		c.join(fmt.Sprintf("node%d", i+1))
	}
	for i := range nodes {
		node := fmt.Sprintf("node%d", i+1)
		c.create("web-"+node, node, "ReplicaSet")
		c.create("db-"+node, node, "StatefulSet")
		c.create("agent-"+node, node, "DaemonSet")
	}
	c.create("bare", "node1", "")
	static := c.create("static", "node1", "Node")
	static.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	c.kubelets()
	return c
}

func (c *cluster) join(name string) {
	c.nodes = append(c.nodes, corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}, Annotations: map[string]string{}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	})
}

func (c *cluster) create(name, node, owner string) *corev1.Pod {
	c.uid++
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(fmt.Sprint(c.uid))}, Spec: corev1.PodSpec{NodeName: node}}
	if owner != "" {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: owner, Name: strings.Split(name, "-")[0], Controller: &yes}}
	}
	c.pods = append(c.pods, p)
	return &c.pods[len(c.pods)-1]
}

func (c *cluster) node(name string) *corev1.Node {
	for i := range c.nodes {
		if c.nodes[i].Name == name {
			return &c.nodes[i]
		}
	}
	return nil
}

// world is what the leader sees.
func (c *cluster) world() World {
	return World{
		Now: c.now, Migration: c.m, Nodes: c.nodes, Pods: slices.Clone(c.pods), Parts: c.parts, Refused: c.refused, Leader: c.leader, Anew: c.anew,
	}
}

// lead makes one decision and carries out the first of its parts: a leader may
// be lost in the middle.
func (c *cluster) lead(parts int) {
	d := Decide(c.world())
	do := []func(){}
	for node, spec := range d.Parts {
		do = append(do, func() { c.setPart(node, spec) })
	}
	for _, node := range d.Forget {
		do = append(do, func() { delete(c.parts, node) })
	}
	for _, node := range d.Cordon {
		do = append(do, func() { c.node(node).Spec.Unschedulable = true; c.node(node).Annotations[CordonedBy] = "m" })
	}
	for _, node := range d.Uncordon {
		do = append(do, func() { c.node(node).Spec.Unschedulable = false; delete(c.node(node).Annotations, CordonedBy) })
	}
	for _, p := range d.Evict {
		do = append(do, func() { c.evict(p) })
	}
	for _, p := range d.EndProbes {
		do = append(do, func() { c.remove(p.UID) })
	}
	for _, p := range d.StartProbes {
		do = append(do, func() { c.startProbe(p) })
	}
	do = append(do, func() { c.m.Status = d.Status; c.events = append(c.events, d.Events...) })
	for i, f := range do {
		if i < parts {
			f()
		}
	}
}

func (c *cluster) setPart(node string, spec v1alpha1.NodeMigrationSpec) {
	part := c.parts[node]
	part.Name, part.Spec = node, spec
	part.Generation++
	c.parts[node] = part
}

func (c *cluster) startProbe(p ProbePod) {
	if slices.ContainsFunc(c.pods, func(have corev1.Pod) bool { return have.Name == p.Name() }) {
		return
	}
	c.uid++
	pod := *p.Manifest("braid")
	pod.UID = types.UID(fmt.Sprint(c.uid))
	c.pods = append(c.pods, pod)
}

// evict is the API server's eviction, and then the controller's work.
func (c *cluster) evict(p corev1.Pod) {
	if c.blocked[p.Name] {
		c.refused[p.UID] = "budget"
		return
	}
	i := slices.IndexFunc(c.pods, func(have corev1.Pod) bool { return have.UID == p.UID })
	if i < 0 {
		return
	}
	if owner := metav1.GetControllerOf(&p); owner == nil || owner.Kind == "DaemonSet" {
		c.t.Fatalf("%s was evicted", p.Name)
	}
	c.remove(p.UID)
	c.create(p.Name, c.schedule(), p.OwnerReferences[0].Kind)
}

// schedule finds a node, empty for none.
func (c *cluster) schedule() string {
	for _, n := range c.nodes {
		if !n.Spec.Unschedulable && !c.down[n.Name] {
			return n.Name
		}
	}
	return ""
}

// remove ends a pod: the runtime has the network taken down that made it, which
// it only knows how to before the other's configuration stands alone.
func (c *cluster) remove(uid types.UID) {
	for i, p := range c.pods {
		if p.UID != uid {
			continue
		}
		side := SideOf(c.m.Spec, p.Status.PodIP)
		if part, ok := c.parts[p.Spec.NodeName]; ok && side != "" && part.Status.Runtime == runtimeOf(side.Other()) {
			c.t.Fatalf("%s on %s was made by %s and is taken down by %s", p.Name, p.Spec.NodeName, side, part.Status.Runtime)
		}
		c.pods = slices.Delete(c.pods, i, i+1)
		return
	}
}

// agents have every daemon make its node's spec true and report.
func (c *cluster) agents() {
	for name, part := range c.parts {
		if c.down[name] || c.node(name) == nil {
			continue
		}
		part.Status.Runtime = part.Spec.Runtime
		part.Status.SourceReady, part.Status.TargetReady = yes, yes
		part.Status.PreserveSource = part.Spec.PreserveSource || part.Status.PreserveSource && name == c.exempt
		part.Status.Left = nil
		for i := range c.pods {
			p := &c.pods[i]
			if part.Spec.Move == "" || p.Spec.NodeName != name || !moves(*p) || SideOf(c.m.Spec, p.Status.PodIP) == part.Spec.Move {
				continue
			}
			if part.Spec.Runtime != openTo(part.Spec.Move) {
				c.t.Fatalf("%s is moved while the runtime is %s", p.Name, part.Spec.Runtime)
			}
			part.Status.Left = append(part.Status.Left, p.Name)
			p.Status.PodIP, p.Status.Phase = "", corev1.PodPending // the kubelet makes it anew
		}
		if want := part.Spec.Probe; want != nil && (part.Status.Probe == nil || part.Status.Probe.Round != want.Round) {
			part.Status.Probe = c.probe(name, *want)
		}
		if part.Spec.Clean != "" {
			part.Status.Leftovers = &v1alpha1.LeftoverReport{Side: part.Spec.Clean}
		}
		part.Status.ObservedGeneration, part.Status.Heartbeat = part.Generation, metav1.NewTime(c.now)
		c.parts[name] = part
	}
}

// probe answers a round from a node: what goes from or to the broken side is
// lost, and what goes to a node that is down.
func (c *cluster) probe(node string, asked v1alpha1.ProbeRequest) *v1alpha1.ProbeReport {
	r := &v1alpha1.ProbeReport{Round: asked.Round}
	askers := []v1alpha1.Side{""}
	for _, p := range c.pods {
		if side := SideOf(c.m.Spec, p.Status.PodIP); isProbe(p) && p.Spec.NodeName == node && side != "" {
			askers = append(askers, side)
		}
	}
	for _, from := range askers {
		for _, t := range asked.Targets {
			if !round.Asks(node, from, t) {
				continue
			}
			result := v1alpha1.ProbeResult{From: from, To: t.Name, Source: "10.0.0.1", Client: "10.0.0.1", Saw: "own"}
			if c.broken != "" && (from == c.broken || t.Side == c.broken) || c.down[t.Node] {
				result.Error = "timed out"
			}
			r.Results = append(r.Results, result)
		}
	}
	return r
}

// kubelets give pods what their node's runtime gives.
func (c *cluster) kubelets() {
	for i := range c.nodes {
		n := &c.nodes[i]
		n.Status.Conditions[0].Status = corev1.ConditionTrue
		if c.down[n.Name] {
			n.Status.Conditions[0].Status = corev1.ConditionFalse
		}
	}
	for i := range c.pods {
		p := &c.pods[i]
		if p.Spec.NodeName == "" {
			p.Spec.NodeName = c.schedule()
		}
		if p.Status.PodIP != "" || p.Spec.NodeName == "" || c.down[p.Spec.NodeName] {
			continue
		}
		runtime := c.parts[p.Spec.NodeName].Status.Runtime
		switch {
		case runtime == "", runtime == v1alpha1.RuntimeSource, runtime == v1alpha1.RuntimeOpenToSource,
			runtime == v1alpha1.RuntimeClosedToSource && isProbe(*p):
			p.Status.PodIP = "10.243.0.9"
		case runtime == v1alpha1.RuntimeTarget, runtime == v1alpha1.RuntimeOpenToTarget,
			runtime == v1alpha1.RuntimeClosedToTarget && isProbe(*p):
			p.Status.PodIP = "172.20.0.9"
		default:
			continue
		}
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(c.now)}}
	}
}

// reboot restarts a node: its pods have to be made anew.
func (c *cluster) reboot(name string) {
	c.down[name] = true
	for i := range c.pods {
		if c.pods[i].Spec.NodeName == name {
			c.pods[i].Status.PodIP, c.pods[i].Status.Conditions = "", nil
		}
	}
}

// all is as many parts as a decision may have.
const all = 1 << 20

// run lets everything take its course until stop holds.
func (c *cluster) run(what string, stop func() bool) {
	c.t.Helper()
	for range 2000 {
		c.now = c.now.Add(2 * time.Second)
		c.lead(all)
		c.agents()
		c.kubelets()
		if stop() {
			return
		}
	}
	c.t.Fatalf("never %s: %s\n%s", what, c.tell(), strings.Join(c.events, "\n"))
}

func (c *cluster) runUntil(phase v1alpha1.Phase) {
	c.t.Helper()
	c.run(string(phase), func() bool { return c.m.Status.Phase == phase })
}

// change changes the spec as a person does.
func (c *cluster) change(f func(*v1alpha1.MigrationSpec)) {
	f(&c.m.Spec)
	c.m.Generation++
}

func (c *cluster) tell() string {
	text := fmt.Sprintf("%s: %s\n", c.m.Status.Phase, c.m.Status.Message)
	for _, n := range c.m.Status.Nodes {
		text += fmt.Sprintf("%s %s→%s %s back=%v %s (%s)\n", n.Name, n.On, n.Want, n.Step, n.Back, n.Message, c.parts[n.Name].Status.Runtime)
	}
	return text
}

// wantAllOn expects every pod, node and runtime on one side, and no trace of
// the move.
func (c *cluster) wantAllOn(side v1alpha1.Side) {
	c.t.Helper()
	for _, p := range c.pods {
		if SideOf(c.m.Spec, p.Status.PodIP) != side {
			c.t.Errorf("%s on %s has %q", p.Name, p.Spec.NodeName, p.Status.PodIP)
		}
	}
	for _, n := range c.nodes {
		if n.Spec.Unschedulable || c.parts[n.Name].Status.Runtime != runtimeOf(side) {
			c.t.Errorf("%s: unschedulable %v, runtime %s", n.Name, n.Spec.Unschedulable, c.parts[n.Name].Status.Runtime)
		}
	}
}
