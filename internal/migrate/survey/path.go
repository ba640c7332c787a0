package survey

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/rtnl"
)

// Peer is another node, on which Echo answers at each of the ports.
type Peer struct {
	Node  string
	Addr  netip.Addr
	Ports []uint16
}

// A question is a datagram that begins with the mark and a number of its own,
// and is as long as it needs to be. The answer is the same datagram.
const (
	mark      = "braidway"
	numberLen = 8
	headLen   = len(mark) + numberLen
)

// Bytes of headers before the datagram's data: IP and UDP.
const (
	headers4 = 20 + 8
	headers6 = 40 + 8
)

// Packets of this length pass everywhere (RFC 791, RFC 8200).
const (
	leastMTU4 = 576
	leastMTU6 = 1280
)

// Times of one question. All questions together end after pathsWait.
const (
	pathTries = 3
	pathWait  = 500 * time.Millisecond
	pathsWait = 60 * time.Second
	pathsOnce = 64 // questions at the same time
)

// Echo answers the questions of other nodes at an address of this one, in the
// network namespace of the calling thread, until ctx ends. It takes the UDP port
// from whoever wants it meanwhile: a tunnel on that port cannot be set up.
func Echo(ctx context.Context, at netip.AddrPort) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("answer other nodes at %s: %w", at, err)
	}
	defer conn.Close()
	if err := whole(conn, at.Addr()); err != nil {
		return fmt.Errorf("answer other nodes at %s: %w", at, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("answer other nodes at %s: %w", at, err)
		case err != nil, n < headLen, !bytes.HasPrefix(buf[:n], []byte(mark)):
			continue // an ICMP error of an earlier answer, or nobody's question
		}
		// An answer that does not get through is what was asked about.
		_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
	}
}

// whole forbids that what is sent is cut into fragments, here or on the way, and
// does not believe what was learned of the way before.
func whole(conn *net.UDPConn, addr netip.Addr) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if addr.Unmap().Is4() {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			return
		}
		set = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
	})
	return errors.Join(err, set)
}

// question is one that is going to be asked.
type question struct {
	facts.Path
	addr netip.Addr
	conn *net.UDPConn
	// most is the MTU of the link that it leaves by.
	most int
}

// askPaths asks all peers, many at a time. The sockets are made by the calling
// goroutine, which is in the node's namespace.
func askPaths(ctx context.Context, peers []Peer) []facts.Path {
	if len(peers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pathsWait)
	defer cancel()
	var questions []*question
	var asked sync.WaitGroup
	free := make(chan struct{}, pathsOnce)
	for _, p := range peers {
		for _, port := range p.Ports {
			free <- struct{}{}
			q := prepare(ctx, p, port)
			questions = append(questions, q)
			asked.Go(func() {
				defer func() { <-free }()
				if q.conn != nil {
					q.ask(ctx)
				}
			})
		}
	}
	asked.Wait()
	var paths []facts.Path
	for _, q := range questions {
		paths = append(paths, q.Path)
	}
	return paths
}

func prepare(ctx context.Context, p Peer, port uint16) *question {
	q := &question{Path: facts.Path{Node: p.Node, Port: port}, addr: p.Addr.Unmap()}
	if err := q.open(ctx); err != nil {
		q.Error = err.Error()
	}
	return q
}

func (q *question) open(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("not asked: the time was over")
	}
	h, err := rtnl.Open(nil)
	if err != nil {
		return err
	}
	defer h.Close()
	way, err := h.WayTo(q.addr)
	if err != nil {
		return err
	}
	l, err := h.LinkByIndex(way.Link)
	if err != nil {
		return err
	}
	q.most = min(l.MTU, 1<<16-1)
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(q.addr, q.Port)))
	if err != nil {
		return err
	}
	if err := whole(conn, q.addr); err != nil {
		return errors.Join(err, conn.Close())
	}
	q.conn = conn
	return nil
}

// ask finds the largest packet that comes back.
func (q *question) ask(ctx context.Context) {
	defer q.conn.Close()
	stop := context.AfterFunc(ctx, func() { q.conn.Close() })
	defer stop()
	passes := leastMTU4
	if q.addr.Is6() {
		passes = leastMTU6
	}
	passes = min(passes, q.most)
	if err := q.echo(ctx, passes); err != nil {
		q.Error = err.Error()
		return
	}
	if q.echo(ctx, q.most) == nil {
		q.MTU = q.most
		return
	}
	for fails := q.most; fails-passes > 1 && ctx.Err() == nil; {
		middle := (passes + fails) / 2
		if q.echo(ctx, middle) == nil {
			passes = middle
		} else {
			fails = middle
		}
	}
	q.MTU = passes
}

// echo sends packets of that length until one comes back. A router that says
// "too long" may speak of an earlier one, so that its word ends one try only.
func (q *question) echo(ctx context.Context, mtu int) error {
	headers := headers4
	if q.addr.Is6() {
		headers = headers6
	}
	datagram := make([]byte, max(mtu-headers, headLen))
	copy(datagram, mark)
	rand.Read(datagram[len(mark):headLen]) // never fails
	err := errors.New("not asked")
	for range pathTries {
		if err = q.echoOnce(datagram); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

func (q *question) echoOnce(datagram []byte) error {
	deadline := time.Now().Add(pathWait)
	if err := q.conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := q.conn.Write(datagram); err != nil {
		return refused(err)
	}
	buf := make([]byte, len(datagram)+1)
	for {
		n, err := q.conn.Read(buf)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return errors.New("no answer")
		}
		if err != nil {
			return refused(err)
		}
		if bytes.Equal(buf[:n], datagram) {
			return nil
		}
	}
}

// refused says in words what an ICMP error means here.
func refused(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return errors.New("nobody answers at the port")
	}
	return err
}
