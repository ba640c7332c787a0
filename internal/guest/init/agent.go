package main

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// agent carries out the requests of the host.
type agent struct {
	token   string
	procs   *reaper
	daemons *daemons
	off     chan struct{}
	offOnce sync.Once
}

// serve tells the host by ready that the guest is usable and works until it is
// asked to power off.
func serve(token string, procs *reaper, ready func() error) error {
	if token == "" {
		return errors.New("boot file has no token")
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", control.Port))
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	a := &agent{token: token, procs: procs, daemons: newDaemons(procs), off: make(chan struct{})}
	go a.accept(l)
	if err := ready(); err != nil {
		return err
	}
	<-a.off
	l.Close()
	a.daemons.stopAll()
	return nil
}

func (a *agent) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			fmt.Println("braid-guest-init: agent:", err)
			continue
		}
		go a.handle(conn.(*net.TCPConn))
	}
}

func (a *agent) handle(conn *net.TCPConn) {
	defer func() {
		// Closing is not enough while hangUp holds the connection as well.
		conn.CloseRead()
		conn.CloseWrite()
		conn.Close()
	}()
	q, err := control.ReadRequest(conn)
	if err != nil {
		return // not one of ours
	}
	if subtle.ConstantTimeCompare([]byte(q.Token), []byte(a.token)) != 1 {
		return
	}
	res, err := a.do(conn, q)
	if err != nil {
		res.Err = err.Error()
	}
	if control.WriteJSON(conn, control.KindResult, res) != nil {
		return // the host has hung up
	}
	if q.Op == control.OpPowerOff {
		a.offOnce.Do(func() { close(a.off) })
	}
}

func (a *agent) do(conn *net.TCPConn, q control.Request) (control.Result, error) {
	switch q.Op {
	case control.OpRun:
		code, err := a.run(conn, q.Command)
		return control.Result{Exit: code}, err
	case control.OpWrite:
		return control.Result{}, writeFile(conn, q.Path, os.FileMode(q.Perm))
	case control.OpStart:
		return control.Result{}, a.daemons.start(q.Name, q.Command, q.Restart)
	case control.OpStop:
		a.daemons.stop(q.Name)
		return control.Result{}, nil
	case control.OpSignal:
		return control.Result{}, a.daemons.signal(q.Name, syscall.Signal(q.Signal))
	case control.OpList:
		return control.Result{Daemons: a.daemons.list()}, nil
	case control.OpPowerOff:
		return control.Result{}, nil
	}
	return control.Result{}, fmt.Errorf("unknown operation %q", q.Op)
}

// frames writes what it is given as frames of one kind. The connection is
// shared by stdout and stderr: mu keeps frames whole.
type frames struct {
	mu   *sync.Mutex
	conn net.Conn
	kind control.Kind
}

func (f frames) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := control.Write(f.conn, f.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// run runs c with the connection as its stdio. When the host hangs up, the
// command is killed with all of its group.
func (a *agent) run(conn *net.TCPConn, c control.Command) (int, error) {
	var mu sync.Mutex
	stdout, err := newOutput(frames{&mu, conn, control.KindStdout})
	if err != nil {
		return 0, err
	}
	stderr, err := newOutput(frames{&mu, conn, control.KindStderr})
	if err != nil {
		stdout.started()
		return 0, errors.Join(err, stdout.finish())
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		stdout.started()
		stderr.started()
		return 0, errors.Join(err, stdout.finish(), stderr.finish())
	}
	p, err := a.procs.start(c, [3]*os.File{inR, stdout.w, stderr.w})
	inR.Close()
	stdout.started()
	stderr.started()
	if err != nil {
		return 0, errors.Join(err, inW.Close(), stdout.finish(), stderr.finish())
	}
	gone, err := hangUp(conn)
	if err != nil {
		p.signal(unix.SIGKILL)
		<-p.done
		return 0, errors.Join(err, inW.Close(), stdout.finish(), stderr.finish())
	}
	go feed(conn, inW)
	status := waitOrKill(p, gone)
	// A command that ended without reading its input may block feed.
	inW.Close()
	if err := errors.Join(stdout.finish(), stderr.finish()); err != nil {
		return 0, fmt.Errorf("output of %s: %w", c.Args[0], err)
	}
	return exitCode(status), nil
}

func waitOrKill(p process, gone <-chan struct{}) syscall.WaitStatus {
	select {
	case status := <-p.done:
		return status
	case <-gone:
		p.signal(unix.SIGKILL)
		return <-p.done
	}
}

// hangUp returns a channel that is closed when the host closes the connection,
// or handle does. Reading would not tell: data that the command does not take
// lies before the end.
func hangUp(conn *net.TCPConn) (<-chan struct{}, error) {
	dup, err := conn.File()
	if err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer dup.Close()
		fds := []unix.PollFd{{Fd: int32(dup.Fd()), Events: unix.POLLRDHUP}}
		for {
			if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return gone, nil
}

// feed passes stdin frames on until the input or the connection ends.
func feed(conn net.Conn, in *os.File) {
	defer in.Close()
	for {
		k, data, err := control.Read(conn)
		if err != nil || k != control.KindStdin || len(data) == 0 {
			return
		}
		if _, err := in.Write(data); err != nil {
			return
		}
	}
}

// writeFile replaces path by the stdin frames of conn, in one step.
func writeFile(conn net.Conn, path string, perm os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(receive(conn, tmp), tmp.Chmod(perm), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return nil
}

func receive(conn net.Conn, to io.Writer) error {
	for {
		k, data, err := control.Read(conn)
		if err != nil {
			return err
		}
		if k != control.KindStdin {
			return fmt.Errorf("frame %q instead of data", byte(k))
		}
		if len(data) == 0 {
			return nil
		}
		if _, err := to.Write(data); err != nil {
			return err
		}
	}
}
