// Package iptables changes iptables rules through the hand on the host, so
// that the node's own iptables, of whichever kind it is, stays the one that
// knows them.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
)

// Table is one table, such as "nat", of one address family.
type Table struct {
	Host driver.Host
	Name string
	// IPv6 says which of the two programs it is.
	IPv6 bool
}

// Rules are the rules of some chains by the chain's name, as "iptables -S"
// prints them without "-A CHAIN ". A chain that does not exist has no key.
type Rules map[string][]string

// Change lists the named chains, lets decide say what has to be done, as lines
// for iptables-restore, and does it in one transaction. No lines, no change.
// When somebody else changed the table meanwhile, so that a line does not
// apply any more, all begins again.
func (t Table) Change(ctx context.Context, chains []string, decide func(Rules) []string) error {
	const tries = 3
	var err error
	for range tries {
		var have Rules
		if have, err = t.List(ctx, chains...); err != nil {
			return err
		}
		lines := decide(have)
		if len(lines) == 0 {
			return nil
		}
		err = t.restore(ctx, lines)
		var refused *driver.ExitError
		if !errors.As(err, &refused) {
			return err
		}
	}
	return err
}

// List returns the rules of those of the chains that exist.
func (t Table) List(ctx context.Context, chains ...string) (Rules, error) {
	rules := Rules{}
	for _, chain := range chains {
		out, err := t.run(ctx, "-S", chain)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		rules[chain] = nil
		for line := range strings.Lines(string(out)) {
			if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+chain+" "); ok {
				rules[chain] = append(rules[chain], rule)
			}
		}
	}
	return rules, nil
}

// Has reports whether the chain has that rule, given as arguments.
func (t Table) Has(ctx context.Context, chain string, rule ...string) (bool, error) {
	_, err := t.run(ctx, append([]string{"-C", chain}, rule...)...)
	if missing(err) {
		return false, nil
	}
	return err == nil, err
}

// missing tells "no such chain", "no such rule" and "this kernel has no such
// table" from failures that may hide a rule.
func missing(err error) bool {
	const resourceProblem = 4 // such as memory, or a lock that somebody holds
	var exit *driver.ExitError
	return errors.As(err, &exit) && exit.Code > 0 && exit.Code < resourceProblem
}

func (t Table) program() string {
	if t.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

func (t Table) run(ctx context.Context, args ...string) ([]byte, error) {
	if t.Host == nil {
		return nil, t.noHost()
	}
	return t.Host.Exec(ctx, driver.Program{Name: t.program(), Args: append([]string{"-w", "-t", t.Name}, args...)})
}

func (t Table) restore(ctx context.Context, lines []string) error {
	if t.Host == nil {
		return t.noHost()
	}
	input := "*" + t.Name + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	_, err := t.Host.Exec(ctx, driver.Program{
		Name: t.program() + "-restore", Args: []string{"-w", "--noflush"}, Stdin: []byte(input),
	})
	return err
}

func (t Table) noHost() error {
	return types.NewError(types.ErrTryAgainLater, t.program()+": nobody is connected who could run it on the host", "")
}

// Jumps reports whether the rule ends in a jump to the chain.
func Jumps(rule, chain string) bool {
	return strings.Contains(" "+rule+" ", " -j "+chain+" ")
}

// Line joins arguments to a line for iptables-restore. Arguments are the text
// of a network's author: one that could end the line is refused.
func Line(args ...string) (string, error) {
	words := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsFunc(a, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", fmt.Errorf("%q has control characters", a)
		}
		words[i] = a
		if a == "" || strings.ContainsAny(a, " \"'\\#") {
			words[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(a) + `"`
		}
	}
	return strings.Join(words, " "), nil
}
