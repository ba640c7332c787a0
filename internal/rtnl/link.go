package rtnl

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// MaxName is the longest name of a link, in bytes (IFNAMSIZ without the NUL).
const MaxName = 15

// Link is what the kernel says about a link.
type Link struct {
	Index int
	Name  string
	// Kind is the kernel's name for the type of link, such as "veth", "bridge"
	// or "vlan", and "device" for hardware and the loopback.
	Kind string
	MAC  net.HardwareAddr
	// MTU is in bytes.
	MTU int
	// Up is what was asked for (IFF_UP); Running says that the link also has a
	// carrier and passes traffic (operational state up).
	Up, Running bool
	// Master is the index of the bridge or vrf that the link is a port of, or 0.
	Master int
	// Parent is the index of the link below a vlan, macvlan or ipvlan, and of
	// the other end of a veth. It counts in namespace ParentNSID, or in the
	// link's own namespace when that is -1.
	Parent     int
	ParentNSID int
	// Promisc is the administrator's flag for promiscuous mode. The kernel may
	// be in that mode for its own reasons too, as it is on bridge ports.
	Promisc  bool
	Alias    string
	AltNames []string
	// LinkGroup is a number that links can be handled by; 0 unless someone set it.
	LinkGroup uint32
	// VLANFiltering and DefaultPVID are of a bridge. DefaultPVID is the VLAN
	// that every new port becomes an untagged member of, or 0.
	VLANFiltering bool
	DefaultPVID   uint16
	// VLAN is the id of a vlan link.
	VLAN uint16
}

// Link returns the link that has that name, or has it as an alternative name.
func (h *Handle) Link(name string) (Link, error) {
	if len(name) > MaxName {
		return Link{}, fmt.Errorf("link %s: name is longer than %d bytes: %w", name, MaxName, ErrNotFound)
	}
	l, err := h.native(0, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err != nil {
		return Link{}, failed(err, "link %s", name)
	}
	return linkOf(l), nil
}

// LinkByIndex returns the link of that index.
func (h *Handle) LinkByIndex(index int) (Link, error) {
	l, err := h.native(index)
	if err != nil {
		return Link{}, failed(err, "link %d", index)
	}
	return linkOf(l), nil
}

// skipStats leaves out what is counted of a link, which for IPv6 is added up
// over all processors (RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h).
const skipStats = 1 << 3

// native is one link as the library has it.
func (h *Handle) native(index int, which ...*nl.RtAttr) (netlink.Link, error) {
	req := linkRequest(unix.RTM_GETLINK, index, 0, 0, which...)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	answer, err := h.conn.do(req)
	if err != nil {
		return nil, err
	}
	return netlink.LinkDeserialize(nil, answer)
}

// linkRequest is a request about a link. Of its flags those in mask are meant.
func linkRequest(kind, index int, flags, mask uint32, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Change = int32(index), flags, mask
	req := nl.NewNetlinkRequest(kind, 0)
	req.AddData(head)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

// set changes attributes of the link.
func (h *Handle) set(index int, attrs ...*nl.RtAttr) error {
	return h.conn.change(linkRequest(unix.RTM_SETLINK, index, 0, 0, attrs...))
}

// Links returns all links of the namespace, by index.
func (h *Handle) Links() ([]Link, error) {
	all, err := dump(h, (*netlink.Handle).LinkList)
	if err != nil {
		return nil, failed(err, "list links")
	}
	links := make([]Link, len(all))
	for i, l := range all {
		links[i] = linkOf(l)
	}
	return links, nil
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	out := Link{
		Index:      a.Index,
		Name:       a.Name,
		Kind:       l.Type(),
		MAC:        a.HardwareAddr,
		MTU:        a.MTU,
		Up:         a.Flags&net.FlagUp != 0,
		Running:    a.OperState == netlink.OperUp,
		Master:     a.MasterIndex,
		Parent:     a.ParentIndex,
		ParentNSID: a.NetNsID,
		Promisc:    a.RawFlags&unix.IFF_PROMISC != 0,
		Alias:      a.Alias,
		AltNames:   a.AltNames,
		LinkGroup:  a.Group,
	}
	switch l := l.(type) {
	case *netlink.Bridge:
		out.VLANFiltering = l.VlanFiltering != nil && *l.VlanFiltering
		if l.VlanDefaultPVID != nil {
			out.DefaultPVID = *l.VlanDefaultPVID
		}
	case *netlink.Vlan:
		out.VLAN = uint16(l.VlanId)
	}
	return out
}

// New is what every kind of new link has.
type New struct {
	Name string
	// MTU in bytes; 0 leaves it to the kernel.
	MTU int
	// MAC is random when nil.
	MAC net.HardwareAddr
	// LinkGroup is as in Link.
	LinkGroup uint32
	// Up brings the link up in the same step.
	Up bool
}

func (n New) attrs() netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr, a.Group = n.Name, n.MTU, n.MAC, n.LinkGroup
	if n.Up {
		a.Flags |= net.FlagUp
	}
	return a
}

// Bridge is a new bridge.
type Bridge struct {
	New
	VLANFiltering bool
}

// AddBridge makes a bridge.
func (h *Handle) AddBridge(b Bridge) (Link, error) {
	br := &netlink.Bridge{LinkAttrs: b.attrs()}
	if b.VLANFiltering {
		br.VlanFiltering = &b.VLANFiltering
	}
	return h.add(br)
}

// Veth is a new pair of links. Peer may be in another namespace, where it gets
// its final name in the same step: both ends exist, or none.
type Veth struct {
	New
	// Master is the bridge that the link becomes a port of in the same step, by
	// its index, or 0.
	Master int
	Peer   New
	PeerNS *netns.NS // nil for the handle's own
}

// AddVeth makes a veth pair and returns the end in the handle's namespace.
// Peer.Up is not used: the kernel makes the other end down. With one MTU given
// both ends have it.
//
// Each end has one queue. Unasked the kernel makes one for every processor that
// there could be, registers them, and takes all but the first one out of use
// again, for which it waits until no processor looks at them any more.
func (h *Handle) AddVeth(v Veth) (Link, error) {
	if v.MTU == 0 || v.Peer.MTU == 0 {
		v.MTU = max(v.MTU, v.Peer.MTU)
		v.Peer.MTU = v.MTU
	}
	peer := nl.NewRtAttr(nl.VETH_INFO_PEER, nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize())
	for _, a := range append(v.Peer.native(), oneQueue()...) {
		peer.AddChild(a)
	}
	if v.PeerNS != nil {
		peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.PeerNS.Fd())))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddChild(peer)
	more := append(oneQueue(), info)
	if v.Master != 0 {
		more = append(more, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.Master))))
	}
	return h.create("veth", v.New, more...)
}

