package driver

import (
	"context"
	"sync"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Detached is an IPAM that does not look at the container, as those of package
// ipam do not. It may be asked for addresses before there is a link for them.
type Detached interface {
	IPAM
	Detached()
}

// Asked is what the delegate says to being asked for addresses, perhaps not
// said yet.
type Asked struct {
	add  func() (*current.Result, error)
	done chan struct{} // nil when it is asked by Result
}

// AskAhead asks the delegate for addresses while the caller makes the links,
// when it is one that needs none of them. Any other is asked when the result is.
// The caller calls Wait before it returns.
func (s Spec) AskAhead(ctx context.Context) *Asked {
	a := &Asked{add: sync.OnceValues(func() (*current.Result, error) { return s.IPAM.Add(ctx) })}
	if _, ok := s.IPAM.(Detached); !ok {
		return a
	}
	a.done = make(chan struct{})
	go func() {
		defer close(a.done)
		defer func() { _ = recover() }() // Result panics with it again, where it is caught
		_, _ = a.add()
	}()
	return a
}

// Result waits for the answer.
func (a *Asked) Result() (*current.Result, error) {
	a.Wait()
	return a.add()
}

// Wait returns once the delegate is no longer being asked.
func (a *Asked) Wait() {
	if a.done != nil {
		<-a.done
	}
}
