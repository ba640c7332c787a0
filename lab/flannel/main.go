// Command flannel is flanneld with what a lab needs of it: the subnet manager
// that keeps leases in the cluster, and the backends vxlan and host-gw.
//
// Upstream's own main links every backend, among them one whose client library
// the module proxy does not serve. Everything that Flannel does to a node is
// upstream's code; only the wiring is here.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
)

// resync is how often, in seconds, the iptables rules are looked after;
// upstream's default.
const resync = 5

type options struct {
	kubeconfig, netConf, link, subnetFile string
	masquerade, kubeSubnets               bool
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig-file", "", "kubeconfig `file`")
	flag.StringVar(&o.netConf, "net-config-path", "/etc/kube-flannel/net-conf.json", "network configuration `file`")
	flag.StringVar(&o.link, "iface", "", "`link` to the other nodes; that of the default route unless given")
	flag.StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "`file` that tells the CNI plugin the node's subnet")
	flag.BoolVar(&o.masquerade, "ip-masq", false, "masquerade what leaves the pod network")
	flag.BoolVar(&o.kubeSubnets, "kube-subnet-mgr", true, "keep leases in the cluster; there is no other way here")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if !o.kubeSubnets {
		fmt.Fprintln(os.Stderr, "flannel: this one keeps its leases in the cluster only")
		os.Exit(2)
	}
	if err := run(ctx, o); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "flannel:", err)
		os.Exit(1)
	}
}

// run makes this node part of the Flannel network and keeps it so until ctx
// ends. The name of the node comes from NODE_NAME, or else is that of the pod
// POD_NAME in POD_NAMESPACE. Without a kubeconfig the pod's account is used.
func run(ctx context.Context, o options) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	manager, err := kube.NewSubnetManager(ctx, "", o.kubeconfig, "flannel.alpha.coreos.com", o.netConf, true)
	if err != nil {
		return fmt.Errorf("subnet manager: %w", err)
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	network, err := register(ctx, &tasks, manager, config, o.link)
	if err != nil {
		return err
	}
	rules := &iptables.IPTablesManager{}
	if err := protect(ctx, rules, config, network, o.masquerade); err != nil {
		return err
	}
	lease := network.Lease()
	if err := manager.HandleSubnetFile(o.subnetFile, config, o.masquerade, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("write %s: %w", o.subnetFile, err)
	}
	tasks.Go(func() { network.Run(ctx) })
	return manager.CompleteLease(ctx, lease, &tasks)
}

// register takes a lease and makes the links of the backend.
func register(ctx context.Context, tasks *sync.WaitGroup, manager subnet.Manager, config *subnet.Config, link string) (backend.Network, error) {
	family, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return nil, err
	}
	ext, err := ipmatch.LookupExtIface(link, "", "", family, ipmatch.PublicIPOpts{})
	if err != nil {
		return nil, fmt.Errorf("link to the other nodes: %w", err)
	}
	be, err := backend.NewManager(ctx, manager, ext).GetBackend(config.BackendType)
	if err != nil {
		return nil, err
	}
	network, err := be.RegisterNetwork(ctx, tasks, config)
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", config.BackendType, err)
	}
	return network, nil
}

// protect makes the iptables rules. A node of a lab keeps its subnet: there are
// no rules of an earlier one to replace.
func protect(ctx context.Context, rules trafficmngr.TrafficManager, config *subnet.Config, network backend.Network, masquerade bool) error {
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	if masquerade {
		var none ip.IP4Net
		var none6 ip.IP6Net
		err := rules.SetupAndEnsureMasqRules(ctx, config.Network, none, none,
			config.IPv6Network, none6, none6, network.Lease(), resync, false)
		if err != nil {
			return fmt.Errorf("masquerading: %w", err)
		}
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resync)
	return nil
}
