// Package probe is the test application of a migration: it tells clients what
// it sees of them, asks others from inside the pods' network namespaces, and
// counts what a load of requests gets.
package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Port is where probes' pods listen.
const Port = 8080

// padHeader is a request's header that the answer repeats. Asking with a value
// longer than the packets of any pod shows that full packets pass both ways.
const padHeader = "Braid-Pad"

// DefaultGrace is how long a server goes on that is told to end. It is enough
// for its address to leave every node's services.
const DefaultGrace = 10 * time.Second

// headerTimeout is how long a client may take to say what it wants, and
// endTimeout bounds the wait for requests that were begun before the end:
// those of clients that are gone are over by then.
const (
	headerTimeout = 5 * time.Second
	endTimeout    = headerTimeout + 2*time.Second
)

// A Server tells each client what it sees of it. GET / answers in text, with
// "Accept: application/json" and at /json in JSON (see Answer). /ready answers
// 200, and 503 from the moment on that the server is told to end.
type Server struct {
	// Pod and Node are told to clients as they are.
	Pod, Node string
	// Grace is how long the server goes on answering after it was told to end.
	Grace time.Duration

	ending atomic.Bool
}

// Serve answers on l until ctx is done and the grace is over, and then until
// the last request is answered. It closes l, and is called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var open sync.WaitGroup
	h := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: 32 << 10,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Done()
			}
		},
	}
	defer h.Close()
	// A connection that is kept would go on to this pod when its service has
	// others, and would tell nothing of new ones.
	h.SetKeepAlivesEnabled(false)
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve probes on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.ending.Store(true)
	select {
	case err := <-served:
		return fmt.Errorf("serve probes on %s: %w", l.Addr(), err)
	case <-time.After(s.Grace):
	}
	// Not Shutdown: it drops requests that it is just reading.
	l.Close()
	<-served // as its listener is closed; no connection comes any more
	over := make(chan struct{})
	go func() { open.Wait(); close(over) }()
	select {
	case <-over:
		return nil
	case <-time.After(endTimeout):
		return fmt.Errorf("end serving probes on %s: a request was not over after %s", l.Addr(), endTimeout)
	}
}

// Handler is the application itself, for those who have a server.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.answer)
	mux.HandleFunc("GET /json", s.answer)
	mux.HandleFunc("GET /ready", s.ready)
	return mux
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if s.ending.Load() {
		http.Error(w, "ending", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	a := Answer{Host: hostname(r.Host), Pod: s.Pod, Node: s.Node, Addresses: ownAddresses()}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		a.Client = from.Addr().Unmap().WithZone("")
	}
	if pad := r.Header.Get(padHeader); pad != "" {
		w.Header().Set(padHeader, pad)
	}
	// What the client sent is repeated: no browser shall take it for a page.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == "/json" || strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(a) // a client that is gone needs no answer
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, a)
}

// hostname is a Host header without its port.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}

// ownAddresses are those that others could reach the server by.
func ownAddresses() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // a client learns less then, and is answered all the same
	}
	var out []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}
