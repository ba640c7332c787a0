package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// RouteClaim is what a pod asks for with "default-route" (NPWG specification
// 1.3, section 4.1.2): that its default route leads through one network.
type RouteClaim struct {
	// Gateways holds at most one address of each family. The network gets the
	// default route of these families; or, when it is empty, of every family in
	// which the network has a gateway of its own, through that one.
	Gateways []netip.Addr `json:"gateways,omitempty"`
}

// Covers tells whether the default route of a family is asked for.
func (c *RouteClaim) Covers(is6 bool) bool {
	if c == nil {
		return false
	}
	_, named := c.Gateway(is6)
	return named || len(c.Gateways) == 0
}

// Gateway is the one of a family, if it is named.
func (c *RouteClaim) Gateway(is6 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(c.Gateways, func(a netip.Addr) bool { return a.Is6() == is6 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return c.Gateways[i], true
}

func readDefaultRoute(s *Selection, value json.RawMessage) error {
	list, err := elements(value, 0)
	if err != nil {
		return err
	}
	s.DefaultRoute = &RouteClaim{}
	for i, e := range list {
		written, err := stringOf(e)
		if err != nil {
			return fmt.Errorf("element %d: %w", i+1, err)
		}
		if strings.Contains(written, "/") {
			return fmt.Errorf("element %d, %s: a gateway has no prefix length", i+1, quote(written))
		}
		_, gw, err := address(written)
		if err != nil {
			return fmt.Errorf("element %d, %s: %w", i+1, quote(written), err)
		}
		if _, second := s.DefaultRoute.Gateway(gw.Is6()); second {
			return fmt.Errorf("element %d, %s: a second gateway of the same family; a pod has one default route of each", i+1, quote(written))
		}
		s.DefaultRoute.Gateways = append(s.DefaultRoute.Gateways, gw)
	}
	return nil
}

// decideRoutes decides through which attachment the default route leads, as far
// as that is known beforehand: what a network brings is known for sure when it
// is attached, and package attach then goes by the same order.
func decideRoutes(list []Attachment, said [][]routed) error {
	owner := -1
	for i, a := range list {
		switch {
		case a.Claim == nil:
		case owner >= 0:
			return invalid("default-route: asked for on %s (%s) and on %s (%s); a pod can ask for it on one network", list[owner].IfName, list[owner].Network, a.IfName, a.Network)
		default:
			owner = i
		}
	}
	if owner >= 0 {
		list[owner].becauseOfClaim()
		if err := list[owner].gatewayIsOnLink(said[owner]); err != nil {
			return about(list[owner].Network, err)
		}
	} else {
		owner = foreseeOwner(list, said)
	}
	list[owner].DefaultRoute = true
	for i := range list {
		how, brings := list[i].bringsDefault(said[i])
		switch {
		case i == owner:
		case list[owner].Claim != nil && (brings || list[i].Default):
			list[i].because("default route: given up, as the pod asks for it on %s%s", list[owner].IfName, list[owner].Claim.families())
		case brings:
			list[i].because("default route: brought by the network (%s), not kept, as %s comes first", how, list[owner].IfName)
		}
	}
	return nil
}

// foreseeOwner is the first attachment that brings a default route: the default
// network, unless its configuration is known to bring none.
func foreseeOwner(list []Attachment, said [][]routed) int {
	if _, brings := list[0].bringsDefault(said[0]); brings || !list[0].tellsAll() {
		return 0
	}
	for i := range list {
		if how, brings := list[i].bringsDefault(said[i]); brings {
			list[i].because("default route: brought by the network (%s), and the default network brings none", how)
			return i
		}
	}
	return 0
}

func (a *Attachment) becauseOfClaim() {
	if len(a.Claim.Gateways) == 0 {
		a.because("default route: the pod's choice, by the gateway of the network")
		return
	}
	var via []string
	for _, gw := range a.Claim.Gateways {
		via = append(via, gw.String())
	}
	a.because("default route: the pod's choice, by %s", strings.Join(via, " and "))
}

// families limits a sentence to the families that are asked for.
func (c *RouteClaim) families() string {
	switch v4, v6 := c.Covers(false), c.Covers(true); {
	case v4 && v6:
		return ""
	case v6:
		return " (IPv6 only)"
	default:
		return " (IPv4 only)"
	}
}

// gatewayIsOnLink refuses a gateway that cannot be reached through the
// interface, when all that can be known of its addresses is known.
func (a *Attachment) gatewayIsOnLink(said []routed) error {
	for _, gw := range a.Claim.Gateways {
		var subnets []netip.Prefix
		for _, ip := range a.IPs {
			p, err := netip.ParsePrefix(ip)
			if err != nil {
				return nil // the network decides the prefix length
			}
			if p.Addr().Is6() == gw.Is6() {
				subnets = append(subnets, p)
			}
		}
		routes := len(a.destinations(said).Prefixes) > len(a.IPs) // which may lead there
		if len(subnets) > 0 && !routes && !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(gw) }) {
			return fmt.Errorf("default-route: gateway %s is in no subnet of %s (%s)", gw, a.IfName, strings.Join(a.IPs, ", "))
		}
	}
	return nil
}

