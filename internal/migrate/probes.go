package migrate

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/probe/round"
)

// maxRounds is how many rounds of probes are remembered.
const maxRounds = 40

// round returns what is known of a round, nil when it was dropped.
func (d *decider) round(number int64) *v1alpha1.RoundSummary {
	for i := range d.st.Rounds {
		if d.st.Rounds[i].Round == number {
			return &d.st.Rounds[i]
		}
	}
	return nil
}

// startRound begins a round, or joins the one that nobody has answered yet: one
// is under way at a time. It returns 0 while another has to end first.
func (d *decider) startRound(when string) int64 {
	if r := d.round(d.st.Round); r != nil && r.Pending {
		if d.st.Round == d.Migration.Status.Round {
			return 0
		}
		r.When += ", " + when
		return d.st.Round
	}
	d.st.Round++
	d.st.Rounds = append(d.st.Rounds, v1alpha1.RoundSummary{Round: d.st.Round, When: when, Pending: true})
	if extra := len(d.st.Rounds) - maxRounds; extra > 0 {
		d.st.Rounds = slices.Delete(d.st.Rounds, 0, extra)
	}
	return d.st.Round
}

// sumUp judges the round that is under way once every node has reported that
// can. The questions that were left to one that has gone away have failed; the
// next round does without it.
func (d *decider) sumUp() {
	r := d.round(d.st.Round)
	if r == nil || !r.Pending {
		return
	}
	reports := map[string]v1alpha1.ProbeReport{}
	for _, n := range d.st.Nodes {
		if !d.asks(n.Name) {
			continue
		}
		report := d.Parts[n.Name].Status.Probe
		if report == nil || report.Round != r.Round {
			return
		}
		reports[n.Name] = *report
	}
	for name := range reports {
		// What was asked is the same on all nodes.
		asked := round.Round{ProbeRequest: *d.Parts[name].Spec.Probe, When: r.When}
		*r = round.Judge(asked, reports, d.spec.PreserveSource && d.exempts())
		return
	}
}

// targets is what a round asks now: the same of all nodes.
func (d *decider) targets(number int64) []v1alpha1.ProbeTarget {
	if d.asked.Round != number {
		d.asked = v1alpha1.ProbeRequest{Round: number, Targets: d.everything()}
	}
	return d.asked.Targets
}

// everything is what there is to be asked.
func (d *decider) everything() []v1alpha1.ProbeTarget {
	w := d.Asks
	for _, n := range d.st.Nodes {
		if !d.asks(n.Name) {
			continue
		}
		for _, p := range d.probes(n.Name) {
			addr, err := netip.ParseAddr(p.Status.PodIP)
			if side := SideOf(d.spec, p.Status.PodIP); err == nil && side != "" && Ready(p) {
				w.Probes = append(slices.Clip(w.Probes), round.Probe{Node: n.Name, Side: side, Addr: netip.AddrPortFrom(addr, ProbePort)})
			}
		}
	}
	return round.Targets(w)
}

// asks reports whether a node takes part in rounds of probes.
func (d *decider) asks(name string) bool {
	node, there := d.node(name)
	part, has := d.Parts[name]
	return there && has && nodeReady(node) && d.Now.Sub(part.Status.Heartbeat.Time) <= staleAfter
}

// probes are the probes' pods of a node that live.
func (d *decider) probes(node string) []corev1.Pod {
	var list []corev1.Pod
	for _, p := range d.Pods {
		if isProbe(p) && p.Spec.NodeName == node && p.Labels[SideLabel] != "" && p.DeletionTimestamp == nil && !finished(p) {
			list = append(list, p)
		}
	}
	return list
}

// probeReady reports whether a node has a probe that is on that side, by its
// address.
func (d *decider) probeReady(node string, side v1alpha1.Side) bool {
	return slices.ContainsFunc(d.probes(node), func(p corev1.Pod) bool {
		return Ready(p) && SideOf(d.spec, p.Status.PodIP) == side
	})
}

// probeTrouble says what the kubelet says of a probe that does not come up.
func (d *decider) probeTrouble(node string, side v1alpha1.Side) string {
	for _, p := range d.probes(node) {
		if p.Labels[SideLabel] != string(side) {
			continue
		}
		if p.Status.PodIP != "" && SideOf(d.spec, p.Status.PodIP) != side {
			return ", which has the address " + p.Status.PodIP
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Waiting != nil {
				return " (" + c.State.Waiting.Reason + ": " + c.State.Waiting.Message + ")"
			}
		}
	}
	return ""
}

// leaving ends, once all nodes have arrived, the probes that stayed on the other
// side; it reports whether any is left. Until then the runtime remembers how to
// take them down.
func (d *decider) leaving() bool {
	left := false
	for _, n := range d.st.Nodes {
		for _, p := range d.Pods {
			if !isProbe(p) || p.Spec.NodeName != n.Name || p.Labels[SideLabel] != string(n.On.Other()) {
				continue
			}
			left = true
			if d.Parts[n.Name].Status.Runtime == openTo(n.On) && p.DeletionTimestamp == nil {
				d.out.EndProbes = append(d.out.EndProbes, p)
			}
		}
	}
	return left
}

// stays reports whether a node has a probe that stayed on the other side and
// has to be taken down the way it was made.
func (d *decider) stays(n v1alpha1.NodeProgress) bool {
	return slices.ContainsFunc(d.Pods, func(p corev1.Pod) bool {
		return isProbe(p) && p.Spec.NodeName == n.Name && p.Labels[SideLabel] == string(n.On.Other())
	})
}
