package rtnl

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// LinkTo returns the index of the link that packets for addr leave by. Without
// a route it is ErrNotFound.
func (h *Handle) LinkTo(addr netip.Addr) (int, error) {
	routes, err := ask(h, func(lib *netlink.Handle) ([]netlink.Route, error) { return lib.RouteGet(ipOf(addr)) })
	if err == nil && len(routes) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
			err = ErrNotFound
		}
		return 0, failed(err, "route to %s", addr)
	}
	return routes[0].LinkIndex, nil
}

// ForgetFlows makes the kernel forget the connections to a port, by the IANA
// number of their protocol, in one address family: their next packet is looked
// at as if it were the first. It returns how many there were.
func ForgetFlows(ns *netns.NS, is6 bool, protocol byte, port uint16) (int, error) {
	family := netlink.InetFamily(unix.AF_INET)
	if is6 {
		family = unix.AF_INET6
	}
	filter := &netlink.ConntrackFilter{}
	if err := filter.AddProtocol(protocol); err != nil {
		return 0, failed(err, "connections to port %d", port)
	}
	if err := filter.AddPort(netlink.ConntrackOrigDstPort, port); err != nil {
		return 0, failed(err, "connections to port %d", port)
	}
	var found uint
	err := in(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		found, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		return err
	})
	return int(found), failed(err, "forget connections to port %d", port)
}
