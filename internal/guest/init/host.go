package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// statusFD is where a guest on the host's kernel writes its status line.
const statusFD = control.FirstFD

// hostGuest is process 1 of a guest on the host's kernel: it was started in
// namespaces of its own, and makes a machine of them.
func hostGuest(bootFile string) int {
	// As in supervise: go on only when the starter has recorded this process.
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return 2
	}
	for fd := control.FirstFD; fd <= control.InputFD; fd++ {
		unix.CloseOnExec(fd)
	}
	if err := runOnHost(bootFile); err != nil {
		fmt.Println("braid-guest-init:", err)
		if err := reportOn(os.NewFile(statusFD, "status"), control.StatusFail, err.Error()); err != nil {
			fmt.Println("braid-guest-init:", err)
		}
		return 1
	}
	return 0
}

func runOnHost(bootFile string) error {
	b, err := readBoot(bootFile)
	if err != nil {
		return err
	}
	if err := bootOnHost(b); err != nil {
		return err
	}
	if err := os.Setenv("PATH", guestPath); err != nil { // for lookPath
		return err
	}
	procs := newReaper()
	go procs.reap()
	return serve(b.Token, procs, func() error { return reportOn(os.NewFile(statusFD, "status"), control.StatusReady, "") })
}

// reportOn writes one status line to f and closes it.
func reportOn(f *os.File, status, arg string) error {
	_, err := fmt.Fprintf(f, "%s %q\n", status, arg)
	return errors.Join(err, f.Close())
}

// bootOnHost does what boot does, where the kernel is shared: no modules, no
// random numbers, and the cgroups and devices of the host.
func bootOnHost(b control.Boot) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	trees, err := takeTrees(slices.Concat(hostTrees, b.Shares))
	if err != nil {
		return err
	}
	disk, err := openDisk(b.Disk, nil)
	if err != nil {
		return err
	}
	own, err := enterOverlay(disk, slices.Concat(alwaysTmpfs, b.Tmpfs))
	if err != nil {
		return err
	}
	if err := mountOnHost(trees); err != nil {
		return err
	}
	if err := own.attach(); err != nil {
		return err
	}
	for _, t := range trees[len(hostTrees):] {
		if err := t.attach(); err != nil {
			return err
		}
	}
	if err := keepTunables(); err != nil {
		return err
	}
	if err := writeNames(b); err != nil {
		return err
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	for _, l := range b.Links {
		if err := setUpLink(l); err != nil {
			return fmt.Errorf("link %s: %w", l.Name, err)
		}
	}
	return setSysctls(b.Sysctls)
}

// tree is a part of the host's file tree, taken along into the guest's own.
type tree struct {
	fd int
	at string
}

// hostTrees are the host's devices and cgroups.
var hostTrees = []control.Share{{Host: "/dev", Guest: "/dev"}, {Host: "/sys/fs/cgroup", Guest: "/sys/fs/cgroup"}}

// takeTrees holds the shares' directories of the host.
func takeTrees(shares []control.Share) ([]tree, error) {
	var trees []tree
	for _, s := range shares {
		fd, err := unix.OpenTree(unix.AT_FDCWD, s.Host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, fmt.Errorf("take %s along: %w", s.Host, err)
		}
		trees = append(trees, tree{fd, s.Guest})
	}
	return trees, nil
}

func (t tree) attach() error {
	if err := os.MkdirAll(t.at, 0o755); err != nil {
		return fmt.Errorf("attach %s: %w", t.at, err)
	}
	err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.at, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err := errors.Join(err, unix.Close(t.fd)); err != nil {
		return fmt.Errorf("attach %s: %w", t.at, err)
	}
	return nil
}

// mountOnHost mounts what belongs to the guest's namespaces: /proc to its
// processes, /sys to its links, and eBPF objects to itself.
func mountOnHost(trees []tree) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	devices, cgroups := trees[0], trees[1]
	if err := devices.attach(); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", flags, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return err
	}
	if err := cgroups.attach(); err != nil {
		return err
	}
	if err := mount("bpf", "/sys/fs/bpf", "bpf", flags, "mode=700"); err != nil {
		return err
	}
	if err := mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	return os.Mkdir("/run/lock", 0o1777)
}

// tunables are what a kubelet sets of the kernel, with the values it sets.
var tunables = []struct{ key, value string }{
	{"vm.overcommit_memory", "1"}, {"vm.panic_on_oom", "0"},
	{"kernel.panic", "10"}, {"kernel.panic_on_oops", "1"},
	{"kernel.keys.root_maxkeys", "1000000"}, {"kernel.keys.root_maxbytes", "25000000"},
}

// keepTunables hides the tunables of the host's kernel behind files: a node of
// a lab believes that it has set them, and the machine stays as it is.
func keepTunables() error {
	for _, t := range tunables {
		path, file := sysctlPath(t.key), filepath.Join("/run/braid-guest/sysctl", t.key)
		if _, err := os.Stat(path); err != nil {
			continue // this kernel has no such thing
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(t.value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	return nil
}
