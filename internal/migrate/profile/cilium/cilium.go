// Package cilium knows Cilium: the keys of cilium-config, how an installation is
// kept latent, its agent's health, and the programs, rules and maps that it
// leaves.
package cilium

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
)

// Profile is Cilium's.
type Profile struct{}

// Name is "cilium".
func (Profile) Name() string { return "cilium" }

const (
	defaultConf = "05-cilium.conflist"
	network     = "cilium"
	// healthName is the name in Side.Ports of what Ready asks.
	healthName    = "agent health"
	defaultHealth = 9879
)

// confText is what the agent would write itself.
const confText = `{"cniVersion": "0.3.1", "name": "cilium", "plugins": [
  {"type": "cilium-cni", "enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log"}]}
`

func isConf(l profile.List) bool { return l.Has("cilium-cni") }

func isConfigMap(m corev1.ConfigMap) bool { return m.Name == "cilium-config" }

func isDaemonSet(d appsv1.DaemonSet) bool {
	return slices.ContainsFunc(d.Spec.Template.Spec.Containers, func(c corev1.Container) bool {
		return c.Name == "cilium-agent" || slices.ContainsFunc(profile.Args(c), func(a string) bool { return path.Base(a) == "cilium-agent" })
	})
}

// config are the keys of cilium-config.
type config map[string]string

// or is the key's value, or the agent's default.
func (c config) or(key, otherwise string) string { return profile.FirstOf(c[key], otherwise) }

// is says whether a switch is on, as the agent reads it.
func (c config) is(key string, otherwise bool) bool {
	switch strings.ToLower(c[key]) {
	case "true", "t", "1":
		return true
	case "false", "f", "0":
		return false
	}
	return otherwise
}

// Detect implements profile.Profile.
func (p Profile) Detect(c preflight.Cluster) (preflight.Side, int) {
	s := preflight.Side{Profile: p.Name(), Network: network, ConfFile: defaultConf, Plugins: []string{"cilium-cni"}}
	score := 0
	if conf, n := profile.ConfOf(c, isConf); n > 0 {
		score += n
		profile.FromConf(&s, conf)
	}
	var cfg config
	if cm := profile.ConfigMap(c, isConfigMap); cm != nil {
		score += profile.ScoreSettings
		cfg = cm.Data
		s.Evidence = append(s.Evidence, fmt.Sprintf("ConfigMap %s/%s", cm.Namespace, cm.Name))
	}
	if d := profile.DaemonSet(c, isDaemonSet); d != nil {
		score += profile.ScoreWorkload
		s.Workloads = append(s.Workloads, profile.Workload("DaemonSet", d.Namespace, d.Name))
		s.Evidence = append(s.Evidence, fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name))
		for _, container := range d.Spec.Template.Spec.Containers {
			s.Version = profile.FirstOf(s.Version, profile.Tag(container.Image))
		}
	}
	for _, d := range c.Deployments {
		if strings.HasPrefix(d.Name, "cilium-operator") {
			s.Workloads = append(s.Workloads, profile.Workload("Deployment", d.Namespace, d.Name))
		}
	}
	if n := profile.LinksOf(c, "cilium_host"); n > 0 {
		score += profile.ScoreTrace
		s.Evidence = append(s.Evidence, fmt.Sprintf("link cilium_host on %d nodes", n))
	}
	addresses(&s, cfg, c)
	datapath(&s, cfg)
	masquerade(&s, cfg)
	services(&s, cfg)
	ports(&s, cfg)
	install(&s, cfg)
	s.Links = []string{"cilium_*", "lxc*"}
	s.Needs = append(s.Needs, "bpffs", "cgroup2")
	s.MinKernel = "5.10"
	s.HostGateway = preflight.Yes
	s.Settings = map[string]string{
		"tunnel-port": "tunnelPort", "tunnel-protocol": "tunnelProtocol", "pod-cidr": "ipam.operator.clusterPoolIPv4PodCIDRList", "ipam": "ipam.mode",
		"mtu": "MTU", "exclusive": "cni.exclusive", "masquerade": "enableIPv4Masquerade", "masquerade-except": "ipv4NativeRoutingCIDR",
		"devices": "devices", "hostport": "cni.chainingMode=portmap", "policy": "policyEnforcementMode", "legacy-routing": "bpf.hostLegacyRouting",
		"restarts-pods": "operator.unmanagedPodWatcher.restart", "latent": "cni.customConf", "ports": "healthPort",
	}
	return s, score
}

