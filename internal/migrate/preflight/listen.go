package preflight

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"braid.dev/braid/internal/migrate/facts"
)

// checkTunnels is P4, and B3.6: what both sides want is compared, because what
// is up now may lose after a reboot.
func (k *checker) checkTunnels() {
	if k.to.Tunnel == nil {
		return
	}
	want := *k.to.Tunnel
	if k.from.Tunnel != nil {
		if c := TunnelConflict(*k.from.Tunnel, want); c != "" {
			k.find(finding{code: TunnelClash, evidence: []string{k.describeSide(k.from), k.describeSide(k.to)}, fix: k.otherPort()}, "%s", c)
		}
	}
	for _, n := range k.nodes {
		k.checkLinks(n, want)
		k.checkListeners(n, want)
		k.checkPaths(n, want)
	}
}

func (k *checker) describeSide(s Side) string {
	t := *s.Tunnel
	id := fmt.Sprintf("VNI %d", t.ID)
	if t.External {
		id = "external"
	}
	return fmt.Sprintf("%s: %s, %s, UDP port %d", s.Profile, t.Kind, id, t.Port)
}

// otherPort is the first one behind the target's that nobody on any node has.
func (k *checker) otherPort() string {
	taken := map[uint16]bool{}
	if k.from.Tunnel != nil {
		taken[k.from.Tunnel.Port] = true
	}
	for _, n := range k.nodes {
		for _, l := range n.facts.UDP {
			taken[l.Port] = true
		}
		for _, l := range n.facts.Links {
			if l.Tunnel != nil {
				taken[l.Tunnel.Port] = true
			}
		}
	}
	port := k.to.Tunnel.Port + 1
	for taken[port] || port == 0 {
		port++
	}
	return fmt.Sprintf("set %s to %d", k.to.Setting("tunnel-port"), port)
}

// checkLinks compares the target's tunnel with those on the node that are not
// the source's. One of its own may be from an earlier attempt.
func (k *checker) checkLinks(n node, want facts.Tunnel) {
	for _, l := range n.facts.Links {
		if l.Tunnel == nil || matchesAny(k.from.Links, l.Name) {
			continue
		}
		evidence := line("%s: %s is %s, VNI %d, UDP port %d", n.Name, l.Name, describe(*l.Tunnel), l.Tunnel.ID, l.Tunnel.Port)
		if matchesAny(k.to.Links, l.Name) {
			if !sameTunnel(*l.Tunnel, want) {
				k.find(finding{code: TunnelLeftover, on: onNode(n.Name), evidence: evidence, fix: "ip link del " + l.Name + " while " + k.to.Profile + " does not run"},
					"a link of %s is there with other settings than it is going to have; it is not corrected by itself", k.to.Profile)
			}
			continue
		}
		if c := TunnelConflict(*l.Tunnel, want); c != "" {
			k.find(finding{code: TunnelClash, on: onNode(n.Name), evidence: evidence, fix: k.otherPort()}, "%s", c)
		}
	}
}

func sameTunnel(have, want facts.Tunnel) bool {
	return have.Kind == want.Kind && have.Port == want.Port && have.External == want.External && (have.External || have.ID == want.ID)
}

func (k *checker) checkListeners(n node, want facts.Tunnel) {
	for _, l := range n.facts.UDP {
		if c := ListenerConflict(l, want); c != "" {
			k.find(finding{code: TunnelPortTaken, on: onNode(n.Name), evidence: line("%s: %s", n.Name, c), fix: k.otherPort()},
				"a process has the UDP port %d, which the tunnel of %s needs", want.Port, k.to.Profile)
		}
	}
}

