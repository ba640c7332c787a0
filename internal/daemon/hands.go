package daemon

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"braid.dev/braid/internal/wire"
)

// standingHand is a process on the host that runs programs for the daemon. It
// was left behind by a shim, and ends when the daemon lets it go.
type standingHand struct {
	conn *wire.Conn
	// dir is the directory that the shim is in.
	dir string

	// The rest belongs to hands.
	users   int
	retired bool
	unused  *time.Timer
	// end is closed when it is retired and the last user has gone.
	end chan struct{}
}

// hands keeps the standing hand: at most one, and none when nothing is to do.
type hands struct {
	// idle is how long a hand is kept that nobody uses.
	idle time.Duration

	mu   sync.Mutex
	hand *standingHand // nil when there is none
	// ready is closed when a hand comes, nil when nobody wants one.
	ready chan struct{}
	// asked is when a shim was last asked to leave a hand.
	asked time.Time
	// visits are those that were sent for and have not come, by their token.
	visits map[string]chan<- *visit
}

func (s *hands) want() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hand != nil {
		here := make(chan struct{})
		close(here)
		return here
	}
	if s.ready == nil {
		s.ready = make(chan struct{})
	}
	return s.ready
}

// ask reports whether a shim that is about to leave should leave a hand behind.
// Of several that leave at once, one is asked.
func (s *hands) ask(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == nil || now.Sub(s.asked) < handPause {
		return false
	}
	s.asked = now
	return true
}

// take makes h the standing hand, unless there is one or none is wanted.
func (s *hands) take(h *standingHand) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == nil {
		return false
	}
	h.end = make(chan struct{})
	h.unused = time.AfterFunc(s.idle, func() { s.tire(h) })
	s.hand = h
	close(s.ready)
	s.ready = nil
	return true
}

// use is the standing hand for one more user, who calls release.
func (s *hands) use() (*standingHand, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hand == nil {
		return nil, errNoHand
	}
	s.hand.unused.Stop()
	s.hand.users++
	return s.hand, nil
}

func (s *hands) release(h *standingHand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.users--
	switch {
	case h.users > 0:
	case h.retired:
		close(h.end)
	default:
		h.unused.Reset(s.idle)
	}
}

// tire retires a hand that was not used for its time. Somebody may have begun
// to use it just now.
func (s *hands) tire(h *standingHand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.users == 0 {
		s.retireLocked(h)
	}
}

// retire lets nobody begin to use h any more. It is repeated without effect.
func (s *hands) retire(h *standingHand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireLocked(h)
}

func (s *hands) retireLocked(h *standingHand) {
	if h.retired {
		return
	}
	h.retired = true
	h.unused.Stop()
	s.hand = nil
	if h.users == 0 {
		close(h.end)
	}
}

// expect makes a token for a visit. The visit is sent on the channel.
func (s *hands) expect() (token string, arrival <-chan *visit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.visits == nil {
		s.visits = map[string]chan<- *visit{}
	}
	token, c := rand.Text(), make(chan *visit, 1)
	s.visits[token] = c
	return token, c
}

// forget expects the visit no longer. It may be in its channel already.
func (s *hands) forget(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.visits, token)
}

// arrive hands v over to the one who sent for it. It returns false when nobody
// did, or no longer waits.
func (s *hands) arrive(token string, v *visit) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.visits[token]
	if ok {
		delete(s.visits, token)
		c <- v // has room for the only one
	}
	return ok
}

// stand serves the connection of a hand that offers itself, until it is retired
// or goes away by itself.
func (d *Daemon) stand(c *wire.Conn) {
	h := &standingHand{conn: c, dir: c.Request().Path}
	if !d.hands.take(h) {
		_ = c.Reply(wire.Reply{Error: &wire.Error{Code: wire.CodeTryAgainLater, Msg: "no hand is wanted"}}) // it finds out
		return
	}
	defer d.hands.retire(h)
	d.Log.Debug("a hand stands by on the host", "dir", h.dir)
	select {
	case <-h.end:
	case <-c.Context().Done():
	case <-c.Stopping():
		// A shim that is sent for now would find nobody who listens.
		d.hands.retire(h)
		select {
		case <-h.end:
		case <-c.Context().Done():
		}
	}
	if context.Cause(c.Context()) == nil {
		_ = c.Reply(wire.Reply{}) // gone by itself just now
	}
	d.Log.Debug("the hand on the host was let go")
}
