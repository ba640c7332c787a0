package migrate

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"braid.dev/braid/api/v1alpha1"
)

// A Plan is everything that a migration would do, before anything is touched.
type Plan struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Cluster is what is done to all nodes before the first one moves, and after
	// the last.
	Before []string `json:"before"`
	After  []string `json:"after"`
	// Nodes in the order in which they would move.
	Nodes []NodePlan `json:"nodes"`
}

// NodePlan is what would happen to one node.
type NodePlan struct {
	Name string `json:"name"`
	// Turn counts the batches: nodes of one turn move at the same time.
	Turn  int        `json:"turn"`
	Why   string     `json:"why"`
	Steps []StepPlan `json:"steps"`
	// Pods are the effects on every pod of the node that has a network of its own.
	Pods []PodPlan `json:"pods"`
}

// StepPlan is one step of a node.
type StepPlan struct {
	Step NodeStep `json:"step"`
	Does string   `json:"does"`
}

// NodeStep is v1alpha1.NodeStep.
type NodeStep = v1alpha1.NodeStep

// PodPlan is the effect on one pod.
type PodPlan struct {
	Pod string `json:"pod"`
	// Workload is its controller, such as "StatefulSet db"; empty for a bare pod.
	Workload string `json:"workload,omitempty"`
	// How is evicted, restarted in place or stays.
	How    string `json:"how"`
	Effect string `json:"effect"`
	// Budget is the PodDisruptionBudget that has a say, and what it permits now.
	Budget string `json:"budget,omitempty"`
}

// MakePlan says what the migration of the world would do. It is the same order
// and the same choice of pods that Decide makes.
func MakePlan(w World, budgets []policyv1.PodDisruptionBudget) Plan {
	w.Migration.Status = v1alpha1.MigrationStatus{}
	d := &decider{World: w, spec: w.Migration.Spec}
	d.enroll()
	d.heed()
	p := Plan{From: d.profile(v1alpha1.Source), To: d.profile(v1alpha1.Target), Before: d.before(), After: d.after()}
	for turn := 1; ; turn++ {
		names := d.next()
		if len(names) == 0 {
			return p
		}
		for _, name := range names {
			n := d.progress(name)
			p.Nodes = append(p.Nodes, d.nodePlan(*n, turn, budgets))
			n.On, n.Step = n.Want, v1alpha1.StepDone
		}
	}
}

func (d *decider) before() []string {
	list := []string{
		"copy every node's conf dir to /var/lib/braid/migrate",
		fmt.Sprintf("wait until the datapath of %s serves on every node, beside that of %s", d.profile(v1alpha1.Target), d.profile(v1alpha1.Source)),
	}
	if d.spec.PreserveSource {
		list = append(list, "exempt traffic between old and new pods from every NAT, on every node")
	}
	return append(list, "probe between all nodes, to services, DNS, the API server and outside; stop unless all answer")
}

func (d *decider) after() []string {
	list := []string{"probe between all nodes once more", "end the probes that stayed on " + d.profile(v1alpha1.Source)}
	if d.spec.PreserveSource {
		list = append(list, "remove the exemption from NAT")
	}
	return append(list, fmt.Sprintf("leave %s's agent, links and rules in place, for a rollback: braid migrate cleanup removes them", d.profile(v1alpha1.Source)))
}

func (d *decider) nodePlan(n v1alpha1.NodeProgress, turn int, budgets []policyv1.PodDisruptionBudget) NodePlan {
	node, _ := d.node(n.Name)
	evicts := d.evicts(n)
	p := NodePlan{Name: n.Name, Turn: turn, Why: d.why(node), Steps: d.steps(n, evicts, node)}
	for _, pod := range d.Pods {
		if pod.Spec.NodeName == n.Name && moves(pod) {
			p.Pods = append(p.Pods, podPlan(pod, evicts, budgets))
		}
	}
	slices.SortFunc(p.Pods, func(a, b PodPlan) int { return strings.Compare(a.Pod, b.Pod) })
	return p
}

func (d *decider) why(node corev1.Node) string {
	switch {
	case node.Name == d.Leader:
		return "last: its daemon drives"
	case isControlPlane(node):
		return "after the workers: a control plane"
	case zone(node) != "":
		return "zone " + zone(node)
	}
	return "by name"
}

