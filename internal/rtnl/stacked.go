package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"braid.dev/braid/internal/netns"
)

// Stacked is a new link on top of another one.
type Stacked struct {
	New
	// Kind is "macvlan", "ipvlan" or "vlan".
	Kind string
	// Parent is the index of the link below, in the handle's namespace.
	Parent int
	// NS is the namespace that the link is made in; nil is the handle's own. It
	// never exists anywhere else: to move it later would cost 20 ms and more.
	NS *netns.NS
	// Mode is that of a macvlan (bridge, private, vepa, passthru) or of an
	// ipvlan (l2, l3, l3s). Empty is bridge or l2.
	Mode string
	// BroadcastQueue is the length of the parent's queue for broadcasts that a
	// macvlan asks for; 0 leaves it to the kernel.
	BroadcastQueue uint32
	// ID is that of a vlan.
	ID uint16
}

var macvlanModes = map[string]netlink.MacvlanMode{
	"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
	"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

var ipvlanModes = map[string]netlink.IPVlanMode{
	"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S,
}

// AddStacked makes a link on top of another one. A name that is taken in the
// new link's namespace is ErrExists; older kernels want it to be free in
// the handle's namespace too.
func (h *Handle) AddStacked(s Stacked) error {
	if len(s.Name) > MaxName {
		return fmt.Errorf("create %s %s: name is longer than %d bytes", s.Kind, s.Name, MaxName)
	}
	l, err := s.native()
	if err != nil {
		return fmt.Errorf("create %s %s: %w", s.Kind, s.Name, err)
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkAdd(l) }), "create %s %s", s.Kind, s.Name)
}

func (s Stacked) native() (netlink.Link, error) {
	a := s.attrs()
	a.ParentIndex = s.Parent
	if s.NS != nil {
		a.Namespace = netlink.NsFd(s.NS.Fd())
	}
	switch s.Kind {
	case "macvlan":
		mode, ok := macvlanModes[s.Mode]
		if !ok {
			return nil, fmt.Errorf("unknown mode %q", s.Mode)
		}
		return &netlink.Macvlan{LinkAttrs: a, Mode: mode, BCQueueLen: s.BroadcastQueue}, nil
	case "ipvlan":
		mode, ok := ipvlanModes[s.Mode]
		if !ok {
			return nil, fmt.Errorf("unknown mode %q", s.Mode)
		}
		return &netlink.IPVlan{LinkAttrs: a, Mode: mode}, nil
	case "vlan":
		return &netlink.Vlan{LinkAttrs: a, VlanId: int(s.ID), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}, nil
	}
	return nil, fmt.Errorf("unknown kind %q", s.Kind)
}

// Mode returns the mode of a macvlan or ipvlan in the words of Stacked.Mode,
// "source" for the macvlan mode that Stacked does not make, and nothing for a
// link of another kind.
func (h *Handle) Mode(index int) (string, error) {
	l, err := h.native(index)
	if err != nil {
		return "", failed(err, "mode of link %d", index)
	}
	switch l := l.(type) {
	case *netlink.Macvlan:
		for name, mode := range macvlanModes {
			if mode == l.Mode && name != "" {
				return name, nil
			}
		}
		return "source", nil
	case *netlink.IPVlan:
		for name, mode := range ipvlanModes {
			if mode == l.Mode && name != "" {
				return name, nil
			}
		}
	}
	return "", nil
}
