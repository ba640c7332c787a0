package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Progress writes what is being done, one line each, with the seconds since it
// began. Its methods may be called from several goroutines, and on nil, which
// writes nothing.
type Progress struct {
	start time.Time
	now   func() time.Time
	mu    sync.Mutex
	w     io.Writer
}

// NewProgress returns a Progress that writes to w and counts from now on.
func NewProgress(w io.Writer) *Progress {
	return &Progress{start: time.Now(), now: time.Now, w: w}
}

// Printf writes one line.
func (p *Progress) Printf(format string, args ...any) {
	if p == nil || p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "%6.1fs  %s\n", p.now().Sub(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// quiet is how long a step may go on before a line says that it still does.
const quiet = 15 * time.Second

// Step says that a long step begins, says so again while it lasts, and returns
// the function that says it is done.
func (p *Progress) Step(what string) (done func()) {
	begin := time.Now()
	p.Printf("%s", what)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(quiet)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				p.Printf("%s: %.0f s so far", what, time.Since(begin).Seconds())
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-stopped
		p.Printf("%s: done in %.1f s", what, time.Since(begin).Seconds())
	})
}

// Wait describes something that is waited for.
type Wait struct {
	// What completes the sentence "waiting for …".
	What string
	// Limit is how long the wait may last, Every how long to pause between two
	// looks; zero means 100 ms.
	Limit, Every time.Duration
}

// errGiveUp marks an error of a check that no waiting will cure.
var errGiveUp = errors.New("giving up")

// Wait calls check until it returns nil, an error that wraps errGiveUp, or the
// limit is over; the error then says what was waited for and what check said
// last. It polls, because what it is used for (programs in other processes and
// kernels getting ready) offers no event to wait for.
func (p *Progress) Wait(ctx context.Context, w Wait, check func(context.Context) error) error {
	if w.Every == 0 {
		w.Every = 100 * time.Millisecond
	}
	bounded, cancel := context.WithTimeout(ctx, w.Limit)
	defer cancel()
	begin, said := time.Now(), time.Now()
	var last error
	for {
		err := check(bounded)
		if err == nil {
			return nil
		}
		// A check that the limit itself interrupted has nothing to tell.
		if last == nil || bounded.Err() == nil {
			last = err
		}
		if errors.Is(err, errGiveUp) {
			return fmt.Errorf("while waiting for %s: %w", w.What, err)
		}
		if time.Since(said) >= quiet/3 {
			said = time.Now()
			p.Printf("waiting for %s (%.0f of at most %.0f s): %v", w.What, time.Since(begin).Seconds(), w.Limit.Seconds(), oneLine(err))
		}
		select {
		case <-bounded.Done():
			if ctx.Err() != nil {
				return fmt.Errorf("while waiting for %s: %w", w.What, context.Cause(ctx))
			}
			return fmt.Errorf("waited %.0f s for %s: %w", w.Limit.Seconds(), w.What, last)
		case <-time.After(w.Every):
		}
	}
}

// oneLine shortens an error to what fits on a line of progress.
func oneLine(err error) string {
	text := []rune(strings.Join(strings.Fields(err.Error()), " "))
	if len(text) > 160 {
		return string(text[:159]) + "…"
	}
	return string(text)
}
