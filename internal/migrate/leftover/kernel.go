package leftover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/nft"
	"braid.dev/braid/internal/rtnl"
)

// kernel is what the kernel has of links and routing.
type kernel struct {
	links    []rtnl.Link
	names    map[int]string
	routes   []rtnl.AnyRoute
	rules    []rtnl.AnyRule
	programs []rtnl.Program
	// addrs are the bridges', by index.
	addrs map[int][]netip.Addr
	// filters counts, by link, those of a clsact that are no eBPF programs.
	filters map[int]int
}

func readKernel(h *rtnl.Handle) (kernel, error) {
	k := kernel{names: map[int]string{}, addrs: map[int][]netip.Addr{}, filters: map[int]int{}}
	var errs []error
	var err error
	if k.links, err = h.Links(); err != nil {
		return k, err
	}
	for _, l := range k.links {
		k.names[l.Index] = l.Name
		programs, others, err := h.Programs(l.Index)
		if err != nil && !errors.Is(err, rtnl.ErrNotFound) { // it is gone meanwhile
			errs = append(errs, err)
		}
		k.programs = append(k.programs, programs...)
		if l.Kind == "bridge" {
			addrs, err := h.Addrs(l.Index)
			if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
				errs = append(errs, err)
			}
			for _, a := range addrs {
				k.addrs[l.Index] = append(k.addrs[l.Index], a.Addr())
			}
		}
		k.filters[l.Index] = others
	}
	k.routes, err = h.EveryRoute()
	errs = append(errs, err)
	k.rules, err = h.EveryRule()
	return k, errors.Join(append(errs, err)...)
}

// claimed are the indexes of the network's own links.
func (k kernel) claimed(l spec.Spec) map[int]bool {
	own := map[int]bool{}
	for _, link := range k.links {
		for _, p := range l.Links {
			ok, _ := path.Match(p.Name, link.Name)
			if ok && (len(p.Kinds) == 0 || slices.Contains(p.Kinds, link.Kind)) {
				own[link.Index] = true
			}
		}
	}
	return own
}

// ownRoute reports whether a route that is not through an own link is the
// network's.
func ownRoute(l spec.Spec, r rtnl.AnyRoute) bool {
	for _, p := range l.Routes {
		switch {
		case p == (spec.RoutePattern{}):
		case p.Within && !within(l.PodCIDRs, r.Dst):
		case p.Gateway && !r.Via.IsValid():
		case p.Type != "" && p.Type != r.Type:
		case p.Table != 0 && p.Table != r.Table:
		case p.Table == 0 && r.Table != 0 && r.Table != rtnl.MainTable: // others' tables are others'
		case p.Protocol != 0 && p.Protocol != r.Protocol:
		default:
			return true
		}
	}
	return false
}

func ownRule(l spec.Spec, r rtnl.AnyRule) bool {
	if movedLocal(l, r) {
		return true
	}
	for _, p := range l.Rules {
		if p.Table == r.Table && (p.Priority == 0 || p.Priority == r.Priority) {
			return true
		}
	}
	return false
}

// movedLocal says that r is the rule of the local table where the CNI put it.
func movedLocal(l spec.Spec, r rtnl.AnyRule) bool {
	return l.LocalRule != 0 && r.Priority == l.LocalRule && r.Table == rtnl.LocalTable && r.Plain
}

func (k kernel) find(l spec.Spec, use InUse, v living) []finding {
	own, theirs := k.claimed(l), k.claimed(use.Other)
	found := k.findPrograms(l, v, own)
	for _, link := range k.links {
		if !own[link.Index] {
			continue
		}
		reason := firstOf(k.portsOf(link), k.strangerOn(link, l), v.network())
		if theirs[link.Index] && !k.onlyOn(link, l, use.Other) {
			reason = both(use.Other)
		}
		found = append(found, finding{kind: "link", name: link.Name, inUse: reason, stage: inLinks,
			remove: func(_ context.Context, h *hands) error { return absent(h.net.Del(link.Index)) }})
	}
	for _, r := range k.routes {
		if own[r.Link] || theirs[r.Link] || !ownRoute(l, r) {
			continue
		}
		reason := v.network()
		if ownRoute(use.Other, r) {
			reason = both(use.Other)
		}
		found = append(found, finding{kind: "route", name: r.Text(k.names), inUse: reason, stage: inRoutes,
			remove: func(_ context.Context, h *hands) error { return absent(h.net.DelAnyRoute(r)) }})
	}
	for _, r := range k.rules {
		if !ownRule(l, r) {
			continue
		}
		reason := v.network()
		if ownRule(use.Other, r) {
			reason = both(use.Other)
		}
		found = append(found, finding{kind: "rule", name: "ip " + r.String(), inUse: reason, stage: inRules,
			remove: func(_ context.Context, h *hands) error { return removeRule(h.net, r, movedLocal(l, r)) }})
	}
	return found
}

