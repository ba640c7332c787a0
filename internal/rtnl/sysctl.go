package rtnl

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// Sysctl reads and writes the kernel's network settings. The zero value uses
// /proc/sys/net; a container, where that is read-only, sets Root to the place
// that the host's /proc/sys/net is mounted on. What is read and written belongs
// to the namespace given in each call, whichever mount it goes through.
type Sysctl struct {
	Root string
}

// Setting is one value below Sysctl.Root, such as
// {"ipv4/conf/eth0.1/arp_notify", "1"}. Slashes separate, so that names of
// links may contain dots.
type Setting struct {
	Path, Value string
}

// Get reads one setting in ns (nil: the current namespace). A setting that this
// kernel does not have is fs.ErrNotExist.
func (s Sysctl) Get(ns *netns.NS, path string) (string, error) {
	var value string
	err := in(ns, func() (err error) {
		value, err = s.read(path)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", path, err)
	}
	return value, nil
}

// Set writes settings in ns (nil: the current namespace), in order, up to the
// first that cannot be written. One that has its value already is not written,
// so that a read-only mount is no hindrance where there is nothing to do. A
// setting that this kernel does not have is fs.ErrNotExist.
func (s Sysctl) Set(ns *netns.NS, settings ...Setting) error {
	return in(ns, func() error {
		for _, set := range settings {
			if err := s.write(set); err != nil {
				return fmt.Errorf("sysctl %s = %s: %w", set.Path, set.Value, err)
			}
		}
		return nil
	})
}

func (s Sysctl) write(set Setting) error {
	path, err := s.file(set.Path)
	if err != nil {
		return err
	}
	// Not os.WriteFile: it would create a plain file in a Root that is no proc.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return s.writeOnly(path, set)
	}
	defer unix.Close(fd)
	if have, err := readSetting(fd); err == nil && have == set.Value {
		return nil
	}
	_, err = unix.Pwrite(fd, []byte(set.Value), 0)
	return err
}

// writeOnly is for a setting that cannot be both read and written, because it
// is one of those that do something (route/flush), or the mount is read-only.
func (s Sysctl) writeOnly(path string, set Setting) error {
	if have, err := s.read(set.Path); err == nil && have == set.Value {
		return nil
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(set.Value))
	return err
}

func (s Sysctl) read(path string) (string, error) {
	file, err := s.file(path)
	if err != nil {
		return "", err
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readSetting(fd)
}

// readSetting does without os.ReadFile, whose preparations for waiting and for
// files of any length cost more than the setting, of which every interface has
// some. The kernel takes what is read in one call, and nothing behind it.
func readSetting(fd int) (string, error) {
	buf := make([]byte, 512)
	n, err := unix.Read(fd, buf)
	if err == nil && n == len(buf) { // a list, such as reserved ports
		buf = make([]byte, 1<<20)
		n, err = unix.Pread(fd, buf, 0)
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

func (s Sysctl) file(path string) (string, error) {
	// A link name in the path is somebody's input.
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("path %q leaves the tree", path)
	}
	root := s.Root
	if root == "" {
		root = "/proc/sys/net"
	}
	return filepath.Join(root, path), nil
}
