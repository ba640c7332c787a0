package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"braid.dev/braid/internal/wire"
)

const (
	// maxStdout is far above any CNI result and, encoded, below wire.MaxFrame.
	maxStdout = 4 << 20
	// maxStderr is what a person may want to read. The rest is dropped.
	maxStderr = 64 << 10
	// childDelay is how long a program is waited for on behalf of children
	// that it left behind: they hold its standard output open, or die slowly.
	childDelay = time.Second
)

// Causes of a program's context, next to that of the request.
var (
	errDeadline = errors.New("deadline")
	errOutput   = errors.New("too much output")
)

// runProgram is the daemon's hand on the host.
func runProgram(ctx context.Context, e wire.Exec) wire.ExecResult {
	path, err := find(e)
	if err != nil {
		return wire.ExecResult{Failure: failureOf(err), Detail: err.Error()}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if e.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, e.Timeout, errDeadline)
		defer stop()
	}
	pause := backoff{}
	for attempt := 1; ; attempt++ {
		result, err := runOnce(ctx, cancel, path, e)
		// A plugin that is being installed is open for writing for a moment.
		// A Cmd cannot be started twice, so each attempt makes its own.
		if errors.Is(err, syscall.ETXTBSY) && attempt < 10 && pause.wait(ctx) {
			continue
		}
		return result
	}
}

// find looks for the first regular file of the name, as the reference library
// does. That it may not be executed is found out by executing it.
func find(e wire.Exec) (string, error) {
	if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsRune(e.Name, '/') {
		return "", fmt.Errorf("%q is not a bare file name: %w", e.Name, fs.ErrInvalid)
	}
	dirs := e.Dirs
	if len(dirs) == 0 {
		dirs = filepath.SplitList(os.Getenv("PATH"))
	}
	for _, dir := range dirs {
		path, err := filepath.Abs(filepath.Join(dir, e.Name))
		if err != nil || dir == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in %s: %w", e.Name, strings.Join(dirs, ":"), fs.ErrNotExist)
}

// runOnce runs the program to its end. The error is that of the attempt to
// start it, nil when it did start.
func runOnce(ctx context.Context, cancel context.CancelCauseFunc, path string, e wire.Exec) (wire.ExecResult, error) {
	stdout := &capture{max: maxStdout, full: func() { cancel(errOutput) }}
	stderr := &capture{max: maxStderr}
	cmd := exec.CommandContext(ctx, path, e.Args...)
	cmd.Env = environment(e.Env)
	cmd.Stdin = bytes.NewReader(e.Stdin)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// A group of its own, so that it can be killed with its children, and
	// killed by the kernel should the shim be killed: then the daemon takes
	// the request for ended. (The kernel watches the thread that started the
	// program; Go ends none before the process.)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return killGroup(cmd) }
	cmd.WaitDelay = childDelay
	if err := cmd.Start(); err != nil {
		return startFailure(ctx, err), err
	}
	err := cmd.Wait()
	if ctx.Err() != nil && err != nil {
		endGroup(cmd)
	}
	result := outcome(ctx, err)
	result.Stdout, result.Stderr = stdout.Bytes(), stderr.Bytes()
	return result, nil
}

func killGroup(cmd *exec.Cmd) error {
	err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// endGroup waits, after the program itself has ended, until its children have
// too: whoever had the program killed goes on to undo what it did. They are not
// our children, so the kernel has no event for us. The wait is bounded, because
// a process that sleeps in the kernel may take any time to die.
func endGroup(cmd *exec.Cmd) {
	bound, cancel := context.WithTimeout(context.Background(), childDelay)
	defer cancel()
	for pause := (backoff{}); ; {
		// The program may have ended by itself before its children were killed.
		if err := killGroup(cmd); err != nil || !groupRuns(cmd.Process.Pid) || !pause.wait(bound) {
			return
		}
	}
}

// groupRuns is false when all that is left of the group are zombies: some
// machines have a process 1 that takes no notice of them.
func groupRuns(group int) bool {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return true
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// "pid (name) state parent group …", where name may hold anything
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 2 && string(fields[2]) == strconv.Itoa(group) && !bytes.ContainsAny(fields[0], "ZX") {
			return true
		}
	}
	return false
}

// environment is env with the host's PATH when it has none.
func environment(env []string) []string {
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		return env
	}
	return append(slices.Clone(env), "PATH="+os.Getenv("PATH"))
}

// outcome translates the error of Cmd.Wait.
func outcome(ctx context.Context, err error) wire.ExecResult {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil:
		return wire.ExecResult{}
	case ctx.Err() != nil:
		return wire.ExecResult{Failure: ended(ctx)}
	case errors.As(err, &exit) && exit.Exited():
		return wire.ExecResult{ExitCode: exit.ExitCode()}
	case errors.As(err, &exit):
		return wire.ExecResult{Failure: wire.Killed, Detail: exit.String()}
	default:
		return wire.ExecResult{Failure: wire.NotStarted, Detail: err.Error()}
	}
}

func startFailure(ctx context.Context, err error) wire.ExecResult {
	switch {
	case ctx.Err() != nil:
		return wire.ExecResult{Failure: ended(ctx)}
	case errors.Is(err, fs.ErrNotExist):
		// The file was found, so it is the interpreter that was not.
		return wire.ExecResult{Failure: wire.NotExecutable, Detail: err.Error() + " (its interpreter)"}
	default:
		return wire.ExecResult{Failure: failureOf(err), Detail: err.Error()}
	}
}

// ended says why a context ended that a program was running under.
func ended(ctx context.Context) wire.Failure {
	switch context.Cause(ctx) {
	case errDeadline:
		return wire.TimedOut
	case errOutput:
		return wire.TooMuchOutput
	default:
		return wire.Canceled
	}
}

func failureOf(err error) wire.Failure {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wire.NotFound
	case errors.Is(err, fs.ErrPermission):
		return wire.NotExecutable
	case errors.Is(err, syscall.ENOEXEC):
		return wire.BadFormat
	default:
		return wire.NotStarted
	}
}

// capture keeps the first max bytes written to it and drops the rest, so that
// the writer never blocks. At the first byte too many it calls full.
type capture struct {
	buf  bytes.Buffer
	max  int
	full func()
}

func (c *capture) Write(p []byte) (int, error) {
	room := c.max - c.buf.Len()
	c.buf.Write(p[:min(room, len(p))])
	if len(p) > room && c.full != nil {
		c.full()
	}
	return len(p), nil
}

func (c *capture) Bytes() []byte { return c.buf.Bytes() }
