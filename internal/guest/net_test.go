package guest_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

// bridgeNS makes a namespace with two plain bridges: braidmgmt, which has
// 192.168.77.1/24, and braidtrunk.
func bridgeNS(t *testing.T) (*netns.NS, string) {
	t.Helper()
	kerneltest.Need(t, kerneltest.UML, kerneltest.Bridge, kerneltest.Tap)
	ns, path := kerneltest.NewNamedNS(t)
	err := ns.Do(func() error {
		for _, b := range []string{"braidmgmt", "braidtrunk"} {
			if err := addBridge(b); err != nil {
				return fmt.Errorf("bridge %s: %w", b, err)
			}
		}
		return setAddr("braidmgmt", netip.MustParseAddr("192.168.77.1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns, path
}

func addBridge(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCBRADDBR, uintptr(unsafe.Pointer(p)))
	if errno != 0 {
		return errno
	}
	return ifreq(unix.SIOCSIFFLAGS, name, func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP)
		return nil
	})
}

// setAddr gives link an address in a network of 24 bits.
func setAddr(link string, addr netip.Addr) error {
	ip := addr.As4()
	err := ifreq(unix.SIOCSIFADDR, link, func(r *unix.Ifreq) error { return r.SetInet4Addr(ip[:]) })
	if err != nil {
		return err
	}
	mask := net.CIDRMask(24, 32)
	return ifreq(unix.SIOCSIFNETMASK, link, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask) })
}

func ifreq(op uint, link string, set func(*unix.Ifreq) error) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	if err := set(r); err != nil {
		return err
	}
	return unix.IoctlIfreq(s, op, r)
}

// linksIn names the links of a namespace.
func linksIn(t *testing.T, ns *netns.NS) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := ns.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names[l.Name] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
