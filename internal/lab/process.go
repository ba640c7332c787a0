package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// A process is a program of the control plane. It outlives the process that
// started it; PID and Started together identify it, since a PID alone may be
// used again.
type process struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
	// Started is when, in clock ticks since the machine booted.
	Started uint64 `json:"started"`
	Log     string `json:"log"`
	// Stopped says that it was ended on purpose.
	Stopped bool `json:"stopped,omitempty"`

	// ended is closed when the process ends while its starter is there.
	ended chan struct{}
	exit  error
}

// A world is where the processes of a lab run.
type world struct {
	ns    *netns.NS
	group cgroup
}

// spawn starts args in the world, detached from the caller's terminal, with
// its output in the file log.
func (w world) spawn(name, log string, args []string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	group, err := w.group.open()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer group.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	// A child begins in the network namespace of the thread that forks it.
	if err := w.ns.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{Name: name, PID: cmd.Process.Pid, Log: log, ended: make(chan struct{})}
	p.Started, _, err = lookUp(p.PID)
	go func() {
		p.exit = cmd.Wait()
		close(p.ended)
	}()
	return p, err
}

// alive returns an error that says how the process ended and what it said
// last, when its starter saw it end.
func (p *process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended (%v); %s: %w", p.Name, p.exit, tailFile(p.Log, 12), errGiveUp)
	default:
		return nil
	}
}

// running reports whether the process still runs; it serves for a process
// that somebody else started.
func (p *process) running() bool {
	started, dead, err := lookUp(p.PID)
	return err == nil && !dead && started == p.Started
}

// kill ends the process at once, and returns when it has ended.
func (p *process) kill(ctx context.Context, progress *Progress) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end %s: %w", p.Name, err)
	}
	defer unix.Close(fd)
	if !p.running() {
		return nil // the id is another's
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end %s: %w", p.Name, err)
	}
	wait := Wait{What: p.Name + " to end", Limit: 20 * time.Second, Every: 5 * time.Millisecond}
	return progress.Wait(ctx, wait, func(context.Context) error {
		if p.running() {
			return errors.New("it still runs")
		}
		return nil
	})
}

// lookUp reads from /proc when the process was started, and whether it has
// ended and only waits for its parent to notice.
func lookUp(pid int) (started uint64, dead bool, err error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false, err
	}
	return parseStat(string(text))
}

// parseStat takes fields 3 and 22 of proc_pid_stat(5). Field 2 is the name of
// the program, in parentheses, which may itself contain anything.
func parseStat(stat string) (started uint64, dead bool, err error) {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, false, errors.New("malformed /proc/PID/stat")
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return started, fields[0] == "Z" || fields[0] == "X", err
}
