package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

const (
	// reconcileEvery is how often records are compared with the node.
	reconcileEvery = time.Minute
	// rebuildLook is how often it is looked whether lost records can be made
	// again, while that has to wait for the cluster.
	rebuildLook = time.Second
	// reconcileSoon is the pause when the kernel may be about to end a namespace.
	reconcileSoon = 3 * time.Second
	// reconcileAtOnce bounds how many sandboxes are worked on in one round.
	reconcileAtOnce = 4
)

// reconcileLoop serves notes, makes lost records again, and releases what the
// runtime has forgotten: at once, every minute, when a note appears, and when
// there is a hand on the host that something waits for.
func (d *Daemon) reconcileLoop(ctx context.Context) error {
	notes := d.watchNotes()
	defer notes.close()
	for ctx.Err() == nil {
		var hand <-chan struct{}
		if d.reconcile(ctx) {
			hand = d.wantHand()
		}
		d.awaitRound(ctx, notes.appeared(), hand)
	}
	return nil
}

// awaitRound waits until a round is due: after a minute, or for one of the
// reasons why it may be sooner.
func (d *Daemon) awaitRound(ctx context.Context, note <-chan fsnotify.Event, hand <-chan struct{}) {
	pause := reconcileEvery
	select {
	case <-d.soon:
		pause = reconcileSoon
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	var look <-chan time.Time
	if d.rebuildWaits() {
		ticker := time.NewTicker(rebuildLook)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-note:
			return
		case <-hand:
			return
		case <-ctx.Done():
			return
		case <-look:
			if !d.rebuildWaits() {
				return
			}
		}
	}
}

// rebuildWaits reports whether lost records are to be made again as soon as it
// is known what pods ask for.
func (d *Daemon) rebuildWaits() bool {
	missing, err := d.Records.Missing()
	return err == nil && missing && d.Cluster != nil && d.Cluster.Synced() != nil
}

// reconcile is one round. It reports whether something waits for a hand on the
// host. What fails is tried again in a later round.
func (d *Daemon) reconcile(ctx context.Context) (waits bool) {
	d.pace.forget(time.Now())
	for _, step := range []func(context.Context) bool{d.serveNotes, d.mendAll, d.rebuildAll, d.releaseOrphans} {
		if ctx.Err() != nil {
			return false
		}
		waits = step(ctx) || waits
	}
	return waits
}

// each works on many sandboxes, a few at once, each when its time has come. It
// reports whether one waits for a hand on the host.
func each[T any](ctx context.Context, d *Daemon, what string, list []T, key func(T) string, work func(context.Context, T) error) (waits bool) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(reconcileAtOnce)
	for _, item := range list {
		name := what + " " + key(item)
		if !d.pace.due(name, time.Now()) {
			continue
		}
		group.Go(func() error {
			err := attach.Safely(func() error { return work(ctx, item) })
			switch {
			case err == nil:
				d.pace.done(name)
			case errors.Is(err, errNoHand):
				mu.Lock()
				waits = true
				mu.Unlock()
			case ctx.Err() == nil:
				d.reportStuck(what, key(item), d.pace.failed(name, time.Now()), err)
			}
			return nil
		})
	}
	_ = group.Wait() // every error has been dealt with
	return waits
}

// reportStuck tells of a sandbox that could not be worked on for so many times.
func (d *Daemon) reportStuck(what, key string, times int, err error) {
	d.Log.Error("could not "+what+"; it is tried again", "container", key, "times", times, "err", err)
	if times > 1 && d.Cluster != nil {
		d.Cluster.Stuck(fmt.Sprintf("could not %s %s, %d times by now: %v", what, key, times, err))
	}
}

func (d *Daemon) serveNotes(ctx context.Context) (waits bool) {
	return each(ctx, d, "serve the noted DEL of", d.noted(), func(n wire.Note) string { return n.File }, d.serveNote)
}

// mendAll makes damaged records again before somebody asks for them.
func (d *Daemon) mendAll(ctx context.Context) (waits bool) {
	_, err := d.Records.All()
	var damaged *store.DamagedError
	if !errors.As(err, &damaged) {
		return false
	}
	var list []wire.Request
	seen := map[string]bool{}
	for _, k := range damaged.Keys {
		r := wire.Request{Command: "DEL", ContainerID: k.ContainerID, IfName: k.IfName}
		if key := sandboxKey(k.ContainerID, k.IfName); !seen[key] {
			list, seen[key] = append(list, r), true
		}
	}
	key := func(r wire.Request) string { return sandboxKey(r.ContainerID, r.IfName) }
	return each(ctx, d, "mend the records of", list, key, d.mendOne)
}

