package preflight

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"braid.dev/braid/internal/iptables/rulespec"
	"braid.dev/braid/internal/migrate/facts"
)

// table is one table of iptables-save, such as filter.
type table struct {
	policies map[string]string
	rules    map[string][][]string
}

// parseSave reads what iptables-save prints. What it does not know it skips.
func parseSave(text string) map[string]table {
	tables := map[string]table{}
	var cur table
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "*"):
			cur = table{policies: map[string]string{}, rules: map[string][][]string{}}
			tables[l[1:]] = cur
		case strings.HasPrefix(l, ":") && cur.policies != nil:
			if f := strings.Fields(l[1:]); len(f) > 1 {
				cur.policies[f[0]] = f[1]
			}
		case strings.HasPrefix(l, "-A ") && cur.rules != nil:
			if words := rulespec.Words(l); len(words) > 1 {
				cur.rules[words[1]] = append(cur.rules[words[1]], words[2:])
			}
		}
	}
	return tables
}

// packet is the first of a connection from any pod of one range to any of
// another, and the links that it may come and go by.
type packet struct {
	src, dst netip.Prefix
	in, out  []string
}

// verdict of rules about a packet.
type verdict int

const (
	undecided verdict = iota
	accepted
	dropped
	returned
)

// answer is tri-state logic: a rule may depend on what is not known here.
type match int

const (
	never match = iota
	perhaps
	always
)

// forward walks the FORWARD chain of the table filter as a packet does. unclear
// says that a rule that could accept it depends on what is not known.
func forward(t table, p packet) (v verdict, unclear bool) {
	w := walk{table: t, packet: p}
	v = w.chain("FORWARD", 0)
	if v == undecided || v == returned {
		v = accepted
		if t.policies["FORWARD"] == "DROP" {
			v, w.by = dropped, "policy"
		}
	}
	return v, v == dropped && w.unclear
}

type walk struct {
	table
	packet
	unclear bool
	by      string
}

// maxDepth is more than any kernel accepts of jumps in jumps.
const maxDepth = 64

func (w *walk) chain(name string, depth int) verdict {
	if depth > maxDepth {
		return undecided
	}
	for _, rule := range w.rules[name] {
		m, target := w.match(rule)
		if m == never {
			continue
		}
		v := undecided
		switch target {
		case "ACCEPT":
			v = accepted
		case "DROP", "REJECT":
			v = dropped
		case "RETURN":
			v = returned
		default:
			if _, user := w.policies[target]; user {
				if v = w.chain(target, depth+1); v == returned {
					v = undecided
				}
			}
		}
		if m == perhaps {
			// What some packets meet says nothing of all of them.
			w.unclear = w.unclear || v == accepted
			continue
		}
		if v != undecided {
			return v
		}
	}
	return undecided
}

// match compares a rule with the packet.
func (w *walk) match(rule []string) (m match, target string) {
	m = always
	negate := false
	and := func(x match) {
		if negate {
			x = always - x
		}
		m = min(m, x)
		negate = false
	}
	for i := 0; i < len(rule); i++ {
		arg := ""
		if i+1 < len(rule) {
			arg = rule[i+1]
		}
		switch rule[i] {
		case "!":
			negate = true
			continue
		case "-s":
			and(covers(arg, w.src))
		case "-d":
			and(covers(arg, w.dst))
		case "-i":
			and(linkMatch(arg, w.in))
		case "-o":
			and(linkMatch(arg, w.out))
		case "-j", "-g":
			target = arg
		case "-m", "--comment":
			// A module by itself decides nothing.
		case "--ctstate", "--state":
			and(always.when(slices.Contains(strings.Split(arg, ","), "NEW")))
		case "--mark":
			// Nobody has marked the packet; a rule for no mark takes it.
			value, _, _ := strings.Cut(arg, "/")
			and(always.when(value == "0x0" || value == "0"))
		case "--dst-type":
			and(always.when(arg != "LOCAL" && arg != "BROADCAST" && arg != "MULTICAST"))
		default:
			if strings.HasPrefix(rule[i], "-") && target == "" {
				and(perhaps)
				negate = false
			}
			continue
		}
		i++
	}
	return m, target
}

func (m match) when(yes bool) match {
	if yes {
		return m
	}
	return never
}

// covers compares the range of a rule with the range of a packet's address.
func covers(rule string, of netip.Prefix) match {
	p, err := netip.ParsePrefix(rule)
	if err != nil {
		q, ok := hostPrefix(rule)
		if !ok {
			return perhaps
		}
		p = q
	}
	switch {
	case within(of, []netip.Prefix{p}):
		return always
	case p.Overlaps(of):
		return perhaps
	}
	return never
}

// linkMatch compares the name in a rule, which may end in +, with patterns of
// the links that a packet takes.
func linkMatch(rule string, links []string) match {
	if len(links) == 0 {
		return perhaps
	}
	stem, wild := strings.CutSuffix(rule, "+")
	for _, l := range links {
		fixed, _, glob := strings.Cut(l, "*")
		switch ok, _ := path.Match(l, rule); {
		case l == rule, ok && !wild:
			return always
		case wild && strings.HasPrefix(fixed, stem):
			return always
		case wild && glob && strings.HasPrefix(stem, fixed):
			return always
		}
	}
	return never
}

// parseRules parses what iptables has, by backend.
func parseRules(rulesets []facts.Ruleset) map[string]map[string]table {
	out := map[string]map[string]table{}
	for _, r := range rulesets {
		if r.Backend != "nftables" {
			out[r.Backend] = parseSave(r.Text)
		}
	}
	return out
}

// rulesets are the node's of these backends.
func (n node) rulesets(backends ...string) map[string]map[string]table {
	out := map[string]map[string]table{}
	for _, b := range backends {
		if tables, ok := n.rules[b]; ok {
			out[b] = tables
		}
	}
	return out
}

// nftDrops are the chains of nftables at the hook forward that drop what nobody
// accepts.
func nftDrops(rulesets []facts.Ruleset) []string {
	var list []string
	for _, r := range rulesets {
		if r.Backend != "nftables" {
			continue
		}
		tableName, chain := "", ""
		for l := range strings.Lines(r.Text) {
			l = strings.TrimSpace(l)
			f := strings.Fields(l)
			switch {
			case len(f) >= 3 && f[0] == "table":
				tableName = strings.Join(f[1:len(f)-1], " ")
			case len(f) >= 2 && f[0] == "chain":
				chain = f[1]
			case strings.Contains(l, "hook forward") && strings.Contains(l, "policy drop"):
				list = append(list, "table "+tableName+" chain "+chain)
			}
		}
	}
	return list
}

// chainsWithRules are the chains of any backend that hold rules, as
// "iptables-nft nat FLANNEL-POSTRTG".
func (n node) chainsWithRules() []string {
	var list []string
	for backend, tables := range n.rules {
		for name, t := range tables {
			for chain, rules := range t.rules {
				if len(rules) > 0 {
					list = append(list, backend+" "+name+" "+chain)
				}
			}
		}
	}
	slices.Sort(list)
	return list
}
