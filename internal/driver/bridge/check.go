package bridge

import (
	"context"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// Check implements driver.Driver.
func (b *bridge) Check(ctx context.Context, s driver.Spec) error {
	a, err := b.ready(s)
	if err != nil {
		return err
	}
	defer a.close()
	if a.pod == nil {
		return types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	if s.Prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "")
	}
	if s.IPAM != nil {
		if err := s.IPAM.Check(ctx); err != nil {
			return err
		}
	}
	return a.check()
}

func (a *attachment) check() error {
	br, err := a.host.Link(a.Bridge)
	if err != nil {
		return err
	}
	if err := a.suits(br); err != nil {
		return err
	}
	// Another network on the same bridge may have asked for it: on is never
	// wrong.
	if a.Promisc && !br.Promisc {
		return fmt.Errorf("bridge %s is not in promiscuous mode", br.Name)
	}
	pod, err := a.checkPod()
	if err != nil {
		return err
	}
	if err := a.checkPort(pod, br); err != nil {
		return err
	}
	if a.NoContainerLink {
		return nil
	}
	return a.iface().Check(a.spec.Prev)
}

// checkPod compares the container's end with what the result says of it.
func (a *attachment) checkPod() (rtnl.Link, error) {
	i := slices.IndexFunc(a.spec.Prev.Interfaces, func(i *current.Interface) bool {
		return i.Name == a.spec.IfName && i.Sandbox == a.spec.NetNSPath
	})
	if i < 0 {
		return rtnl.Link{}, fmt.Errorf("the result has no interface %s in namespace %s", a.spec.IfName, a.spec.NetNSPath)
	}
	pod, err := a.pod.Link(a.spec.IfName)
	if err != nil {
		return pod, err
	}
	if pod.Kind != "veth" {
		return pod, fmt.Errorf("interface %s is of kind %s, not a veth", pod.Name, pod.Kind)
	}
	if a.MTU != 0 && a.MTU != pod.MTU {
		return pod, fmt.Errorf("interface %s has mtu %d, not %d", pod.Name, pod.MTU, a.MTU)
	}
	if want := a.spec.Prev.Interfaces[i].Mac; want != "" && want != pod.MAC.String() {
		return pod, fmt.Errorf("interface %s has mac %s, not %s", pod.Name, pod.MAC, want)
	}
	return pod, nil
}

// checkPort compares the host's end with the configuration.
func (a *attachment) checkPort(pod, br rtnl.Link) error {
	host, ours := a.veth().HostEnd(pod)
	if !ours {
		return fmt.Errorf("the other end of %s is not the one that was made for it", pod.Name)
	}
	if host.Master != br.Index {
		return fmt.Errorf("%s, the other end of %s, is no port of bridge %s", host.Name, pod.Name, br.Name)
	}
	if !host.Up {
		return fmt.Errorf("%s, the other end of %s, is down", host.Name, pod.Name)
	}
	port, err := a.host.Port(host.Index)
	if err != nil {
		return err
	}
	if port.Hairpin != a.Hairpin {
		return fmt.Errorf("port %s has hairpin mode %t, not %t", host.Name, port.Hairpin, a.Hairpin)
	}
	if port.Isolated != a.PortIsolation {
		return fmt.Errorf("port %s has isolation %t, not %t", host.Name, port.Isolated, a.PortIsolation)
	}
	if !a.filtersVLANs {
		return nil
	}
	return a.checkVLANs(host, br)
}

func (a *attachment) checkVLANs(port, br rtnl.Link) error {
	all, err := a.host.AllVLANs()
	if err != nil {
		return err
	}
	have := all[port.Index]
	add, remove := a.membership(br.DefaultPVID)
	for _, want := range add {
		if !covered(have, want) {
			return fmt.Errorf("port %s is not in %s", port.Name, want)
		}
	}
	for _, v := range remove {
		v.PVID, v.Untagged = true, true
		if covered(have, v) {
			return fmt.Errorf("port %s is in %s, where untagged frames of others go", port.Name, v)
		}
	}
	return nil
}

// covered says that want is part of have with the same flags. The reference
// plugin's ports may have the untagged VLAN within the trunk's range.
func covered(have []rtnl.VLANs, want rtnl.VLANs) bool {
	for id := want.From; id <= want.To; id++ {
		if !slices.ContainsFunc(have, func(v rtnl.VLANs) bool {
			return v.From <= id && id <= v.To && v.PVID == want.PVID && v.Untagged == want.Untagged
		}) {
			return false
		}
	}
	return true
}