// addresses fills where pods' addresses are from.
func addresses(s *preflight.Side, cfg config, c preflight.Cluster) {
	mode := cfg.or("ipam", "cluster-pool")
	s.IPAM = preflight.IPAM{Source: "pool", Mode: mode, MoreBlocks: mode == "multi-pool", Blocks: nodeObjects(c)}
	switch mode {
	case "kubernetes":
		s.IPAM.Source, s.IPAM.MoreBlocks = "node", false
		s.IPAM.Blocks = profile.NodeBlocks(c)
		s.IPAM.NodeMask4, s.IPAM.NodeMask6 = profile.Masks(s.IPAM.Blocks)
		s.PodCIDRs = profile.Prefixes(cfg["ipv4-native-routing-cidr"], cfg["ipv6-native-routing-cidr"])
	case "cluster-pool", "cluster-pool-v2beta":
		s.IPAM.NodeMask4 = profile.Number(cfg["cluster-pool-ipv4-mask-size"], 24)
		s.IPAM.NodeMask6 = profile.Number(cfg["cluster-pool-ipv6-mask-size"], 120)
		if cfg.is("enable-ipv4", true) {
			s.PodCIDRs = append(s.PodCIDRs, profile.Prefixes(cfg["cluster-pool-ipv4-cidr"])...)
		}
		if cfg.is("enable-ipv6", false) {
			s.PodCIDRs = append(s.PodCIDRs, profile.Prefixes(cfg["cluster-pool-ipv6-cidr"])...)
		}
	}
	if len(s.PodCIDRs) == 0 {
		s.PodCIDRs = profile.Cover(s.IPAM.Blocks)
	}
}

// nodeObjects are the blocks in CiliumNode objects.
func nodeObjects(c preflight.Cluster) map[string][]netip.Prefix {
	blocks := map[string][]netip.Prefix{}
	for _, o := range profile.Others(c, "cilium.io", "CiliumNode") {
		cidrs, _, _ := unstructured.NestedStringSlice(o.Object, "spec", "ipam", "podCIDRs")
		if got := profile.Prefixes(cidrs...); len(got) > 0 {
			blocks[o.GetName()] = got
		}
	}
	return blocks
}

// datapath fills how packets get to other nodes, in the words of this and of
// older versions.
func datapath(s *preflight.Side, cfg config) {
	protocol, mode := cfg.or("tunnel-protocol", "vxlan"), cfg.or("routing-mode", "tunnel")
	switch old := cfg["tunnel"]; old { // until 1.14
	case "":
	case "disabled":
		mode = "native"
	default:
		protocol = old
	}
	s.Seen = preflight.Seen{Same: "cilium_host", Other: "cilium_host"}
	s.MTU = profile.Number(cfg["mtu"], 0)
	s.Bypasses = !cfg.is("enable-host-legacy-routing", false)
	if cfg["devices"] != "" {
		s.Pinned = strings.Fields(strings.ReplaceAll(cfg["devices"], ",", " "))
	} else {
		s.Autodetect = "devices"
	}
	if mode == "native" {
		s.Transport = "routes"
		return
	}
	port := 8472
	if protocol == "geneve" {
		port = 6081
	}
	if p := profile.Number(cfg["tunnel-port"], 0); p != 0 {
		port = p
	}
	s.Transport, s.Overhead, s.Needs = protocol, 50, []string{protocol}
	s.Tunnel = &facts.Tunnel{Kind: protocol, Port: uint16(port), External: true}
}

// masquerade fills the rules that rewrite sources. By iptables the node's own
// block is exempt, and everything that leaves by a link of Cilium's.
func masquerade(s *preflight.Side, cfg config) {
	except := profile.Prefixes(cfg["ipv4-native-routing-cidr"], cfg["ipv6-native-routing-cidr"])
	four := cfg.is("enable-ipv4", true) && cfg.is("enable-ipv4-masquerade", cfg.is("masquerade", true))
	six := cfg.is("enable-ipv6", false) && cfg.is("enable-ipv6-masquerade", true)
	if !four && !six {
		return
	}
	m := preflight.Masquerade{Name: "CILIUM_POST_nat", Backend: "iptables", Out: true, In: s.Tunnel != nil, Except: except}
	if cfg.is("enable-bpf-masquerade", false) {
		m.Name, m.Backend, m.In = "bpf_host", "bpf", false
	}
	s.Masquerades = append(s.Masquerades, m)
}

