package ptp

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/masq"
)

// conf is the configuration. The README says what each key means.
type conf struct {
	Name string `json:"name"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS types.DNS `json:"dns"`

	Masq        bool   `json:"ipMasq"`
	MasqBackend string `json:"ipMasqBackend"`
	MTU         int    `json:"mtu"`
}

// parse reads and validates everything that can be judged without looking at
// the node, so that what is refused here has changed nothing.
func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read ptp configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	if err := c.validate(); err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	if s.IPAM == nil {
		return c, types.NewError(types.ErrInternal, fmt.Sprintf("no address delegate for ipam type %q", c.IPAM.Type), "")
	}
	return c, nil
}

func (c conf) validate() error {
	switch {
	case c.IPAM.Type == "":
		return fmt.Errorf("ptp needs ipam: without addresses nothing is routed to the container")
	case c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535):
		return fmt.Errorf("mtu %d is not between 68 and 65535", c.MTU)
	}
	return masq.ValidBackend(c.MasqBackend)
}

// hop is an address of the container with the gateway that all its traffic
// goes through, and which the node has.
type hop struct {
	addr netip.Prefix
	via  netip.Addr
}

// gateway is the node's address as the node has it: alone in its subnet.
func (h hop) gateway() netip.Prefix { return netip.PrefixFrom(h.via, h.via.BitLen()) }

// container is the container's address as the node routes to it.
func (h hop) container() netip.Prefix { return netip.PrefixFrom(h.addr.Addr(), h.addr.Addr().BitLen()) }

// hops are those of a result.
func hops(res *current.Result) ([]hop, error) {
	out := make([]hop, 0, len(res.IPs))
	for _, ip := range res.IPs {
		addr, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		via, ok := netip.AddrFromSlice(ip.Gateway)
		if via = via.Unmap(); !ok || via.Is6() != addr.Addr().Is6() {
			return nil, types.NewError(types.ErrInvalidNetworkConfig,
				fmt.Sprintf("address %s comes without a gateway of its family, which is what the node would be", addr), "name a gateway in ipam")
		}
		if via == addr.Addr() {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("address %s is its own gateway", addr), "")
		}
		out = append(out, hop{addr, via})
	}
	return out, nil
}
