package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/masq"
	"braid.dev/braid/internal/rtnl"
)

// defaultBridge is the bridge of a configuration that names none.
const defaultBridge = "cni0"

// maxVLAN is the highest VLAN id; 4095 is reserved by 802.1Q.
const maxVLAN = 4094

// conf is the configuration. The README says what each key means.
type conf struct {
	Name string `json:"name"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS types.DNS `json:"dns"`

	Bridge          string      `json:"bridge"`
	Uplink          string      `json:"uplink"`
	Gateway         bool        `json:"isGateway"`
	DefaultGateway  bool        `json:"isDefaultGateway"`
	ForceAddress    bool        `json:"forceAddress"`
	Masq            bool        `json:"ipMasq"`
	MasqBackend     string      `json:"ipMasqBackend"`
	MTU             int         `json:"mtu"`
	Hairpin         bool        `json:"hairpinMode"`
	Promisc         bool        `json:"promiscMode"`
	VLAN            int         `json:"vlan"`
	Trunk           []trunkItem `json:"vlanTrunk"`
	PreserveDefault bool        `json:"preserveDefaultVlan"`
	SpoofCheck      bool        `json:"macspoofchk"`
	DAD             bool        `json:"enabledad"`
	NoContainerLink bool        `json:"disableContainerInterface"`
	PortIsolation   bool        `json:"portIsolation"`
	mac             net.HardwareAddr
	trunk           []rtnl.VLANs
	filtersVLANs    bool
}

type trunkItem struct {
	ID  *int `json:"id"`
	Min *int `json:"minID"`
	Max *int `json:"maxID"`
}

// parse reads and validates everything that can be judged without looking at
// the node, so that what is refused here has changed nothing.
func parse(s driver.Spec) (conf, error) {
	c := conf{Bridge: defaultBridge}
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read bridge configuration", err.Error())
	}
	if err := utils.ValidateInterfaceName(s.IfName); err != nil {
		return c, types.NewError(err.Code, fmt.Sprintf("interface name %q: %s", s.IfName, err.Msg), err.Details)
	}
	mac, err := driver.RequestedMAC(s.Conf, s.Args)
	if err != nil {
		return c, err
	}
	if c.mac = mac; c.mac == nil {
		c.mac = s.MAC
	}
	c.Gateway = c.Gateway || c.DefaultGateway
	c.filtersVLANs = c.VLAN != 0 || c.Trunk != nil
	if c.trunk, err = trunkRanges(c.Trunk, c.VLAN); err == nil {
		err = c.validate()
	}
	if err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return c, nil
}

// layer3 says that addresses are asked for.
func (c conf) layer3() bool { return c.IPAM.Type != "" }

func (c conf) validate() error {
	for key, name := range map[string]string{"bridge": c.Bridge, "uplink": c.Uplink} {
		if name == "" && key == "uplink" {
			continue
		}
		if err := utils.ValidateInterfaceName(name); err != nil {
			return fmt.Errorf("%s %q: %s", key, name, strings.TrimSpace(err.Msg+" "+err.Details))
		}
	}
	switch {
	case c.VLAN < 0 || c.VLAN > maxVLAN:
		return fmt.Errorf("vlan %d is not between 0 and %d", c.VLAN, maxVLAN)
	case c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535):
		return fmt.Errorf("mtu %d is not between 68 and 65535", c.MTU)
	case c.layer3() && c.NoContainerLink:
		return errors.New("disableContainerInterface leaves the interface down, so it can have no ipam")
	case c.Hairpin && c.Promisc:
		return errors.New("hairpinMode and promiscMode exclude each other: frames would come back twice")
	case c.layer3() && c.Gateway && c.VLAN != 0 && len(c.gatewayLink()) > rtnl.MaxName:
		return fmt.Errorf("the gateway of vlan %d would be a link named %s, longer than %d characters: shorten the name of bridge %s",
			c.VLAN, c.gatewayLink(), rtnl.MaxName, c.Bridge)
	}
	return masq.ValidBackend(c.MasqBackend)
}

// gatewayLink is the link that has the gateway's addresses: the bridge itself,
// or within a VLAN one end of a veth whose other end is an access port of it.
func (c conf) gatewayLink() string {
	if c.VLAN == 0 {
		return c.Bridge
	}
	return fmt.Sprintf("%s.%d", c.Bridge, c.VLAN)
}

// trunkRanges returns the VLANs of a trunk in order, without access, which is
// the untagged VLAN of the same port and stays so when the trunk names it too.
func trunkRanges(items []trunkItem, access int) ([]rtnl.VLANs, error) {
	var member [maxVLAN + 2]bool
	for _, it := range items {
		if (it.Min == nil) != (it.Max == nil) {
			return nil, errors.New("vlanTrunk: minID and maxID go together")
		}
		from, to := it.Min, it.Max
		if from != nil && *from > *to {
			return nil, fmt.Errorf("vlanTrunk: minID %d is greater than maxID %d", *from, *to)
		}
		if err := mark(&member, from, to); err != nil {
			return nil, err
		}
		if err := mark(&member, it.ID, it.ID); err != nil {
			return nil, err
		}
	}
	if access > 0 && access <= maxVLAN {
		member[access] = false
	}
	var out []rtnl.VLANs
	for id := 1; id <= maxVLAN; id++ {
		switch {
		case member[id] && !member[id-1]:
			out = append(out, rtnl.VLANs{From: uint16(id), To: uint16(id)})
		case member[id]:
			out[len(out)-1].To = uint16(id)
		}
	}
	return out, nil
}

func mark(member *[maxVLAN + 2]bool, from, to *int) error {
	if from == nil {
		return nil
	}
	for _, id := range []int{*from, *to} {
		if id < 1 || id > maxVLAN {
			return fmt.Errorf("vlanTrunk: VLAN %d is not between 1 and %d", id, maxVLAN)
		}
	}
	for id := *from; id <= *to; id++ {
		member[id] = true
	}
	return nil
}

// membership decides which VLANs a port gets, in the order in which they are
// to be added, and which it loses. A new port is in VLAN pvid (0: in none),
// untagged, because the bridge puts it there.
func (c conf) membership(pvid uint16) (add, remove []rtnl.VLANs) {
	add = append(add, c.trunk...)
	native := uint16(c.VLAN)
	if native == 0 && len(c.trunk) > 0 {
		native = 1 // what a trunk without an access VLAN always had
	}
	if native == 0 {
		return nil, nil
	}
	add = append(add, rtnl.VLANs{From: native, To: native, PVID: true, Untagged: true})
	wanted := func() bool {
		for _, v := range add {
			if v.From <= pvid && pvid <= v.To {
				return true
			}
		}
		return false
	}
	if pvid != 0 && !c.PreserveDefault && !wanted() {
		remove = append(remove, rtnl.VLANs{From: pvid, To: pvid})
	}
	return add, remove
}
