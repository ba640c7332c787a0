package rtnl

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// ObserveAll describes ns as Observe does and then, link by link, what Observe
// leaves out because most worlds do not differ in it: MAC, flags, queue length,
// what only its kind has (the mode of a macvlan, the owner of a tap, …),
// neighbours that somebody entered, queueing disciplines with their classes and
// filters. Routes that are no way but a dead end, and rules, follow. MACs are
// those that the links have: a comparison of two worlds must know the ones that
// are random.
func ObserveAll(ns *netns.NS) (string, error) {
	text, err := Observe(ns)
	if err != nil {
		return "", err
	}
	h, err := Open(ns)
	if err != nil {
		return "", err
	}
	defer h.Close()
	links, err := h.Links()
	if err != nil {
		return "", err
	}
	o := observer{h: h, names: stableNames(links)}
	for _, l := range inOrder(links, o.names) {
		if err := o.details(l.Index); err != nil {
			return "", err
		}
	}
	if err := o.deadEnds(); err != nil {
		return "", err
	}
	rules, err := h.ruleLines()
	return text + o.out.String() + rules, err
}

// details describes one link more closely.
func (o *observer) details(index int) error {
	l, err := o.h.native(index)
	if err != nil {
		return failed(err, "link %d", index)
	}
	a := l.Attrs()
	fmt.Fprintf(&o.out, "link %s mac %s flags %s txqlen %d%s\n", o.name(index), a.HardwareAddr, flags(a.RawFlags), a.TxQLen, kindDetails(l))
	for _, part := range []func(netlink.Link) ([]string, error){o.neighLines, o.qdiscLines, o.filterLines} {
		lines, err := part(l)
		if err != nil {
			return err
		}
		for _, line := range lines {
			fmt.Fprintln(&o.out, "  "+line)
		}
	}
	return nil
}

// flags prints those that somebody chose, or that the kind of link has; not
// those that follow from the state of the other end.
func flags(raw uint32) string {
	var set []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{
		{unix.IFF_BROADCAST, "broadcast"}, {unix.IFF_LOOPBACK, "loopback"}, {unix.IFF_POINTOPOINT, "pointopoint"},
		{unix.IFF_NOARP, "noarp"}, {unix.IFF_PROMISC, "promisc"}, {unix.IFF_ALLMULTI, "allmulti"}, {unix.IFF_MULTICAST, "multicast"},
	} {
		if raw&f.bit != 0 {
			set = append(set, f.name)
		}
	}
	return strings.Join(set, ",")
}

// kindDetails is what only the link's kind has.
func kindDetails(l netlink.Link) string {
	switch l := l.(type) {
	case *netlink.Macvlan:
		return fmt.Sprintf(" macvlan mode %d bcqueuelen %d", l.Mode, l.BCQueueLen)
	case *netlink.Macvtap:
		return fmt.Sprintf(" macvtap mode %d bcqueuelen %d", l.Mode, l.BCQueueLen)
	case *netlink.IPVlan:
		return fmt.Sprintf(" ipvlan mode %d flag %d", l.Mode, l.Flag)
	case *netlink.Vlan:
		return fmt.Sprintf(" vlan protocol %s id %d", l.VlanProtocol, l.VlanId)
	case *netlink.Vrf:
		return fmt.Sprintf(" vrf table %d", l.Table)
	case *netlink.Tuntap:
		return fmt.Sprintf(" tuntap mode %d flags %#x owner %d group %d persistent %t", l.Mode, int(l.Flags), int32(l.Owner), int32(l.Group), !l.NonPersist)
	case *netlink.Bridge:
		return " bridge" + bridgeDetails(l)
	}
	return ""
}

func bridgeDetails(b *netlink.Bridge) (s string) {
	if b.MulticastSnooping != nil {
		s += fmt.Sprintf(" mcast_snooping %t", *b.MulticastSnooping)
	}
	if b.AgeingTime != nil {
		s += fmt.Sprintf(" ageing %d", *b.AgeingTime)
	}
	if b.VlanDefaultPVID != nil {
		s += fmt.Sprintf(" default_pvid %d", *b.VlanDefaultPVID)
	}
	if b.GroupFwdMask != nil {
		s += fmt.Sprintf(" group_fwd_mask %d", *b.GroupFwdMask)
	}
	return s
}

