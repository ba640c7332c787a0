// Package demo walks through a scenario on a lab's cluster as a user would: it
// shows each command with its output, and stops with the reason when what it
// sees is not what the scenario promises.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Cluster is what a scenario needs of a lab.
type Cluster interface {
	// Kubectl runs kubectl against the cluster and returns its standard
	// output. The error quotes standard error.
	Kubectl(ctx context.Context, args ...string) (string, error)
	// NodeRun runs a command on a node, or on the external host "ext".
	NodeRun(ctx context.Context, node string, args ...string) (string, error)
	// LoadImage makes an image archive known to every node.
	LoadImage(ctx context.Context, path string) error
	// Nodes lists the names of the nodes.
	Nodes() []string
}

// Demo is one run of a scenario.
type Demo struct {
	Cluster Cluster
	// Root is the directory of the repository, for the manifests.
	Root string
	// Out receives what a person sees.
	Out io.Writer
}

// step announces what comes next.
func (d *Demo) step(format string, args ...any) {
	fmt.Fprintf(d.Out, "\n== "+format+"\n", args...)
}

// kubectl shows and runs one command of the scenario.
func (d *Demo) kubectl(ctx context.Context, args ...string) (string, error) {
	fmt.Fprintf(d.Out, "$ kubectl %s\n", strings.Join(args, " "))
	out, err := d.Cluster.Kubectl(ctx, args...)
	d.show(out)
	return out, err
}

// onNode shows and runs one command on a node.
func (d *Demo) onNode(ctx context.Context, node string, args ...string) (string, error) {
	fmt.Fprintf(d.Out, "%s# %s\n", node, strings.Join(args, " "))
	out, err := d.Cluster.NodeRun(ctx, node, args...)
	d.show(out)
	return out, err
}

func (d *Demo) show(out string) {
	if out = strings.TrimRight(out, "\n"); out != "" {
		fmt.Fprintf(d.Out, "  %s\n", strings.ReplaceAll(out, "\n", "\n  "))
	}
}

// holds notes an expectation that was met.
func (d *Demo) holds(format string, args ...any) {
	fmt.Fprintf(d.Out, "  ok: "+format+"\n", args...)
}

// together runs checks that do not depend on each other at the same time, and
// shows what each of them shows in one piece, in their order. The first error
// in that order is returned.
func (d *Demo) together(checks ...func(*Demo) error) error {
	shown := make([]bytes.Buffer, len(checks))
	failed := make([]error, len(checks))
	var running sync.WaitGroup
	for i, check := range checks {
		running.Go(func() {
			failed[i] = check(&Demo{Cluster: d.Cluster, Root: d.Root, Out: &shown[i]})
		})
	}
	running.Wait()
	for i := range checks {
		if _, err := shown[i].WriteTo(d.Out); err != nil {
			return err
		}
		if failed[i] != nil {
			return failed[i]
		}
	}
	return nil
}

// Eventually repeats check until it returns nil or limit has passed; the last
// error says what was still missing. Kubernetes offers no event for most of
// what a scenario waits for, so this polls.
func (d *Demo) Eventually(ctx context.Context, limit time.Duration, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, limit, last)
		case <-tick.C:
		}
	}
}
