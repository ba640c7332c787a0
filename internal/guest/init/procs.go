package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// reaper starts processes and collects every process that ends: its own, and
// the orphans that the kernel hands to process 1. os/exec cannot be used next
// to it, for both would wait for the same process.
type reaper struct {
	mu   sync.Mutex
	ours map[int]chan syscall.WaitStatus
	wake chan os.Signal
}

func newReaper() *reaper {
	r := &reaper{ours: map[int]chan syscall.WaitStatus{}, wake: make(chan os.Signal, 1)}
	signal.Notify(r.wake, unix.SIGCHLD)
	return r
}

// reap runs for as long as the guest.
func (r *reaper) reap() {
	for range r.wake {
		for r.reapOne() {
		}
	}
}

func (r *reaper) reapOne() bool {
	// The lock keeps a process that ends at once from being collected before
	// start has noted it.
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if err != nil || pid <= 0 {
		return errors.Is(err, unix.EINTR)
	}
	if done, ok := r.ours[pid]; ok {
		delete(r.ours, pid)
		done <- status
	}
	return true
}

// process is a started program, the leader of a session of its own.
type process struct {
	pid int
	// done delivers the status once the process has ended.
	done <-chan syscall.WaitStatus
}

// start executes c with the three files as its stdio.
func (r *reaper) start(c control.Command, stdio [3]*os.File) (process, error) {
	if len(c.Args) == 0 {
		return process{}, errors.New("no command")
	}
	env := environment(c.Env)
	path, err := lookPath(c.Args[0])
	if err != nil {
		return process{}, err
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, c.Args, &syscall.ProcAttr{
		Dir:   dir,
		Env:   env,
		Files: []uintptr{stdio[0].Fd(), stdio[1].Fd(), stdio[2].Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return process{}, fmt.Errorf("execute %s in %s: %w", path, dir, err)
	}
	done := make(chan syscall.WaitStatus, 1)
	r.ours[pid] = done
	return process{pid: pid, done: done}, nil
}

// signal sends sig to the process and all that it started in its group.
func (p process) signal(sig syscall.Signal) {
	// ESRCH: ended, and about to be collected.
	_ = syscall.Kill(-p.pid, sig)
}

// lookPath finds a program on the PATH of the guest, not of the request.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // relative to the command's directory
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, errors.Unwrap(err))
	}
	return path, nil
}

// guestPath is where programs are looked for.
const guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the basic environment with extra, of which the last wins.
func environment(extra []string) []string {
	basic := []string{"PATH=" + guestPath, "HOME=/root", "LANG=C.UTF-8", "USER=root"}
	env := make([]string, 0, len(basic)+len(extra))
	at := map[string]int{}
	for _, kv := range append(basic, extra...) {
		k, _, _ := strings.Cut(kv, "=")
		if i, seen := at[k]; seen {
			env[i] = kv
			continue
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	return env
}

// exitCode is what a shell would say: 128 + n after signal n.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// describe words a status as os/exec does.
func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal: " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// lingering is how long output is still read after a process has ended: its
// children may hold the pipe open for good.
const lingering = 250 * time.Millisecond

// output is a pipe whose content goes to a writer.
type output struct {
	r, w *os.File
	done chan error
}

// newOutput starts copying. Give o.w to a process, then call finish.
func newOutput(to io.Writer) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o := &output{r: r, w: w, done: make(chan error, 1)}
	go func() {
		_, err := io.Copy(to, r)
		o.done <- err
	}()
	return o, nil
}

// started closes this process's writing end, once the child has it.
func (o *output) started() { o.w.Close() }

// finish waits for the rest of the output of a process that has ended.
func (o *output) finish() error {
	defer o.r.Close()
	if err := o.r.SetReadDeadline(time.Now().Add(lingering)); err != nil {
		return err
	}
	if err := <-o.done; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}
