package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"braid.dev/braid/internal/migrate/facts"
)

// checkGateway is P3, and B3.4: only through the nodes can pods of one side
// reach those of the other.
func (k *checker) checkGateway() {
	for _, s := range []Side{k.from, k.to} {
		if s.HostGateway == No {
			k.find(finding{code: NodeNotGateway, evidence: s.Evidence}, "the node is not the gateway of the pods of %s: its routing does not reach them", s.Profile)
		}
		if s.Bypasses {
			k.find(finding{code: BypassesHost, fix: s.set("legacy-routing", "true")},
				"%s sends what its pods get and send around the node's own routing and netfilter", s.Profile)
		}
	}
	for _, n := range k.nodes {
		k.checkReach(n)
	}
}

// checkReach judges the questions that the node asked its own pods.
func (k *checker) checkReach(n node) {
	under, _ := n.underlay()
	asked := 0
	var bad []string
	for _, r := range n.facts.Reaches {
		asked++
		switch {
		case r.Error != "":
			bad = append(bad, fmt.Sprintf("%s: %s (%s): %s", n.Name, r.Pod, r.IP, r.Error))
		case r.Dev != "" && r.Dev == under.Name:
			bad = append(bad, fmt.Sprintf("%s: %s (%s): the route to it leaves the node by %s", n.Name, r.Pod, r.IP, r.Dev))
		}
	}
	if len(bad) > 0 {
		k.find(finding{code: NodeNotGateway, on: onNode(n.Name), evidence: bad}, "the node does not reach pods of its own through its own links")
	}
	if !n.known || asked > 0 {
		return
	}
	for _, p := range n.pods {
		if p.Status.PodIP != "" {
			k.find(finding{code: GatewayUnproven, on: onNode(n.Name)}, "nobody asked whether the node reaches its own pods")
			return
		}
	}
}

// checkForwarding is B3.5.
func (k *checker) checkForwarding() {
	for _, n := range k.nodes {
		for _, six := range []bool{false, true} {
			name := map[bool]string{false: "net.ipv4.ip_forward", true: "net.ipv6.conf.all.forwarding"}[six]
			if len(family(k.to.PodCIDRs, six)) == 0 {
				continue
			}
			if v, ok := n.facts.Sysctls[name]; ok && v != "1" {
				k.find(finding{code: ForwardingOff, on: onNode(n.Name), evidence: line("%s: %s = %s", n.Name, name, v), fix: fmt.Sprintf("sysctl -w %s=1, and in /etc/sysctl.d", name)},
					"the kernel does not forward %s", familyName(six))
			}
			k.checkForwardRules(n, six)
		}
		k.checkRPFilter(n)
	}
}

// checkForwardRules walks the node's rules as a packet from each side to the
// other does.
func (k *checker) checkForwardRules(n node, six bool) {
	backends := []string{"iptables-nft", "iptables-legacy"}
	if six {
		backends = []string{"ip6tables-nft", "ip6tables-legacy"}
	}
	sets := n.rulesets(backends...)
	for _, a := range family(k.from.PodCIDRs, six) {
		for _, b := range family(k.to.PodCIDRs, six) {
			for _, p := range []packet{{a, b, k.from.Links, k.to.Links}, {b, a, k.to.Links, k.from.Links}} {
				for _, backend := range sortedKeys(sets) {
					k.judgeForward(n, backend, sets[backend]["filter"], p, a, b)
				}
			}
		}
	}
	for _, chain := range nftDrops(n.facts.Firewall) {
		k.find(finding{code: ForwardUnclear, on: onNode(n.Name), evidence: line("%s: nftables %s drops what no rule of it accepts", n.Name, chain)},
			"whether the node's firewall forwards between pods of both sides cannot be told from here")
	}
}