// neighLines are the neighbours that somebody entered; what the kernel learned
// depends on who talked when.
func (o *observer) neighLines(l netlink.Link) ([]string, error) {
	var lines []string
	for _, flag := range []uint8{0, netlink.NTF_PROXY} {
		list := func(lib *netlink.Handle) ([]netlink.Neigh, error) {
			return lib.NeighListExecute(netlink.Ndmsg{Index: uint32(l.Attrs().Index), Flags: flag})
		}
		all, err := dump(o.h, list)
		if err != nil {
			return nil, failed(err, "list neighbours of link %d", l.Attrs().Index)
		}
		for _, n := range all {
			proxy := n.Flags&netlink.NTF_PROXY != 0
			if n.State&netlink.NUD_PERMANENT == 0 && !proxy {
				continue
			}
			lines = append(lines, fmt.Sprintf("neigh %s mac %s proxy %t", n.IP, n.HardwareAddr, proxy))
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

func (o *observer) qdiscLines(l netlink.Link) ([]string, error) {
	qdiscs, err := dump(o.h, func(lib *netlink.Handle) ([]netlink.Qdisc, error) { return lib.QdiscList(l) })
	if err != nil {
		return nil, failed(err, "list queueing disciplines of link %d", l.Attrs().Index)
	}
	var lines []string
	for _, q := range qdiscs {
		a := q.Attrs()
		if a.Handle == 0 {
			continue // nobody chose it
		}
		line := fmt.Sprintf("qdisc %s handle %s parent %s", q.Type(), netlink.HandleStr(a.Handle), netlink.HandleStr(a.Parent))
		switch q := q.(type) {
		case *netlink.Tbf:
			line += fmt.Sprintf(" rate %d limit %d buffer %d peakrate %d minburst %d", q.Rate, q.Limit, q.Buffer, q.Peakrate, q.Minburst)
		case *netlink.Htb:
			line += fmt.Sprintf(" default %x r2q %d", q.Defcls, q.Rate2Quantum)
		}
		lines = append(lines, line)
	}
	classes, err := dump(o.h, func(lib *netlink.Handle) ([]netlink.Class, error) { return lib.ClassList(l, netlink.HANDLE_NONE) })
	if err != nil {
		return nil, failed(err, "list classes of link %d", l.Attrs().Index)
	}
	for _, c := range classes {
		line := fmt.Sprintf("class %s %s parent %s", c.Type(), netlink.HandleStr(c.Attrs().Handle), netlink.HandleStr(c.Attrs().Parent))
		if htb, ok := c.(*netlink.HtbClass); ok {
			line += " " + htb.String()
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines, nil
}

func (o *observer) filterLines(l netlink.Link) ([]string, error) {
	var lines []string
	for _, parent := range []uint32{netlink.HANDLE_INGRESS, netlink.MakeHandle(0xffff, 0), netlink.MakeHandle(1, 0)} {
		filters, err := dump(o.h, func(lib *netlink.Handle) ([]netlink.Filter, error) { return lib.FilterList(l, parent) })
		if err != nil {
			continue // there is no such qdisc to have filters
		}
		for _, f := range filters {
			a := f.Attrs()
			line := fmt.Sprintf("filter %s parent %s protocol %#x priority %d", f.Type(), netlink.HandleStr(a.Parent), a.Protocol, a.Priority)
			if u, ok := f.(*netlink.U32); ok {
				line += o.u32(u)
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

func (o *observer) u32(u *netlink.U32) string {
	s := " flow " + netlink.HandleStr(u.ClassId)
	if u.Sel != nil {
		for _, k := range u.Sel.Keys {
			s += fmt.Sprintf(" match %08x/%08x at %d", k.Val, k.Mask, k.Off)
		}
	}
	for _, action := range u.Actions {
		s += " action " + action.Type()
		if m, ok := action.(*netlink.MirredAction); ok {
			s += fmt.Sprintf(" %v to %s", m.MirredAction, o.name(m.Ifindex))
		}
	}
	return s
}

// deadEnds are the routes that Observe leaves out: those that lead nowhere, by
// somebody's will.
func (o *observer) deadEnds() error {
	list := func(lib *netlink.Handle) ([]netlink.Route, error) {
		return lib.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	}
	all, err := dump(o.h, list)
	if err != nil {
		return failed(err, "list routes")
	}
	var lines []string
	for _, r := range all {
		switch r.Type {
		case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
			lines = append(lines, fmt.Sprintf("dead end type %d %s table %d metric %d", r.Type, prefixOf(r.Dst), r.Table, r.Priority))
		}
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(&o.out, line)
	}
	return nil
}

// ruleLines describes the rules that a fresh namespace does not have.
func (h *Handle) ruleLines() (string, error) {
	var lines []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := dump(h, func(lib *netlink.Handle) ([]netlink.Rule, error) { return lib.RuleList(family) })
		if err != nil {
			return "", failed(err, "list rules")
		}
		for _, r := range rules {
			if fresh(r) {
				continue
			}
			lines = append(lines, fmt.Sprintf("rule %d: from %s to %s iif %q oif %q mark %#x lookup %d\n",
				r.Priority, network(r.Src), network(r.Dst), r.IifName, r.OifName, r.Mark, r.Table))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// fresh says whether every namespace has the rule.
func fresh(r netlink.Rule) bool {
	const local, main, rest = 0, 32766, 32767
	return r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && r.Mark == 0 &&
		(r.Priority == local || r.Priority == main || r.Priority == rest)
}

func network(n *net.IPNet) string {
	if n == nil {
		return "all"
	}
	return prefixOf(n).String()
}