func (d *decider) steps(n v1alpha1.NodeProgress, evicts bool, node corev1.Node) []StepPlan {
	a, b := d.profile(n.On), d.profile(n.Want)
	list := []StepPlan{
		{v1alpha1.StepCordon, "the scheduler gives the node no more pods"},
		{v1alpha1.StepClose, "the runtime starts no pods but a probe, which gets " + b + "; running pods notice nothing"},
		{v1alpha1.StepTry, "probe between all nodes, now with a probe on " + b + " here; if one fails, the node opens again and no pod was touched"},
	}
	if evicts {
		list = append(list, StepPlan{v1alpha1.StepEvict, fmt.Sprintf("pods with a controller are evicted, as PodDisruptionBudgets permit, within %s; %s takes their networks down", d.limit(v1alpha1.StepEvict), a)})
	}
	list = append(list,
		StepPlan{v1alpha1.StepMove, "the sandboxes of the pods that are left are restarted in place: " + a + " takes them down, " + b + " makes them anew"},
		StepPlan{v1alpha1.StepSwap, fmt.Sprintf("the runtime loads %s alone", d.confFile(n.Want))},
		StepPlan{v1alpha1.StepVerify, "probe between all nodes; if it fails, the node goes back to " + a},
	)
	if node.Spec.Unschedulable && node.Annotations[CordonedBy] == "" {
		return append(list, StepPlan{v1alpha1.StepUncordon, "the node stays cordoned, as it is now"})
	}
	return append(list, StepPlan{v1alpha1.StepUncordon, "the scheduler gives the node pods again"})
}

func (d *decider) confFile(s v1alpha1.Side) string {
	if s == v1alpha1.Target {
		return d.spec.To.ConfFile
	}
	return d.spec.From.ConfFile
}

// podPlan says what a pod has to go through.
func podPlan(p corev1.Pod, evicts bool, budgets []policyv1.PodDisruptionBudget) PodPlan {
	plan := PodPlan{Pod: p.Namespace + "/" + p.Name, Budget: budgetOf(p, budgets)}
	owner := metav1.GetControllerOf(&p)
	if owner != nil {
		plan.Workload = owner.Kind + " " + owner.Name
	}
	switch {
	case evicts && Evictable(p) && owner.Kind == "StatefulSet":
		plan.How, plan.Effect = "evicted", "ends within its grace period; its controller makes it anew, of the same name and with a new address, on another node"
	case evicts && Evictable(p):
		plan.How, plan.Effect = "evicted", "ends within its grace period; its controller makes another one on another node"
	case p.Annotations[corev1.MirrorPodAnnotationKey] != "":
		plan.How, plan.Effect = "restarted in place", "a static pod: its containers restart on this node with a new address"
	case owner == nil:
		plan.How, plan.Effect = "restarted in place", "a pod without a controller is kept: its containers restart on this node with a new address"
	default:
		plan.How, plan.Effect = "restarted in place", "its containers restart on this node with a new address"
	}
	return plan
}

// budgetOf is what a disruption budget permits for a pod.
func budgetOf(p corev1.Pod, budgets []policyv1.PodDisruptionBudget) string {
	for _, b := range budgets {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || b.Namespace != p.Namespace || !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		text := fmt.Sprintf("%s permits %d disruptions now", b.Name, b.Status.DisruptionsAllowed)
		if b.Status.DisruptionsAllowed == 0 {
			text += ": the eviction waits until it does"
		}
		return text
	}
	return ""
}

// Fprint writes the plan as a person reads it.
func (p Plan) Fprint(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "From %s to %s\n\nBefore the first node:\n", p.From, p.To)
	for _, line := range p.Before {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	for _, n := range p.Nodes {
		fmt.Fprintf(&b, "\n%d. %s (%s)\n", n.Turn, n.Name, n.Why)
		for _, s := range n.Steps {
			fmt.Fprintf(&b, "  %-8s  %s\n", s.Step, s.Does)
		}
		n.fprintPods(&b)
	}
	b.WriteString("\nAfter the last node:\n")
	for _, line := range p.After {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (n NodePlan) fprintPods(w io.Writer) {
	if len(n.Pods) == 0 {
		fmt.Fprintln(w, "  no pod of it has a network of its own")
		return
	}
	fmt.Fprintln(w, "  pods:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range n.Pods {
		text := p.Effect
		if p.Budget != "" {
			text += " (" + p.Budget + ")"
		}
		fmt.Fprintf(t, "    %s\t%s\t%s\t%s\n", p.Pod, cmp.Or(p.Workload, "-"), p.How, text)
	}
	t.Flush() // to memory
}
