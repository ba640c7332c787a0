// Package native holds the tables of what Braid does in process: the drivers
// and the address delegates, by plugin type.
//
// They are literals here, and not in braidd's main package, so that the
// differential test compares exactly what braidd serves with the reference
// plugins. Nobody else imports them.
package native

import (
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bandwidth"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/driver/dummy"
	"braid.dev/braid/internal/driver/firewall"
	"braid.dev/braid/internal/driver/hostdev"
	"braid.dev/braid/internal/driver/ipvlan"
	"braid.dev/braid/internal/driver/loopback"
	"braid.dev/braid/internal/driver/macvlan"
	"braid.dev/braid/internal/driver/passthru"
	"braid.dev/braid/internal/driver/portmap"
	"braid.dev/braid/internal/driver/ptp"
	"braid.dev/braid/internal/driver/sbr"
	"braid.dev/braid/internal/driver/tap"
	"braid.dev/braid/internal/driver/tuning"
	"braid.dev/braid/internal/driver/vlan"
	"braid.dev/braid/internal/driver/vrf"
	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/hostlocal"
	"braid.dev/braid/internal/ipam/static"
	"braid.dev/braid/internal/masq"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Node is what drivers need to know of the node they work on.
type Node struct {
	// NS is the node's network namespace, nil for that of the process.
	NS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
	// HostLocal is where host-local keeps addresses that no configuration says
	// another place for. Empty is the reference plugin's.
	HostLocal string
	// Dirs are the directories of the node that are seen at the same path here;
	// nil stands for all.
	Dirs []string
}

// Drivers holds the driver of every type that has one. A type that is not in
// it is a program of the host.
func Drivers(n Node) map[string]driver.Driver {
	rules := masq.New(n.NS)
	return map[string]driver.Driver{
		"bridge":      bridge.New(bridge.Config{HostNS: n.NS, Sysctl: n.Sysctl, Masq: rules}),
		"vlan":        vlan.New(vlan.Config{HostNS: n.NS, Sysctl: n.Sysctl}),
		"ipvlan":      ipvlan.New(ipvlan.Config{HostNS: n.NS, Sysctl: n.Sysctl}),
		"macvlan":     macvlan.New(macvlan.Config{HostNS: n.NS, Sysctl: n.Sysctl}),
		"dummy":       dummy.New(dummy.Config{Sysctl: n.Sysctl}),
		"host-device": hostdev.New(hostdev.Config{HostNS: n.NS, Sysctl: n.Sysctl}),
		"loopback":    loopback.New(),
		"ptp":         ptp.New(ptp.Config{HostNS: n.NS, Sysctl: n.Sysctl, Masq: rules}),
		"tap":         tap.New(tap.Config{Sysctl: n.Sysctl}),

		"bandwidth": bandwidth.New(bandwidth.Config{HostNS: n.NS}),
		"firewall":  firewall.New(firewall.Config{HostNS: n.NS}),
		"passthru":  passthru.New(),
		"portmap":   portmap.New(portmap.Config{HostNS: n.NS, Sysctl: n.Sysctl}),
		"sbr":       sbr.New(),
		"tuning":    tuning.New(tuning.Config{Sysctl: n.Sysctl, HostDirs: n.Dirs}),
		"vrf":       vrf.New(),
	}
}

// IPAM holds the address delegate of every type that has one.
func IPAM(n Node) map[string]ipam.Plugin {
	return map[string]ipam.Plugin{
		"static":     static.New(),
		"host-local": hostlocal.New(hostlocal.Config{DataDir: n.HostLocal, HostDirs: n.Dirs}),
	}
}
