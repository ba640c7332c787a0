package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// leaveInitrd makes the host's tree the root when the kernel has started this
// program from an initial file tree, as it does under QEMU. Under
// user-mode-linux there is none.
func leaveInitrd() error {
	files, err := os.ReadDir(control.InitrdModules) // in the order of their names
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for _, f := range files {
		if err := loadFile(filepath.Join(control.InitrdModules, f.Name())); err != nil {
			return fmt.Errorf("load module %s: %w", f.Name(), err)
		}
	}
	if err := mount(control.RootTag, "/root", "virtiofs", 0, ""); err != nil {
		return err
	}
	// The devices go along, for status lines until the guest has its own.
	if err := unix.Mount("/dev", "/root/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the host's tree to /: %w", err)
	}
	// The threads of the kernel share this process's root, so that it finds
	// modprobe there as well.
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}
