package keepsource

import (
	"fmt"
	"slices"
	"strings"
)

// Observed is what a node has, as far as it matters here.
type Observed struct {
	Families []Family
	// All is the setting rp_filter of all links, AllWas what it was before this
	// package changed it, if it did, and Links are those of each.
	All, AllWas int
	Links       []Link
}

// Link is a link with its own rp_filter.
type Link struct {
	Name     string
	Index    int
	RPFilter int
	// Ours says that it carries one of the two networks.
	Ours bool
	// Kind is known of links of ours for which a value other than 0 counts.
	Kind LinkKind
}

// LinkKind is what rp_filter does to packets that come in by a link, and for
// which the node's route is another one. A strict link drops them.
type LinkKind string

// Kinds of links.
const (
	// Addressed links have an IPv4 address. A loose one lets them pass.
	Addressed LinkKind = "addressed"
	// Bare links have none, and no route leads to them either, as those of pods
	// of Cilium. To the kernel nothing ever comes in by the right one of these:
	// a loose one drops everything, too.
	Bare LinkKind = "bare"
	// Routed links have no address, but routes, as those of pods of Calico: what
	// comes in by them is what the routes are for. Ports of a bridge get no
	// packets by themselves.
	Routed LinkKind = "routed or a port"
)

// Family is one address family that both networks have.
type Family struct {
	IPv6 bool
	// Table is the state of the nftables table braid-migration.
	Table TableState
	// Firewalls are the iptables that have tables on this node: nft, legacy,
	// or both.
	Firewalls []Firewall
	// Droppers are chains of others, in nftables, that drop packets which
	// belong to no connection that the node knows.
	Droppers []string
}

// TableState says how the nftables table is found.
type TableState string

// States of the table.
const (
	TableAbsent TableState = "absent"
	TableRight  TableState = "right"
	TableWrong  TableState = "wrong"
	// TableRefused: this kernel has no nftables for that family.
	TableRefused TableState = "refused"
)

// Firewall is one kind of iptables and family on the node.
type Firewall struct {
	Backend Backend
	// Forward and Postrouting are the rules of the chains FORWARD of table
	// filter and POSTROUTING of table nat; nil when the table does not exist.
	Forward, Postrouting *Chain
	// NoNETMAP: this kernel lacks the target.
	NoNETMAP bool
}

// Backend is a kind of iptables.
type Backend string

// Backends.
const (
	Legacy Backend = "legacy"
	NFT    Backend = "nft"
)

// Chain is the rules of one chain, as "iptables -S" prints them without
// "-A CHAIN ".
type Chain struct {
	Policy string
	Rules  []string
}

// Plan is what has to be done, in order, and what should be known about it.
type Plan struct {
	Steps []Step
	// Notes say how the sources are kept, and what is beyond this package.
	Notes []string
}

