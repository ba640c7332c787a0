// Package ipam hands out addresses to attachments.
//
// It holds the contract; each dialect, a package below this one, implements it
// for the configurations that people already have. A dialect imports no kernel
// and no cluster client.
package ipam

import (
	"context"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Request is one attachment that needs addresses.
type Request struct {
	// ContainerID and IfName identify the attachment within its network.
	ContainerID string
	IfName      string
	// Args is the CNI_ARGS of the request.
	Args string
	// Conf is the configuration of the plugin that delegates: the complete
	// JSON object with name, cniVersion, runtimeConfig and ipam, and on Check
	// with prevResult too.
	Conf []byte
}

// Plugin is an address delegate, such as host-local.
type Plugin interface {
	// Add reserves addresses durably before it returns them. The result holds
	// IPs without an interface, Routes and DNS. On error nothing is reserved.
	Add(ctx context.Context, r Request) (*current.Result, error)
	// Del releases what Add reserved. Releasing nothing succeeds.
	Del(ctx context.Context, r Request) error
	// Check reports an address of prevResult that is not reserved.
	Check(ctx context.Context, r Request) error
}

// Limited is a Plugin that cannot serve every configuration of its type from
// where it runs. The program of the same type, on the host, serves the others.
// The answer depends on nothing but conf and how the daemon was started, so
// that Add and Del of one attachment get the same.
type Limited interface {
	Plugin
	Serves(conf []byte) bool
}

// Sweeper is a Plugin that can find out what a container holds without any
// configuration.
type Sweeper interface {
	Plugin
	// Sweep releases all that the container holds, in every network.
	Sweep(ctx context.Context, containerID string) error
}