// onlyOn tells whose a bridge is that two networks call the same, cni0 as a rule:
// it has an address of the one and none of the other.
func (k kernel) onlyOn(link rtnl.Link, l, other spec.Spec) bool {
	has := func(cidrs []netip.Prefix) bool {
		return slices.ContainsFunc(k.addrs[link.Index], func(a netip.Addr) bool { return contains(cidrs, a) })
	}
	return has(l.PodCIDRs) && !has(other.PodCIDRs)
}

// removeRule removes a rule. That of the local table is put where it belongs
// before: without one a node does not even reach itself.
func removeRule(h *rtnl.Handle, r rtnl.AnyRule, local bool) error {
	if local {
		if err := h.AddLocalRule(r.IPv6); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
	}
	return absent(h.DelAnyRule(r))
}

// portsOf says who is plugged into a bridge. The kernel removes a pod's port
// with the pod's namespace.
func (k kernel) portsOf(bridge rtnl.Link) string {
	var ports []string
	for _, l := range k.links {
		if l.Master == bridge.Index {
			ports = append(ports, l.Name)
		}
	}
	if len(ports) == 0 {
		return ""
	}
	slices.Sort(ports)
	return "plugged into it: " + strings.Join(ports, ", ")
}

// strangerOn says which route through the link would be lost with it and is not
// the network's: one to elsewhere that somebody made.
func (k kernel) strangerOn(link rtnl.Link, l spec.Spec) string {
	const madeByKernel = 2 // RTPROT_KERNEL, of the link's own addresses
	for _, r := range k.routes {
		if r.Link != link.Index || r.Protocol == madeByKernel || len(l.PodCIDRs) == 0 || ownRoute(l, r) {
			continue
		}
		if !overlaps(l, r) {
			return "somebody's route leads through it: " + r.Text(k.names)
		}
	}
	return ""
}

func overlaps(l spec.Spec, r rtnl.AnyRoute) bool {
	return slices.ContainsFunc(l.PodCIDRs, r.Dst.Overlaps) && r.Dst.Bits() > 0
}

// findPrograms lists the programs on links of others. When a link's clsact has
// nothing else, it goes as a whole.
func (k kernel) findPrograms(l spec.Spec, v living, own map[int]bool) []finding {
	var found []finding
	for _, link := range k.links {
		if own[link.Index] {
			continue
		}
		var ours []rtnl.Program
		all := 0
		for _, p := range k.programs {
			if p.Link == link.Index {
				all++
				if matchAny(l.Programs, p.Name) {
					ours = append(ours, p)
				}
			}
		}
		whole := len(ours) == all && k.filters[link.Index] == 0
		for _, p := range ours {
			found = append(found, finding{kind: "program", name: link.Name + " " + p.String(), inUse: v.network(), stage: inPrograms,
				remove: func(_ context.Context, h *hands) error {
					if whole {
						return absent(h.net.DelClsact(link.Index))
					}
					return absent(h.net.DelProgram(p))
				}})
		}
	}
	return found
}

// absent makes what is gone already a success.
func absent(err error) error {
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	return err
}

// others writes down what is neither network's. Links that a pod's namespace has
// the other end of come and go with pods.
func (k kernel) others(l, other spec.Spec, s *snapshot) {
	own, theirs := k.claimed(l), k.claimed(other)
	ofPod := map[int]bool{}
	for _, link := range k.links {
		ofPod[link.Index] = own[link.Index] || theirs[link.Index] || link.Kind == "veth" && link.ParentNSID >= 0
		if !ofPod[link.Index] {
			s.addOnly("link", fmt.Sprintf("%s %s up %t mtu %d mac %s master %s", link.Name, link.Kind, link.Up, link.MTU, link.MAC, k.names[link.Master]))
		}
	}
	for _, r := range k.routes {
		if !ofPod[r.Link] && !ownRoute(l, r) && !ownRoute(other, r) {
			s.addOnly("route", r.Text(k.names))
		}
	}
	for _, r := range k.rules {
		added := r.Plain && r.Priority == 0 && r.Table == rtnl.LocalTable && l.LocalRule != 0
		if !ownRule(l, r) && !ownRule(other, r) && !added {
			s.add("ip rule", r.String())
		}
	}
	for _, p := range k.programs {
		if !ofPod[p.Link] && !matchAny(l.Programs, p.Name) && !matchAny(other.Programs, p.Name) {
			s.addOnly("program", k.names[p.Link]+" "+p.String())
		}
	}
}

