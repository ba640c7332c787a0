package rtnl

import (
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// Port is the flags of a bridge port.
type Port struct {
	// Hairpin lets a frame leave through the port that it came in by.
	Hairpin bool
	// Isolated ports exchange no frames with each other.
	Isolated bool
}

// Port returns the flags of the link as a bridge port.
func (h *Handle) Port(index int) (Port, error) {
	info, err := dump(h, func(lib *netlink.Handle) (netlink.Protinfo, error) { return lib.LinkGetProtinfo(at(index)) })
	if err != nil {
		return Port{}, failed(err, "bridge port flags of link %d", index)
	}
	return Port{Hairpin: info.Hairpin, Isolated: info.Isolated}, nil
}

// SetHairpin sets the hairpin flag of a bridge port.
func (h *Handle) SetHairpin(index int, on bool) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkSetHairpin(at(index), on) }), "set hairpin mode of link %d", index)
}

// SetIsolated sets the isolation flag of a bridge port.
func (h *Handle) SetIsolated(index int, on bool) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkSetIsolated(at(index), on) }), "set isolation of link %d", index)
}

// SetVLANFiltering switches VLAN filtering of a bridge.
func (h *Handle) SetVLANFiltering(index int, on bool) error {
	l, err := h.LinkByIndex(index)
	if err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: *at(index).Attrs()}
	br.Name = l.Name // the library insists
	return failed(h.call(func(lib *netlink.Handle) error { return lib.BridgeSetVlanFiltering(br, on) }), "set vlan filtering of bridge %s", l.Name)
}

// VLANs is a range of VLAN ids, both ends included, that a bridge port or the
// bridge itself is a member of.
type VLANs struct {
	From, To uint16 // 1 to 4094
	// PVID puts untagged frames that come in into this VLAN. Only for a range
	// of one.
	PVID bool
	// Untagged takes the tag off frames that go out.
	Untagged bool
}

// Side tells whose membership a request is about.
type Side int

const (
	// OfPort is the membership of a port of a bridge.
	OfPort Side = iota
	// OfBridge is the membership of the bridge's own link.
	OfBridge
)

// AddVLANs makes the link a member. Ids it is a member of get the new flags.
func (h *Handle) AddVLANs(index int, side Side, v VLANs) error {
	err := h.vlans(index, side, v, (*netlink.Handle).BridgeVlanAdd, (*netlink.Handle).BridgeVlanAddRange)
	return failed(err, "add vlans %d-%d to link %d", v.From, v.To, index)
}

// DelVLANs ends the membership. Ids it is no member of are no error.
func (h *Handle) DelVLANs(index int, side Side, v VLANs) error {
	err := h.vlans(index, side, v, (*netlink.Handle).BridgeVlanDel, (*netlink.Handle).BridgeVlanDelRange)
	return failed(err, "remove vlans %d-%d of link %d", v.From, v.To, index)
}

type (
	vlanOne   func(lib *netlink.Handle, l netlink.Link, vid uint16, pvid, untagged, self, master bool) error
	vlanRange func(lib *netlink.Handle, l netlink.Link, from, to uint16, pvid, untagged, self, master bool) error
)

func (h *Handle) vlans(index int, side Side, v VLANs, one vlanOne, many vlanRange) error {
	self, master := side == OfBridge, side == OfPort
	return h.call(func(lib *netlink.Handle) error {
		if v.To == v.From || v.To == 0 {
			return one(lib, at(index), v.From, v.PVID, v.Untagged, self, master)
		}
		return many(lib, at(index), v.From, v.To, v.PVID, v.Untagged, self, master)
	})
}

// AllVLANs returns the membership of every bridge and bridge port of the
// namespace by link index, neighbouring ids with equal flags as one range.
func (h *Handle) AllVLANs() (map[int][]VLANs, error) {
	all, err := dump(h, (*netlink.Handle).BridgeVlanList)
	if err != nil {
		return nil, failed(err, "list bridge vlans")
	}
	out := make(map[int][]VLANs, len(all))
	for index, infos := range all {
		slices.SortFunc(infos, func(a, b *nl.BridgeVlanInfo) int { return int(a.Vid) - int(b.Vid) })
		out[int(index)] = ranges(infos)
	}
	return out, nil
}

func ranges(infos []*nl.BridgeVlanInfo) []VLANs {
	var out []VLANs
	for _, info := range infos {
		next := VLANs{From: info.Vid, To: info.Vid, PVID: info.PortVID(), Untagged: info.EngressUntag()}
		if n := len(out) - 1; n >= 0 && out[n].To+1 == next.From && out[n].PVID == next.PVID && out[n].Untagged == next.Untagged {
			out[n].To = next.To
			continue
		}
		out = append(out, next)
	}
	return out
}
