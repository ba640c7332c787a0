package daemon

import "context"

// reconcileLoop compares the records with the node.
func (d *Daemon) reconcileLoop(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