// mendOne makes the damaged records of one sandbox again.
func (d *Daemon) mendOne(ctx context.Context, asked wire.Request) error {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	leave, err := d.enter(ctx, asked.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	r, err := d.recall(asked)
	if err != nil {
		return err
	}
	if r.NetNS != "" {
		sb, err := d.sandbox(r)
		if err != nil {
			return err
		}
		reach, release, err := d.reachSandbox(ctx, sb)
		if err != nil {
			return err
		}
		defer release()
		r.Command, r.reach = "CHECK", reach
		d.mend(ctx, r)
	}
	_, err = d.Records.Sandbox(r.ContainerID, r.IfName)
	return err
}

// recall is the request that made a sandbox, as far as a record that is left or
// the runtime's memory tells of it.
func (d *Daemon) recall(asked wire.Request) (request, error) {
	suffix := "-" + asked.ContainerID + "-" + asked.IfName
	list, err := remembered(d.CacheDir, func(file string) bool { return !strings.HasSuffix(file, suffix) })
	for _, r := range list {
		if r.ContainerID == asked.ContainerID && r.IfName == asked.IfName {
			return r, nil
		}
	}
	if err != nil {
		return request{}, err
	}
	records, err := d.Records.Sandbox(asked.ContainerID, asked.IfName)
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return request{}, err
	}
	if len(records) > 0 {
		return requestOf(records[0].Sandbox), nil
	}
	if damaged != nil && len(damaged.Guesses) > 0 {
		return requestOf(damaged.Guesses[0].Sandbox), nil
	}
	return request{Request: asked}, nil
}

// rebuildAll makes the records of all sandboxes again, after the store was
// lost. Until everything has been looked for, later rounds go on.
func (d *Daemon) rebuildAll(ctx context.Context) (waits bool) {
	missing, err := d.Records.Missing()
	if err != nil || !missing || d.Cluster != nil && d.Cluster.Synced() != nil {
		return false // what pods ask for may be unknown yet
	}
	lost, err := d.withoutRecords()
	if err != nil {
		d.Log.Error("records may be missing, and it cannot be found out which", "err", err)
		return false
	}
	var rebuilt atomic.Int64
	waits = each(ctx, d, "rebuild the records of", lost, request.key, func(ctx context.Context, r request) error {
		err := d.rebuildOne(ctx, r)
		if err == nil {
			rebuilt.Add(1)
		}
		return err
	})
	if int(rebuilt.Load()) < len(lost) {
		return waits
	}
	if err := d.Records.Rebuilt(ctx); err != nil {
		d.Log.Error("note that all records are there again", "err", err)
	} else if len(lost) > 0 {
		d.Log.Warn("the records of this node were made again", "sandboxes", len(lost))
	}
	return waits
}

// withoutRecords lists the sandboxes that the runtime remembers and the store
// does not know.
func (d *Daemon) withoutRecords() (lost []request, err error) {
	known, err := d.sandboxes()
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, s := range known {
		have[s.key()] = true
	}
	list, err := remembered(d.CacheDir, func(string) bool { return false })
	for _, r := range list {
		if !have[r.key()] && !d.takenDown.has(r.key()) {
			lost = append(lost, r)
		}
	}
	return lost, err
}

// rebuildOne makes the records again of a sandbox that the runtime remembers.
// Of one that is gone it releases what it may have held.
func (d *Daemon) rebuildOne(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	leave, err := d.enter(ctx, r.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	sb, err := d.sandbox(r)
	if err != nil {
		return err
	}
	reach, release, err := d.reachSandbox(ctx, sb)
	if err != nil {
		return err
	}
	defer release()
	r.reach = reach
	if reach.NS == nil {
		ends, err := vethMarks()
		if err != nil {
			return err
		}
		if ends[driver.Spec{ContainerID: r.ContainerID, IfName: r.IfName}.Mark()] {
			return fmt.Errorf("its namespace %s is not to be seen, but its veth is there", r.NetNS)
		}
		d.Log.Info("a container that the runtime remembers is gone; what it may have held is released", "container", r.ContainerID)
		return d.takeDown(ctx, r)
	}
	r.Command = "CHECK"
	d.mend(ctx, r)
	if again, err := d.Records.Sandbox(r.ContainerID, r.IfName); err != nil || len(again) == 0 {
		return errors.Join(errors.New("no network of it could be made out"), err)
	}
	return nil
}

// enter waits for the container's turn and a place beside the DELs.
func (d *Daemon) enter(ctx context.Context, containerID string) (leave func(), err error) {
	next, err := d.queue.enter(ctx, containerID)
	if err != nil {
		return nil, err
	}
	done, err := d.dels.enter(ctx)
	if err != nil {
		next()
		return nil, err
	}
	return func() { done(); next() }, nil
}

// requestOf is the DEL of a sandbox as the runtime would ask for it.
func requestOf(sb store.Sandbox) request {
	r := request{Request: wire.Request{
		Command: "DEL", ContainerID: sb.ContainerID, IfName: sb.IfName, NetNS: sb.NetNS, Args: sb.Args, Path: sb.Path,
	}}
	r.conf.Name = sb.Network
	r.pod, _ = parseArgs(sb.Args) // it was accepted once
	return r
}

// sandboxOf is what a request says of its sandbox.
func sandboxOf(r wire.Request) store.Sandbox {
	sb := store.Sandbox{ContainerID: r.ContainerID, IfName: r.IfName, NetNS: r.NetNS, Args: r.Args, Path: r.Path}
	if pod, err := parseArgs(r.Args); err == nil {
		sb.Pod.Namespace, sb.Pod.Name, sb.Pod.UID = pod.namespace, pod.name, pod.uid
	}
	return sb
}
