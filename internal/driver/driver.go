// Package driver is the contract between an attachment and the code that
// builds it.
//
// A driver does in process, by netlink on the namespace's descriptor, what the
// CNI plugin of the same type does as a program: same configuration, same
// result, same errors. Package driver/exec is the driver for every type that
// has none of its own.
package driver

import (
	"bytes"
	"context"
	"fmt"
	"net"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Spec is one plugin of one attachment's chain, with all that it may use.
type Spec struct {
	ContainerID string
	IfName      string
	// NetNS is the container's namespace. It is nil on Detach when the
	// namespace no longer exists: the kernel has then removed every link that
	// was in it, and what is left to do is on the host.
	NetNS *netns.NS
	// Pod is open in NetNS for as long as the call lasts. Nil has the driver
	// open a handle of its own; OpenPod knows.
	Pod *rtnl.Handle
	// NetNSPath is the CNI_NETNS of the request as the runtime sees it.
	NetNSPath string
	// Args is the CNI_ARGS of the request.
	Args string
	// Conf is the plugin's configuration, the complete JSON object that the
	// plugin would read on its standard input: name, cniVersion and
	// runtimeConfig injected, and prevResult where CNI has one.
	Conf []byte
	// Prev is the result of the plugins before this one in the chain. On
	// Detach and Check it is the attachment's final result; on Detach it is
	// nil when Attach never finished.
	Prev *current.Result
	// MAC is for the container's interface when Conf asks for none and the kernel
	// would choose one. Nil lets it.
	MAC net.HardwareAddr
	// IPAM is the address delegate that Conf names, nil when it names none.
	IPAM IPAM
	// Host runs programs where the runtime would. It is nil when nobody is
	// connected who could, such as during clean-up at start.
	Host Host
}

// Driver builds one type of attachment. All three methods may be repeated at
// any time, also after a crash in the middle of an earlier call, and are called
// for several containers at once but never for one container in parallel.
type Driver interface {
	// Attach makes the configuration true and returns the result of the chain
	// so far. What an earlier, interrupted Attach of the same container and
	// interface left is replaced. On error everything this call made is gone
	// again, addresses included.
	Attach(ctx context.Context, s Spec) (*current.Result, error)
	// Detach removes what Attach made. Removing nothing succeeds.
	Detach(ctx context.Context, s Spec) error
	// Check compares the world with Prev and names the first difference.
	Check(ctx context.Context, s Spec) error
}

// Lender is a Driver that moves links of the node into the container. Detach
// has to give them back, for which it must know whether the namespace is there:
// a nil NetNS is then no guess that will do.
type Lender interface {
	Driver
	Lends()
}

// IPAM is an address delegate bound to one attachment.
type IPAM interface {
	Add(ctx context.Context) (*current.Result, error)
	Del(ctx context.Context) error
	Check(ctx context.Context) error
}

// Host is the hand on the host: the shim, which runs with the runtime's
// mounts, PATH and cgroup, executes a program for the daemon.
type Host interface {
	Exec(ctx context.Context, p Program) (stdout []byte, err error)
}

// Program is one program to run on the host.
type Program struct {
	// Name is a bare file name, without a slash.
	Name string
	// Dirs are searched in order for Name. Empty means the host's PATH.
	Dirs  []string
	Args  []string
	Env   []string
	Stdin []byte
}

// ExitError is the failure of a Program that ran and exited with a code other
// than 0. Every other error of Host.Exec means that it could not be run (not
// found, not executable), was killed at its deadline, or that the hand is gone.
type ExitError struct {
	Program string
	Code    int
	Stdout  []byte
	Stderr  []byte
}

// Error names the program, its exit code and what it said on standard error.
func (e *ExitError) Error() string {
	msg := fmt.Sprintf("%s exited with code %d", e.Program, e.Code)
	if said := bytes.TrimSpace(e.Stderr); len(said) > 0 {
		msg += ": " + string(said)
	}
	return msg
}
