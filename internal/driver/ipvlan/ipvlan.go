// Package ipvlan gives a container a link that shares the MAC of a link of the
// node, in process, as the CNI reference plugin of that name does. Its README
// says what it builds and what it refuses.
package ipvlan

import (
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace that the masters are in. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
}

// New returns the driver for plugin type "ipvlan".
func New(cfg Config) driver.Driver {
	return &driver.Stacked{
		Kind: "ipvlan", HostNS: cfg.HostNS, Sysctl: cfg.Sysctl, Remover: rtnl.NewRemover(), Parse: parse,
	}
}

// conf is the configuration. The README says what each key means.
type conf struct {
	driver.StackConf
	Mode string `json:"mode"`
}

var modes = []string{"l2", "l3", "l3s"}

func parse(s driver.Spec) (driver.Stack, error) {
	var c conf
	st, err := driver.ParseStack(s, &c, &c.StackConf)
	if err != nil {
		return st, err
	}
	if c.Mode == "" {
		c.Mode = modes[0]
	}
	if !slices.Contains(modes, c.Mode) {
		return st, driver.Invalid("mode %q is none of %v", c.Mode, modes)
	}
	st.Link.Mode = c.Mode
	return st, chain(&st, s)
}

// chain takes from the plugins before this one what the configuration leaves
// open: the master, and addresses when there is no ipam.
func chain(st *driver.Stack, s driver.Spec) error {
	if own(s) { // Check and Detach, which get the attachment's own result
		st.Given = s.Prev
		return nil
	}
	if st.IPAM == "" {
		if s.Prev == nil || len(s.Prev.IPs) == 0 {
			return driver.Invalid("there is neither ipam nor a plugin before this one that gives addresses")
		}
		st.Given = s.Prev
	}
	if st.Parent == "" && s.Prev != nil {
		if len(s.Prev.Interfaces) != 1 || s.Prev.Interfaces[0].Name == "" {
			return driver.Invalid("the plugin before this one made %d interfaces, so none can be taken for the master", len(s.Prev.Interfaces))
		}
		st.Parent = s.Prev.Interfaces[0].Name
	}
	return nil
}

// own says that Prev is the result of this attachment.
func own(s driver.Spec) bool {
	return s.Prev != nil && slices.ContainsFunc(s.Prev.Interfaces, func(i *current.Interface) bool {
		return i.Name == s.IfName && i.Sandbox == s.NetNSPath
	})
}
