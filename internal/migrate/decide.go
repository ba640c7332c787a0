package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"braid.dev/braid/api/v1alpha1"
)

// Decide says what the leader does now. It is called after every change of the
// world, and now and then.
func Decide(w World) Decision {
	d := &decider{World: w, spec: w.Migration.Spec, st: w.Migration.Status}
	d.st.Nodes, d.st.Rounds = slices.Clone(d.st.Nodes), slices.Clone(d.st.Rounds)
	d.enroll()
	d.heed()
	d.sumUp()
	if !d.spec.Paused {
		for i := range d.st.Nodes {
			d.advance(&d.st.Nodes[i])
		}
		d.begin()
	}
	d.phase()
	d.equip()
	d.out.Status = d.st
	return d.out
}

// A decider is one decision in the making.
type decider struct {
	World
	spec v1alpha1.MigrationSpec
	st   v1alpha1.MigrationStatus
	out  Decision
	// asked is the round of probes that this decision begins.
	asked v1alpha1.ProbeRequest
	// waits says what has to be there before the first node moves.
	waits []string
}

// enroll keeps the list of nodes that of the cluster: nodes come and go in the
// middle of a migration.
func (d *decider) enroll() {
	d.st.Leader = d.Leader
	d.st.Nodes = slices.DeleteFunc(d.st.Nodes, func(n v1alpha1.NodeProgress) bool {
		_, there := d.node(n.Name)
		return !there
	})
	for _, n := range d.Nodes {
		if d.progress(n.Name) == nil {
			on := d.found(n.Name)
			d.st.Nodes = append(d.st.Nodes, v1alpha1.NodeProgress{
				Name: n.Name, On: on, Want: on, Step: v1alpha1.StepDone, Since: metav1.NewTime(d.Now),
			})
		}
	}
	slices.SortFunc(d.st.Nodes, func(a, b v1alpha1.NodeProgress) int { return strings.Compare(a.Name, b.Name) })
	for name := range d.Parts {
		if _, there := d.node(name); !there {
			d.out.Forget = append(d.out.Forget, name)
		}
	}
	slices.Sort(d.out.Forget)
}

// found is the side that a node is on that the migration did not know: what its
// runtime gives to pods, or else the source, which brought the cluster up.
func (d *decider) found(name string) v1alpha1.Side {
	if d.Parts[name].Status.Runtime == v1alpha1.RuntimeTarget {
		return v1alpha1.Target
	}
	return v1alpha1.Source
}

func (d *decider) progress(name string) *v1alpha1.NodeProgress {
	for i := range d.st.Nodes {
		if d.st.Nodes[i].Name == name {
			return &d.st.Nodes[i]
		}
	}
	return nil
}

// heed does what a person has changed in the spec since the last decision.
func (d *decider) heed() {
	if d.st.ObservedGeneration != d.Migration.Generation {
		d.st.ObservedGeneration = d.Migration.Generation
		d.goOn()
	}
	for i := range d.st.Nodes {
		if d.Anew && !atRest(d.st.Nodes[i]) {
			d.st.Nodes[i].Since = metav1.NewTime(d.Now)
		}
	}
	if d.st.Goal != d.spec.Goal {
		d.st.Goal, d.st.Before, d.st.After, d.st.Tries, d.st.Again = d.spec.Goal, 0, 0, 0, metav1.Time{}
	}
	for i := range d.st.Nodes {
		n := &d.st.Nodes[i]
		want := d.wanted(*n)
		switch {
		case n.Back: // first it gets home
		case atRest(*n) && n.On == want:
			n.Want, n.Step = want, v1alpha1.StepDone
		case atRest(*n):
			n.Want, n.Step = want, v1alpha1.StepPending
		case n.Want != want:
			d.turnBack(n, "")
		}
	}
}

// goOn begins anew what had stopped: whatever a person changes says so. Steps
// get their time again, as after a pause.
func (d *decider) goOn() {
	d.st.Stopped, d.st.Message, d.st.Tries, d.st.Again = 0, "", 0, metav1.Time{}
	for i := range d.st.Nodes {
		d.st.Nodes[i].Since = metav1.NewTime(d.Now)
	}
	for _, number := range []*int64{&d.st.Before, &d.st.After} {
		if r := d.round(*number); r != nil && r.Failed > 0 {
			*number = 0
		}
	}
}

