package main

import (
	"context"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/lab"
)

// labNode is `braid lab node`: what befalls machines.
func labNode(name *string) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Have something happen to a node"}
	cmd.AddCommand(&cobra.Command{
		Use:   "reboot NODE",
		Short: "Restart a node, and return when it is Ready again",
		Long: `The node's kernel, or with --node-kernel=host its namespaces, and with them all
processes and links end. It comes back with what is on its disk, starts what it
has been running, and is Ready again when this returns.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withLab(cmd, *name, func(ctx context.Context, l *lab.Lab) error { return l.RebootNode(ctx, args[0]) })
		},
	})
	return cmd
}

// labAPI is `braid lab api`: the API server comes and goes.
func labAPI(name *string) *cobra.Command {
	cmd := &cobra.Command{Use: "api", Short: "Stop or start the API server"}
	for _, verb := range []struct {
		use, short string
		do         func(*lab.Lab, context.Context) error
	}{
		{"stop", "End the API server at once", (*lab.Lab).StopAPI},
		{"start", "Start the API server again, and return when it is ready", (*lab.Lab).StartAPI},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: verb.use, Short: verb.short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return withLab(cmd, *name, func(ctx context.Context, l *lab.Lab) error { return verb.do(l, ctx) })
			},
		})
	}
	return cmd
}

// labLoad is `braid lab load`: images for the nodes.
func labLoad(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "load flannel|FILE...",
		Short: "Load images on all nodes: archives, or the one of examples/migrate/flannel",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withLab(cmd, *name, func(ctx context.Context, l *lab.Lab) error {
				for _, image := range args {
					var err error
					if image == "flannel" {
						err = l.LoadFlannel(ctx, lab.BuildConfig{Progress: l.Progress})
					} else {
						err = l.LoadImage(ctx, image)
					}
					if err != nil {
						return err
					}
					l.Progress.Printf("loaded %s on %d nodes", image, len(l.Nodes()))
				}
				return nil
			})
		},
	}
}

// withLab changes a lab, and says so on stderr.
func withLab(cmd *cobra.Command, name string, change func(context.Context, *lab.Lab) error) error {
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	l.Progress = lab.NewProgress(cmd.ErrOrStderr())
	return change(cmd.Context(), l)
}
