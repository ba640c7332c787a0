package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// conn is a socket for the requests of which every attachment makes a dozen.
//
// The kernel answers a request of route netlink before the call that sends it
// returns, so that nothing is ever waited for in between. The library's sockets
// are ones that Go waits for: each answer wakes a thread for nothing, beside the
// one that reads it, which asks for its own address first and reads the answer
// and the acknowledgement into 64 KiB of stack each. That is as much work as the
// smaller requests are for the kernel.
type conn struct {
	fd int
	mu sync.Mutex
	// seq is the number of the last request.
	seq uint32
	buf []byte
}

// usualAnswer is more than a link without many alternative names takes: what
// grows with the number of its virtual functions is not asked for.
const usualAnswer = 8 << 10

// dial opens a socket in the namespace of the calling thread. It is connected,
// so that nobody but the kernel can send to it.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &conn{fd: fd, buf: make([]byte, usualAnswer)}, nil
}

// namespace opens the one that the socket is in, for whoever has CAP_NET_ADMIN
// there (SIOCGSKNS of linux/sockios.h).
func (c *conn) namespace() (*netns.NS, error) {
	fd, err := unix.IoctlRetInt(c.fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("namespace of a netlink socket: %w", err)
	}
	return netns.FromFile(os.NewFile(uintptr(fd), "of a netlink socket"))
}

func (c *conn) close() { unix.Close(c.fd) }

// change has the kernel do something, and returns its verdict.
func (c *conn) change(req *nl.NetlinkRequest) error {
	req.Flags |= unix.NLM_F_ACK
	_, err := c.do(req)
	return err
}

// do sends a request that has one answer, or none but an acknowledgement, and
// returns a copy of the answer without its header.
func (c *conn) do(req *nl.NetlinkRequest) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, err := c.ask(req)
	if errors.Is(err, errTruncated) { // only a question has a long answer
		answer, err = c.ask(req)
	}
	return answer, err
}

// errTruncated is an answer that did not fit. The next one of its length will.
var errTruncated = errors.New("the kernel's answer is longer than expected")

func (c *conn) ask(req *nl.NetlinkRequest) ([]byte, error) {
	c.seq++
	req.Seq = c.seq
	if _, err := uninterrupted(unix.Write, c.fd, req.Serialize()); err != nil {
		return nil, err
	}
	for {
		n, err := uninterrupted(unix.Read, c.fd, c.buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil, errors.New("the kernel did not answer")
		}
		if err != nil {
			return nil, err
		}
		m := parseMessage(c.buf[:n])
		switch {
		case m.seq != c.seq: // what is left of a request that failed
		case m.length > n:
			c.buf = make([]byte, 2*m.length)
			return nil, errTruncated
		default:
			return m.verdict()
		}
	}
}

// uninterrupted begins a call again that a signal came into.
func uninterrupted(call func(int, []byte) (int, error), fd int, buf []byte) (int, error) {
	for {
		if n, err := call(fd, buf); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// message is one of the kernel's. length is what it says of its own, of which
// body is what was read.
type message struct {
	length int
	kind   uint16
	seq    uint32
	body   []byte
}

// parseMessage reads the first message of a datagram. It is the zero message,
// of which no request has the number, when there is none.
func parseMessage(datagram []byte) message {
	if len(datagram) < unix.SizeofNlMsghdr {
		return message{}
	}
	length := int(binary.NativeEndian.Uint32(datagram[0:]))
	if length < unix.SizeofNlMsghdr {
		return message{}
	}
	return message{
		length: length,
		kind:   binary.NativeEndian.Uint16(datagram[4:]),
		seq:    binary.NativeEndian.Uint32(datagram[8:]),
		body:   datagram[unix.SizeofNlMsghdr:min(length, len(datagram))],
	}
}

// verdict tells an answer, of which it returns a copy, from an error. An
// acknowledgement is the error of number 0.
func (m message) verdict() ([]byte, error) {
	if m.kind != unix.NLMSG_ERROR {
		return append([]byte(nil), m.body...), nil
	}
	if len(m.body) < 4 {
		return nil, errors.New("the kernel's answer ends in the middle")
	}
	if number := int32(binary.NativeEndian.Uint32(m.body)); number != 0 {
		return nil, unix.Errno(-number)
	}
	return nil, nil
}
