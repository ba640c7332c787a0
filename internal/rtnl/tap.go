package rtnl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tap is a new tap link: what is sent through it is read by a program, such as
// a virtual machine, and the other way round.
type Tap struct {
	New
	// MultiQueue lets several file descriptors serve the link.
	MultiQueue bool
	// Owner and Group may open the link without being privileged. Nil means
	// that only the privileged may.
	Owner, Group *uint32
}

// tunDevice makes taps; route netlink cannot.
const tunDevice = "/dev/net/tun"

// AddTap makes a tap that outlives this process. It is ErrExists when the name
// is taken. Where there is no /dev/net/tun, or none that may be used, the error
// is fs.ErrNotExist or fs.ErrPermission.
func (h *Handle) AddTap(t Tap) (Link, error) {
	if len(t.Name) > MaxName {
		return Link{}, fmt.Errorf("create tap %s: name is longer than %d bytes", t.Name, MaxName)
	}
	if err := in(h.ns, func() error { return makeTap(t) }); err != nil {
		if errors.Is(err, unix.EBUSY) { // which is how IFF_TUN_EXCL says so
			err = fmt.Errorf("%w (%w)", ErrExists, err)
		}
		return Link{}, fmt.Errorf("create tap %s: %w", t.Name, err)
	}
	l, err := h.Link(t.Name)
	if err == nil {
		err = h.finishTap(l.Index, t)
	}
	if err != nil {
		return Link{}, errors.Join(err, h.Del(l.Index))
	}
	return h.Link(t.Name)
}

func (h *Handle) finishTap(index int, t Tap) error {
	if t.MTU != 0 {
		if err := h.SetMTU(index, t.MTU); err != nil {
			return err
		}
	}
	if t.MAC != nil {
		if err := h.SetMAC(index, t.MAC); err != nil {
			return err
		}
	}
	if t.Up {
		return h.SetUp(index)
	}
	return nil
}

// makeTap runs in the namespace that the tap is to be in. Until the last
// request the kernel removes it when the file is closed.
func makeTap(t Tap) error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", tunDevice, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(t.Name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if t.MultiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	if t.Owner != nil {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(*t.Owner)); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if t.Group != nil {
		if err := unix.IoctlSetInt(fd, unix.TUNSETGROUP, int(*t.Group)); err != nil {
			return fmt.Errorf("set group: %w", err)
		}
	}
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
}

// TapOf returns what AddTap was told about the tap of that index. An Owner or
// Group of 0 cannot be told from none, and is returned as none.
func (h *Handle) TapOf(index int) (Tap, error) {
	l, err := h.native(index)
	if err != nil {
		return Tap{}, failed(err, "tap %d", index)
	}
	tap, ok := l.(*netlink.Tuntap)
	if !ok || tap.Mode != netlink.TUNTAP_MODE_TAP {
		return Tap{}, fmt.Errorf("link %s is of kind %s, not a tap", l.Attrs().Name, l.Type())
	}
	out := Tap{
		New:        New{Name: tap.Name, MTU: tap.MTU, MAC: tap.HardwareAddr},
		MultiQueue: tap.Flags&netlink.TUNTAP_MULTI_QUEUE != 0,
	}
	if tap.Owner != 0 {
		out.Owner = &tap.Owner
	}
	if tap.Group != 0 {
		out.Group = &tap.Group
	}
	return out, nil
}
