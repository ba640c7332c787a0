package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"braid.dev/braid/api/v1alpha1"
)

// How long things may take when the strategy does not say.
const (
	evictTimeout = 10 * time.Minute
	stepTimeout  = 5 * time.Minute
	// probeTries is how many rounds of probes may fail before a node goes back,
	// and probePause what is between them, and grows: what an agent has just made
	// known takes a moment to get around, and after an outage of the API a little
	// more until services have their pods again.
	probeTries = 4
	probePause = 5 * time.Second
)

// advance takes a node a step further if what its step waits for is there.
func (d *decider) advance(n *v1alpha1.NodeProgress) {
	if atRest(*n) {
		n.Message = ""
		return
	}
	wait := ""
	switch n.Step {
	case v1alpha1.StepCordon:
		wait = d.cordon(n)
	case v1alpha1.StepClose:
		wait = d.runtime(n, v1alpha1.StepTry)
	case v1alpha1.StepTry:
		wait = d.try(n)
	case v1alpha1.StepEvict:
		wait = d.evict(n)
	case v1alpha1.StepMove:
		wait = d.move(n)
	case v1alpha1.StepSwap:
		wait = d.runtime(n, v1alpha1.StepVerify)
	case v1alpha1.StepVerify:
		wait = d.verify(n)
	case v1alpha1.StepUncordon:
		wait = d.uncordon(n)
	}
	n.Message = wait
	if wait != "" && !n.Back && d.overdue(*n) {
		d.turnBack(n, fmt.Sprintf("%s: step %s took longer than %s: %s", n.Name, n.Step, d.limit(n.Step), wait))
	}
}

// step begins a step of a node.
func (d *decider) step(n *v1alpha1.NodeProgress, s v1alpha1.NodeStep) {
	n.Step, n.Since, n.Round, n.Tries, n.Again = s, metav1.NewTime(d.Now), 0, 0, metav1.Time{}
}

// overdue reports whether a step has taken too long. A node that is away, as
// for a reboot, is waited for: nothing could be done on it anyway.
func (d *decider) overdue(n v1alpha1.NodeProgress) bool {
	node, _ := d.node(n.Name)
	part := d.Parts[n.Name]
	away := !nodeReady(node) || d.Now.Sub(part.Status.Heartbeat.Time) > staleAfter
	return !away && d.Now.Sub(n.Since.Time) > d.limit(n.Step)
}

func (d *decider) limit(s v1alpha1.NodeStep) time.Duration {
	if s == v1alpha1.StepEvict {
		return cmp.Or(d.spec.Strategy.EvictTimeout.Duration, evictTimeout)
	}
	return cmp.Or(d.spec.Strategy.StepTimeout.Duration, stepTimeout)
}

// turnBack sends a node to the side that it came from; with a reason the whole
// migration stops. As long as no sandbox could be made on the other side, the
// way back is only that of the configuration.
func (d *decider) turnBack(n *v1alpha1.NodeProgress, reason string) {
	if reason != "" {
		d.stop(reason)
	}
	from := n.Step
	switch from {
	case v1alpha1.StepCordon:
		n.Want = n.On
		d.step(n, v1alpha1.StepUncordon)
	case v1alpha1.StepClose, v1alpha1.StepTry, v1alpha1.StepEvict:
		n.On, n.Want = n.Want, n.On
		d.step(n, v1alpha1.StepSwap)
	default:
		n.On, n.Want = n.Want, n.On
		d.step(n, v1alpha1.StepMove)
	}
	n.Back = true
	d.event("%s goes back to %s from step %s", n.Name, d.profile(n.Want), from)
}

func (d *decider) cordon(n *v1alpha1.NodeProgress) string {
	node, _ := d.node(n.Name)
	if !node.Spec.Unschedulable {
		d.out.Cordon = append(d.out.Cordon, n.Name)
		return "the node to be cordoned"
	}
	d.step(n, v1alpha1.StepClose)
	return ""
}

// runtime waits until the runtime itself says that it is in the step's state.
func (d *decider) runtime(n *v1alpha1.NodeProgress, then v1alpha1.NodeStep) string {
	want := d.part(*n)
	part, wait := d.fresh(n.Name, want)
	switch {
	case wait != "":
		return wait
	case part.Status.Runtime != want.Runtime:
		return fmt.Sprintf("the runtime, which has %q and not %q", part.Status.Runtime, want.Runtime)
	}
	d.step(n, then)
	return ""
}

// try asks all probes with one on the other side, before any pod moves there.
func (d *decider) try(n *v1alpha1.NodeProgress) string {
	if !d.probeReady(n.Name, n.Want) {
		return "its probe on " + d.profile(n.Want) + d.probeTrouble(n.Name, n.Want)
	}
	ok, wait := d.probed(n)
	if wait != "" || !ok {
		return wait
	}
	d.step(n, v1alpha1.StepEvict)
	if !d.evicts(*n) {
		d.step(n, v1alpha1.StepMove)
	}
	return ""
}

