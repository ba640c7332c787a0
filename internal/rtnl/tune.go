package rtnl

import (
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tuning is what of a link can be changed but is no part of Link.
type Tuning struct {
	// AllMulti is the administrator's flag for receiving all multicast frames.
	AllMulti bool
	// TxQLen is the length of the transmit queue, in packets.
	TxQLen int
}

// Tuning returns the link's.
func (h *Handle) Tuning(index int) (Tuning, error) {
	l, err := h.native(index)
	if err != nil {
		return Tuning{}, failed(err, "link %d", index)
	}
	a := l.Attrs()
	return Tuning{AllMulti: a.RawFlags&unix.IFF_ALLMULTI != 0, TxQLen: a.TxQLen}, nil
}

// SetAllMulti makes the link receive all multicast frames, or ends that.
func (h *Handle) SetAllMulti(index int, on bool) error {
	if on {
		return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkSetAllmulticastOn(at(index)) }), "set link %d to receive all multicast", index)
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkSetAllmulticastOff(at(index)) }), "end receiving all multicast on link %d", index)
}

// SetTxQLen sets the length of the transmit queue, in packets.
func (h *Handle) SetTxQLen(index, packets int) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.LinkSetTxQLen(at(index), packets) }), "set transmit queue length %d of link %d", packets, index)
}
