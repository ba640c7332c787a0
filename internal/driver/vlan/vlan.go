// Package vlan gives a container an 802.1Q link on a link of the node, in
// process, as the CNI reference plugin of that name does. Its README says what
// it builds and what it refuses.
package vlan

import (
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// maxID is the highest VLAN id; 4095 is reserved by 802.1Q.
const maxID = 4094

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace that the masters are in. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
}

// New returns the driver for plugin type "vlan".
func New(cfg Config) driver.Driver {
	return &driver.Stacked{
		Kind: "vlan", HostNS: cfg.HostNS, Sysctl: cfg.Sysctl, Remover: rtnl.NewRemover(), Parse: parse,
	}
}

// conf is the configuration. The README says what each key means.
type conf struct {
	driver.StackConf
	ID *int `json:"vlanId"`
}

func parse(s driver.Spec) (driver.Stack, error) {
	var c conf
	st, err := driver.ParseStack(s, &c, &c.StackConf)
	switch {
	case err != nil:
		return st, err
	case c.Master == "":
		return st, driver.Invalid("master is missing: it names the link that carries the VLAN")
	case c.ID == nil:
		return st, driver.Invalid("vlanId is missing")
	case *c.ID < 0 || *c.ID > maxID:
		return st, driver.Invalid("vlanId %d is not between 0 and %d", *c.ID, maxID)
	case st.IPAM == "":
		return st, driver.Invalid("ipam is missing: for an interface without addresses use type bridge with vlan, or macvlan on a vlan link")
	}
	st.Link.ID, st.WithinParentMTU = uint16(*c.ID), true
	return st, nil
}
