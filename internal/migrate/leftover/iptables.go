package leftover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"

	"braid.dev/braid/internal/iptables/rulespec"
	"braid.dev/braid/internal/migrate/leftover/spec"
)

// A firewall is all that one backend of iptables has for one family.
type firewall struct {
	name    string // as facts.Ruleset.Backend
	restore string // its program
	tables  []*ipTable
}

// An ipTable is one table, such as nat.
type ipTable struct {
	name   string
	chains []*ipChain
}

// An ipChain is one chain. Own chains have the policy "-".
type ipChain struct {
	name, policy string
	rules        []*ipRule
}

// An ipRule is one rule, as iptables-save prints it without "-A CHAIN ".
type ipRule struct {
	text     string
	target   string
	comments []string
	// addrs are those of single hosts that it names, as source, destination or
	// destination after translation.
	addrs []netip.Addr
}

// parseSave reads what iptables-save prints.
func parseSave(text string) []*ipTable {
	var tables []*ipTable
	chains := map[string]*ipChain{}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "*"):
			tables = append(tables, &ipTable{name: strings.TrimSpace(line[1:])})
			clear(chains)
		case len(tables) == 0: // nothing of a table yet
		case strings.HasPrefix(line, ":"):
			words := strings.Fields(line[1:])
			if len(words) >= 2 {
				c := &ipChain{name: words[0], policy: words[1]}
				chains[c.name] = c
				t := tables[len(tables)-1]
				t.chains = append(t.chains, c)
			}
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			if c := chains[chain]; c != nil {
				c.rules = append(c.rules, parseRule(rule))
			}
		}
	}
	return tables
}

func parseRule(text string) *ipRule {
	r := &ipRule{text: text}
	all := rulespec.Words(text)
	for i := 0; i+1 < len(all); i++ {
		value := all[i+1]
		switch all[i] {
		case "-j", "-g":
			r.target = value
		case "--comment":
			r.comments = append(r.comments, value)
		case "-s", "-d", "--to-destination":
			if a, ok := host(value); ok {
				r.addrs = append(r.addrs, a)
			}
		default:
			continue
		}
		i++
	}
	return r
}

// host reads 10.0.0.1/32, 10.0.0.1:80, [fd00::1]:80 and bare addresses.
func host(text string) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), p.IsSingleIP()
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.Addr(), true
	}
	a, err := netip.ParseAddr(text)
	return a, err == nil
}

// A claim says how a chain or a rule belongs to a network: through a container,
// an address, or, when neither is set, to the network as a whole.
type claim struct {
	container string
	addr      netip.Addr
	// empty says that the chain is shared by all networks of the node, and goes
	// when nothing is left in it.
	empty bool
}

func (c claim) inUse(v living) string {
	switch {
	case c.container != "":
		return v.container(c.container)
	case c.addr.IsValid():
		return v.addr(c.addr)
	}
	return v.network()
}

// claims are those of one network in one table.
type claims struct {
	chains map[string]claim
	rules  map[*ipRule]claim
}

// attachmentComment is what the reference plugins write into a rule of one
// container: portmap with "dnat" in front, and masquerading.
var attachmentComment = regexp.MustCompile(`^(?:dnat )?name: "(.*)" id: "([^"]*)"?`)

// attachmentChain is the name of a chain for one container: of portmap, of old
// portmap, of masquerading.
var attachmentChain = regexp.MustCompile(`^CNI-(DN-|SN-)?[0-9a-f]{19,24}$`)

const (
	hostPorts    = "CNI-HOSTPORT-DNAT"
	cniForward   = "CNI-FORWARD"
	cniAdmin     = "CNI-ADMIN"
	adminComment = "CNI firewall plugin admin overrides"
)

// hostPortChains are portmap's for all networks.
var hostPortChains = []string{hostPorts, "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SNAT"}

// claim says what of the table belongs to the network.
func (t *ipTable) claim(l spec.Spec) claims {
	c := claims{chains: map[string]claim{}, rules: map[*ipRule]claim{}}
	for _, chain := range t.chains {
		if chain.policy == "-" && matchAny(l.Chains, chain.name) {
			c.chains[chain.name] = claim{}
		}
	}
	for _, chain := range t.chains {
		for _, r := range chain.rules {
			t.claimRule(l, c, chain, r)
		}
	}
	t.claimOrphans(l, c)
	for _, chain := range t.chains {
		for _, r := range chain.rules {
			why, leads := c.chains[r.target]
			if _, known := c.rules[r]; leads && !known {
				c.rules[r] = why
			}
		}
	}
	return c
}

