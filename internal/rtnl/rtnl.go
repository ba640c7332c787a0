// Package rtnl speaks route netlink: links, addresses, routes, neighbours and
// bridge ports of one network namespace.
//
// It is the only package of Braid that imports a netlink library for links.
// Its API has netip addresses, link indexes and small structs; its errors say
// what was tried on which link, and errors.Is tells ErrNotFound and ErrExists
// apart from everything else.
package rtnl

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// ErrNotFound is a link, address, route or VLAN that is not there.
var ErrNotFound = errors.New("not found")

// ErrExists is a name, address or route that is already taken.
var ErrExists = fs.ErrExist

// Handle is a netlink socket in one namespace. It may be used by several
// goroutines; their requests then wait for each other. Close it.
type Handle struct {
	conn *conn
	nl   *netlink.Handle // for what conn has no words for
	ns   *netns.NS
	lent bool
}

// Open opens a handle in ns, or in the namespace of the calling thread when ns
// is nil. The handle stays in that namespace and does not need ns to stay open,
// but Await and Observe on the same namespace do.
func Open(ns *netns.NS) (*Handle, error) {
	h := &Handle{ns: ns}
	err := in(ns, func() (err error) {
		if h.conn, err = dial(); err != nil {
			return err
		}
		if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			h.conn.close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return h, nil
}

// Close releases the socket, unless it is lent.
func (h *Handle) Close() {
	if !h.lent {
		h.conn.close()
		h.nl.Close()
	}
}

// Lend returns the same handle for somebody who closes what he has used. It is
// good until h is closed.
func (h *Handle) Lend() *Handle { return &Handle{conn: h.conn, nl: h.nl, ns: h.ns, lent: true} }

// in runs fn inside ns, or right here when ns is nil.
func in(ns *netns.NS, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}

// dump runs a netlink dump, and once more when the kernel says that the world
// changed under the first one, so that its answer may have holes. A second
// interruption means a world that changes faster than it can be read: what the
// second dump saw is then as good an answer as any, because every caller acts
// only on entries it has seen and can be called again.
func dump[T any](list func() (T, error)) (T, error) {
	got, err := list()
	if !interrupted(err) {
		return got, err
	}
	got, err = list()
	if interrupted(err) {
		err = nil
	}
	return got, err
}

func interrupted(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
}

// classify gives the kernel's many ways to say "not there" one name.
func classify(err error) error {
	var none netlink.LinkNotFoundError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &none):
		return ErrNotFound
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w (%w)", ErrNotFound, err)
	}
	return err
}

// failed wraps the error of one request. It returns nil for nil.
func failed(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, classify(err))...)
}
