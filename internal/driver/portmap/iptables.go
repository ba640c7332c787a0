package portmap

import (
	"context"
	"crypto/sha512"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"braid.dev/braid/internal/iptables"
)

// Chains of the reference plugin, in table nat.
const (
	ipTable      = "nat"
	ipChainDNAT  = "CNI-HOSTPORT-DNAT"
	ipChainMark  = "CNI-HOSTPORT-SETMARK"
	ipChainMasq  = "CNI-HOSTPORT-MASQ"
	mostPorts    = 15 // that one multiport match takes
	mostComment  = 255
	ipDestLocal  = "-m addrtype --dst-type LOCAL -j " + ipChainDNAT
	ipMasqEnter  = `-m comment --comment "CNI portfwd requiring masquerade" -j ` + ipChainMasq
	ipMarkRemark = `-m comment --comment "CNI portfwd masquerade mark"`
)

func (a *attachment) ipTables(is6 bool) iptables.Table {
	return iptables.Table{Host: a.spec.Host, Name: ipTable, IPv6: is6}
}

// ownChain is the chain of this container in this network.
func (a *attachment) ownChain() string {
	return fmt.Sprintf("CNI-DN-%x", sha512.Sum512([]byte(a.Name+a.spec.ContainerID)))[:28]
}

// addIPTables makes the rules of each family in one transaction.
func (a *attachment) addIPTables(ctx context.Context, to []netip.Prefix) error {
	for _, t := range to {
		rules, err := a.ipRules(t)
		if err != nil {
			return fmt.Errorf("port mappings by iptables: %w", err)
		}
		chains := []string{"PREROUTING", "OUTPUT", ipChainDNAT}
		if a.marks() {
			chains = append(chains, "POSTROUTING", ipChainMark, ipChainMasq)
		}
		err = a.ipTables(t.Addr().Is6()).Change(ctx, chains, func(have iptables.Rules) []string {
			return slices.Concat(a.ipFrame(have), a.leave(have), a.enter(rules))
		})
		if err != nil {
			return fmt.Errorf("port mappings by iptables: %w", err)
		}
	}
	return nil
}

// marks says that packets get the mark that this plugin's own chains look for.
func (a *attachment) marks() bool { return a.snat() && a.SetMarkChain == nil }

func (a *attachment) mark() string {
	bit := uint32(1) << a.markBit()
	return fmt.Sprintf("%#x/%#x", bit, bit)
}

// ipFrame makes what all containers share, as far as it is not there.
func (a *attachment) ipFrame(have iptables.Rules) (lines []string) {
	ensure := func(chain string) {
		if _, ok := have[chain]; !ok {
			lines = append(lines, "-N "+chain)
		}
	}
	unless := func(chain, part, line string) {
		if !slices.ContainsFunc(have[chain], func(rule string) bool { return strings.Contains(rule+" ", part+" ") }) {
			lines = append(lines, line)
		}
	}
	if a.marks() {
		ensure(ipChainMark)
		unless(ipChainMark, "--set-xmark "+a.mark(), fmt.Sprintf("-A %s %s -j MARK --set-xmark %s", ipChainMark, ipMarkRemark, a.mark()))
		ensure(ipChainMasq)
		unless(ipChainMasq, "--mark "+a.mark(), fmt.Sprintf("-A %s -m mark --mark %s -j MASQUERADE", ipChainMasq, a.mark()))
		// First, before other plugins' masquerading ends the chain.
		unless("POSTROUTING", "-j "+ipChainMasq, "-I POSTROUTING 1 "+ipMasqEnter)
	}
	ensure(ipChainDNAT)
	for _, hook := range []string{"PREROUTING", "OUTPUT"} {
		unless(hook, "-j "+ipChainDNAT, "-A "+hook+" "+ipDestLocal)
	}
	return lines
}

// leave removes the jumps into the container's chain.
func (a *attachment) leave(have iptables.Rules) (lines []string) {
	for _, rule := range have[ipChainDNAT] {
		if iptables.Jumps(rule, a.ownChain()) {
			lines = append(lines, "-D "+ipChainDNAT+" "+rule)
		}
	}
	return lines
}

// enter fills the container's chain, which naming it has emptied, and jumps
// there.
func (a *attachment) enter(rules ipRules) []string {
	lines := []string{":" + a.ownChain() + " - [0:0]"}
	for _, r := range rules.own {
		lines = append(lines, "-A "+a.ownChain()+" "+r.line)
	}
	for _, r := range rules.entry {
		lines = append(lines, "-A "+ipChainDNAT+" "+r.line)
	}
	return lines
}

// ipRule is a rule as arguments and as a line for iptables-restore.
type ipRule struct {
	args []string
	line string
}

