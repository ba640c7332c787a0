package lead

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/probe/round"
)

// world is a snapshot as decisions take it.
func (l *Leader) world(snap kube.Snapshot, m v1alpha1.Migration, now time.Time) migrate.World {
	parts := map[string]v1alpha1.NodeMigration{}
	for _, p := range snap.NodeMigrations {
		parts[p.Name] = p
	}
	return migrate.World{
		Now: now, Migration: m, Nodes: snap.Nodes, Pods: snap.Pods, Parts: parts,
		Refused: l.refused, Leader: l.Node, Anew: l.anew, Asks: asks(snap, m, now),
	}
}

// asks is what rounds of probes ask besides the probes' pods: the nodes' own
// daemons, the services of probes, the cluster's DNS and API server, and what
// is outside.
func asks(snap kube.Snapshot, m v1alpha1.Migration, now time.Time) round.World {
	w := round.World{Outside: m.Spec.Probes.Outside}
	for _, n := range snap.Nodes {
		if addr, ok := internalIP(n); ok && serves(snap, n.Name) {
			w.Nodes = append(w.Nodes, round.Node{Name: n.Name, Addr: netip.AddrPortFrom(addr, migrate.NodePort)})
		}
	}
	for _, s := range snap.Services {
		addr, err := netip.ParseAddr(s.Spec.ClusterIP)
		if err != nil {
			continue // headless, or the name of another
		}
		switch s.Namespace + "/" + s.Name {
		case "default/kubernetes":
			w.APIServers = append(w.APIServers, netip.AddrPortFrom(addr, 443))
		case "kube-system/kube-dns":
			w.DNS = append(w.DNS, netip.AddrPortFrom(addr, 53))
		case migrate.ProbeNamespace + "/" + migrate.ProbeService(v1alpha1.Source):
			w.Services = appendService(w.Services, snap, m, v1alpha1.Source, addr, now)
		case migrate.ProbeNamespace + "/" + migrate.ProbeService(v1alpha1.Target):
			w.Services = appendService(w.Services, snap, m, v1alpha1.Target, addr, now)
		}
	}
	return w
}

// settled is how long a probe must have been ready before its service is asked:
// every node's kube-proxy has to hear of it first.
const settled = 3 * time.Second

// appendService adds a service of probes if one of them can answer for it.
func appendService(list []round.Service, snap kube.Snapshot, m v1alpha1.Migration, side v1alpha1.Side, addr netip.Addr, now time.Time) []round.Service {
	answers := slices.ContainsFunc(snap.Pods, func(p corev1.Pod) bool {
		return p.Namespace == migrate.ProbeNamespace && p.Labels[migrate.SideLabel] == string(side) &&
			p.DeletionTimestamp == nil && readyFor(p, now) >= settled && migrate.SideOf(m.Spec, p.Status.PodIP) == side
	})
	if !answers {
		return list
	}
	return append(list, round.Service{Name: migrate.ProbeService(side), Side: side, Addr: netip.AddrPortFrom(addr, 80)})
}

// serves reports whether a node's daemon has been heard of lately.
func serves(snap kube.Snapshot, node string) bool {
	return slices.ContainsFunc(snap.NodeMigrations, func(p v1alpha1.NodeMigration) bool {
		return p.Name == node && !p.Status.Heartbeat.IsZero()
	})
}

func internalIP(n corev1.Node) (netip.Addr, bool) {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			addr, err := netip.ParseAddr(a.Address)
			return addr, err == nil
		}
	}
	return netip.Addr{}, false
}

// readyFor is how long a pod has been ready; 0 when it is not.
func readyFor(p corev1.Pod, now time.Time) time.Duration {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return now.Sub(c.LastTransitionTime.Time)
		}
	}
	return 0
}