// routed is what a plugin's configuration says of addresses and routes, in the
// words of the reference plugins.
type routed struct {
	IsDefaultGateway bool `json:"isDefaultGateway"`
	// Delegate is flannel's.
	Delegate struct {
		IsDefaultGateway bool `json:"isDefaultGateway"`
	} `json:"delegate"`
	IPAM struct {
		Addresses []struct {
			Address string `json:"address"`
		} `json:"addresses"`
		Subnet string `json:"subnet"`
		Ranges [][]struct {
			Subnet string `json:"subnet"`
		} `json:"ranges"`
		Routes []struct {
			Dst string `json:"dst"`
		} `json:"routes"`
	} `json:"ipam"`
}

// routed reads the plugins' configurations, each once. What cannot be read says
// nothing; its plugin will refuse it.
func (a *Attachment) routed() []routed {
	list := make([]routed, len(a.Config.Plugins))
	for i, p := range a.Config.Plugins {
		if json.Unmarshal(p.Conf, &list[i]) != nil {
			list[i] = routed{}
		}
	}
	return list
}

// ownTable are plugins that move the routes of the interface to a table of its
// own, where a default route is nobody else's business.
var ownTable = []string{"sbr", "vrf"}

// HasOwnTable tells whether the routes of the attachment are kept apart from
// those of the pod.
func (a Attachment) HasOwnTable() bool {
	return slices.ContainsFunc(a.Config.Plugins, func(p Plugin) bool { return slices.Contains(ownTable, p.Type) })
}

// bringsDefault tells whether and how the configuration brings a default route
// of the pod.
func (a *Attachment) bringsDefault(said []routed) (how string, brings bool) {
	if a.HasOwnTable() {
		return "", false
	}
	return configuredDefault(said)
}

// MayMakeDefault tells whether attaching may make a default route in the pod,
// if only until a plugin with a table of its own moves it there. It is false
// where the configuration is known to say everything about routes, and has none.
func (a Attachment) MayMakeDefault() bool {
	_, makes := configuredDefault(a.routed())
	return makes || !a.tellsAll()
}

// configuredDefault tells whether and how configurations ask for a default route.
func configuredDefault(said []routed) (how string, asked bool) {
	for _, r := range said {
		if r.IsDefaultGateway || r.Delegate.IsDefaultGateway {
			return "isDefaultGateway", true
		}
		for _, route := range r.IPAM.Routes {
			if p, err := netip.ParsePrefix(route.Dst); err == nil && p.Bits() == 0 {
				return "ipam route " + route.Dst, true
			}
		}
	}
	return "", false
}

// tellsAll tells whether the configuration says everything about routes: those
// of the reference plugins do.
func (a *Attachment) tellsAll() bool {
	return !slices.ContainsFunc(a.Config.Plugins, func(p Plugin) bool {
		return !slices.Contains(openTypes, p.Type) || !slices.Contains([]string{"", static, hostLocal}, p.IPAM)
	})
}

