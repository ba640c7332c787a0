package sbr

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// firstTable is where the search for a free routing table begins.
const firstTable = 100

// ownRoute is the protocol number of a default route that is made here, and not
// moved from the main table: it does not go there on Detach. (RTPROT_STATIC;
// what CNI plugins add has RTPROT_BOOT.)
const ownRoute = unix.RTPROT_STATIC

// conf is the configuration. The README says what each key means.
type conf struct {
	Name  string `json:"name"`
	Table *int   `json:"table"`
}

func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read sbr configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	if c.Table != nil && (*c.Table < 1 || int64(*c.Table) > 1<<32-1) {
		return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("table %d is not between 1 and 4294967295", *c.Table), "")
	}
	return c, nil
}

// source is an address of the interface with its gateway, if it has one.
type source struct {
	netip.Prefix
	gateway netip.Addr
}

// rule sends what has the address as its source to a table.
func (s source) rule(table int) rtnl.Rule {
	return rtnl.Rule{From: netip.PrefixFrom(s.Addr(), s.Addr().BitLen()), Table: table}
}

// sources are the addresses of the result that belong to the interface. One
// that belongs to no interface is taken for its own, as the reference does.
func sources(s driver.Spec) ([]source, error) {
	var out []source
	for _, ip := range s.Prev.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(s.Prev.Interfaces) && s.Prev.Interfaces[*n].Name != s.IfName {
			continue
		}
		p, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
		}
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		out = append(out, source{p, gw.Unmap()})
	}
	if len(out) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("prevResult has no address for interface %s: there is no source to route by", s.IfName), "")
	}
	return out, nil
}

// world is what there is before something is changed.
type world struct {
	link   int
	rules  []rtnl.Rule
	routes []rtnl.Route // of all links
}

// changes are to be made in this order.
type changes struct {
	rules []rtnl.Rule
	// set holds routes of other tables than the main one.
	set []rtnl.Route
	// remove holds routes of the main table.
	remove []rtnl.Route
}

// decide gives every address a table of its own, with all routes of the link
// that concern it. A call that is repeated after a crash in the middle finds
// the tables of the first one.
func decide(w world, sources []source) changes {
	tables, rules := w.tables(sources)
	moved := w.moved(tables)
	var c changes
	for i, s := range sources {
		if s.gateway.IsValid() {
			everything := netip.PrefixFrom(s.Addr(), 0).Masked()
			c.set = append(c.set, rtnl.Route{Dst: everything, Via: s.gateway, Link: w.link, Table: tables[i], Protocol: ownRoute})
		}
		for _, r := range moved {
			if concerns(r, s) || !slices.ContainsFunc(sources, func(s source) bool { return concerns(r, s) }) && r.Dst.Addr().Is6() == s.Addr().Is6() {
				r.Table = tables[i]
				c.set = append(c.set, r)
			}
		}
	}
	gatewaysLast(c.set)
	c.rules = rules
	for _, r := range w.routes {
		if w.inMain(r) && !linkLocal(r) {
			c.remove = append(c.remove, r)
		}
	}
	return c
}

// tables chooses one for each source, and returns the rules that are missing.
func (w world) tables(sources []source) (tables []int, rules []rtnl.Rule) {
	taken := map[int]bool{}
	for _, r := range w.rules {
		taken[r.Table] = true
	}
	for _, r := range w.routes {
		taken[r.Table] = true
	}
	next := firstTable
	for _, s := range sources {
		if have, ok := w.tableOf(s); ok {
			tables = append(tables, have)
			continue
		}
		for taken[next] {
			next++
		}
		taken[next] = true
		tables = append(tables, next)
		rules = append(rules, s.rule(next))
	}
	return tables, rules
}

// tableOf is the table that packets from s are looked up in by a rule for
// nothing else.
func (w world) tableOf(s source) (int, bool) {
	for _, r := range w.rules {
		if r.From == s.rule(0).From && !r.Further && !reserved(r.Table) {
			return r.Table, true
		}
	}
	return 0, false
}

// reserved are the tables of every namespace: default, main, and local.
func reserved(table int) bool { return table >= unix.RT_TABLE_DEFAULT && table <= unix.RT_TABLE_LOCAL }

// moved are the link's routes that are, or before a crash were, in the main
// table.
func (w world) moved(tables []int) []rtnl.Route {
	var out []rtnl.Route
	for _, r := range w.routes {
		if r.Link != w.link || !w.inMain(r) && (!slices.Contains(tables, r.Table) || r.Protocol == ownRoute) {
			continue
		}
		r.Table = rtnl.MainTable
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

func (w world) inMain(r rtnl.Route) bool { return r.Link == w.link && r.Table == rtnl.MainTable }

// concerns says whether packets from s may want to go by r: it is within the
// subnet of s, or says nothing about subnets.
func concerns(r rtnl.Route, s source) bool {
	return r.Src.IsValid() && s.Masked().Contains(r.Src) || r.Via.IsValid() && s.Masked().Contains(r.Via) ||
		!r.Src.IsValid() && !r.Via.IsValid()
}

// linkLocal routes are the kernel's for each link, and needed in the main table
// by whoever names the link.
func linkLocal(r rtnl.Route) bool {
	return r.Dst.Addr().Is6() && (r.Dst.Addr().IsLinkLocalUnicast() || r.Dst.Addr().IsMulticast())
}

// gatewaysLast orders routes so that the way to a gateway is there before the
// routes through it.
func gatewaysLast(routes []rtnl.Route) {
	slices.SortStableFunc(routes, func(a, b rtnl.Route) int {
		switch {
		case !a.Via.IsValid() && b.Via.IsValid():
			return -1
		case a.Via.IsValid() && !b.Via.IsValid():
			return 1
		}
		return 0
	})
}

// undo are the changes that take everything back that decide has made, for
// those addresses. Only rules for one of tables are removed, unless that is nil.
func undo(w world, addrs []netip.Addr, only *int) (restore, remove []rtnl.Route, rules []rtnl.Rule) {
	var tables []int
	for _, r := range w.rules {
		if r.Further || !r.From.IsSingleIP() || !slices.Contains(addrs, r.From.Addr()) || only != nil && r.Table != *only {
			continue
		}
		rules = append(rules, r)
		if only == nil && !reserved(r.Table) {
			tables = append(tables, r.Table)
		}
	}
	for _, r := range w.routes {
		if r.Link == w.link && slices.Contains(tables, r.Table) {
			remove = append(remove, r)
		}
	}
	for _, r := range w.moved(tables) {
		if !slices.ContainsFunc(w.routes, func(have rtnl.Route) bool { return have == r }) {
			restore = append(restore, r)
		}
	}
	gatewaysLast(restore)
	return restore, remove, rules
}
