package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/wire"
)

// replyWith is the answer to a request: a result, nothing, or an error.
func replyWith(stdout []byte, err error) wire.Reply {
	if err == nil {
		return wire.Reply{Stdout: stdout}
	}
	return wire.Reply{Error: &wire.Error{Code: codeOf(err), Msg: err.Error()}}
}

// codeIn is the code of the error that a reply is, 0 for none.
func codeIn(r wire.Reply) uint {
	if r.Error == nil {
		return 0
	}
	return r.Error.Code
}

// codeOf is the CNI error code of an error: the one that somebody in its chain
// decided on; or, when time or the disk ran out, the one that has the runtime try
// again.
func codeOf(err error) uint {
	var coded *types.Error
	switch {
	case errors.As(err, &coded) && coded.Code != types.ErrUnknown:
		return coded.Code
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, wire.ErrLost),
		errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS):
		return types.ErrTryAgainLater
	default:
		return types.ErrInternal
	}
}

// tryLater is an error that goes away by itself.
func tryLater(err error) error { return &codedError{types.ErrTryAgainLater, err} }

// codedError gives an error the code that the runtime sees, and keeps its
// message and chain.
type codedError struct {
	code uint
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// As makes the code visible to errors.As.
func (e *codedError) As(target any) bool {
	t, ok := target.(**types.Error)
	if ok {
		*t = types.NewError(e.code, e.err.Error(), "")
	}
	return ok
}

// encodeResult is the result in the version of the request.
func encodeResult(r *current.Result, version string) ([]byte, error) {
	asked, err := r.GetAsVersion(version)
	if err != nil {
		return nil, &codedError{types.ErrIncompatibleCNIVersion, fmt.Errorf("convert the result to cniVersion %s: %w", version, err)}
	}
	var b bytes.Buffer
	if err := asked.PrintTo(&b); err != nil {
		return nil, fmt.Errorf("encode the result: %w", err)
	}
	return b.Bytes(), nil
}

// resultOf reads a prevResult of any version, nil when it is none.
func resultOf(raw json.RawMessage, decode func([]byte) (types.Result, error)) *current.Result {
	if len(raw) == 0 {
		return nil
	}
	r, err := decode(raw)
	if err != nil {
		return nil
	}
	latest, err := current.NewResultFromResult(r)
	if err != nil {
		return nil
	}
	return latest
}
