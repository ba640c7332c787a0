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
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// ErrNotFound is a link, address, route or VLAN that is not there.
var ErrNotFound = errors.New("not found")

// ErrExists is a name, address or route that is already taken.
var ErrExists = fs.ErrExist

// Handle is a place to ask from, in one namespace. It may be used by several
// goroutines; their requests then wait for each other. Close it.
type Handle struct {
	*sockets
	ns   *netns.NS
	lent bool
}

// sockets are those of a Handle and of all that it is lent to.
type sockets struct {
	conn *conn
	mu   sync.Mutex
	lib  *netlink.Handle // nil until library is asked for it
}

// Open opens a handle in ns, or in the namespace of the calling thread when ns
// is nil. The handle stays in that namespace and does not need ns to stay open,
// but Await and Observe on the same namespace do.
func Open(ns *netns.NS) (*Handle, error) {
	h := &Handle{sockets: &sockets{}, ns: ns}
	err := in(ns, func() (err error) {
		h.conn, err = dial()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return h, nil
}

// Close releases the sockets, unless they are lent.
func (h *Handle) Close() {
	if h.lent {
		return
	}
	h.conn.close()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lib != nil {
		h.lib.Close()
	}
}

// Lend returns the same handle for somebody who closes what he has used. It is
// good until h is closed.
func (h *Handle) Lend() *Handle { return &Handle{sockets: h.sockets, ns: h.ns, lent: true} }

// library is for what conn has no words for. Most attachments do without it.
func (s *sockets) library() (*netlink.Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lib != nil {
		return s.lib, nil
	}
	ns, err := s.conn.namespace()
	if err == nil {
		err = ns.Do(func() (err error) {
			s.lib, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
		err = errors.Join(err, ns.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return s.lib, nil
}

// call has the library do something.
func (s *sockets) call(do func(lib *netlink.Handle) error) error {
	lib, err := s.library()
	if err != nil {
		return err
	}
	return do(lib)
}

// ask has the library find out something.
func ask[T any](h *Handle, what func(lib *netlink.Handle) (T, error)) (answer T, err error) {
	err = h.call(func(lib *netlink.Handle) (err error) {
		answer, err = what(lib)
		return err
	})
	return answer, err
}

// in runs fn inside ns, or right here when ns is nil.
func in(ns *netns.NS, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}

// dump has the library list something.
func dump[T any](h *Handle, list func(lib *netlink.Handle) (T, error)) (T, error) {
	return whole(func() (T, error) { return ask(h, list) })
}

// whole runs a netlink dump, and once more when the kernel says that the world
// changed under the first one, so that its answer may have holes. A second
// interruption means a world that changes faster than it can be read: what the
// second dump saw is then as good an answer as any, because every caller acts
// only on entries it has seen and can be called again.
func whole[T any](list func() (T, error)) (T, error) {
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
