package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/guest"
)

// nodePrograms are in /usr/local/bin of every node, where people and programs
// such as containerd, which looks for its shim on PATH, expect them.
var nodePrograms = []string{"containerd", "containerd-shim-runc-v2", "ctr", "kubelet", "kube-proxy", "kubectl"}

// nodeModules are what kube-proxy, portmap and the bridge plugin want of the
// kernel. iptables would ask for most of them by itself, one rule at a time.
var nodeModules = []string{
	"br_netfilter", "overlay", "veth",
	"iptable_filter", "iptable_nat", "iptable_mangle", "ip6table_filter", "ip6table_nat", "ip6table_mangle",
	"nf_conntrack", "nf_conntrack_netlink", "xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_MASQUERADE",
	"xt_nat", "xt_recent", "xt_statistic", "xt_tcpudp", "xt_multiport", "xt_physdev", "xt_REDIRECT",
}

// A machine is what a guest is given beside its links.
type machine struct {
	kernel     guest.Kernel
	processors int // 0: those that it has
	memoryMiB  int
	modules    []string
	sysctls    map[string]string
	// disk says that what is written there survives a restart.
	disk bool
}

// clusterMachine is the machine of a node: a router between its pods and the
// others, which also sees what its bridges forward, as kube-proxy needs it.
func (c Config) clusterMachine() machine {
	return machine{
		kernel:     c.NodeKernel,
		processors: processors(c.NodeKernel),
		memoryMiB:  c.NodeMemoryMiB,
		disk:       c.Disk,
		modules:    nodeModules,
		sysctls: map[string]string{
			"net.ipv4.ip_forward":                "1",
			"net.bridge.bridge-nf-call-iptables": "1",
		},
	}
}

// processors is how many a node has of this machine's, where there is a choice.
// On one, under QEMU, Cilium's agent is ready after two minutes instead of one
// half, and pods come up too late for anyone who waits for them.
func processors(kernel guest.Kernel) int {
	if kernel != guest.QEMU {
		return 0
	}
	const most = 4
	return min(runtime.NumCPU(), most)
}

// boot starts the guest of n with its links on the management bridge and the
// trunk.
func (b *builder) boot(ctx context.Context, n node, m machine) (*guest.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, 120*time.Second)
	defer cancel()
	hosts := map[string]netip.Addr{}
	for _, other := range b.cfg.guests() {
		hosts[other.Name] = other.Addr
	}
	disk := ""
	if m.disk {
		disk = b.disk(n.Name)
	}
	g, err := guest.Start(ctx, guest.Config{
		Kernel:     m.kernel,
		Processors: m.processors,
		Name:       n.Name,
		MemoryMiB:  m.memoryMiB,
		Dir:        b.guest(n.Name),
		Disk:       disk,
		NetNS:      b.netns(),
		Cgroup:     b.world.group.dir,
		NICs: []guest.NIC{
			{Name: mgmtNIC, Tap: n.Tap + "m", Bridge: mgmtBridge, Addr: netip.PrefixFrom(n.Addr, mgmtNet.Bits()), Gateway: mgmtHost},
			{Name: TrunkNIC, Tap: n.Tap + "t", Bridge: trunk},
		},
		Hosts:   hosts,
		Modules: m.modules,
		Sysctls: m.sysctls,
	})
	if err != nil {
		return nil, err
	}
	if m.kernel == guest.Host {
		b.progress.Printf("%s: its namespaces are there, at %s", n.Name, n.Addr)
	} else {
		b.progress.Printf("%s: its kernel runs at %s", n.Name, n.Addr)
	}
	return g, nil
}

