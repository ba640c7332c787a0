package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/netns"
)

const apiServer = "kube-apiserver"

// A startup is what a node does by itself when it boots, as the units of an
// init system on its disk would have it.
type startup struct {
	// Script is run first.
	Script string `json:"script,omitempty"`
	// Daemons are started after it, in order.
	Daemons []guest.Daemon `json:"daemons"`
}

func (p paths) startup(node string) (startup, error) {
	var s startup
	data, err := os.ReadFile(p.boot(node))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

// atBoot changes what a node does when it boots.
func (p paths) atBoot(node string, change func(*startup)) error {
	s, err := p.startup(node)
	if err != nil {
		return err
	}
	change(&s)
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(p.boot(node), data, 0o600)
}

// enable has a daemon started at boot, or no longer.
func (s *startup) enable(d guest.Daemon, on bool) {
	s.Daemons = slices.DeleteFunc(s.Daemons, func(o guest.Daemon) bool { return o.Name == d.Name })
	if on {
		s.Daemons = append(s.Daemons, d)
	}
}

// run starts a daemon of a node, now and whenever the node boots.
func (p paths) run(ctx context.Context, g *guest.Guest, d guest.Daemon) error {
	if err := g.StartDaemon(ctx, d); err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	return p.atBoot(g.Name(), func(s *startup) { s.enable(d, true) })
}

// StartDaemon starts a program on a node, now and whenever the node boots.
func (l *Lab) StartDaemon(ctx context.Context, node string, d guest.Daemon) error {
	g, err := l.Node(node)
	if err != nil {
		return err
	}
	return wrap(node, l.run(ctx, g, d))
}

// StopDaemon ends a program of a node, such as flanneld, for good: it does not
// come back when the node boots.
func (l *Lab) StopDaemon(ctx context.Context, node, name string) error {
	g, err := l.Node(node)
	if err != nil {
		return err
	}
	if err := g.StopDaemon(ctx, name); err != nil {
		return wrap(node, err)
	}
	return wrap(node, l.atBoot(node, func(s *startup) { s.enable(guest.Daemon{Name: name}, false) }))
}

// builder goes on where the one that brought the lab up has ended. The caller
// closes its namespace.
func (l *Lab) builder() (*builder, error) {
	group, err := cgroupOf(l.paths)
	if err != nil {
		return nil, err
	}
	ns, err := netns.Open(l.netns())
	if err != nil {
		return nil, err
	}
	b := &builder{
		paths: l.paths, cfg: l.state.Config, bin: l.state.Binaries, progress: l.Progress,
		world: world{ns: ns, group: group}, ledger: ledger{path: l.paths.state(), state: l.state},
	}
	if b.api, err = newAPI(l.paths, ns); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return b, nil
}

func (b *builder) close() {
	b.api.http.CloseIdleConnections()
	b.world.ns.Close()
}

// RebootNode restarts a node as a person restarts a machine: its kernel, or
// with the machine's own its namespaces, and with them all processes, links and
// whatever else is not on its disk, end and are made anew. It returns when the
// node's kubelet has reported Ready again.
func (l *Lab) RebootNode(ctx context.Context, name string) error {
	i := slices.IndexFunc(l.state.Nodes, func(n node) bool { return n.Name == name })
	if i < 0 {
		return fmt.Errorf("lab %s has no node %q; there are: %v", l.Name(), name, l.Nodes())
	}
	if !l.state.Config.Disk {
		return fmt.Errorf("reboot %s: nodes of lab %s keep nothing over a restart: --disk or --node-kernel=host", name, l.Name())
	}
	unlock, err := l.lockNode(name)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := l.builder()
	if err != nil {
		return err
	}
	defer b.close()
	return wrap("reboot "+name, b.reboot(ctx, l.state.Nodes[i]))
}

func (b *builder) reboot(ctx context.Context, n node) error {
	g, err := guest.Open(b.guest(n.Name))
	if err != nil {
		return err
	}
	if err := g.Stop(ctx); err != nil {
		return err
	}
	if b.cfg.NodeKernel == guest.Host {
		if err := b.world.group.renewFor(ctx, n, b.progress); err != nil {
			return err
		}
	}
	b.progress.Printf("%s: it is off", n.Name)
	began := time.Now()
	if g, err = b.bootAgain(ctx, n); err != nil {
		return err
	}
	if err := b.waitNodeReady(ctx, g, n, began); err != nil {
		return err
	}
	b.progress.Printf("%s: Ready again", n.Name)
	return nil
}

// bootAgain boots a node that has been up before: everything is on its disk.
func (b *builder) bootAgain(ctx context.Context, n node) (*guest.Guest, error) {
	s, err := b.startup(n.Name)
	if err != nil {
		return nil, err
	}
	g, err := b.boot(ctx, n, b.cfg.clusterMachine())
	if err != nil {
		return nil, err
	}
	if err := script(ctx, g, s.Script); err != nil {
		return nil, err
	}
	for _, d := range s.Daemons {
		if err := g.StartDaemon(ctx, d); err != nil {
			return nil, err
		}
		if d.Name == containerd.Name {
			if err := b.waitContainerd(ctx, g, n); err != nil {
				return nil, err
			}
		}
	}
	return g, nil
}

// lockNode keeps two reboots of one node apart.
func (p paths) lockNode(name string) (unlock func(), err error) {
	f, err := os.OpenFile(p.boot(name)+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is being rebooted: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// StopAPI ends the API server at once, as the machine it is on might. The lab
// counts as running all the same. Stopping a stopped one succeeds.
func (l *Lab) StopAPI(ctx context.Context) error {
	unlock, err := lock(l.paths)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := l.process(apiServer)
	if err != nil {
		return err
	}
	p.Stopped = true
	if err := l.save(); err != nil { // first, so that nobody takes the lab for a dead one
		return err
	}
	if err := p.kill(ctx, l.Progress); err != nil {
		return err
	}
	l.Progress.Printf("%s is gone", apiServer)
	return nil
}

// StartAPI starts the API server after StopAPI, and returns when it is ready.
// Starting one that runs succeeds.
func (l *Lab) StartAPI(ctx context.Context) error {
	unlock, err := lock(l.paths)
	if err != nil {
		return err
	}
	defer unlock()
	old, err := l.process(apiServer)
	if err != nil {
		return err
	}
	b, err := l.builder()
	if err != nil {
		return err
	}
	defer b.close()
	if !old.running() {
		c := l.apiserver()
		fresh, err := b.world.spawn(c.Name, l.log(c.Name), append([]string{b.bin[c.Name]}, c.Args...))
		if err != nil {
			return err
		}
		*old = *fresh
	}
	old.Stopped = false
	if err := l.save(); err != nil {
		return err
	}
	if err := b.waitReady(ctx); err != nil {
		return err
	}
	l.Progress.Printf("%s is ready", apiServer)
	return nil
}

func (l *Lab) process(name string) (*process, error) {
	fresh, err := readState(l.paths) // somebody else may have restarted it
	if err != nil {
		return nil, err
	}
	l.state = fresh
	for _, p := range l.state.Processes {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("lab %s has no %s", l.Name(), name)
}

func (l *Lab) save() error {
	keeper := ledger{path: l.paths.state(), state: l.state}
	return keeper.save()
}