func (k *checker) judgeForward(n node, backend string, t table, p packet, a, b netip.Prefix) {
	v, unclear := forward(t, p)
	if v != dropped {
		return
	}
	evidence := line("%s: %s: FORWARD, policy %s, from %s to %s", n.Name, backend, t.policies["FORWARD"], p.src, p.dst)
	if unclear {
		k.find(finding{code: ForwardUnclear, on: onNode(n.Name), evidence: evidence}, "whether the node's firewall forwards between pods of both sides cannot be told from here")
		return
	}
	k.find(finding{code: ForwardDrop, on: onNode(n.Name), evidence: evidence,
		fix: fmt.Sprintf("on every node: %[1]s -I FORWARD -s %[2]s -d %[3]s -j ACCEPT, and %[1]s -I FORWARD -s %[3]s -d %[2]s -j ACCEPT", backend, a, b)},
		"the node's firewall drops what pods of one side send to those of the other")
}

// checkRPFilter matters when sources are kept: what is sent through one overlay
// is then answered through the other.
func (k *checker) checkRPFilter(n node) {
	const all = "net.ipv4.conf.all.rp_filter"
	most, _ := strconv.Atoi(n.facts.Sysctls[all])
	var strict []string
	for _, l := range n.facts.Links {
		if !matchesAny(k.from.Links, l.Name) && !matchesAny(k.to.Links, l.Name) {
			continue
		}
		name := "net.ipv4.conf." + strings.ReplaceAll(l.Name, ".", "/") + ".rp_filter"
		v, ok := n.facts.Sysctls[name]
		if !ok {
			v = n.facts.Sysctls["net.ipv4.conf."+l.Name+".rp_filter"]
		}
		if own, _ := strconv.Atoi(v); max(most, own) == 1 {
			strict = append(strict, fmt.Sprintf("%s: %s checks strictly (all %d, its own %d)", n.Name, l.Name, most, own))
		}
	}
	if len(strict) == 0 {
		return
	}
	severity := Fact
	if k.opts.PreserveSource {
		severity = Warning
	}
	k.find(finding{code: RPFilterStrict, severity: severity, on: onNode(n.Name), evidence: strict}, "links of the two sides have rp_filter 1, which drops answers that come by another link than the one that the question left by")
}

// checkMTU is B3.8.
func (k *checker) checkMTU() {
	least, where := 0, ""
	sizes := map[int][]string{}
	for _, n := range k.nodes {
		if !n.known {
			continue
		}
		l, ok := n.underlay()
		if !ok {
			k.find(finding{code: UnderlayUnknown, on: onNode(n.Name), evidence: addressesOf(n)}, "the link that has the node's address is not among those that were read")
			continue
		}
		mtu, why := pathMTU(n, l)
		sizes[mtu] = append(sizes[mtu], why)
		if least == 0 || mtu < least {
			least, where = mtu, why
		}
	}
	if least == 0 {
		return
	}
	if len(sizes) > 1 {
		var evidence []string
		for _, n := range k.nodes {
			if l, ok := n.underlay(); ok {
				_, why := pathMTU(n, l)
				evidence = append(evidence, why)
			}
		}
		k.find(finding{code: UnderlayUneven, evidence: evidence, fix: fmt.Sprintf("raise the smaller ones, or set %s to %d", k.to.Setting("mtu"), least-k.to.Overhead)},
			"the nodes' links take packets of different sizes: only %d bytes pass everywhere", least)
	}
	k.checkPodMTU(least, where)
}

func addressesOf(n node) []string {
	var list []string
	for _, a := range n.Status.Addresses {
		list = append(list, fmt.Sprintf("%s: %s %s", n.Name, a.Type, a.Address))
	}
	return list
}

// pathMTU is what the node's link takes, or less where a path to another node
// was measured.
func pathMTU(n node, l facts.Link) (mtu int, why string) {
	mtu, why = l.MTU, fmt.Sprintf("%s: %s has MTU %d", n.Name, l.Name, l.MTU)
	for _, p := range n.facts.Paths {
		if p.Error == "" && p.MTU > 0 && p.MTU < mtu {
			mtu, why = p.MTU, fmt.Sprintf("%s: to %s only %d bytes pass", n.Name, p.Node, p.MTU)
		}
	}
	return mtu, why
}