func (p Plan) String() string {
	var b strings.Builder
	for _, s := range p.Steps {
		b.WriteString(s.String())
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}

// Part is what a step changes.
type Part string

// Parts.
const (
	PartSetting  Part = "setting"
	PartIPTables Part = "iptables"
	PartNFTables Part = "nftables"
)

// Step is one change, which either happens or does not.
type Step struct {
	Part Part
	// Link, by its name and index (0 is "all"), gets rp_filter To instead of
	// From.
	Link     string
	Index    int
	From, To int
	// Backend and Table get Lines for iptables-restore.
	Backend Backend
	IPv6    bool
	Table   string
	Lines   []string
	// Ways are the rules of the nftables table; none is its removal.
	Ways []way
	Mark uint32
}

func (s Step) String() string {
	switch s.Part {
	case PartSetting:
		return fmt.Sprintf("sysctl net.ipv4.conf.%s.rp_filter %d -> %d\n", s.Link, s.From, s.To)
	case PartIPTables:
		return fmt.Sprintf("%s-restore *%s\n  %s\n", program(s.Backend, s.IPv6), s.Table, strings.Join(s.Lines, "\n  "))
	}
	if len(s.Ways) == 0 {
		return fmt.Sprintf("nft delete table %s %s\n", familyName(s.IPv6), name)
	}
	return tableText(s)
}

// subject is what the step is about, for a message of one line.
func (s Step) subject() string {
	switch s.Part {
	case PartSetting:
		return "rp_filter of " + s.Link
	case PartIPTables:
		return fmt.Sprintf("table %s of %s", s.Table, program(s.Backend, s.IPv6))
	}
	return fmt.Sprintf("nftables table %s %s", familyName(s.IPv6), name)
}

// rp_filter has three values; the effective one of a link is the greater one of
// its own and all's.
const (
	off    = 0
	strict = 1
	loose  = 2
)

// planOf is what Apply has to do. What carries connections that nobody hides
// any more comes before the end of the hiding.
func planOf(c Config, seen Observed) Plan {
	var p Plan
	p.Steps = looser(c, seen)
	var nat []Step
	for _, f := range seen.Families {
		ways := c.ways(f.IPv6)
		for _, fw := range f.Firewalls {
			if lines := fw.Forward.change("FORWARD", acceptRules(ways)); len(lines) > 0 {
				p.Steps = append(p.Steps, Step{Part: PartIPTables, Backend: fw.Backend, IPv6: f.IPv6, Table: "filter", Lines: lines})
			}
		}
		steps, notes := exempt(c, f)
		nat = append(nat, steps...)
		p.Notes = append(p.Notes, notes...)
	}
	p.Steps = append(p.Steps, nat...)
	return p
}

// looser lets packets come in by another link than the answer leaves by.
func looser(c Config, seen Observed) []Step {
	if !slices.Contains(c.families(), false) {
		return nil // IPv6 has no such setting
	}
	bare := slices.ContainsFunc(seen.Links, func(l Link) bool { return l.Ours && l.Kind == Bare })
	lower := bare && seen.All != off
	var steps []Step
	for _, l := range seen.Links {
		want := l.RPFilter
		switch {
		case l.Ours && l.Kind == Bare:
			want = off
		case l.Ours && l.Kind == Addressed && max(l.RPFilter, seen.All) == strict:
			want = loose
		case l.Ours && l.Kind == Addressed:
		case lower || seen.AllWas > seen.All:
			want = max(l.RPFilter, seen.AllWas) // what was in effect through all
		}
		if want != l.RPFilter {
			steps = append(steps, Step{Part: PartSetting, Link: l.Name, Index: l.Index, From: l.RPFilter, To: want})
		}
	}
	// Last: until then each link has in effect what it had, also after a crash.
	if lower {
		steps = append(steps, Step{Part: PartSetting, Link: "all", From: seen.All, To: off})
	}
	return steps
}

// exempt keeps the sources of one family: by the table of nftables, which is
// asked before every other and whose answer is final; where the kernel has
// none, by iptables, in front of all that is in the same chain.
func exempt(c Config, f Family) (steps []Step, notes []string) {
	ways, label := c.ways(f.IPv6), familyLabel(f.IPv6)
	for _, d := range f.Droppers {
		notes = append(notes, fmt.Sprintf("%s: %s drops what belongs to no connection that this node knows; where the two "+
			"directions of one take different ways, it must accept %s first", label, d, pairs(ways)))
	}
	switch f.Table {
	case TableRight:
		return nil, append(notes, label+": kept by nftables, table "+name)
	case TableAbsent, TableWrong:
		step := Step{Part: PartNFTables, IPv6: f.IPv6, Ways: ways, Mark: c.MasqueradeBit}
		return []Step{step}, append(notes, label+": kept by nftables, table "+name)
	}
	for _, fw := range f.Firewalls {
		if fw.Postrouting == nil {
			continue // nobody has rules there that could hide anything
		}
		target := "NETMAP"
		if fw.NoNETMAP || fw.Postrouting.keepsByAccept() {
			target = "ACCEPT"
		}
		if lines := fw.Postrouting.change("POSTROUTING", keepRules(ways, target, c.MasqueradeBit)); len(lines) > 0 {
			steps = append(steps, Step{Part: PartIPTables, Backend: fw.Backend, IPv6: f.IPv6, Table: "nat", Lines: lines})
		}
		notes = append(notes, fmt.Sprintf("%s: kept by %s, target %s, because this kernel's nftables cannot", label, program(fw.Backend, f.IPv6), target))
	}
	return steps, notes
}

// removalOf is what Remove has to do: NAT first, so that new connections are
// as before while those without it still pass.
func removalOf(seen Observed, before []original) Plan {
	var nat, rest []Step
	for _, f := range seen.Families {
		if f.Table == TableRight || f.Table == TableWrong {
			nat = append(nat, Step{Part: PartNFTables, IPv6: f.IPv6})
		}
		for _, fw := range f.Firewalls {
			if lines := fw.Postrouting.change("POSTROUTING", nil); len(lines) > 0 {
				nat = append(nat, Step{Part: PartIPTables, Backend: fw.Backend, IPv6: f.IPv6, Table: "nat", Lines: lines})
			}
			if lines := fw.Forward.change("FORWARD", nil); len(lines) > 0 {
				rest = append(rest, Step{Part: PartIPTables, Backend: fw.Backend, IPv6: f.IPv6, Table: "filter", Lines: lines})
			}
		}
	}
	return Plan{Steps: slices.Concat(nat, rest, stricter(seen, before))}
}

// stricter gives settings their values of before, where they still have ours:
// all's first, so that nothing is open in between.
func stricter(seen Observed, before []original) []Step {
	now := map[int]Link{0: {Name: "all", RPFilter: seen.All}}
	for _, l := range seen.Links {
		now[l.Index] = l
	}
	var steps []Step
	for _, o := range before {
		if l, ok := now[o.Index]; ok && l.RPFilter == o.Made && o.Made != o.Value {
			steps = append(steps, Step{Part: PartSetting, Link: l.Name, Index: o.Index, From: o.Made, To: o.Value})
		}
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return min(a.Index, 1) - min(b.Index, 1) })
	return steps
}

