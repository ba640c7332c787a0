package rtnl

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddIFB makes an intermediate functional block: a link that other links'
// frames can be redirected to, and that hands them back once its own queueing
// discipline lets them pass. It has no transmit queue of its own.
func (h *Handle) AddIFB(n New) (Link, error) {
	a := n.attrs()
	a.TxQLen = 0
	return h.add(&netlink.Ifb{LinkAttrs: a})
}

// TBF is a token bucket filter, the queueing discipline that lets frames leave
// at a rate and drops what would have to wait for too long.
type TBF struct {
	// Rate is in bytes per second.
	Rate uint64
	// Burst is what may leave at once after a pause, in bytes.
	Burst uint64
	// LatencyMillis is the longest that a frame waits.
	LatencyMillis uint64
}

// tbfHandle is 1:0, that of the root of whoever shapes a link by one filter.
const tbfHandle = 1 << 16

// native translates into the kernel's units: the bucket is as deep as the time
// in which the burst leaves, in ticks, and the queue as long as the bytes that
// leave in that latency, and the burst.
func (t TBF) native(index int) *netlink.Tbf {
	micros := math.Trunc(float64(t.Burst) * 1e6 / float64(t.Rate))
	wait := float64(t.Rate) * float64(t.LatencyMillis) / 1e3
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: tbfHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       t.Rate,
		Buffer:     saturate(micros * netlink.TickInUsec()),
		Limit:      saturate(math.Trunc(wait) + float64(t.Burst)),
	}
}

// saturate keeps a value that is too large for the kernel from coming out as a
// small one.
func saturate(v float64) uint32 {
	if v >= math.MaxUint32 {
		return math.MaxUint32
	}
	return uint32(v)
}

// AddTBF makes the filter the root of the link's queueing disciplines. It is
// ErrExists when somebody else has set a root.
func (h *Handle) AddTBF(index int, t TBF) error {
	return failed(h.call(func(lib *netlink.Handle) error { return lib.QdiscAdd(t.native(index)) }), "shape link %d", index)
}

// Shaped is the state of a link's queueing disciplines.
type Shaped struct {
	// Root is the kind of the root that somebody has set, empty for the one
	// that every link has.
	Root string
	// TBF holds what a root of kind tbf does, in the kernel's units.
	TBF struct {
		Rate          uint64
		Buffer, Limit uint32
	}
	// Ingress is the kind of what looks at frames that come in: "ingress",
	// "clsact", or empty.
	Ingress string
	// Redirect is the index of the link that all incoming frames go to, or 0.
	Redirect int
}

// Does says whether the link is shaped as t says. A bucket deeper than the
// kernel can express was cut off by some programs, where AddTBF takes the
// deepest one there is; both will do.
func (s Shaped) Does(t TBF) error {
	want := t.native(0)
	micros := uint32(uint64(float64(t.Burst) * 1e6 / float64(t.Rate)))
	cut := uint32(uint64(float64(micros) * netlink.TickInUsec()))
	switch {
	case s.Root != "tbf":
		return fmt.Errorf("its root queueing discipline is %q, not tbf", s.Root)
	case s.TBF.Rate != want.Rate:
		return fmt.Errorf("its rate is %d bytes per second, not %d", s.TBF.Rate, want.Rate)
	case s.TBF.Buffer != want.Buffer && s.TBF.Buffer != cut:
		return fmt.Errorf("its burst is %d ticks, not %d", s.TBF.Buffer, want.Buffer)
	case s.TBF.Limit != want.Limit:
		return fmt.Errorf("its queue is %d bytes, not %d", s.TBF.Limit, want.Limit)
	}
	return nil
}

// Shaping returns the link's queueing disciplines.
func (h *Handle) Shaping(index int) (Shaped, error) {
	var s Shaped
	list := func(lib *netlink.Handle) ([]netlink.Qdisc, error) { return lib.QdiscList(at(index)) }
	all, err := dump(h, list)
	if err != nil {
		return s, failed(err, "list queueing disciplines of link %d", index)
	}
	for _, q := range all {
		switch a := q.Attrs(); {
		case a.Parent == netlink.HANDLE_INGRESS:
			s.Ingress = q.Type()
		case a.Parent == netlink.HANDLE_ROOT && a.Handle != 0: // 0 is the one that nobody asked for
			s.Root = q.Type()
			if t, ok := q.(*netlink.Tbf); ok {
				s.TBF.Rate, s.TBF.Buffer, s.TBF.Limit = t.Rate, t.Buffer, t.Limit
			}
		}
	}
	if s.Ingress == "ingress" {
		s.Redirect, err = h.redirect(index)
	}
	return s, err
}

// ingressHandle is ffff:0, the only one that the kernel gives to ingress.
const ingressHandle = 0xffff << 16

func (h *Handle) redirect(index int) (int, error) {
	list := func(lib *netlink.Handle) ([]netlink.Filter, error) { return lib.FilterList(at(index), ingressHandle) }
	all, err := dump(h, list)
	if err != nil {
		return 0, failed(err, "list filters of link %d", index)
	}
	for _, f := range all {
		u, ok := f.(*netlink.U32)
		if !ok {
			continue
		}
		for _, action := range u.Actions {
			if m, ok := action.(*netlink.MirredAction); ok && m.MirredAction == netlink.TCA_EGRESS_REDIR {
				return m.Ifindex, nil
			}
		}
	}
	return 0, nil
}

// Redirect sends every frame that comes in on the link to another one. It is
// ErrExists when somebody else looks at the incoming frames.
func (h *Handle) Redirect(index, to int) error {
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS,
	}}
	if err := h.call(func(lib *netlink.Handle) error { return lib.QdiscAdd(ingress) }); err != nil {
		return failed(err, "look at what comes in on link %d", index)
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: ingressHandle, Priority: 1, Protocol: unix.ETH_P_ALL},
		ClassId:     tbfHandle | 1,
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.FilterAdd(all) }), "redirect link %d to link %d", index, to)
}

// AddClsact lets programs look at what comes in on the link and what leaves it,
// as bandwidth managers made of eBPF do. It and Redirect exclude each other.
func (h *Handle) AddClsact(index int) error {
	q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: ingressHandle, Parent: netlink.HANDLE_CLSACT}}
	return failed(h.call(func(lib *netlink.Handle) error { return lib.QdiscAdd(q) }), "add clsact to link %d", index)
}

// Unshape takes away a root of kind tbf and what looks at incoming frames by
// way of kind ingress. What is not there, or of another kind, stays as it is.
func (h *Handle) Unshape(index int) error {
	s, err := h.Shaping(index)
	if err != nil {
		return err
	}
	var errs []error
	if s.Root == "tbf" {
		root := &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_ROOT}}
		errs = append(errs, failed(h.call(func(lib *netlink.Handle) error { return lib.QdiscDel(root) }), "stop shaping link %d", index))
	}
	if s.Ingress == "ingress" {
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS}}
		errs = append(errs, failed(h.call(func(lib *netlink.Handle) error { return lib.QdiscDel(ingress) }), "stop redirecting link %d", index))
	}
	return errors.Join(errs...)
}