// services fills what else is done besides moving packets.
func services(s *preflight.Side, cfg config) {
	kpr := cfg.or("kube-proxy-replacement", "false")
	s.KubeProxyReplacement = slices.Contains([]string{"true", "strict"}, kpr)
	s.SocketLB = s.KubeProxyReplacement || cfg.is("bpf-lb-sock", false)
	if cfg.is("bpf-lb-sock-hostns-only", false) && !s.KubeProxyReplacement {
		s.SocketLB = true
	}
	switch {
	case s.KubeProxyReplacement:
		s.HostPort = "native"
	case cfg["cni-chaining-mode"] == "portmap" || slices.Contains(s.Chained, "portmap"):
		s.HostPort = "portmap"
	default:
		s.HostPort = "none"
	}
	s.Policies = []string{"CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"}
	if cfg.is("enable-k8s-networkpolicy", true) {
		s.Policies = append(s.Policies, "NetworkPolicy")
	}
	s.Enforces = cfg.or("enable-policy", "default") != "never"
}

func ports(s *preflight.Side, cfg config) {
	port := func(key string, otherwise int, name, setting string, local bool) {
		if n := profile.Number(strings.TrimPrefix(cfg[key], ":"), otherwise); n > 0 && n < 1<<16 {
			s.Ports = append(s.Ports, preflight.Port{Port: uint16(n), Protocol: "tcp", Name: name, Setting: setting, Local: local})
		}
	}
	port("agent-health-port", defaultHealth, healthName, "healthPort", true)
	if cfg.is("enable-health-checking", true) {
		port("cluster-health-port", 4240, "cluster health", "clusterHealthPort", false)
	}
	if cfg.is("enable-hubble", false) {
		port("hubble-listen-address", 4244, "hubble", "hubble.listenAddress", false)
	}
	if cfg["operator-prometheus-serve-addr"] != "" {
		port("operator-prometheus-serve-addr", 9963, "operator metrics", "operator.prometheus.port", false)
	}
	if cfg["prometheus-serve-addr"] != "" {
		port("prometheus-serve-addr", 9962, "agent metrics", "prometheus.port", false)
	}
}

// install fills what it does to other CNIs. Without settings to read, as when
// only its configuration is there, its defaults are assumed.
func install(s *preflight.Side, cfg config) {
	file := cfg["write-cni-conf-when-ready"]
	if file != "" {
		s.ConfFile = path.Base(file)
	}
	custom := cfg.is("custom-cni-conf", false)
	s.WritesConf = file != "" && !custom
	s.Exclusive = s.WritesConf && cfg.is("cni-exclusive", true)
	if cfg != nil {
		interval := cfg.or("unmanaged-pod-watcher-interval", "15s")
		s.RestartsPods = interval != "0" && interval != "0s"
	}
}

// Conf implements profile.Profile.
func (Profile) Conf(to, _ preflight.Side) (profile.Conf, error) {
	return profile.Conf{File: profile.FirstOf(to.ConfFile, defaultConf), Text: confText}, nil
}

// Latent implements profile.Profile.
func (Profile) Latent(objects []unstructured.Unstructured) []profile.Change {
	var out []profile.Change
	for _, o := range objects {
		if o.GetKind() != "ConfigMap" || o.GetName() != "cilium-config" {
			continue
		}
		data, _, _ := unstructured.NestedStringMap(o.Object, "data")
		for _, ch := range latent(data) {
			ch.Object = profile.Name(o)
			out = append(out, ch)
		}
	}
	return out
}