func (k *checker) checkPodMTU(least int, where string) {
	limit := least - k.to.Overhead
	if k.to.MTU > limit {
		k.find(finding{code: MTUTooLarge, evidence: []string{where}, fix: fmt.Sprintf("set %s to %d, or raise the MTU of the nodes' links to %d", k.to.Setting("mtu"), limit, k.to.MTU+k.to.Overhead)},
			"pods of %s would send %d bytes, and its %s leaves %d of %d", k.to.Profile, k.to.MTU, orUnknown(k.to.Transport), limit, least)
	}
	old, fresh := effectiveMTU(k.from, least), effectiveMTU(k.to, least)
	if old == fresh {
		return
	}
	fix := fmt.Sprintf("set %s to %d until all pods have moved", k.to.Setting("mtu"), old)
	if old > fresh {
		fix = fmt.Sprintf("set %s to %d and restart the pods before the migration; TCP alone adapts", k.from.Setting("mtu"), fresh)
	}
	k.find(finding{code: MTUDiffers, evidence: line("%s %d, %s %d", k.from.Profile, old, k.to.Profile, fresh), fix: fix},
		"pods of the two sides have different MTUs: large packets of other protocols than TCP may be lost between them")
}

// effectiveMTU is that of a side's pods: as set, or what the transport leaves.
func effectiveMTU(s Side, underlay int) int {
	if s.MTU > 0 {
		return s.MTU
	}
	return underlay - s.Overhead
}

// checkAutodetection is B3.9, in both directions.
func (k *checker) checkAutodetection() {
	devices := k.underlays()
	for _, pair := range [][2]Side{{k.from, k.to}, {k.to, k.from}} {
		s, other := pair[0], pair[1]
		if len(s.Pinned) > 0 {
			continue
		}
		switch s.Autodetect {
		case "first-found":
			k.find(finding{code: AdoptsAddress, fix: s.set("devices", "kubernetes-internal-ip"), evidence: line("links of %s: %s", other.Profile, strings.Join(other.Links, " "))},
				"%s takes the first address that it finds as the node's, and may take one of a link of %s", s.Profile, other.Profile)
		case "devices":
			k.find(finding{code: AdoptsLinks, fix: s.set("devices", strings.Join(devices, ",")), evidence: line("links of %s: %s", other.Profile, strings.Join(other.Links, " "))},
				"%s attaches itself to every link that looks like the node's own, and may attach itself to those of %s", s.Profile, other.Profile)
		}
	}
}

// underlays are the names of the links that have the nodes' addresses.
func (k *checker) underlays() []string {
	var names []string
	for _, n := range k.nodes {
		if l, ok := n.underlay(); ok && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	if names == nil {
		return []string{"the link that has the node's address"}
	}
	return names
}

// checkInvalidDrop is B3.12: what goes one way through one overlay and back
// through another is invalid to conntrack where one of them goes around it.
func (k *checker) checkInvalidDrop() {
	severity := Fact
	if k.opts.PreserveSource {
		severity = Warning
	}
	for _, n := range k.nodes {
		if k.dropsInvalid(n) {
			k.find(finding{code: InvalidDrop, severity: severity, on: onNode(n.Name)}, "kube-proxy drops what conntrack calls invalid, before anybody else accepts it")
		}
	}
}

func (k *checker) dropsInvalid(n node) bool {
	for _, tables := range n.rulesets("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy") {
		for _, rule := range tables["filter"].rules["KUBE-FORWARD"] {
			if text := strings.Join(rule, " "); strings.Contains(text, "INVALID") && strings.Contains(text, "-j DROP") {
				return true
			}
		}
	}
	return false
}
