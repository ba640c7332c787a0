package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// A disk mounts, on a directory, what keeps what the guest writes.
type disk func(at string) error

// openDisk gets at the disk before anything is mounted over it; without one it
// is memory. A block device's modules are loaded by load.
func openDisk(d *control.Disk, load func(module string) error) (disk, error) {
	switch {
	case d == nil:
		return func(at string) error { return os.MkdirAll(at, 0o755) }, nil
	case d.Dir != "":
		trees, err := takeTrees([]control.Share{{Host: d.Dir}})
		if err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
		return func(at string) error { return tree{trees[0].fd, at}.attach() }, nil
	}
	for _, m := range d.Modules {
		if err := load(m); err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
	}
	return func(at string) error { return mountDevice(d.Device, at) }, nil
}

// mountDevice mounts a block device, by its name in devtmpfs.
func mountDevice(device, at string) error {
	devices := at + ".dev"
	if err := mount("devtmpfs", devices, "devtmpfs", unix.MS_NOSUID, ""); err != nil {
		return err
	}
	return errors.Join(
		mount(filepath.Join(devices, device), at, control.DiskType, unix.MS_NOATIME, ""),
		unix.Unmount(devices, unix.MNT_DETACH))
}

// ownDirs are directories that are none of the host's: in memory, or on the disk.
type ownDirs struct {
	dirs  []string
	trees []tree
}

// takeOwn holds the directories' places on a disk that is mounted at store. In
// memory each is a file system of its own, as some programs want it.
func takeOwn(store string, dirs []string) (ownDirs, error) {
	own := ownDirs{dirs: dirs}
	if isMountPoint, err := onDisk(store); err != nil || !isMountPoint {
		return own, err
	}
	var shares []control.Share
	for _, dir := range dirs {
		place := filepath.Join(store, "own", dir)
		if err := os.MkdirAll(place, 0o755); err != nil {
			return own, err
		}
		shares = append(shares, control.Share{Host: place, Guest: dir})
	}
	var err error
	own.trees, err = takeTrees(shares)
	return own, err
}

// onDisk reports whether something is mounted at path.
func onDisk(path string) (bool, error) {
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(path, &here), unix.Stat(filepath.Dir(path), &above)); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

func (o ownDirs) attach() error {
	if o.trees == nil {
		for _, dir := range o.dirs {
			if err := mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
				return err
			}
		}
		return nil
	}
	for _, t := range o.trees {
		if err := t.attach(); err != nil {
			return err
		}
	}
	return nil
}
