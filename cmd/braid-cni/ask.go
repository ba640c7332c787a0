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
	statusTimeout  = 10 * time.Second
)

// patienceFor decides how long r may take.
func patienceFor(r request) patience {
	p := patience{total: defaultTimeout, connect: 20 * time.Second, resend: 60 * time.Second}
	if r.conf.Timeout > 0 {
		p.total = time.Duration(r.conf.Timeout) * time.Second
	}
	if r.Command == "STATUS" {
		// Not being there is an answer to STATUS.
		p = patience{total: min(p.total, statusTimeout)}
	}
	return p
}

// reserve is the part of the total that the daemon does not get, so that it
// can roll back with the shim's help what was not ready in time.
func reserve(left time.Duration) time.Duration { return min(left/4, 15*time.Second) }

// errTimeout is the cause of a request that ran out of its total.
var errTimeout = errors.New("timed out")

// ask puts the request to the daemon until it is answered or patience ends.
func ask(ctx context.Context, call wire.Call, p patience) (wire.Reply, *wire.Error) {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, p.total, errTimeout)
	defer cancel()

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
			return wire.Reply{}, gaveUp(call, err, attempt, time.Since(start))
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

// gaveUp says what was tried, on what, and what to do. Code 11 has the runtime
// try again later.
func gaveUp(call wire.Call, err error, attempts int, took time.Duration) *wire.Error {
	command := call.Request.Command
	tried := fmt.Sprintf("%s asked %d time(s) in %v on %s: %v", command, attempts, took.Round(10*time.Millisecond), call.Socket, err)
	const look = "; look at the braidd pod of this node"
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
	if command == "STATUS" {
		e.Code = wire.CodeNotAvailable
	}
	return e
}
