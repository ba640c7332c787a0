// Command init is process 1 of a guest (internal/guest), on both sides.
//
// On the host, `init supervise PROGRAM ARG…` is process 1 of the guest's pid
// namespace: it starts user-mode-linux, waits for it and ends, and the kernel
// ends everything else in the namespace with it. `init emulate` does so with
// QEMU and the server of its root file system. Inside the guest, init makes
// the system usable, then serves the agent or runs one command.
//
// `init host BOOTFILE` is process 1 of a guest that has namespaces of its own
// and no kernel of its own.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "supervise" {
		os.Exit(supervise(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "emulate" {
		os.Exit(emulate(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == "host" {
		os.Exit(hostGuest(os.Args[2]))
	}
	if os.Getpid() != 1 || os.Getenv(control.BootEnv) == "" {
		fmt.Fprintln(os.Stderr, "braid-guest-init runs as process 1 of a guest; see internal/guest")
		os.Exit(2)
	}
	// The kernel panics when process 1 ends: power off on every path, and say
	// why on the status terminal.
	defer powerOff()
	if err := run(os.Getenv(control.BootEnv)); err != nil {
		fmt.Println("braid-guest-init:", err)
		if err := report(control.StatusFail, err.Error()); err != nil {
			fmt.Println("braid-guest-init:", err)
		}
	}
}

// run is the life of a guest.
func run(bootFile string) error {
	if err := leaveInitrd(); err != nil {
		return fmt.Errorf("initial file tree: %w", err)
	}
	b, err := readBoot(bootFile)
	if err != nil {
		return err
	}
	if err := seedRandom(b.Seed); err != nil {
		return err
	}
	if err := boot(b); err != nil {
		return err
	}
	if err := os.Setenv("PATH", guestPath); err != nil { // for lookPath
		return err
	}
	procs := newReaper()
	go procs.reap()
	if b.Once != nil {
		code, err := once(procs, *b.Once)
		if err != nil {
			return err
		}
		unix.Sync()
		return report(control.StatusExit, fmt.Sprint(code))
	}
	return serve(b.Token, procs, func() error { return report(control.StatusReady, "") })
}

func readBoot(path string) (control.Boot, error) {
	var b control.Boot
	data, err := os.ReadFile(path)
	if err != nil {
		return b, fmt.Errorf("boot file: %w", err)
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return b, fmt.Errorf("boot file %s: %w", path, err)
	}
	return b, nil
}

// report writes one status line and waits until the host has it.
func report(status, arg string) error {
	tty, err := openTTY(control.TTYStatus, unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("report %s: %w", status, err)
	}
	defer tty.Close()
	if _, err := fmt.Fprintf(tty, "%s %q\n", status, arg); err != nil {
		return fmt.Errorf("report %s: %w", status, err)
	}
	return drain(tty)
}

// openTTY opens a terminal of the guest such that bytes pass unchanged.
func openTTY(number, mode int) (*os.File, error) {
	path := fmt.Sprint(cmp.Or(os.Getenv(control.TTYEnv), control.DefaultTTY), number)
	fd, err := unix.Open(path, mode|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	tty := os.NewFile(uintptr(fd), path)
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		err = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make %s transparent: %w", path, err), tty.Close())
	}
	return tty, nil
}

// drain waits until everything written to tty has left the guest.
func drain(tty *os.File) error {
	const drainOnly = 1 // TCSBRK with an argument other than 0 is tcdrain(3)
	if err := unix.IoctlSetInt(int(tty.Fd()), unix.TCSBRK, drainOnly); err != nil {
		return fmt.Errorf("drain %s: %w", tty.Name(), err)
	}
	return nil
}

func powerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("braid-guest-init: power off:", err)
	}
}
