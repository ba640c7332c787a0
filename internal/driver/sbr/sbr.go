// Package sbr routes what a container sends from an interface's address back
// through that interface, whatever the container's other routes say, in
// process, as the CNI reference plugin of that name does. Its README says what
// it builds and what it refuses.
package sbr

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// New returns the driver for plugin type "sbr".
func New() driver.Driver { return sbr{} }

type sbr struct{}

// Attach implements driver.Driver.
func (sbr) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if err := s.Chained(); err != nil {
		return nil, err
	}
	sources, err := sources(s)
	if err != nil {
		return nil, err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	l, err := s.PodLink(pod)
	if err != nil {
		return nil, err
	}
	w, err := look(pod, l.Index)
	if err != nil {
		return nil, err
	}
	var todo changes
	if c.Table != nil {
		todo.rules = missing(w, sources, *c.Table)
	} else {
		todo = decide(w, sources)
	}
	if err := apply(pod, todo); err != nil {
		return nil, driver.Undo(ctx, err, func(context.Context) error {
			return remove(pod, l.Index, addresses(sources), c.Table, todo.remove)
		})
	}
	return s.Prev, nil
}

// missing are the rules that are to be added when they all lead to one table.
func missing(w world, sources []source, table int) (rules []rtnl.Rule) {
	for _, s := range sources {
		want := s.rule(table)
		there := func(r rtnl.Rule) bool { return r.From == want.From && r.Table == table && !r.Further }
		if !slices.ContainsFunc(w.rules, there) {
			rules = append(rules, want)
		}
	}
	return rules
}

// look reads what there is.
func look(pod *rtnl.Handle, link int) (world, error) {
	rules, err := pod.Rules()
	if err != nil {
		return world{}, err
	}
	routes, err := pod.Routes()
	return world{link, rules, routes}, err
}

// apply makes the changes: rules first, by which a repeated call finds the
// tables, and whose packets go on to the main table as long as theirs is empty.
// Routes leave that last, so that nothing is lost at any moment.
func apply(pod *rtnl.Handle, c changes) error {
	for _, r := range c.rules {
		if err := pod.AddRule(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
	}
	for i, r := range c.set {
		set := pod.ReplaceRoute
		// A route with several next hops is several in the list.
		if slices.ContainsFunc(c.set[:i], func(o rtnl.Route) bool {
			return o.Dst == r.Dst && o.Table == r.Table && o.Metric == r.Metric && o.Protocol == r.Protocol
		}) {
			set = pod.AppendRoute
		}
		if err := set(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
	}
	for _, r := range c.remove {
		if err := gone(pod.DelRoute(r)); err != nil {
			return err
		}
	}
	return nil
}

// gone forgives that something was not there any more.
func gone(err error) error {
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	return err
}

// Detach implements driver.Driver. The namespace has rules of its own, so that
// nothing is left to do when it is gone.
func (sbr) Detach(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil || s.NetNS == nil {
		return nil // refused by Attach, too
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	var addrs []netip.Addr
	if s.Prev != nil {
		if known, err := sources(s); err == nil {
			addrs = addresses(known)
		}
	}
	l, err := pod.Link(s.IfName)
	if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
		return err
	}
	if err == nil {
		have, err := pod.Addrs(l.Index)
		if err != nil {
			return err
		}
		for _, a := range have {
			addrs = append(addrs, a.Addr())
		}
	}
	return remove(pod, l.Index, addrs, c.Table, nil)
}

func addresses(sources []source) (out []netip.Addr) {
	for _, s := range sources {
		out = append(out, s.Addr())
	}
	return out
}

// remove takes the rules of the addresses away, and puts the routes in their
// tables, and others, back into the main table. Everything is attempted.
func remove(pod *rtnl.Handle, link int, addrs []netip.Addr, table *int, others []rtnl.Route) error {
	w, err := look(pod, link)
	if err != nil {
		return err
	}
	restore, old, rules := undo(w, addrs, table)
	var errs []error
	for _, r := range append(restore, others...) {
		if err := pod.AppendRoute(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
			errs = append(errs, err)
		}
	}
	for _, r := range rules {
		errs = append(errs, gone(pod.DelRule(r)))
	}
	for _, r := range old {
		errs = append(errs, gone(pod.DelRoute(r)))
	}
	return errors.Join(errs...)
}

// Check implements driver.Driver.
func (sbr) Check(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if err := s.Chained(); err != nil {
		return err
	}
	sources, err := sources(s)
	if err != nil {
		return err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	l, err := s.PodLink(pod)
	if err != nil {
		return err
	}
	w, err := look(pod, l.Index)
	if err != nil {
		return err
	}
	if c.Table != nil {
		for _, r := range missing(w, sources, *c.Table) {
			return fmt.Errorf("rule %s is missing", r)
		}
		return nil
	}
	return w.check(sources)
}

// check names the first address that does not have its table, or the first
// default route that is missing there.
func (w world) check(sources []source) error {
	for _, s := range sources {
		table, ok := w.tableOf(s)
		if !ok {
			return fmt.Errorf("rule from %s is missing", s.Addr())
		}
		there := func(r rtnl.Route) bool {
			return r.Table == table && r.Link == w.link && r.Via == s.gateway && r.Dst.Bits() == 0
		}
		if s.gateway.IsValid() && !slices.ContainsFunc(w.routes, there) {
			return fmt.Errorf("default route via %s is missing in table %d, which is that of %s", s.gateway, table, s.Addr())
		}
	}
	return nil
}
