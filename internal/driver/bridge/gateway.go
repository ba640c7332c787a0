package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// containerIndex is where the container's end is in a result's interfaces, behind
// the bridge and the node's end.
const containerIndex = 2

// gateways completes res as far as the configuration asks for it (each
// address belongs to the container's end; missing gateways are the first
// address of the subnet; default routes) and returns the addresses that the
// node shall have as a gateway, IPv4 before IPv6.
func gateways(c conf, res *current.Result) ([]netip.Prefix, error) {
	var v4, v6 []netip.Prefix
	routed := map[bool]bool{} // families with a default route, by Is6
	for _, r := range res.Routes {
		if dst, err := driver.Prefix(r.Dst); err == nil && dst.Bits() == 0 && r.GW != nil {
			routed[dst.Addr().Is6()] = true
		}
	}
	for _, ip := range res.IPs {
		ip.Interface = current.Int(containerIndex)
		p, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		is6 := p.Addr().Is6()
		if ip.Gateway == nil && c.Gateway {
			ip.Gateway = p.Masked().Addr().Next().AsSlice()
		}
		if c.DefaultGateway && !routed[is6] {
			res.Routes = append(res.Routes, &types.Route{Dst: everywhere(is6), GW: ip.Gateway})
			routed[is6] = true
		}
		if !c.Gateway {
			continue
		}
		gw, ok := netip.AddrFromSlice(ip.Gateway)
		if gw = gw.Unmap(); !ok || gw.Is6() != is6 {
			return nil, fmt.Errorf("gateway %s of %s is no address of its family", ip.Gateway, p)
		}
		if is6 {
			v6 = append(v6, netip.PrefixFrom(gw, p.Bits()))
		} else {
			v4 = append(v4, netip.PrefixFrom(gw, p.Bits()))
		}
	}
	return append(v4, v6...), nil
}

// ensureGateway gives the node the gateway's addresses and makes it forward.
func (a *attachment) ensureGateway(br rtnl.Link, gateways []netip.Prefix, res *current.Result) error {
	if len(gateways) == 0 {
		return nil
	}
	on := br
	if a.VLAN != 0 {
		var err error
		if on, err = a.vlanGateway(br); err != nil {
			return fmt.Errorf("gateway of vlan %d: %w", a.VLAN, err)
		}
		res.Interfaces = append(res.Interfaces, &current.Interface{Name: on.Name, Mac: on.MAC.String()})
	}
	for _, gw := range gateways {
		if err := a.ensureAddr(on, gw); err != nil {
			return err
		}
		forward := rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}
		if gw.Addr().Is6() {
			forward.Path = "ipv6/conf/all/forwarding"
		}
		if err := a.Sysctl.Set(a.HostNS, forward); err != nil {
			return err
		}
	}
	return nil
}

// vlanGateway returns the node's own link in the VLAN: one end of a veth pair
// whose other end is an access port of the bridge. A link that somebody else
// made under that name, such as a vlan link on the bridge, serves as it is.
func (a *attachment) vlanGateway(br rtnl.Link) (rtnl.Link, error) {
	name := a.gatewayLink()
	gw, err := a.host.Link(name)
	if errors.Is(err, rtnl.ErrNotFound) {
		gw, err = a.host.AddVeth(rtnl.Veth{
			New:  rtnl.New{Name: name, MTU: br.MTU},
			Peer: rtnl.New{Name: "veth" + digest("gateway " + name)[:8], MTU: br.MTU},
		})
		if errors.Is(err, rtnl.ErrExists) { // somebody else was faster
			gw, err = a.host.Link(name)
		}
	}
	if err != nil {
		return gw, err
	}
	// Also when the pair was there: whoever made it may have been killed
	// before it became a port.
	if err := a.gatewayPort(gw, br); err != nil {
		return gw, err
	}
	return gw, a.host.SetUp(gw.Index)
}

func (a *attachment) gatewayPort(gw, br rtnl.Link) error {
	if gw.Kind != "veth" || gw.ParentNSID != -1 {
		return nil
	}
	port, err := a.host.LinkByIndex(gw.Parent)
	if err != nil || port.Master == br.Index && port.Up {
		return err
	}
	if err := a.joinBridge(port, br, conf{VLAN: a.VLAN, PreserveDefault: a.PreserveDefault}); err != nil {
		return err
	}
	return a.host.SetUp(port.Index)
}

// ensureAddr gives the link a gateway address. Another IPv4 address, or an
// IPv6 address of an overlapping subnet, is in the way unless forceAddress
// says to remove it.
func (a *attachment) ensureAddr(on rtnl.Link, gw netip.Prefix) error {
	addrs, err := a.host.Addrs(on.Index)
	if err != nil {
		return err
	}
	for _, have := range addrs {
		if have.Prefix == gw {
			return nil
		}
	}
	for _, have := range addrs {
		inTheWay := gw.Addr().Is4() && have.Addr().Is4() || gw.Overlaps(have.Prefix)
		if !inTheWay {
			continue
		}
		if !a.ForceAddress {
			return types.NewError(types.ErrInvalidNetworkConfig,
				fmt.Sprintf("%s already has an address other than %s: %s", on.Name, gw, have.Prefix), "set forceAddress to replace it")
		}
		if err := a.host.DelAddr(on.Index, have); err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return err
		}
	}
	if err := a.host.AddAddr(on.Index, rtnl.Addr{Prefix: gw}); err != nil && !errors.Is(err, rtnl.ErrExists) {
		return err
	}
	// Without a MAC of its own a bridge takes the lowest of its ports', and
	// the containers' gateway would change it as ports come and go.
	now, err := a.host.LinkByIndex(on.Index)
	if err != nil {
		return err
	}
	return a.host.SetMAC(on.Index, now.MAC)
}

// everywhere is the destination of a default route.
func everywhere(is6 bool) net.IPNet {
	if is6 {
		return net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
}
