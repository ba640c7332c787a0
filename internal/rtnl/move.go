package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// MoveAs moves the link into ns and gives it that name there, in one request:
// whoever is killed meanwhile, the link is here under its old name or there
// under the new one. It arrives down and without addresses. ErrExists means
// that the name is taken in ns; the link is then in either namespace.
func (h *Handle) MoveAs(index int, ns *netns.NS, name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("move link %d: name %s is longer than %d bytes", index, name, MaxName)
	}
	err := h.set(index,
		nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Fd()))),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return failed(err, "move link %d to another namespace as %s", index, name)
}