// probed has a round of probes asked for the node. When it failed too often the
// node goes back, unless it is on its way back already.
func (d *decider) probed(n *v1alpha1.NodeProgress) (ok bool, wait string) {
	switch {
	case n.Round == 0 && d.Now.Before(n.Again.Time):
		return false, n.Message
	case n.Round == 0:
		n.Round = d.startRound(n.Name + " " + string(n.Step))
		return false, "a round of probes"
	}
	r := d.round(n.Round)
	switch {
	case r == nil: // so old that it was dropped
		n.Round = 0
		return false, "a round of probes"
	case r.Pending:
		return false, fmt.Sprintf("round %d of probes", n.Round)
	case r.Failed == 0:
		return true, ""
	case n.Tries+1 < probeTries:
		n.Tries, n.Round = n.Tries+1, 0
		n.Again = metav1.NewTime(d.Now.Add(time.Duration(n.Tries) * probePause))
		return false, "another round of probes: " + r.Failures[0]
	case n.Back:
		d.event("%s is back on %s, and probes fail: %s", n.Name, d.profile(n.Want), r.Failures[0])
		return true, ""
	}
	d.turnBack(n, fmt.Sprintf("%s: %d of %d probes failed at step %s: %s", n.Name, r.Failed, r.Asked, n.Step, strings.Join(r.Failures[:min(3, len(r.Failures))], "; ")))
	return false, ""
}

// evict has the pods leave whose controllers make others elsewhere.
func (d *decider) evict(n *v1alpha1.NodeProgress) string {
	var waits []string
	for _, p := range d.Pods {
		if p.Spec.NodeName != n.Name || !Evictable(p) {
			continue
		}
		name := p.Namespace + "/" + p.Name
		if p.DeletionTimestamp != nil {
			waits = append(waits, name+" to end")
			continue
		}
		d.out.Evict = append(d.out.Evict, p)
		if d.Refused[p.UID] != "" && !Ready(p) {
			// It serves nobody that its budget could protect, and behind the gate it
			// never will, as after a reboot: it gets the other network with the rest.
			continue
		}
		wait := name + " to be evicted"
		if why := d.Refused[p.UID]; why != "" {
			wait += " (" + why + ")"
		}
		waits = append(waits, wait)
	}
	if len(waits) > 0 {
		return few(waits)
	}
	d.step(n, v1alpha1.StepMove)
	return ""
}

// move waits until no sandbox is left on the other side.
func (d *decider) move(n *v1alpha1.NodeProgress) string {
	want := d.part(*n)
	part, wait := d.fresh(n.Name, want)
	switch {
	case wait != "":
		return wait
	case part.Status.Runtime != want.Runtime:
		return fmt.Sprintf("the runtime, which has %q and not %q", part.Status.Runtime, want.Runtime)
	case len(part.Status.Left) > 0:
		return "the sandboxes of " + few(part.Status.Left)
	}
	if waits := d.unready(n.Name); len(waits) > 0 {
		return few(waits) + " to be ready"
	}
	d.step(n, v1alpha1.StepSwap)
	return ""
}

// unready are the pods of a node that had their sandbox restarted and do not
// run again yet.
func (d *decider) unready(node string) []string {
	var list []string
	for _, p := range d.Pods {
		if p.Spec.NodeName != node || p.Spec.HostNetwork || p.DeletionTimestamp != nil || isProbe(p) || Evictable(p) {
			continue
		}
		if p.Status.Phase == corev1.PodRunning && !Ready(p) && podWasReady(p, d.progress(node).Since.Time) {
			list = append(list, p.Namespace+"/"+p.Name)
		}
	}
	return list
}

func (d *decider) verify(n *v1alpha1.NodeProgress) string {
	ok, wait := d.probed(n)
	if ok {
		d.step(n, v1alpha1.StepUncordon)
	}
	return wait
}

func (d *decider) uncordon(n *v1alpha1.NodeProgress) string {
	node, _ := d.node(n.Name)
	if node.Spec.Unschedulable && node.Annotations[CordonedBy] != "" {
		d.out.Uncordon = append(d.out.Uncordon, n.Name)
		return "the node to be uncordoned"
	}
	n.On, n.Back, n.Unschedulable = n.Want, false, false
	d.step(n, v1alpha1.StepDone)
	d.event("%s is on %s", n.Name, d.profile(n.On))
	return ""
}

// few are the first of many, in words.
func few(list []string) string {
	const enough = 4
	list = slices.Sorted(slices.Values(list))
	if len(list) <= enough {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:enough], ", "), len(list)-enough)
}
