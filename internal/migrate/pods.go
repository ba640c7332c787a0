package migrate

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"braid.dev/braid/api/v1alpha1"
)

// Evictable reports whether evicting a pod has another one made elsewhere. All
// others that have a network of their own are restarted in place: pods without
// a controller would be lost, and those of a DaemonSet come back where they were.
func Evictable(p corev1.Pod) bool {
	owner := metav1.GetControllerOf(&p)
	return owner != nil && owner.Kind != "DaemonSet" && owner.Kind != "Node" &&
		p.Annotations[corev1.MirrorPodAnnotationKey] == "" && !p.Spec.HostNetwork && !isProbe(p) && !finished(p)
}

// moves reports whether a pod has to change its network at all.
func moves(p corev1.Pod) bool {
	return !p.Spec.HostNetwork && !isProbe(p) && !finished(p)
}

func finished(p corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func isProbe(p corev1.Pod) bool { return p.Namespace == ProbeNamespace }

// Ready reports whether a pod serves.
func Ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// podWasReady reports whether a pod has stopped being ready since then.
func podWasReady(p corev1.Pod, since time.Time) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue && !c.LastTransitionTime.Time.Before(since.Truncate(time.Second))
	})
}

// evicts reports whether the pods of a node are evicted, and not all of them
// restarted in place: on the way back they have suffered enough, and on the
// only node that takes pods nobody else could have them.
func (d *decider) evicts(n v1alpha1.NodeProgress) bool {
	switch d.spec.Strategy.Pods {
	case v1alpha1.MoveEvict:
		return true
	case v1alpha1.MoveRestart:
		return false
	}
	return !n.Back && slices.ContainsFunc(d.Nodes, func(other corev1.Node) bool {
		return other.Name != n.Name && !other.Spec.Unschedulable && nodeReady(other)
	})
}

// SideOf is the side whose network an address is from; empty for neither.
func SideOf(spec v1alpha1.MigrationSpec, ip string) v1alpha1.Side {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ""
	}
	for side, network := range map[v1alpha1.Side]v1alpha1.Network{v1alpha1.Source: spec.From, v1alpha1.Target: spec.To} {
		for _, cidr := range network.PodCIDRs {
			if p, err := netip.ParsePrefix(cidr); err == nil && p.Contains(addr) {
				return side
			}
		}
	}
	return ""
}
