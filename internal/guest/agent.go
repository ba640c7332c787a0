package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

const (
	// powerOffLimit is how long a guest may take to power off.
	powerOffLimit = 5 * time.Second
	// killLimit is how long the host's kernel may take to free a killed guest.
	killLimit = 10 * time.Second
	// dialAttempts is how often a guest is looked for that does not answer ARP,
	// for three seconds each: on a busy machine it may not get to it.
	dialAttempts = 5
	// stopLimit is a little more than init gives a daemon to end.
	stopLimit = 15 * time.Second
)

// call is a connection to the agent that ends with its context, and with the
// guest: a kernel that is killed says nothing to its TCP peers.
type call struct {
	*net.TCPConn
	ctx  context.Context // ends with the caller's, the guest, or done
	done func()
}

// dial connects to the agent.
func (g *Guest) dial(ctx context.Context) (*call, error) {
	if !g.running() {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		if g.state.wait(ctx) == nil {
			cancel(ErrNotRunning)
		}
	})
	c := &call{ctx: ctx}
	err := inNS(g.state.NetNS, func() error {
		var err error
		for range dialAttempts {
			var conn net.Conn
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", g.state.Agent.String())
			if err == nil {
				c.TCPConn = conn.(*net.TCPConn)
			}
			if !errors.Is(err, unix.EHOSTUNREACH) {
				break
			}
		}
		return err
	})
	if err != nil {
		err = c.cause("reach the agent", err)
		cancel(nil)
		watch.Wait()
		return nil, err
	}
	// A reset reaches the guest even past data that nobody reads.
	stop := context.AfterFunc(ctx, func() {
		c.SetLinger(0)
		c.Close()
	})
	c.done = func() {
		stop()
		cancel(nil)
		c.Close()
		watch.Wait()
	}
	return c, nil
}

// cause is the reason that the call's context ended, if it did, rather than
// what that did to the connection.
func (c *call) cause(what string, err error) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// ask carries out one request: it sends in, if any, and returns the result.
func (g *Guest) ask(ctx context.Context, q control.Request, in io.Reader, stdout, stderr io.Writer) (control.Result, error) {
	c, err := g.dial(ctx)
	if err != nil {
		return control.Result{}, err
	}
	defer c.done()
	q.Token = g.state.Token
	if err := control.WriteJSON(c, control.KindRequest, q); err != nil {
		return control.Result{}, c.cause("agent", err)
	}
	// The input may block for good, in a terminal for example: nothing waits
	// for its end, and the connection's end makes it useless.
	go send(c, in)
	res, err := receive(c, stdout, stderr)
	if err != nil {
		return control.Result{}, c.cause("agent", err)
	}
	if res.Err != "" {
		return res, errors.New(res.Err)
	}
	return res, nil
}

