package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"braid.dev/braid/internal/guest"
)

// CNIs are the default networks that a lab can have:
//
//   - bridge: the reference plugins, with routes between the nodes;
//   - flannel, flannel-host-gw: Flannel with the backend vxlan or host-gw;
//   - cilium: Cilium in tunnel mode, which renames the configurations of
//     others (its exclusive mode, on by default);
//   - flannel-host-gw+cilium: both at once, Flannel's configuration first and
//     Cilium, with native routing and without exclusive mode, second;
//   - flannel+cilium-latent: Flannel with vxlan, and Cilium in tunnel mode on
//     another port, without a configuration of its own: what there is in the
//     middle of a migration before the first pod moves.
var CNIs = []string{"bridge", "flannel", "flannel-host-gw", "cilium", "flannel-host-gw+cilium", "flannel+cilium-latent"}

// ciliumPodNet is where pods on Cilium are.
var ciliumPodNet = netip.MustParsePrefix("172.20.0.0/16")

const (
	flannelModule = "github.com/flannel-io/flannel"
	ciliumModule  = "github.com/cilium/cilium"
	ciliumDir     = "lab/cilium"
)

// ciliumPackages are what Cilium's agent runs on a node: it compiles its eBPF
// programs there.
var ciliumPackages = []string{"clang-19", "ipset"}

var ciliumHostPrograms = map[string]string{"clang-19": "clang-19", "ipset": "ipset"}

// networkPrograms are those that only some labs need.
func networkPrograms() []program {
	return []program{
		{Name: "flanneld", For: "flannel", Module: "lab/flannel", Package: modulePath + "/lab/flannel", LDFlags: "-s -w"},
		{Name: "flannel", For: "flannel", Module: "lab/flannel-cni", Package: pluginsModule + "/plugins/meta/flannel", LDFlags: "-s -w"},
		{Name: "cilium-agent", For: "cilium", Module: ciliumDir, Package: ciliumModule + "/daemon", Tags: "osusergo", LDFlags: "-s -w"},
		{Name: "cilium-operator-generic", For: "cilium", Module: ciliumDir, Package: ciliumModule + "/operator",
			Tags: "osusergo,ipam_provider_operator", LDFlags: "-s -w"},
		{Name: "cilium-cni", For: "cilium", Module: ciliumDir, Package: ciliumModule + "/plugins/cilium-cni", LDFlags: "-s -w"},
		{Name: "cilium-dbg", For: "cilium", Module: ciliumDir, Package: ciliumModule + "/cilium-dbg", LDFlags: "-s -w"},
	}
}

// programs names what this lab runs.
func (c Config) programs() []string {
	var names []string
	for _, p := range programs() {
		if p.For == "" || p.For == "flannel" && c.flannelBackend() != "" || p.For == "cilium" && c.cilium() || p.For == "dns" && c.DNS {
			names = append(names, p.Name)
		}
	}
	return names
}

// flannelBackend is the backend of Flannel, empty without it.
func (c Config) flannelBackend() string {
	switch name, _, _ := strings.Cut(c.CNI, "+"); name {
	case "flannel":
		return "vxlan"
	case "flannel-host-gw":
		return "host-gw"
	}
	return ""
}

func (c Config) cilium() bool {
	return c.CNI == "cilium" || c.ciliumIsSecond() || c.ciliumIsLatent()
}

// ciliumIsSecond reports whether Cilium's configuration comes after another.
func (c Config) ciliumIsSecond() bool { return strings.HasSuffix(c.CNI, "+cilium") }

// ciliumIsLatent reports whether Cilium runs and no pod gets it.
func (c Config) ciliumIsLatent() bool { return strings.HasSuffix(c.CNI, "+cilium-latent") }

// podNet is where the first address of every pod is from.
func (c Config) podNet() netip.Prefix {
	switch {
	case c.CNI == "cilium":
		return ciliumPodNet
	case c.PodNet.IsValid():
		return c.PodNet
	default:
		return podNet
	}
}

