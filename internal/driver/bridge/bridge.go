// Package bridge attaches a container to a bridge of the node by a veth pair,
// in process, as the CNI reference plugin of that name does: same
// configuration, same result. Its README says what it builds and what it
// refuses.
package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/masq"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace that the bridges are in. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
	// Masq is where all drivers of the node keep their masquerading rules. Nil
	// is for a driver that is alone.
	Masq *masq.Masquerade
}

// New returns the driver for plugin type "bridge".
func New(cfg Config) driver.Driver {
	if cfg.Masq == nil {
		cfg.Masq = masq.New(cfg.HostNS)
	}
	return &bridge{Config: cfg, remover: rtnl.NewRemover(), inUse: map[string]*use{}}
}

type bridge struct {
	Config
	remover *rtnl.Remover

	mu    sync.Mutex
	inUse map[string]*use // by bridge, while an Attach works on it

	nftMu sync.Mutex // one change of nftables at a time, see nft.go
}

// Attach implements driver.Driver.
func (b *bridge) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	a, err := b.ready(s)
	if err != nil {
		return nil, err
	}
	defer a.close()
	if err := a.claimName(ctx); err != nil {
		return nil, err
	}
	b.enter(a.Bridge)
	res, err := a.build(ctx)
	if err != nil {
		err = driver.Undo(ctx, err, a.remove)
	}
	return res, errors.Join(err, b.leave(a.host, a.Bridge, err != nil))
}

// Detach implements driver.Driver.
func (b *bridge) Detach(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		// Attach refused this before it made anything, so that only what an
		// other program made of it could be there, and it is found without it.
		c = conf{}
	}
	a, err := b.open(c, s)
	if err != nil {
		return err
	}
	defer a.close()
	return a.remove(ctx)
}

// attachment is one attachment with what is open while it is worked on.
type attachment struct {
	*bridge
	conf
	spec driver.Spec
	host *rtnl.Handle
	pod  *rtnl.Handle // nil when the namespace is gone
}

// ready opens an attachment by its own configuration.
func (b *bridge) ready(s driver.Spec) (*attachment, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	return b.open(c, s)
}

func (b *bridge) open(c conf, s driver.Spec) (*attachment, error) {
	if c.layer3() && s.IPAM == nil {
		return nil, types.NewError(types.ErrInternal, fmt.Sprintf("no address delegate for ipam type %q", c.IPAM.Type), "")
	}
	host, err := rtnl.Open(b.HostNS)
	if err != nil {
		return nil, err
	}
	a := &attachment{bridge: b, conf: c, spec: s, host: host}
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

// claimName makes sure that the interface name is free in the container.
func (a *attachment) claimName(ctx context.Context) error {
	if a.pod == nil {
		return a.spec.NoNamespace()
	}
	return a.veth().Free(ctx, a.remove)
}

// veth is the pair that connects the container to the bridge.
func (a *attachment) veth() driver.Veth {
	return driver.Veth{Spec: a.spec, Host: a.host, Pod: a.pod, Remover: a.remover}
}

// build makes the attachment. What it made before an error is for remove.
func (a *attachment) build(ctx context.Context) (*current.Result, error) {
	br, err := a.ensureBridge()
	if err != nil {
		return nil, err
	}
	host, pod, err := a.addPort(br)
	if err != nil {
		return nil, err
	}
	res := a.result(a.spec, host.Name, pod.MAC)
	switch {
	case a.layer3():
		err = a.addresses(ctx, br, pod, res)
	case !a.NoContainerLink:
		err = a.pod.SetUp(pod.Index)
	}
	if err != nil {
		return nil, err
	}
	if err := a.finalMACs(res, br.Index, host); err != nil {
		return nil, err
	}
	driver.OverrideDNS(res, a.DNS)
	return res, nil
}

// Foretell implements driver.Foreteller.
func (b *bridge) Foretell(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if c.mac == nil {
		return nil, driver.ErrUnforeseen
	}
	res := c.result(s, "", c.mac)
	if c.layer3() {
		got, err := s.IPAM.Add(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := c.take(res, got); err != nil {
			return nil, err
		}
	}
	driver.OverrideDNS(res, c.DNS)
	return res, nil
}

// result has the links of an attachment, without the MACs of the node's.
func (c conf) result(s driver.Spec, host string, mac net.HardwareAddr) *current.Result {
	return &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: c.Bridge},
			{Name: host},
			{Name: s.IfName, Mac: mac.String(), Sandbox: s.NetNSPath},
		},
	}
}

// take adds to res what the delegate gave, completed by gateways.
func (c conf) take(res, got *current.Result) ([]netip.Prefix, error) {
	res.IPs, res.Routes, res.DNS = got.IPs, got.Routes, got.DNS
	if len(res.IPs) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("ipam type %s returned no address", c.IPAM.Type), "")
	}
	return gateways(c, res)
}