func send(conn io.Writer, in io.Reader) {
	if in != nil {
		buf := make([]byte, 64<<10)
		for {
			n, err := in.Read(buf)
			if n > 0 && control.Write(conn, control.KindStdin, buf[:n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	// When this fails the receiving side fails as well, and reports it.
	_ = control.Write(conn, control.KindStdin, nil)
}

// receive passes output on until the result comes.
func receive(conn io.Reader, stdout, stderr io.Writer) (control.Result, error) {
	for {
		k, data, err := control.Read(conn)
		if err != nil {
			return control.Result{}, err
		}
		switch k {
		case control.KindStdout:
			err = forward(stdout, data)
		case control.KindStderr:
			err = forward(stderr, data)
		case control.KindResult:
			return parseResult(data)
		default:
			err = fmt.Errorf("unexpected frame %q", byte(k))
		}
		if err != nil {
			return control.Result{}, err
		}
	}
}

func forward(w io.Writer, data []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(data)
	return err
}

func (g *Guest) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("guest %s: %s: %w", g.Name(), what, err)
}

func (g *Guest) run(ctx context.Context, cmd Cmd) (int, error) {
	q := control.Request{Op: control.OpRun, Command: control.Command{Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir}}
	res, err := g.ask(ctx, q, cmd.Stdin, cmd.Stdout, cmd.Stderr)
	return res.Exit, g.wrap("run "+strings.Join(cmd.Args, " "), err)
}

func (g *Guest) output(ctx context.Context, args []string) (string, error) {
	var stdout, stderr bytes.Buffer
	code, err := g.run(ctx, Cmd{Args: args, Stdout: &stdout, Stderr: &stderr})
	if err == nil && code != 0 {
		msg := strings.TrimSpace(stderr.String())
		const most = 2000
		err = g.wrap("run "+strings.Join(args, " "),
			fmt.Errorf("exit status %d: %s", code, msg[max(0, len(msg)-most):]))
	}
	return stdout.String(), err
}

func (g *Guest) writeFile(ctx context.Context, path string, data []byte, perm uint32) error {
	q := control.Request{Op: control.OpWrite, Path: path, Perm: perm}
	_, err := g.ask(ctx, q, bytes.NewReader(data), nil, nil)
	return g.wrap("write "+path, err)
}

func (g *Guest) startDaemon(ctx context.Context, d Daemon) error {
	q := control.Request{
		Op: control.OpStart, Name: d.Name, Restart: d.Restart,
		Command: control.Command{Args: d.Args, Env: d.Env, Dir: d.Dir},
	}
	_, err := g.ask(ctx, q, nil, nil, nil)
	return g.wrap("start", err)
}

func (g *Guest) stopDaemon(ctx context.Context, name string) error {
	// init itself sends SIGKILL in time; when ctx is shorter it is sent here.
	_, err := g.ask(ctx, control.Request{Op: control.OpStop, Name: name}, nil, nil, nil)
	if err == nil || ctx.Err() == nil {
		return g.wrap("stop "+name, err)
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	kill := control.Request{Op: control.OpSignal, Name: name, Signal: int(unix.SIGKILL)}
	if _, err := g.ask(late, kill, nil, nil, nil); err != nil {
		return g.wrap("kill "+name, err)
	}
	_, err = g.ask(late, control.Request{Op: control.OpStop, Name: name}, nil, nil, nil)
	return g.wrap("stop "+name, err)
}

func (g *Guest) signalDaemon(ctx context.Context, name string, sig int) error {
	_, err := g.ask(ctx, control.Request{Op: control.OpSignal, Name: name, Signal: sig}, nil, nil, nil)
	return g.wrap("signal "+name, err)
}

func (g *Guest) daemons(ctx context.Context) ([]DaemonStatus, error) {
	res, err := g.ask(ctx, control.Request{Op: control.OpList}, nil, nil, nil)
	if err != nil {
		return nil, g.wrap("list daemons", err)
	}
	var list []DaemonStatus
	for _, d := range res.Daemons {
		list = append(list, DaemonStatus(d))
	}
	return list, nil
}

func (g *Guest) running() bool { return g.state.running() }

func (g *Guest) stop(ctx context.Context) error {
	if g.running() {
		soft, cancel := context.WithTimeout(ctx, powerOffLimit)
		defer cancel()
		// A guest that does not answer or does not obey is killed next.
		if _, err := g.ask(soft, control.Request{Op: control.OpPowerOff}, nil, nil, nil); err == nil {
			_ = g.state.wait(soft)
		}
	}
	return g.wrap("stop", g.abandon(ctx))
}

// remove kills what runs and deletes the taps that Start created.
func (g *Guest) remove(ctx context.Context) error {
	if err := g.state.kill(ctx); err != nil {
		return err
	}
	if len(g.state.Taps)+len(g.state.Pairs) == 0 {
		return nil
	}
	return g.deleteTaps()
}

func (g *Guest) deleteTaps() error {
	err := inNS(g.state.NetNS, func() error {
		var errs []error
		for _, tap := range g.state.Taps {
			errs = append(errs, deleteTap(tap))
		}
		for _, pair := range g.state.Pairs {
			errs = append(errs, deletePair(pair))
		}
		return errors.Join(errs...)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the namespace is gone, and its links with it
	}
	return err
}

func parseResult(data []byte) (control.Result, error) {
	var res control.Result
	if err := json.Unmarshal(data, &res); err != nil {
		return res, fmt.Errorf("result: %w", err)
	}
	return res, nil
}