// podSubnet is where the addresses of the pods of n are from; given is the
// node's podCIDR.
func (c Config) podSubnet(n node, given netip.Prefix) netip.Prefix {
	if !c.PodNet.IsValid() {
		return given
	}
	i := slices.Index(c.nodes(), n)
	return netip.PrefixFrom(addrAt(c.PodNet, i<<8), 24)
}

// bridge is the name of the bridge of the default network bridge. Flannel's is
// cni0: with ranges apart from its, both can be on a node.
func (c Config) bridge() string {
	if c.PodNet.IsValid() {
		return "podbr0"
	}
	return "cni0"
}

// ciliumSource finds the sources that Cilium was built from: its agent
// compiles some of them on the node.
func (c Config) ciliumSource(ctx context.Context) (string, error) {
	if !c.cilium() {
		return "", nil
	}
	root, err := sourceRoot(c.Source)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", ciliumModule)
	cmd.Dir = filepath.Join(root, ciliumDir)
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("sources of Cilium: go mod download: %w", err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("sources of Cilium: %w", err)
	}
	return module.Dir, nil
}

// networkScript puts the programs of the default network on a node.
func (b *builder) networkScript() string {
	var s strings.Builder
	if b.cfg.flannelBackend() != "" {
		fmt.Fprintf(&s, "ln -sf '%s' /opt/cni/bin/flannel\n", b.bin["flannel"])
	}
	if b.cfg.cilium() {
		fmt.Fprintf(&s, "ln -sf '%s' /opt/cni/bin/cilium-cni\n", b.bin["cilium-cni"])
		fmt.Fprintf(&s, "ln -sf '%s' /usr/local/bin/cilium-dbg\n", b.bin["cilium-dbg"])
		s.WriteString("ln -sf \"$(command -v clang-19)\" /usr/local/bin/clang\n")
		s.WriteString("mkdir -p /var/lib/cilium /run/cilium\n")
		fmt.Fprintf(&s, "cp -r '%s/bpf' /var/lib/cilium/bpf\n", b.ciliumSource)
	}
	return s.String()
}

// startNetwork brings the default network up on a node, to where its
// configuration is in the conf dir or comes by itself.
func (b *builder) startNetwork(ctx context.Context, g *guest.Guest, n node, all []nodeSubnet) error {
	if b.cfg.CNI == "bridge" {
		return b.startBridge(ctx, g, n, all)
	}
	if backend := b.cfg.flannelBackend(); backend != "" {
		if err := b.startFlannel(ctx, g, n, backend); err != nil {
			return fmt.Errorf("flannel: %w", err)
		}
	}
	if b.cfg.cilium() {
		if err := b.startCilium(ctx, g, n); err != nil {
			return fmt.Errorf("cilium: %w", err)
		}
	}
	return nil
}

func (b *builder) startBridge(ctx context.Context, g *guest.Guest, n node, all []nodeSubnet) error {
	routes := routeScript(n, all)
	if err := script(ctx, g, routes); err != nil {
		return fmt.Errorf("routes to the other nodes: %w", err)
	}
	if err := b.atBoot(n.Name, func(s *startup) { s.Script += routes }); err != nil {
		return err
	}
	for _, s := range all {
		if s.Node.Name == n.Name {
			return g.WriteFile(ctx, "/etc/cni/net.d/10-default.conflist", b.cfg.defaultNetwork(s.Subnet), 0o644)
		}
	}
	return errors.New("the node has no range")
}

// flannelSubnetFile is what flanneld writes when it is ready.
const flannelSubnetFile = "/run/flannel/subnet.env"

