package daemon

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// Run does what is due without a request of the runtime, until ctx ends. An
// error of one loop ends them all.
func (d *Daemon) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.reconcileLoop(ctx) })
	group.Go(func() error { return d.convergeLoop(ctx) })
	group.Go(func() error { return d.tellLoop(ctx) })
	group.Go(func() error { return d.hotplugLoop(ctx) })
	group.Go(func() error { return d.programsLoop(ctx) })
	return group.Wait()
}
