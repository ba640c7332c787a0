package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// requestTimeout is how long a peer may take to say what it wants.
	requestTimeout = 5 * time.Second
	// writeTimeout is how long a peer may take to read one frame.
	writeTimeout = 10 * time.Second
	// killTimeout is how long the shim may take to kill a program and say so.
	killTimeout = 5 * time.Second
)

// Conn is one request at the daemon's side. Its methods may be called from
// several goroutines.
type Conn struct {
	conn    *net.UnixConn
	request Request
	netns   *os.File
	ctx     context.Context
	cancel  context.CancelCauseFunc
	// stopping is closed when the server has been told to stop.
	stopping <-chan struct{}
	reader   sync.WaitGroup

	sending sync.Mutex
	replied bool // guarded by sending

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan ExecResult
	gone    chan struct{} // closed when no more results can come
}

// receive reads the request of a fresh connection. It closes conn on error.
func receive(ctx context.Context, stopping <-chan struct{}, conn *net.UnixConn) (*Conn, error) {
	request, netns, err := receiveRequest(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c := &Conn{
		conn: conn, request: request, netns: netns, stopping: stopping,
		waiting: map[uint64]chan ExecResult{}, gone: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	if request.Timeout > 0 {
		inner, stop := context.WithTimeout(c.ctx, request.Timeout)
		context.AfterFunc(inner, stop)
		c.ctx = inner
	}
	c.reader.Go(c.read)
	return c, nil
}

func receiveRequest(conn *net.UnixConn) (Request, *os.File, error) {
	if err := trust(conn); err != nil {
		return Request{}, nil, err
	}
	conn.SetReadDeadline(time.Now().Add(requestTimeout))
	m, netns, err := receiveFirst(conn)
	if err != nil {
		return Request{}, nil, fmt.Errorf("read request: %w", err)
	}
	conn.SetReadDeadline(time.Time{})
	if m.Request == nil {
		err = errors.New("read request: the first message is none")
	} else if m.Request.Version != Version {
		err = fmt.Errorf("read request: shim speaks version %d, this daemon %d", m.Request.Version, Version)
		refuse(conn, err)
	}
	if err != nil {
		if netns != nil {
			netns.Close()
		}
		return Request{}, nil, err
	}
	return *m.Request, netns, nil
}

// refuse tells a shim of another version, of which it is known that it
// understands this much, to come back when the upgrade of the node is through.
func refuse(conn *net.UnixConn, err error) {
	frame, encodeErr := encode(message{Reply: &Reply{Error: &Error{
		Code: CodeTryAgainLater, Msg: "braidd and braid-cni are of different versions, an upgrade is under way", Details: err.Error(),
	}}})
	if encodeErr == nil {
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		conn.Write(frame)
	}
}

// Request is what the runtime asked for.
func (c *Conn) Request() Request { return c.request }

// NetNS is the container's network namespace, nil when the request came
// without one. It is closed with the Conn; closing it earlier is allowed.
func (c *Conn) NetNS() *os.File { return c.netns }

// Context ends when the shim went away (its cause is then ErrLost), when the
// Timeout of the request has passed, when the server's grace has (ErrShutdown),
// and when the Conn is closed.
func (c *Conn) Context() context.Context { return c.ctx }

// Stopping is closed when the server has been told to stop: what would go on
// without end should come to one. Context lasts for the server's grace.
func (c *Conn) Stopping() <-chan struct{} { return c.stopping }

// Exec has the shim run a program and waits for its end. A program that exited
// with a code other than 0 is no error. One that could not be run, or that did
// not run to its own end, is an *ExecError, next to what it printed. When ctx
// ends, the program is killed, and Exec waits (bounded) until it is dead. Once
// the shim is gone, Exec returns ErrLost; the shim's death kills the program.
func (c *Conn) Exec(ctx context.Context, e Exec) (ExecResult, error) {
	if err := ctx.Err(); err != nil {
		return ExecResult{}, fmt.Errorf("run %s: %w", e.Name, context.Cause(ctx))
	}
	id, result := c.expect()
	defer c.forget(id)
	e.ID = id
	if err := c.send(message{Exec: &e}); err != nil {
		return ExecResult{}, fmt.Errorf("run %s: %w", e.Name, err)
	}
	select {
	case r := <-result:
		return ended(e, r)
	case <-c.gone:
		return c.lastWord(e, result)
	case <-ctx.Done():
		return c.kill(ctx, e, result)
	}
}

// lastWord prefers a result that arrived before the shim left.
func (c *Conn) lastWord(e Exec, result <-chan ExecResult) (ExecResult, error) {
	select {
	case r := <-result:
		return ended(e, r)
	default:
		return ExecResult{}, fmt.Errorf("run %s: %w", e.Name, ErrLost)
	}
}

func (c *Conn) kill(ctx context.Context, e Exec, result <-chan ExecResult) (ExecResult, error) {
	err := fmt.Errorf("run %s: %w", e.Name, context.Cause(ctx))
	if sendErr := c.send(message{Cancel: e.ID}); sendErr != nil {
		return ExecResult{}, errors.Join(err, sendErr)
	}
	patience := time.NewTimer(killTimeout)
	defer patience.Stop()
	select {
	case r := <-result:
		return r, err
	case <-c.gone:
		return ExecResult{}, err
	case <-patience.C:
		return ExecResult{}, fmt.Errorf("%w; it could not be killed within %v", err, killTimeout)
	}
}

func ended(e Exec, r ExecResult) (ExecResult, error) {
	if r.Failure == "" {
		return r, nil
	}
	return r, &ExecError{Name: e.Name, Failure: r.Failure, Detail: r.Detail}
}

// Reply ends the request. It fails when the shim is gone, and when it is
// called a second time.
func (c *Conn) Reply(r Reply) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.replied {
		return errors.New("reply: already replied")
	}
	err := c.sendLocked(message{Reply: &r})
	if errors.Is(err, ErrTooLarge) {
		err = errors.Join(err, c.sendLocked(message{Reply: &Reply{Error: &Error{
			Code: CodeInternal, Msg: "the result does not fit into a message", Details: err.Error(),
		}}}))
	}
	c.replied = true
	if err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	return nil
}

func (c *Conn) hasReplied() bool {
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.replied
}

func (c *Conn) send(m message) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.sendLocked(m)
}

func (c *Conn) sendLocked(m message) error {
	frame, err := encode(m)
	if err != nil {
		return err
	}
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := c.conn.Write(frame); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// read delivers results until the shim goes away, which also is how the
// context of the request learns of it.
func (c *Conn) read() {
	defer close(c.gone)
	for {
		m, err := decode(c.conn)
		if err != nil {
			c.cancel(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
		if m.Result != nil {
			c.deliver(*m.Result)
		}
	}
}

func (c *Conn) expect() (uint64, <-chan ExecResult) {
	result := make(chan ExecResult, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	c.waiting[c.lastID] = result
	return c.lastID, result
}

func (c *Conn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// deliver drops a result that nobody waits for any more, and a second one.
func (c *Conn) deliver(r ExecResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if result, ok := c.waiting[r.ID]; ok {
		result <- r
		delete(c.waiting, r.ID)
	}
}

// close hangs up. A shim that has no reply yet will ask the next daemon.
func (c *Conn) close() {
	c.conn.Close()
	c.reader.Wait()
	c.cancel(net.ErrClosed)
	if c.netns != nil {
		c.netns.Close()
	}
}