// wanted is the side that a node shall be on.
func (d *decider) wanted(n v1alpha1.NodeProgress) v1alpha1.Side {
	switch {
	case slices.Contains(d.spec.Hold, n.Name):
		return v1alpha1.Source
	case d.spec.Goal == v1alpha1.Stay:
		return n.On
	default:
		return cmp.Or(d.spec.Goal, v1alpha1.Target)
	}
}

// atRest reports whether a node is on one side and nothing of it is on its way.
func atRest(n v1alpha1.NodeProgress) bool {
	return n.Step == v1alpha1.StepPending || n.Step == v1alpha1.StepDone
}

// begin has the next nodes set off, when the migration may go on at all.
func (d *decider) begin() {
	if d.st.Stopped != 0 {
		return
	}
	pending := slices.ContainsFunc(d.st.Nodes, func(n v1alpha1.NodeProgress) bool { return n.Step == v1alpha1.StepPending })
	if !pending || !d.ready() {
		return
	}
	for _, name := range d.next() {
		n := d.progress(name)
		if wait := d.notPrepared(*n); wait != "" {
			n.Message = "waits for " + wait
			continue
		}
		node, _ := d.node(name)
		n.Unschedulable = node.Spec.Unschedulable && node.Annotations[CordonedBy] == ""
		d.step(n, v1alpha1.StepCordon)
		d.event("%s sets off from %s to %s", name, d.profile(n.On), d.profile(n.Want))
	}
}

// ready reports whether nodes may move at all: before the first, every node has
// both datapaths and its probes, and all probes have reached each other.
func (d *decider) ready() bool {
	if r := d.round(d.st.Before); r != nil && r.Pending {
		return false
	} else if r != nil && r.Failed > 0 && d.again(&d.st.Before) {
		return false
	} else if r != nil && r.Failed > 0 {
		d.stop(fmt.Sprintf("nothing was touched, as %d of %d probes fail before the first node moves: %s", r.Failed, r.Asked, few(r.Failures)))
		return false
	} else if d.st.Before != 0 {
		return true
	}
	if d.Now.Before(d.st.Again.Time) {
		d.waits = append(d.waits, "another round of probes")
	}
	for _, n := range d.st.Nodes {
		if wait := d.notPrepared(n); wait != "" {
			d.waits = append(d.waits, fmt.Sprintf("%s waits for %s", n.Name, wait))
		}
	}
	if len(d.waits) == 0 {
		d.st.Before = d.startRound("before")
	}
	return false
}

// again has a round asked once more, unless it has failed too often.
func (d *decider) again(number *int64) bool {
	if d.st.Tries++; d.st.Tries >= probeTries {
		return false
	}
	*number = 0
	d.st.Again = metav1.NewTime(d.Now.Add(time.Duration(d.st.Tries) * probePause))
	return true
}

// notPrepared says what a node lacks before it can set off; empty for nothing.
func (d *decider) notPrepared(n v1alpha1.NodeProgress) string {
	node, _ := d.node(n.Name)
	if !nodeReady(node) {
		return "its kubelet, the node is not Ready"
	}
	part, wait := d.fresh(n.Name, d.part(n))
	switch {
	case wait != "":
		return wait
	case part.Status.SourceReady != yes:
		return d.profile(v1alpha1.Source) + ": " + part.Status.SourceReady
	case part.Status.TargetReady != yes:
		return d.profile(v1alpha1.Target) + ": " + part.Status.TargetReady
	case d.spec.PreserveSource && !part.Status.PreserveSource:
		return "the exemption from NAT"
	case !d.probeReady(n.Name, n.On):
		return "its probe on " + d.profile(n.On)
	}
	return ""
}

// yes is what a datapath is that serves.
const yes = "yes"

// phase says where the migration as a whole is.
func (d *decider) phase() {
	done := 0
	for _, n := range d.st.Nodes {
		if n.Step == v1alpha1.StepDone {
			done++
		}
	}
	d.st.Moved = fmt.Sprintf("%d/%d", done, len(d.st.Nodes))
	resting := !slices.ContainsFunc(d.st.Nodes, func(n v1alpha1.NodeProgress) bool { return !atRest(n) })
	switch {
	case d.st.Stopped != 0:
		d.st.Phase = v1alpha1.PhaseStopped // with the message of what stopped it
	case d.spec.Paused:
		d.set(v1alpha1.PhasePaused, "as asked; braid migrate resume goes on")
	case done < len(d.st.Nodes) && resting && d.st.Before == 0:
		d.set(v1alpha1.PhasePreparing, strings.Join(d.waits, "; "))
	case done < len(d.st.Nodes):
		d.set(v1alpha1.PhaseMoving, d.moving())
	default:
		d.finish()
	}
}