// startNode brings one node up to the point where its kubelet reports Ready
// as soon as all nodes' pod ranges are known.
func (b *builder) startNode(ctx context.Context, n node, images []string) error {
	g, err := b.boot(ctx, n, b.cfg.clusterMachine())
	if err != nil {
		return err
	}
	if err := b.furnish(ctx, g, n); err != nil {
		return fmt.Errorf("prepare its files: %w", err)
	}
	if err := b.run(ctx, g, containerd); err != nil {
		return err
	}
	if err := b.waitContainerd(ctx, g, n); err != nil {
		return err
	}
	for _, image := range images {
		if err := loadImage(ctx, g, image); err != nil {
			return err
		}
	}
	b.progress.Printf("%s: containerd runs, images are loaded", n.Name)
	if err := b.waitAPI(ctx); err != nil {
		return err
	}
	for _, d := range nodeDaemons(n) {
		if err := b.run(ctx, g, d); err != nil {
			return err
		}
	}
	subnet, err := b.waitPodCIDR(ctx, g, n)
	if err != nil {
		return err
	}
	return b.connect(ctx, g, n, subnet)
}

// furnish writes the node's files and links its programs into place.
func (b *builder) furnish(ctx context.Context, g *guest.Guest, n node) error {
	files := map[string][]byte{
		"/etc/containerd/config.toml":  b.cfg.containerdConfig(),
		"/etc/kubernetes/kubelet.yaml": b.cfg.kubeletConfig(b.world.group.root(n)),
		"/etc/kubernetes/proxy.yaml":   b.cfg.proxyConfig(n),
	}
	for to, from := range map[string]string{
		"/etc/kubernetes/ca.crt":             b.pki("ca.crt"),
		"/etc/kubernetes/kubelet.crt":        b.pki(n.Name + ".crt"),
		"/etc/kubernetes/kubelet.key":        b.pki(n.Name + ".key"),
		"/etc/kubernetes/kubelet.kubeconfig": b.kubeconfig(n.Name),
		"/etc/kubernetes/proxy.kubeconfig":   b.kubeconfig("kube-proxy"),
		// For what a DaemonSet with rights of its own would do.
		"/etc/kubernetes/admin.kubeconfig": b.kubeconfig("admin"),
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		files[to] = data
	}
	for path, data := range files {
		if err := g.WriteFile(ctx, path, data, 0o600); err != nil {
			return err
		}
	}
	return script(ctx, g, b.furnishScript())
}

// furnishScript links programs to where a distribution would have installed
// them. The guest sees the host's files, so that a link is enough.
func (b *builder) furnishScript() string {
	var s strings.Builder
	s.WriteString("mkdir -p /opt/cni/bin /etc/cni/net.d /usr/local/bin\n")
	for _, name := range nodePrograms {
		fmt.Fprintf(&s, "ln -sf '%s' '/usr/local/bin/%s'\n", b.bin[name], name)
	}
	for _, path := range referencePlugins {
		name := filepath.Base(path)
		fmt.Fprintf(&s, "ln -sf '%s' '/opt/cni/bin/%s'\n", b.bin[name], name)
	}
	s.WriteString(b.networkScript())
	if b.cfg.NodeKernel != guest.UML {
		return s.String()
	}
	// The guest's kernel has no nf_tables for IP; its iptables is the old one.
	for _, name := range iptablesNames {
		fmt.Fprintf(&s, "ln -sf /usr/sbin/xtables-legacy-multi '/usr/sbin/%s'\n", name)
	}
	return s.String()
}

// script runs shell commands in the guest, all of them or until one fails.
func script(ctx context.Context, g *guest.Guest, text string) error {
	var out bytes.Buffer
	code, err := g.Run(ctx, guest.Cmd{
		Args: []string{"/bin/sh", "-e"}, Stdin: strings.NewReader(text), Stdout: &out, Stderr: &out,
	})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d: %s", code, tail(out.Bytes(), 5))
	}
	return err
}

const containerdSocket = "/run/containerd/containerd.sock"

var containerd = guest.Daemon{
	Name: "containerd", Restart: true,
	Args: []string{"/usr/local/bin/containerd", "--config", "/etc/containerd/config.toml"},
}