// latent compares the settings with those of an installation that waits.
func latent(cfg config) []profile.Change {
	var out []profile.Change
	want := func(bad bool, key, value, chart, why string) {
		if bad {
			out = append(out, profile.Change{Setting: key, Have: cfg[key], Want: value, Value: chart, Why: why})
		}
	}
	custom := cfg.is("custom-cni-conf", false)
	writes := cfg["write-cni-conf-when-ready"] != "" && !custom
	want(!custom, "custom-cni-conf", "true", "cni.customConf=true", "the agent would write its configuration before its turn")
	want(writes && cfg.is("cni-exclusive", true), "cni-exclusive", "false", "cni.exclusive=false", "the agent would rename the configuration of the other CNI")
	want(cfg.is("cni-uninstall", false), "cni-uninstall", "false", "cni.uninstall=false", "an agent that restarts would take the configuration away")
	interval := cfg.or("unmanaged-pod-watcher-interval", "15s")
	want(interval != "0" && interval != "0s", "unmanaged-pod-watcher-interval", "0", "operator.unmanagedPodWatcher.restart=false", "the operator would delete pods that the other CNI made")
	want(cfg.or("enable-policy", "default") != "never", "enable-policy", "never", "policyEnforcementMode=never", "pods of the other CNI are strangers to its policies")
	want(!cfg.is("enable-host-legacy-routing", false), "enable-host-legacy-routing", "true", "bpf.hostLegacyRouting=true", "packets must pass the host's routing to reach pods of the other CNI")
	tunnel := cfg.or("routing-mode", "tunnel") == "tunnel" && cfg["tunnel"] != "disabled"
	vxlan := profile.FirstOf(cfg["tunnel"], cfg["tunnel-protocol"], "vxlan") == "vxlan"
	want(tunnel && vxlan && profile.Number(cfg["tunnel-port"], 8472) == 8472, "tunnel-port", "8473", "tunnelPort=8473", "the port 8472 is Flannel's, and two kinds of vxlan links cannot share one")
	return out
}

// Ready implements profile.Profile: the agent says that it is well, and its link
// is there.
func (Profile) Ready(ctx context.Context, n profile.NodeView, s preflight.Side) string {
	if missing := profile.MissingPlugins(n, "cilium-cni"); missing != "" {
		return missing
	}
	links, err := n.Links()
	if err != nil {
		return err.Error()
	}
	if wrong := profile.Up(links, "cilium_host"); wrong != "" {
		return wrong
	}
	port := uint16(defaultHealth)
	for _, p := range s.Ports {
		if p.Name == healthName {
			port = p.Port
		}
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/healthz", port)
	status, err := n.Get(ctx, url, map[string]string{"brief": "true"})
	if err != nil {
		return "the agent's health: " + err.Error()
	}
	if status != 200 {
		return fmt.Sprintf("the agent's health: %s answers %d", url, status)
	}
	return profile.Ready
}

// Leftovers implements profile.Profile.
func (p Profile) Leftovers(s preflight.Side) spec.Spec {
	name := profile.FirstOf(s.Network, network)
	conf := profile.FirstOf(s.ConfFile, defaultConf)
	return spec.Spec{
		Profile: p.Name(), Network: name, PodCIDRs: s.PodCIDRs,
		// lxc_health is the agent's own endpoint.
		Links: []spec.LinkPattern{{Name: "cilium_*"}, {Name: "lxc*", Kinds: []string{"veth", "netkit"}}},
		Routes: []spec.RoutePattern{
			{Within: true, Gateway: true}, // autoDirectNodeRoutes
			{Table: 2004}, {Table: 2005}, {Table: 202, Within: true},
		},
		Rules:     []spec.RulePattern{{Table: 2004}, {Table: 2005}, {Table: 202, Priority: 112}},
		LocalRule: 100,
		Chains:    []string{"CILIUM_*", "OLD_CILIUM_*"},
		Comments:  []string{"cilium: *", "cilium-feeder: *"},
		Portmap:   s.HostPort == "portmap",
		IPSets:    []string{"cilium_node_set_v4", "cilium_node_set_v6"},
		Programs:  []string{"cil_*", "cilium-*", "cilium_*", "bpf_host*", "bpf_netdev*", "bpf_network*", "bpf_overlay*", "bpf_lxc*"},
		Files: append([]spec.FilePattern{
			{Glob: "sys/fs/bpf/cilium", Kind: spec.Pin}, {Glob: "sys/fs/bpf/tc/globals/cilium_*", Kind: spec.Pin},
			{Glob: "run/cilium/cgroupv2", Kind: spec.Mount}, {Glob: "run/cilium/bpffs", Kind: spec.Mount},
			{Glob: "run/cilium"}, {Glob: "var/lib/cilium"},
			{Glob: "etc/sysctl.d/99-zzz-override_cilium.conf"},
			{Glob: "etc/cni/net.d/*.cilium_bak", Kind: spec.Foreign},
		}, spec.NetworkFiles(name, profile.DefaultConfDir, conf)...),
		Stays: []string{
			"net.ipv4.ip_forward and net.ipv4.conf.*.rp_filter stay as the agent set them: others may need them by now",
			"/opt/cni/bin/cilium-cni stays, for a way back",
			"XDP programs that no pin below /sys/fs/bpf/cilium holds stay until a reboot",
			"*.cilium_bak of configurations that are not part of the migration stay: they may be the only copies",
		},
	}
}
