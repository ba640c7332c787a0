package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// nsfsMagic is the type of the file system that namespaces live in, see
// statfs(2). A path below /run/netns that nothing is mounted on is of another.
const nsfsMagic = 0x6e736673

// errNoNetNS means that the container's namespace no longer exists.
var errNoNetNS = errors.New("no network namespace")

// netNS opens the container's namespace. The one that the runtime itself is in
// counts as none: it is what /proc/PID/ns/net shows once the container's
// process is gone and its number was given to another, and nothing that Braid
// does to a container may happen to the node. shared says that the caller means
// it (CNI_NETNS_OVERRIDE).
func netNS(path string, shared bool) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%w: %w", errNoNetNS, err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkNetNS(f, shared); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkNetNS(f *os.File, shared bool) error {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	if int64(st.Type) != nsfsMagic {
		return fmt.Errorf("%w: no namespace is mounted on %s", errNoNetNS, f.Name())
	}
	if shared {
		return nil
	}
	container, err := f.Stat()
	if err != nil {
		return err
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	if os.SameFile(container, own) {
		return fmt.Errorf("%w: %s is the namespace of the container runtime", errNoNetNS, f.Name())
	}
	return nil
}
