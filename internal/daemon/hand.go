package daemon

import (
	"context"
	"errors"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/store"
)

// errNoHand means that nobody is there who could do something on the host. It
// goes away when the next shim comes by, see wantHand.
var errNoHand = errors.New("no shim has come by yet that could leave a hand on the host")

// wantHand has the next shim that visits leave a standing hand behind: a
// process on the host that runs programs for the daemon when no request of the
// runtime is there to do it. The channel is closed once there is one. It may be
// gone again when it is used (errNoHand), and is then wanted anew.
func (d *Daemon) wantHand() <-chan struct{} { return make(chan struct{}) }

// standingHost is the standing hand, for programs that need no namespace. The
// caller calls done when it is through with it, as a hand that nobody uses is
// sent away. Without a hand it returns errNoHand.
func (d *Daemon) standingHost() (host driver.Host, done func(), err error) {
	return nil, nil, errNoHand
}

// reachSandbox gets at a sandbox when no request of the runtime does. NS is nil
// when the namespace is gone or is another one by now. The caller holds the
// container's turn in d.queue, and calls done before it leaves it. Without a
// hand it returns errNoHand, and a later call may succeed.
func (d *Daemon) reachSandbox(ctx context.Context, sb store.Sandbox) (reach attach.Reach, done func(), err error) {
	return attach.Reach{}, nil, errNoHand
}

// lookAt finds out, with one program on the host, which of the paths are
// namespaces and which. A path without one is not in the answer. Without a hand
// it returns errNoHand.
func (d *Daemon) lookAt(ctx context.Context, paths []string) (map[string]netns.ID, error) {
	return nil, errNoHand
}
