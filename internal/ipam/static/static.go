// Package static gives an attachment the addresses that its configuration or
// its request names, as the CNI reference plugin static does.
//
// README.md says what it reads and where it differs from the reference.
package static

import (
	"context"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/request"
)

// New returns the dialect static. It keeps no state.
func New() ipam.Plugin { return plugin{} }

type plugin struct{}

func (plugin) Add(_ context.Context, r ipam.Request) (*current.Result, error) {
	if err := request.Identity(r); err != nil {
		return nil, err
	}
	want, err := parse(r.Conf, r.Args)
	if err != nil {
		return nil, err
	}
	res := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Routes:     want.routes,
		DNS:        want.dns,
	}
	for _, a := range want.addresses {
		res.IPs = append(res.IPs, request.IPConfig(a.prefix, a.gateway))
	}
	return res, nil
}

// Del succeeds: Add reserved nothing.
func (plugin) Del(context.Context, ipam.Request) error { return nil }

// Check reports the first address that the request asks for and that
// prevResult has not, or has with another gateway.
func (plugin) Check(_ context.Context, r ipam.Request) error {
	want, err := parse(r.Conf, r.Args)
	if err != nil {
		return err
	}
	prev, err := request.PrevResult(r.Conf)
	if err != nil {
		return err
	}
	for _, a := range want.addresses {
		if err := find(prev, a, r.IfName); err != nil {
			return err
		}
	}
	return nil
}

func find(prev *current.Result, want address, ifName string) error {
	for _, have := range prev.IPs {
		p, ok := request.PrefixOf(have)
		if !ok || p.Addr() != want.prefix.Addr() {
			continue
		}
		gateway, _ := netip.AddrFromSlice(have.Gateway)
		if want.gateway.IsValid() && gateway.Unmap() != want.gateway {
			return request.BadConf("address %s of %s: prevResult has gateway %v, the configuration %v",
				want.prefix, ifName, have.Gateway, want.gateway)
		}
		return nil
	}
	return request.BadConf("address %s of %s is not in prevResult", want.prefix, ifName)
}

// wanted is what a request asks for once every source of addresses is read.
type wanted struct {
	addresses []address
	routes    []*types.Route
	dns       types.DNS
}

type address struct {
	prefix  netip.Prefix
	gateway netip.Addr // invalid means none
}

// conf is the configuration as people write it.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	IPAM       *struct {
		Routes    []*types.Route `json:"routes"`
		DNS       types.DNS      `json:"dns"`
		Addresses []struct {
			Address string `json:"address"`
			Gateway string `json:"gateway"`
			Version string `json:"version"`
		} `json:"addresses"`
	} `json:"ipam"`
	RuntimeConfig struct {
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`
	Args *struct {
		CNI *struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

// parse decides which addresses are asked for. The sources in rising order:
// ipam.addresses, to which CNI_ARGS adds its own; args.cni.ips, which replaces
// both; runtimeConfig.ips, which replaces all.
func parse(data []byte, cniArgs string) (wanted, error) {
	var c conf
	if err := request.Decode(data, &c); err != nil {
		return wanted{}, err
	}
	if c.IPAM == nil {
		return wanted{}, request.BadConf("ipam is missing")
	}
	if err := request.Routes(c.IPAM.Routes); err != nil {
		return wanted{}, err
	}
	addresses, err := addresses(&c, cniArgs)
	if err != nil {
		return wanted{}, err
	}
	var addrs []netip.Addr
	for _, a := range addresses {
		addrs = append(addrs, a.prefix.Addr())
	}
	if err := request.OnePerFamily(c.CNIVersion, addrs); err != nil {
		return wanted{}, err
	}
	return wanted{addresses: addresses, routes: c.IPAM.Routes, dns: c.IPAM.DNS}, nil
}

// addresses reads every source, also those that another one replaces, as far
// as the reference does: a mistake in CNI_ARGS or in a gateway is reported in
// any case, one in a replaced address of ipam.addresses is not.
func addresses(c *conf, cniArgs string) ([]address, error) {
	fromArgs, err := addressesOfArgs(cniArgs)
	if err != nil {
		return nil, err
	}
	gateways, err := gateways(c)
	if err != nil {
		return nil, err
	}
	if c.Args != nil && c.Args.CNI != nil && len(c.Args.CNI.IPs) > 0 {
		asked, err := addressesOfList("args.cni.ips", c.Args.CNI.IPs)
		if err != nil || len(c.RuntimeConfig.IPs) == 0 {
			return asked, err
		}
	}
	if len(c.RuntimeConfig.IPs) > 0 {
		return addressesOfList("runtimeConfig.ips", c.RuntimeConfig.IPs)
	}
	var all []address
	for i, in := range c.IPAM.Addresses {
		p, err := request.Prefix(in.Address)
		if err != nil {
			return nil, request.BadConf("ipam.addresses[%d].address: %v", i, err)
		}
		all = append(all, address{prefix: p, gateway: gateways[i]})
	}
	return append(all, fromArgs...), nil
}

// gateways returns the gateway of each of ipam.addresses.
func gateways(c *conf) ([]netip.Addr, error) {
	all := make([]netip.Addr, len(c.IPAM.Addresses))
	for i, in := range c.IPAM.Addresses {
		if in.Gateway == "" {
			continue
		}
		var err error
		if all[i], err = request.Addr(in.Gateway); err != nil {
			return nil, request.BadConf("ipam.addresses[%d].gateway: %v", i, err)
		}
	}
	return all, nil
}

func addressesOfList(source string, list []string) ([]address, error) {
	var all []address
	for i, s := range list {
		p, err := request.Prefix(s)
		if err != nil {
			return nil, request.BadConf("%s[%d]: %v", source, i, err)
		}
		all = append(all, address{prefix: p})
	}
	return all, nil
}

// addressesOfArgs reads IP=a/n,b/m and GATEWAY=g,h. A gateway belongs to each
// address of CNI_ARGS in whose subnet it lies, and to none of ipam.addresses.
func addressesOfArgs(cniArgs string) ([]address, error) {
	args := request.Args(cniArgs)
	var all []address
	if ips := args["IP"]; ips != "" {
		for ip := range strings.SplitSeq(ips, ",") {
			p, err := request.Prefix(strings.TrimSpace(ip))
			if err != nil {
				return nil, request.BadArgs("IP: %v", err)
			}
			all = append(all, address{prefix: p})
		}
	}
	if gateways := args["GATEWAY"]; gateways != "" {
		for gw := range strings.SplitSeq(gateways, ",") {
			g, err := request.Addr(strings.TrimSpace(gw))
			if err != nil {
				return nil, request.BadArgs("GATEWAY: %v", err)
			}
			for i := range all {
				if all[i].prefix.Masked().Contains(g) {
					all[i].gateway = g
				}
			}
		}
	}
	return all, nil
}
