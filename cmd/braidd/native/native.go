// Package native is the table of drivers: every plugin type that Braid builds
// in process.
//
// It is a literal of its own, and not one in braidd's main package, so that
// the differential test compares exactly what braidd serves with the reference
// plugins. Nobody else imports it.
package native

import (
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Node is what drivers need to know of the node they work on.
type Node struct {
	// NS is the node's network namespace, nil for that of the process.
	NS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
}

// Drivers holds the driver of every type that has one. A type that is not in
// it is a program of the host.
func Drivers(n Node) map[string]driver.Driver {
	return map[string]driver.Driver{
		"bridge": bridge.New(bridge.Config{HostNS: n.NS, Sysctl: n.Sysctl}),
	}
}
