package guest

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// sharedNamespaces are what a guest without a kernel has of its own, beside
// the pid namespace that every guest has. It shares the cgroup namespace: its
// container runtime counts on the paths of the machine.
const sharedNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET

// sharedBoot is what init is told when there is no kernel to set up.
func sharedBoot(c Config, b control.Boot) control.Boot {
	b.Modules, b.ModuleDir = nil, ""
	if b.Disk != nil {
		b.Disk = &control.Disk{Dir: c.Disk}
	}
	for i, n := range c.NICs {
		b.Links[i].Device = n.Name // the pair is made under its final name
	}
	return b
}

// namePairs notes the links of the guest before they exist, so that whoever
// finds the guest can remove them.
func (g *Guest) namePairs(c Config) {
	for _, n := range c.NICs {
		g.state.Pairs = append(g.state.Pairs, n.Tap)
	}
}

// deletePair removes a veth pair. The kernel removes it by itself, a moment
// after the last process of the guest is gone.
func deletePair(name string) error {
	err := runIP([]string{"link", "del", name})
	if _, there := net.InterfaceByName(name); err != nil && there == nil {
		return err
	}
	return nil
}

// makePairs gives the guest whose first process is pid its links: veth pairs,
// whose other ends take the place of taps. They vanish with the guest.
func makePairs(c Config, pid int) error {
	return inNS(c.NetNS, func() error {
		for _, n := range c.NICs {
			if err := runIP(pairArgs(n, pid)); err != nil {
				return fmt.Errorf("link %s: %w", n.Name, err)
			}
			if err := setUpTap(n); err != nil {
				return fmt.Errorf("link %s: %w", n.Name, err)
			}
		}
		return nil
	})
}

// pairArgs makes one veth pair. There is no ioctl for that, and this package
// does not stand on Braid's own netlink code, which it serves to test.
func pairArgs(n NIC, pid int) []string {
	return []string{"link", "add", n.Tap, "type", "veth",
		"peer", "name", n.Name, "address", n.MAC.String(), "netns", strconv.Itoa(pid)}
}

func runIP(args []string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
