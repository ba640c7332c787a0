package preflight

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// checkPolicies is B3.13.
func (k *checker) checkPolicies() {
	k.checkForeignPolicies()
	if len(k.NetworkPolicies) == 0 {
		k.checkEnforcement(0)
		return
	}
	var names []string
	for i := range k.NetworkPolicies {
		names = append(names, nameOf(&k.NetworkPolicies[i]))
	}
	was, will := k.from.Has("NetworkPolicy"), k.to.Has("NetworkPolicy")
	switch {
	case was && !will:
		k.find(finding{code: PolicyLost, evidence: names}, "%d NetworkPolicies protect pods today, and %s enforces none", len(names), k.to.Profile)
	case was && will:
		k.find(finding{code: PolicyGap, evidence: names}, "%d NetworkPolicies are not enforced as a whole while pods of both sides are there: each side knows only its own pods", len(names))
	case will:
		k.find(finding{code: PolicyNew, evidence: names}, "%d NetworkPolicies that %s ignores begin to be enforced when %s is told to", len(names), k.from.Profile, k.to.Profile)
	}
	if was || will {
		k.checkPeers()
	}
	k.checkEnforcement(len(names))
}

// checkEnforcement: the target must let traffic of the source's pods pass until
// all have moved; to it they are the world.
func (k *checker) checkEnforcement(policies int) {
	if policies == 0 && !slices.ContainsFunc(k.Others, func(u other) bool { return k.to.Has(u.GetKind()) && policyKinds[u.GetKind()] }) {
		return
	}
	if k.to.Enforces {
		k.find(finding{code: PolicyEnforced, fix: during(k.to.set("policy", "never"))},
			"%s enforces policies from its first pod on, and pods of %s, or the node's address that they come from, match none of their peers", k.to.Profile, k.from.Profile)
	}
}

func during(fix string) string {
	if fix == "" {
		return ""
	}
	return fix + " for the time of the migration"
}

// checkPeers looks at who may talk to whom: by labels, which are lost where the
// source is rewritten, and by ranges.
func (k *checker) checkPeers() {
	rewritten := len(rewriters(k.from, k.to))+len(rewriters(k.to, k.from)) > 0 && !k.opts.PreserveSource
	var byLabel, byRange []string
	for i := range k.NetworkPolicies {
		p := &k.NetworkPolicies[i]
		label, ranges := k.peers(p)
		if label {
			byLabel = append(byLabel, nameOf(p))
		}
		for _, r := range ranges {
			byRange = append(byRange, fmt.Sprintf("%s: ipBlock %s", nameOf(p), r))
		}
	}
	if rewritten && len(byLabel) > 0 {
		k.find(finding{code: PolicyPeers, evidence: byLabel}, "policies name their peers by labels, and the addresses that these are known by are rewritten between old and new pods")
	}
	if len(byRange) > 0 {
		k.find(finding{code: PolicyOldCIDR, evidence: byRange, fix: fmt.Sprintf("add the same rule for %s before the migration, and remove the old one after it", join(k.to.PodCIDRs))},
			"policies name the pods' old range, or addresses in it")
	}
}

// peers tells of a policy whether it knows peers by labels, and which of the
// source's ranges it names.
func (k *checker) peers(p *networkingv1.NetworkPolicy) (label bool, ranges []string) {
	var peers []networkingv1.NetworkPolicyPeer
	for _, r := range p.Spec.Ingress {
		peers = append(peers, r.From...)
	}
	for _, r := range p.Spec.Egress {
		peers = append(peers, r.To...)
	}
	for _, peer := range peers {
		label = label || peer.PodSelector != nil || peer.NamespaceSelector != nil
		if peer.IPBlock == nil {
			continue
		}
		for _, s := range append([]string{peer.IPBlock.CIDR}, peer.IPBlock.Except...) {
			q, err := netip.ParsePrefix(s)
			if err == nil && q.Bits() > 0 && slices.ContainsFunc(k.from.PodCIDRs, q.Overlaps) && !slices.ContainsFunc(k.to.PodCIDRs, func(t netip.Prefix) bool { return within(t, []netip.Prefix{q}) }) {
				ranges = append(ranges, s)
			}
		}
	}
	return label, ranges
}

// policyKinds are kinds of policies beside Kubernetes's own.
var policyKinds = map[string]bool{
	"CiliumNetworkPolicy": true, "CiliumClusterwideNetworkPolicy": true, "GlobalNetworkPolicy": true,
	"AdminNetworkPolicy": true, "BaselineAdminNetworkPolicy": true, "ClusterNetworkPolicy": true,
}

