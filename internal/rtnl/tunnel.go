package rtnl

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Tunnel is what a vxlan or geneve link has that others do not: above all what
// decides which of them can be up at the same time.
type Tunnel struct {
	// Kind is "vxlan" or "geneve".
	Kind string
	// ID is the VNI, 0 for an external link.
	ID uint32
	// Port is the UDP port that the link waits on.
	Port uint16
	// Local and Remote are addresses of the two ends; the zero value is none, or
	// the unspecified address. A multicast group is a Remote.
	Local, Remote netip.Addr
	// Lower is the index of the link that packets leave by, or 0.
	Lower int
	// External is collect-metadata mode, where the VNI is each packet's.
	External bool
	// VNIFilter, GBP, GPE, UDPZeroCsum6RX and RemCsumRX are flags that the socket
	// of a vxlan link receives with. Geneve has none of them.
	VNIFilter, GBP, GPE, UDPZeroCsum6RX, RemCsumRX bool
	// IPv6 says that the socket is an IPv6 one. The kernel tells it by the
	// addresses alone: of a link without any, false may be wrong. An external link
	// has a socket of each family.
	IPv6 bool
}

// Attributes of IFLA_INFO_DATA (linux/if_link.h) that the library does not have,
// or does not have of every link.
const (
	vxlanGPE       = 27
	vxlanVNIFilter = 30
)

// Tunnels returns the vxlan and geneve links of the namespace by index. The
// handle's namespace must be open still.
func (h *Handle) Tunnels() (map[int]Tunnel, error) {
	messages, err := whole(func() (answer [][]byte, err error) {
		err = in(h.ns, func() (err error) {
			req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
			req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			answer, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
			return err
		})
		return answer, err
	})
	if err != nil {
		return nil, failed(err, "list tunnels")
	}
	tunnels := map[int]Tunnel{}
	for _, m := range messages {
		index, t, ok, err := parseTunnel(m)
		if err != nil {
			return nil, failed(err, "list tunnels: link %d", index)
		}
		if ok {
			tunnels[index] = t
		}
	}
	return tunnels, nil
}

// parseTunnel reads the body of a link's message; ok tells whether it is a
// tunnel.
func parseTunnel(m []byte) (index int, t Tunnel, ok bool, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return 0, t, false, errors.New("message is too short")
	}
	index = int(int32(binary.NativeEndian.Uint32(m[4:])))
	info, err := attribute(m[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO)
	if err != nil || info == nil {
		return index, t, false, err
	}
	kind, err := attribute(info, unix.IFLA_INFO_KIND)
	if err != nil {
		return index, t, false, err
	}
	t.Kind = string(trimNUL(kind))
	if t.Kind != "vxlan" && t.Kind != "geneve" {
		return index, t, false, nil
	}
	data, err := attribute(info, unix.IFLA_INFO_DATA)
	if err != nil {
		return index, t, false, err
	}
	err = eachAttribute(data, func(kind int, value []byte) {
		if t.Kind == "vxlan" {
			t.vxlan(kind, value)
		} else {
			t.geneve(kind, value)
		}
	})
	return index, t, err == nil, err
}

// attribute is the value of the attribute of that type, nil without one.
func attribute(list []byte, wanted int) (found []byte, err error) {
	err = eachAttribute(list, func(kind int, value []byte) {
		if kind == wanted {
			found = value
		}
	})
	return found, err
}

// eachAttribute calls f with every attribute of a list (netlink(7)). The
// library's own parser does not survive a last one without its padding.
func eachAttribute(list []byte, f func(kind int, value []byte)) error {
	for len(list) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(list))
		if size < unix.SizeofRtAttr || size > len(list) {
			return errors.New("attribute does not fit")
		}
		kind := binary.NativeEndian.Uint16(list[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		f(int(kind), list[unix.SizeofRtAttr:size])
		list = list[min((size+3)&^3, len(list)):]
	}
	return nil
}

