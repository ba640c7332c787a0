package plan

import "errors"

// Plan is what one pod will get: its default network first, then the networks
// it asked for, in the order it asked for them.
type Plan struct {
	Pod         Pod          `json:"pod"`
	Attachments []Attachment `json:"attachments"`
}

// Error says why a pod cannot be planned, with a code of the CNI specification.
type Error struct {
	// Code is the CNI error code (CNI specification 1.1, section "Error").
	Code uint
	// Network is the network concerned as namespace/name, or empty when the
	// request as a whole is at fault.
	Network string
	Err     error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Build decides what in.Pod gets. Errors are of type *Error.
func Build(in Input) (Plan, error) { return Plan{}, errors.New("not written yet") }

// ParseNetwork reads a CNI configuration or configuration list.
func ParseNetwork(data []byte, name string) (Network, error) {
	return Network{}, errors.New("not written yet")
}
