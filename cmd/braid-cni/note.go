package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"syscall"

	"braid.dev/braid/internal/wire"
)

// absent reports whether a request was given up because no daemon was there.
func absent(err error) bool {
	return errors.Is(err, wire.ErrUnreachable) || errors.Is(err, wire.ErrLost)
}

// leaveNote has a DEL done by the next daemon, and the runtime go on: a pod must
// be able to end while the daemon is away. gaveUp says how it was asked. When no
// note can be left, the runtime is told to come again.
func leaveNote(ctx context.Context, dir string, call wire.Call, gaveUp error) (wire.Reply, *wire.Error) {
	noted := call.Request
	noted.Stdin = withoutAnnotations(noted.Stdin)
	note, err := wire.WriteNote(dir, noted, call.NetNS)
	if err != nil {
		return wire.Reply{}, unwritten(dir, gaveUp, err)
	}
	// A daemon that came up since the last attempt may have looked for notes
	// before this one was there.
	reply, err := wire.Do(ctx, call)
	if err != nil {
		return wire.Reply{}, nil
	}
	if reply.Error == nil {
		// A note that stays is of a container that is gone: it does no harm.
		_ = wire.RemoveNote(dir, note.File)
	}
	return reply, reply.Error
}

// withoutAnnotations leaves the pod's annotations out of a configuration. DEL
// has no use for them, and whoever writes them could use up the notes' room.
func withoutAnnotations(conf []byte) []byte {
	var keys, runtimeConfig map[string]json.RawMessage
	if json.Unmarshal(conf, &keys) != nil || json.Unmarshal(keys["runtimeConfig"], &runtimeConfig) != nil {
		return conf
	}
	const annotations = "io.kubernetes.cri.pod-annotations"
	if _, ok := runtimeConfig[annotations]; !ok {
		return conf
	}
	delete(runtimeConfig, annotations)
	var err error
	if keys["runtimeConfig"], err = json.Marshal(runtimeConfig); err != nil {
		return conf
	}
	shorter, err := json.Marshal(keys)
	if err != nil {
		return conf
	}
	return shorter
}

// unwritten is the error of a DEL that nobody will do unless it is repeated.
func unwritten(dir string, gaveUp, err error) *wire.Error {
	e := failure(gaveUp)
	e.Msg += ", and no note of the DEL could be left for it"
	e.Details += "; leave a note in " + dir + ": " + err.Error()
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Details += ": make room on that disk"
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		e.Details += ": make it writable for root"
	}
	return e
}
