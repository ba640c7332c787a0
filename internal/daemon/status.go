package daemon

import (
	"context"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/plan"
)

// status says whether an ADD would have a chance (CNI specification 1.1,
// STATUS). It answers at once.
func (d *Daemon) status(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeout(ctx, d.statusLimit)
	defer cancel()
	// What a container that asks for nothing would get.
	r.IfName = "eth0"
	p, err := d.plan(ctx, r, plan.Pod{})
	if err != nil {
		return &codedError{types.ErrPluginNotAvailable, err}
	}
	checks := []func() error{func() error { return d.Records.Healthy(ctx) }}
	if d.Installed != nil {
		checks = append(checks, d.Installed)
	}
	if d.Cluster != nil {
		checks = append(checks, d.Cluster.Synced)
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return &codedError{types.ErrPluginNotAvailable, err}
		}
	}
	for _, a := range p.Attachments {
		err := d.Attacher.Status(ctx, a.Config, r.reach)
		if code := codeOf(err); err != nil && code != types.ErrPluginNotAvailable && code != types.ErrLimitedConnectivity {
			err = &codedError{types.ErrPluginNotAvailable, err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
