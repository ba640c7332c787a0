// Package keepsource lets pods of two networks of one cluster see each other's
// own addresses: it exempts what they send to each other from every NAT of the
// node, and keeps alive what that NAT kept alive.
//
// README.md draws why each part is needed. Apply decides by a pure function,
// planOf, over what observe read from the kernel.
package keepsource

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Host runs the node's own programs where they find their files. A program
// that ran and failed is an error with ExitCode() int, such as
// *exec.ExitError, and what it wrote on standard error in its text.
type Host interface {
	Run(ctx context.Context, stdin []byte, args ...string) (stdout []byte, err error)
}

// Config is one node and its two networks.
type Config struct {
	// Old and New are where the pods of the two networks have their addresses.
	// Only families that both have are of interest.
	Old, New []netip.Prefix
	// OldDevices and NewDevices are the links that carry them, as patterns of
	// path.Match: overlays, bridges and the ends of the pods' links.
	OldDevices, NewDevices []string
	// NS is the node's namespace; nil is the current one.
	NS     *netns.NS
	Sysctl rtnl.Sysctl
	Host   Host
	// MasqueradeBit is the mark by which kube-proxy asks for masquerade, which
	// is obeyed; 0 means kube-proxy's default, 0x4000.
	MasqueradeBit uint32
	// StateFile remembers, across crashes and updates, which settings the node
	// had before.
	StateFile string
}

// Apply makes the exemption true and reports whether anything had to be done.
// What carries connections without NAT comes first, the end of the NAT last,
// so that an error never leaves connections worse than they were. It is meant
// to be called every few seconds, because others rewrite their rules, flush
// all rules, and make links.
func Apply(ctx context.Context, cfg Config) (changed bool, err error) {
	if cfg, err = cfg.checked(); err != nil {
		return false, err
	}
	// A round may be lost to somebody who changes the same rules; two teach
	// what this kernel has not.
	const rounds = 6
	learned := &lessons{}
	var failed error
	for range rounds {
		p, err := cfg.inspect(ctx, learned)
		if err != nil {
			return changed, fmt.Errorf("preserve source: %w", err)
		}
		if len(p.Steps) == 0 {
			return changed, nil
		}
		if err := cfg.remember(p.Steps); err != nil {
			return changed, fmt.Errorf("preserve source: %w", err)
		}
		var did bool
		did, failed = cfg.do(ctx, p.Steps)
		changed = changed || did
		if failed != nil && !learned.from(failed) {
			break
		}
	}
	if failed == nil {
		failed = errors.New("somebody else keeps undoing it")
	}
	return changed, fmt.Errorf("preserve source: %w", failed)
}

// Inspect says what Apply would do now, and what it could not.
func Inspect(ctx context.Context, cfg Config) (Plan, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return Plan{}, err
	}
	seen, err := cfg.look(ctx)
	if err != nil {
		return Plan{}, fmt.Errorf("preserve source: %w", err)
	}
	// Much to read where kube-proxy has its chains in nftables: not for Apply.
	for i, f := range seen.Families {
		if seen.Families[i].Droppers, err = cfg.droppers(f.IPv6); err != nil {
			return Plan{}, fmt.Errorf("preserve source: %w", err)
		}
	}
	return planOf(cfg, seen), nil
}

// Verify reads everything back from the kernel, and says what is missing.
func Verify(ctx context.Context, cfg Config) error {
	cfg, err := cfg.checked()
	if err != nil {
		return err
	}
	p, err := cfg.inspect(ctx, &lessons{})
	if err != nil {
		return fmt.Errorf("preserve source: %w", err)
	}
	var missing []string
	for _, s := range p.Steps {
		missing = append(missing, s.subject())
	}
	if len(missing) > 0 {
		return fmt.Errorf("preserve source: not in place: %s", strings.Join(missing, ", "))
	}
	return nil
}

// Remove takes the exemption away and gives settings their values of before.
// It may be repeated, and completes what a crash interrupted. Without a state
// file it removes rules only, which carry their own name.
//
// What is ours is known by its name: no address needs to be configured.
func Remove(ctx context.Context, cfg Config) error {
	cfg, err := cfg.usable()
	if err != nil {
		return err
	}
	before, unknown := cfg.recall()
	if err := cfg.remove(ctx, before); err != nil {
		return fmt.Errorf("stop preserving source: %w", err)
	}
	if unknown != nil {
		return fmt.Errorf("stop preserving source: rules are removed, settings of before are not known: %w", unknown)
	}
	return cfg.forget()
}

