// Package loopback brings up the loopback link of a container, in process, as
// the CNI reference plugin of that name does.
package loopback

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// name is what the kernel calls the loopback, whatever the interface name of
// the request is.
const name = "lo"

// New returns the driver for plugin type "loopback".
func New() driver.Driver { return loopback{} }

type loopback struct{}

// Attach implements driver.Driver.
func (loopback) Attach(_ context.Context, s driver.Spec) (*current.Result, error) {
	var c struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read loopback configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return nil, err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	lo, err := pod.Link(name)
	if err != nil {
		return nil, err
	}
	if err := pod.SetUp(lo.Index); err != nil {
		return nil, err
	}
	ips, err := addresses(pod, lo.Index)
	if err != nil || s.Prev != nil {
		return s.Prev, err // what others made is handed on as it is
	}
	return &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: name, Mac: net.HardwareAddr(make([]byte, 6)).String(), Sandbox: s.NetNSPath}},
		IPs:        ips,
	}, nil
}

// addresses returns the first address of each family. One that others could
// reach is refused: whoever gave it to the loopback meant another link.
func addresses(pod *rtnl.Handle, index int) ([]*current.IPConfig, error) {
	addrs, err := pod.Addrs(index)
	if err != nil {
		return nil, err
	}
	var ips []*current.IPConfig
	have := map[bool]bool{} // families, by Is6
	for _, a := range addrs {
		if !a.Addr().IsLoopback() {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("the loopback has address %s, which is no loopback address", a.Prefix), "")
		}
		if is6 := a.Addr().Is6(); !have[is6] {
			have[is6] = true
			ips = append(ips, &current.IPConfig{
				Interface: current.Int(0),
				Address:   net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())},
			})
		}
	}
	return ips, nil
}

// Detach implements driver.Driver. It takes the loopback down, as the
// reference plugin does: a container is detached as a whole.
func (loopback) Detach(_ context.Context, s driver.Spec) error {
	if s.NetNS == nil {
		return nil
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	lo, err := pod.Link(name)
	if err != nil {
		return err
	}
	return pod.SetDown(lo.Index)
}

// Check implements driver.Driver.
func (loopback) Check(_ context.Context, s driver.Spec) error {
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	lo, err := pod.Link(name)
	if err != nil {
		return err
	}
	if !lo.Up {
		return fmt.Errorf("link %s is down", name)
	}
	return nil
}
