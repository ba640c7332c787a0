package migrate

import (
	"cmp"
	"reflect"

	"braid.dev/braid/api/v1alpha1"
)

// equip writes down what every node's daemon shall do, and starts the probes.
func (d *decider) equip() {
	d.out.Parts = map[string]v1alpha1.NodeMigrationSpec{}
	for _, n := range d.st.Nodes {
		want := d.part(n)
		if part, ok := d.Parts[n.Name]; !ok || !sameSpec(part.Spec, want) {
			d.out.Parts[n.Name] = want
		}
		d.equipProbes(n)
	}
}

// part is what a node's daemon shall do.
func (d *decider) part(n v1alpha1.NodeProgress) v1alpha1.NodeMigrationSpec {
	have := d.Parts[n.Name].Spec
	spec := v1alpha1.NodeMigrationSpec{
		Migration: d.Migration.Name, From: d.spec.From, To: d.spec.To,
		Runtime: d.runtimeFor(n), PreserveSource: d.exempts(),
		Probe: have.Probe, Facts: have.Facts, FactsTaken: have.FactsTaken, Paths: have.Paths,
	}
	if n.Step == v1alpha1.StepMove {
		spec.Move = n.Want
	}
	if r := d.round(d.st.Round); r != nil && r.Pending && d.asks(n.Name) && (have.Probe == nil || have.Probe.Round != r.Round) {
		spec.Probe = &v1alpha1.ProbeRequest{Round: r.Round, Targets: d.targets(r.Round)}
	}
	if d.spec.Clean && d.arrived() && d.st.After != 0 && !d.stays(n) {
		spec.Clean = d.spec.Goal.Other()
	}
	if d.spec.Audits > 0 {
		spec.Audit, spec.Audits = cmp.Or(spec.Clean, n.On.Other()), d.spec.Audits
	}
	return spec
}

// runtimeFor is what the runtime of a node shall give to pods at its step.
func (d *decider) runtimeFor(n v1alpha1.NodeProgress) v1alpha1.RuntimeState {
	switch n.Step {
	case v1alpha1.StepClose, v1alpha1.StepTry, v1alpha1.StepEvict:
		return closedTo(n.Want)
	case v1alpha1.StepMove:
		return openTo(n.Want)
	case v1alpha1.StepSwap, v1alpha1.StepVerify, v1alpha1.StepUncordon:
		return runtimeOf(n.Want)
	}
	if d.arrived() && d.well() && d.stays(n) {
		return openTo(n.On)
	}
	return runtimeOf(n.On)
}

// well reports whether nobody needs the probes any more that stayed on the other
// side: the last round has found the cluster well, or there is none.
func (d *decider) well() bool {
	after := d.round(d.st.After)
	return d.spec.Goal == v1alpha1.Stay || after != nil && !after.Pending && after.Failed == 0
}

// arrived reports whether all nodes are where they shall be.
func (d *decider) arrived() bool {
	for _, n := range d.st.Nodes {
		if n.Step != v1alpha1.StepDone {
			return false
		}
	}
	return len(d.st.Nodes) > 0
}

// exempts reports whether the exemption from NAT is needed: from before the
// first pod moves until all nodes are on one side again and stay there.
func (d *decider) exempts() bool {
	if !d.spec.PreserveSource {
		return false
	}
	after := d.round(d.st.After)
	over := d.st.Stopped != 0 || after != nil && !after.Pending
	for _, n := range d.st.Nodes {
		if n.On != d.st.Nodes[0].On || !atRest(n) || d.stays(n) && d.st.Stopped == 0 {
			return true
		}
	}
	return !over
}

// stillExempt is a node that has the exemption from NAT although it is needed no
// more. One that is not Ready will remove it when it is back.
func (d *decider) stillExempt() string {
	if d.exempts() {
		return ""
	}
	for _, n := range d.st.Nodes {
		if node, _ := d.node(n.Name); nodeReady(node) && d.Parts[n.Name].Status.PreserveSource {
			return n.Name
		}
	}
	return ""
}

// equipProbes starts the probe of a node on its own side, and, where it is time
// to try, the one on the other. A probe whose address is not that of its side,
// as after a reboot, is of no use any more.
func (d *decider) equipProbes(n v1alpha1.NodeProgress) {
	side := n.On
	if n.Step == v1alpha1.StepTry || n.Step == v1alpha1.StepMove || n.Step == v1alpha1.StepVerify {
		side = n.Want
	}
	there := false
	for _, p := range d.probes(n.Name) {
		is := SideOf(d.spec, p.Status.PodIP)
		if p.Status.PodIP != "" && is != v1alpha1.Side(p.Labels[SideLabel]) {
			d.out.EndProbes = append(d.out.EndProbes, p)
			continue
		}
		there = there || p.Labels[SideLabel] == string(side)
	}
	if !there && d.gives(n) == side && d.st.Phase != v1alpha1.PhaseClean && !d.ending(n.Name, side) {
		d.out.StartProbes = append(d.out.StartProbes, ProbePod{Node: n.Name, Side: side})
	}
}

// ending reports whether a probe of that name is still on its way out.
func (d *decider) ending(node string, side v1alpha1.Side) bool {
	name := ProbePod{Node: node, Side: side}.Name()
	for _, p := range d.Pods {
		if isProbe(p) && p.Name == name && (p.DeletionTimestamp != nil || finished(p)) {
			return true
		}
	}
	return false
}

// gives is the side that a probe gets from the node's runtime now.
func (d *decider) gives(n v1alpha1.NodeProgress) v1alpha1.Side {
	switch d.Parts[n.Name].Status.Runtime {
	case v1alpha1.RuntimeSource, v1alpha1.RuntimeClosedToSource, v1alpha1.RuntimeOpenToSource:
		return v1alpha1.Source
	case v1alpha1.RuntimeTarget, v1alpha1.RuntimeClosedToTarget, v1alpha1.RuntimeOpenToTarget:
		return v1alpha1.Target
	}
	return ""
}

// sameSpec compares what is asked of a daemon; a missing list is an empty one.
func sameSpec(a, b v1alpha1.NodeMigrationSpec) bool {
	return reflect.DeepEqual(a, b)
}
