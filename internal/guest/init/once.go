package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// once runs the command of a throw-away guest on its terminals.
func once(procs *reaper, c control.Command) (int, error) {
	var ttys [2]*os.File
	var outs [2]*output
	for i, number := range []int{control.TTYStdout, control.TTYStderr} {
		tty, err := openTTY(number, unix.O_WRONLY)
		if err != nil {
			return 0, err
		}
		defer tty.Close()
		o, err := newOutput(tty)
		if err != nil {
			return 0, err
		}
		ttys[i], outs[i] = tty, o
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	p, err := procs.start(c, [3]*os.File{null, outs[0].w, outs[1].w})
	null.Close()
	for _, o := range outs {
		o.started()
	}
	if err != nil {
		return 0, err
	}
	go obey(p)
	status := <-p.done
	for i, o := range outs {
		if err := errors.Join(o.finish(), drain(ttys[i])); err != nil {
			return 0, fmt.Errorf("output of %s: %w", c.Args[0], err)
		}
	}
	return exitCode(status), nil
}

// obey sends SIGQUIT to p when the host asks for it.
func obey(p process) {
	tty, err := openTTY(control.TTYInput, unix.O_RDONLY)
	if err != nil {
		fmt.Println("braid-guest-init:", err)
		return
	}
	defer tty.Close()
	for lines := bufio.NewScanner(tty); lines.Scan(); {
		if lines.Text() == "quit" {
			p.signal(unix.SIGQUIT)
		}
	}
}
