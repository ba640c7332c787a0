// Package ptp connects a container to its node alone, by a veth pair with
// routes on both sides, in process, as the CNI reference plugin of that name
// does. Its README says what it builds and what it refuses.
package ptp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/masq"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the node's namespace. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
	// Masq is where all drivers of the node keep their masquerading rules. Nil
	// is for a driver that is alone.
	Masq *masq.Masquerade
}

// New returns the driver for plugin type "ptp".
func New(cfg Config) driver.Driver {
	if cfg.Masq == nil {
		cfg.Masq = masq.New(cfg.HostNS)
	}
	return ptp{Config: cfg, remover: rtnl.NewRemover()}
}

type ptp struct {
	Config
	remover *rtnl.Remover
}

// containerIndex is where the container's end is in a result's interfaces,
// behind the node's end.
const containerIndex = 1

// Attach implements driver.Driver.
func (d ptp) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	a, err := d.open(c, s)
	if err != nil {
		return nil, err
	}
	defer a.close()
	if err := a.needPod(); err != nil {
		return nil, err
	}
	if err := a.veth().Free(ctx, a.remove); err != nil {
		return nil, err
	}
	res, err := a.build(ctx)
	if err != nil {
		return nil, driver.Undo(ctx, err, a.remove)
	}
	return res, nil
}

// Detach implements driver.Driver.
func (d ptp) Detach(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		// Attach refused this before it made anything, so that only what an
		// other program made of it could be there, and it is found without it.
		c = conf{}
	}
	a, err := d.open(c, s)
	if err != nil {
		return err
	}
	defer a.close()
	return a.remove(ctx)
}

// attachment is one attachment with what is open while it is worked on.
type attachment struct {
	conf
	cfg  ptp
	spec driver.Spec
	host *rtnl.Handle
	pod  *rtnl.Handle // nil when the namespace is gone
}

func (d ptp) open(c conf, s driver.Spec) (*attachment, error) {
	host, err := rtnl.Open(d.HostNS)
	if err != nil {
		return nil, err
	}
	a := &attachment{conf: c, cfg: d, spec: s, host: host}
	if s.NetNS != nil {
		if a.pod, err = driver.OpenPod(s); err != nil {
			host.Close()
			return nil, err
		}
	}
	return a, nil
}

func (a *attachment) close() {
	a.host.Close()
	if a.pod != nil {
		a.pod.Close()
	}
}

func (a *attachment) needPod() error {
	if a.pod == nil {
		return a.spec.NoNamespace()
	}
	return nil
}

func (a *attachment) veth() driver.Veth {
	return driver.Veth{Spec: a.spec, Host: a.host, Pod: a.pod, Remover: a.cfg.remover}
}

// iface asks nobody about duplicates: the node is alone on the other side.
func (a *attachment) iface() driver.Interface {
	return driver.Interface{NS: a.spec.NetNS, Name: a.spec.IfName, Sysctl: a.cfg.Sysctl}
}

// build makes the attachment. What it made before an error is for remove.
func (a *attachment) build(ctx context.Context) (*current.Result, error) {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if err := a.spec.Addresses(ctx, res, containerIndex); err != nil {
		return nil, err
	}
	hops, err := hops(res)
	if err != nil {
		return nil, err
	}
	if err := a.forward(hops); err != nil {
		return nil, err
	}
	host, pod, err := a.veth().Make(rtnl.Veth{New: rtnl.New{MTU: a.MTU}, Peer: rtnl.New{MTU: a.MTU, MAC: a.spec.MAC}})
	if err != nil {
		return nil, err
	}
	res.Interfaces = []*current.Interface{
		{Name: host.Name, Mac: host.MAC.String()},
		{Name: pod.Name, Mac: pod.MAC.String(), Sandbox: a.spec.NetNSPath},
	}
	if err := a.connectNode(host, hops); err != nil {
		return nil, err
	}
	if err := a.iface().Configure(ctx, res); err != nil {
		return nil, err
	}
	if err := a.isolate(pod, hops); err != nil {
		return nil, err
	}
	if err := a.masquerade(ctx, res); err != nil {
		return nil, err
	}
	driver.OverrideDNS(res, a.DNS)
	return res, nil
}

// Foretell implements driver.Foreteller.
func (ptp) Foretell(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if s.MAC == nil {
		return nil, driver.ErrUnforeseen
	}
	res := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{}, {Name: s.IfName, Mac: s.MAC.String(), Sandbox: s.NetNSPath}},
	}
	if err := s.Addresses(ctx, res, containerIndex); err != nil {
		return nil, err
	}
	if _, err := hops(res); err != nil {
		return nil, err
	}
	driver.OverrideDNS(res, c.DNS)
	return res, nil
}

// forward makes the node forward the families that the container has.
func (a *attachment) forward(hops []hop) error {
	for _, h := range hops {
		set := rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}
		if h.via.Is6() {
			set.Path = "ipv6/conf/all/forwarding"
		}
		if err := a.cfg.Sysctl.Set(a.cfg.HostNS, set); err != nil {
			return err
		}
	}
	return nil
}

