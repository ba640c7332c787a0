// Package request reads the parts of an address request that every dialect
// shares: the envelope of the configuration, CNI_ARGS, and addresses as text.
//
// It accepts what the CNI reference plugins v1.9.1 accept. Errors are
// *types.Error with the code that the CNI specification gives to their kind.
package request

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"braid.dev/braid/internal/ipam"
)

// Identity checks the container ID and the interface name of r, as every CNI
// plugin does before it looks at the configuration.
func Identity(r ipam.Request) error {
	if err := utils.ValidateContainerID(r.ContainerID); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(r.IfName); err != nil {
		return err
	}
	return nil
}

// Decode reads conf into v. The network name in conf must be one that the CNI
// specification allows, so it is safe as the name of a directory, and the
// cniVersion one that the CNI library knows.
func Decode(conf []byte, v any) error {
	var head struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion"`
	}
	for _, into := range []any{&head, v} {
		if err := json.Unmarshal(conf, into); err != nil {
			return types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
		}
	}
	if err := utils.ValidateNetworkName(head.Name); err != nil {
		return err
	}
	if head.CNIVersion != "" && !slices.Contains(version.All.SupportedVersions(), head.CNIVersion) {
		return types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("cniVersion %q is not supported", head.CNIVersion),
			"supported: "+strings.Join(version.All.SupportedVersions(), ", "))
	}
	return nil
}

// Args reads CNI_ARGS, "KEY=VALUE" pairs with semicolons between them. The
// last of several pairs with one key counts. Which keys have a meaning is up to
// the caller: one CNI_ARGS serves all plugins of a pod, so what is none of his
// is not for him to refuse. Unlike the reference plugins, Args demands no
// IgnoreUnknown=1, lets values contain "=", and passes over what is no pair.
func Args(s string) map[string]string {
	args := make(map[string]string)
	for pair := range strings.SplitSeq(s, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			args[key] = value
		}
	}
	return args
}

// Addr reads an IPv4 or IPv6 address. An IPv4 address in IPv6 form becomes
// plain IPv4. Zones are refused.
func Addr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

// AddrOrPrefix reads an address that may be followed by a prefix length, and
// returns the address.
func AddrOrPrefix(s string) (netip.Addr, error) {
	if !strings.Contains(s, "/") {
		return Addr(s)
	}
	ip, _, err := net.ParseCIDR(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is neither an IP address nor one in CIDR notation", s)
	}
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap(), nil
}

// Prefix reads an address with its prefix length, host bits kept. An IPv4
// address in IPv6 form becomes plain IPv4.
func Prefix(s string) (netip.Prefix, error) {
	// The standard library's older parser defines what people's manifests may
	// contain: unlike netip's it takes a length such as /024.
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address in CIDR notation", s)
	}
	a, _ := netip.AddrFromSlice(ip)
	bits, size := n.Mask.Size()
	if a.Is4In6() && size == 128 {
		if bits < 96 {
			return netip.Prefix{}, fmt.Errorf("%q is an IPv4 address with a prefix shorter than IPv4", s)
		}
		bits -= 96
	}
	return netip.PrefixFrom(a.Unmap(), bits), nil
}

// IPConfig is an address and its gateway as a CNI result has them. An invalid
// gateway means none.
func IPConfig(address netip.Prefix, gateway netip.Addr) *current.IPConfig {
	return &current.IPConfig{
		Address: net.IPNet{
			IP:   address.Addr().AsSlice(),
			Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
		},
		Gateway: gateway.AsSlice(),
	}
}

// PrefixOf is the address of an IPConfig. It is false for one that no result
// should contain, such as one without an address.
func PrefixOf(c *current.IPConfig) (netip.Prefix, bool) {
	if c == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(c.Address.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := c.Address.Mask.Size()
	if a.Unmap().Is4() && size == 128 {
		bits -= 96
	}
	p := netip.PrefixFrom(a.Unmap(), bits)
	return p, p.IsValid()
}

// Routes refuses routes that no driver could install: null, or without dst.
func Routes(routes []*types.Route) error {
	for i, r := range routes {
		if r == nil || r.Dst.IP == nil {
			return BadConf("ipam.routes[%d] has no dst", i)
		}
	}
	return nil
}

// OnePerFamily refuses a second address of a family where the result of
// cniVersion has no place for it (CNI specification 0.2.0 and older).
func OnePerFamily(cniVersion string, addrs []netip.Addr) error {
	many, err := version.GreaterThanOrEqualTo(cniVersion, "0.3.0")
	if err != nil {
		return BadConf("cniVersion %q: %v", cniVersion, err)
	}
	var v4, v6 int
	for _, a := range addrs {
		if a.Is4() {
			v4++
		} else {
			v6++
		}
	}
	if !many && (v4 > 1 || v6 > 1) {
		return BadConf("cniVersion %q has no more than one address per family", cniVersion)
	}
	return nil
}

// PrevResult returns the prevResult of conf, which CHECK requires.
func PrevResult(conf []byte) (*current.Result, error) {
	var c types.PluginConf
	if err := Decode(conf, &c); err != nil {
		return nil, err
	}
	if c.RawPrevResult == nil {
		return nil, BadConf("prevResult is missing")
	}
	if err := version.ParsePrevResult(&c); err != nil {
		return nil, BadConf("%v", err)
	}
	res, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, BadConf("prevResult: %v", err)
	}
	return res, nil
}

// BadConf is the error of a configuration that is JSON, but makes no sense.
func BadConf(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// BadArgs is the error of CNI_ARGS that make no sense.
func BadArgs(format string, args ...any) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+fmt.Sprintf(format, args...), "")
}

// TryLater is the error of a request that may succeed later, unchanged.
func TryLater(format string, args ...any) error {
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf(format, args...), "")
}