// addresses asks for addresses and puts them, with all that depends on them, in
// place.
//
// The link is up before: it takes the bridge some time to forward what comes from
// it, in which the addresses are found.
func (a *attachment) addresses(ctx context.Context, br, pod rtnl.Link, res *current.Result) error {
	if err := a.fresh(pod).SetUp(); err != nil {
		return err
	}
	got, err := a.spec.IPAM.Add(ctx)
	if err != nil {
		return err
	}
	gateways, err := a.take(res, got)
	if err != nil {
		return err
	}
	link := a.fresh(pod)
	link.Up = true
	if err := link.Configure(ctx, res); err != nil {
		return err
	}
	if err := a.ensureGateway(br, gateways, res); err != nil {
		return err
	}
	if !a.Masq {
		return nil
	}
	addrs, err := masq.Addresses(res)
	if err != nil {
		return err
	}
	return a.Config.Masq.Add(ctx, a.masquerade(), addrs)
}

// masquerade is whose masquerading rules they are.
func (a *attachment) masquerade() masq.Attachment {
	return masq.Attachment{
		Network: a.Name, ContainerID: a.spec.ContainerID, IfName: a.spec.IfName,
		Backend: a.MasqBackend, Host: a.spec.Host,
	}
}

func (a *attachment) iface() driver.Interface {
	return driver.Interface{NS: a.spec.NetNS, Handle: a.pod, Name: a.spec.IfName, DAD: a.DAD, Sysctl: a.Sysctl}
}

// fresh is the interface that has just been made, so that nobody looks it up.
func (a *attachment) fresh(pod rtnl.Link) driver.Interface {
	i := a.iface()
	i.Index = pod.Index
	return i
}

// Finish implements driver.Finisher: it waits until the bridge forwards what the
// container sends, and then tells the neighbours of its addresses.
func (b *bridge) Finish(ctx context.Context, s driver.Spec, res *current.Result) error {
	a, err := b.ready(s)
	if err != nil {
		return err
	}
	defer a.close()
	if a.NoContainerLink {
		return nil
	}
	if a.pod == nil {
		return s.NoNamespace()
	}
	port := slices.IndexFunc(res.Interfaces, func(i *current.Interface) bool {
		return i.Sandbox == "" && i.Name != a.Bridge
	})
	if port < 0 {
		return nil
	}
	err = a.settle(ctx, res.Interfaces[port].Name)
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil // a plugin behind this one in the chain has taken it elsewhere
	}
	return err
}

// settle does it for the port of that name. A plugin behind this one may have
// given the other end another name, but not another index.
func (a *attachment) settle(ctx context.Context, port string) error {
	host, err := a.host.Link(port)
	if err == nil && !host.Running {
		err = a.awaitPort(ctx, host)
	}
	if err != nil || !a.layer3() {
		return err
	}
	return a.fresh(rtnl.Link{Index: host.Parent}).Announce()
}

func (a *attachment) awaitPort(ctx context.Context, host rtnl.Link) error {
	const limit = 3 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("bridge port is still not running after %s", limit))
	defer cancel()
	return rtnl.Await(ctx, a.HostNS, func() (bool, error) {
		l, err := a.host.LinkByIndex(host.Index)
		return l.Running, err
	})
}

// finalMACs fills in the MACs of the node's links: a bridge without a MAC of
// its own may have got a new one with this port.
func (a *attachment) finalMACs(res *current.Result, bridge int, host rtnl.Link) error {
	br, err := a.host.LinkByIndex(bridge)
	if err != nil {
		return err
	}
	res.Interfaces[0].Mac, res.Interfaces[1].Mac = br.MAC.String(), host.MAC.String()
	return nil
}

// remove makes everything gone that Attach makes for this attachment alone,
// whether Attach finished or not. The address is released after the link that
// had it is gone.
func (a *attachment) remove(ctx context.Context) error {
	errs := []error{a.veth().Remove()}
	if a.spec.IPAM != nil {
		errs = append(errs, a.spec.IPAM.Del(ctx))
	}
	if a.SpoofCheck {
		errs = append(errs, a.removeSpoofCheck())
	}
	if a.layer3() && a.Masq {
		addrs, err := masq.Addresses(a.spec.Prev)
		errs = append(errs, err, a.Config.Masq.Remove(ctx, a.masquerade(), addrs))
	}
	return errors.Join(errs...)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// use counts the Attach calls that work on one bridge.
type use struct {
	calls int
	made  bool // by one of them
}

func (b *bridge) enter(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inUse[name] == nil {
		b.inUse[name] = &use{}
	}
	b.inUse[name].calls++
}

func (b *bridge) made(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inUse[name].made = true
}

// leave ends a call. A bridge that failed calls made for themselves is removed
// by the last of them, when nobody else has put a port on it meanwhile.
func (b *bridge) leave(host *rtnl.Handle, name string, failed bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.inUse[name]
	if u.calls--; u.calls > 0 {
		return nil
	}
	delete(b.inUse, name)
	if !failed || !u.made {
		return nil
	}
	return removeUnused(host, name)
}

func removeUnused(host *rtnl.Handle, name string) error {
	br, err := host.Link(name)
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := host.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Master == br.Index {
			return nil
		}
	}
	return host.Del(br.Index)
}
