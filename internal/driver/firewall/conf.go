package firewall

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/driver"
)

// Backends.
const (
	byIPTables  = "iptables"
	byNFTables  = "nftables"
	byFirewalld = "firewalld"
)

// Ingress policies.
const (
	policyOpen       = "open"
	policySameBridge = "same-bridge"
	policyIsolated   = "isolated"
)

// conf is the configuration. The README says what each key means.
type conf struct {
	Name          string `json:"name"`
	Backend       string `json:"backend"`
	AdminChain    string `json:"iptablesAdminChainName"`
	Zone          string `json:"firewalldZone"`
	IngressPolicy string `json:"ingressPolicy"`
}

// decode reads the configuration without judging it: what Detach goes by.
func decode(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read firewall configuration", err.Error())
	}
	if c.AdminChain == "" {
		c.AdminChain = "CNI-ADMIN"
	}
	if c.Zone == "" {
		c.Zone = "trusted"
	}
	if c.IngressPolicy == "" {
		c.IngressPolicy = policyOpen
	}
	return c, nil
}

// parse reads and validates everything that can be judged without looking at
// the node.
func parse(s driver.Spec) (conf, error) {
	c, err := decode(s)
	if err != nil {
		return c, err
	}
	if err := c.validate(s.Prev); err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return c, nil
}

func (c conf) validate(prev *current.Result) error {
	const longestChain = 28
	switch {
	case !slices.Contains([]string{"", byIPTables, byNFTables, byFirewalld}, c.Backend):
		return fmt.Errorf("backend %q is none of iptables, nftables and firewalld", c.Backend)
	case len(c.AdminChain) > longestChain || !plainName(c.AdminChain):
		return fmt.Errorf("iptablesAdminChainName %q is no name of a chain, of at most %d characters", c.AdminChain, longestChain)
	case !plainName(c.Zone):
		return fmt.Errorf("firewalldZone %q is no name of a zone", c.Zone)
	case !slices.Contains([]string{policyOpen, policySameBridge, policyIsolated}, c.IngressPolicy):
		return fmt.Errorf("ingressPolicy %q is none of open, same-bridge and isolated", c.IngressPolicy)
	case prev == nil:
		return fmt.Errorf("firewall must be chained behind a plugin that gives addresses: prevResult is missing")
	}
	if c.IngressPolicy == policyOpen {
		return nil
	}
	_, err := bridgeOf(prev)
	return err
}

// plainName keeps names of chains and zones apart from options of programs.
func plainName(name string) bool {
	odd := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`"'\`, r) }
	return name != "" && name[0] != '-' && name[0] != '!' && !strings.ContainsFunc(name, odd)
}

// bridgeOf is the link that the container's network is behind: the first of
// the result, as plugin bridge has it.
func bridgeOf(res *current.Result) (string, error) {
	if len(res.Interfaces) == 0 || res.Interfaces[0] == nil {
		return "", fmt.Errorf("an ingressPolicy needs the bridge as first interface of the result: chain firewall behind bridge")
	}
	name := res.Interfaces[0].Name
	if err := utils.ValidateInterfaceName(name); err != nil {
		return "", fmt.Errorf("an ingressPolicy needs the bridge as first interface of the result, not %q: %s", name, err.Msg)
	}
	return name, nil
}

// addresses are those of the result, without their prefix lengths.
func addresses(res *current.Result) ([]netip.Addr, error) {
	if res == nil {
		return nil, nil
	}
	var out []netip.Addr
	for _, ip := range res.IPs {
		p, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Addr())
	}
	return out, nil
}

// ofFamily are the addresses of one family (Is6).
func ofFamily(addrs []netip.Addr, is6 bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.Is6() != is6 })
}