func (c Config) remove(ctx context.Context, before []original) error {
	const rounds = 4 // one may be lost to somebody who changes the same rules
	var failed error
	for range rounds {
		seen, err := c.observe(ctx, bothFamilies, before)
		if err != nil {
			return err
		}
		p := removalOf(seen, before)
		if len(p.Steps) == 0 {
			return nil
		}
		if _, failed = c.do(ctx, p.Steps); failed != nil && !retry(failed) {
			return failed
		}
	}
	if failed == nil {
		failed = errors.New("rules or settings come back")
	}
	return failed
}

func (c Config) inspect(ctx context.Context, l *lessons) (Plan, error) {
	seen, err := c.look(ctx)
	if err != nil {
		return Plan{}, err
	}
	l.teach(&seen)
	return planOf(c, seen), nil
}

func (c Config) look(ctx context.Context) (Observed, error) {
	before, err := c.recall()
	if err != nil {
		return Observed{}, err
	}
	return c.observe(ctx, c.families(), before)
}

// do takes the steps in order, up to the first that fails. A link that has
// gone meanwhile needs no setting any more.
func (c Config) do(ctx context.Context, steps []Step) (did bool, err error) {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return did, err
		}
		switch s.Part {
		case PartSetting:
			err = c.set(s)
		case PartIPTables:
			err = c.restore(ctx, s)
		case PartNFTables:
			err = c.changeTable(s)
		}
		if err != nil {
			return did, &stepError{step: s, err: err}
		}
		did = true
	}
	return did, nil
}

// stepError is the failure of one step.
type stepError struct {
	step Step
	err  error
}

func (e *stepError) Error() string {
	return e.step.subject() + ": " + e.err.Error()
}

func (e *stepError) Unwrap() error { return e.err }

// usable refuses what neither Apply nor Remove can work with, and fills in
// defaults.
func (c Config) usable() (Config, error) {
	if c.MasqueradeBit == 0 {
		c.MasqueradeBit = 0x4000
	}
	if c.StateFile == "" || c.Host == nil {
		return c, errors.New("preserve source: no state file, or nobody to run programs on the host")
	}
	return c, nil
}

// checked also refuses what would exempt too much or nothing.
func (c Config) checked() (Config, error) {
	c, err := c.usable()
	if err != nil {
		return c, err
	}
	for _, p := range slices.Concat(c.OldDevices, c.NewDevices) {
		if _, err := path.Match(p, ""); err != nil {
			return c, fmt.Errorf("preserve source: devices %q: %w", p, err)
		}
	}
	if c.Old, err = masked(c.Old); err == nil {
		c.New, err = masked(c.New)
	}
	if err != nil {
		return c, fmt.Errorf("preserve source: %w", err)
	}
	for _, o := range c.Old {
		for _, n := range c.New {
			if o.Overlaps(n) {
				return c, fmt.Errorf("preserve source: %s and %s overlap: an address does not say which network it is of", o, n)
			}
		}
	}
	if len(c.families()) == 0 {
		return c, fmt.Errorf("preserve source: %v and %v have no address family in common", c.Old, c.New)
	}
	return c, nil
}

func masked(prefixes []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range prefixes {
		if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s are no addresses of pods", p)
		}
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// bothFamilies are those that a removal looks at, whatever is configured by now.
var bothFamilies = []bool{false, true}

// families (Is6) are those that both networks have.
func (c Config) families() []bool {
	var both []bool
	for _, is6 := range bothFamilies {
		if len(c.ways(is6)) > 0 {
			both = append(both, is6)
		}
	}
	return both
}

// way is one direction between a part of one network and one of the other.
type way struct {
	from, to netip.Prefix
	// fromNew tells the two directions apart.
	fromNew bool
}

// ways are all of one family, in the order of the rules.
func (c Config) ways(is6 bool) []way {
	var ways []way
	for _, o := range c.Old {
		for _, n := range c.New {
			if o.Addr().Is6() == is6 && n.Addr().Is6() == is6 {
				ways = append(ways, way{from: o, to: n}, way{from: n, to: o, fromNew: true})
			}
		}
	}
	return ways
}

// carries reports whether a link is one of the two networks'.
func (c Config) carries(link string) bool {
	return slices.ContainsFunc(slices.Concat(c.OldDevices, c.NewDevices), func(p string) bool {
		ok, _ := path.Match(p, link) // checked has seen the patterns
		return ok
	})
}
