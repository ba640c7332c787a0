// Package calico knows Calico: its pools, as custom resources, as settings of
// the operator or of its DaemonSet, and the chains, sets and routes of Felix and
// BIRD.
package calico

import (
	"context"
	"fmt"
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

// Profile is Calico's.
type Profile struct{}

// Name is "calico".
func (Profile) Name() string { return "calico" }

const (
	defaultConf    = "10-calico.conflist"
	defaultNetwork = "k8s-pod-network"
	crds           = "crd.projectcalico.org"
	bird           = 12 // RTPROT_BIRD
	felix          = 80 // what newer versions of Felix mark their routes with
)

func isConf(l profile.List) bool { return l.Has("calico") }

func isDaemonSet(d appsv1.DaemonSet) bool { return container(d) != nil }

func container(d appsv1.DaemonSet) *corev1.Container {
	for i, c := range d.Spec.Template.Spec.Containers {
		if c.Name == "calico-node" {
			return &d.Spec.Template.Spec.Containers[i]
		}
	}
	return nil
}

// Detect implements profile.Profile.
func (p Profile) Detect(c preflight.Cluster) (preflight.Side, int) {
	s := preflight.Side{Profile: p.Name(), Network: defaultNetwork, ConfFile: defaultConf, HostPort: "portmap",
		Plugins: []string{"calico", "calico-ipam", "portmap", "bandwidth"}, Chained: []string{"bandwidth", "portmap"}}
	score := 0
	if conf, n := profile.ConfOf(c, isConf); n > 0 {
		score += n
		profile.FromConf(&s, conf)
	}
	var env func(string) string
	if d := profile.DaemonSet(c, isDaemonSet); d != nil {
		score += profile.ScoreWorkload
		node := container(*d)
		s.Version = profile.Tag(node.Image)
		s.Workloads = append(s.Workloads, profile.Workload("DaemonSet", d.Namespace, d.Name))
		s.Evidence = append(s.Evidence, fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name))
		// The init container install-cni writes the configuration in every version.
		s.WritesConf = slices.ContainsFunc(d.Spec.Template.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == "install-cni" })
		env = func(name string) string { return profile.Env(*node, name) }
	} else {
		env = func(string) string { return "" }
	}
	for _, d := range c.Deployments {
		if d.Name == "calico-kube-controllers" || d.Name == "calico-typha" {
			s.Workloads = append(s.Workloads, profile.Workload("Deployment", d.Namespace, d.Name))
		}
	}
	pools := readPools(c, env)
	if len(pools) > 0 {
		score += profile.ScoreSettings
	}
	if n := profile.LinksOf(c, "vxlan.calico") + profile.LinksOf(c, "cali*", "veth"); n > 0 {
		score += profile.ScoreTrace
		s.Evidence = append(s.Evidence, "links vxlan.calico or cali*")
	}
	s.IPAM = preflight.IPAM{Source: "pool", Mode: "calico-ipam", MoreBlocks: true}
	if slices.Contains(s.Plugins, "host-local") {
		s.IPAM = preflight.IPAM{Source: "node", Mode: "host-local", Blocks: profile.NodeBlocks(c)}
		s.IPAM.NodeMask4, s.IPAM.NodeMask6 = profile.Masks(s.IPAM.Blocks)
	}
	usePools(&s, pools)
	useFelix(&s, c, env)
	switch method := profile.FirstOf(env("IP_AUTODETECTION_METHOD"), "first-found"); {
	case method == "first-found":
		s.Autodetect = "first-found"
	default:
		s.Pinned = append(s.Pinned, method)
	}
	s.Policies, s.Enforces = []string{"NetworkPolicy", "calico"}, true
	s.Links = []string{"cali*", "vxlan.calico", "vxlan-v6.calico", "tunl0", "wireguard.cali", "wg-v6.cali"}
	s.HostGateway = preflight.Yes
	s.Ports = append(s.Ports, preflight.Port{Port: 9099, Protocol: "tcp", Name: "felix health", Local: true, Setting: "FelixConfiguration healthPort"})
	if s.Transport == "ipip" || s.Transport == "bgp" {
		s.Ports = append(s.Ports, preflight.Port{Port: 179, Protocol: "tcp", Name: "bgp", Setting: "BGPConfiguration listenPort"})
	}
	s.Settings = map[string]string{
		"tunnel-port": "FelixConfiguration vxlanPort", "tunnel-id": "FelixConfiguration vxlanVNI", "tunnel-protocol": "IPPool vxlanMode, ipipMode",
		"pod-cidr": "IPPool cidr", "ipam": "IPPool", "mtu": "veth_mtu", "masquerade": "IPPool natOutgoing",
		"masquerade-except": "a disabled IPPool for the other CIDR", "devices": "IP_AUTODETECTION_METHOD", "latent": "the init container install-cni",
		"ports": "FelixConfiguration healthPort", "hostport": "the plugin portmap",
	}
	return s, score
}

