// Package lab runs a real Kubernetes cluster on one machine, without Docker
// and without KVM: the control plane as processes, each node under a kernel of
// its own (package guest), an external host, and a trunk that connects nodes
// and host with 802.1Q frames.
//
// A lab can be removed whatever state it is in, because everything it consists
// of is found by its name: its processes are in one cgroup, its links in one
// network namespace, its files and sockets in one directory.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/netns"
)

// downLimit bounds the removal of a lab after a failure, when the context of
// the caller may have ended already.
const downLimit = 60 * time.Second

// Up brings up a lab and returns it when all nodes are Ready. When the lab is
// running already it is returned as it is. On error nothing is left of it,
// unless cfg.Keep says otherwise.
func Up(ctx context.Context, cfg Config) (_ *Lab, err error) {
	cfg, err = cfg.complete()
	if err != nil {
		return nil, err
	}
	progress := NewProgress(cfg.Progress)
	p := paths{cfg.Name}
	if err := checkHost(cfg); err != nil {
		return nil, err
	}
	unlock, err := lock(p)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if running, err := existing(ctx, p, cfg, progress); running != nil || err != nil {
		return running, err
	}
	bin, images, err := prepare(ctx, cfg, progress)
	if err != nil {
		return nil, err
	}
	source, err := cfg.ciliumSource(ctx)
	if err != nil {
		return nil, err
	}
	b := &builder{paths: p, cfg: cfg, bin: bin, ciliumSource: source, progress: progress, apiReady: make(chan struct{}), subnets: newExchange(cfg.Nodes)}
	defer func() {
		if err != nil {
			err = b.abandon(ctx, err)
		}
	}()
	if err := b.raise(ctx, images); err != nil {
		return nil, fmt.Errorf("lab %s: %w", cfg.Name, err)
	}
	progress.Printf("lab %s is up: %d nodes Ready", cfg.Name, cfg.Nodes)
	return Open(cfg.Name)
}

// existing returns the lab if it is running and removes what an interrupted Up
// may have left.
func existing(ctx context.Context, p paths, cfg Config, progress *Progress) (*Lab, error) {
	l, err := Open(p.Name)
	if err == nil && l.running() {
		defer progress.Printf("lab %s is already running, with %d nodes", p.Name, len(l.state.Nodes))
		if len(l.state.Nodes) != cfg.Nodes {
			return nil, fmt.Errorf("lab %s is already running with %d nodes, not %d: `braid lab down --name %s` first",
				p.Name, len(l.state.Nodes), cfg.Nodes, p.Name)
		}
		if is := l.state.Config; is.setUp() != cfg.setUp() {
			return nil, fmt.Errorf("lab %s is already running with %s: `braid lab down --name %s` first", p.Name, is.describe(), p.Name)
		}
		return l, nil
	}
	left, err := remains(p)
	if err != nil || len(left) == 0 {
		return nil, err
	}
	progress.Printf("removing the remains of an earlier lab %s", p.Name)
	return nil, remove(ctx, p, progress)
}

// prepare makes everything that can be made before anything runs. When it was
// made before, this takes milliseconds.
func prepare(ctx context.Context, cfg Config, progress *Progress) (Binaries, []string, error) {
	cache, err := cacheDir(cfg.Cache)
	if err != nil {
		return nil, nil, err
	}
	bin, err := Build(ctx, BuildConfig{Source: cfg.Source, Cache: cache, Only: cfg.programs(), Progress: progress})
	if err != nil {
		return nil, nil, err
	}
	images, err := writeImages(ctx, cache, bin)
	return bin, images, err
}

// A builder brings one lab up.
type builder struct {
	paths
	cfg      Config
	bin      Binaries
	progress *Progress
	// ciliumSource is the directory of Cilium's sources, when it is needed.
	ciliumSource string
	world        world
	api          *api
	subnets      *exchange
	// apiReady is closed when the API server answers.
	apiReady chan struct{}
	ledger   ledger
}

// raise makes the lab, from nothing to Ready.
func (b *builder) raise(ctx context.Context, images []string) error {
	if err := b.makeWorld(ctx); err != nil {
		return err
	}
	defer b.world.ns.Close()
	if err := writePKI(b.paths, b.cfg.nodes(), time.Now()); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	b.progress.Printf("network namespace, bridges and certificates are there")
	if err := b.startAll(ctx, images); err != nil {
		return err
	}
	if err := b.routePods(ctx); err != nil {
		return err
	}
	if err := b.startDNS(ctx); err != nil {
		return err
	}
	return b.ledger.finish()
}

