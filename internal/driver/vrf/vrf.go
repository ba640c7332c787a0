// Package vrf puts an interface that a plugin before it in the chain has made
// into a virtual routing domain of the container, in process, as the CNI
// reference plugin of that name does. Its README says what it builds and what
// it refuses.
package vrf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// dadTimeout bounds the wait for IPv6 addresses, which are checked for
// duplicates again where that is asked for.
const dadTimeout = 5 * time.Second

// New returns the driver for plugin type "vrf".
func New() driver.Driver { return vrf{rtnl.NewRemover()} }

type vrf struct{ remover *rtnl.Remover }

// Attach implements driver.Driver.
func (v vrf) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if err := s.Chained(); err != nil {
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
	d, made, err := ensure(pod, c)
	if err == nil {
		err = d.enter(ctx, s, l)
	}
	if err != nil {
		return nil, driver.Undo(ctx, err, func(context.Context) error { return d.undo(s, made, v.remover) })
	}
	return s.Prev, nil
}

// domain is a vrf device and its table.
type domain struct {
	rtnl.Link
	table int
	pod   *rtnl.Handle
}

// find returns the domain of that name, or ErrNotFound.
func find(pod *rtnl.Handle, name string) (domain, error) {
	l, err := pod.Link(name)
	if err != nil {
		return domain{}, err
	}
	if l.Kind != "vrf" {
		return domain{}, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("vrfname %s is the name of a link of kind %s", name, l.Kind), "")
	}
	table, err := pod.VRFTable(l.Index)
	return domain{l, int(table), pod}, err
}

// ensure makes the domain unless it is there. made is set also when it fails
// after that.
func ensure(pod *rtnl.Handle, c conf) (d domain, made bool, err error) {
	d, err = find(pod, c.VRF)
	switch {
	case errors.Is(err, rtnl.ErrNotFound):
		d, err = create(pod, c)
		return d, err == nil, err
	case err != nil:
		return d, false, err
	case c.Table != 0 && d.table != int(c.Table):
		return d, false, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("vrf %s has table %d already, not %d", c.VRF, d.table, c.Table), "")
	case !d.Up:
		return d, false, pod.SetUp(d.Index)
	}
	return d, false, nil
}

func create(pod *rtnl.Handle, c conf) (domain, error) {
	table := c.Table
	if table == 0 {
		var err error
		if table, err = unused(pod); err != nil {
			return domain{}, err
		}
	}
	l, err := pod.AddVRF(rtnl.New{Name: c.VRF, Up: true}, table)
	return domain{l, int(table), pod}, err
}

func unused(pod *rtnl.Handle) (uint32, error) {
	links, err := pod.Links()
	if err != nil {
		return 0, err
	}
	var vrfs []uint32
	for _, l := range links {
		if l.Kind != "vrf" {
			continue
		}
		table, err := pod.VRFTable(l.Index)
		if err != nil {
			return 0, err
		}
		vrfs = append(vrfs, table)
	}
	routes, err := pod.Routes()
	return freeTable(vrfs, routes), err
}

// enter makes the link one of the domain's, with the addresses and routes that
// it has.
func (d domain) enter(ctx context.Context, s driver.Spec, l rtnl.Link) error {
	if l.Master != 0 && l.Master != d.Index {
		other, err := d.pod.LinkByIndex(l.Master)
		if err != nil {
			return err
		}
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("interface %s is in %s (%s) already", l.Name, other.Name, other.Kind), "")
	}
	have, err := d.look(l)
	if err != nil {
		return err
	}
	if l.Master == 0 {
		err = d.pod.SetMaster(l.Index, d.Index)
	} else {
		// An interrupted call may have lost what only the result tells now.
		have, err = have.and(s, l)
	}
	if err != nil {
		return err
	}
	have = have.in(rtnl.MainTable, d.table)
	if err := d.readdress(l, have); err != nil {
		return err
	}
	if err := d.settle(ctx, s.NetNS, l); err != nil {
		return err
	}
	return d.reroute(have)
}

func (d domain) look(l rtnl.Link) (kept, error) {
	addrs, err := d.pod.Addrs(l.Index)
	if err != nil {
		return kept{}, err
	}
	routes, err := d.pod.Routes()
	return keep(l.Index, addrs, routes), err
}

