package rtnl

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addr is an address of a link.
type Addr struct {
	netip.Prefix
	// Peer is the other end of a point-to-point address; the zero value is none.
	Peer netip.Prefix
	// Scope is RT_SCOPE_*: 0 for the world, 253 for the link, 254 for the host.
	Scope int
	// NoDAD makes an IPv6 address usable at once, without asking the link
	// whether somebody else has it.
	NoDAD bool
	// Tentative and DADFailed are what the kernel reports of an IPv6 address:
	// not yet known to be unique, and known not to be.
	Tentative, DADFailed bool
}

// Addrs returns the addresses of a link, IPv4 first, link-local ones included.
func (h *Handle) Addrs(index int) ([]Addr, error) {
	list := func() ([]netlink.Addr, error) { return h.nl.AddrList(at(index), unix.AF_UNSPEC) }
	all, err := dump(list)
	if err != nil {
		return nil, failed(err, "list addresses of link %d", index)
	}
	addrs := make([]Addr, 0, len(all))
	for _, a := range all {
		addrs = append(addrs, addrFrom(a))
	}
	return addrs, nil
}

func addrFrom(a netlink.Addr) Addr {
	addr := Addr{
		Prefix:    prefixOf(a.IPNet),
		Scope:     a.Scope,
		NoDAD:     a.Flags&unix.IFA_F_NODAD != 0,
		Tentative: a.Flags&unix.IFA_F_TENTATIVE != 0,
		DADFailed: a.Flags&unix.IFA_F_DADFAILED != 0,
	}
	// The library repeats the address itself when there is no peer.
	if peer := prefixOf(a.Peer); peer != addr.Prefix {
		addr.Peer = peer
	}
	return addr
}

// AddAddr gives the link an address. One that it has is ErrExists.
func (h *Handle) AddAddr(index int, a Addr) error {
	return failed(h.nl.AddrAdd(at(index), a.native()), "add address %s to link %d", a.Prefix, index)
}

// DelAddr takes an address away. One that it does not have is ErrNotFound.
func (h *Handle) DelAddr(index int, a Addr) error {
	return failed(h.nl.AddrDel(at(index), a.native()), "remove address %s of link %d", a.Prefix, index)
}

func (a Addr) native() *netlink.Addr {
	out := &netlink.Addr{IPNet: ipNet(a.Prefix), Peer: ipNet(a.Peer), Scope: a.Scope}
	if a.NoDAD {
		out.Flags |= unix.IFA_F_NODAD
	}
	return out
}

// ipNet converts at the library's door. The host bits are kept.
func ipNet(p netip.Prefix) *net.IPNet {
	if !p.IsValid() {
		return nil
	}
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

// addrOf returns the zero Addr for nil.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ipOf(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}