func (b *builder) waitContainerd(ctx context.Context, g *guest.Guest, n node) error {
	wait := Wait{What: "containerd on " + n.Name, Limit: 120 * time.Second, Every: 200 * time.Millisecond}
	err := b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		code, err := g.Run(ctx, guest.Cmd{Args: []string{"/usr/bin/test", "-S", containerdSocket}})
		if err == nil && code != 0 {
			err = errors.New("its socket is not there")
		}
		return err
	})
	return quote(err, g.DaemonLog("containerd"))
}

// nodeDaemons are what makes a guest with containerd a node.
func nodeDaemons(n node) []guest.Daemon {
	return []guest.Daemon{
		{Name: "kubelet", Restart: true, Args: []string{
			"/usr/local/bin/kubelet",
			"--config=/etc/kubernetes/kubelet.yaml",
			"--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
			"--hostname-override=" + n.Name,
			"--node-ip=" + n.Addr.String(),
		}},
		{Name: "kube-proxy", Restart: true, Args: []string{
			"/usr/local/bin/kube-proxy", "--config=/etc/kubernetes/proxy.yaml",
		}},
	}
}

// loadImage imports a docker or OCI archive of the host.
func loadImage(ctx context.Context, g *guest.Guest, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer f.Close()
	var out bytes.Buffer
	code, err := g.Run(ctx, guest.Cmd{
		Args:  []string{"/usr/local/bin/ctr", "--namespace", "k8s.io", "images", "import", "--local", "-"},
		Stdin: io.Reader(f), Stdout: &out, Stderr: &out,
	})
	if err == nil && code != 0 {
		err = fmt.Errorf("ctr: exit status %d: %s", code, tail(out.Bytes(), 5))
	}
	if err != nil {
		return fmt.Errorf("load image %s on %s: %w", path, g.Name(), err)
	}
	return nil
}

func (b *builder) waitPodCIDR(ctx context.Context, g *guest.Guest, n node) (subnet netip.Prefix, err error) {
	wait := Wait{What: "the pod range of " + n.Name, Limit: 120 * time.Second}
	err = b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		if err := b.alive(); err != nil {
			return err
		}
		subnet, err = b.api.podCIDR(ctx, n.Name)
		return err
	})
	return subnet, quote(err, g.DaemonLog("kubelet"))
}

// connect writes the default network's configuration, which is what makes the
// node Ready, once the routes to the other nodes' pods exist.
func (b *builder) connect(ctx context.Context, g *guest.Guest, n node, subnet netip.Prefix) error {
	subnet = b.cfg.podSubnet(n, subnet)
	all, err := b.subnets.exchange(ctx, n, subnet)
	if err != nil {
		return err
	}
	if err := b.startNetwork(ctx, g, n, all); err != nil {
		return fmt.Errorf("default network %s: %w", b.cfg.CNI, err)
	}
	if err := b.waitNodeReady(ctx, g, n, time.Time{}); err != nil {
		return err
	}
	b.progress.Printf("%s: Ready, pods are in %s", n.Name, subnet)
	return nil
}

// waitNodeReady waits until the kubelet of a node reports Ready, and does so
// since a moment.
func (b *builder) waitNodeReady(ctx context.Context, g *guest.Guest, n node, since time.Time) error {
	wait := Wait{What: "node " + n.Name + " to be Ready", Limit: 240 * time.Second}
	err := b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		if err := b.alive(); err != nil {
			return err
		}
		state, err := b.api.node(ctx, n.Name)
		if err != nil {
			return err
		}
		return nodeReady(state, since)
	})
	return quote(err, g.DaemonLog("kubelet"))
}

// routeScript sends what is for the pods of other nodes to those nodes.
func routeScript(self node, all []nodeSubnet) string {
	var s strings.Builder
	for _, other := range all {
		if other.Node.Name != self.Name {
			fmt.Fprintf(&s, "ip route replace %s via %s\n", other.Subnet, other.Node.Addr)
		}
	}
	return s.String()
}

