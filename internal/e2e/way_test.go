package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"braid.dev/braid/internal/netns"
)

// way is how a host's braidd reaches the API server: through a listener in the
// host's namespace, so that a test can close it for this host alone.
type way struct {
	ns   *netns.NS
	addr *net.TCPAddr // where it listens, in ns
	dial func(ctx context.Context) (net.Conn, error)
	done sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while nobody listens
	mode     wayMode
	delay    time.Duration
	conns    map[net.Conn]bool
}

type wayMode int

const (
	open       wayMode = iota
	refused            // nobody listens
	blackholed         // whoever connects, or is connected, hears nothing
)

// newWay listens in ns and passes connections on to what dial reaches.
func newWay(ns *netns.NS, dial func(ctx context.Context) (net.Conn, error)) (*way, error) {
	w := &way{ns: ns, addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, dial: dial, conns: map[net.Conn]bool{}}
	return w, w.listen()
}

func (w *way) listen() error {
	err := w.ns.Do(func() (err error) {
		w.listener, err = net.ListenTCP("tcp", w.addr)
		return err
	})
	if err != nil {
		return err
	}
	w.addr = w.listener.Addr().(*net.TCPAddr) // the same port each time
	l := w.listener
	w.done.Go(func() { w.accept(l) })
	return nil
}

func (w *way) close() error {
	err := w.set(refused)
	w.done.Wait()
	return err
}

// set changes what becomes of connections. Those that exist are cut, except
// that a black hole keeps them.
func (w *way) set(m wayMode) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode = m
	if m == blackholed {
		return nil
	}
	for c := range w.conns {
		c.Close()
	}
	switch {
	case m == refused && w.listener != nil:
		err := w.listener.Close()
		w.listener = nil
		return err
	case m == open && w.listener == nil:
		return w.listen()
	}
	return nil
}

// slow has everything that is sent, in each direction, arrive half of rtt later.
func (w *way) slow(rtt time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = rtt / 2
}

func (w *way) state() (wayMode, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mode, w.delay
}

func (w *way) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		w.done.Go(func() { w.serve(c) })
	}
}

func (w *way) serve(client net.Conn) {
	server, err := w.dial(context.Background())
	if err != nil {
		client.Close()
		return
	}
	w.mu.Lock()
	w.conns[client], w.conns[server] = true, true
	cut := w.mode == refused
	w.mu.Unlock()
	if cut {
		client.Close()
		server.Close()
	}
	var both sync.WaitGroup
	both.Go(func() { w.pass(client, server) })
	both.Go(func() { w.pass(server, client) })
	both.Wait()
	w.mu.Lock()
	delete(w.conns, client)
	delete(w.conns, server)
	w.mu.Unlock()
}

// parcel is something sent, to arrive at its time.
type parcel struct {
	data []byte
	due  time.Time
}

// pass carries bytes from one side to the other until either is closed.
func (w *way) pass(from, to net.Conn) {
	parcels := make(chan parcel, 256)
	var sender sync.WaitGroup
	sender.Go(func() {
		defer to.Close()
		for p := range parcels {
			if onTheWay := time.Until(p.due); onTheWay > 0 {
				<-time.After(onTheWay)
			}
			if _, err := to.Write(p.data); err != nil && !errors.Is(err, io.EOF) {
				from.Close()
			}
		}
	})
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		mode, delay := w.state()
		if n > 0 && mode != blackholed {
			parcels <- parcel{append([]byte(nil), buffer[:n]...), time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(parcels)
	sender.Wait()
}
