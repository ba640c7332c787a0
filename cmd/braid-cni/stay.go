package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"braid.dev/braid/internal/wire"
)

// leaveHand starts a standing hand for the daemon, which outlives this process
// and has nothing of the runtime's: a session and a working directory of its
// own, and none of the files that the runtime may have left open.
func leaveHand(p process, socket string) {
	self, err := os.Executable()
	if err == nil {
		closeOnExec()
		cmd := exec.Command(self, "stay", socket)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=" + p.getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err = cmd.Start()
	}
	if err != nil {
		// The request itself is served. The daemon asks the next shim.
		fmt.Fprintf(p.stderr, "braid-cni: leave a hand for braidd: %v\n", err)
	}
}

// closeOnExec keeps open files of this process from its children. Go's own are
// marked already; the runtime's may be there because it forgot to.
func closeOnExec() {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// stay is the standing hand: it runs programs for the daemon until that hangs
// up. It has no deadline, the daemon knows when it needs it no more.
func stay(p process, socket string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := offerHand(ctx, socket)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(p.stderr, "braid-cni: %v\n", err)
		return 1
	}
	return 0
}

func offerHand(ctx context.Context, socket string) error {
	if !filepath.IsAbs(socket) {
		return fmt.Errorf("socket %q: it must be an absolute path", socket)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	reply, err := wire.Do(ctx, wire.Call{
		Socket:  socket,
		Request: wire.Request{Command: wire.CommandStay, Path: filepath.Dir(self)},
		Run:     runProgram,
	})
	if err != nil {
		return err
	}
	if reply.Error != nil {
		return reply.Error
	}
	return nil
}

// listNamespaces prints which of the paths on standard input are namespaces, and
// which ones.
func listNamespaces(p process) int {
	var paths []string
	err := json.NewDecoder(io.LimitReader(p.stdin, maxStdin)).Decode(&paths)
	if err == nil {
		err = json.NewEncoder(p.stdout).Encode(namespaces(paths))
	}
	if err != nil {
		fmt.Fprintf(p.stderr, "braid-cni: list namespaces: %v\n", err)
		return 1
	}
	return 0
}

// namespaces leaves out the paths where none is. What could not be found out is
// zero: to take a container for gone needs proof.
func namespaces(paths []string) map[string]wire.Namespace {
	found := map[string]wire.Namespace{}
	for _, path := range paths {
		f, err := netNS(path, true)
		if errors.Is(err, errNoNetNS) {
			continue
		}
		var ns wire.Namespace
		if err == nil {
			if ns, err = wire.Identify(f); err != nil {
				ns = wire.Namespace{}
			}
			f.Close()
		}
		found[path] = ns
	}
	return found
}
