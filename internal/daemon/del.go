package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// del takes a container's networks away, by the records of its ADD.
func (d *Daemon) del(ctx context.Context, r request) error {
	if err := d.takeDown(ctx, r); err != nil {
		return err
	}
	if err := d.removeNote(r.Request); err != nil {
		d.Log.Warn("the note of an earlier DEL stays; it will be served again", "container", r.ContainerID, "err", err)
	}
	return nil
}

// takeDown is del, for whoever wants it.
func (d *Daemon) takeDown(ctx context.Context, r request) error {
	d.mend(ctx, r)
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
	d.logGaveUp(r.ContainerID, deleted)
	if deleted.Damaged != nil {
		d.Log.Error("records of a container cannot be read; its default network is removed by today's configuration, and its addresses are released",
			"container", r.ContainerID, "err", deleted.Damaged)
	}
	if deleted.Kept != nil {
		d.Log.Error("everything was taken down, but the records stay for now", "container", r.ContainerID, "err", deleted.Kept)
	}
}

func (d *Daemon) logGaveUp(containerID string, deleted attach.Deleted) {
	for _, err := range deleted.GaveUp {
		d.Log.Error("gave up on a plugin that fails on DEL, of an attachment that was never finished or whose record was damaged; it may have left something on the node",
			"container", containerID, "err", err)
	}
}

// delUnrecorded serves a container that got its networks before Braid came to
// the node: the plugins of the conf dir's networks know what they made. For a
// container that never was, they do nothing. Addresses of networks that are not
// in the conf dir, which another daemon gave it, are released as well.
func (d *Daemon) delUnrecorded(ctx context.Context, r request) error {
	records, err := d.unrecorded(r)
	if err != nil {
		return err
	}
	var errs []error
	for _, rec := range slices.Backward(records) {
		if err := d.Attacher.DelUnrecorded(ctx, rec, r.reach); err != nil {
			errs = append(errs, fmt.Errorf("no record of this container; by today's network %s: %w", rec.Attachment.Network, err))
		}
	}
	return errors.Join(append(errs, d.Attacher.Sweep(ctx, r.ContainerID))...)
}

// unrecorded makes up the records of a container that has none.
func (d *Daemon) unrecorded(r request) ([]store.Record, error) {
	sb, err := d.sandbox(r)
	if err != nil {
		return nil, err
	}
	var records []store.Record
	for i, network := range d.Networks.First(d.ConfDirNetworks) {
		rec := store.Record{Sandbox: sb, Index: i, Attachment: plan.Attachment{
			Network: network.Name, IfName: plan.ConfDirIfName(r.IfName, i), Default: i == 0, Config: network,
		}}
		if i == 0 {
			rec.Attachment.RuntimeConfig = r.conf.RuntimeConfig
			if prev := resultOf(r.conf.PrevResult, create.CreateFromBytes); prev != nil {
				if rec.Result, err = json.Marshal(prev); err != nil {
					return nil, err
				}
			}
		}
		records = append(records, rec)
	}
	return append(records, d.fromMultus(sb)...), nil
}

// check compares a container's networks with their records.
func (d *Daemon) check(ctx context.Context, r request) error {
	if r.reach.NS == nil {
		return types.NewError(types.ErrInvalidNetNS, "CHECK needs a network namespace", "CNI_NETNS is "+r.NetNS)
	}
	d.mend(ctx, r)
	return d.Attacher.Check(ctx, r.ContainerID, r.IfName, r.reach)
}

// gc takes down what the runtime no longer knows (CNI specification 1.1, GC).
//
// A list that names nothing is what a runtime has whose own state is lost, as
// well as one that runs nothing. By itself it frees nothing: only what is proven
// to be gone is.
func (d *Daemon) gc(ctx context.Context, r request) error {
	if r.conf.Valid == nil {
		return nil // no list means no knowledge, not an empty node
	}
	valid := map[string]bool{}
	for _, v := range *r.conf.Valid {
		if v.ContainerID == "" || v.IfName == "" {
			return types.NewError(types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments has an element without containerID or ifname", "")
		}
		valid[sandboxKey(v.ContainerID, v.IfName)] = true
	}
	sandboxes, err := d.sandboxes()
	if err != nil {
		return err
	}
	var unknown []sandboxState
	for _, s := range sandboxes {
		// The list speaks of one network of the runtime, and was made before
		// the requests that are under way.
		if !valid[s.key()] && s.Network == r.conf.Name && !d.queue.busy(s.ContainerID) {
			unknown = append(unknown, s)
		}
	}
	if len(valid) == 0 && len(unknown) > 0 {
		see, err := d.look(ctx, unknown, func(ctx context.Context, paths []string) (map[string]netns.ID, error) {
			return look(ctx, r.reach.Host, d.shimOf(r), paths)
		})
		if err != nil {
			return fmt.Errorf("the list of valid attachments is empty; find out which are: %w", err)
		}
		unknown = slices.DeleteFunc(unknown, func(s sandboxState) bool {
			gone, _ := s.gone(see)
			return !gone
		})
	}
	var errs []error
	for _, s := range unknown {
		o := orphan{sandboxState: s, why: "the runtime no longer lists it"}
		if err := d.release(ctx, o, r.reach.Host); err != nil {
			if errors.Is(err, errNoHand) {
				d.wantHand()
			}
			errs = append(errs, fmt.Errorf("collect container %s: %w", s.ContainerID, err))
		}
	}
	return errors.Join(errs...)
}

// shimOf is a run of the shim that brought a request, through itself.
func (d *Daemon) shimOf(r request) driver.Program {
	return driver.Program{Name: plan.OwnType, Dirs: append(filepath.SplitList(r.Path), d.Attacher.BinDirs...)}
}