func oneQueue() []*nl.RtAttr {
	return []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1)),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1)),
	}
}

// native is what the kernel is told of every kind of new link.
func (n New) native() []*nl.RtAttr {
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(n.Name))}
	if n.MTU > 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(n.MTU))))
	}
	if n.MAC != nil {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_ADDRESS, n.MAC))
	}
	if n.LinkGroup > 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(n.LinkGroup)))
	}
	return attrs
}

// create makes a link of that kind, of which more tells what New does not, and
// reads it back, because its index and MAC are the kernel's choice.
func (h *Handle) create(kind string, n New, more ...*nl.RtAttr) (Link, error) {
	if len(n.Name) > MaxName {
		return Link{}, fmt.Errorf("create %s %s: name is longer than %d bytes", kind, n.Name, MaxName)
	}
	var up uint32
	if n.Up {
		up = unix.IFF_UP
	}
	req := linkRequest(unix.RTM_NEWLINK, 0, up, up, append(n.native(), more...)...)
	req.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	if err := h.conn.change(req); err != nil {
		return Link{}, failed(err, "create %s %s", kind, n.Name)
	}
	return h.Link(n.Name)
}

// VLAN is a new 802.1Q link on the link with index Parent.
type VLAN struct {
	New
	Parent int
	ID     uint16
}

