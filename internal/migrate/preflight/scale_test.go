package preflight_test

import (
	"encoding/json"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
)

// large is the base with so many more nodes, each with 30 pods and what one
// node of the base has else; all of them have docker0 in the target's range.
func large(tb testing.TB, w *world, nodes int) preflight.Cluster {
	tb.Helper()
	raw, err := json.Marshal(w.facts["node2"])
	if err != nil {
		tb.Fatal(err)
	}
	var of facts.Node
	if err := json.Unmarshal(raw, &of); err != nil {
		tb.Fatal(err)
	}
	c := preflight.Cluster{Facts: map[string]facts.Node{}}
	for i := range nodes {
		name := fmt.Sprintf("n%05d", i)
		n := of
		n.Name = name
		n.Routes = append(n.Routes[:len(n.Routes):len(n.Routes)], facts.Route{Dst: "172.20.0.0/16", Dev: "docker0"})
		c.Facts[name] = n
		var node corev1.Node
		node.Name = name
		c.Nodes = append(c.Nodes, node)
		for j := range 30 {
			var p corev1.Pod
			p.Namespace, p.Name, p.Spec.NodeName = "default", fmt.Sprintf("%s-%d", name, j), name
			p.Status.PodIP = "10.243.0.9"
			p.Status.PodIPs = []corev1.PodIP{{IP: "10.243.0.9"}}
			c.Pods = append(c.Pods, p)
		}
	}
	return c
}

func BenchmarkCheck1000Nodes(b *testing.B) {
	w := readWorld(b, "testdata/bases/flannel-cilium.txtar")
	c := large(b, w, 1000)
	var from, to preflight.Side
	into(b, w.from, &from)
	into(b, w.to, &to)
	for b.Loop() {
		if r := preflight.Check(c, from, to, preflight.Options{}); !r.Has(preflight.RouteOverlap) {
			b.Fatal("no overlap")
		}
	}
}

// The migration's own pods are known by their namespace.
func TestNamespaceOfProbes(t *testing.T) {
	c, err := preflight.ReadDir(readWorld(t, "testdata/cases/probes.txtar").dump(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Pods {
		if p.Namespace == migrate.ProbeNamespace {
			return
		}
	}
	t.Errorf("the case knows probes by another namespace than %s", migrate.ProbeNamespace)
}
