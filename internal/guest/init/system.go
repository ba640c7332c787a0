package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// alwaysTmpfs are the directories that are fresh in every guest. /tmp is not
// among them: programs that the host has just built lie there.
var alwaysTmpfs = []string{
	"/etc/cni", "/opt/cni",
	"/var/lib/braid", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet",
	"/var/log/containers", "/var/log/pods",
}

// alwaysModules are needed by init itself or by everything that runs here.
var alwaysModules = []string{"ipv6", "tun"}

// boot turns the bare kernel with the host's tree as its root into a system.
func boot(b control.Boot) error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	mods, err := openModules(filepath.Join(b.ModuleDir, release))
	if err != nil {
		return err
	}
	if err := mods.load("overlay"); err != nil {
		return err
	}
	var shares []tree
	if !b.Hostfs {
		if shares, err = takeTrees(b.Shares); err != nil {
			return err
		}
	}
	disk, err := openDisk(b.Disk, mods.load)
	if err != nil {
		return err
	}
	own, err := enterOverlay(disk, slices.Concat(alwaysTmpfs, b.Tmpfs))
	if err != nil {
		return err
	}
	if err := mountSystem(); err != nil {
		return err
	}
	if err := own.attach(); err != nil {
		return err
	}
	for _, t := range shares {
		if err := t.attach(); err != nil {
			return err
		}
	}
	if b.Hostfs {
		for _, s := range b.Shares {
			if err := mount("none", s.Guest, "hostfs", 0, s.Host); err != nil {
				return err
			}
		}
	}
	for _, m := range slices.Concat(alwaysModules, b.Modules) {
		if err := mods.load(m); err != nil {
			return err
		}
	}
	if err := startProcessors(b.Processors); err != nil {
		return err
	}
	if err := writeIdentity(b, release); err != nil {
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

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// enterOverlay makes the root of every process, the kernel's own included, an
// overlay of the host's tree and the disk, and lets go of the host's tree. It
// returns the directories that shall be the guest's own.
func enterOverlay(disk disk, dirs []string) (ownDirs, error) {
	const base = "/run" // exists on every host; the tmpfs disappears below the new root
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return ownDirs{}, fmt.Errorf("make / private: %w", err)
	}
	if err := mount("tmpfs", base, "tmpfs", 0, "mode=755"); err != nil {
		return ownDirs{}, err
	}
	store := filepath.Join(base, "disk")
	if err := disk(store); err != nil {
		return ownDirs{}, fmt.Errorf("disk: %w", err)
	}
	own, err := takeOwn(store, dirs)
	if err != nil {
		return ownDirs{}, fmt.Errorf("disk: %w", err)
	}
	return own, overlayRoot(filepath.Join(base, "root"), store)
}

// overlayRoot makes an overlay at root the root of all, with what is written in
// the directory store.
func overlayRoot(root, store string) error {
	upper, work := filepath.Join(store, "upper"), filepath.Join(store, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root is stacked on the new one, and taken away from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's tree: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	return nil
}

// mountSystem mounts what every Linux system has.
func mountSystem() error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,ptmxmode=666,gid=5"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=700"},
	} {
		if err := mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := os.Mkdir("/run/lock", 0o1777); err != nil {
		return err
	}
	return enableControllers("/sys/fs/cgroup")
}

// enableControllers offers every controller of the kernel to the groups below dir.
func enableControllers(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(have)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable cgroup controller %s: %w", c, err)
		}
	}
	return nil
}

// mount makes the mount point when it is missing.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// startProcessors has the kernel use n processors.
func startProcessors(n int) error {
	for i := 1; i < n; i++ {
		online := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", i)
		if err := os.WriteFile(online, []byte("1"), 0); err != nil {
			return fmt.Errorf("start processor %d: %w", i, err)
		}
	}
	return nil
}

// writeIdentity makes the files say which machine this is. /lib/modules gets
// the name under which the kernel and modprobe look for modules.
func writeIdentity(b control.Boot, release string) error {
	if err := writeNames(b); err != nil {
		return err
	}
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return err
	}
	err := os.Symlink(filepath.Join(b.ModuleDir, release), filepath.Join("/lib/modules", release))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return replaceCPUInfo(b.CPUMHz)
}

// writeNames sets the host name and writes the files that contain it.
func writeNames(b control.Boot) error {
	if err := unix.Sethostname([]byte(b.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	id := sha256.Sum256([]byte("braid guest " + b.Hostname))
	for path, content := range map[string]string{
		"/etc/hostname":   b.Hostname + "\n",
		"/etc/machine-id": fmt.Sprintf("%x\n", id[:16]),
		"/etc/hosts":      hostsFile(b),
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostsFile is the content of /etc/hosts.
func hostsFile(b control.Boot) string {
	var s strings.Builder
	s.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	own := "127.0.1.1"
	for _, l := range b.Links {
		if l.Addr.IsValid() {
			own = l.Addr.Addr().String()
			break
		}
	}
	if _, given := b.Hosts[b.Hostname]; !given {
		fmt.Fprintf(&s, "%s %s\n", own, b.Hostname)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Hosts)) {
		fmt.Fprintf(&s, "%s %s\n", b.Hosts[name], name)
	}
	return s.String()
}

// replaceCPUInfo hides /proc/cpuinfo behind a copy that states a clock rate:
// the kubelet refuses a machine without one, and user-mode-linux has none.
func replaceCPUInfo(mhz string) error {
	const path, copied = "/proc/cpuinfo", "/run/braid-guest/cpuinfo"
	info, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(copied), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(copied, withClock(info, mhz), 0o444); err != nil {
		return err
	}
	if err := unix.Mount(copied, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

// withClock adds a line "cpu MHz" to every processor of info that has none.
func withClock(info []byte, mhz string) []byte {
	blocks := bytes.Split(bytes.TrimRight(info, "\n"), []byte("\n\n"))
	for i, b := range blocks {
		if !bytes.Contains(b, []byte("cpu MHz")) && bytes.Contains(b, []byte("processor")) {
			blocks[i] = append(bytes.Clone(bytes.TrimRight(b, "\n")), []byte("\ncpu MHz\t\t: "+mhz)...)
		}
	}
	return append(bytes.Join(blocks, []byte("\n\n")), '\n', '\n')
}

// setSysctls writes keys such as net.ipv4.ip_forward. A dot separates the
// parts of a key; a slash within a part stands for a dot, as in sysctl(8).
func setSysctls(keys map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if err := os.WriteFile(sysctlPath(k), []byte(keys[k]), 0); err != nil {
			return fmt.Errorf("set %s to %s: %w", k, keys[k], err)
		}
	}
	return nil
}

func sysctlPath(key string) string {
	swap := strings.NewReplacer(".", "/", "/", ".")
	return "/proc/sys/" + swap.Replace(key)
}

// seedRandom credits seed to the kernel's random pool.
func seedRandom(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("seed random numbers: %w", err)
	}
	defer f.Close()
	var info struct { // struct rand_pool_info of random(4)
		bits, size int32
		data       [64]byte
	}
	n := copy(info.data[:], seed)
	info.bits, info.size = int32(n*8), int32(n)
	const rndAddEntropy = 0x40085203
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return fmt.Errorf("seed random numbers: %w", errno)
	}
	return nil
}
