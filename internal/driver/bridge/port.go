package bridge

import (
	"errors"
	"fmt"
	"io/fs"

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
func (a *attachment) addPort(br rtnl.Link) (host, pod rtnl.Link, err error) {
	host, pod, err = a.veth().Make(rtnl.Veth{New: rtnl.New{MTU: a.MTU}, Master: br.Index, Peer: rtnl.New{MTU: a.MTU, MAC: a.mac}})
	if err != nil {
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

// joinBridge makes a link, which is still down, a port as c describes it.
func (a *attachment) joinBridge(port, br rtnl.Link, c conf) error {
	if err := a.refuseRouterAdvertisements(port.Name); err != nil {
		return err
	}
	if port.Master != br.Index {
		if err := a.host.SetMaster(port.Index, br.Index); err != nil {
			return err
		}
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
