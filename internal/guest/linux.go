package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// linuxPackage depends on the newest of Debian's kernels for virtual machines.
const linuxPackage = "linux-image-cloud-amd64"

// linux is one of Debian's kernels, unpacked.
type linux struct {
	release string // as uname -r has it
	image   string // path of the kernel
	modules string // directory with one directory of modules per release
}

// linuxIn is the kernel in a directory that a package of it was unpacked into.
func linuxIn(dir string) (linux, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return linux{}, err
	}
	if len(images) != 1 {
		return linux{}, fmt.Errorf("%d kernels in %s, want one", len(images), dir)
	}
	_, release, _ := strings.Cut(filepath.Base(images[0]), "-")
	return linux{release: release, image: images[0], modules: filepath.Join(dir, "lib/modules")}, nil
}

// fetchLinux downloads the kernel for guests under QEMU from Debian's mirror
// into the cache, or finds it there, and returns it. It takes 27 MB to
// download and 110 MB to keep; nothing is installed.
func fetchLinux(ctx context.Context) (linux, error) {
	cache, err := cacheDir()
	if err != nil {
		return linux{}, fmt.Errorf("fetch a kernel: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, ".linux.lock"))
	if err != nil {
		return linux{}, fmt.Errorf("fetch a kernel: %w", err)
	}
	defer unlock()
	dir := filepath.Join(cache, "linux")
	if _, err := os.Stat(dir); err == nil {
		return linuxIn(dir)
	}
	fresh := dir + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return linux{}, fmt.Errorf("fetch a kernel: %w", err)
	}
	if err := unpackLinux(ctx, fresh); err != nil {
		return linux{}, fmt.Errorf("fetch a kernel (%s): %w", linuxPackage, err)
	}
	if err := os.Rename(fresh, dir); err != nil {
		return linux{}, fmt.Errorf("fetch a kernel: %w", err)
	}
	return linuxIn(dir)
}

// unpackLinux downloads the newest kernel and unpacks it in dir.
func unpackLinux(ctx context.Context, dir string) error {
	out, err := output(ctx, dir, "apt-cache", "depends", "--important", linuxPackage)
	if err != nil {
		return err
	}
	name, err := dependency(out)
	if err != nil {
		return err
	}
	if _, err := output(ctx, dir, "apt-get", "download", "-o", "APT::Sandbox::User=root", name); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(archives) != 1 {
		return errors.Join(err, fmt.Errorf("apt-get download %s: %d packages", name, len(archives)))
	}
	if _, err := output(ctx, dir, "dpkg-deb", "-x", archives[0], dir); err != nil {
		return err
	}
	k, err := linuxIn(dir)
	if err != nil {
		return err
	}
	if _, err := output(ctx, dir, "depmod", "-b", dir, k.release); err != nil {
		return err
	}
	return os.Remove(archives[0])
}

// dependency is the kernel that apt-cache says linuxPackage depends on.
func dependency(depends string) (string, error) {
	for line := range strings.Lines(depends) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return "", fmt.Errorf("apt-cache knows no kernel (apt-get update): %q", depends)
}

// output runs a program in dir.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}
