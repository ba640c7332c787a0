package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/hostexec"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/agent"
	"braid.dev/braid/internal/migrate/lead"
	"braid.dev/braid/internal/migrate/onnode"
	"braid.dev/braid/internal/migrate/probe"
)

// migrateFlags are the command line of the daemon of a migration.
type migrateFlags struct {
	nodeName, kubeconfig, hostRoot    string
	stateDir, confDir, binDir, socket string
	logLevel                          string
}

// shim is the plugin that stands between two networks, in the image.
const shim = "/usr/bin/braid-cni"

// migrateCommand is the daemon that does a node's part in a migration, and that
// drives the whole of it on one of the nodes.
func migrateCommand() *cobra.Command {
	var f migrateFlags
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Do this node's part in a migration from one CNI to another",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := newLogger(f.logLevel)
			if err != nil {
				return err
			}
			return serveMigration(c.Context(), f, log)
		},
	}
	c.Flags().StringVar(&f.nodeName, "node-name", "", "name of this machine's Node `object`")
	c.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "`file` with the access to the cluster (default: the service account of the pod)")
	c.Flags().StringVar(&f.hostRoot, "host-root", "/", "`directory` that the host's / is mounted on")
	c.Flags().StringVar(&f.stateDir, "state-dir", "/var/lib/braid", "`directory` of the host for what has to survive a restart")
	c.Flags().StringVar(&f.confDir, "cni-conf-dir", "/etc/cni/net.d", "`directory` of the host where the runtime looks for networks")
	c.Flags().StringVar(&f.binDir, "cni-bin-dir", "/opt/cni/bin", "`directories` of the host with plugins, separated by colons")
	c.Flags().StringVar(&f.socket, "runtime", "/run/containerd/containerd.sock", "`socket` of the runtime, on the host")
	c.Flags().StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	return c
}

func serveMigration(ctx context.Context, f migrateFlags, log *slog.Logger) error {
	if f.nodeName == "" {
		return fmt.Errorf("--node-name is needed: the name of this machine's Node object")
	}
	cluster, err := kube.ConnectMigrations(kube.Config{
		Kubeconfig: f.kubeconfig, NodeName: f.nodeName, UserAgent: "braidd-migrate/" + version, Log: log,
	})
	if err != nil {
		return err
	}
	defer cluster.Close()
	root := hostexec.Root(f.hostRoot)
	if err := install(shim, root.Path(filepath.SplitList(f.binDir)[0])); err != nil {
		return fmt.Errorf("put braid-cni where the runtime finds it: %w", err)
	}
	runtime, err := cri.Dial("unix://" + root.Path(f.socket))
	if err != nil {
		return err
	}
	defer runtime.Close()
	node := onnode.Node{
		Name: f.nodeName, Root: root, ConfDir: f.confDir, BinDirs: filepath.SplitList(f.binDir), Runtime: runtime,
	}
	part := agent.New(agent.Config{
		Node: f.nodeName, Root: root, ConfDir: f.confDir, StateDir: f.stateDir,
		Runtime: runtime, Cluster: cluster, Log: log, CNI: node,
	})
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf(":%d", migrate.NodePort))
	if err != nil {
		return fmt.Errorf("answer probes at the node's address: %w", err)
	}
	leader := &lead.Leader{Cluster: cluster, Node: f.nodeName, Log: log}
	answers := &probe.Server{Node: f.nodeName, Pod: "node " + f.nodeName}
	log.Info("braidd migrate serves", "version", version, "node", f.nodeName, "host", f.hostRoot)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return answers.Serve(ctx, listener) })
	group.Go(func() error { return part.Run(ctx) })
	group.Go(func() error {
		cluster.Lead(ctx, leader.Run)
		return nil
	})
	return group.Wait()
}