// and adds what the result of the chain says about the interface.
func (k kept) and(s driver.Spec, l rtnl.Link) (kept, error) {
	addrs, routes, err := s.Carried()
	for _, p := range addrs {
		if p.Addr().Is6() {
			k.addrs = append(k.addrs, rtnl.Addr{Prefix: p})
		}
	}
	for _, r := range routes {
		r.Link = l.Index
		if r.Table == 0 {
			r.Table = rtnl.MainTable
		}
		k.routes = append(k.routes, r)
	}
	return k, err
}

// readdress adds the addresses that are not there any more.
func (d domain) readdress(l rtnl.Link, want kept) error {
	for _, a := range want.addrs {
		if err := d.pod.AddAddr(l.Index, a); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
	}
	return nil
}

// reroute adds the routes that are not there any more.
func (d domain) reroute(want kept) error {
	for _, r := range want.routes {
		if err := d.pod.AppendRoute(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
	}
	return nil
}

// settle waits until the IPv6 addresses can be used again.
func (d domain) settle(ctx context.Context, ns *netns.NS, l rtnl.Link) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dadTimeout, fmt.Errorf("IPv6 addresses of %s are still tentative %s after it entered vrf %s", l.Name, dadTimeout, d.Name))
	defer cancel()
	return rtnl.Await(ctx, ns, func() (bool, error) {
		addrs, err := d.pod.Addrs(l.Index)
		waits := func(a rtnl.Addr) bool { return a.Tentative && !a.Addr().IsLinkLocalUnicast() }
		return !slices.ContainsFunc(addrs, waits), err
	})
}

// leave is enter the other way round. It waits for nothing.
func (d domain) leave(l rtnl.Link) error {
	have, err := d.look(l)
	if err != nil {
		return err
	}
	have = have.in(d.table, rtnl.MainTable)
	if err := d.pod.SetMaster(l.Index, 0); err != nil {
		return err
	}
	return errors.Join(d.readdress(l, have), d.reroute(have))
}

// undo takes back what an Attach has done that failed.
func (d domain) undo(s driver.Spec, made bool, remover *rtnl.Remover) error {
	if d.Index == 0 {
		return nil
	}
	l, err := d.pod.Link(s.IfName)
	if err == nil && l.Master == d.Index {
		err = d.leave(l)
	}
	if made {
		err = errors.Join(err, d.removeUnused(remover))
	}
	return err
}

// removeUnused removes the domain when no link is in it.
func (d domain) removeUnused(remover *rtnl.Remover) error {
	links, err := d.pod.Links()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(links, func(l rtnl.Link) bool { return l.Master == d.Index }) {
		return nil
	}
	return gone(remover.Del(d.pod, d.Index))
}

// gone forgives that something was not there any more.
func gone(err error) error {
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	return err
}

// Detach implements driver.Driver. The domain goes with its last link. All of
// it is in the namespace, so that nothing is left to do when that is gone.
func (v vrf) Detach(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil || s.NetNS == nil {
		return nil // refused by Attach, too
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	d, err := find(pod, c.VRF)
	var coded *types.Error
	if errors.Is(err, rtnl.ErrNotFound) || errors.As(err, &coded) {
		return nil // not there, or no vrf
	}
	if err != nil {
		return err
	}
	l, err := pod.Link(s.IfName)
	switch {
	case errors.Is(err, rtnl.ErrNotFound):
		err = nil
	case err == nil && l.Master == d.Index:
		err = d.leave(l)
	}
	return errors.Join(err, d.removeUnused(v.remover))
}

// Check implements driver.Driver. The addresses and routes are what the plugin
// before it in the chain checks.
func (vrf) Check(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if err := s.Chained(); err != nil {
		return err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	d, err := find(pod, c.VRF)
	if err != nil {
		return err
	}
	l, err := s.PodLink(pod)
	if err != nil {
		return err
	}
	switch {
	case l.Master != d.Index:
		return fmt.Errorf("interface %s is not in vrf %s", l.Name, d.Name)
	case !d.Up:
		return fmt.Errorf("vrf %s is down", d.Name)
	case c.Table != 0 && d.table != int(c.Table):
		return fmt.Errorf("vrf %s has table %d, not %d", d.Name, d.table, c.Table)
	}
	return nil
}
