package keepsource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"braid.dev/braid/internal/iptables/rulespec"
)

// name is the nftables table's, and the comment of every rule in iptables, by
// which they are known for ours.
const name = "braid-migration"

// rule is one of ours in iptables, whatever order its parts are printed in.
type rule struct {
	from, to netip.Prefix
	// target is ACCEPT or NETMAP, which has the source itself as its aim.
	target string
	// invalid rules are about packets that belong to no known connection only.
	invalid bool
	// mark is what the packet must not be marked with; 0 is any.
	mark string
	// other is what is none of ours to have.
	other bool
}

// acceptRules let packets pass that belong to no connection that the node
// knows. Nothing else: policies go on judging what begins a connection.
func acceptRules(ways []way) []rule {
	var rules []rule
	for _, w := range ways {
		rules = append(rules, rule{from: w.from, to: w.to, target: "ACCEPT", invalid: true})
	}
	return rules
}

// keepRules are those that take the place of the nftables table.
func keepRules(ways []way, target string, mark uint32) []rule {
	var rules []rule
	for _, w := range ways {
		rules = append(rules, rule{from: w.from, to: w.to, target: target, mark: fmt.Sprintf("%#x/%#x", mark, mark)})
	}
	return rules
}

func (r rule) String() string {
	words := []string{"-s", r.from.String(), "-d", r.to.String()}
	if r.mark != "" {
		words = append(words, "-m mark ! --mark", r.mark)
	}
	if r.invalid {
		words = append(words, "-m conntrack --ctstate INVALID")
	}
	words = append(words, "-m comment --comment", name, "-j", r.target)
	if r.target == "NETMAP" {
		words = append(words, "--to", r.from.String())
	}
	return strings.Join(words, " ")
}

// parseRule reads a rule of "iptables -S". It reports whether the rule is
// ours.
func parseRule(text string) (r rule, ours bool) {
	words := rulespec.Words(text)
	not := false
	value := func() string {
		if len(words) == 0 {
			r.other = true
			return ""
		}
		v := words[0]
		words = words[1:]
		return v
	}
	for len(words) > 0 {
		word := value()
		switch word {
		case "!":
			not = true
			continue
		case "-s":
			r.from = prefix(value())
		case "-d":
			r.to = prefix(value())
		case "-j":
			r.target = value()
		case "--to":
			r.other = r.other || prefix(value()) != r.from
		case "--mark":
			r.mark = value()
			r.other, not = r.other || !not, false
		case "--ctstate":
			r.invalid = value() == "INVALID"
		case "--comment":
			ours = value() == name
		case "-m":
			v := value()
			r.other = r.other || !slices.Contains([]string{"mark", "conntrack", "comment"}, v)
		case "-c": // counters
			value()
			value()
		default:
			r.other = true
		}
		r.other, not = r.other || not, false
	}
	return r, ours
}

func prefix(text string) netip.Prefix {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked()
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// change returns the lines for iptables-restore that make our rules the first
// ones of the chain and the only ones of ours, none when they are. Somebody
// who puts his in front comes behind again: what he accepts is accepted a rule
// later, what he drops would be lost.
func (c *Chain) change(chain string, want []rule) []string {
	if c == nil {
		return nil
	}
	right := len(c.Rules) >= len(want)
	var lines []string
	for i, text := range c.Rules {
		r, ours := parseRule(text)
		if i < len(want) {
			right = right && ours && r == want[i]
		} else {
			right = right && !ours
		}
		if ours {
			lines = append(lines, "-D "+chain+" "+text)
		}
	}
	if right {
		return nil
	}
	for i, r := range want {
		lines = append(lines, fmt.Sprintf("-I %s %d %s", chain, i+1, r))
	}
	return lines
}

// keepsByAccept reports that an earlier round found the kernel without NETMAP.
func (c *Chain) keepsByAccept() bool {
	return slices.ContainsFunc(c.Rules, func(text string) bool {
		r, ours := parseRule(text)
		return ours && r.target == "ACCEPT"
	})
}

// keeps reports whether the chain has rules of ours.
func (c *Chain) keeps() bool {
	return c != nil && slices.ContainsFunc(c.Rules, func(text string) bool {
		_, ours := parseRule(text)
		return ours
	})
}

// program is the one that the backend's packages usually install.
func program(b Backend, is6 bool) string {
	if is6 {
		return "ip6tables-" + string(b)
	}
	return "iptables-" + string(b)
}

// list returns a chain of a table that exists. Counters are printed on
// request.
func (c Config) list(ctx context.Context, b Backend, is6 bool, table, chain string, options ...string) (*Chain, error) {
	args := slices.Concat([]string{"-w", "-t", table}, options, []string{"-S", chain})
	out, err := c.runProgram(ctx, nil, b, is6, "", args...)
	switch {
	case err != nil && strings.Contains(err.Error(), "incompatible"):
		return nil, nil // nftables of somebody's, in a table that has iptables' name
	case err != nil:
		return nil, fmt.Errorf("list chain %s of table %s, which this node has: %w", chain, table, err)
	}
	found := &Chain{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			found.Rules = append(found.Rules, text)
		}
		if text, ok := strings.CutPrefix(line, "-P "+chain+" "); ok {
			found.Policy, _, _ = strings.Cut(text, " ")
		}
	}
	return found, nil
}

// restore changes a table in one transaction.
func (c Config) restore(ctx context.Context, s Step) error {
	input := "*" + s.Table + "\n" + strings.Join(s.Lines, "\n") + "\nCOMMIT\n"
	_, err := c.runProgram(ctx, []byte(input), s.Backend, s.IPv6, "-restore", "-w", "--noflush")
	return err
}

// runProgram runs a program of the backend under the name that only this
// backend has, else under the name that both may have if it says that it is of
// that backend.
func (c Config) runProgram(ctx context.Context, stdin []byte, b Backend, is6 bool, suffix string, args ...string) ([]byte, error) {
	out, err := c.Host.Run(ctx, stdin, append([]string{program(b, is6) + suffix}, args...)...)
	if !notFound(err) {
		return out, err
	}
	plain := strings.TrimSuffix(program(b, is6), "-"+string(b))
	version, plainErr := c.Host.Run(ctx, nil, plain, "--version")
	if plainErr != nil || strings.Contains(string(version), "nf_tables") != (b == NFT) {
		return nil, fmt.Errorf("the host has no iptables of the kind %s: %w", b, err)
	}
	return c.Host.Run(ctx, stdin, append([]string{plain + suffix}, args...)...)
}

// notFound says that the host has no such program, in the words of os/exec or
// of a shell.
func notFound(err error) bool {
	const shell = 127
	var exit interface{ ExitCode() int }
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) ||
		errors.As(err, &exit) && exit.ExitCode() == shell
}

// exited says that a program ran and refused.
func exited(err error) bool {
	var exit interface{ ExitCode() int }
	return errors.As(err, &exit) && exit.ExitCode() > 0
}

// retry says that a step may have been overtaken by somebody who changed the
// same rules after they were read.
func retry(err error) bool {
	s, ok := stepOf(err)
	return ok && s.Part == PartIPTables && exited(err) && !notFound(err)
}

func stepOf(err error) (Step, bool) {
	var e *stepError
	if !errors.As(err, &e) {
		return Step{}, false
	}
	return e.step, true
}
