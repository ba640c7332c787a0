// Command braidd is the daemon of a node: it serves the container runtime's
// CNI requests, which the shim braid-cni brings it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"braid.dev/braid/internal/confdir"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "braidd:", err)
		stop()
		os.Exit(exitCode(err))
	}
}

// flags are the daemon's command line (design, section 3).
type flags struct {
	nodeName     string
	kubeconfig   string
	noCluster    bool
	runDir       string
	stateDir     string
	confDir      string
	binDir       string
	procSysNet   string
	hostLocal    string
	hostDirs     string
	cacheDir     string
	multusCache  string
	runtime      string
	podResources string
	deviceInfo   string
	metrics      string
	configFile   string
	logLevel     string
	showVersion  bool
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:           "braidd",
		Short:         "Gives the pods of this node their networks",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.showVersion {
				fmt.Fprintln(c.OutOrStdout(), "braidd", version)
				return nil
			}
			log, err := newLogger(f.logLevel)
			if err != nil {
				return err
			}
			conf, err := readConfig(f.configFile)
			if err != nil {
				return err
			}
			return serve(c.Context(), f, conf, log)
		},
	}
	c.Flags().StringVar(&f.nodeName, "node-name", "", "name of this machine's Node `object` (required with a cluster)")
	c.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "`file` with the access to the cluster (default: the service account of braidd's pod)")
	c.Flags().BoolVar(&f.noCluster, "no-cluster", false, "serve without Kubernetes: every container gets the default network, pods are refused")
	c.Flags().StringVar(&f.runDir, "run-dir", "/run/braid", "`directory` of the socket, the same path for braidd and for the runtime")
	c.Flags().StringVar(&f.stateDir, "state-dir", "/var/lib/braid", "`directory` of what has to survive a restart, the same path for braidd and for the runtime")
	c.Flags().StringVar(&f.confDir, "cni-conf-dir", "/etc/cni/net.d", "`directory` where the runtime looks for networks")
	c.Flags().StringVar(&f.binDir, "cni-bin-dir", "/opt/cni/bin", "`directories` of the host with plugins, separated by colons, searched after CNI_PATH")
	c.Flags().StringVar(&f.procSysNet, "proc-sys-net", "", "`directory` where the host's /proc/sys/net can be written (default: /proc/sys/net)")
	c.Flags().StringVar(&f.hostLocal, "host-local-dir", "", "`directory` of host-local addresses (default: the reference plugin's)")
	c.Flags().StringVar(&f.hostDirs, "host-dirs", "", "`directories` of the host that are seen here at the same path, separated by colons; plugins that need others run on the host (default: all)")
	c.Flags().StringVar(&f.podResources, "pod-resources", "", "`socket` of the kubelet's podresources API, usually /var/lib/kubelet/pod-resources/kubelet.sock, for networks that are made of devices (default: there are none)")
	c.Flags().StringVar(&f.deviceInfo, "device-info-dir", "", "`directory` of device information files, where device plugins and CNI plugins expect it, /var/run/k8s.cni.cncf.io/devinfo (default: there are none)")
	c.Flags().StringVar(&f.cacheDir, "cni-cache-dir", "/var/lib/cni/results", "`directory` where the runtime's libcni keeps the results of its ADDs; it is read when records are lost")
	c.Flags().StringVar(&f.multusCache, "multus-cache-dir", "/var/lib/cni/multus/results", "`directory` where Multus kept the results of its ADDs; it is read when a pod of before Braid is deleted")
	c.Flags().StringVar(&f.runtime, "runtime-endpoint", "", "the runtime's CRI `socket`, to be asked which containers it has (default: not asked; whoever may use it is root on the node)")
	c.Flags().StringVar(&f.metrics, "metrics-address", "", "`address` where Prometheus finds metrics at /metrics, such as 127.0.0.1:9747 (default: nowhere)")
	c.Flags().StringVar(&f.configFile, "config", "", "`file` with settings in YAML")
	c.Flags().StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	c.Flags().BoolVar(&f.showVersion, "version", false, "print the version")
	c.AddCommand(statusCommand(), installCommand(), probeCommand(), migrateCommand(), factsCommand(), uninstallCommand())
	return c
}

// place is what the shim is told, in its conf.
func (f flags) place() confdir.Place { return confdir.Place{Socket: f.socket(), Notes: f.notes()} }

// notes is where the shim leaves word of the DELs of which nobody took notice.
func (f flags) notes() string { return filepath.Join(f.stateDir, "notes") }

func (f flags) socket() string { return filepath.Join(f.runDir, "braid.sock") }

// newLogger makes the process's one logger, and has client-go use it too.
func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: it must be debug, info, warn or error", level)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
	klog.SetSlogLogger(log.With("from", "client-go"))
	return log, nil
}
