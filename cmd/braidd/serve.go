package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"braid.dev/braid/cmd/braidd/native"
	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/daemon"
	"braid.dev/braid/internal/devices"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/metrics"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// serve puts the parts together and runs them until ctx ends or one of them
// cannot go on.
func serve(ctx context.Context, f flags, conf config, log *slog.Logger) (err error) {
	limitMemory(log)
	records, err := store.Open(ctx, filepath.Join(f.stateDir, store.FileName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	var cluster *kube.Cluster
	if !f.noCluster {
		cluster, err = kube.Connect(kube.Config{
			Kubeconfig: f.kubeconfig, NodeName: f.nodeName, UserAgent: "braidd/" + version, Log: log,
			DefinitionsFile: filepath.Join(f.stateDir, "definitions"),
		})
		if err != nil {
			return fmt.Errorf("%w (without a cluster: --no-cluster)", err)
		}
	}
	counted := metrics.New(version)
	networks, err := confdir.New(confdir.Config{
		Dir: f.confDir, StateDir: f.stateDir, Place: f.place(), Notify: notifier(cluster), Restored: counted.Restored, Log: log,
	})
	if err != nil {
		return err
	}
	kubelet, err := kubeletFor(f, cluster)
	if err != nil {
		return err
	}
	running, done, err := containers(f.runtime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	d := daemon.New(daemon.Config{
		Attacher:        attacher(f, conf, records),
		Records:         records,
		Networks:        networks,
		ConfDirNetworks: conf.ConfDirNetworks,
		Isolation:       conf.isolation(),
		WaitForStatus:   conf.WaitForNetworkStatus,
		Devices:         kubelet,
		DeviceInfoDir:   f.deviceInfo,
		SubnetFile:      readSubnetFile,
		Cluster:         clusterFor(cluster),
		Socket:          f.socket(),
		Installed:       func() error { return installed(f.confDir) },
		Notes:           f.notes(),
		CacheDir:        f.cacheDir,
		MultusCacheDir:  f.multusCache,
		BootID:          bootID(log),
		Containers:      running,
		StatusFile:      filepath.Join(f.runDir, "status"),
		Log:             log,
		Served:          counted.Served,
		RequestTimeout:  time.Duration(conf.RequestTimeout),
		Parallel:        conf.Parallel,
	})
	if err := d.Recover(ctx); err != nil {
		return err
	}
	counted.Pending(d.Untold)
	return run(ctx, f, conf, parts{daemon: d, networks: networks, cluster: cluster, metrics: counted, log: log})
}

// attacher does in process what package native has a driver or an address
// delegate for. Every other type is a program of the host.
func attacher(f flags, conf config, records *store.Store) *attach.Attacher {
	node := native.Node{
		Sysctl:    rtnl.Sysctl{Root: f.procSysNet},
		HostLocal: f.hostLocal,
		Dirs:      hostDirs(f.hostDirs),
	}
	return &attach.Attacher{
		Drivers:        native.Drivers(node),
		IPAM:           native.IPAM(node),
		Store:          records,
		DeviceInfo:     devices.Files{Dir: f.deviceInfo},
		BinDirs:        filepath.SplitList(f.binDir),
		PluginTimeout:  time.Duration(conf.PluginTimeout),
		CleanupTimeout: time.Duration(conf.CleanupTimeout),
	}
}

// kubeletFor tells the pods' devices, nil where there is no kubelet to ask.
func kubeletFor(f flags, c *kube.Cluster) (daemon.Devices, error) {
	if f.podResources == "" || c == nil {
		return nil, nil
	}
	kubelet, err := devices.New(f.podResources, c.ResourceSlices)
	if err != nil {
		return nil, fmt.Errorf("--pod-resources: %w", err)
	}
	return kubelet, nil
}

// bootID is the kernel's boot ID, empty when it cannot be read: then a reboot is
// found out by other means.
func bootID(log *slog.Logger) string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		log.Warn("read the boot ID", "err", err)
	}
	return strings.TrimSpace(string(text))
}

// containers asks the runtime at an endpoint for the sandboxes that it has, nil
// without one. The caller calls done at the end.
func containers(endpoint string) (ask func(context.Context) ([]string, error), done func() error, err error) {
	if endpoint == "" {
		return nil, func() error { return nil }, nil
	}
	c, err := cri.Dial(endpoint)
	if err != nil {
		return nil, nil, fmt.Errorf("--runtime-endpoint: %w", err)
	}
	return c.SandboxIDs, c.Close, nil
}

// hostDirs splits the list; nil stands for every directory.
func hostDirs(list string) []string {
	if list == "" {
		return nil
	}
	return filepath.SplitList(list)
}

// maxSubnetFile is the largest subnet file that is read, in bytes.
const maxSubnetFile = 64 << 10

// readSubnetFile reads a file that a network's configuration names, and so no
// device or pipe.
func readSubnetFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSubnetFile {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxSubnetFile)
	}
	return os.ReadFile(path)
}

