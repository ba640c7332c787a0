package rtnl

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Neigh is an entry of the neighbour table: who has which address.
type Neigh struct {
	Addr netip.Addr
	MAC  net.HardwareAddr // nil while it is not known
	// Permanent entries never expire and are never asked for again.
	Permanent bool
}

// Neighs returns the neighbours of a link, both families.
func (h *Handle) Neighs(index int) ([]Neigh, error) {
	list := func(lib *netlink.Handle) ([]netlink.Neigh, error) { return lib.NeighList(index, unix.AF_UNSPEC) }
	all, err := dump(h, list)
	if err != nil {
		return nil, failed(err, "list neighbours of link %d", index)
	}
	neighs := make([]Neigh, 0, len(all))
	for _, n := range all {
		neighs = append(neighs, Neigh{Addr: addrOf(n.IP), MAC: n.HardwareAddr, Permanent: n.State&netlink.NUD_PERMANENT != 0})
	}
	return neighs, nil
}

// SetNeigh adds or replaces a neighbour of the link.
func (h *Handle) SetNeigh(index int, n Neigh) error {
	entry := &netlink.Neigh{LinkIndex: index, IP: ipOf(n.Addr), HardwareAddr: n.MAC, State: netlink.NUD_REACHABLE}
	if n.Permanent {
		entry.State = netlink.NUD_PERMANENT
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.NeighSet(entry) }), "set neighbour %s of link %d", n.Addr, index)
}

// DelNeigh removes a neighbour. One that is not there is ErrNotFound.
func (h *Handle) DelNeigh(index int, a netip.Addr) error {
	entry := &netlink.Neigh{LinkIndex: index, IP: ipOf(a)}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.NeighDel(entry) }), "remove neighbour %s of link %d", a, index)
}
