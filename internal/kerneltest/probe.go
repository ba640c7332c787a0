package kerneltest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// probes try each feature, once per process.
var probes = map[Feature]func() error{
	NetNS:          once(func() error { return nil }),
	Veth:           once(func() error { return addLink(link{kind: "veth", name: "probe"}) }),
	Bridge:         once(func() error { return addLink(link{kind: "bridge", name: "probe"}) }),
	BridgeVLAN:     once(tryBridgeVLAN),
	Tap:            once(tryTap),
	Macvlan:        once(func() error { return addChild("macvlan", attr32(1, 4)) }), // mode: bridge
	IPVlan:         once(func() error { return addChild("ipvlan", attr16(1, 0)) }),  // mode: l2
	VLAN:           once(func() error { return addChild("vlan", attr16(1, 2001)) }), // id
	VXLAN:          once(func() error { return addLink(link{kind: "vxlan", name: "probe", data: attr32(1, 7)}) }),
	Geneve:         once(tryGeneve),
	Dummy:          once(func() error { return addLink(link{kind: "dummy", name: "probe"}) }),
	VRF:            once(func() error { return addLink(link{kind: "vrf", name: "probe", data: attr32(1, 7)}) }),
	Shaping:        once(tryShaping),
	NftInet:        once(func() error { return addNftTable(unix.NFPROTO_INET) }),
	NftBridge:      once(func() error { return addNftTable(unix.NFPROTO_BRIDGE) }),
	IptablesLegacy: once(tryIptablesLegacy),
	UML:            once(tryUML),
	QEMU:           once(tryQEMU),
}

// once runs try in a namespace that exists only for that.
func once(try func() error) func() error {
	return sync.OnceValue(func() (err error) {
		name := freshName()
		ns, err := netns.New(name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ns.Close(), netns.Delete(name)) }()
		return ns.Do(try)
	})
}

// addChild creates a link on top of another one. A veth serves as the lower
// link, because every kernel that Braid runs on has it.
func addChild(kind string, data []byte) error {
	if err := addLink(link{kind: "veth", name: "lower"}); err != nil {
		return err
	}
	lower, err := linkIndex("lower")
	if err != nil {
		return err
	}
	return addLink(link{kind: kind, name: "probe", parent: lower, data: data})
}

func tryBridgeVLAN() error {
	if err := addLink(link{kind: "bridge", name: "probe"}); err != nil {
		return err
	}
	index, err := linkIndex("probe")
	if err != nil {
		return err
	}
	return addBridgeVLAN(index, 2001)
}

func tryShaping() error {
	if err := addLink(link{kind: "ifb", name: "probe"}); err != nil {
		return err
	}
	index, err := linkIndex("probe")
	if err != nil {
		return err
	}
	return addIngress(index)
}

func tryGeneve() error {
	const id, remote = 1, 2
	data := append(attr32(id, 7), attr(remote, []byte{192, 0, 2, 1})...)
	return addLink(link{kind: "geneve", name: "probe", data: data})
}

func tryTap() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := unix.NewIfreq("probe")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, r)
}

// tryIptablesLegacy asks the program, which loads what the kernel lacks.
func tryIptablesLegacy() error {
	out, err := exec.Command("iptables-legacy", "-w", "-t", "nat", "-S").CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables-legacy: %w: %s", err, out)
	}
	return nil
}

// tryUML runs the guest's kernel as far as its version: booting it is what the
// tests that need it do.
func tryUML() error {
	version, err := exec.Command("linux.uml", "--version").Output()
	if err != nil {
		return fmt.Errorf("linux.uml: %w (Debian package user-mode-linux)", err)
	}
	_, err = os.Stat("/usr/lib/uml/modules/" + strings.TrimSpace(string(version)))
	return err
}

// tryQEMU runs the emulator as far as its version, and looks for the programs
// that a guest takes beside it.
func tryQEMU() error {
	if _, err := exec.Command("qemu-system-x86_64", "--version").Output(); err != nil {
		return fmt.Errorf("qemu-system-x86_64: %w (Debian package qemu-system-x86)", err)
	}
	if _, err := exec.LookPath("depmod"); err != nil {
		return fmt.Errorf("%w (Debian package kmod)", err)
	}
	_, err := os.Stat("/usr/lib/qemu/virtiofsd")
	return err
}
