package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// del takes a container's networks away, by the records of its ADD.
func (d *Daemon) del(ctx context.Context, r request) error {
	deleted, err := d.Attacher.Del(ctx, r.ContainerID, r.IfName, r.reach)
	d.logDeleted(r, deleted)
	if err != nil {
		return err
	}
	if deleted.Damaged != nil || deleted.Records == 0 && !d.takenDown.has(r.key()) {
		if err := d.delUnrecorded(ctx, r); err != nil {
			return err
		}
	}
	d.takenDown.add(r.key())
	return nil
}

func (d *Daemon) logDeleted(r request, deleted attach.Deleted) {
	for _, err := range deleted.GaveUp {
		d.Log.Error("gave up on a plugin that never finished ADD and fails on DEL; it may have left something on the node",
			"container", r.ContainerID, "err", err)
	}
	if deleted.Damaged != nil {
		d.Log.Error("records of a container cannot be read; its default network is removed by today's configuration",
			"container", r.ContainerID, "err", deleted.Damaged)
	}
}

// delUnrecorded serves a container that got its networks before Braid came to
// the node: the plugins of the conf dir's networks know what they made. For a
// container that never was, they do nothing.
func (d *Daemon) delUnrecorded(ctx context.Context, r request) error {
	sb, err := r.sandbox()
	if err != nil {
		return err
	}
	var errs []error
	for i, network := range slices.Backward(d.Networks.First(d.ConfDirNetworks)) {
		rec := store.Record{Sandbox: sb, Attachment: plan.Attachment{
			Network: network.Name, IfName: plan.ConfDirIfName(r.IfName, i), Default: i == 0, Config: network,
		}}
		if i == 0 {
			rec.Attachment.RuntimeConfig = r.conf.RuntimeConfig
			if prev := resultOf(r.conf.PrevResult, create.CreateFromBytes); prev != nil {
				if rec.Result, err = json.Marshal(prev); err != nil {
					return err
				}
			}
		}
		if err := d.Attacher.DelUnrecorded(ctx, rec, r.reach); err != nil {
			errs = append(errs, fmt.Errorf("no record of this container; by today's network %s: %w", network.Name, err))
		}
	}
	return errors.Join(errs...)
}

// check compares a container's networks with their records.
func (d *Daemon) check(ctx context.Context, r request) error {
	if r.reach.NS == nil {
		return types.NewError(types.ErrInvalidNetNS, "CHECK needs a network namespace", "CNI_NETNS is "+r.NetNS)
	}
	return d.Attacher.Check(ctx, r.ContainerID, r.IfName, r.reach)
}

// gc takes down what the runtime no longer knows (CNI specification 1.1, GC).
func (d *Daemon) gc(ctx context.Context, r request) error {
	if r.conf.Valid == nil {
		return nil // no list means no knowledge, not an empty node
	}
	valid := map[[2]string]bool{}
	for _, v := range *r.conf.Valid {
		if v.ContainerID == "" || v.IfName == "" {
			return types.NewError(types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments has an element without containerID or ifname", "")
		}
		valid[[2]string{v.ContainerID, v.IfName}] = true
	}
	records, err := d.Records.All()
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	var errs []error
	seen := map[[2]string]bool{}
	for _, rec := range records {
		sb := rec.Sandbox
		k := [2]string{sb.ContainerID, sb.IfName}
		// The list speaks of one network of the runtime, and was made before
		// the requests that are under way.
		if valid[k] || seen[k] || sb.Network != r.conf.Name || d.queue.busy(sb.ContainerID) {
			continue
		}
		seen[k] = true
		errs = append(errs, d.collect(ctx, r, sb))
	}
	return errors.Join(errs...)
}

// collect takes one forgotten sandbox down.
func (d *Daemon) collect(ctx context.Context, r request, sb store.Sandbox) error {
	leave, err := d.queue.enter(ctx, sb.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	reach := r.reach
	ns, err := netns.Open(sb.NetNS)
	switch {
	case err == nil:
		defer ns.Close()
		reach.NS = ns // compared with the record before it is used
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	deleted, err := d.Attacher.Del(ctx, sb.ContainerID, sb.IfName, reach)
	d.logDeleted(r, deleted)
	if err != nil {
		return fmt.Errorf("collect container %s: %w", sb.ContainerID, err)
	}
	d.Log.Info("collected what the runtime no longer knows", "container", sb.ContainerID, "ifname", sb.IfName, "pod", podName(sb.Pod))
	return nil
}

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
