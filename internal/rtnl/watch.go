package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// Await returns once ready says true, which it is asked now and again whenever
// a link or an address of ns (nil: the current namespace) changed. It returns
// early with ready's error, or with ctx's cause when ctx ends first.
func Await(ctx context.Context, ns *netns.NS, ready func() (bool, error)) error {
	// Most of the time nothing needs to be waited for, and no socket opened.
	if ok, err := ready(); ok || err != nil {
		return err
	}
	events, err := subscribe(ns)
	if err != nil {
		return err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Now()) })
	defer stop()
	// What changed before the socket was open is seen by asking first.
	buf := make([]byte, 64<<10)
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		_, err := events.Read(buf)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, unix.ENOBUFS): // ENOBUFS: more events than fit, which is an event too
			return fmt.Errorf("watch links: %w", err)
		}
	}
}

// subscribe opens a socket that the kernel tells of changes in ns.
func subscribe(ns *netns.NS) (*os.File, error) {
	var fd int
	err := in(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch links: open netlink socket: %w", err)
	}
	const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch links: join netlink groups: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}
