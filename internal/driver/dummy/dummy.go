// Package dummy gives a container a dummy link, which leads nowhere: a place
// for addresses of the container's own. It does in process what the CNI
// reference plugin of that name does.
package dummy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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

// New returns the driver for plugin type "dummy".
func New(cfg Config) driver.Driver { return dummy{cfg, rtnl.NewRemover()} }

type dummy struct {
	Config
	remover *rtnl.Remover
}

// validate judges everything that can be judged without looking at the
// container.
func validate(s driver.Spec) error {
	var c struct {
		Name string `json:"name"`
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return types.NewError(types.ErrDecodingFailure, "read dummy configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return err
	}
	if c.IPAM.Type == "" {
		return types.NewError(types.ErrInvalidNetworkConfig, "a dummy without ipam is of no use", "name an ipam plugin")
	}
	if s.IPAM == nil {
		return types.NewError(types.ErrInternal, fmt.Sprintf("no address delegate for ipam type %q", c.IPAM.Type), "")
	}
	return nil
}

// Attach implements driver.Driver.
func (d dummy) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	if err := validate(s); err != nil {
		return nil, err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	remove := func(ctx context.Context) error { return d.remove(ctx, s, pod) }
	if err := d.link(s, pod).Free(ctx, remove); err != nil {
		return nil, err
	}
	res, err := d.build(ctx, s, pod)
	if err != nil {
		return nil, driver.Undo(ctx, err, remove)
	}
	return res, nil
}

func (d dummy) build(ctx context.Context, s driver.Spec, pod *rtnl.Handle) (*current.Result, error) {
	l, err := d.link(s, pod).Make(pod.AddDummy)
	if err != nil {
		return nil, err
	}
	res := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: s.IfName, Mac: l.MAC.String(), Sandbox: s.NetNSPath}},
	}
	if err := s.Addresses(ctx, res, 0); err != nil {
		return nil, err
	}
	return res, d.iface(s).Configure(ctx, res)
}

// Detach implements driver.Driver.
func (d dummy) Detach(ctx context.Context, s driver.Spec) error {
	if s.NetNS == nil {
		return d.remove(ctx, s, nil)
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	return d.remove(ctx, s, pod)
}

// remove needs no pod when the namespace is gone, and the link with it.
func (d dummy) remove(ctx context.Context, s driver.Spec, pod *rtnl.Handle) (err error) {
	if pod != nil {
		err = d.link(s, pod).Remove()
	}
	if s.IPAM != nil {
		err = errors.Join(err, s.IPAM.Del(ctx))
	}
	return err
}

// Check implements driver.Driver.
func (d dummy) Check(ctx context.Context, s driver.Spec) error {
	if err := validate(s); err != nil {
		return err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	if err := s.IPAM.Check(ctx); err != nil {
		return err
	}
	if _, err := d.link(s, pod).Check(); err != nil {
		return err
	}
	return d.iface(s).Check(s.Prev)
}

func (d dummy) link(s driver.Spec, pod *rtnl.Handle) driver.PodLink {
	return driver.PodLink{Spec: s, Kind: "dummy", Pod: pod, Remover: d.remover}
}

// iface asks nobody about duplicates: there is nobody on the link.
func (d dummy) iface(s driver.Spec) driver.Interface {
	return driver.Interface{NS: s.NetNS, Name: s.IfName, Sysctl: d.Sysctl}
}
