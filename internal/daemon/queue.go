package daemon

import (
	"context"
	"sync"
)

// queue serves the requests of each container one at a time, in the order in
// which they came. A DEL can so never overtake the ADD that it is to undo.
type queue struct {
	mu sync.Mutex
	// waiting holds, for every container with a request under way, those that
	// wait behind it.
	waiting map[string][]chan struct{}
}

// enter waits for the caller's turn, or for ctx. The caller calls leave when
// it is done.
func (q *queue) enter(ctx context.Context, id string) (leave func(), err error) {
	q.mu.Lock()
	if q.waiting == nil {
		q.waiting = map[string][]chan struct{}{}
	}
	line, busy := q.waiting[id]
	if !busy {
		q.waiting[id] = nil
		q.mu.Unlock()
		return func() { q.next(id) }, nil
	}
	turn := make(chan struct{})
	q.waiting[id] = append(line, turn)
	q.mu.Unlock()
	select {
	case <-turn:
		return func() { q.next(id) }, nil
	case <-ctx.Done():
		q.abandon(id, turn)
		return nil, context.Cause(ctx)
	}
}

// next lets the first in line go on.
func (q *queue) next(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	line := q.waiting[id]
	if len(line) == 0 {
		delete(q.waiting, id)
		return
	}
	close(line[0])
	q.waiting[id] = line[1:]
}

// abandon leaves the line, or passes the turn on when it came just now.
func (q *queue) abandon(id string, turn chan struct{}) {
	q.mu.Lock()
	line := q.waiting[id]
	for i, t := range line {
		if t == turn {
			q.waiting[id] = append(line[:i:i], line[i+1:]...)
			q.mu.Unlock()
			return
		}
	}
	q.mu.Unlock()
	q.next(id)
}

// busy reports whether a container has a request under way.
func (q *queue) busy(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.waiting[id]
	return ok
}

// waited reports whether a request waits for the container's turn.
func (q *queue) waited(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting[id]) > 0
}

// lane bounds how many requests work at once.
type lane chan struct{}

func (l lane) enter(ctx context.Context) (leave func(), err error) {
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// recent remembers the sandboxes that were taken down last. Runtimes repeat
// DEL; what Braid has just removed is not unknown to it.
type recent struct {
	mu    sync.Mutex
	order []string
	next  int
	known map[string]bool
}

// recentSize is well above the containers of a node, in bytes about 1 MB.
const recentSize = 4096

func (r *recent) add(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]bool{}
	}
	if r.known[key] {
		return
	}
	if len(r.order) < recentSize {
		r.order = append(r.order, key)
	} else {
		delete(r.known, r.order[r.next])
		r.order[r.next] = key
		r.next = (r.next + 1) % recentSize
	}
	r.known[key] = true
}

func (r *recent) has(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[key]
}

// forget keeps the key's place in the order, where it is harmless.
func (r *recent) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[key] {
		r.known[key] = false
	}
}

// bell wakes one who waits. Rung while nobody waits, it wakes the next.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) poke() {
	select {
	case b <- struct{}{}:
	default:
	}
}
