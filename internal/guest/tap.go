package guest

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// Taps are made by ioctl: guest serves the tests of Braid's netlink package
// and should not stand on it.

// inNS runs fn in the namespace at path, in the current one when empty.
func inNS(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

// makeTap creates the persistent tap of n, or takes the one that exists, makes
// it a port of its bridge and sets it up. It reports whether it created it.
func makeTap(n NIC) (created bool, err error) {
	_, err = net.InterfaceByName(n.Tap)
	if created = err != nil; created {
		if err := persistTap(n.Tap, true); err != nil {
			return false, err
		}
	}
	if err := setUpTap(n); err != nil {
		if created {
			err = errors.Join(err, deleteTap(n.Tap))
		}
		return false, err
	}
	return created, nil
}

func setUpTap(n NIC) error {
	mtu := n.MTU
	if mtu == 0 {
		mtu = 1500
	}
	err := linkIoctl(n.Tap, unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(uint32(mtu)) })
	if err != nil {
		return fmt.Errorf("tap %s: set MTU %d: %w", n.Tap, mtu, err)
	}
	if n.Bridge != "" {
		if err := addPort(n.Bridge, n.Tap); err != nil {
			return fmt.Errorf("tap %s: add to bridge %s: %w", n.Tap, n.Bridge, err)
		}
	}
	err = linkIoctl(n.Tap, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) })
	if err != nil {
		return fmt.Errorf("tap %s: set up: %w", n.Tap, err)
	}
	return nil
}

// deleteTap removes a tap that nobody has open. One that is not there is fine.
func deleteTap(name string) error {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil
	}
	return persistTap(name, false)
}

// persistTap opens a tap, which creates it, and makes it stay, or go when it
// is closed.
func persistTap(name string, stay bool) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("tap %s: %w", name, err)
	}
	defer f.Close()
	r, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tap %q: %w", name, err)
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	fd := int(f.Fd())
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return fmt.Errorf("tap %s: open: %w", name, err)
	}
	var on int
	if stay {
		on = 1
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, on); err != nil {
		return fmt.Errorf("tap %s: make persistent (%d): %w", name, on, err)
	}
	return nil
}

// addPort makes link a port of bridge, unless it is the port of one already.
func addPort(bridge, link string) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	err = linkIoctl(bridge, unix.SIOCBRADDIF, func(r *unix.Ifreq) { r.SetUint32(uint32(i.Index)) })
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// linkIoctl passes a request about link to the kernel.
func linkIoctl(link string, op uint, set func(*unix.Ifreq)) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	set(r)
	return unix.IoctlIfreq(s, op, r)
}
