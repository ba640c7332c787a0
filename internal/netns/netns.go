// Package netns opens network namespaces and runs code inside them.
//
// It is the only package of Braid that calls setns(2) or locks a goroutine to
// its thread: everything else works on an *NS, a namespace held open by a file
// descriptor. A descriptor cannot dangle, while a path may be unmounted or
// reused between two calls.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// dir is where iproute2 and this package keep named namespaces.
const dir = "/run/netns"

// NS is an open network namespace. The zero value is not usable; get one from
// Open, FromFile, Current or New, and Close it.
type NS struct {
	f *os.File
}

// ID identifies a namespace for as long as it lives: the device and inode of
// its nsfs file. Two paths with one ID are one namespace.
type ID struct {
	Dev, Ino uint64
}

// IsZero reports whether id identifies nothing.
func (id ID) IsZero() bool { return id == ID{} }

// Open opens the namespace that path is bound to, such as the CNI_NETNS of a
// request or a file below /run/netns. It fails when path is a plain file, the
// remains of a namespace that is no longer mounted there; errors.Is(err,
// fs.ErrNotExist) tells that apart from every other failure.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return FromFile(f)
}

// FromFile takes over f, an open namespace descriptor such as one received
// over a unix socket, and closes it when it is no network namespace.
func FromFile(f *os.File) (*NS, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", f.Name(), err), f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", f.Name(), errNotNamespace), f.Close())
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err == nil && kind != unix.CLONE_NEWNET {
		err = fmt.Errorf("namespace of type %#x", kind)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", f.Name(), err), f.Close())
	}
	return &NS{f: f}, nil
}

// errNotNamespace is a file that no namespace is mounted on. To a caller that
// asks whether the namespace still exists it is as good as no file at all.
var errNotNamespace = fmt.Errorf("nothing is mounted there: %w", fs.ErrNotExist)

// Current opens the namespace of the calling thread, which is the one that the
// process was started in unless the caller runs inside Do.
func Current() (*NS, error) {
	return Open("/proc/thread-self/ns/net")
}

// New creates a namespace with only a loopback link, which is down, and binds
// it to /run/netns/NAME, where iproute2 finds it too. It fails when the name
// is taken.
func New(name string) (*NS, error) {
	path := Path(name)
	if err := makeDir(); err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	f.Close()
	if err := bindFresh(path); err != nil {
		return nil, errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), os.Remove(path))
	}
	return Open(path)
}

// Delete unbinds the named namespace. The kernel frees it, with all links in
// it, once nothing else holds it open. Deleting what is not there succeeds. A
// name that is none is an error: without one, all namespaces would be unbound.
func Delete(name string) error {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("delete network namespace %q: that is no name", name)
	}
	path := Path(name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	// EINVAL: the file is there but nothing is mounted on it.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// Path is the file that New binds the named namespace to.
func Path(name string) string { return filepath.Join(dir, name) }

// Fd is the namespace's descriptor, for the few kernel interfaces that take
// one. It is valid until Close.
func (n *NS) Fd() int { return int(n.f.Fd()) }

// Close releases the descriptor.
func (n *NS) Close() error { return n.f.Close() }

// ID returns the identity of the namespace.
func (n *NS) ID() (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.Fd(), &st); err != nil {
		return ID{}, fmt.Errorf("identify network namespace %s: %w", n.f.Name(), err)
	}
	return ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// Do runs fn on a thread inside the namespace. Only fn's own goroutine is
// there: a goroutine that fn starts runs in the process's namespace. Sockets
// and netlink handles opened by fn stay in the namespace after Do returns.
func (n *NS) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- n.inside(fn) }()
	return <-done
}

// inside runs on a goroutine of its own, so that a thread that cannot be
// brought back is destroyed: a goroutine that ends while still locked takes
// its thread with it, and no other goroutine ever sees the wrong namespace.
func (n *NS) inside(fn func() error) error {
	runtime.LockOSThread()
	// Not os.Open, whose preparations for waiting cost a third of all this.
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.f.Name(), err)
	}
	err = fn()
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("return from network namespace %s: %w", n.f.Name(), back))
	}
	runtime.UnlockOSThread()
	return err
}

// bindFresh makes a namespace and binds it to path. The thread that made it
// must not stay in it: the namespace would outlive its deletion, for ever when
// the thread is the program's first one, which Go never ends.
func bindFresh(path string) error {
	done := make(chan error, 1)
	go func() { done <- bindInside(path) }()
	return <-done
}

// bindInside runs on a goroutine of its own, as NS.inside does.
func bindInside(path string) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("unshare: %w", err)
	}
	if err = unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		err = fmt.Errorf("bind to %s: %w", path, err)
	}
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("return from network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// makeDir prepares /run/netns as iproute2 does: a shared mount of its own, so
// that namespaces bound there are seen in every mount namespace and vanish
// from all of them when they are deleted.
func makeDir() error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point yet
		return err
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
}
