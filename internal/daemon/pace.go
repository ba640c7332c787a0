package daemon

import (
	"sync"
	"time"
)

// releaseFirst and releaseLast bound the pause before something is tried again
// that could not be cleaned up.
const releaseFirst, releaseLast = 30 * time.Second, 8 * time.Minute

// pace decides when something that failed is tried again.
type pace struct {
	mu    sync.Mutex
	tries map[string]attempt
	told  map[string]bool
}

type attempt struct {
	times int
	next  time.Time
}

func (p *pace) due(name string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !now.Before(p.tries[name].next)
}

// failed returns how often it has failed by now.
func (p *pace) failed(name string, now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tries == nil {
		p.tries = map[string]attempt{}
	}
	a := p.tries[name]
	pause := min(releaseFirst<<min(a.times, 10), releaseLast)
	a = attempt{a.times + 1, now.Add(pause)}
	p.tries[name] = a
	return a.times
}

func (p *pace) done(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tries, name)
}

// first reports whether this is the first time that something is told of.
func (p *pace) first(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told == nil {
		p.told = map[string]bool{}
	}
	if p.told[what] {
		return false
	}
	p.told[what] = true
	return true
}

// forget drops what has not been tried for long: somebody else has seen to it.
func (p *pace) forget(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, a := range p.tries {
		if now.Sub(a.next) > time.Hour {
			delete(p.tries, name)
		}
	}
}
