package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// way is how a host's braidd reaches the API server: through a listener in the
// host's namespace, so that a test can close it for this host alone.
type way struct {
	dial     func(ctx context.Context) (net.Conn, error)
	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex
	mode  wayMode
	delay time.Duration
	conns map[net.Conn]bool
}

type wayMode int

const (
	open       wayMode = iota
	refused            // whoever connects is sent away at once
	blackholed         // whoever connects, or is connected, hears nothing
)

// newWay begins to pass connections of l on to what dial reaches.
func newWay(l net.Listener, dial func(ctx context.Context) (net.Conn, error)) *way {
	w := &way{dial: dial, listener: l, conns: map[net.Conn]bool{}}
	w.done.Go(w.accept)
	return w
}

func (w *way) close() {
	w.listener.Close()
	w.set(refused)
	w.done.Wait()
}

// set changes what becomes of connections. Those that exist are cut, except
// that a black hole keeps them.
func (w *way) set(m wayMode) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode = m
	if m == blackholed {
		return
	}
	for c := range w.conns {
		c.Close()
	}
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

func (w *way) accept() {
	for {
		c, err := w.listener.Accept()
		if err != nil {
			return // closed
		}
		if m, _ := w.state(); m == refused {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
			continue
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
			<-time.After(time.Until(p.due)) // the time on the way
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
