package main

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// Links are configured by the ioctls of netdevice(7): three calls per link at
// boot do not justify a netlink library in process 1.

// setUpLink names a link and brings it into the state that l describes.
func setUpLink(l control.Link) error {
	if err := renameLink(l.Device, l.Name); err != nil {
		return fmt.Errorf("rename %s: %w", l.Device, err)
	}
	if l.MTU != 0 {
		if err := setMTU(l.Name, l.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", l.MTU, err)
		}
	}
	if err := linkUp(l.Name); err != nil {
		return err
	}
	if l.Addr.IsValid() {
		if err := addAddr(l.Name, l.Addr); err != nil {
			return fmt.Errorf("add address %s: %w", l.Addr, err)
		}
	}
	if l.Gateway.IsValid() {
		if err := addDefaultRoute(l.Name, l.Gateway); err != nil {
			return fmt.Errorf("add default route via %s: %w", l.Gateway, err)
		}
	}
	return nil
}

// ifreq fills a request for link and passes it to the kernel; set may be nil.
func ifreq(link string, op uint, set func(*unix.Ifreq)) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	if set != nil {
		set(r)
	}
	return unix.IoctlIfreq(s, op, r)
}

func linkUp(link string) error {
	err := ifreq(link, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) })
	if err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	return nil
}

func setMTU(link string, mtu int) error {
	return ifreq(link, unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(uint32(mtu)) })
}

// rawIfreq is struct ifreq with a second name in it, which unix.Ifreq cannot hold.
type rawIfreq struct {
	name, data [unix.IFNAMSIZ]byte
	_          [8]byte
}

func renameLink(from, to string) error {
	if from == to {
		return nil
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	var r rawIfreq
	copy(r.name[:unix.IFNAMSIZ-1], from)
	copy(r.data[:unix.IFNAMSIZ-1], to)
	return ioctl(s, unix.SIOCSIFNAME, unsafe.Pointer(&r))
}

func addAddr(link string, p netip.Prefix) error {
	if !p.Addr().Is4() {
		return addAddr6(link, p)
	}
	addr, mask := p.Addr().As4(), net.CIDRMask(p.Bits(), 32)
	var err error
	set := func(ip []byte) func(*unix.Ifreq) {
		return func(r *unix.Ifreq) { err = r.SetInet4Addr(ip) }
	}
	if e := ifreq(link, unix.SIOCSIFADDR, set(addr[:])); e != nil || err != nil {
		return firstError(err, e)
	}
	if e := ifreq(link, unix.SIOCSIFNETMASK, set(mask)); e != nil || err != nil {
		return firstError(err, e)
	}
	return nil
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// addAddr6 adds an IPv6 address: struct in6_ifreq on an IPv6 socket.
func addAddr6(link string, p netip.Prefix) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r := struct {
		addr  [16]byte
		bits  uint32
		index int32
	}{p.Addr().As16(), uint32(p.Bits()), int32(i.Index)}
	return ioctl(s, unix.SIOCSIFADDR, unsafe.Pointer(&r))
}

// rtentry is struct rtentry of route(7) on a 64-bit machine.
type rtentry struct {
	_             uint64
	dst, gw, mask unix.RawSockaddrInet4
	flags         uint16
	_             [3]uint16
	_             [2]uint64
	metric        int16
	_             [3]uint16
	dev           *byte
	_             [3]uint64
}

// rtentry6 is struct in6_rtmsg.
type rtentry6 struct {
	dst, src, gw   [16]byte
	kind           uint32
	dstLen, srcLen uint16
	metric         uint32
	_              uint64
	flags          uint32
	index          int32
}

const (
	rtfUp      = 0x1
	rtfGateway = 0x2
)

func addDefaultRoute(link string, gw netip.Addr) error {
	if !gw.Is4() {
		return addDefaultRoute6(link, gw)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	zero := unix.RawSockaddrInet4{Family: unix.AF_INET}
	dev, err := unix.BytePtrFromString(link)
	if err != nil {
		return err
	}
	r := rtentry{dst: zero, mask: zero, gw: zero, flags: rtfUp | rtfGateway, dev: dev}
	r.gw.Addr = gw.As4()
	return ioctl(s, unix.SIOCADDRT, unsafe.Pointer(&r))
}

func addDefaultRoute6(link string, gw netip.Addr) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r := rtentry6{gw: gw.As16(), metric: 1024, flags: rtfUp | rtfGateway, index: int32(i.Index)}
	return ioctl(s, unix.SIOCADDRT, unsafe.Pointer(&r))
}

func ioctl(fd int, op uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
