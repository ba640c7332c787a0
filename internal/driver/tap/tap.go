// Package tap gives a container a tap link, which a program in it opens, such
// as a virtual machine. It does in process what the CNI reference plugin of
// that name does.
package tap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// Sysctl is where /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
}

// New returns the driver for plugin type "tap".
func New(cfg Config) driver.Driver { return tap{cfg, rtnl.NewRemover()} }

type tap struct {
	Config
	remover *rtnl.Remover
}

// conf is the configuration. The README says what each key means.
type conf struct {
	Name string `json:"name"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS types.DNS `json:"dns"`

	MultiQueue     bool    `json:"multiQueue"`
	MTU            int     `json:"mtu"`
	MAC            string  `json:"mac"`
	Owner          *uint32 `json:"owner"`
	Group          *uint32 `json:"group"`
	SELinuxContext string  `json:"selinuxContext"`
	Bridge         string  `json:"bridge"`
	mac            net.HardwareAddr
}

// parse reads and validates everything that can be judged without looking at
// the container.
func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read tap configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	var err error
	if c.mac, err = driver.RequestedMAC(s.Conf, s.Args); err != nil {
		return c, err
	}
	if c.mac == nil && c.MAC != "" {
		if c.mac, err = net.ParseMAC(c.MAC); err != nil || len(c.mac) != 6 || c.mac[0]&1 != 0 || [6]byte(c.mac) == [6]byte{} {
			return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mac %q is not the address of one interface", c.MAC), "")
		}
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65521) {
		return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mtu %d is not between 68 and 65521", c.MTU), "")
	}
	if strings.HasPrefix(c.SELinuxContext, "-") { // would be an option of runcon
		return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("selinuxContext %q is none", c.SELinuxContext), "")
	}
	if c.IPAM.Type != "" && s.IPAM == nil {
		return c, types.NewError(types.ErrInternal, fmt.Sprintf("no address delegate for ipam type %q", c.IPAM.Type), "")
	}
	return c, nil
}

// attachment is one attachment while it is worked on.
type attachment struct {
	tap
	conf
	spec driver.Spec
	pod  *rtnl.Handle // nil when the namespace is gone
}

// Attach implements driver.Driver.
func (d tap) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	a := attachment{d, c, s, pod}
	if err := a.link().Free(ctx, a.remove); err != nil {
		return nil, err
	}
	res, err := a.build(ctx)
	if err != nil {
		return nil, driver.Undo(ctx, err, a.remove)
	}
	return res, nil
}

func (a attachment) build(ctx context.Context) (*current.Result, error) {
	l, err := a.link().MakeAndRename(func(name string) (rtnl.Link, error) { return a.create(ctx, name) })
	if err != nil {
		return nil, err
	}
	if err := a.joinBridge(l); err != nil {
		return nil, err
	}
	res := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: l.Name, Mac: l.MAC.String(), Sandbox: a.spec.NetNSPath}},
	}
	if a.IPAM.Type == "" {
		err = a.pod.SetUp(l.Index)
	} else if err = a.spec.Addresses(ctx, res, 0); err == nil {
		err = a.iface().Configure(ctx, res)
	}
	res.DNS = a.DNS // what ipam says of it is dropped, as the reference plugin does
	return res, err
}

// create makes the tap: by itself where it may, else by programs of the host.
// A process cannot take on another SELinux context for a while, so that a tap
// with one is always made by a program.
func (a attachment) create(ctx context.Context, name string) (rtnl.Link, error) {
	want := rtnl.Tap{New: rtnl.New{Name: name, MTU: a.MTU, MAC: a.mac}, MultiQueue: a.MultiQueue, Owner: a.Owner, Group: a.Group}
	if a.SELinuxContext == "" {
		l, err := a.pod.AddTap(want)
		mayNot := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
		if !mayNot || a.spec.Host == nil {
			return l, err
		}
	}
	if a.spec.Host == nil {
		return rtnl.Link{}, types.NewError(types.ErrTryAgainLater, "a tap with an SELinux context: nobody is connected who could make it on the host", "")
	}
	if _, err := a.spec.Host.Exec(ctx, a.program(name)); err != nil {
		return rtnl.Link{}, fmt.Errorf("create tap: %w", err)
	}
	return a.finish(name)
}

// program makes the tap in the container's namespace.
func (a attachment) program(name string) driver.Program {
	args := []string{"--net=" + a.spec.NetNSPath, "--"}
	if a.SELinuxContext != "" {
		args = append(args, "runcon", a.SELinuxContext)
	}
	args = append(args, "ip", "tuntap", "add", "mode", "tap", "name", name)
	if a.MultiQueue {
		args = append(args, "multi_queue")
	}
	if a.Owner != nil {
		args = append(args, "user", strconv.FormatUint(uint64(*a.Owner), 10))
	}
	if a.Group != nil {
		args = append(args, "group", strconv.FormatUint(uint64(*a.Group), 10))
	}
	return driver.Program{Name: "nsenter", Args: args}
}

// finish does what a program would take one more call each for.
func (a attachment) finish(name string) (rtnl.Link, error) {
	l, err := a.pod.Link(name)
	if err != nil {
		return l, err
	}
	if a.MTU != 0 {
		if err := a.pod.SetMTU(l.Index, a.MTU); err != nil {
			return l, err
		}
	}
	if a.mac != nil {
		if err := a.pod.SetMAC(l.Index, a.mac); err != nil {
			return l, err
		}
	}
	return a.pod.LinkByIndex(l.Index)
}

// joinBridge makes the tap a port of a bridge in the container.
func (a attachment) joinBridge(l rtnl.Link) error {
	if a.Bridge == "" {
		return nil
	}
	br, err := a.pod.Link(a.Bridge)
	if errors.Is(err, rtnl.ErrNotFound) {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("the container has no bridge %s", a.Bridge),
			"an attachment before this one must make it in the container")
	}
	if err != nil {
		return err
	}
	return a.pod.SetMaster(l.Index, br.Index)
}

// Detach implements driver.Driver.
func (d tap) Detach(ctx context.Context, s driver.Spec) error {
	a := attachment{tap: d, spec: s}
	if s.NetNS != nil {
		pod, err := driver.OpenPod(s)
		if err != nil {
			return err
		}
		defer pod.Close()
		a.pod = pod
	}
	return a.remove(ctx)
}

func (a attachment) remove(ctx context.Context) (err error) {
	if a.pod != nil {
		err = a.link().Remove()
	}
	if a.spec.IPAM != nil {
		err = errors.Join(err, a.spec.IPAM.Del(ctx))
	}
	return err
}

// Check implements driver.Driver.
func (d tap) Check(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	if s.IPAM != nil {
		if err := s.IPAM.Check(ctx); err != nil {
			return err
		}
	}
	return attachment{d, c, s, pod}.check()
}

func (a attachment) check() error {
	l, err := a.link().Check()
	if err != nil {
		return err
	}
	if a.MTU != 0 && l.MTU != a.MTU {
		return fmt.Errorf("interface %s has mtu %d, not %d", l.Name, l.MTU, a.MTU)
	}
	if a.Bridge != "" {
		br, err := a.pod.Link(a.Bridge)
		if err != nil {
			return err
		}
		if l.Master != br.Index {
			return fmt.Errorf("interface %s is no port of bridge %s", l.Name, a.Bridge)
		}
	}
	return a.iface().Check(a.spec.Prev)
}

func (a attachment) link() driver.PodLink {
	return driver.PodLink{Spec: a.spec, Kind: "tuntap", Pod: a.pod, Remover: a.remover}
}

// iface asks nobody about duplicates: until a program opens the tap there is
// nobody to ask, and the addresses could not be used before.
func (a attachment) iface() driver.Interface {
	return driver.Interface{NS: a.spec.NetNS, Name: a.spec.IfName, Sysctl: a.Sysctl}
}
