package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process identifies a process of the host across reuses of its id.
type process struct {
	PID int
	// Start is when it began, in clock ticks since the host's boot.
	Start uint64
}

// identify returns the identity of the process that now has the id pid.
func identify(pid int) (process, error) {
	p, dead, err := lookUp(pid)
	if err == nil && dead {
		err = fmt.Errorf("process %d has ended", pid)
	}
	return p, err
}

func lookUp(pid int) (p process, dead bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false, err
	}
	start, state, err := parseStat(string(stat))
	if err != nil {
		return process{}, false, fmt.Errorf("process %d: %w", pid, err)
	}
	return process{PID: pid, Start: start}, state == 'Z' || state == 'X', nil
}

// parseStat reads the start time and the state from /proc/PID/stat, proc(5).
// The program's name, in parentheses, may contain anything.
func parseStat(stat string) (start uint64, state byte, err error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0, errors.New("stat without a name")
	}
	f := strings.Fields(stat[i+1:])
	const startField = 22 - 3 // the first one here is number 3
	if len(f) <= startField || len(f[0]) != 1 {
		return 0, 0, errors.New("stat is too short")
	}
	start, err = strconv.ParseUint(f[startField], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("start time: %w", err)
	}
	return start, f[0][0], nil
}

// running reports whether this very process lives; a zombie does not.
func (p process) running() bool {
	if p.PID == 0 {
		return false
	}
	now, dead, err := lookUp(p.PID)
	return err == nil && !dead && now == p
}

// pin opens a descriptor of the process, so that its id cannot come to mean
// another one. The error is fs.ErrNotExist when it is gone.
func (p process) pin() (*os.File, error) {
	if p.PID == 0 {
		return nil, fs.ErrNotExist
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("process %d", p.PID))
	if !p.running() {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

// wait returns when the process is gone, with ctx's error when that ends first.
func (p process) wait(ctx context.Context) error {
	f, err := p.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return waitGone(ctx, f)
}

// kill ends the process, which as the first of its pid namespace takes all of
// the guest with it, and waits for that.
func (p process) kill(ctx context.Context) error {
	f, err := p.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if err := errors.Join(err, sent); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return waitGone(ctx, f)
}

// waitGone waits until a process descriptor becomes readable: its process has
// ended then. Nothing can be read from it.
func waitGone(ctx context.Context, pidfd *os.File) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { pidfd.SetReadDeadline(time.Now()) })()
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("wait for %s: %w", pidfd.Name(), err)
}
