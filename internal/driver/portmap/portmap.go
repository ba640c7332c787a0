// Package portmap leads ports of the node to a container, in process, as the
// CNI reference plugin of that name does: same configuration, same result. Its
// README says what it builds and what it refuses.
package portmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/nft"
	"braid.dev/braid/internal/rtnl"
)

// undoTimeout bounds the clean-up of an Attach that did not succeed, which
// goes on when the request's own time is over.
const undoTimeout = 10 * time.Second

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace whose ports are mapped. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
}

// New returns the driver for plugin type "portmap".
func New(cfg Config) driver.Driver { return &portmap{Config: cfg} }

type portmap struct {
	Config
	// mu lets one change of nftables happen at a time: rules are removed by
	// listing them first, and a list that is read while somebody changes it may
	// have holes.
	mu sync.Mutex
}

// attachment is one attachment while it is worked on.
type attachment struct {
	*portmap
	conf
	spec driver.Spec
}

// Attach implements driver.Driver.
func (p *portmap) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if s.NetNS == nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	if s.Prev == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "portmap must be chained behind a plugin that gives addresses", "prevResult is missing")
	}
	if len(c.RuntimeConfig.Mappings) == 0 {
		return s.Prev, nil
	}
	to, err := targets(s.Prev, s.IfName)
	if err != nil {
		return nil, err
	}
	a := &attachment{portmap: p, conf: c, spec: s}
	if err := a.build(ctx, to); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, a.remove(ctx))
	}
	return s.Prev, nil
}

// Foretell implements driver.Foreteller.
func (*portmap) Foretell(_ context.Context, s driver.Spec) (*current.Result, error) {
	return driver.ForetellPrev(s)
}

// Detach implements driver.Driver.
func (p *portmap) Detach(ctx context.Context, s driver.Spec) error {
	c, err := decode(s)
	if err != nil || len(c.RuntimeConfig.Mappings) == 0 {
		return nil // Attach refused it, or had nothing to do
	}
	return (&attachment{portmap: p, conf: c, spec: s}).remove(ctx)
}

// Check implements driver.Driver.
func (p *portmap) Check(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if s.NetNS == nil {
		return types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	if s.Prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "")
	}
	if len(c.RuntimeConfig.Mappings) == 0 {
		return nil
	}
	to, err := targets(s.Prev, s.IfName)
	if err != nil {
		return err
	}
	return (&attachment{portmap: p, conf: c, spec: s}).check(ctx, to)
}

// build maps the ports to each of the container's addresses.
func (a *attachment) build(ctx context.Context, to []netip.Prefix) error {
	if err := a.addRules(ctx, to); err != nil {
		return err
	}
	for _, t := range to {
		a.forgetFlows(t.Addr().Is6())
		if t.Addr().Is4() && a.snat() {
			if err := a.letLoopbackOut(t.Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

// addRules uses nftables wherever the kernel has it and the configuration does
// not ask for what only iptables can do.
func (a *attachment) addRules(ctx context.Context, to []netip.Prefix) error {
	if a.backend() == byIPTables {
		return a.addIPTables(ctx, to)
	}
	err := a.addNFTables(to)
	// ENOENT is a kernel that lacks one of the matches.
	if a.backend() == "" && (nft.Unsupported(err) || errors.Is(err, unix.ENOENT)) {
		return a.addIPTables(ctx, to)
	}
	return err
}

// remove removes the rules of both backends, unless the configuration says
// which one made them. Without nftables rules there may be those that the
// reference plugin, whose first choice is iptables, made before Braid came.
func (a *attachment) remove(ctx context.Context) error {
	if a.backend() == byIPTables {
		return a.removeIPTables(ctx)
	}
	found, err := a.removeNFTables()
	if err != nil || found || a.backend() == byNFTables {
		return err
	}
	return a.removeIPTables(ctx)
}

// check looks where Attach puts the rules, and where the reference plugin does.
func (a *attachment) check(ctx context.Context, to []netip.Prefix) error {
	if a.backend() == byIPTables {
		return a.checkIPTables(ctx, to)
	}
	found, err := a.checkNFTables(to)
	if err != nil && !found && a.backend() == "" && a.spec.Host != nil {
		return a.checkIPTables(ctx, to)
	}
	return err
}

// forgetFlows ends what the kernel remembers of UDP to the mapped ports, which
// would otherwise keep going where it went before. It is a kindness to senders
// that never pause, as in the reference plugin: a kernel that cannot do it is
// no reason to have no pod.
func (a *attachment) forgetFlows(is6 bool) {
	for _, m := range a.mappings(is6) {
		if m.protocol == unix.IPPROTO_UDP {
			_, _ = rtnl.ForgetFlows(a.HostNS, is6, m.protocol, uint16(m.HostPort))
		}
	}
}

// letLoopbackOut makes the kernel route packets from 127.0.0.1 to the link that
// leads to the container, where they leave with another source.
func (a *attachment) letLoopbackOut(to netip.Addr) error {
	h, err := rtnl.Open(a.HostNS)
	if err != nil {
		return err
	}
	defer h.Close()
	index, err := h.LinkTo(to)
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil // the node has no way to the container, loopback or not
	}
	if err != nil {
		return err
	}
	link, err := h.LinkByIndex(index)
	if err != nil {
		return err
	}
	err = a.Sysctl.Set(a.HostNS, rtnl.Setting{Path: "ipv4/conf/" + link.Name + "/route_localnet", Value: "1"})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link %s vanished: %w", link.Name, err)
	}
	return err
}
