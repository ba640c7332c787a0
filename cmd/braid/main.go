// Command braid is what a person uses of Braid: it shows what pods will get and
// why, looks after a cluster, and runs labs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	// The first interrupt asks for an orderly end; a second one, after the
	// handler is gone, ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := root().ExecuteContext(ctx)
	stop()
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "braid:", err)
		os.Exit(1)
	}
}

// An exitCode ends braid with that code and without a message, because a
// program that braid ran has said everything.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// root lists the verbs; each has a file of its own.
func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "braid",
		Short:         "More than one network interface for Kubernetes pods",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(confCommand(), planCommand(), migrateCommand(), labCommand(), imageCommand())
	return cmd
}
