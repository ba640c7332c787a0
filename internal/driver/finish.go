package driver

import (
	"context"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Finisher is a Driver whose Attach leaves something to be done for which
// neither other attachments nor the records have to wait. The network of the
// container is not complete before it is done.
type Finisher interface {
	Driver
	// Finish does it for the Spec of an Attach that returned res. It leaves
	// nothing that Detach does not remove, also on error. When the request is
	// repeated, it is done again, and res is what the whole chain came to, of
	// which other plugins may have changed or removed any part.
	Finish(ctx context.Context, s Spec, res *current.Result) error
}
