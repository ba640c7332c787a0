package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Call is one request to a daemon.
type Call struct {
	// Socket is the path that the daemon listens on.
	Socket  string
	Request Request
	// NetNS is the container's network namespace, nil when the request has
	// none (GC, STATUS) or when it no longer exists (DEL).
	NetNS *os.File
	// Run runs one program for the daemon. It is called concurrently, each
	// time on a goroutine of its own, and must return soon after ctx ends,
	// leaving no process behind.
	Run func(ctx context.Context, e Exec) ExecResult
}

// Do asks once and serves the daemon's Execs until it replies. When it returns
// no Run is running any more. It returns ErrUnreachable when no daemon could be
// asked, ErrLost when the daemon went away before it replied, and the cause of
// ctx when that ended first.
func Do(ctx context.Context, c Call) (Reply, error) {
	conn, err := dial(ctx, c.Socket)
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	reply, err := converse(ctx, conn, c)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return reply, err
}

func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if err := trust(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("daemon on %s: %w", socket, err)
	}
	return conn.(*net.UnixConn), nil
}

func converse(ctx context.Context, conn *net.UnixConn, c Call) (Reply, error) {
	c.Request.Version = Version
	frame, err := encode(message{Request: &c.Request})
	if err != nil {
		return Reply{}, err
	}
	sendErr := sendFirst(conn, frame, c.NetNS)
	if sendErr != nil {
		// The daemon may have said why it reads no further.
		conn.CloseWrite()
	}
	h := hand{conn: conn, run: c.Run, running: map[uint64]context.CancelFunc{}}
	defer h.wait()
	// Ends before wait: whatever still runs is no longer wanted by anybody.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		m, err := decode(conn)
		switch {
		case err != nil:
			return Reply{}, fmt.Errorf("%w: %w", ErrLost, cmp.Or(sendErr, err))
		case m.Reply != nil:
			return *m.Reply, nil
		case m.Exec != nil:
			h.start(ctx, *m.Exec)
		case m.Cancel != 0:
			h.cancel(m.Cancel)
		}
	}
}

// hand runs programs for the daemon.
type hand struct {
	conn *net.UnixConn
	run  func(ctx context.Context, e Exec) ExecResult
	done sync.WaitGroup

	mu      sync.Mutex
	running map[uint64]context.CancelFunc
	// sending keeps the frames of two results apart.
	sending sync.Mutex
}

func (h *hand) start(conversation context.Context, e Exec) {
	ctx, cancel := context.WithCancel(conversation)
	h.mu.Lock()
	h.running[e.ID] = cancel
	h.mu.Unlock()
	h.done.Go(func() {
		defer cancel()
		result := h.run(ctx, e)
		result.ID = e.ID
		h.mu.Lock()
		delete(h.running, e.ID)
		h.mu.Unlock()
		if conversation.Err() == nil {
			h.send(result)
		}
	})
}

func (h *hand) cancel(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if cancel, ok := h.running[id]; ok {
		cancel()
	}
}

// send ignores a lost connection: the reading side finds out as well.
func (h *hand) send(result ExecResult) {
	frame, err := encode(message{Result: &result})
	if errors.Is(err, ErrTooLarge) {
		frame, err = encode(message{Result: &ExecResult{ID: result.ID, Failure: TooMuchOutput, Detail: err.Error()}})
	}
	if err != nil {
		return
	}
	h.sending.Lock()
	defer h.sending.Unlock()
	h.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	h.conn.Write(frame)
}

func (h *hand) wait() { h.done.Wait() }
