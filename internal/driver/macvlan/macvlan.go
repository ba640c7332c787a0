// Package macvlan gives a container a link with a MAC of its own on a link of
// the node, in process, as the CNI reference plugin of that name does. Its
// README says what it builds and what it refuses.
package macvlan

import (
	"slices"

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

// New returns the driver for plugin type "macvlan".
func New(cfg Config) driver.Driver {
	return &driver.Stacked{
		Kind: "macvlan", HostNS: cfg.HostNS, Sysctl: cfg.Sysctl, Remover: rtnl.NewRemover(), Parse: parse,
	}
}

// conf is the configuration. The README says what each key means.
type conf struct {
	driver.StackConf
	Mode           string `json:"mode"`
	MAC            string `json:"mac"`
	BroadcastQueue uint32 `json:"bcqueuelen"`
}

var modes = []string{"bridge", "private", "vepa", "passthru"}

func parse(s driver.Spec) (driver.Stack, error) {
	c := conf{Mode: modes[0]}
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
	st.WithinParentMTU = true
	st.Link.Mode, st.Link.BroadcastQueue = c.Mode, c.BroadcastQueue
	st.Link.MAC, err = driver.RequestedMAC(s.Conf, s.Args)
	switch {
	case err != nil || st.Link.MAC != nil:
	case c.MAC != "":
		st.Link.MAC, err = driver.ParseMAC(c.MAC)
	case c.Mode != "passthru": // which has its master's
		st.Link.MAC = s.MAC
	}
	return st, err
}