// connectNode gives the node's end the gateways' addresses, and routes to the
// container's.
func (a *attachment) connectNode(host rtnl.Link, hops []hop) error {
	// The node takes no addresses and routes from its containers.
	err := a.cfg.Sysctl.Set(a.cfg.HostNS, rtnl.Setting{Path: "ipv6/conf/" + host.Name + "/accept_ra", Value: "0"})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has nothing to refuse
		return err
	}
	if err := a.host.SetUp(host.Index); err != nil {
		return err
	}
	for _, h := range hops {
		// Nobody else is on the link who could have the address.
		err := a.host.AddAddr(host.Index, rtnl.Addr{Prefix: h.gateway(), NoDAD: true})
		if err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
		// ipam gave the address to this container: a route to it that leads
		// elsewhere is one that somebody forgot.
		if err := a.host.ReplaceRoute(rtnl.Route{Dst: h.container(), Link: host.Index, Scope: unix.RT_SCOPE_HOST}); err != nil {
			return err
		}
	}
	return nil
}

// isolate sends everything through the gateway, the rest of the subnet too:
// only the gateway itself is on the link.
func (a *attachment) isolate(pod rtnl.Link, hops []hop) error {
	for _, h := range hops {
		subnet := h.addr.Masked()
		if !subnet.IsSingleIP() {
			err := a.pod.DelRoute(rtnl.Route{Dst: subnet, Link: pod.Index})
			if err != nil && !errors.Is(err, rtnl.ErrNotFound) { // another address of the subnet may have come first
				return err
			}
		}
		for _, r := range h.routes(pod.Index) {
			if err := a.pod.AddRoute(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
				return err
			}
		}
	}
	return nil
}

// routes are those of the container, in the order in which the kernel takes
// them.
func (h hop) routes(link int) []rtnl.Route {
	routes := []rtnl.Route{{Dst: h.gateway(), Link: link, Scope: unix.RT_SCOPE_LINK, Src: h.addr.Addr()}}
	if subnet := h.addr.Masked(); !subnet.IsSingleIP() {
		routes = append(routes, rtnl.Route{Dst: subnet, Via: h.via, Link: link, Src: h.addr.Addr()})
	}
	return routes
}

func (a *attachment) masquerade(ctx context.Context, res *current.Result) error {
	if !a.Masq {
		return nil
	}
	addrs, err := masq.Addresses(res)
	if err != nil {
		return err
	}
	return a.cfg.Masq.Add(ctx, a.masqueraded(), addrs)
}

// masqueraded is whose masquerading rules they are.
func (a *attachment) masqueraded() masq.Attachment {
	return masq.Attachment{
		Network: a.Name, ContainerID: a.spec.ContainerID, IfName: a.spec.IfName,
		Backend: a.MasqBackend, Host: a.spec.Host,
	}
}

// remove makes everything gone that Attach makes, whether it finished or not.
// The kernel removes the node's addresses and routes with the link. The address
// is released after that.
func (a *attachment) remove(ctx context.Context) error {
	errs := []error{a.veth().Remove()}
	if a.spec.IPAM != nil {
		errs = append(errs, a.spec.IPAM.Del(ctx))
	}
	if a.Masq {
		addrs, err := masq.Addresses(a.spec.Prev)
		errs = append(errs, err, a.cfg.Masq.Remove(ctx, a.masqueraded(), addrs))
	}
	return errors.Join(errs...)
}

// Check implements driver.Driver.
func (d ptp) Check(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	a, err := d.open(c, s)
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.needPod(); err != nil {
		return err
	}
	if err := s.IPAM.Check(ctx); err != nil {
		return err
	}
	pod, err := driver.PodLink{Spec: s, Kind: "veth", Pod: a.pod}.Check()
	if err != nil {
		return err
	}
	if a.MTU != 0 && pod.MTU != a.MTU {
		return fmt.Errorf("interface %s has mtu %d, not %d", pod.Name, pod.MTU, a.MTU)
	}
	if err := a.iface().Check(s.Prev); err != nil {
		return err
	}
	return a.checkNode(pod)
}

// checkNode compares the node's end with what the result says.
func (a *attachment) checkNode(pod rtnl.Link) error {
	host, ours := a.veth().HostEnd(pod)
	switch {
	case !ours:
		return fmt.Errorf("the other end of %s is not the one that was made for it", pod.Name)
	case !host.Up:
		return fmt.Errorf("%s, the other end of %s, is down", host.Name, pod.Name)
	}
	hops, err := hops(a.spec.Prev)
	if err != nil {
		return err
	}
	addrs, err := a.host.Addrs(host.Index)
	if err != nil {
		return err
	}
	routes, err := a.host.Routes()
	if err != nil {
		return err
	}
	for _, h := range hops {
		if !slices.ContainsFunc(addrs, func(have rtnl.Addr) bool { return have.Prefix == h.gateway() }) {
			return fmt.Errorf("gateway %s of %s is not on the node's end %s", h.via, h.addr, host.Name)
		}
		to := func(r rtnl.Route) bool { return r.Dst == h.container() && r.Link == host.Index }
		if !slices.ContainsFunc(routes, to) {
			return fmt.Errorf("the node has no route to %s by %s", h.container(), host.Name)
		}
	}
	return nil
}