func (d *decider) set(p v1alpha1.Phase, message string) { d.st.Phase, d.st.Message = p, message }

// moving tells of the nodes that are on their way.
func (d *decider) moving() string {
	var list []string
	for _, n := range d.st.Nodes {
		if !atRest(n) || n.Message != "" {
			list = append(list, strings.TrimSuffix(n.Name+" "+string(n.Step)+": "+n.Message, ": "))
		}
	}
	return strings.Join(list, "; ")
}

// finish is what is done when all nodes are where they shall be: a last round
// of probes, the end of what only the move needed, and the cleaning.
func (d *decider) finish() {
	if d.spec.Goal == v1alpha1.Stay || len(d.st.Nodes) == 0 {
		if !d.unwinding("the other side") {
			d.set(v1alpha1.PhaseDone, "every node stays where it is")
		}
		return
	}
	if d.st.After == 0 {
		if d.Now.Before(d.st.Again.Time) {
			return // with the phase and the message that say so
		}
		d.st.After = d.startRound("after")
	}
	r := d.round(d.st.After)
	switch {
	case r != nil && r.Pending:
		d.set(v1alpha1.PhaseMoving, "the last round of probes")
	case r != nil && r.Failed > 0 && d.again(&d.st.After):
		d.set(v1alpha1.PhaseMoving, "another last round of probes: "+r.Failures[0])
	case r != nil && r.Failed > 0:
		d.stop(fmt.Sprintf("all nodes are moved, but probes failed: %s", r.Failures[0]))
	case d.unwinding(d.profile(d.spec.Goal.Other())):
	case d.spec.Clean:
		d.cleaning()
	default:
		d.set(v1alpha1.PhaseDone, "all nodes are on "+d.profile(cmp.Or(d.spec.Goal, v1alpha1.Target)))
	}
}

// unwinding ends what only the move needed, and reports whether any of it is left.
// other is what the side is called that the nodes are not on.
func (d *decider) unwinding(other string) bool {
	if d.leaving() {
		d.set(v1alpha1.PhaseMoving, "ends the probes that stayed on "+other)
		return true
	}
	if node := d.stillExempt(); node != "" {
		d.set(v1alpha1.PhaseMoving, node+" removes the exemption from NAT")
		return true
	}
	return false
}

// cleaning waits until nothing of the other network is left on any node.
func (d *decider) cleaning() {
	other := d.spec.Goal.Other()
	var left []string
	for _, n := range d.st.Nodes {
		part, wait := d.fresh(n.Name, d.part(n))
		report := part.Status.Leftovers
		switch {
		case wait != "":
			left = append(left, n.Name+" waits for "+wait)
		case report == nil || report.Side != other:
			left = append(left, n.Name+" waits for its daemon to look")
		case len(report.Items) > 0:
			left = append(left, fmt.Sprintf("%s has %d things left, such as %s %s", n.Name, len(report.Items), report.Items[0].Kind, report.Items[0].Name))
		}
	}
	if len(left) > 0 {
		d.set(v1alpha1.PhaseDone, "cleaning: "+strings.Join(left, "; "))
		return
	}
	d.set(v1alpha1.PhaseClean, "nothing of "+d.profile(other)+" is left")
}

// stop has the migration wait for a person.
func (d *decider) stop(reason string) {
	if d.st.Stopped == 0 {
		d.event("stopped: %s", reason)
	}
	d.st.Stopped = d.Migration.Generation
	d.set(v1alpha1.PhaseStopped, reason)
}

func (d *decider) event(format string, args ...any) {
	d.out.Events = append(d.out.Events, fmt.Sprintf(format, args...))
}

// profile is the name of a side's CNI.
func (d *decider) profile(s v1alpha1.Side) string {
	if s == v1alpha1.Target {
		return d.spec.To.Profile
	}
	return d.spec.From.Profile
}
