package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/wire"
)

// statusCommand asks a running daemon whether it is ready, as a probe does.
func statusCommand() *cobra.Command {
	var f flags
	var live bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "Ask the daemon of this node whether it can serve pods; exit 0 means yes",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			err := askStatus(ctx, f.socket())
			var answer *wire.Error
			if live && errors.As(err, &answer) {
				err = nil // it answers: that is all that was asked
			}
			return err
		},
	}
	c.Flags().StringVar(&f.runDir, "run-dir", "/run/braid", "`directory` of the socket")
	c.Flags().BoolVar(&live, "live", false, "succeed as soon as the daemon answers at all")
	c.Flags().DurationVar(&timeout, "timeout", 4*time.Second, "how long to wait for the answer")
	return c
}

func askStatus(ctx context.Context, socket string) error {
	reply, err := wire.Do(ctx, wire.Call{
		Socket: socket,
		// A probe runs in the daemon's container, where the host's plugins are
		// not. What the default network's own programs say is for the runtime
		// to ask, through the shim.
		Request: wire.Request{Command: "STATUS", Stdin: []byte(`{"cniVersion":"1.1.0","name":"braid","type":"braid-cni"}`), NoStay: true},
		Run: func(context.Context, wire.Exec) wire.ExecResult {
			return wire.ExecResult{Failure: wire.NotFound, Detail: "a probe runs nothing"}
		},
	})
	if err != nil {
		return fmt.Errorf("ask braidd on %s: %w", socket, err)
	}
	if reply.Error != nil {
		return reply.Error
	}
	return nil
}
