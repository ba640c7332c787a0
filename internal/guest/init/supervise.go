package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"

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
	// The kernel gets no stdin and, beside its log, the ends of its terminals.
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for fd := control.FirstFD; fd <= control.LastFD; fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), fmt.Sprintf("terminal %d", fd)))
	}
	err := cmd.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest kernel:", err)
	}
	if cmd.ProcessState == nil {
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