// checkPaths judges the echoes between nodes at the target's port.
func (k *checker) checkPaths(n node, want facts.Tunnel) {
	if !n.known || len(k.nodes) < 2 {
		return
	}
	proven := map[string]bool{}
	var bad []string
	for _, p := range n.facts.Paths {
		if p.Port != want.Port {
			continue
		}
		proven[p.Node] = true
		if p.Error != "" {
			bad = append(bad, fmt.Sprintf("%s → %s UDP %d: %s", n.Name, p.Node, p.Port, p.Error))
		}
	}
	if len(bad) > 0 {
		k.find(finding{code: TunnelPortBlocked, on: onNode(n.Name), evidence: bad, fix: fmt.Sprintf("permit UDP port %d between all nodes, in the nodes' firewalls and in the network's", want.Port)},
			"UDP port %d does not pass between nodes", want.Port)
	}
	var missing []string
	for _, other := range k.nodes {
		if other.Name != n.Name && !proven[other.Name] && !isWindows(other.Node) {
			missing = append(missing, fmt.Sprintf("%s → %s", n.Name, other.Name))
		}
	}
	if len(missing) > 3 { // all pairs of a large cluster are too many to name
		missing = line("%s → %d of %d other nodes", n.Name, len(missing), len(k.nodes)-1)
	}
	if len(missing) > 0 && !n.installed {
		k.find(finding{code: TunnelPortUnproven, on: onNode(n.Name), evidence: missing}, "nobody asked whether UDP port %d passes between all nodes", want.Port)
	}
}

// checkKernel is the rest of B3.6.
func (k *checker) checkKernel() {
	for _, n := range k.nodes {
		if !n.known || isWindows(n.Node) {
			continue
		}
		for _, need := range k.to.Needs {
			works, tried := n.facts.Features[need]
			if n.hasTunnel(need) {
				works, tried = true, true
			}
			switch {
			case !tried:
				k.find(finding{code: FeatureUnknown, on: onNode(n.Name)}, "nobody tried whether the kernel can do %s, which %s needs", need, k.to.Profile)
			case !works:
				k.find(finding{code: FeatureMissing, on: onNode(n.Name), evidence: line("%s: kernel %s", n.Name, n.facts.Kernel), fix: k.instead(need)},
					"the kernel cannot do %s, which %s needs", need, k.to.Profile)
			}
		}
		if k.to.MinKernel != "" && n.facts.Kernel != "" && older(n.facts.Kernel, k.to.MinKernel) {
			k.find(finding{code: KernelTooOld, on: onNode(n.Name), evidence: line("%s: kernel %s", n.Name, n.facts.Kernel), fix: fmt.Sprintf("boot a kernel from %s on", k.to.MinKernel)},
				"the kernel is older than %s, which %s needs", k.to.MinKernel, k.to.Profile)
		}
	}
}

// hasTunnel tells whether a link of that kind is there, which proves that the
// kernel can make one.
func (n node) hasTunnel(kind string) bool {
	return slices.ContainsFunc(n.facts.Links, func(l facts.Link) bool { return l.Tunnel != nil && l.Tunnel.Kind == kind })
}

// instead names what the target can do without a feature.
func (k *checker) instead(need string) string {
	if set := k.to.set("tunnel-protocol", "vxlan"); need == "geneve" && set != "" {
		return "load the module (modprobe geneve), or " + set
	}
	return ""
}

// older compares the numbers at the beginning of two releases.
func older(release, than string) bool {
	a, b := numbers(release), numbers(than)
	return slices.Compare(a[:min(len(a), len(b))], b) < 0
}

func numbers(release string) []int {
	var list []int
	for _, part := range strings.Split(release, ".") {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		if list = append(list, n); len(digits) < len(part) {
			break
		}
	}
	return list
}

// checkPorts is B3.7.
func (k *checker) checkPorts() {
	for _, n := range k.nodes {
		if n.installed {
			continue
		}
		for _, want := range k.to.Ports {
			for _, l := range n.listeners(want.Protocol) {
				if l.Port != want.Port || l.Kernel {
					continue
				}
				fix := "stop what listens there"
				if want.Setting != "" {
					fix = fmt.Sprintf("set %s to another port, or %s", want.Setting, fix)
				}
				k.find(finding{code: AgentPortTaken, on: onNode(n.Name), evidence: line("%s: %s %s:%d", n.Name, want.Protocol, l.Addr, l.Port), fix: fix},
					"somebody listens on %s port %d, which %s needs (%s)", want.Protocol, want.Port, k.to.Profile, want.Name)
			}
		}
	}
}

func (n node) listeners(protocol string) []facts.Listener {
	if protocol == "udp" {
		return n.facts.UDP
	}
	return n.facts.TCP
}