// pool is one IPPool, or what would become one.
type pool struct {
	cidr, ipip, vxlan string
	nat               bool
	from              string
}

// readPools prefers the pools themselves to the settings that they are first
// made from.
func readPools(c preflight.Cluster, env func(string) string) []pool {
	var pools []pool
	for _, o := range profile.Others(c, crds, "IPPool") {
		spec, _, _ := unstructured.NestedMap(o.Object, "spec")
		disabled, _, _ := unstructured.NestedBool(o.Object, "spec", "disabled")
		nat, _, _ := unstructured.NestedBool(o.Object, "spec", "natOutgoing")
		if disabled {
			continue
		}
		pools = append(pools, pool{text(spec, "cidr"), text(spec, "ipipMode"), text(spec, "vxlanMode"), nat, "IPPool " + o.GetName()})
	}
	if len(pools) > 0 {
		return pools
	}
	for _, o := range profile.Others(c, "operator.tigera.io", "Installation") {
		list, _, _ := unstructured.NestedSlice(o.Object, "spec", "calicoNetwork", "ipPools")
		for _, item := range list {
			m, _ := item.(map[string]any)
			p := pool{cidr: text(m, "cidr"), nat: text(m, "natOutgoing") != "Disabled", from: "Installation " + o.GetName()}
			switch encapsulation := profile.FirstOf(text(m, "encapsulation"), "IPIP"); {
			case strings.HasPrefix(encapsulation, "VXLAN"):
				p.vxlan = "Always"
			case strings.HasPrefix(encapsulation, "IPIP"):
				p.ipip = "Always"
			}
			pools = append(pools, p)
		}
	}
	for _, family := range []string{"4", "6"} {
		prefix := "CALICO_IPV" + family + "POOL_"
		if cidr := env(prefix + "CIDR"); cidr != "" && len(pools) == 0 {
			pools = append(pools, pool{cidr, env(prefix + "IPIP"), env(prefix + "VXLAN"), env(prefix+"NAT_OUTGOING") != "false", prefix + "CIDR"})
		}
	}
	return pools
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

func on(mode string) bool { return mode != "" && mode != "Never" }

func usePools(s *preflight.Side, pools []pool) {
	s.Transport = "bgp"
	nat := false
	for _, p := range pools {
		s.PodCIDRs = append(s.PodCIDRs, profile.Prefixes(p.cidr)...)
		s.Evidence = append(s.Evidence, p.from)
		nat = nat || p.nat
		switch {
		case on(p.vxlan):
			s.Transport, s.Overhead = "vxlan", 50
		case on(p.ipip) && s.Transport != "vxlan":
			s.Transport, s.Overhead = "ipip", 20
		}
	}
	if nat {
		s.Masquerades = append(s.Masquerades, preflight.Masquerade{Name: "cali-nat-outgoing", Backend: "iptables", Out: true})
	}
	switch s.Transport {
	case "vxlan":
		s.Needs = []string{"vxlan"}
		s.Tunnel = &facts.Tunnel{Kind: "vxlan", ID: 4096, Port: 4789}
		s.Seen.Other = "vxlan.calico"
	case "ipip":
		s.Seen.Other = "tunl0"
	}
}

// useFelix fills what FelixConfiguration and Felix's variables say.
func useFelix(s *preflight.Side, c preflight.Cluster, env func(string) string) {
	number := func(key string) int { return profile.Number(env("FELIX_"+strings.ToUpper(key)), 0) }
	bpf := env("FELIX_BPFENABLED") == "true"
	for _, o := range profile.Others(c, crds, "FelixConfiguration") {
		if o.GetName() != "default" {
			continue
		}
		fromEnv := number
		number = func(key string) int {
			if n, ok, _ := unstructured.NestedInt64(o.Object, "spec", key); ok && fromEnv(key) == 0 {
				return int(n)
			}
			return fromEnv(key)
		}
		b, _, _ := unstructured.NestedBool(o.Object, "spec", "bpfEnabled")
		bpf = bpf || b
	}
	if s.Tunnel != nil {
		if n := number("vxlanPort"); n > 0 {
			s.Tunnel.Port = uint16(n)
		}
		if n := number("vxlanVNI"); n > 0 {
			s.Tunnel.ID = uint32(n)
		}
	}
	if bpf {
		s.KubeProxyReplacement, s.SocketLB, s.Bypasses = true, true, true
		s.Needs = append(s.Needs, "bpffs", "cgroup2")
		s.Links = append(s.Links, "bpfin.cali", "bpfout.cali")
	}
	cm := profile.ConfigMap(c, func(m corev1.ConfigMap) bool { return m.Name == "calico-config" })
	if cm != nil {
		s.MTU = profile.Number(cm.Data["veth_mtu"], 0)
		s.Evidence = append(s.Evidence, fmt.Sprintf("ConfigMap %s/%s", cm.Namespace, cm.Name))
	}
}

// Conf implements profile.Profile. The configuration names credentials that
// Calico's own init container makes on each node, so it is that node's own.
func (Profile) Conf(to, _ preflight.Side) (profile.Conf, error) {
	return profile.Conf{File: profile.FirstOf(to.ConfFile, defaultConf)}, nil
}

// Latent implements profile.Profile.
func (Profile) Latent(objects []unstructured.Unstructured) []profile.Change {
	var out []profile.Change
	for _, o := range objects {
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "initContainers")
		if o.GetKind() == "DaemonSet" {
			for _, c := range containers {
				m, _ := c.(map[string]any)
				if name := text(m, "name"); name == "install-cni" && !writesElsewhere(m) {
					out = append(out, profile.Change{Object: profile.Name(o), Setting: "container install-cni, CNI_CONF_NAME", Want: "a name that runtimes do not load, such as " + defaultConf + ".braid-migrate",
						Why: "the runtime would load " + defaultConf + " before its turn"})
				}
			}
		}
		if o.GetKind() == "Installation" {
			out = append(out, profile.Change{Object: profile.Name(o), Setting: "the operator", Want: "installed by manifests instead",
				Why: "the operator installs the configuration on all nodes at once, and puts it back when it is moved"})
		}
	}
	return out
}

