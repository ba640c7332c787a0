package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NewUnnamed creates a namespace with only a loopback link, which is down. It is
// bound nowhere: the kernel frees it, with all links in it, once it is closed.
// So it needs no file system that can be written to, and nobody has to clean up.
func NewUnnamed() (*NS, error) {
	type made struct {
		ns  *NS
		err error
	}
	done := make(chan made, 1)
	go func() {
		ns, err := unshareInside()
		done <- made{ns, err}
	}()
	m := <-done
	if m.err != nil {
		return nil, fmt.Errorf("create network namespace: %w", m.err)
	}
	return m.ns, nil
}

// unshareInside runs on a goroutine of its own, as NS.inside does.
func unshareInside() (*NS, error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("unshare: %w", err)
	}
	ns, err := Current()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		err = errors.Join(err, fmt.Errorf("return from network namespace: %w", back))
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
		return nil, err
	}
	runtime.UnlockOSThread()
	return ns, err
}
