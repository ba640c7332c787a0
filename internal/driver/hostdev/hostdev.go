// Package hostdev lends a container a network device of its node, and takes it
// back, in process, as the CNI reference plugin host-device does. Its README
// says what becomes of the device and what is refused.
package hostdev

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace that the devices are in. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
	// Sysfs is where the node's sysfs is, /sys when empty.
	Sysfs string
}

// New returns the driver for plugin type "host-device".
func New(cfg Config) driver.Driver {
	if cfg.Sysfs == "" {
		cfg.Sysfs = "/sys"
	}
	return &hostDevice{cfg: cfg}
}

type hostDevice struct {
	cfg Config
	// mu lets one device at a time change hands, so that a device which is
	// found is still there to be taken.
	mu sync.Mutex
}

// Attach implements driver.Driver.
func (d *hostDevice) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if s.NetNS == nil {
		return nil, s.NoNamespace()
	}
	a, err := d.open(c, s)
	if err != nil {
		return nil, err
	}
	defer a.close()
	at, err := a.place()
	if err != nil {
		return nil, err
	}
	if err := a.freeName(ctx); err != nil {
		return nil, err
	}
	res, err := a.build(ctx, at)
	if err != nil {
		return nil, driver.Undo(ctx, err, a.remove)
	}
	return res, nil
}

// Lends implements driver.Lender.
func (d *hostDevice) Lends() {}

// Detach implements driver.Driver.
func (d *hostDevice) Detach(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		c = conf{} // Attach refused this before it took anything
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
	*hostDevice
	conf
	spec   driver.Spec
	hostNS *netns.NS
	host   *rtnl.Handle
	pod    *rtnl.Handle // nil when the namespace is gone
	// wasUp: Attach took the device while it was up. What fails leaves it so.
	wasUp bool
}

func (d *hostDevice) open(c conf, s driver.Spec) (*attachment, error) {
	a := &attachment{hostDevice: d, conf: c, spec: s, hostNS: d.cfg.HostNS}
	var err error
	if a.hostNS == nil {
		if a.hostNS, err = netns.Current(); err != nil {
			return nil, err
		}
	}
	if a.host, err = rtnl.Open(a.hostNS); err == nil && s.NetNS != nil {
		a.pod, err = driver.OpenPod(s)
	}
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *attachment) close() {
	if a.pod != nil {
		a.pod.Close()
	}
	if a.host != nil {
		a.host.Close()
	}
	if a.cfg.HostNS == nil {
		a.hostNS.Close()
	}
}

// freeName makes sure that the interface name is free in the container. A
// device that an interrupted Attach of this attachment left there is taken
// back; every other link of that name is the reason to refuse.
func (a *attachment) freeName(ctx context.Context) error {
	lent, err := a.lent()
	if err != nil {
		return err
	}
	if lent != nil {
		if err := a.remove(ctx); err != nil {
			return err
		}
	}
	l, err := a.pod.Link(a.spec.IfName)
	switch {
	case errors.Is(err, rtnl.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return a.spec.NameTaken(l)
}

// build makes the attachment. What it made before an error is for remove.
func (a *attachment) build(ctx context.Context, at place) (*current.Result, error) {
	own := &current.Interface{Name: a.spec.IfName, Sandbox: a.spec.NetNSPath}
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{own}}
	if !at.userspace {
		l, err := a.take(at)
		if err != nil {
			return nil, err
		}
		own.Mac = l.MAC.String()
		if a.IPAM.Type == "" {
			return res, a.pod.SetUp(l.Index)
		}
	}
	if a.IPAM.Type == "" {
		return res, nil
	}
	if err := a.spec.Addresses(ctx, res, 0); err != nil {
		return nil, err
	}
	res.DNS = a.DNS // what ipam says of it is dropped, as the reference plugin does
	if at.userspace {
		return res, nil // the container's program sees to its addresses itself
	}
	return res, a.iface().Configure(ctx, res)
}

func (a *attachment) iface() driver.Interface {
	return driver.Interface{NS: a.spec.NetNS, Name: a.spec.IfName, KernelDAD: true, Sysctl: a.cfg.Sysctl}
}

// remove gives the device back to the node and then releases the address.
func (a *attachment) remove(ctx context.Context) error {
	err := a.giveBack(ctx)
	if a.spec.IPAM != nil {
		err = errors.Join(err, a.spec.IPAM.Del(ctx))
	}
	return err
}

// Check implements driver.Driver.
func (d *hostDevice) Check(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if s.NetNS == nil {
		return s.NoNamespace()
	}
	a, err := d.open(c, s)
	if err != nil {
		return err
	}
	defer a.close()
	if s.IPAM != nil {
		if err := s.IPAM.Check(ctx); err != nil {
			return err
		}
	}
	at, err := a.place()
	if err != nil || at.userspace {
		return err
	}
	l, err := driver.PodLink{Spec: s, Pod: a.pod}.Check()
	if err != nil {
		return err
	}
	if c.Device != "" && l.Alias != c.Device && !slices.Contains(l.AltNames, c.Device) {
		return fmt.Errorf("interface %s is not device %s of the node", l.Name, c.Device)
	}
	return a.iface().Check(s.Prev)
}
