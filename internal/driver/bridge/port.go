package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/rtnl"
)

// ensureBridge returns the bridge, up, and makes it when it is not there.
func (a *attachment) ensureBridge() (rtnl.Link, error) {
	br, err := a.host.Link(a.Bridge)
	if errors.Is(err, rtnl.ErrNotFound) {
		br, err = a.makeBridge()
	}
	if err != nil {
		return br, err
	}
	if err := a.suits(br); err != nil {
		return br, err
	}
	if a.Promisc {
		if err := a.host.SetPromisc(br.Index, true); err != nil {
			return br, err
		}
	}
	if !br.Up {
		return br, a.host.SetUp(br.Index)
	}
	return br, nil
}

func (a *attachment) makeBridge() (rtnl.Link, error) {
	if a.Uplink != "" {
		return rtnl.Link{}, a.noUplink("there is no bridge " + a.Bridge)
	}
	br, err := a.host.AddBridge(rtnl.Bridge{New: rtnl.New{Name: a.Bridge, MTU: a.MTU}, VLANFiltering: a.filtersVLANs})
	if errors.Is(err, rtnl.ErrExists) { // somebody else was faster
		return a.host.Link(a.Bridge)
	}
	if err != nil {
		return br, err
	}
	a.made(a.Bridge)
	// Nobody but this node's configuration says what is reached through it.
	return br, a.refuseRouterAdvertisements(a.Bridge)
}

// refuseRouterAdvertisements keeps the node from taking addresses and routes
// from whoever talks on the link. A kernel without IPv6 has nothing to refuse.
func (a *attachment) refuseRouterAdvertisements(link string) error {
	err := a.Sysctl.Set(a.HostNS, rtnl.Setting{Path: "ipv6/conf/" + link + "/accept_ra", Value: "0"})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// suits refuses a bridge on which the configuration would not mean what it
// says.
func (a *attachment) suits(br rtnl.Link) error {
	switch {
	case br.Kind != "bridge":
		return types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("link %s exists but is of kind %s, not a bridge", a.Bridge, br.Kind), "name another bridge")
	case a.filtersVLANs && !br.VLANFiltering:
		return types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("bridge %s does not filter VLANs, so that a port in a VLAN would be in none", a.Bridge),
			fmt.Sprintf("ip link set %s type bridge vlan_filtering 1", a.Bridge))
	case a.Uplink == "":
		return nil
	}
	up, err := a.host.Link(a.Uplink)
	if errors.Is(err, rtnl.ErrNotFound) {
		return a.noUplink("there is no link " + a.Uplink)
	}
	if err != nil {
		return err
	}
	if up.Master != br.Index {
		return a.noUplink(fmt.Sprintf("link %s is no port of bridge %s", a.Uplink, a.Bridge))
	}
	return nil
}

// noUplink is worth another try: nodes are prepared while pods already come.
func (a *attachment) noUplink(what string) error {
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("bridge %s has no uplink %s: %s", a.Bridge, a.Uplink, what),
		fmt.Sprintf("prepare the node: ip link set %s master %s", a.Uplink, a.Bridge))
}

// addPort makes the veth pair and returns both ends. The host's end is brought
// up last, so that no frame passes before VLANs, isolation and the spoof check
// are in force.
func (a *attachment) addPort(ctx context.Context, br rtnl.Link) (host, pod rtnl.Link, err error) {
	host, err = a.makeVeth()
	if err != nil {
		return host, pod, err
	}
	if pod, err = a.pod.Link(a.spec.IfName); err != nil {
		return host, pod, err
	}
	if err := a.host.SetAlias(host.Index, a.alias()); err != nil {
		return host, pod, err
	}
	if err := a.joinBridge(host, br, a.conf); err != nil {
		return host, pod, err
	}
	if a.SpoofCheck {
		if err := a.addSpoofCheck(host.Name, pod.MAC); err != nil {
			return host, pod, err
		}
	}
	return host, pod, a.host.SetUp(host.Index)
}

