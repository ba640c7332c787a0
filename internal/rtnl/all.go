package rtnl

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AllAddrs returns the addresses of all links by index, in one question for
// however many links there are.
func (h *Handle) AllAddrs() (map[int][]Addr, error) {
	all, err := dump(h, func(lib *netlink.Handle) ([]netlink.Addr, error) { return lib.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, failed(err, "list addresses")
	}
	addrs := map[int][]Addr{}
	for _, a := range all {
		addrs[a.LinkIndex] = append(addrs[a.LinkIndex], addrFrom(a))
	}
	return addrs, nil
}

// Way is how packets for an address leave.
type Way struct {
	Link int
	// Via is the gateway; the zero value is a neighbour, or the node itself.
	Via netip.Addr
	// Src is the address that they leave with when nobody chose one.
	Src netip.Addr
}

// WayTo asks the kernel's routing for one address. Without a route it is
// ErrNotFound.
func (h *Handle) WayTo(addr netip.Addr) (Way, error) {
	routes, err := ask(h, func(lib *netlink.Handle) ([]netlink.Route, error) { return lib.RouteGet(ipOf(addr)) })
	switch {
	case err == nil && len(routes) == 0, errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		err = ErrNotFound
	}
	if err != nil {
		return Way{}, failed(err, "route to %s", addr)
	}
	r := routes[0]
	return Way{Link: r.LinkIndex, Via: addrOf(r.Gw), Src: addrOf(r.Src)}, nil
}
