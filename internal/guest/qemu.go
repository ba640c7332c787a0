package guest

import (
	"fmt"
	"path/filepath"
	"strings"

	"braid.dev/braid/internal/guest/control"
)

const (
	// virtiofsdPath is where Debian's qemu-system-common has the server of
	// virtiofs, which QEMU itself has no part in.
	virtiofsdPath = "/usr/lib/qemu/virtiofsd"
	// shareSocket is where both meet, relative to the guest's directory: the
	// path of a unix socket is limited to 107 bytes.
	shareSocket = "./virtiofs.sock"
	initrdName  = "initrd"
)

// virtiofsdArgs is the server of the host's tree. It is given the listening
// socket, so that QEMU cannot come too early.
func virtiofsdArgs() []string {
	return []string{
		virtiofsdPath, fmt.Sprintf("--fd=%d", control.FirstFD),
		"-o", "source=/,cache=always,sandbox=chroot", "--rlimit-nofile=0",
	}
}

// qemuArgs is the command line of QEMU. Its emulated processor is all that
// works on every machine: KVM is not asked for.
func qemuArgs(c Config, bootFile string) []string {
	args := []string{
		c.Program, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", fmt.Sprint(c.Processors),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// virtiofsd reads and writes the guest's memory.
		"-m", fmt.Sprintf("%dM", c.MemoryMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=memory,size=%dM,mem-path=%s,share=on", c.MemoryMiB, memoryDir),
		"-numa", "node,memdev=memory",
		"-chardev", "socket,id=root,path=" + shareSocket,
		"-device", "vhost-user-fs-pci,chardev=root,tag=" + control.RootTag,
		"-chardev", "stdio,id=tty0,signal=off", "-serial", "chardev:tty0",
		"-kernel", c.linux.image, "-initrd", filepath.Join(c.Dir, initrdName),
		"-append", strings.Join(append(clockArgs(c.tscKHz),
			"console=ttyS0", "quiet", "panic=-1", "mitigations=off", "random.trust_cpu=1",
			"maxcpus=1", // at first: Config.Processors
			control.BootEnv+"="+bootFile, control.TTYEnv+"=/dev/ttyS",
		), " "),
	}
	for tty := control.TTYStatus; tty <= control.TTYStderr; tty++ {
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", control.FirstFD+tty-control.TTYStatus, tty),
			// Appending keeps QEMU from truncating a pipe, which fails.
			"-chardev", fmt.Sprintf("file,id=tty%d,path=/dev/fdset/%[1]d,append=on", tty),
			"-serial", fmt.Sprintf("chardev:tty%d", tty))
	}
	if c.Disk != "" {
		args = append(args, "-drive", "file="+diskImage(c.Disk)+",format=raw,if=virtio,cache=unsafe")
	}
	for i, n := range c.NICs {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, n.Tap),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", i, n.MAC))
	}
	return args
}

// clockArgs make the kernel tell the time by the time stamp counter, whose rate
// is tscKHz.
func clockArgs(tscKHz int) []string {
	// Otherwise a moment's delay of QEMU is taken for a counter that is not to be
	// trusted, and an emulated device is asked for the time.
	args := []string{"tsc=reliable", "clocksource=tsc"}
	if tscKHz != 0 {
		// It would compare the counter with an emulated timer of the PC's, the PIT,
		// and believe that one even where the HPET contradicts. On a busy machine
		// the PIT can be wrong by a factor of 20, and so is the clock from then on.
		args = append(args, fmt.Sprintf("tsc_early_khz=%d", tscKHz))
	}
	return args
}

// qemuBoot is what init is told under QEMU.
func qemuBoot(c Config, b control.Boot) control.Boot {
	b.ModuleDir, b.Hostfs, b.Processors = c.linux.modules, false, c.Processors
	b.Modules = append([]string{"virtio_net"}, b.Modules...)
	if b.Disk != nil {
		b.Disk = &control.Disk{Device: "vda", Modules: []string{"virtio_blk", control.DiskType}}
	}
	for i := range b.Links {
		b.Links[i].Device = fmt.Sprintf("eth%d", i)
	}
	return b
}
