package preflight

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/internal/migrate/facts"
)

// checkNodes is B3.27.
func (k *checker) checkNodes() {
	if len(k.Nodes) == 0 {
		k.find(finding{code: FactsMissing}, "no nodes are known")
	}
	if len(k.Cluster.Problems) > 0 {
		k.find(finding{code: Unread, evidence: k.Cluster.Problems}, "not all of the cluster could be read: what is not known is not judged")
	}
	versions := map[string][]string{}
	for _, n := range k.nodes {
		v := n.Status.NodeInfo.KubeletVersion
		versions[v] = append(versions[v], n.Name)
		k.checkNode(n)
	}
	if len(versions) > 1 {
		var evidence []string
		for _, v := range sortedKeys(versions) {
			evidence = append(evidence, fmt.Sprintf("%s: %s", orUnknown(v), strings.Join(versions[v], ", ")))
		}
		k.find(finding{code: VersionSkew, evidence: evidence}, "kubelets have different versions: an upgrade may be under way")
	}
	if len(k.Nodes) == 1 {
		k.find(finding{code: SingleNode, on: onNode(k.Nodes[0].Name)}, "there is no other node to go to: pods are restarted in place")
	}
	k.checkRollouts()
}

func (k *checker) checkNode(n node) {
	if isWindows(n.Node) {
		return
	}
	if !ready(n.Node) {
		k.find(finding{code: NodeNotReady, on: onNode(n.Name)}, "the node is not Ready")
	}
	if n.Spec.Unschedulable {
		k.find(finding{code: NodeCordoned, on: onNode(n.Name)}, "the node is cordoned, and stays so when it has moved")
	}
	if !n.known {
		k.find(finding{code: FactsMissing, on: onNode(n.Name)}, "nothing is known of the node itself")
		return
	}
	if len(n.facts.Problems) > 0 {
		k.find(finding{code: Unread, on: onNode(n.Name), evidence: prefixed(n.Name+": ", n.facts.Problems)}, "not all of the node could be read: what is not known is not judged")
	}
}

func ready(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// checkRollouts: what changes by itself is not told from what the migration
// breaks.
func (k *checker) checkRollouts() {
	var running []string
	for i := range k.DaemonSets {
		s := k.DaemonSets[i].Status
		if s.NumberReady < s.DesiredNumberScheduled || s.UpdatedNumberScheduled < s.DesiredNumberScheduled {
			running = append(running, fmt.Sprintf("DaemonSet %s: %d of %d are up to date, %d ready", nameOf(&k.DaemonSets[i]), s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberReady))
		}
	}
	for i := range k.Deployments {
		d := &k.Deployments[i]
		if want := replicas(d.Spec.Replicas); d.Status.UpdatedReplicas < want || d.Status.ReadyReplicas < want {
			running = append(running, fmt.Sprintf("Deployment %s: %d of %d are up to date, %d ready", nameOf(d), d.Status.UpdatedReplicas, want, d.Status.ReadyReplicas))
		}
	}
	for i := range k.StatefulSets {
		s := &k.StatefulSets[i]
		if want := replicas(s.Spec.Replicas); s.Status.ReadyReplicas < want {
			running = append(running, fmt.Sprintf("StatefulSet %s: %d of %d are ready", nameOf(s), s.Status.ReadyReplicas, want))
		}
	}
	if len(running) > 0 {
		k.find(finding{code: RolloutRunning, evidence: running}, "workloads are not as they shall be yet")
	}
}

func replicas(r *int32) int32 {
	if r == nil {
		return 1
	}
	return *r
}

// checkForeign is B3.28.
func (k *checker) checkForeign() {
	for _, n := range k.nodes {
		if isWindows(n.Node) {
			k.find(finding{code: WindowsNode, on: onNode(n.Name)}, "the node runs Windows: it is not moved, and its pods stay on %s", k.from.Profile)
		}
		if who := hostFirewall(n.facts.Firewall); who != "" {
			k.find(finding{code: HostFirewall, on: onNode(n.Name), evidence: line("%s: rules of %s", n.Name, who)},
				"%s rules the node's firewall: a reload of it removes or stands before what CNIs and the migration add", who)
		}
	}
	var boxed []*corev1.Pod
	for _, p := range k.moving {
		if c := p.Spec.RuntimeClassName; c != nil && (strings.Contains(*c, "kata") || strings.Contains(*c, "firecracker")) {
			boxed = append(boxed, p)
		}
	}
	if len(boxed) > 0 {
		k.find(finding{code: VirtualPods, on: podSubjects(boxed), evidence: podNames(boxed)}, "pods are virtual machines: what is asked from their network namespaces is not what they themselves see")
	}
}

// hostFirewall is the program that rules the node's firewall beside Kubernetes.
func hostFirewall(rulesets []facts.Ruleset) string {
	for _, r := range rulesets {
		switch {
		case r.Backend == "nftables" && strings.Contains(r.Text, "firewalld {"):
			return "firewalld"
		case strings.Contains(r.Text, "\n:FWDI_") || strings.Contains(r.Text, "\n:FORWARD_direct"):
			return "firewalld"
		case strings.Contains(r.Text, "\n:ufw-") || strings.Contains(r.Text, "\n:ufw6-"):
			return "ufw"
		}
	}
	return ""
}

// checkBackup is B3.29: what the way back needs has to be known.
func (k *checker) checkBackup() {
	for _, n := range k.nodes {
		if !n.known || isWindows(n.Node) {
			continue
		}
		var missing []string
		for what, have := range map[string]bool{
			"the files of the conf dir": len(n.facts.CNI.Files) > 0, "rules of the firewall": len(n.facts.Firewall) > 0,
			"routes": len(n.facts.Routes) > 0, "sysctls": len(n.facts.Sysctls) > 0,
		} {
			if !have {
				missing = append(missing, fmt.Sprintf("%s: %s", n.Name, what))
			}
		}
		slices.Sort(missing)
		if len(missing) > 0 {
			k.find(finding{code: BackupIncomplete, on: onNode(n.Name), evidence: missing}, "what the way back may need cannot be put aside, because it could not be read")
		}
	}
	var absent []string
	for _, w := range k.from.Workloads {
		if !k.opts.Rollback && !k.exists(w) {
			absent = append(absent, w)
		}
	}
	if len(absent) > 0 {
		k.find(finding{code: BackupNoManifests, evidence: absent}, "manifests of %s are not among the objects that were read: without them it cannot be installed again", k.from.Profile)
	}
}

// exists tells whether Kind/namespace/name was read.
func (k *checker) exists(id string) bool {
	found := false
	k.each(func(_, kind string, obj object) {
		found = found || id == kind+"/"+nameOf(obj)
	})
	return found
}
