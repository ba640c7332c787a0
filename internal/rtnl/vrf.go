package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// VRFTable returns the routing table of the vrf device with that index.
func (h *Handle) VRFTable(index int) (uint32, error) {
	l, err := h.native(index)
	if err != nil {
		return 0, failed(err, "link %d", index)
	}
	vrf, ok := l.(*netlink.Vrf)
	if !ok {
		return 0, fmt.Errorf("link %s is of kind %s, not a vrf", l.Attrs().Name, l.Type())
	}
	return vrf.Table, nil
}
