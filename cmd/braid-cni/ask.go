package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"braid.dev/braid/internal/wire"
)

// patience is how long the shim stays with a request. The node's daemon is
// restarted by upgrades and crashes, which must not fail a pod; a runtime whose
// plugin takes too long, on the other hand, kills it.
type patience struct {
	// total is for the whole request, however it goes.
	total time.Duration
	// connect is for a daemon that does not listen, from the start or from
	// the moment that the connection to it was lost. 0 means one attempt.
	connect time.Duration
	// resend is how long after the start a lost request is sent again. The
	// daemon recognises an ADD that an earlier process began.
	resend time.Duration
}

const (
	defaultTimeout = 120 * time.Second
	maxTimeout     = time.Hour
	// statusTimeout is below the five seconds after which kubelet asks again:
	// there are never two of them.
	statusTimeout = 4 * time.Second
	// delConnect is how long a DEL waits for a daemon before it leaves a note:
	// long enough for a restart, and no pod's end takes much longer for it.
	delConnect = 10 * time.Second
)

// patienceFor decides how long r may take.
func patienceFor(r request) patience {
	total := defaultTimeout
	if r.conf.Timeout > 0 {
		total = time.Duration(r.conf.Timeout) * time.Second
	}
	switch r.Command {
	case "STATUS":
		// Not being there is an answer to STATUS.
		return patience{total: min(total, statusTimeout)}
	case "REACH":
		return patience{total: total} // the daemon that wants it is there
	case "ADD":
		// Whoever fails is set up anew from the beginning: waiting is less work.
		return patience{total: total, connect: total, resend: total}
	case "DEL":
		// What is left of the time is for the note.
		return patience{total: total, connect: min(delConnect, total/2), resend: min(60*time.Second, total/2)}
	default:
		return patience{total: total, connect: 20 * time.Second, resend: 60 * time.Second}
	}
}

// reserve is the part of the total that the daemon does not get, so that it
// can roll back with the shim's help what was not ready in time.
func reserve(left time.Duration) time.Duration { return min(left/4, 15*time.Second) }

// errTimeout is the cause of a request that ran out of its total.
var errTimeout = errors.New("timed out")

// ask puts the request to the daemon until it is answered or patience ends,
// which is a *givenUp. The caller's ctx ends with the total of patience.
func ask(ctx context.Context, call wire.Call, p patience) (wire.Reply, error) {
	start := time.Now()
	silent := start // since when no daemon has listened
	pause := backoff{}
	for attempt := 1; ; attempt++ {
		left := p.total - time.Since(start)
		call.Request.Timeout = left - reserve(left)
		reply, err := wire.Do(ctx, call)
		if err == nil {
			return reply, nil
		}
		again := false
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, wire.ErrUnreachable):
			again = time.Since(silent) < p.connect
		case errors.Is(err, wire.ErrLost):
			again = time.Since(start) < p.resend
			silent, pause = time.Now(), backoff{}
		}
		if !again || !pause.wait(ctx) {
			return wire.Reply{}, &givenUp{call.Request.Command, call.Socket, err, attempt, time.Since(start)}
		}
	}
}

// backoff waits between two attempts, longer each time up to half a second.
// It is for what the kernel has no event for, such as somebody beginning to
// listen on a socket that exists.
type backoff struct{ last time.Duration }

// wait returns false when ctx ended.
func (b *backoff) wait(ctx context.Context) bool {
	b.last = min(max(2*b.last, 5*time.Millisecond), 500*time.Millisecond)
	timer := time.NewTimer(b.last)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// givenUp is a request that nobody answered.
type givenUp struct {
	command, socket string
	// err is that of the last attempt.
	err      error
	attempts int
	took     time.Duration
}

// Error says what was tried and on what.
func (g *givenUp) Error() string {
	return fmt.Sprintf("%s asked %d time(s) in %v on %s: %v", g.command, g.attempts, g.took.Round(10*time.Millisecond), g.socket, g.err)
}

// Unwrap returns the error of the last attempt.
func (g *givenUp) Unwrap() error { return g.err }

// failure is the error result for the runtime, with what to do. Code 11 has the
// runtime try again later.
func failure(err error) *wire.Error {
	const look = "; look at the braidd pod of this node"
	tried := err.Error()
	e := &wire.Error{Code: wire.CodeTryAgainLater}
	switch {
	case errors.Is(err, wire.ErrTooLarge):
		return &wire.Error{Code: wire.CodeInvalidConfig, Msg: "the request is too large", Details: tried}
	case errors.Is(err, wire.ErrPeer):
		return &wire.Error{Code: wire.CodeIO, Msg: "the process that listens is not root's, nothing was sent to it", Details: tried}
	case errors.Is(err, wire.ErrUnreachable):
		e.Msg, e.Details = "braidd does not answer on this node", tried+look
	case errors.Is(err, wire.ErrLost):
		e.Msg, e.Details = "braidd went away in the middle of the request", tried+look
	case errors.Is(err, errTimeout):
		e.Msg, e.Details = "braidd did not finish in time", tried+look
	default:
		e.Msg, e.Details = "the request was given up", tried
	}
	var g *givenUp
	if errors.As(err, &g) && g.command == "STATUS" {
		e.Code = wire.CodeNotAvailable
	}
	return e
}