// defaultNetwork is the conflist of the reference plugins for one node's pods.
// Pods keep their own address on the way out: every host of the lab knows the
// way back.
func (c Config) defaultNetwork(subnet netip.Prefix) []byte {
	type m = map[string]any
	return render(m{
		"cniVersion": "1.0.0",
		"name":       "default",
		"plugins": []m{
			{
				"type": "bridge", "bridge": c.bridge(), "isDefaultGateway": true, "hairpinMode": true,
				"ipam": m{"type": "host-local", "ranges": [][]m{{{"subnet": subnet.String()}}}},
			},
			{"type": "portmap", "capabilities": m{"portMappings": true}},
		},
	}, json.Marshal)
}

func (c Config) kubeletConfig(cgroupRoot string) []byte {
	type m = map[string]any
	config := m{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": m{
			"anonymous": m{"enabled": false},
			"webhook":   m{"enabled": true},
			"x509":      m{"clientCAFile": "/etc/kubernetes/ca.crt"},
		},
		"authorization":            m{"mode": "Webhook"},
		"tlsCertFile":              "/etc/kubernetes/kubelet.crt",
		"tlsPrivateKeyFile":        "/etc/kubernetes/kubelet.key",
		"cgroupDriver":             "cgroupfs",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"failSwapOn":               false,
		"resolvConf":               "/etc/resolv.conf",
		// The disk is the host's; what is free there says nothing of the node.
		"evictionHard":                m{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100,
		// The guest's kernel has no cpuset controller, which this would use.
		"enforceNodeAllocatable": []string{"none"},
		"volumePluginDir":        "/var/lib/kubelet/plugins/volume",
	}
	if c.DNS {
		config["clusterDNS"], config["clusterDomain"] = []string{DNSService.String()}, "cluster.local"
	}
	if c.NodeKernel == guest.Host {
		config["cgroupRoot"] = cgroupRoot
		config["failCgroupV1"] = false
		config["oomScoreAdj"] = 0 // a lower one may not be permitted
	}
	return render(config, yaml.Marshal)
}

func (c Config) proxyConfig(n node) []byte {
	settings := c.proxySettings()
	settings["hostnameOverride"], settings["bindAddress"] = n.Name, n.Addr.String()
	return render(settings, yaml.Marshal)
}

// proxySettings are kube-proxy's on every node.
func (c Config) proxySettings() map[string]any {
	type m = map[string]any
	return m{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"mode":             "iptables",
		"detectLocalMode":  "ClusterCIDR",
		"clusterCIDR":      c.proxyCIDR(),
		"oomScoreAdj":      0,
		"clientConnection": m{"kubeconfig": "/etc/kubernetes/proxy.kubeconfig"},
		// The guest's table is sized by its memory.
		"conntrack": m{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

// proxyCIDR is what kube-proxy takes for the addresses of all pods: a client
// outside of it is masqueraded when it asks a service.
func (c Config) proxyCIDR() string {
	switch c.ClusterCIDR {
	case "":
		return c.podNet().String()
	case NoClusterCIDR:
		return ""
	default:
		return c.ClusterCIDR
	}
}

// render marshals what is built of maps, strings and numbers only.
func render(v any, marshal func(any) ([]byte, error)) []byte {
	data, err := marshal(v)
	if err != nil {
		panic(err) // such a value always marshals
	}
	return data
}

// containerdConfig is the same on every node. One configuration of the
// directory is loaded, as on a cluster that was set up with defaults, unless
// the lab was asked for more.
func (c Config) containerdConfig() []byte {
	return fmt.Appendf(nil, containerdTemplate, c.NodeKernel == guest.Host, c.MaxConfNum)
}

const containerdTemplate = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs"]

[grpc]
  address = "` + containerdSocket + `"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + pauseImage + `"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = %[1]t
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
    max_conf_num = %[2]d
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "/usr/sbin/runc"
        SystemdCgroup = false
`
