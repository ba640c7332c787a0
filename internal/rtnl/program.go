package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Program is an eBPF program that looks at the frames of a link, attached as a
// filter of its clsact.
type Program struct {
	Link int
	// Egress says that it looks at what leaves the link.
	Egress bool
	// Name is what its maker called it, such as cil_from_netdev-eth0.
	Name string

	native netlink.Filter
}

func (p Program) String() string {
	direction := "ingress"
	if p.Egress {
		direction = "egress"
	}
	return direction + " " + p.Name
}

// Programs returns the eBPF programs of a link's clsact, and how many filters
// it has that are none. A link without clsact has neither.
func (h *Handle) Programs(index int) (programs []Program, others int, err error) {
	s, err := h.Shaping(index)
	if err != nil || s.Ingress != "clsact" {
		return nil, 0, err
	}
	for _, egress := range []bool{false, true} {
		parent := uint32(netlink.HANDLE_MIN_INGRESS)
		if egress {
			parent = netlink.HANDLE_MIN_EGRESS
		}
		filters, err := dump(h, func(lib *netlink.Handle) ([]netlink.Filter, error) { return lib.FilterList(at(index), parent) })
		if err != nil {
			return nil, 0, failed(err, "list filters of link %d", index)
		}
		for _, f := range filters {
			if bpf, ok := f.(*netlink.BpfFilter); ok {
				programs = append(programs, Program{Link: index, Egress: egress, Name: bpf.Name, native: bpf})
			} else {
				others++
			}
		}
	}
	return programs, others, nil
}

// DelProgram takes the program off its link. One that is not there is
// ErrNotFound.
func (h *Handle) DelProgram(p Program) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.FilterDel(p.native) }), "remove program %s of link %d", p, p.Link)
}

// DelClsact removes the link's clsact with all that is in it. One that is not
// there is ErrNotFound.
func (h *Handle) DelClsact(index int) error {
	q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: ingressHandle, Parent: netlink.HANDLE_CLSACT}}
	err := h.call(func(lib *netlink.Handle) error { return lib.QdiscDel(q) })
	if err == unix.EINVAL { // what the kernel says of a qdisc that is not there
		err = fmt.Errorf("%w (%w)", ErrNotFound, err)
	}
	return failed(err, "remove clsact of link %d", index)
}
