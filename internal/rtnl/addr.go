package rtnl

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
	list := func(lib *netlink.Handle) ([]netlink.Addr, error) { return lib.AddrList(at(index), unix.AF_UNSPEC) }
	all, err := dump(h, list)
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
	req := addrRequest(unix.RTM_NEWADDR, index, a)
	req.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	return failed(h.conn.change(req), "add address %s to link %d", a.Prefix, index)
}

// DelAddr takes an address away. One that it does not have is ErrNotFound.
func (h *Handle) DelAddr(index int, a Addr) error {
	return failed(h.conn.change(addrRequest(unix.RTM_DELADDR, index, a)), "remove address %s of link %d", a.Prefix, index)
}

// addrRequest is a request about an address of a link. The prefix length is the
// peer's where there is one. IPv4 has a broadcast address where the subnet is
// large enough for one (RFC 3021), as iproute2 does not but the reference
// plugins do.
func addrRequest(kind, index int, a Addr) *nl.NetlinkRequest {
	peer := a.Prefix
	if a.Peer.IsValid() {
		peer = a.Peer
	}
	head := nl.NewIfAddrmsg(unix.AF_INET)
	if a.Addr().Is6() {
		head.Family = unix.AF_INET6
	}
	head.Index, head.Prefixlen, head.Scope = uint32(index), uint8(peer.Bits()), uint8(a.Scope)
	if a.NoDAD {
		head.Flags |= unix.IFA_F_NODAD
	}
	req := nl.NewNetlinkRequest(kind, 0)
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, peer.Addr().AsSlice()))
	if a.Addr().Is4() && peer.Bits() < 31 {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(a.Addr(), peer.Bits())))
	}
	return req
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(a netip.Addr, bits int) []byte {
	last := a.As4()
	hosts := ^uint32(0) >> bits
	binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|hosts)
	return last[:]
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
