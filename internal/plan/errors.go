package plan

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// ErrSelf is in the chain of the error for a configuration that would make
// Braid call itself.
var ErrSelf = errors.New("a network cannot be Braid itself")

// Error says why a pod cannot be planned.
//
// Two of its codes matter to who reads it. ErrInvalidNetworkConfig (7) means
// that somebody has to change a manifest. ErrTryAgainLater (11) means that the
// same request succeeds once something else exists, a definition that is
// applied together with its pod for example. The kubelet tries again after
// either.
type Error struct {
	// Code is the code for the runtime (CNI specification 1.1, section
	// "Error").
	Code uint
	// Network is the network at fault, as in Attachment.Network, or empty when
	// the request as a whole is.
	Network string
	Err     error
}

// Error names the network, if there is one, and says what is wrong with it.
func (e *Error) Error() string {
	if e.Network == "" {
		return e.Err.Error()
	}
	return "network " + e.Network + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// As lets errors.As turn an Error into the CNI library's error, with the code
// and the complete message.
func (e *Error) As(target any) bool {
	t, ok := target.(**types.Error)
	if ok {
		*t = types.NewError(e.Code, e.Error(), "")
	}
	return ok
}

// invalid is an Error with the code for an invalid configuration.
func invalid(format string, args ...any) *Error {
	return &Error{Code: types.ErrInvalidNetworkConfig, Err: fmt.Errorf(format, args...)}
}

// later is an Error with the code for trying again.
func later(format string, args ...any) *Error {
	return &Error{Code: types.ErrTryAgainLater, Err: fmt.Errorf(format, args...)}
}

// about returns err as an Error about a network, with the code it has or else
// the one for an invalid configuration.
func about(network string, err error) *Error {
	out := &Error{Code: types.ErrInvalidNetworkConfig, Network: network, Err: err}
	var inner *Error
	if errors.As(err, &inner) {
		out.Code = inner.Code
	}
	return out
}