// startAll starts the control plane and all guests at the same time; the first
// that cannot be started stops the others.
func (b *builder) startAll(ctx context.Context, images []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := b.startControlPlane(ctx); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
		if err := b.publish(ctx); err != nil {
			return fmt.Errorf("publish the settings: %w", err)
		}
		return b.waitServiceAccount(ctx)
	})
	for _, n := range b.cfg.guests() {
		g.Go(func() error {
			if n.Name == External {
				return wrap(n.Name, b.startExternal(ctx, n))
			}
			return wrap(n.Name, b.startNode(ctx, n, images))
		})
	}
	return g.Wait()
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// makeWorld makes what processes and guests need to start in.
func (b *builder) makeWorld(ctx context.Context) (err error) {
	group, err := cgroupOf(b.paths)
	if err != nil {
		return err
	}
	if err := makeStateDir(b.paths); err != nil {
		return err
	}
	b.ledger = ledger{path: b.state(), state: newState(b.cfg, b.bin)}
	if err := b.ledger.save(); err != nil {
		return err
	}
	if err := group.create(); err != nil {
		return err
	}
	if b.cfg.NodeKernel == guest.Host {
		for _, n := range b.cfg.nodes() {
			if err := group.createFor(n); err != nil {
				return err
			}
		}
	}
	ns, err := netns.New(b.netnsName())
	if err != nil {
		return err
	}
	b.world = world{ns: ns, group: group}
	return wireHost(ctx, b.paths)
}

// record remembers a process of the control plane.
func (b *builder) record(p *process) error {
	return b.ledger.add(p)
}

// alive returns why one of the control plane's processes has ended, if any.
func (b *builder) alive() error { return b.ledger.alive() }

func (b *builder) waitAPI(ctx context.Context) error {
	select {
	case <-b.apiReady:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// waitServiceAccount waits for what the API server demands of every pod.
func (b *builder) waitServiceAccount(ctx context.Context) error {
	wait := Wait{What: "the default service account", Limit: 60 * time.Second}
	return b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		if err := b.alive(); err != nil {
			return err
		}
		_, err := b.api.raw(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
		return err
	})
}

// abandon removes a lab that could not be brought up and returns the reason
// together with what could not be removed.
func (b *builder) abandon(ctx context.Context, reason error) error {
	if b.cfg.Keep {
		b.progress.Printf("keeping what there is of lab %s: `braid lab logs --name %s`, `braid lab down --name %s`", b.cfg.Name, b.cfg.Name, b.cfg.Name)
		return reason
	}
	b.progress.Printf("removing lab %s again", b.cfg.Name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downLimit)
	defer cancel()
	return errors.Join(reason, remove(ctx, b.paths, b.progress))
}

// Down removes the lab of that name, whatever there is of it, and returns nil
// only when nothing is left: no process, link, mount, namespace, cgroup or
// file. Removing a lab that does not exist succeeds.
func Down(ctx context.Context, name string, progress io.Writer) error {
	if err := checkName(name); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	p := paths{name}
	unlock, err := lock(p)
	if err != nil {
		return err
	}
	defer unlock()
	report := NewProgress(progress)
	left, err := remains(p)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		report.Printf("there is no lab %s", name)
		return nil
	}
	if err := remove(ctx, p, report); err != nil {
		return err
	}
	report.Printf("lab %s is gone", name)
	return nil
}

// remove takes the lab apart: first what runs, then what it ran in.
func remove(ctx context.Context, p paths, progress *Progress) error {
	group, err := cgroupOf(p)
	if err != nil {
		return err
	}
	if err := group.remove(ctx, progress); err != nil {
		return fmt.Errorf("remove lab %s: %w", p.Name, err)
	}
	err = errors.Join(netns.Delete(p.netnsName()), removeStateDir(p))
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", p.Name, err)
	}
	left, err := remains(p)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %v", left)
	}
	return wrap("remove lab "+p.Name, err)
}

// remains lists what exists of a lab, in words.
func remains(p paths) ([]string, error) {
	var left []string
	group, err := cgroupOf(p)
	if err != nil {
		return nil, err
	}
	if group.exists() {
		left = append(left, "cgroup "+group.dir)
	}
	for _, path := range []string{p.netns(), p.dir()} {
		if _, err := os.Lstat(path); err == nil {
			left = append(left, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	mounts, err := mountsBelow(p.dir())
	for _, m := range mounts {
		left = append(left, "mount "+m)
	}
	return left, err
}