// checkForeignPolicies finds policies of kinds that the target does not know.
func (k *checker) checkForeignPolicies() {
	kinds := map[string][]string{}
	for i := range k.Others {
		u := &k.Others[i]
		kind := u.GetKind()
		calico := strings.HasSuffix(group(u.GetAPIVersion()), "projectcalico.org")
		if kind == "NetworkPolicy" && calico {
			kind = "CalicoNetworkPolicy"
		}
		if (policyKinds[kind] || kind == "CalicoNetworkPolicy") && !k.to.Has(kind) {
			kinds[kind] = append(kinds[kind], fmt.Sprintf("%s %s", kind, nameOf(u)))
		}
	}
	for _, kind := range sortedKeys(kinds) {
		k.find(finding{code: PolicyKind, evidence: kinds[kind], fix: fmt.Sprintf("write them as a kind that %s knows (%s), or accept that they end", k.to.Profile, orNone(k.to.Policies))},
			"%s does not know policies of the kind %s", k.to.Profile, kind)
	}
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

func group(apiVersion string) string {
	g, _, ok := strings.Cut(apiVersion, "/")
	if !ok {
		return ""
	}
	return g
}

// addressLike finds addresses and ranges in a text.
var addressLike = regexp.MustCompile(`(?:\d{1,3}\.){3}\d{1,3}(?:/\d{1,2})?|[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?:/\d{1,3})?`)

// checkMentions is B3.14: the old range, and addresses in it, where somebody
// wrote them down.
func (k *checker) checkMentions() {
	skip := map[string]bool{"kube-system/kube-proxy": true}
	for i := range k.ConfigMaps {
		cm := &k.ConfigMaps[i]
		if skip[nameOf(cm)] || k.isOwnConfig(nameOf(cm)) {
			continue
		}
		for _, key := range sortedKeys(cm.Data) {
			k.mention(onObject("ConfigMap", cm), fmt.Sprintf("ConfigMap %s: %s", nameOf(cm), key), cm.Data[key])
		}
	}
	seen := map[string]bool{}
	for _, p := range k.living {
		if k.ownedBy(p, k.from) || k.ownedBy(p, k.to) {
			continue
		}
		who := nameOf(p)
		if name := ownerName(p); name != "" {
			who = p.Namespace + "/" + name
		}
		for _, c := range p.Spec.Containers {
			for _, e := range c.Env {
				if where := fmt.Sprintf("%s, container %s: %s", who, c.Name, e.Name); !seen[where] {
					seen[where] = true
					k.mention([]string{"workload " + who}, where, e.Value)
				}
			}
			if c.Name == "kube-controller-manager" || c.Name == "kube-proxy" {
				continue
			}
			for _, a := range slices.Concat(c.Command, c.Args) {
				if where := fmt.Sprintf("%s, container %s: %s", who, c.Name, flagName(a)); !seen[where+a] {
					seen[where+a] = true
					k.mention([]string{"workload " + who}, where, a)
				}
			}
		}
	}
	if k.from.Transport == "bgp" || k.to.Transport == "bgp" {
		k.find(finding{code: RoutersKnow}, "routers outside of the cluster are told of pods' ranges by BGP: what they accept, and what they lead to the nodes, changes")
	}
}

func flagName(arg string) string {
	name, _, _ := strings.Cut(arg, "=")
	return name
}

// isOwnConfig tells whether a ConfigMap is of one of the sides itself.
func (k *checker) isOwnConfig(name string) bool {
	switch name {
	case "kube-flannel/kube-flannel-cfg", "kube-system/kube-flannel-cfg", "kube-system/cilium-config", "kube-system/calico-config", "kube-system/kindnet-cfg":
		return true
	}
	return false
}

func (k *checker) mention(on []string, where, text string) {
	for _, m := range addressLike.FindAllString(text, -1) {
		p, err := netip.ParsePrefix(m)
		if err != nil {
			q, ok := hostPrefix(m)
			if !ok {
				continue
			}
			p = q
		}
		if within(p, k.from.PodCIDRs) {
			k.find(finding{code: OldCIDRMentioned, on: on, evidence: line("%s has %s", where, m), fix: fmt.Sprintf("add %s, or what the pods that are meant become", join(k.to.PodCIDRs))},
				"the pods' old range, or an address in it, is written down")
		}
	}
}