// lessons are what trying has taught about this kernel.
type lessons struct {
	noTable  [2]bool
	noNETMAP [2]bool
}

// from learns from a failure, and reports whether another round makes sense.
func (l *lessons) from(err error) bool {
	s, ok := stepOf(err)
	switch {
	case !ok:
		return false
	case s.Part == PartNFTables && refused(err):
		l.noTable[number(s.IPv6)] = true
		return true
	case s.Part == PartIPTables && s.Table == "nat" && strings.Contains(s.String(), " NETMAP ") && exited(err):
		l.noNETMAP[number(s.IPv6)] = true
		return true
	}
	return retry(err)
}

func (l *lessons) teach(seen *Observed) {
	for i := range seen.Families {
		f := &seen.Families[i]
		if l.noTable[number(f.IPv6)] && f.Table == TableAbsent {
			f.Table = TableRefused
		}
		for j := range f.Firewalls {
			f.Firewalls[j].NoNETMAP = f.Firewalls[j].NoNETMAP || l.noNETMAP[number(f.IPv6)]
		}
	}
}

func number(is6 bool) int {
	if is6 {
		return 1
	}
	return 0
}

func familyName(is6 bool) string {
	if is6 {
		return "ip6"
	}
	return "ip"
}

func familyLabel(is6 bool) string {
	if is6 {
		return "IPv6"
	}
	return "IPv4"
}

func pairs(ways []way) string {
	var out []string
	for _, w := range ways {
		out = append(out, w.from.String()+" -> "+w.to.String())
	}
	return strings.Join(out, ", ")
}
