package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Listen creates the socket, with its directory, for root alone. A socket that
// a dead daemon left is replaced in one step, so that a shim finds the old or
// the new one, never none. It returns ErrInUse while another daemon answers.
//
// The socket stays when the listener is closed: to a shim a refused connection
// and a missing socket are the same, and a successor's must not be removed.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if answers(path) {
		return nil, fmt.Errorf("listen on %s: %w", path, ErrInUse)
	}
	// A short name of its own: the kernel takes 107 bytes at most.
	fresh := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%06x", rand.N(1<<24)))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.Remove(fresh))
	}
	return l, nil
}

// answers reports whether somebody listens on path. A full backlog is somebody.
func answers(path string) bool {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil || errors.Is(err, syscall.EAGAIN)
}

// Server serves requests, each on a goroutine of its own.
type Server struct {
	// Handle serves one request and replies to it. When it returns the
	// connection is closed.
	Handle func(c *Conn)
	// Refused, if not nil, is told of connections that came to no request:
	// wrong user, broken message, another version, nothing said in time.
	Refused func(err error)
	// Grace is how long requests may still run once Serve has been told to
	// stop. Then their contexts end with ErrShutdown.
	Grace time.Duration
}

// Serve accepts connections until ctx ends, then closes the listener and
// returns nil when the last Handle has returned.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	// Requests outlive ctx by the grace.
	requests, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(ErrShutdown)
	// A deadline wakes accept. Close would as well, but a second Close does not
	// wait for the first, and once Serve returns nobody can connect.
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	var serving sync.WaitGroup
	err := s.accept(ctx, l, func(conn *net.UnixConn) {
		serving.Go(func() { s.serve(requests, ctx.Done(), conn) })
	})
	err = errors.Join(err, l.Close())
	grace := time.AfterFunc(s.Grace, func() { end(ErrShutdown) })
	defer grace.Stop()
	serving.Wait()
	return err
}

// accept calls serve with every connection until ctx ends.
func (s *Server) accept(ctx context.Context, l *net.UnixListener, serve func(*net.UnixConn)) error {
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close() // its shim asks the next daemon
			}
			return nil
		case err == nil:
			serve(conn)
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
			// No event tells when descriptors or memory are free again.
			s.refused(fmt.Errorf("accept: %w", err))
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("accept: %w", err)
		}
	}
}

func (s *Server) serve(ctx context.Context, stopping <-chan struct{}, conn *net.UnixConn) {
	c, err := receive(ctx, stopping, conn)
	if errors.Is(err, io.EOF) {
		return // somebody only looked whether a daemon is there, as Listen does
	}
	if err != nil {
		s.refused(err)
		return
	}
	defer c.close()
	s.Handle(c)
	if !c.hasReplied() && context.Cause(c.ctx) != ErrShutdown {
		// A shim without a reply would ask again and again.
		_ = c.Reply(Reply{Error: &Error{Code: CodeInternal, Msg: "braidd has no answer to " + c.request.Command}})
	}
}

func (s *Server) refused(err error) {
	if s.Refused != nil {
		s.Refused(err)
	}
}