func (a *attachment) makeVeth() (rtnl.Link, error) {
	v := rtnl.Veth{
		New:    rtnl.New{MTU: a.MTU},
		Peer:   rtnl.New{Name: a.spec.IfName, MTU: a.MTU, MAC: a.mac},
		PeerNS: a.spec.NetNS,
	}
	var err error
	for _, v.Name = range a.hostNames() {
		var host rtnl.Link
		if host, err = a.host.AddVeth(v); !errors.Is(err, rtnl.ErrExists) {
			return host, err
		}
		// One of the two names is taken. In the container it was free just now.
		if l, err := a.pod.Link(a.spec.IfName); err == nil {
			return rtnl.Link{}, a.nameTaken(l)
		}
		if left, err := a.host.Link(v.Name); err == nil && left.Alias == a.alias() {
			// Ours, and its other end was moved or renamed.
			if err := a.host.Del(left.Index); err != nil {
				return rtnl.Link{}, err
			}
			if host, err = a.host.AddVeth(v); err == nil {
				return host, nil
			}
		}
	}
	return rtnl.Link{}, err
}

// joinBridge makes a link, which is still down, a port as c describes it.
func (a *attachment) joinBridge(port, br rtnl.Link, c conf) error {
	if err := a.refuseRouterAdvertisements(port.Name); err != nil {
		return err
	}
	if err := a.host.SetMaster(port.Index, br.Index); err != nil {
		return err
	}
	if c.Hairpin {
		if err := a.host.SetHairpin(port.Index, true); err != nil {
			return err
		}
	}
	if c.PortIsolation {
		if err := a.host.SetIsolated(port.Index, true); err != nil {
			return err
		}
	}
	add, remove := c.membership(br.DefaultPVID)
	for _, v := range add {
		if err := a.host.AddVLANs(port.Index, rtnl.OfPort, v); err != nil {
			return err
		}
	}
	for _, v := range remove {
		if err := a.host.DelVLANs(port.Index, rtnl.OfPort, v); err != nil {
			return err
		}
	}
	return nil
}

// removePort removes the veth pair from whichever end is found. A link in the
// container that has the right name and another origin is left alone.
func (a *attachment) removePort() error {
	if a.pod != nil {
		l, err := a.pod.Link(a.spec.IfName)
		if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return err
		}
		if err == nil {
			if host, ours := a.hostEnd(l); ours {
				return gone(a.host.Del(host.Index))
			}
		}
	}
	// The container's end is gone or has another name now.
	for _, name := range a.hostNames() {
		l, err := a.host.Link(name)
		if errors.Is(err, rtnl.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if l.Alias == a.alias() {
			return gone(a.host.Del(l.Index))
		}
	}
	return nil
}

// gone forgives that the kernel, which removes the links of a namespace that
// ends, was faster.
func gone(err error) error {
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	return err
}

// hostEnd returns the other end of the link l of the container, when it is one
// that this attachment made: its name is one of hostNames, or one that the
// result of the attachment tells, which is how attachments that the reference
// plugin made are found.
func (a *attachment) hostEnd(l rtnl.Link) (rtnl.Link, bool) {
	if l.Kind != "veth" {
		return rtnl.Link{}, false
	}
	host, err := a.host.LinkByIndex(l.Parent)
	if err != nil || host.Kind != "veth" || host.Parent != l.Index {
		return rtnl.Link{}, false
	}
	// Indexes repeat in every namespace: is it this one that host leads to?
	if id, err := a.host.NSID(a.spec.NetNS); err != nil || id != host.ParentNSID {
		return rtnl.Link{}, false
	}
	names := a.hostNames()
	if a.spec.Prev != nil {
		for _, i := range a.spec.Prev.Interfaces {
			if i.Sandbox == "" {
				names = append(names, i.Name)
			}
		}
	}
	return host, slices.Contains(names, host.Name)
}
