package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"braid.dev/braid/internal/guest"
)

// Packages are the Debian packages that a lab needs on the machine, beside Go.
var Packages = []string{
	"user-mode-linux", "kmod", "iproute2", "iptables", "conntrack", "runc", "busybox-static",
}

// hostPrograms are the programs of Packages by which their absence is noticed.
var hostPrograms = map[string]string{
	"linux.uml":            "user-mode-linux",
	"modprobe":             "kmod",
	"ip":                   "iproute2",
	"xtables-legacy-multi": "iptables",
	"conntrack":            "conntrack",
	"runc":                 "runc",
	busyboxPath:            "busybox-static",
}

// qemuPackages are those that only nodes under QEMU need; the kernel comes from
// package guest.
var qemuPackages = []string{"qemu-system-x86"}

var qemuHostPrograms = map[string]string{"qemu-system-x86_64": "qemu-system-x86"}

var errNotRoot = errors.New("a lab makes network namespaces, cgroups and mounts: run this as root")

// checkHost says what the machine lacks, all of it at once.
func checkHost(cfg Config) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	missing := cfg.missingPackages(func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	})
	if len(missing) > 0 {
		return fmt.Errorf("packages are missing: apt-get install -y --no-install-recommends %s", strings.Join(missing, " "))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("links to guests are taps: %w", err)
	}
	root, err := cgroupRoot("/sys/fs/cgroup")
	if err == nil && cfg.NodeKernel == guest.Host && filepath.Base(root) != "unified" {
		return errors.New("nodes on the machine's own kernel need a machine with cgroup v1 hierarchies beside v2: leave --node-kernel out")
	}
	return err
}

func (c Config) missingPackages(installed func(program string) bool) []string {
	absent := map[string]bool{}
	programs, packages := maps.Clone(hostPrograms), slices.Clone(Packages)
	if c.cilium() {
		maps.Copy(programs, ciliumHostPrograms)
		packages = append(packages, ciliumPackages...)
	}
	if c.NodeKernel == guest.QEMU {
		maps.Copy(programs, qemuHostPrograms)
		packages = append(packages, qemuPackages...)
	}
	for program, pkg := range programs {
		if !installed(program) {
			absent[pkg] = true
		}
	}
	var missing []string
	for _, pkg := range packages {
		if absent[pkg] {
			missing = append(missing, pkg)
		}
	}
	return missing
}
