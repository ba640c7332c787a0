package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Rule says which routing table a packet is looked up in.
type Rule struct {
	// From is the source that the rule is for; the zero value is any.
	From  netip.Prefix
	Table int
	// Priority orders rules, lowest first. 0 of a new rule lets the kernel put
	// it before all others but the one of the local table.
	Priority int
	// Further says that the rule also looks at something else than From. Such
	// a rule can be seen here, and neither added nor removed.
	Further bool
}

// String prints the rule as iproute2 does.
func (r Rule) String() string {
	from := "all"
	if r.From.IsValid() {
		from = r.From.String()
	}
	return fmt.Sprintf("from %s lookup %d", from, r.Table)
}

// Rules returns the rules of both families, first IPv4's, each in order.
func (h *Handle) Rules() ([]Rule, error) {
	var rules []Rule
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list := func(lib *netlink.Handle) ([]netlink.Rule, error) { return lib.RuleList(family) }
		all, err := dump(h, list)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, failed(err, "list rules")
		}
		for _, r := range all {
			rules = append(rules, Rule{From: prefixOf(r.Src), Table: r.Table, Priority: r.Priority, Further: further(r)})
		}
	}
	return rules, nil
}

func further(r netlink.Rule) bool {
	return r.Dst != nil || r.IifName != "" || r.OifName != "" || r.Mark != 0 || r.Mask != nil || r.Tos != 0 || r.TunID != 0 ||
		r.IPProto != 0 || r.Dport != nil || r.Sport != nil || r.UIDRange != nil || r.Invert || r.Goto > 0 ||
		r.SuppressPrefixlen >= 0 || r.SuppressIfgroup >= 0
}

// AddRule adds a rule. One that is there is ErrExists.
func (h *Handle) AddRule(r Rule) error {
	rule, err := r.native()
	if err != nil {
		return err
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.RuleAdd(rule) }), "add rule %s", r)
}

// DelRule removes a rule. One that is not there is ErrNotFound.
func (h *Handle) DelRule(r Rule) error {
	rule, err := r.native()
	if err != nil {
		return err
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.RuleDel(rule) }), "remove rule %s", r)
}

func (r Rule) native() (*netlink.Rule, error) {
	if !r.From.IsValid() || r.Further {
		return nil, fmt.Errorf("rule %s: only rules for a source are made here", r)
	}
	out := netlink.NewRule()
	out.Src, out.Table = ipNet(r.From), r.Table
	if r.Priority > 0 {
		out.Priority = r.Priority
	}
	return out, nil
}

// ObserveRules describes the rules that are not there in every namespace, as
// Observe describes links.
func ObserveRules(h *Handle) (string, error) {
	rules, err := h.Rules()
	if err != nil {
		return "", err
	}
	var lines []string
	for _, r := range rules {
		if r.From.IsValid() || r.Further {
			lines = append(lines, "rule "+r.String()+"\n")
		}
	}
	slices.Sort(lines)
	var text string
	for _, line := range lines {
		text += line
	}
	return text, nil
}
