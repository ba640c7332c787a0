package driver

import (
	"context"
	"errors"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Foreteller is a Driver that knows what Attach will come to before it makes
// anything. To tell the cluster what a pod gets takes as long as to make it;
// what is foretold is told meanwhile.
type Foreteller interface {
	Driver
	// Foretell returns what Attach will return for the same Spec, as far as a
	// pod is told of it: the interfaces that it gets, with their addresses,
	// routes and DNS. It changes nothing, but asks Spec.IPAM for addresses. An
	// error says that it is not known this time, and is no reason not to Attach;
	// neither is a result that turns out to be another.
	Foretell(ctx context.Context, s Spec) (*current.Result, error)
}

// Detached is an IPAM that does not look at the container, as those of package
// ipam do not. It may be asked for addresses before there is a link for them.
type Detached interface {
	IPAM
	Detached()
}

// ErrUnforeseen means that only Attach finds out.
var ErrUnforeseen = errors.New("it is not known before it is made")

// ForetellPrev is Foretell of a driver that works on what a plugin before it in
// the chain made, and returns the result of that one as it got it.
func ForetellPrev(s Spec) (*current.Result, error) {
	if s.Prev == nil {
		return nil, ErrUnforeseen
	}
	return s.Prev, nil
}