// claimRule claims the rule for what it says itself.
func (t *ipTable) claimRule(l spec.Spec, c claims, chain *ipChain, r *ipRule) {
	for _, comment := range r.comments {
		m := attachmentComment.FindStringSubmatch(comment)
		switch {
		case m != nil && m[1] == l.Network && (l.Portmap || l.Masquerade):
			c.rules[r] = claim{container: m[2]}
			if attachmentChain.MatchString(r.target) {
				c.chains[r.target] = c.rules[r]
			}
		case m == nil && matchAny(l.Comments, comment):
			c.rules[r] = claim{}
		}
	}
	if l.Firewall && chain.name == cniForward {
		for _, a := range r.addrs {
			if contains(l.PodCIDRs, a) {
				c.rules[r] = claim{addr: a}
			}
		}
	}
}

// claimOrphans claims the chains of containers that nothing leads to any more,
// as a removal that was cut off leaves them, by the addresses in their rules.
func (t *ipTable) claimOrphans(l spec.Spec, c claims) {
	if !l.Portmap && !l.Masquerade {
		return
	}
	led := map[string]bool{}
	for _, chain := range t.chains {
		for _, r := range chain.rules {
			led[r.target] = true
		}
	}
	for _, chain := range t.chains {
		if led[chain.name] || !attachmentChain.MatchString(chain.name) {
			continue
		}
		for _, r := range chain.rules {
			for _, a := range r.addrs {
				if contains(l.PodCIDRs, a) {
					c.chains[chain.name] = claim{addr: a}
				}
			}
		}
	}
}

// claimEmpty claims the chains that the plugins of all networks of the node
// share, when nothing would be left in them but what these plugins put there
// for themselves, and the other network has not these plugins.
func (t *ipTable) claimEmpty(l, other spec.Spec, c claims) {
	if l.Portmap && !other.Portmap {
		t.claimShared(c, hostPortChains, func(chain *ipChain, r *ipRule) bool { return chain.name != hostPorts })
	}
	if l.Firewall && !other.Firewall {
		t.claimShared(c, []string{cniForward, cniAdmin}, func(chain *ipChain, r *ipRule) bool {
			return chain.name == cniForward && slices.Contains(r.comments, adminComment)
		})
	}
}

// claimShared claims the chains named and what leads to them if all rules in
// them are claimed, or the plugin's own (fixed), and nobody else's rule leads
// to them from a chain that is not the kernel's.
func (t *ipTable) claimShared(c claims, names []string, fixed func(*ipChain, *ipRule) bool) {
	var own []*ipChain
	var rules []*ipRule
	for _, chain := range t.chains {
		shared := slices.Contains(names, chain.name)
		if shared {
			own = append(own, chain)
		}
		for _, r := range chain.rules {
			_, claimed := c.rules[r]
			_, inside := c.chains[chain.name]
			leads := slices.Contains(names, r.target)
			switch {
			case claimed || inside:
			case shared && fixed(chain, r), leads && (shared || chain.policy != "-"):
				rules = append(rules, r)
			case shared, leads:
				return // somebody else's
			}
		}
	}
	for _, chain := range own {
		c.chains[chain.name] = claim{empty: true}
	}
	for _, r := range rules {
		c.rules[r] = claim{empty: true}
	}
}

// A transaction is what is done to one table of one backend at once.
type transaction struct {
	program, table string
	remove         []string // lines that remove rules
	flush, drop    []string // chains
}

// run is all or nothing. It refers to rules by their text and to chains by
// their name, so what others do to the table meanwhile is not undone by it.
func (x *transaction) run(ctx context.Context, h Host) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", x.table)
	for _, line := range x.remove {
		fmt.Fprintln(&b, line)
	}
	for _, chain := range x.flush {
		fmt.Fprintf(&b, "-F %s\n", chain)
	}
	for _, chain := range x.drop {
		fmt.Fprintf(&b, "-X %s\n", chain)
	}
	b.WriteString("COMMIT\n")
	if _, err := h.Run(ctx, []byte(b.String()), x.program, "-w", "--noflush"); err != nil {
		return fmt.Errorf("%s of table %s: %w", x.program, x.table, err)
	}
	return nil
}

