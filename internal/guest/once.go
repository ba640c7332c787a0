package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"braid.dev/braid/internal/guest/control"
)

// quitLimit is how long a command may take to end after SIGQUIT.
const quitLimit = 2 * time.Second

func runOnce(ctx context.Context, c Config, cmd Cmd) (code int, err error) {
	if c.Dir == "" {
		c.Dir, err = os.MkdirTemp("", "braid-guest-")
		if err != nil {
			return 0, fmt.Errorf("run in guest: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	}
	code, err = runInNew(ctx, c, cmd)
	if err != nil {
		err = fmt.Errorf("run in guest %s: %w", c.Name, err)
	}
	return code, err
}

func runInNew(ctx context.Context, c Config, cmd Cmd) (int, error) {
	if cmd.Stdin != nil {
		return 0, errors.New("a throw-away guest has no stdin")
	}
	if c.Disk != "" {
		return 0, errors.New("a throw-away guest has no disk")
	}
	if c.Kernel == Host {
		return 0, errors.New("a throw-away guest has a kernel of its own")
	}
	c, err := prepare(ctx, c)
	if err != nil {
		return 0, err
	}
	g := &Guest{dir: c.Dir, state: state{Name: c.Name, NetNS: c.NetNS}}
	b := bootConfig(c)
	b.Once = &control.Command{Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir}
	pipes, err := newPipes(cmd)
	if err != nil {
		return 0, err
	}
	defer pipes.input.Close()
	l, err := g.launch(c, b, &pipes.guest)
	if err != nil {
		closeAll([]*os.File{pipes.guest.stdout, pipes.guest.stderr, pipes.guest.input})
		return 0, errors.Join(err, pipes.finish(), g.abandon(ctx))
	}
	defer context.AfterFunc(ctx, func() { g.interrupt(context.WithoutCancel(ctx), pipes.input) })()
	code, err := l.awaitExit()
	// The pipes end when no process of the guest is left to write to them.
	err = errors.Join(err, g.abandon(ctx), pipes.finish())
	<-l.exited
	if ctx.Err() != nil {
		return code, errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return 0, fmt.Errorf("%w%s", err, consoleTail(c.Dir))
	}
	return code, nil
}

// interrupt asks the command to say where it is and to end, and sees to it
// that the guest ends.
func (g *Guest) interrupt(ctx context.Context, input io.Writer) {
	soft, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	if _, err := io.WriteString(input, "quit\n"); err == nil {
		_ = g.state.wait(soft) // kill follows in any case
	}
	late, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	_ = g.state.kill(late) // abandon tries again and reports
}

// awaitExit waits for the exit code of the command. A guest that dies ends it.
func (l *launched) awaitExit() (int, error) {
	defer l.status.Close()
	r := bufio.NewReader(l.status)
	word, arg, err := readStatus(r)
	if err != nil {
		return 0, err
	}
	if word == control.StatusFail {
		return 0, errors.New(arg)
	}
	code, err := strconv.Atoi(arg)
	if word != control.StatusExit || err != nil {
		return 0, fmt.Errorf("guest says %q %q instead of an exit code", word, arg)
	}
	// It powers off now; its end closes the pipe.
	_, err = io.Copy(io.Discard, r)
	return code, err
}

// pipes connect the terminals of a throw-away guest with a Cmd. The guest gets
// pipes of its own, because its kernel makes the descriptors non-blocking.
type pipes struct {
	guest terminals
	input *os.File
	done  sync.WaitGroup
	errs  [2]error
}

func newPipes(cmd Cmd) (*pipes, error) {
	var files []*os.File
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, r, w)
	}
	p := &pipes{guest: terminals{stdout: files[1], stderr: files[3], input: files[4]}, input: files[5]}
	for i, to := range []io.Writer{cmd.Stdout, cmd.Stderr} {
		if to == nil {
			to = io.Discard
		}
		from := files[2*i]
		p.done.Go(func() {
			defer from.Close()
			_, p.errs[i] = io.Copy(to, from)
		})
	}
	return p, nil
}

// finish waits until the guest's ends are closed and all output is passed on.
func (p *pipes) finish() error {
	p.done.Wait()
	return errors.Join(p.errs[0], p.errs[1])
}
