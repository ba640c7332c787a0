package portmap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
)

// defaultMarkBit is of the mark that says "masquerade". Kubernetes uses 14 and
// 15, Calico 20 to 31.
const defaultMarkBit = 13

// Backends.
const (
	byIPTables = "iptables"
	byNFTables = "nftables"
)

// conf is the configuration. The README says what each key means.
type conf struct {
	Name          string   `json:"name"`
	Backend       string   `json:"backend"`
	SNAT          *bool    `json:"snat"`
	MasqAll       bool     `json:"masqAll"`
	MarkBit       *int     `json:"markMasqBit"`
	SetMarkChain  *string  `json:"externalSetMarkChain"`
	ConditionsV4  []string `json:"conditionsV4"`
	ConditionsV6  []string `json:"conditionsV6"`
	RuntimeConfig struct {
		Mappings []mapping `json:"portMappings"`
	} `json:"runtimeConfig"`

	// nftables has the conditions by family (Is6), once they are known to be
	// in its language.
	nftables map[bool][]expr.Any
}

type mapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`

	protocol byte       // the number of Protocol
	hostIP   netip.Addr // invalid: any
}

// protocols are those that have ports, with their IANA numbers.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// decode reads the configuration without judging it: what Detach goes by.
func decode(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read portmap configuration", err.Error())
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
	if err := c.validate(); err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return c, nil
}

func (c *conf) validate() error {
	switch {
	case c.Backend != "" && c.Backend != byIPTables && c.Backend != byNFTables:
		return fmt.Errorf("backend %q is neither iptables nor nftables", c.Backend)
	case c.MarkBit != nil && c.SetMarkChain != nil:
		return errors.New("markMasqBit and externalSetMarkChain exclude each other")
	case c.MarkBit != nil && (*c.MarkBit < 0 || *c.MarkBit > 31):
		return fmt.Errorf("markMasqBit %d is not between 0 and 31", *c.MarkBit)
	}
	needs := c.needs()
	if len(needs) > 1 {
		return fmt.Errorf("some options are for iptables and others for nftables: %s; %s", needs[byIPTables], needs[byNFTables])
	}
	for backend, options := range needs {
		if c.Backend != "" && c.Backend != backend {
			return fmt.Errorf("backend %s does not have what is asked for in %s", c.Backend, options)
		}
	}
	if c.backend() != byIPTables {
		if err := c.parseConditions(); err != nil {
			return err
		}
	}
	for i := range c.RuntimeConfig.Mappings {
		if err := c.RuntimeConfig.Mappings[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

// needs says which options only one backend understands, by backend.
func (c *conf) needs() map[string]string {
	needs := map[string][]string{}
	if c.SetMarkChain != nil {
		needs[byIPTables] = append(needs[byIPTables], "externalSetMarkChain")
	}
	for i, words := range [][]string{c.ConditionsV4, c.ConditionsV6} {
		if len(words) == 0 || words[0] == "" {
			continue
		}
		backend := byNFTables
		if words[0][0] == '-' || words[0][0] == '!' { // as no condition of nftables begins
			backend = byIPTables
		}
		needs[backend] = append(needs[backend], []string{"conditionsV4", "conditionsV6"}[i])
	}
	out := map[string]string{}
	for backend, options := range needs {
		out[backend] = strings.Join(options, ", ")
	}
	return out
}

// backend is the one that must be used, empty when either will do.
func (c *conf) backend() string {
	if c.Backend != "" {
		return c.Backend
	}
	for backend := range c.needs() {
		return backend
	}
	return ""
}

func (c *conf) snat() bool { return c.SNAT == nil || *c.SNAT }

func (c *conf) markBit() int {
	if c.MarkBit == nil {
		return defaultMarkBit
	}
	return *c.MarkBit
}

// conditions are those of one address family, as the configuration has them.
func (c *conf) conditions(is6 bool) []string {
	if is6 {
		return c.ConditionsV6
	}
	return c.ConditionsV4
}

func (m *mapping) validate() error {
	for key, port := range map[string]int{"hostPort": m.HostPort, "containerPort": m.ContainerPort} {
		if port < 1 || port > 65535 {
			return fmt.Errorf("portMappings: %s %d is not between 1 and 65535", key, port)
		}
	}
	m.Protocol = strings.ToLower(m.Protocol)
	var ok bool
	if m.protocol, ok = protocols[m.Protocol]; !ok {
		return fmt.Errorf("portMappings: protocol %q of port %d is none of tcp, udp and sctp", m.Protocol, m.HostPort)
	}
	if m.HostIP == "" {
		return nil
	}
	ip, err := netip.ParseAddr(m.HostIP)
	if err != nil || ip.Zone() != "" {
		return fmt.Errorf("portMappings: hostIP %q of port %d is no address", m.HostIP, m.HostPort)
	}
	m.hostIP = ip.Unmap()
	return nil
}

// in says whether the mapping exists in an address family. One for a certain
// address of the node, "all of IPv4" included, exists in that one's.
func (m *mapping) in(is6 bool) bool { return !m.hostIP.IsValid() || m.hostIP.Is6() == is6 }

// exact says that the mapping is for one address of the node.
func (m *mapping) exact() bool { return m.hostIP.IsValid() && !m.hostIP.IsUnspecified() }

// mappings are those that exist in one address family.
func (c *conf) mappings(is6 bool) []mapping {
	return slices.DeleteFunc(slices.Clone(c.RuntimeConfig.Mappings), func(m mapping) bool { return !m.in(is6) })
}

// targets are the container's addresses that ports are mapped to, with their
// prefix length, the first of each family. Addresses that the result gives to
// other links do not count.
func targets(res *current.Result, ifName string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, ip := range res.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(res.Interfaces) {
			if l := res.Interfaces[*i]; l.Name != ifName || l.Sandbox == "" {
				continue
			}
		}
		p, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		sameFamily := func(have netip.Prefix) bool { return have.Addr().Is6() == p.Addr().Is6() }
		if !slices.ContainsFunc(out, sameFamily) {
			out = append(out, p)
		}
	}
	return out, nil
}