func (b *builder) startFlannel(ctx context.Context, g *guest.Guest, n node, backend string) error {
	if err := g.WriteFile(ctx, "/etc/kube-flannel/net-conf.json", flannelConfig(backend), 0o644); err != nil {
		return err
	}
	err := b.run(ctx, g, guest.Daemon{
		Name: "flanneld", Restart: true, Env: []string{"NODE_NAME=" + n.Name},
		Args: []string{
			b.bin["flanneld"], "-ip-masq", "-iface=" + mgmtNIC,
			"-kubeconfig-file=/etc/kubernetes/admin.kubeconfig", "-subnet-file=" + flannelSubnetFile,
		},
	})
	if err != nil {
		return err
	}
	wait := Wait{What: flannelSubnetFile + " on " + n.Name, Limit: 120 * time.Second}
	err = b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		code, err := g.Run(ctx, guest.Cmd{Args: []string{"/usr/bin/test", "-s", flannelSubnetFile}})
		if err == nil && code != 0 {
			err = errors.New("flanneld has not written it yet")
		}
		return err
	})
	if err != nil {
		return quote(err, g.DaemonLog("flanneld"))
	}
	return g.WriteFile(ctx, "/etc/cni/net.d/10-flannel.conflist", flannelNetwork(), 0o644)
}

// flannelConfig is Flannel's net-conf.json.
func flannelConfig(backend string) []byte {
	type m = map[string]any
	return render(m{"Network": podNet.String(), "EnableNFTables": false, "Backend": m{"Type": backend}}, json.Marshal)
}

// flannelNetwork is the configuration that Flannel's manifest installs.
func flannelNetwork() []byte {
	type m = map[string]any
	return render(m{
		"name": "cbr0", "cniVersion": "0.3.1",
		"plugins": []m{
			{"type": "flannel", "delegate": m{"hairpinMode": true, "isDefaultGateway": true}},
			{"type": "portmap", "capabilities": m{"portMappings": true}},
		},
	}, json.Marshal)
}

// ciliumOperator is the one operator of the cluster, beside the control plane.
func (b *builder) ciliumOperator() component {
	args := []string{
		"--k8s-kubeconfig-path=" + b.kubeconfig("admin"),
		"--cilium-pod-namespace=kube-system",
		"--remove-cilium-node-taints=false", "--set-cilium-is-up-condition=false", "--set-cilium-node-taints=false",
		"--operator-prometheus-serve-addr=:19963", "--operator-api-serve-addr=127.0.0.1:19234",
	}
	return component{"cilium-operator-generic", append(args, flags(ciliumCommon, ciliumPool)...)}
}

// flags are options as arguments, in the order of their names.
func flags(options ...map[string]string) []string {
	var list []string
	for _, o := range options {
		for name, value := range o {
			list = append(list, "--"+name+"="+value)
		}
	}
	slices.Sort(list)
	return list
}

// again runs a program for as long as the lab is there, as a Deployment would.
const again = `while :; do "$@"; echo "it ended with status $?; again"; sleep 1; done`

// startOperator starts what Cilium's agents wait for, once in a lab. It ends
// when it loses its lease, as it does while the API server is away.
func (b *builder) startOperator() error {
	if !b.cfg.cilium() {
		return nil
	}
	c := b.ciliumOperator()
	start := []string{"/usr/bin/env", "CILIUM_K8S_NAMESPACE=kube-system", "K8S_NODE_NAME=" + b.cfg.nodes()[0].Name,
		"/bin/sh", "-c", again, c.Name, b.bin[c.Name]}
	p, err := b.world.spawn(c.Name, b.log(c.Name), append(start, c.Args...))
	if err != nil {
		return err
	}
	return b.record(p)
}

// ciliumHealth asks the agent as the probes of its DaemonSet do. "cilium-dbg
// status" says the same, and is 80 MB to load from under QEMU.
const ciliumHealth = `exec 3<>/dev/tcp/127.0.0.1/9879 && printf 'GET /healthz HTTP/1.0\r\nHost: agent\r\nbrief: true\r\n\r\n' >&3 && cat <&3`