// writesElsewhere says that a file name was chosen that no runtime loads.
func writesElsewhere(container map[string]any) bool {
	env, _ := container["env"].([]any)
	for _, e := range env {
		m, _ := e.(map[string]any)
		if text(m, "name") == "CNI_CONF_NAME" {
			name := text(m, "value")
			return name != "" && !strings.HasSuffix(name, ".conflist") && !strings.HasSuffix(name, ".conf") && !strings.HasSuffix(name, ".json")
		}
	}
	return false
}

// Ready implements profile.Profile: Felix says that it is ready, and the link to
// other nodes is there.
func (Profile) Ready(ctx context.Context, n profile.NodeView, s preflight.Side) string {
	if missing := profile.MissingPlugins(n, s.Plugins...); missing != "" {
		return missing
	}
	links, err := n.Links()
	if err != nil {
		return err.Error()
	}
	if s.Seen.Other != "" {
		if wrong := profile.Up(links, s.Seen.Other); wrong != "" {
			return wrong
		}
	}
	const url = "http://127.0.0.1:9099/readiness"
	status, err := n.Get(ctx, url, nil)
	switch {
	case err != nil:
		return "felix: " + err.Error()
	case status < 200 || status > 299:
		return fmt.Sprintf("felix: %s answers %d", url, status)
	}
	return profile.Ready
}

// Leftovers implements profile.Profile.
func (p Profile) Leftovers(s preflight.Side) spec.Spec {
	name := profile.FirstOf(s.Network, defaultNetwork)
	return spec.Spec{
		Profile: p.Name(), Network: name, PodCIDRs: s.PodCIDRs,
		// tunl0 is the kernel's own and cannot be removed; Felix only gives it an address.
		Links: []spec.LinkPattern{
			{Name: "cali*", Kinds: []string{"veth"}}, {Name: "vxlan.calico"}, {Name: "vxlan-v6.calico"},
			{Name: "wireguard.cali"}, {Name: "wg-v6.cali"}, {Name: "bpfin.cali"}, {Name: "bpfout.cali"},
		},
		Routes: []spec.RoutePattern{
			{Within: true, Protocol: bird}, {Within: true, Protocol: felix}, {Within: true, Type: "blackhole"},
		},
		Chains:   []string{"cali-*", "califw-*", "calitw-*", "califh-*", "calith-*", "calipi-*", "calipo-*", "felix-*"},
		Comments: []string{"cali:*"},
		Portmap:  s.HostPort == "portmap",
		Tables:   []spec.Table{{Family: "ip", Name: "calico"}, {Family: "ip6", Name: "calico"}},
		IPSets:   []string{"cali40*", "cali60*", "cali4t*", "cali6t*", "felix-*"},
		Programs: []string{"cali_*", "calico_*"},
		Files: append([]spec.FilePattern{
			{Glob: "sys/fs/bpf/calico", Kind: spec.Pin}, {Glob: "sys/fs/bpf/tc/globals/cali_*", Kind: spec.Pin},
			{Glob: "run/calico/cgroup", Kind: spec.Mount}, {Glob: "run/calico"}, {Glob: "var/lib/calico"},
			{Glob: "etc/cni/net.d/calico-kubeconfig"},
		}, spec.NetworkFiles(name, profile.DefaultConfDir, profile.FirstOf(s.ConfFile, defaultConf))...),
		Stays: []string{
			"tunl0 stays: it is there as long as the kernel has ipip. Its address goes with a reboot, or with ip addr flush dev tunl0",
			"net.ipv4.ip_forward and rp_filter stay as Felix set them",
			"/opt/cni/bin/calico and calico-ipam stay, for a way back",
			"blocks and handles in crd.projectcalico.org stay: they are the cluster's, not the node's",
		},
	}
}