// AddVLAN makes a vlan link.
func (h *Handle) AddVLAN(v VLAN) (Link, error) {
	a := v.attrs()
	a.ParentIndex = v.Parent
	return h.add(&netlink.Vlan{LinkAttrs: a, VlanId: int(v.ID), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
}

// AddDummy makes a dummy link.
func (h *Handle) AddDummy(n New) (Link, error) {
	return h.add(&netlink.Dummy{LinkAttrs: n.attrs()})
}

// AddMacvlan makes a macvlan link in bridge mode on the link with index parent.
func (h *Handle) AddMacvlan(n New, parent int) (Link, error) {
	a := n.attrs()
	a.ParentIndex = parent
	return h.add(&netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE})
}

// AddIPVlan makes an ipvlan link in l2 mode on the link with index parent.
func (h *Handle) AddIPVlan(n New, parent int) (Link, error) {
	a := n.attrs()
	a.ParentIndex = parent
	return h.add(&netlink.IPVlan{LinkAttrs: a, Mode: netlink.IPVLAN_MODE_L2})
}

// AddVRF makes a virtual routing and forwarding device of that table.
func (h *Handle) AddVRF(n New, table uint32) (Link, error) {
	return h.add(&netlink.Vrf{LinkAttrs: n.attrs(), Table: table})
}

// AddVXLAN makes a vxlan link with that network identifier, without a parent
// or peers.
func (h *Handle) AddVXLAN(n New, vni int) (Link, error) {
	return h.add(&netlink.Vxlan{LinkAttrs: n.attrs(), VxlanId: vni, Port: 4789})
}

// add makes the link and reads it back, because its index and MAC are the
// kernel's choice.
func (h *Handle) add(l netlink.Link) (Link, error) {
	name := l.Attrs().Name
	if len(name) > MaxName {
		return Link{}, fmt.Errorf("create %s %s: name is longer than %d bytes", l.Type(), name, MaxName)
	}
	if err := h.call(func(lib *netlink.Handle) error { return lib.LinkAdd(l) }); err != nil {
		return Link{}, failed(err, "create %s %s", l.Type(), name)
	}
	return h.Link(name)
}

// Del removes the link. Removing what is not there is ErrNotFound.
func (h *Handle) Del(index int) error {
	return failed(h.conn.change(linkRequest(unix.RTM_DELLINK, index, 0, 0)), "delete link %d", index)
}

// at stands for a link in requests that only need its index.
func at(index int) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Index = index
	return &netlink.Device{LinkAttrs: a}
}

// SetUp brings the link up.
func (h *Handle) SetUp(index int) error {
	return failed(h.conn.change(linkRequest(unix.RTM_NEWLINK, index, unix.IFF_UP, unix.IFF_UP)), "set link %d up", index)
}

// SetDown takes the link down.
func (h *Handle) SetDown(index int) error {
	return failed(h.conn.change(linkRequest(unix.RTM_NEWLINK, index, 0, unix.IFF_UP)), "set link %d down", index)
}

// SetMTU sets the MTU in bytes.
func (h *Handle) SetMTU(index, mtu int) error {
	return failed(h.set(index, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))), "set mtu %d of link %d", mtu, index)
}

// SetMAC sets the hardware address. Setting the present one again makes the
// kernel announce the link's addresses to its neighbours, where the sysctls
// arp_notify and ndisc_notify say so.
func (h *Handle) SetMAC(index int, mac net.HardwareAddr) error {
	return failed(h.set(index, nl.NewRtAttr(unix.IFLA_ADDRESS, mac)), "set mac %s of link %d", mac, index)
}

// SetName renames the link, which must be down on kernels before 6.3.
func (h *Handle) SetName(index int, name string) error {
	return failed(h.set(index, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))), "rename link %d to %s", index, name)
}

// SetLinkGroup sets the number that links can be handled by.
func (h *Handle) SetLinkGroup(index int, group uint32) error {
	return failed(h.set(index, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group))), "set group %d of link %d", group, index)
}

// SetAlias sets the free text of the link, 255 bytes at most.
func (h *Handle) SetAlias(index int, alias string) error {
	return failed(h.set(index, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias))), "set alias of link %d", index)
}

// AddAltName gives the link one more name, 127 bytes at most.
func (h *Handle) AddAltName(index int, name string) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkAddAltName(at(index), name) }), "add alternative name %s to link %d", name, index)
}

// DelAltName takes an alternative name away.
func (h *Handle) DelAltName(index int, name string) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkDelAltName(at(index), name) }), "remove alternative name %s of link %d", name, index)
}

// SetMaster makes the link a port of the bridge or vrf with index master, or
// of none when master is 0.
func (h *Handle) SetMaster(index, master int) error {
	return failed(h.set(index, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master)))), "set master %d of link %d", master, index)
}

// SetPromisc sets the administrator's flag for promiscuous mode.
func (h *Handle) SetPromisc(index int, on bool) error {
	if on {
		return failed(h.call(func(lib *netlink.Handle) error { return lib.SetPromiscOn(at(index)) }), "set link %d promiscuous", index)
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.SetPromiscOff(at(index)) }), "end promiscuous mode of link %d", index)
}

// MoveTo moves the link into ns, where it is down and has no addresses.
func (h *Handle) MoveTo(index int, ns *netns.NS) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkSetNsFd(at(index), ns.Fd()) }), "move link %d to another namespace", index)
}

// NSID returns the number by which the kernel names ns in Link.ParentNSID of
// this handle's links, or -1 when no link here has its other end there.
func (h *Handle) NSID(ns *netns.NS) (int, error) {
	id, err := ask(h, func(lib *netlink.Handle) (int, error) { return lib.GetNetNsIdByFd(ns.Fd()) })
	return id, failed(err, "namespace id")
}
