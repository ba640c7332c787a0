package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// supervise runs the guest's kernel and returns its exit code. It starts only
// after the starter has written a line to stdin: by then the starter has
// recorded what has to be killed, so no crash of it can leave an unknown guest.
func supervise(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "supervise: no program")
		return 2
	}
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return 2 // the starter is gone
	}
	return runKernel(args)
}

// emulate runs a server of the guest's root, which it hands a listening socket
// as its first descriptor beside stdio, and QEMU: SOCKET SERVER ARG… -- QEMU ARG….
func emulate(args []string) int {
	end := slices.Index(args, "--")
	if end < 2 || end == len(args)-1 {
		fmt.Fprintln(os.Stderr, "emulate: want SOCKET SERVER ARG… -- QEMU ARG…")
		return 2
	}
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return 2 // as in supervise
	}
	for fd := control.FirstFD; fd <= control.InputFD; fd++ {
		unix.CloseOnExec(fd) // they are QEMU's alone
	}
	if err := startServer(args[0], args[1:end]); err != nil {
		fmt.Fprintln(os.Stderr, "file server:", err)
		return 1
	}
	return runKernel(args[end+1:])
}

func startServer(socket string, args []string) error {
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{f}
	return cmd.Start()
}

// runKernel runs the program that is the guest's kernel, with the ends of its
// terminals, of which 0 is stdin and the log.
func runKernel(args []string) int {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for fd := control.FirstFD; fd <= control.InputFD; fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), fmt.Sprintf("terminal %d", fd)))
	}
	cmd.Stdin = cmd.ExtraFiles[control.InputFD-control.FirstFD]
	err := cmd.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest kernel:", err)
	}
	if cmd.ProcessState == nil {
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
