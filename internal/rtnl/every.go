package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LocalTable is the routing table of the node's own addresses.
const LocalTable = unix.RT_TABLE_LOCAL

// AnyRoute is a route as the kernel has it, whatever it does. It can be removed,
// and not made.
type AnyRoute struct {
	Dst netip.Prefix // 0.0.0.0/0 or ::/0 for the default route
	// Type is unicast, local, blackhole, unreachable, prohibit or throw.
	Type string
	// Via and Link are those of the first next hop; Link is 0 for a dead end.
	Via  netip.Addr
	Link int
	// Table is MainTable for routes that no rule is needed for.
	Table int
	// Protocol is who made the route, as in rtnetlink(7): 2 is the kernel, 3 a
	// person, or a program that does not say; 12 is BIRD.
	Protocol int

	native netlink.Route
}

var routeTypes = map[int]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable",
	unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw",
}

// EveryRoute returns the routes of all tables but the local one, both families,
// sorted by their text, without those that the kernel derives from IPv6's
// link-local addresses. It includes dead ends, and a route of several next hops
// is one route.
func (h *Handle) EveryRoute() ([]AnyRoute, error) {
	list := func(lib *netlink.Handle) ([]netlink.Route, error) {
		return lib.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	}
	all, err := dump(h, list)
	if err != nil {
		return nil, failed(err, "list routes")
	}
	var routes []AnyRoute
	for _, n := range all {
		kind, ok := routeTypes[n.Type]
		r := AnyRoute{
			Dst: prefixOf(n.Dst), Type: kind, Via: addrOf(n.Gw), Link: n.LinkIndex,
			Table: n.Table, Protocol: int(n.Protocol), native: n,
		}
		if len(n.MultiPath) > 0 {
			r.Via, r.Link = addrOf(n.MultiPath[0].Gw), n.MultiPath[0].LinkIndex
		}
		derived := r.Dst.Addr().Is6() && (r.Dst.Addr().IsLinkLocalUnicast() || r.Dst.Addr().IsMulticast())
		if ok && !derived && n.Table != LocalTable {
			routes = append(routes, r)
		}
	}
	slices.SortStableFunc(routes, func(a, b AnyRoute) int { return cmp.Compare(a.Text(nil), b.Text(nil)) })
	return routes, nil
}

// Text prints the route as iproute2 does, with the links' names by index.
func (r AnyRoute) Text(names map[int]string) string {
	words := []string{r.Dst.String()}
	if r.Type != "unicast" {
		words = []string{r.Type, r.Dst.String()}
	}
	hops := r.native.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{Gw: r.native.Gw, LinkIndex: r.native.LinkIndex}}
	}
	for _, hop := range hops {
		if via := addrOf(hop.Gw); via.IsValid() {
			words = append(words, "via", via.String())
		}
		if hop.LinkIndex != 0 {
			words = append(words, "dev", cmp.Or(names[hop.LinkIndex], fmt.Sprint(hop.LinkIndex)))
		}
	}
	if src := addrOf(r.native.Src); src.IsValid() {
		words = append(words, "src", src.String())
	}
	if r.Table != 0 && r.Table != MainTable {
		words = append(words, "table", fmt.Sprint(r.Table))
	}
	if r.native.Priority != 0 {
		words = append(words, "metric", fmt.Sprint(r.native.Priority))
	}
	return strings.Join(append(words, "proto", fmt.Sprint(r.Protocol)), " ")
}

// DelAnyRoute removes the route. One that is not there is ErrNotFound.
func (h *Handle) DelAnyRoute(r AnyRoute) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.RouteDel(&r.native) }), "remove route %s", r.Text(nil))
}

// AnyRule is a rule as the kernel has it, whatever it looks at. It can be
// removed, and not made.
type AnyRule struct {
	IPv6     bool
	Priority int
	Table    int
	// Mark and Mask are what it compares a packet's mark with, 0 if nothing.
	Mark, Mask uint32
	// Plain says that it looks at nothing, and so is for all packets.
	Plain bool

	native netlink.Rule
}

// EveryRule returns all rules, first IPv4's, each in order.
func (h *Handle) EveryRule() ([]AnyRule, error) {
	var rules []AnyRule
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := dump(h, func(lib *netlink.Handle) ([]netlink.Rule, error) { return lib.RuleList(family) })
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, failed(err, "list rules")
		}
		for _, n := range all {
			n.Family = family
			n.Priority = max(n.Priority, 0) // the library says -1 where the kernel says nothing
			r := AnyRule{IPv6: family == unix.AF_INET6, Priority: n.Priority, Table: n.Table, Mark: n.Mark, native: n}
			if n.Mask != nil {
				r.Mask = *n.Mask
			}
			r.Plain = n.Src == nil && !further(n)
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// String prints the rule as iproute2 does, with its priority in front.
func (r AnyRule) String() string {
	n := r.native
	words := []string{fmt.Sprintf("%d:", r.Priority)}
	if r.IPv6 {
		words = []string{"-6", words[0]}
	}
	if n.Invert {
		words = append(words, "not")
	}
	words = append(words, "from", network(n.Src))
	if n.Dst != nil {
		words = append(words, "to", network(n.Dst))
	}
	if r.Mark != 0 || r.Mask != 0 {
		words = append(words, fmt.Sprintf("fwmark %#x/%#x", r.Mark, r.Mask))
	}
	for _, dev := range []struct{ word, name string }{{"iif", n.IifName}, {"oif", n.OifName}} {
		if dev.name != "" {
			words = append(words, dev.word, dev.name)
		}
	}
	return strings.Join(append(words, "lookup", fmt.Sprint(r.Table)), " ")
}

// DelAnyRule removes the rule. One that is not there is ErrNotFound.
func (h *Handle) DelAnyRule(r AnyRule) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.RuleDel(&r.native) }), "remove rule %s", r)
}

// AddLocalRule puts the rule that looks up the node's own addresses to the
// place where every namespace has it at first: before all others. It is
// ErrExists when it is there.
func (h *Handle) AddLocalRule(ipv6 bool) error {
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Family = 0, LocalTable, unix.AF_INET
	rule.Protocol = unix.RTPROT_KERNEL // as the first one is: to the kernel it is another rule otherwise
	if ipv6 {
		rule.Family = unix.AF_INET6
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.RuleAdd(rule) }), "add rule 0: from all lookup local")
}
