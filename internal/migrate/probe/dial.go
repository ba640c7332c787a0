package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"braid.dev/braid/internal/netns"
)

// dialer dials from inside a network namespace; nil is the process's own. A
// socket belongs to the namespace of the thread that made it. Addresses are
// literal, so that the socket is made on the goroutine that dials.
type dialer struct{ ns *netns.NS }

func (d dialer) do(dial func() error) error {
	if d.ns == nil {
		return dial()
	}
	return d.ns.Do(dial)
}

func (d dialer) tcp(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	var conn *net.TCPConn
	err := d.do(func() (err error) {
		conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, to)
		return err
	})
	return conn, err
}

func (d dialer) udp(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	var conn *net.UDPConn
	err := d.do(func() (err error) {
		conn, err = new(net.Dialer).DialUDP(ctx, "udp", netip.AddrPort{}, to)
		return err
	})
	return conn, err
}

// get sends a request over a new connection and returns what it was answered,
// at most limit bytes of it with its headers.
func get(ctx context.Context, conn net.Conn, req *http.Request, limit int64) (body []byte, err error) {
	if end, ok := ctx.Deadline(); ok {
		conn.SetDeadline(end)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	in := &io.LimitedReader{R: conn, N: limit}
	resp, err := http.ReadResponse(bufio.NewReader(in), req)
	if err != nil {
		return nil, tooLong(in, limit, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, fmt.Errorf("it answered %q", resp.Status)
	}
	body, err = io.ReadAll(resp.Body)
	return body, tooLong(in, limit, err)
}

// tooLong says that a reader ended early when the limit is the reason. Without
// a length, the end of an answer looks like that, too.
func tooLong(in *io.LimitedReader, limit int64, err error) error {
	if in.N <= 0 {
		return fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	return err
}

// reason says in a few words why a try failed that had so much time.
func reason(err error, timeout time.Duration) string {
	var errno syscall.Errno
	var dns *net.DNSError
	switch {
	case timedOut(err):
		return "timed out after " + timeout.String()
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended without an answer"
	case errors.As(err, &dns):
		// It names the server that it would have asked without us.
		return fmt.Sprintf("look up %s: %s", strings.TrimSuffix(dns.Name, "."), dns.Err)
	default:
		return err.Error()
	}
}

func timedOut(err error) bool {
	var t net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &t) && t.Timeout()
}
