package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/migrate/probe"
)

// probeCommand is the program of the pods that a migration asks.
func probeCommand() *cobra.Command {
	var s probe.Server
	var listen string
	host, _ := os.Hostname() // a pod's name, in a pod
	c := &cobra.Command{
		Use:   "probe",
		Short: "Tell every HTTP client what the server sees of it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := new(net.ListenConfig).Listen(c.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			return s.Serve(c.Context(), l)
		},
	}
	c.Flags().StringVar(&listen, "listen", fmt.Sprintf(":%d", probe.Port), "`address` to serve on")
	c.Flags().DurationVar(&s.Grace, "grace", probe.DefaultGrace, "how long to go on answering after SIGTERM, while /ready says no")
	c.Flags().StringVar(&s.Pod, "pod", cmp.Or(os.Getenv("POD_NAME"), host), "`name` of the pod, for clients (default: $POD_NAME or the host's name)")
	c.Flags().StringVar(&s.Node, "node", os.Getenv("NODE_NAME"), "`name` of the node, for clients (default: $NODE_NAME)")
	c.AddCommand(loadCommand())
	return c
}

// loadCommand asks targets steadily, and counts.
func loadCommand() *cobra.Command {
	var targets []string
	var load probe.Load
	var duration time.Duration
	var output string
	var allow bool
	c := &cobra.Command{
		Use:   "load --target NAME=URL...",
		Short: "Send requests at a steady rate and count what became of each; exit 2 if any failed",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := loadTargets(&load, targets); err != nil {
				return err
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: it must be text or json", output)
			}
			ctx, cancel := c.Context(), context.CancelFunc(func() {})
			if duration > 0 {
				ctx, cancel = context.WithTimeout(ctx, duration)
			}
			defer cancel()
			counts := load.Run(ctx)
			print := counts.Fprint
			if output == "json" {
				print = func(w io.Writer) error { return json.NewEncoder(w).Encode(counts) }
			}
			err := print(c.OutOrStdout())
			if failed := counts.Failed(); err == nil && failed > 0 && !allow {
				return lost{failed, counts.Asked()}
			}
			return err
		},
	}
	c.Flags().StringArrayVar(&targets, "target", nil, "`NAME=URL` to ask, http://host/path or tcp://host:port; may be repeated")
	c.Flags().Float64Var(&load.Rate, "rate", 10, "requests per second to each target")
	c.Flags().DurationVar(&duration, "duration", 0, "how long to ask (default: until SIGTERM or SIGINT)")
	c.Flags().DurationVar(&load.Timeout, "timeout", 5*time.Second, "how long a request may take")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	c.Flags().BoolVar(&allow, "allow-failures", false, "exit 0 also when requests failed")
	return c
}

func loadTargets(load *probe.Load, targets []string) error {
	if len(targets) == 0 {
		return errors.New("--target: at least one is needed")
	}
	if load.Rate < 0.001 || load.Rate > 10_000 {
		return fmt.Errorf("--rate %v: it must be from 0.001 to 10000", load.Rate)
	}
	names := map[string]bool{}
	for _, s := range targets {
		t, err := probe.ParseLoadTarget(s)
		if err != nil {
			return fmt.Errorf("--target: %w", err)
		}
		if names[t.Name] {
			return fmt.Errorf("--target: the name %s is given twice", t.Name)
		}
		names[t.Name] = true
		load.Targets = append(load.Targets, t)
	}
	return nil
}

// lost is the end of a load some of whose requests failed.
type lost struct{ failed, asked int }

func (l lost) Error() string { return fmt.Sprintf("%d of %d requests failed", l.failed, l.asked) }

// exitCode tells requests that failed (2) from everything else that went wrong.
func exitCode(err error) int {
	if errors.As(err, new(lost)) {
		return 2
	}
	return 1
}