func trimNUL(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

func (t *Tunnel) vxlan(kind int, v []byte) {
	switch kind {
	case nl.IFLA_VXLAN_ID:
		t.ID = u32(v)
	case nl.IFLA_VXLAN_PORT:
		t.Port = be16(v)
	case nl.IFLA_VXLAN_LINK:
		t.Lower = int(u32(v))
	case nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6:
		t.Local = addrOf(v)
		t.IPv6 = t.IPv6 || kind == nl.IFLA_VXLAN_LOCAL6
	case nl.IFLA_VXLAN_GROUP, nl.IFLA_VXLAN_GROUP6:
		t.Remote = addrOf(v)
		t.IPv6 = t.IPv6 || kind == nl.IFLA_VXLAN_GROUP6
	case nl.IFLA_VXLAN_FLOWBASED:
		t.External = set(v)
	case nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX:
		t.UDPZeroCsum6RX = set(v)
	case nl.IFLA_VXLAN_REMCSUM_RX:
		t.RemCsumRX = set(v)
	case vxlanVNIFilter:
		t.VNIFilter = set(v)
	case nl.IFLA_VXLAN_GBP: // a flag: that it is there is all
		t.GBP = true
	case vxlanGPE:
		t.GPE = true
	}
}

func (t *Tunnel) geneve(kind int, v []byte) {
	switch kind {
	case nl.IFLA_GENEVE_ID:
		t.ID = u32(v)
	case nl.IFLA_GENEVE_PORT:
		t.Port = be16(v)
	case nl.IFLA_GENEVE_REMOTE, nl.IFLA_GENEVE_REMOTE6:
		t.Remote = addrOf(v)
		t.IPv6 = kind == nl.IFLA_GENEVE_REMOTE6
	case nl.IFLA_GENEVE_COLLECT_METADATA:
		t.External = true
	}
}

func set(v []byte) bool { return len(v) > 0 && v[0] != 0 }

func u32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

func be16(v []byte) uint16 {
	if len(v) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

// AddTunnel makes a vxlan or geneve link. Port 0 is the kernel's own default: of
// vxlan, 8472. One that is Up fails to be made when its port is taken; so does
// one that the kernel refuses beside those that there are.
func (h *Handle) AddTunnel(n New, t Tunnel) (Link, error) {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(t.Kind))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	for _, a := range t.attributes() {
		data.AddRtAttr(a.kind, a.value)
	}
	return h.create(t.Kind, n, info)
}

type tunnelAttribute struct {
	kind  int
	value []byte
}

func (t Tunnel) attributes() []tunnelAttribute {
	if t.Kind == "geneve" {
		return t.geneveAttributes()
	}
	var out []tunnelAttribute
	add := func(kind int, value []byte, wanted bool) {
		if wanted {
			out = append(out, tunnelAttribute{kind, value})
		}
	}
	local, group := nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_GROUP
	if t.Local.Is6() {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	if t.Remote.Is6() {
		group = nl.IFLA_VXLAN_GROUP6
	}
	add(nl.IFLA_VXLAN_ID, nl.Uint32Attr(t.ID), !t.External)
	add(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, t.Port), t.Port != 0)
	add(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(t.Lower)), t.Lower != 0)
	add(local, t.Local.AsSlice(), t.Local.IsValid())
	add(group, t.Remote.AsSlice(), t.Remote.IsValid())
	add(nl.IFLA_VXLAN_GROUP6, netip.IPv6Unspecified().AsSlice(), t.IPv6 && !t.Remote.IsValid() && !t.Local.IsValid())
	add(nl.IFLA_VXLAN_FLOWBASED, []byte{1}, t.External)
	// What has no MAC or no VNI of its own cannot learn where others are.
	add(nl.IFLA_VXLAN_LEARNING, []byte{0}, t.External || t.GPE)
	add(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, []byte{1}, t.UDPZeroCsum6RX)
	add(nl.IFLA_VXLAN_REMCSUM_RX, []byte{1}, t.RemCsumRX)
	add(vxlanVNIFilter, []byte{1}, t.VNIFilter)
	add(nl.IFLA_VXLAN_GBP, nil, t.GBP)
	add(vxlanGPE, nil, t.GPE)
	return out
}

func (t Tunnel) geneveAttributes() []tunnelAttribute {
	var out []tunnelAttribute
	if t.External {
		out = append(out, tunnelAttribute{nl.IFLA_GENEVE_COLLECT_METADATA, nil})
	} else {
		out = append(out, tunnelAttribute{nl.IFLA_GENEVE_ID, nl.Uint32Attr(t.ID)})
	}
	remote := nl.IFLA_GENEVE_REMOTE
	if t.Remote.Is6() {
		remote = nl.IFLA_GENEVE_REMOTE6
	}
	if t.Remote.IsValid() {
		out = append(out, tunnelAttribute{remote, t.Remote.AsSlice()})
	}
	if t.Port != 0 {
		out = append(out, tunnelAttribute{nl.IFLA_GENEVE_PORT, binary.BigEndian.AppendUint16(nil, t.Port)})
	}
	return out
}
