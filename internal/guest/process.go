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
func (p process) pin() (fd int, err error) {
	if p.PID == 0 {
		return -1, fs.ErrNotExist
	}
	fd, err = unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, fs.ErrNotExist
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	if !p.running() {
		unix.Close(fd)
		return -1, fs.ErrNotExist
	}
	return fd, nil
}

// wait returns when the process is gone, with ctx's error when that ends first.
func (p process) wait(ctx context.Context) error {
	fd, err := p.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return waitFD(ctx, fd)
}

// kill ends the process, which as the first of its pid namespace takes all of
// the guest with it, and waits for that.
func (p process) kill(ctx context.Context) error {
	fd, err := p.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return waitFD(ctx, fd)
}

// waitFD waits until a process descriptor says that its process has ended.
// poll(2) knows no context, so it waits in slices.
func waitFD(ctx context.Context, fd int) error {
	const slice = 100 * time.Millisecond
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
