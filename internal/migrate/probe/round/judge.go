package round

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"braid.dev/braid/api/v1alpha1"
)

// MaxFailures is how many failures a summary tells in words.
const MaxFailures = 20

// A Round is what was asked and when.
type Round struct {
	v1alpha1.ProbeRequest
	// When is the moment of the round, such as "before" or "node2 Try".
	When string
}

// Missing names the nodes that have not reported the round yet: those with
// probes among the targets.
func Missing(r Round, reports map[string]v1alpha1.ProbeReport) []string {
	nodes := map[string]bool{}
	for _, t := range r.Targets {
		if t.Kind == KindPod && reports[t.Node].Round != r.Round {
			nodes[t.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(nodes))
}

// Judge sums a round up from the reports of the nodes. Each probe must have
// asked every other target, and each node itself every probe's pod: what was
// not asked has failed. With preserve it is also a failure that a server saw
// another address than the probe's own, between pods and, where a service is in
// between, between old and new ones. What a probe asked itself does not count.
func Judge(r Round, reports map[string]v1alpha1.ProbeReport, preserve bool) v1alpha1.RoundSummary {
	j := judge{
		Round: r, preserve: preserve, rows: map[row]map[string]int{},
		sum: v1alpha1.RoundSummary{Round: r.Round, When: r.When},
	}
	for _, a := range j.askers() {
		report := reports[a.node]
		if report.Round != r.Round {
			report.Results = nil
		}
		j.asker(a, answers(report, a.side))
	}
	j.sum.Clients = j.table()
	return j.sum
}

type judge struct {
	Round
	preserve bool
	sum      v1alpha1.RoundSummary
	// rows counts, for each row of the table, whose address was seen.
	rows map[row]map[string]int
}

// row is a v1alpha1.ClientRow without what was seen.
type row struct{ by, from, to, where string }

// askers lists those that ask, nodes last.
func (j *judge) askers() []asker {
	var list, nodes []asker
	for _, t := range j.Targets {
		if t.Kind == KindPod {
			list, nodes = append(list, asker{t.Node, t.Side}), append(nodes, asker{node: t.Node})
		}
	}
	var out []asker
	for _, a := range append(list, nodes...) {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// answers are the results of one asker by the target's name.
func answers(report v1alpha1.ProbeReport, side v1alpha1.Side) map[string]v1alpha1.ProbeResult {
	m := map[string]v1alpha1.ProbeResult{}
	for _, r := range report.Results {
		if r.From == side {
			m[r.To] = r
		}
	}
	return m
}

func (j *judge) asker(a asker, answers map[string]v1alpha1.ProbeResult) {
	for _, t := range j.Targets {
		if !Asks(a.node, a.side, t) {
			continue
		}
		j.sum.Asked++
		r, asked := answers[t.Name]
		switch {
		case !asked:
			j.fail(a, t, "was not asked")
		case r.Error != "":
			j.fail(a, t, r.Error)
		default:
			j.seen(a, t, r)
		}
	}
}

// Asks reports whether the probe of a side on a node, or without a side the
// node itself, has to ask a target. No probe asks itself, and nodes ask only
// pods: what kubelets and API servers on nodes need to reach.
func Asks(node string, side v1alpha1.Side, t v1alpha1.ProbeTarget) bool {
	if side == "" {
		return t.Kind == KindPod
	}
	return t.Kind != KindPod || t.Node != node || t.Side != side
}

func (j *judge) fail(a asker, t v1alpha1.ProbeTarget, why string) {
	j.sum.Failed++
	if len(j.sum.Failures) == MaxFailures {
		return
	}
	to := t.Name
	if !strings.Contains(to, t.Address) {
		to += " (" + t.Address + ")"
	}
	j.sum.Failures = append(j.sum.Failures, fmt.Sprintf("%s → %s: %s", a, to, why))
}

// seen enters an answer into the table, and finds rewritten addresses.
func (j *judge) seen(a asker, t v1alpha1.ProbeTarget, r v1alpha1.ProbeResult) {
	if t.Kind != KindPod && t.Kind != KindService && t.Kind != KindNode {
		return // these tell nothing of their clients
	}
	server, known := j.server(t, r)
	if known && server == a {
		return // by a service to itself: the answer could not come back otherwise
	}
	if rewritten(r) && j.preserves(a, t, server) {
		j.fail(a, t, fmt.Sprintf("the server saw %s (%s), not the probe's own %s", cmp.Or(r.Client, "no address"), cmp.Or(r.Saw, "nobody on "+a.node), r.Source))
		// It was answered all the same, and belongs into the table.
	}
	if !known {
		return
	}
	where := "other node"
	if server.node == a.node {
		where = "same node"
	}
	by := "direct"
	if t.Kind == KindService {
		by = "service"
	}
	k := row{by: by, from: age(a.side), to: age(server.side), where: where}
	if j.rows[k] == nil {
		j.rows[k] = map[string]int{}
	}
	j.rows[k][cmp.Or(r.Saw, r.Client, "unknown")]++
}

// server is who answered.
func (j *judge) server(t v1alpha1.ProbeTarget, r v1alpha1.ProbeResult) (asker, bool) {
	if t.Kind != KindService {
		return asker{t.Node, t.Side}, true
	}
	for _, p := range j.Targets {
		at, err := netip.ParseAddrPort(p.Address)
		if err == nil && p.Kind == KindPod && at.Addr().String() == r.Server {
			return asker{p.Node, p.Side}, true
		}
	}
	return asker{side: t.Side}, false
}

func rewritten(r v1alpha1.ProbeResult) bool { return r.Client != r.Source }

// preserves reports whether the exemption from NAT is about this question. What
// kube-proxy does between two old pods, or two new ones, it did before.
func (j *judge) preserves(a asker, t v1alpha1.ProbeTarget, server asker) bool {
	if !j.preserve || a.side == "" {
		return false
	}
	return t.Kind == KindPod || t.Kind == KindService && server.side != "" && server.side != a.side
}

// table has the rows in the order of people's interest, and whom was seen most
// first.
func (j *judge) table() []v1alpha1.ClientRow {
	var out []v1alpha1.ClientRow
	for k, saw := range j.rows {
		owners := slices.SortedFunc(maps.Keys(saw), func(a, b string) int {
			return cmp.Or(cmp.Compare(saw[b], saw[a]), strings.Compare(a, b))
		})
		r := v1alpha1.ClientRow{From: k.from, To: k.to, Where: k.where, By: k.by, Saw: strings.Join(owners, ", ")}
		for _, n := range saw {
			r.Count += n
		}
		out = append(out, r)
	}
	ages := []string{"old", "new", "node"}
	slices.SortFunc(out, func(a, b v1alpha1.ClientRow) int {
		return cmp.Or(
			strings.Compare(a.By, b.By), // direct, service
			cmp.Compare(slices.Index(ages, a.From), slices.Index(ages, b.From)),
			cmp.Compare(slices.Index(ages, a.To), slices.Index(ages, b.To)),
			strings.Compare(b.Where, a.Where), // same node, other node
		)
	})
	return out
}
