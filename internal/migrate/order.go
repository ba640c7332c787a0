package migrate

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/api/v1alpha1"
)

// next are the nodes that may set off now: canaries one after the other, then
// batches, each of one zone. Back home there is no need to try with canaries.
func (d *decider) next() []string {
	var moving, pending []corev1.Node
	arrived := 0
	for _, n := range d.st.Nodes {
		node, _ := d.node(n.Name)
		switch {
		case n.Step == v1alpha1.StepPending:
			pending = append(pending, node)
		case !atRest(n):
			moving = append(moving, node)
		default:
			arrived++
		}
	}
	size := max(d.spec.Strategy.Batch, 1)
	if arrived < d.spec.Strategy.Canary {
		size = 1
	}
	inOrder(pending, d.Leader)
	var names []string
	for _, node := range pending {
		if len(moving) >= size || len(moving) > 0 && zone(moving[0]) != zone(node) {
			break
		}
		moving = append(moving, node)
		names = append(names, node.Name)
	}
	return names
}

// inOrder sorts nodes as they move: workers before control planes, and the
// node of the daemon that drives last. Within those, zone by zone and by name:
// a node that failed is the first to be tried again.
func inOrder(nodes []corev1.Node, leader string) {
	rank := func(n corev1.Node) int {
		switch {
		case n.Name == leader:
			return 2
		case isControlPlane(n):
			return 1
		}
		return 0
	}
	slices.SortFunc(nodes, func(a, b corev1.Node) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(zone(a), zone(b)), strings.Compare(a.Name, b.Name))
	})
}

func zone(n corev1.Node) string { return n.Labels[corev1.LabelTopologyZone] }

func isControlPlane(n corev1.Node) bool {
	_, is := n.Labels["node-role.kubernetes.io/control-plane"]
	_, was := n.Labels["node-role.kubernetes.io/master"]
	return is || was
}
