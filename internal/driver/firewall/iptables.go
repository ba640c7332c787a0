package firewall

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"braid.dev/braid/internal/iptables"
)

func program(is6 bool) string {
	if is6 {
		return "ip6tables"
	}
	return "iptables"
}

// String is the rule as "iptables -S" prints it.
func (r rule) String() string { return "-A " + r.chain + " " + r.text() }

// text is the rule without its chain.
func (r rule) text() string {
	var words []string
	add := func(ok bool, w ...string) {
		if ok {
			words = append(words, w...)
		}
	}
	host := func(a netip.Addr) string { return fmt.Sprintf("%s/%d", a, a.BitLen()) }
	if r.from.IsValid() {
		add(true, "-s", host(r.from))
	}
	if r.to.IsValid() {
		add(true, "-d", host(r.to))
	}
	add(r.in != "", "-i", r.in)
	add(r.notOut, "!")
	add(r.out != "", "-o", r.out)
	add(r.replies, "-m conntrack --ctstate RELATED,ESTABLISHED")
	add(r.remark != "", `-m comment --comment "`+r.remark+`"`)
	add(true, "-j", r.verdict)
	return strings.Join(words, " ")
}

// line is the rule for iptables-restore.
func (r rule) line() string {
	if r.first {
		return "-I " + r.chain + " 1 " + r.text()
	}
	return r.String()
}

func (a *attachment) table(is6 bool) iptables.Table {
	return iptables.Table{Host: a.spec.Host, Name: tableName, IPv6: is6}
}

// note is a chain that nothing leads to. It remembers the addresses that the
// container's rules are for, so that they are found when nothing else is left
// of it: rules of iptables have no place for a mark that others do not see.
func (a *attachment) note() string {
	return fmt.Sprintf("CNI-FW-%x", sha256.Sum256([]byte(a.key())))[:28]
}

// addIPTables makes, in one transaction for each family, what is missing of
// the shared rules and the container's own for accept.
func (a *attachment) addIPTables(ctx context.Context, accept []netip.Addr) error {
	for _, is6 := range a.families() {
		shared, mine := a.shared(len(accept) > 0), own(ofFamily(accept, is6))
		chains := append(chainsOf(append(slices.Clone(shared), mine...)), a.note())
		err := a.table(is6).Change(ctx, chains, func(have iptables.Rules) []string {
			return a.additions(have, shared, mine)
		})
		if err != nil {
			return fmt.Errorf("firewall rules by iptables: %w", err)
		}
	}
	return nil
}

func (a *attachment) additions(have iptables.Rules, shared, mine []rule) (lines []string) {
	for _, chain := range chainsOf(append(slices.Clone(shared), mine...)) {
		if _, ok := have[chain]; !ok {
			lines = append(lines, "-N "+chain)
		}
	}
	there := func(r rule) bool {
		return slices.ContainsFunc(have[r.chain], func(text string) bool {
			return text == r.text() || r.chain == chainHook && iptables.Jumps(text, r.verdict)
		})
	}
	lack, stale := missing(shared, there)
	if stale {
		lines = append(lines, "-D "+chainHook+" "+a.stage1Jump(have))
	}
	for _, r := range lack {
		lines = append(lines, r.line())
	}
	for _, text := range a.noted(have) { // of an interrupted call
		lines = append(lines, "-D "+chainForward+" "+text)
	}
	if len(mine) == 0 {
		return lines
	}
	lines = append(lines, ":"+a.note()+" - [0:0]")
	for _, r := range mine {
		if !there(r) || slices.Contains(a.noted(have), r.text()) {
			lines = append(lines, r.String())
		}
		if r.from.IsValid() {
			lines = append(lines, fmt.Sprintf("-A %s -s %s", a.note(), r.from))
		}
	}
	return lines
}

func (a *attachment) stage1Jump(have iptables.Rules) string {
	i := slices.IndexFunc(have[chainHook], func(text string) bool { return iptables.Jumps(text, chainStage1) })
	return have[chainHook][i]
}

// noted are the rules of the container that are there, by its note.
func (a *attachment) noted(have iptables.Rules) (texts []string) {
	var addrs []netip.Addr
	for _, text := range have[a.note()] {
		address, ok := strings.CutPrefix(text, "-s ")
		p, err := netip.ParsePrefix(strings.TrimSpace(address))
		if ok && err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	return present(have, addrs)
}

// present are the rules of these addresses that are there.
func present(have iptables.Rules, addrs []netip.Addr) (texts []string) {
	for _, r := range own(addrs) {
		if slices.Contains(have[chainForward], r.text()) {
			texts = append(texts, r.text())
		}
	}
	return texts
}

// removeIPTables removes the container's rules, by its note and by its
// addresses, which the reference plugin went by.
func (a *attachment) removeIPTables(ctx context.Context) error {
	for _, is6 := range []bool{false, true} {
		err := a.table(is6).Change(ctx, []string{chainForward, a.note()}, func(have iptables.Rules) (lines []string) {
			texts := append(a.noted(have), present(have, ofFamily(a.addrs, is6))...)
			slices.Sort(texts)
			for _, text := range slices.Compact(texts) {
				lines = append(lines, "-D "+chainForward+" "+text)
			}
			if _, ok := have[a.note()]; ok {
				lines = append(lines, "-F "+a.note(), "-X "+a.note())
			}
			return lines
		})
		if err != nil {
			return fmt.Errorf("remove firewall rules from iptables: %w", err)
		}
	}
	return nil
}

func (a *attachment) checkIPTables(ctx context.Context) error {
	for _, is6 := range a.families() {
		want := append(a.shared(true), own(ofFamily(a.addrs, is6))...)
		have, err := a.table(is6).List(ctx, chainsOf(want)...)
		if err != nil {
			return fmt.Errorf("check firewall rules in iptables: %w", err)
		}
		for _, r := range want {
			if !slices.Contains(have[r.chain], r.text()) {
				return fmt.Errorf("%s: rule %q is missing", program(is6), r)
			}
		}
	}
	return nil
}