// find lists what of the table is the network's own.
func (f *firewall) find(t *ipTable, l spec.Spec, use InUse, v living) []finding {
	ours, theirs := t.claim(l), t.claim(use.Other)
	t.claimEmpty(l, use.Other, ours)
	batch := &transaction{program: f.restore, table: t.name}
	stays := map[string]string{} // chains that are claimed and in use
	why := func(c claim, others bool) string {
		if others {
			return both(use.Other)
		}
		if c.empty {
			return ""
		}
		return c.inUse(v)
	}
	for name, c := range ours.chains {
		_, others := theirs.chains[name]
		if reason := why(c, others); reason != "" {
			stays[name] = reason
		}
	}
	t.settleEmpty(ours, theirs, stays, v)
	var found []finding
	add := func(kind, name, inUse string) {
		found = append(found, finding{kind: kind, name: f.name + " " + t.name + " " + name, inUse: inUse, stage: inFirewall, batch: batch})
	}
	for _, chain := range t.chains {
		c, mine := ours.chains[chain.name]
		if mine {
			add("chain", chain.name, stays[chain.name])
		}
		if mine && stays[chain.name] == "" {
			batch.drop = append(batch.drop, chain.name)
		}
		if mine && !c.empty {
			if stays[chain.name] == "" {
				batch.flush = append(batch.flush, chain.name)
			}
			continue
		}
		for _, r := range chain.rules {
			c, mine := ours.rules[r]
			if !mine {
				continue
			}
			_, others := theirs.rules[r]
			reason := why(c, others)
			if reason == "" {
				reason = stays[r.target]
			}
			if reason == "" && c.empty {
				reason = stays[chain.name]
			}
			add("rule", chain.name+" "+r.text, reason)
			if reason == "" {
				batch.remove = append(batch.remove, "-D "+chain.name+" "+r.text)
			}
		}
	}
	return found
}

// settleEmpty lets the shared chains stay, all of a kind, when something in one
// of them does.
func (t *ipTable) settleEmpty(ours, theirs claims, stays map[string]string, v living) {
	for _, names := range [][]string{hostPortChains, {cniForward, cniAdmin}} {
		reason := ""
		for _, chain := range t.chains {
			if c, ok := ours.chains[chain.name]; !ok || !c.empty || !slices.Contains(names, chain.name) {
				continue
			}
			reason = firstOf(reason, stays[chain.name])
			for _, r := range chain.rules {
				if c := ours.rules[r]; !c.empty {
					reason = firstOf(reason, c.inUse(v))
				}
			}
		}
		for _, name := range names {
			if c, ok := ours.chains[name]; ok && c.empty && reason != "" {
				stays[name] = reason
			}
		}
	}
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// kubeProxy says whose chains change at any time, with every Service and pod.
func kubeProxy(name string) bool { return strings.HasPrefix(name, "KUBE-") }

// others writes down what is not the network's own, nor the other's that is
// changing, nor kube-proxy's.
func (f *firewall) others(t *ipTable, l, other spec.Spec, s *snapshot) {
	ours, theirs := t.claim(l), t.claim(other)
	t.claimEmpty(l, other, ours)
	known := func(c claims, chain string, r *ipRule) bool {
		_, byChain := c.chains[chain]
		if r == nil {
			return byChain
		}
		_, byRule := c.rules[r]
		return byRule || byChain && !c.chains[chain].empty
	}
	for _, chain := range t.chains {
		if kubeProxy(chain.name) {
			continue
		}
		domain := f.name + " " + t.name
		if !known(ours, chain.name, nil) && !known(theirs, chain.name, nil) {
			s.add(domain, "chain "+chain.name+" "+chain.policy)
		}
		for _, r := range chain.rules {
			if !known(ours, chain.name, r) && !known(theirs, chain.name, r) && !kubeProxy(r.target) {
				s.add(domain+" "+chain.name, r.text)
			}
		}
	}
}

// readFirewalls asks every program of iptables that the host has.
func readFirewalls(ctx context.Context, h Host) (walls []*firewall, err error) {
	var errs []error
	for _, family := range []string{"iptables", "ip6tables"} {
		any := false
		for _, kind := range []string{"-nft", "-legacy"} {
			w, err := readFirewall(ctx, h, family+kind, family+kind)
			if missingProgram(err) {
				continue
			}
			any = true
			errs = append(errs, err)
			if err == nil {
				walls = append(walls, w)
			}
		}
		if any {
			continue
		}
		// An old host has one of them, without saying which.
		w, err := readFirewall(ctx, h, family, family)
		if missingProgram(err) {
			continue
		}
		errs = append(errs, err)
		if err == nil {
			walls = append(walls, w)
		}
	}
	return walls, errors.Join(errs...)
}

func readFirewall(ctx context.Context, h Host, program, name string) (*firewall, error) {
	out, err := h.Run(ctx, nil, program+"-save")
	if err != nil {
		return nil, fmt.Errorf("%s-save: %w", program, err)
	}
	return &firewall{name: name, restore: program + "-restore", tables: parseSave(string(out))}, nil
}

// missingProgram tells "the host has no such program" from its failure.
func missingProgram(err error) bool {
	const notFound = 127 // as of a shell, and of chroot(1)
	var code interface{ ExitCode() int }
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) || errors.As(err, &code) && code.ExitCode() == notFound
}

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, name)
		return ok
	})
}