// openTypes are plugins that make no route that is not in their configuration.
var openTypes = []string{
	"bridge", "macvlan", "ipvlan", "vlan", "ptp", "host-device", "tap", "dummy", "loopback",
	"tuning", "bandwidth", "portmap", "firewall", "sbr", "vrf",
}

// destinations are those that the configuration is known to have routes to.
func (a *Attachment) destinations(said []routed) Destinations {
	texts := slices.Clone(a.IPs)
	for _, r := range said {
		texts = append(texts, r.IPAM.Subnet)
		for _, set := range r.IPAM.Ranges {
			for _, part := range set {
				texts = append(texts, part.Subnet)
			}
		}
		for _, route := range r.IPAM.Routes {
			texts = append(texts, route.Dst)
		}
	}
	d := Destinations{IfName: a.IfName}
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			d.Add(p)
		}
	}
	return d
}

// explainOverlaps says of attachments whose routes overlap where packets go.
func explainOverlaps(list []Attachment, said [][]routed) {
	var before []Destinations
	for i := range list {
		if list[i].HasOwnTable() {
			continue
		}
		d := list[i].destinations(said[i])
		for _, sentence := range d.Overlaps(before) {
			list[i].because("%s", sentence)
		}
		before = append(before, d)
	}
}

// Destinations are where the routes of one attachment lead to, default routes
// excepted.
type Destinations struct {
	IfName   string
	Prefixes []netip.Prefix
}

// maxCompared is how many destinations of a pod's networks are compared with
// each other, which takes time with the third power of their number.
const maxCompared = 128

// Add adds a destination unless it is there, or is a default route, or there
// are too many to be compared already.
func (d *Destinations) Add(p netip.Prefix) {
	if p = p.Masked(); p.Bits() > 0 && len(d.Prefixes) <= maxCompared && !slices.Contains(d.Prefixes, p) {
		d.Prefixes = append(d.Prefixes, p)
	}
}

// Overlaps says for a person, one sentence each, which way packets go to
// destinations that d shares with attachments before it. The kernel takes the
// longest prefix, and of equal ones the first.
func (d Destinations) Overlaps(before []Destinations) []string {
	var sentences []string
	say := func(format string, args ...any) { sentences = append(sentences, fmt.Sprintf(format, args...)) }
	all := len(d.Prefixes)
	for _, b := range before {
		all += len(b.Prefixes)
	}
	if all > maxCompared {
		say("routes: too many to compare those of %s with those of the other networks", d.IfName)
		return sentences
	}
	for _, p := range d.Prefixes {
		if first := slices.IndexFunc(before, func(b Destinations) bool { return slices.Contains(b.Prefixes, p) }); first >= 0 {
			other := before[first].IfName
			say("%s is reached through %s too: packets to it leave by %s, which comes first", p, other, other)
			continue
		}
		var around netip.Prefix
		var aroundOf string
		for _, b := range before {
			for _, q := range b.within(p) {
				say("%s covers %s of %s: packets to the rest of it leave by %s", p, q, b.IfName, d.IfName)
			}
			for _, q := range b.Prefixes {
				if q.Overlaps(p) && q.Bits() < p.Bits() && (!around.IsValid() || q.Bits() > around.Bits()) {
					around, aroundOf = q, b.IfName
				}
			}
		}
		if around.IsValid() {
			say("%s is a part of %s of %s: packets to it leave by %s", p, around, aroundOf, d.IfName)
		}
	}
	return sentences
}

// within are the destinations in p, less those that are in another one of them.
func (d Destinations) within(p netip.Prefix) []netip.Prefix {
	inside := func(outer, inner netip.Prefix) bool { return outer.Overlaps(inner) && outer.Bits() < inner.Bits() }
	var list []netip.Prefix
	for _, q := range d.Prefixes {
		if inside(p, q) && !slices.ContainsFunc(d.Prefixes, func(o netip.Prefix) bool { return inside(p, o) && inside(o, q) }) {
			list = append(list, q)
		}
	}
	return list
}
