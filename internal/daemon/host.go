package daemon

import (
	"context"
	"errors"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/exec"
	"braid.dev/braid/internal/wire"
)

// hand is the shim of one request as the hand on the host.
type hand struct{ conn *wire.Conn }

// Exec runs the program where the runtime would have run it.
func (h hand) Exec(ctx context.Context, p driver.Program) ([]byte, error) {
	r, err := h.conn.Exec(ctx, wire.Exec{Name: p.Name, Dirs: p.Dirs, Args: p.Args, Env: p.Env, Stdin: p.Stdin})
	var failed *wire.ExecError
	switch {
	case err == nil && r.ExitCode != 0:
		return r.Stdout, &driver.ExitError{Program: p.Name, Code: r.ExitCode, Stdout: r.Stdout, Stderr: r.Stderr}
	case errors.As(err, &failed) && neverRan(failed.Failure):
		return nil, &exec.NotRunError{Err: err, Temporary: failed.Failure == wire.NotStarted}
	case errors.Is(err, wire.ErrLost):
		return nil, &exec.LostError{Err: err}
	default:
		return r.Stdout, err
	}
}

func neverRan(f wire.Failure) bool {
	switch f {
	case wire.NotFound, wire.NotExecutable, wire.BadFormat, wire.NotStarted:
		return true
	}
	return false
}