// startCilium starts the agent and waits until it says that all is well: its
// configuration is in the conf dir before it can serve a pod.
func (b *builder) startCilium(ctx context.Context, g *guest.Guest, n node) error {
	err := b.run(ctx, g, guest.Daemon{
		Name: "cilium-agent", Restart: true,
		Env:  []string{"K8S_NODE_NAME=" + n.Name, "CILIUM_K8S_NAMESPACE=kube-system"},
		Args: append([]string{b.bin["cilium-agent"]}, b.cfg.ciliumAgentArgs()...),
	})
	if err != nil {
		return err
	}
	wait := Wait{What: "Cilium's agent on " + n.Name, Limit: 240 * time.Second, Every: 300 * time.Millisecond}
	err = b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		if err := b.alive(); err != nil {
			return err
		}
		out, err := g.Output(ctx, "bash", "-c", ciliumHealth)
		if first, _, _ := strings.Cut(out, "\r\n"); err == nil && !strings.HasSuffix(first, " 200 OK") {
			err = fmt.Errorf("it says %q", first)
		}
		return err
	})
	return quote(err, g.DaemonLog("cilium-agent"))
}

// ciliumRoutes are the ranges that Cilium's operator gave to the nodes.
func (b *builder) ciliumRoutes(ctx context.Context) ([]nodeSubnet, error) {
	if !b.cfg.cilium() {
		return nil, nil
	}
	var list []nodeSubnet
	for _, n := range b.cfg.nodes() {
		var object struct {
			Spec struct {
				IPAM struct {
					PodCIDRs []netip.Prefix `json:"podCIDRs"`
				} `json:"ipam"`
			} `json:"spec"`
		}
		if err := b.api.get(ctx, "/apis/cilium.io/v2/ciliumnodes/"+n.Name, &object); err != nil {
			return nil, err
		}
		for _, subnet := range object.Spec.IPAM.PodCIDRs {
			list = append(list, nodeSubnet{n, subnet})
		}
	}
	return list, nil
}

// The options of Cilium, by their keys in its ConfigMap, which are those of the
// chart where they differ from the programs' defaults, without what needs more
// than a node of a lab is. Both programs get the common ones.
var (
	ciliumCommon = map[string]string{
		"cluster-name":             "default",
		"identity-allocation-mode": "crd",
		"enable-ipv4":              "true",
		"enable-ipv6":              "false",
		"ipam":                     "cluster-pool",
	}
	// ciliumPool is the operator's.
	ciliumPool = map[string]string{
		"cluster-pool-ipv4-cidr":      ciliumPodNet.String(),
		"cluster-pool-ipv4-mask-size": "24",
		// Nothing here was started to be restarted by it.
		"unmanaged-pod-watcher-interval": "0",
	}
)

// ciliumOptions are the agent's.
func (c Config) ciliumOptions() map[string]string {
	options := maps.Clone(ciliumCommon)
	maps.Copy(options, map[string]string{
		"kube-proxy-replacement":          "false",
		"enable-hubble":                   "false",
		"enable-l7-proxy":                 "false",
		"enable-health-checking":          "false",
		"enable-endpoint-health-checking": "false",
		"enable-k8s-networkpolicy":        "true",
	})
	tunnel := map[string]string{
		// Flannel's port is 8472, the default of this one: they may meet in a migration.
		"routing-mode": "tunnel", "tunnel-protocol": "vxlan", "tunnel-port": "8473",
	}
	switch {
	case c.ciliumIsSecond():
		maps.Copy(options, map[string]string{
			"routing-mode": "native", "auto-direct-node-routes": "true", "ipv4-native-routing-cidr": ciliumPodNet.String(),
			"cni-exclusive": "false", "write-cni-conf-when-ready": "/etc/cni/net.d/20-cilium.conflist",
		})
	case c.ciliumIsLatent():
		maps.Copy(options, tunnel)
		maps.Copy(options, map[string]string{
			"cni-exclusive": "false", "enable-policy": "never", "enable-host-legacy-routing": "true",
		})
	default:
		maps.Copy(options, tunnel)
		maps.Copy(options, map[string]string{
			"cni-exclusive": "true", "write-cni-conf-when-ready": "/etc/cni/net.d/05-cilium.conflist",
		})
	}
	return options
}

func (c Config) ciliumAgentArgs() []string {
	return append(flags(c.ciliumOptions()),
		"--k8s-kubeconfig-path=/etc/kubernetes/admin.kubeconfig", "--k8s-namespace=kube-system", "--procfs=/proc")
}