// ipRules are the rules of one container in one address family.
type ipRules struct{ entry, own []ipRule }

// ipRules decides what the reference plugin would add for this address.
func (a *attachment) ipRules(to netip.Prefix) (rules ipRules, err error) {
	is6 := to.Addr().Is6()
	add := func(list *[]ipRule, args ...string) {
		line, lineErr := iptables.Line(args...)
		if err == nil {
			err = lineErr
		}
		*list = append(*list, ipRule{args, line})
	}
	for _, p := range byProtocol(a.RuntimeConfig.Mappings) {
		args := []string{"-m", "comment", "--comment", a.ipComment(), "-m", "multiport", "-p", p.protocol, "--destination-ports", p.ports}
		add(&rules.entry, slices.Concat(args, a.conditions(is6), []string{"-j", a.ownChain()})...)
	}
	for _, m := range a.mappings(is6) {
		match := []string{"-p", m.Protocol, "--dport", strconv.Itoa(m.HostPort)}
		if m.exact() {
			match = append(match, "-d", m.hostIP.String())
		}
		for _, from := range a.masqueraded(to) {
			add(&rules.own, slices.Concat(match, []string{"-s", from, "-j", a.setMarkChain()})...)
		}
		target := netip.AddrPortFrom(to.Addr(), uint16(m.ContainerPort))
		add(&rules.own, slices.Concat(match, []string{"-j", "DNAT", "--to-destination", target.String()})...)
	}
	return rules, err
}

// masqueraded are the sources that the container must not see.
func (a *attachment) masqueraded(to netip.Prefix) []string {
	switch {
	case !a.snat():
		return nil
	case a.MasqAll:
		return []string{map[bool]string{false: "0.0.0.0/0", true: "::/0"}[to.Addr().Is6()]}
	case to.Addr().Is6():
		return []string{to.String()}
	}
	return []string{to.String(), "127.0.0.1"}
}

func (a *attachment) setMarkChain() string {
	if a.SetMarkChain != nil {
		return *a.SetMarkChain
	}
	return ipChainMark
}

func (a *attachment) ipComment() string {
	text := fmt.Sprintf(`dnat name: "%s" id: "%s"`, a.Name, a.spec.ContainerID)
	if len(text) > mostComment {
		return text[:mostComment-3] + "..."
	}
	return text
}

// protocolPorts are ports of one protocol, as multiport wants them.
type protocolPorts struct{ protocol, ports string }

func byProtocol(mappings []mapping) (out []protocolPorts) {
	ports := map[string][]string{}
	for _, m := range mappings {
		ports[m.Protocol] = append(ports[m.Protocol], strconv.Itoa(m.HostPort))
	}
	for _, protocol := range []string{"sctp", "tcp", "udp"} {
		for some := range slices.Chunk(ports[protocol], mostPorts) {
			out = append(out, protocolPorts{protocol, strings.Join(some, ",")})
		}
	}
	return out
}

// removeIPTables removes the container's chain of both families: its addresses
// are not known when Attach was interrupted.
func (a *attachment) removeIPTables(ctx context.Context) error {
	for _, is6 := range []bool{false, true} {
		err := a.ipTables(is6).Change(ctx, []string{a.ownChain(), ipChainDNAT}, func(have iptables.Rules) []string {
			if _, ok := have[a.ownChain()]; !ok {
				return nil
			}
			return slices.Concat(a.leave(have), []string{"-F " + a.ownChain(), "-X " + a.ownChain()})
		})
		if err != nil {
			return fmt.Errorf("remove port mappings from iptables: %w", err)
		}
	}
	return nil
}

// checkIPTables asks for every rule, in the words in which it was made.
func (a *attachment) checkIPTables(ctx context.Context, to []netip.Prefix) error {
	for _, t := range to {
		rules, err := a.ipRules(t)
		if err != nil {
			return err
		}
		local := strings.Fields(ipDestLocal)
		want := []struct {
			chain string
			rules []ipRule
		}{
			{"PREROUTING", []ipRule{{args: local}}}, {"OUTPUT", []ipRule{{args: local}}},
			{ipChainDNAT, rules.entry}, {a.ownChain(), rules.own},
		}
		for _, w := range want {
			for _, r := range w.rules {
				there, err := a.ipTables(t.Addr().Is6()).Has(ctx, w.chain, r.args...)
				if err != nil {
					return fmt.Errorf("check port mappings in iptables: %w", err)
				}
				if !there {
					return fmt.Errorf("chain %s of table %s lacks rule %q", w.chain, ipTable, strings.Join(r.args, " "))
				}
			}
		}
	}
	return nil
}
