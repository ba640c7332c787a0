package leftover

import (
	"fmt"
	"net/netip"
	"strings"

	"braid.dev/braid/internal/migrate/leftover/spec"
)

// living is who must not be harmed, in a form that can be asked.
type living struct {
	// addrs and containers are names of pods.
	addrs      map[netip.Addr]string
	containers map[string]string
	agents     []string
	cidrs      []netip.Prefix
}

func livingOf(l spec.Spec, use InUse) living {
	v := living{addrs: map[netip.Addr]string{}, containers: map[string]string{}, agents: use.Agents, cidrs: l.PodCIDRs}
	for _, s := range use.Sandboxes {
		if s.HostNetwork || !s.Ready {
			continue
		}
		name := s.Namespace + "/" + s.Pod
		v.containers[s.ID] = name
		for _, ip := range s.IPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				v.addrs[a.Unmap()] = name
			}
		}
	}
	return v
}

// agent says that somebody would make again what is removed.
func (v living) agent() string {
	if len(v.agents) == 0 {
		return ""
	}
	return v.agents[0] + " still runs here and would make it again"
}

// network says why what all pods of the network stand on must stay.
func (v living) network() string {
	if reason := v.agent(); reason != "" {
		return reason
	}
	var first netip.Addr
	n := 0
	for a := range v.addrs {
		if contains(v.cidrs, a) {
			if n++; n == 1 || a.Less(first) {
				first = a
			}
		}
	}
	if n == 0 {
		return ""
	}
	more := ""
	if n > 1 {
		more = fmt.Sprintf(", and %d more", n-1)
	}
	return fmt.Sprintf("%s (%s) is on this network%s", v.addrs[first], first, more)
}

// container says why what one container has must stay.
func (v living) container(id string) string {
	if name, ok := v.containers[id]; ok {
		return name + " lives"
	}
	return v.agent()
}

// containerLike is container for an identity that may be cut off.
func (v living) containerLike(id string) string {
	for living := range v.containers {
		if id == "" || strings.HasPrefix(living, id) {
			return v.container(living)
		}
	}
	return v.agent()
}

// addr says why what one address has must stay.
func (v living) addr(a netip.Addr) string {
	if name, ok := v.addrs[a]; ok {
		return fmt.Sprintf("%s has %s", name, a)
	}
	return v.agent()
}

func contains(cidrs []netip.Prefix, a netip.Addr) bool {
	for _, p := range cidrs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// within reports whether p is a part of one of the CIDRs, and not all of it.
func within(cidrs []netip.Prefix, p netip.Prefix) bool {
	for _, c := range cidrs {
		if c.Overlaps(p) && p.Bits() > c.Bits() {
			return true
		}
	}
	return false
}

// both is why something stays that the other network would leave too.
func both(other spec.Spec) string {
	return "it is " + strings.TrimSpace(other.Profile+" "+other.Network) + "'s too"
}