// installed reports whether the runtime finds Braid in its conf dir.
func installed(confDir string) error {
	if _, err := os.Stat(filepath.Join(confDir, confdir.OwnFile)); err != nil {
		return fmt.Errorf("the runtime does not know Braid yet, its configuration could not be written: %w", err)
	}
	return nil
}

// parts are what runs.
type parts struct {
	daemon   *daemon.Daemon
	networks *confdir.Watcher
	cluster  *kube.Cluster
	metrics  *metrics.Metrics
	log      *slog.Logger
}

func run(ctx context.Context, f flags, conf config, p parts) error {
	listener, err := wire.Listen(f.socket())
	if err != nil {
		return err
	}
	server := &wire.Server{
		Handle:  p.daemon.Handle,
		Refused: func(err error) { p.log.Warn("connection refused", "err", err) },
		Grace:   time.Duration(conf.ShutdownGrace),
	}
	p.log.Info("braidd serves", "version", version, "node", f.nodeName, "socket", f.socket(), "conf", f.confDir, "state", f.stateDir)
	// Requests that are still being served after SIGTERM need the others: they
	// end last.
	others, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, others := errgroup.WithContext(others)
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	context.AfterFunc(others, stopServing)
	group.Go(func() error {
		defer stop()
		return server.Serve(serving, listener)
	})
	group.Go(func() error { return p.networks.Run(others) })
	group.Go(func() error { return p.daemon.Run(others) })
	ready := func(context.Context) error { return nil }
	if p.cluster != nil {
		group.Go(func() error { return p.cluster.Run(others) })
		ready = p.cluster.WaitSynced
	}
	group.Go(func() error { return shed(others, ready, p.log) })
	group.Go(func() error {
		p.serveMetrics(others, f.metrics)
		return nil
	})
	err = group.Wait()
	p.log.Info("braidd ends", "err", err)
	return err
}

// serveMetrics answers Prometheus at the address, if there is one. That somebody
// else has the port is no reason for pods to wait.
func (p parts) serveMetrics(ctx context.Context, address string) {
	if address == "" {
		return
	}
	listener, err := net.Listen("tcp", address)
	if err == nil {
		err = p.metrics.Serve(ctx, listener)
	}
	if err != nil {
		p.log.Error("there are no metrics", "address", address, "err", err)
	}
}

// notifier makes events of what the conf dir has to tell, nil without a cluster.
func notifier(c *kube.Cluster) func(confdir.Notice) {
	if c == nil {
		return nil
	}
	return func(n confdir.Notice) {
		if n.Warning {
			c.Events.Renamed(n.Text)
		} else {
			c.Events.Guarded(n.Text)
		}
	}
}

// clusterFor is the cluster as the daemon sees it, nil for none.
func clusterFor(c *kube.Cluster) daemon.Cluster {
	if c == nil {
		return nil
	}
	return adapter{c}
}

type adapter struct{ *kube.Cluster }

func (a adapter) Pod(ctx context.Context, told plan.Pod) (plan.Pod, error) {
	return a.Pods.Get(ctx, told)
}

func (a adapter) Known(namespace, name, uid string) (plan.Pod, bool) {
	return a.Pods.Known(namespace, name, uid)
}

func (a adapter) All() ([]plan.Pod, <-chan struct{}) { return a.Pods.All() }

func (a adapter) Life(ctx context.Context, pod plan.Pod) (daemon.Life, error) {
	life, err := a.Pods.Life(ctx, pod)
	return daemon.Life(life), outcome(err)
}

func (a adapter) Definition(ctx context.Context, namespace, name string) (plan.Definition, bool, error) {
	d, err := a.Definitions.Lookup(ctx, namespace, name)
	if errors.Is(err, kube.ErrNotFound) {
		return d, false, nil
	}
	return d, err == nil, err
}

func (a adapter) SetNetworkStatus(ctx context.Context, pod plan.Pod, text string) error {
	return outcome(a.Pods.SetNetworkStatus(ctx, pod, text))
}

// outcome is an error of package kube in the words of package daemon.
func outcome(err error) error {
	switch {
	case errors.Is(err, kube.ErrAway):
		return fmt.Errorf("%w: %w", daemon.ErrAway, err)
	case errors.Is(err, kube.ErrNotFound):
		return fmt.Errorf("%w: %w", daemon.ErrGone, err)
	}
	return err
}

func (a adapter) Added(pod plan.Pod, message string)   { a.Events.Added(pod, message) }
func (a adapter) Removed(pod plan.Pod, message string) { a.Events.Removed(pod, message) }
func (a adapter) Failed(pod plan.Pod, message string)  { a.Events.Failed(pod, message) }

func (a adapter) Damaged(pod plan.Pod, message string) { a.Events.Damaged(pod, message) }
func (a adapter) Stuck(message string)                 { a.Events.Stuck(message) }