// findTables lists the network's own tables of nftables.
func findTables(tables []nft.Table, l spec.Spec, use InUse, v living) []finding {
	var found []finding
	for _, t := range tables {
		id := spec.Table{Family: t.Family, Name: t.Name}
		if !slices.Contains(l.Tables, id) {
			continue
		}
		reason := v.network()
		if slices.Contains(use.Other.Tables, id) {
			reason = both(use.Other)
		}
		found = append(found, finding{kind: "table", name: t.Family + " " + t.Name, inUse: reason, stage: inTables,
			remove: func(_ context.Context, h *hands) error { return nft.DeleteTable(h.node.NS, t.Family, t.Name) }})
	}
	return found
}

// findMarked lists the rules that the reference plugins keep in tables of
// nftables of their own, for all networks together. portmap writes only the
// container into a rule, so that the addresses in it have to say the network.
func findMarked(tables []nft.Table, l spec.Spec, use InUse, v living) []finding {
	var found []finding
	for _, t := range tables {
		for _, m := range t.Marked {
			id, ours := markedFor(m, l)
			if !ours {
				continue
			}
			reason := v.containerLike(id)
			if _, theirs := markedFor(m, use.Other); theirs {
				reason = both(use.Other)
			}
			found = append(found, finding{
				kind: "rule", name: fmt.Sprintf("nftables %s %s %s, for %s", m.Family, m.Table, m.Chain, m.Comment), inUse: reason, stage: inFirewall,
				remove: func(_ context.Context, h *hands) error { return nft.DeleteMarked(h.node.NS, m) },
			})
		}
		// The table itself goes when the rules of all containers are gone.
		empty := len(t.Marked) == 0 && (t.Name == portmapTable && l.Portmap && !use.Other.Portmap && (t.Family == "ip" || t.Family == "ip6") ||
			t.Name == masqueradeTable && l.Masquerade && !use.Other.Masquerade && t.Family == "inet")
		if empty {
			found = append(found, finding{kind: "table", name: t.Family + " " + t.Name, inUse: v.network(), stage: inTables,
				remove: func(_ context.Context, h *hands) error { return nft.DeleteTable(h.node.NS, t.Family, t.Name) }})
		}
	}
	return found
}

// masqueradeComment is what the reference plugins write into a rule: a digest,
// the network, the interface and the container, cut off where it is too long.
var masqueradeComment = regexp.MustCompile(`^[^,]*, net: (.*), if: [^,]*, id: ([^,]*)$`)

// markedFor is the container that a rule is for, if it is of the network.
func markedFor(m nft.MarkedRule, l spec.Spec) (id string, ours bool) {
	switch m.Table {
	case portmapTable:
		ours = l.Portmap && slices.ContainsFunc(m.Addrs, func(a netip.Addr) bool { return contains(l.PodCIDRs, a) })
		return m.Comment, ours
	case masqueradeTable:
		found := masqueradeComment.FindStringSubmatch(m.Comment)
		if found == nil || !l.Masquerade || found[1] != l.Network {
			return "", false
		}
		return found[2], true
	}
	return "", false
}

// ofIptables reports whether a table is one that iptables-nft keeps.
func ofIptables(t nft.Table) bool {
	return (t.Family == "ip" || t.Family == "ip6") && slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, t.Name)
}

// othersTables writes down the tables that are neither network's. Those of
// iptables are left to it, if it is there to read them.
func othersTables(tables []nft.Table, l, other spec.Spec, iptables bool, s *snapshot) {
	for _, t := range tables {
		id := spec.Table{Family: t.Family, Name: t.Name}
		switch {
		case slices.Contains(l.Tables, id), slices.Contains(other.Tables, id):
		case ofIptables(t) && iptables:
		case t.Name == "kube-proxy":
		case t.Name == portmapTable && (l.Portmap || other.Portmap), t.Name == masqueradeTable && (l.Masquerade || other.Masquerade):
			for _, m := range t.Marked {
				_, ours := markedFor(m, l)
				_, theirs := markedFor(m, other)
				if !ours && !theirs {
					s.addOnly("nftables "+t.Family+" "+t.Name, m.Chain+" "+m.Comment)
				}
			}
		default:
			s.add("nftables", fmt.Sprintf("table %s %s, %d rules, %s", t.Family, t.Name, t.Rules, t.Digest[:12]))
		}
	}
}

// portmapTable is where the plugin portmap keeps its rules in nftables, those
// of all networks together.
const portmapTable = "cni_hostport"

// masqueradeTable is where masquerading has its rules in nftables.
const masqueradeTable = "cni_plugins_masquerade"
