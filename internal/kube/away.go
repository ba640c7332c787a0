package kube

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// ErrAway says that the API could not be asked: no connection, no answer in
// time, or an answer that says only to come back. It says nothing about what
// was asked for.
var ErrAway = errors.New("the API server cannot be asked now")

const (
	// patience is how long a question may take as long as nothing is known to
	// be wrong: enough for a connection over a slow line, and short against a
	// runtime's own limit.
	patience = 5 * time.Second
	// awayPatience is how long a question may take when the last one found
	// nobody.
	awayPatience = 500 * time.Millisecond
)

// reach is what the last request found of the API server. Everybody who asks
// tells it, so that an outage costs one request its patience and not each.
type reach struct {
	mu sync.Mutex
	// probe is when a request has the whole patience again, zero while nothing
	// is wrong: an API server may be only slow.
	probe time.Time
}

// away reports whether the last request found nobody.
func (r *reach) away() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.probe.IsZero()
}

// note takes the outcome of a request.
func (r *reach) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probe = time.Time{}
	if isAway(err) {
		r.probe = time.Now().Add(patience)
	}
}

// limit is how long the next request may take. While the API server is away one
// request at a time tries in earnest.
func (r *reach) limit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch now := time.Now(); {
	case r.probe.IsZero():
		return patience
	case now.Before(r.probe):
		return awayPatience
	default:
		r.probe = now.Add(patience)
		return patience
	}
}

// ask makes one request within the patience that the API server deserves now,
// and marks its error with ErrAway if it says nothing about what was asked.
func (r *reach) ask(ctx context.Context, request func(context.Context) error) error {
	limit := r.limit()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := request(limited)
	if err != nil && ctx.Err() != nil {
		return err // the asker's end, which tells nothing of the API server
	}
	if limit == patience || !isAway(err) {
		r.note(err) // a short try that found nobody tells nothing new
	}
	if isAway(err) {
		return &awayError{err}
	}
	return err
}

// awayError is an error that ErrAway holds for.
type awayError struct{ err error }

func (e *awayError) Error() string { return e.err.Error() }
func (e *awayError) Unwrap() error { return e.err }

// Is makes it an ErrAway.
func (e *awayError) Is(target error) bool { return target == ErrAway }

// isAway reports whether a request came to no answer. Every 4xx is an answer,
// but for the one of an API server that cannot check tokens yet, and the one
// that is too busy.
func isAway(err error) bool {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return false
	case !errors.As(err, &status):
		return true
	case apierrors.IsUnauthorized(err), apierrors.IsTooManyRequests(err):
		return true
	}
	return status.Status().Code >= 500
}
