// Package flannel knows Flannel: its settings in net-conf.json, its links and
// rules, and what it never removes itself.
package flannel

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
)

// Profile is Flannel's.
type Profile struct{}

// Name is "flannel".
func (Profile) Name() string { return "flannel" }

const (
	defaultConf    = "10-flannel.conflist"
	defaultNetwork = "cbr0"
	defaultVNI     = 1
	defaultPort    = 8472 // Linux's own, not IANA's
	subnetEnv      = "/run/flannel/subnet.env"
	annotation     = "flannel.alpha.coreos.com/backend-type"
)

// netConf is net-conf.json.
type netConf struct {
	Network        string
	IPv6Network    string
	SubnetLen      int
	EnableNFTables bool
	Backend        struct {
		Type          string
		VNI, Port     int
		MTU           int
		GBP           bool
		DirectRouting bool
	}
}

func isConf(l profile.List) bool { return l.Has("flannel") }

func isDaemonSet(d appsv1.DaemonSet) bool {
	for _, c := range d.Spec.Template.Spec.Containers {
		if slices.ContainsFunc(profile.Args(c), func(a string) bool { return path.Base(a) == "flanneld" }) {
			return true
		}
	}
	return false
}

// Detect implements profile.Profile.
func (p Profile) Detect(c preflight.Cluster) (preflight.Side, int) {
	s := preflight.Side{Profile: p.Name(), Network: defaultNetwork, ConfFile: defaultConf, HostPort: "portmap"}
	score := 0
	conf, n := profile.ConfOf(c, isConf)
	if n > 0 {
		score += n
		profile.FromConf(&s, conf)
	}
	var net netConf
	cm := profile.ConfigMap(c, func(m corev1.ConfigMap) bool { return m.Data["net-conf.json"] != "" })
	if cm != nil {
		score += profile.ScoreSettings
		s.Evidence = append(s.Evidence, fmt.Sprintf("ConfigMap %s/%s", cm.Namespace, cm.Name))
		if err := json.Unmarshal([]byte(cm.Data["net-conf.json"]), &net); err != nil {
			s.Evidence = append(s.Evidence, "net-conf.json cannot be read: "+err.Error())
		}
		if l, err := profile.ParseConf(cm.Data["cni-conf.json"]); err == nil && n == 0 {
			profile.FromConf(&s, profile.Found{Node: "ConfigMap " + cm.Name, File: defaultConf, List: l})
		}
	}
	var args []string
	if d := profile.DaemonSet(c, isDaemonSet); d != nil {
		score += profile.ScoreWorkload
		args = daemon(&s, *d, n == 0)
	}
	score += traces(&s, c)
	env, haveEnv := profile.State(c, subnetEnv)
	if haveEnv {
		fromEnv(&net, env)
	}
	s.PodCIDRs = profile.Prefixes(net.Network, net.IPv6Network)
	backend(&s, net, c)
	masquerade(&s, net, args, readEnv(env)["FLANNEL_IPMASQ"])
	ipam(&s, c, args, net)
	s.Links = []string{"flannel*"}
	s.Links = append(append(s.Links, otherBridge), bridges(conf, n > 0)...)
	if len(s.Plugins) == 0 {
		s.Plugins = []string{"flannel", "portmap"}
		s.Chained = []string{"portmap"}
	}
	s.Plugins = appendNew(s.Plugins, "bridge", "host-local") // what the plugin flannel calls
	s.HostGateway = preflight.Yes
	s.Settings = map[string]string{
		"tunnel-port": "Backend.Port in net-conf.json", "tunnel-protocol": "Backend.Type in net-conf.json", "tunnel-id": "Backend.VNI in net-conf.json",
		"pod-cidr": "Network in net-conf.json", "ipam": "--kube-subnet-mgr", "mtu": "Backend.MTU in net-conf.json", "masquerade": "--ip-masq",
		"devices": "--iface", "latent": "the init container install-cni", "ports": "--healthz-port", "hostport": "the plugin portmap in cni-conf.json",
	}
	return s, score
}

// bridges are those that pods are plugged into.
func bridges(conf profile.Found, have bool) []string {
	if have {
		if b := conf.List.Bridges(); len(b) > 0 {
			return b
		}
	}
	return []string{profile.DefaultBridge}
}

// daemon fills what the DaemonSet says, and returns flanneld's command line.
func daemon(s *preflight.Side, d appsv1.DaemonSet, manifestConf bool) []string {
	s.Workloads = append(s.Workloads, profile.Workload("DaemonSet", d.Namespace, d.Name))
	s.Evidence = append(s.Evidence, fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name))
	if _, file := installer(d.Spec.Template.Spec); file != "" {
		s.WritesConf = true
		if manifestConf {
			s.ConfFile = file
		}
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		args := profile.Args(c)
		if !slices.ContainsFunc(args, func(a string) bool { return path.Base(a) == "flanneld" }) {
			continue
		}
		s.Version = profile.Tag(c.Image)
		s.Autodetect = "default-route"
		for _, flag := range []string{"iface", "iface-regex", "public-ip"} {
			if v, ok := profile.Flag(args, flag); ok {
				s.Pinned, s.Autodetect = append(s.Pinned, v), ""
			}
		}
		if v, ok := profile.Flag(args, "healthz-port"); ok {
			if port := profile.Number(v, 0); port > 0 {
				s.Ports = append(s.Ports, preflight.Port{Port: uint16(port), Protocol: "tcp", Name: "flanneld health", Setting: "--healthz-port"})
			}
		}
		return args
	}
	return nil
}

// installer is the init container that writes the configuration, and the name of
// the file that it writes.
func installer(pod corev1.PodSpec) (container, file string) {
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, a := range profile.Args(c) {
			for _, word := range strings.Fields(a) {
				name := path.Base(word)
				if strings.Contains(word, "/net.d/") && (path.Ext(name) == ".conflist" || path.Ext(name) == ".conf") {
					return c.Name, name
				}
			}
		}
	}
	return "", ""
}

// traces looks for what flanneld leaves on nodes and Node objects.
func traces(s *preflight.Side, c preflight.Cluster) (score int) {
	if n := profile.LinksOf(c, "flannel.*", "vxlan"); n > 0 {
		score += profile.ScoreTrace
		s.Evidence = append(s.Evidence, fmt.Sprintf("a vxlan link flannel.* on %d nodes", n))
	}
	if _, ok := profile.State(c, subnetEnv); ok {
		score += profile.ScoreTrace
		s.Evidence = append(s.Evidence, subnetEnv)
	}
	for _, n := range c.Nodes {
		if n.Annotations[annotation] != "" {
			s.Evidence = append(s.Evidence, fmt.Sprintf("annotation %s of node %s", annotation, n.Name))
			return score + profile.ScoreTrace
		}
	}
	return score
}

// readEnv reads subnet.env.
func readEnv(text string) map[string]string {
	env := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			env[key] = strings.Trim(value, `"'`)
		}
	}
	return env
}

// fromEnv fills what the settings do not say with what flanneld wrote down.
func fromEnv(net *netConf, text string) {
	env := readEnv(text)
	net.Network = profile.FirstOf(net.Network, env["FLANNEL_NETWORK"])
	net.IPv6Network = profile.FirstOf(net.IPv6Network, env["FLANNEL_IPV6_NETWORK"])
	if p, err := netip.ParsePrefix(env["FLANNEL_SUBNET"]); err == nil && net.SubnetLen == 0 {
		net.SubnetLen = p.Bits()
	}
}

// backend fills what carries packets to other nodes.
func backend(s *preflight.Side, net netConf, c preflight.Cluster) {
	kind := net.Backend.Type
	for _, n := range c.Nodes {
		kind = profile.FirstOf(kind, n.Annotations[annotation])
	}
	if kind == "" && profile.LinksOf(c, "flannel.*", "vxlan") > 0 {
		kind = "vxlan"
	}
	s.MTU = net.Backend.MTU
	switch kind {
	case "host-gw", "alloc":
		s.Transport = "routes"
		s.Seen = preflight.Seen{Same: profile.DefaultBridge}
	case "wireguard":
		s.Transport, s.Overhead = "wireguard", 60
		s.Seen = preflight.Seen{Same: profile.DefaultBridge, Other: "flannel-wg"}
	case "ipip":
		s.Transport, s.Overhead = "ipip", 20
		s.Seen = preflight.Seen{Same: profile.DefaultBridge, Other: "flannel.ipip"}
	case "vxlan", "":
		id, port := cmpOr(net.Backend.VNI, defaultVNI), cmpOr(net.Backend.Port, defaultPort)
		s.Transport, s.Overhead, s.Needs = "vxlan", 50, []string{"vxlan"}
		s.Tunnel = &facts.Tunnel{Kind: "vxlan", ID: uint32(id), Port: uint16(port), GBP: net.Backend.GBP}
		s.Seen = preflight.Seen{Same: profile.DefaultBridge, Other: fmt.Sprintf("flannel.%d", id)}
	default:
		s.Transport = kind
		s.Evidence = append(s.Evidence, fmt.Sprintf("backend %q is not known here", kind))
	}
}

func cmpOr(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// masquerade fills the rules of --ip-masq. By nftables a slip makes the rule for
// what others send to pods unreachable.
func masquerade(s *preflight.Side, net netConf, args []string, env string) {
	flag, given := profile.Flag(args, "ip-masq")
	on := given && flag != "false"
	if !given {
		on = env == "true" || env == "" && len(args) == 0
	}
	if !on {
		return
	}
	multicast := profile.Prefixes("224.0.0.0/4")
	if net.IPv6Network != "" {
		multicast = append(multicast, profile.Prefixes("ff00::/8")...)
	}
	m := preflight.Masquerade{Name: "FLANNEL-POSTRTG", Backend: "iptables", Out: true, In: true, Except: multicast}
	if net.EnableNFTables {
		m.Name, m.Backend, m.In = "flannel-ipv4 postrtg", "nftables", false
	}
	s.Masquerades = append(s.Masquerades, m)
}

// ipam fills where nodes' blocks are from: the Node objects, or, without the
// flag, flanneld's own etcd.
func ipam(s *preflight.Side, c preflight.Cluster, args []string, net netConf) {
	s.IPAM = preflight.IPAM{Source: "node", Mode: "kube-subnet-mgr", Blocks: profile.NodeBlocks(c)}
	if _, kube := profile.Flag(args, "kube-subnet-mgr"); len(args) > 0 && !kube {
		s.IPAM = preflight.IPAM{Source: "pool", Mode: "etcd", NodeMask4: cmpOr(net.SubnetLen, 24)}
		return
	}
	s.IPAM.NodeMask4, s.IPAM.NodeMask6 = profile.Masks(s.IPAM.Blocks)
	if s.IPAM.NodeMask4 == 0 && net.SubnetLen > 0 {
		s.IPAM.NodeMask4 = net.SubnetLen
	}
}

func appendNew(list []string, more ...string) []string {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

// Conf is upstream's configuration. Where the other side has the plugin bridge's
// default name for a bridge of its own, Flannel's gets another: the plugin
// refuses to put a second IPv4 network on one bridge.
func (Profile) Conf(to, from preflight.Side) (profile.Conf, error) {
	delegate := `"hairpinMode": true, "isDefaultGateway": true`
	if slices.Contains(from.Links, profile.DefaultBridge) && from.Profile != "flannel" {
		delegate = `"bridge": "` + otherBridge + `", ` + delegate
	}
	name, err := json.Marshal(profile.FirstOf(to.Network, defaultNetwork))
	if err != nil {
		return profile.Conf{}, err
	}
	text := `{"cniVersion": "0.3.1", "name": ` + string(name) + `, "plugins": [
  {"type": "flannel", "delegate": {` + delegate + `}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`
	return profile.Conf{File: profile.FirstOf(to.ConfFile, defaultConf), Text: text}, nil
}

// otherBridge is the bridge where cni0 is taken.
const otherBridge = "cni-flannel"

// Latent implements profile.Profile. flanneld itself takes nothing from pods of
// others; only the init container that writes the configuration does.
func (Profile) Latent(objects []unstructured.Unstructured) []profile.Change {
	var out []profile.Change
	for _, o := range objects {
		var d appsv1.DaemonSet
		if o.GetKind() != "DaemonSet" || runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d) != nil || !isDaemonSet(d) {
			continue
		}
		if container, file := installer(d.Spec.Template.Spec); file != "" {
			out = append(out, profile.Change{
				Object: profile.Name(o), Setting: "container " + container, Have: "writes " + file, Want: "left out",
				Why: "a runtime would take " + file + ", or have it beside the other, before its turn; a migration writes it node by node",
			})
		}
	}
	return out
}

// Ready implements profile.Profile: flanneld has written the node's subnet down,
// and the way to other nodes is there.
func (Profile) Ready(_ context.Context, n profile.NodeView, s preflight.Side) string {
	text, err := n.ReadFile(subnetEnv)
	if err != nil {
		return fmt.Sprintf("%s: %v", subnetEnv, err)
	}
	env := readEnv(string(text))
	subnet := profile.FirstOf(env["FLANNEL_SUBNET"], env["FLANNEL_IPV6_SUBNET"])
	if _, err := netip.ParsePrefix(subnet); err != nil {
		return subnetEnv + " has no FLANNEL_SUBNET"
	}
	if net := env["FLANNEL_NETWORK"]; len(s.PodCIDRs) > 0 && net != "" && !slices.ContainsFunc(profile.Prefixes(net), func(p netip.Prefix) bool { return slices.Contains(s.PodCIDRs, p) }) {
		return fmt.Sprintf("%s is of the network %s", subnetEnv, net)
	}
	if missing := profile.MissingPlugins(n, "flannel", "bridge", "host-local", "portmap"); missing != "" {
		return missing
	}
	links, err := n.Links()
	if err != nil {
		return err.Error()
	}
	if s.Tunnel != nil {
		return profile.FirstOf(tunnel(links, *s.Tunnel), profile.Ready)
	}
	if s.Seen.Other != "" {
		return profile.FirstOf(profile.Up(links, s.Seen.Other), profile.Ready)
	}
	return profile.Ready
}

// tunnel says what is wrong with the vxlan link.
func tunnel(links []facts.Link, t facts.Tunnel) string {
	name := "flannel." + strconv.Itoa(int(t.ID))
	if wrong := profile.Up(links, name); wrong != "" {
		return wrong
	}
	for _, l := range links {
		if l.Name == name && (l.Tunnel == nil || l.Tunnel.ID != t.ID || l.Tunnel.Port != t.Port) {
			return fmt.Sprintf("link %s is not the vxlan link of VNI %d and port %d", name, t.ID, t.Port)
		}
	}
	return ""
}

// Leftovers implements profile.Profile. flanneld removes nothing when it ends,
// not even its rules in the backend that it used before.
func (p Profile) Leftovers(s preflight.Side) spec.Spec {
	network := profile.FirstOf(s.Network, defaultNetwork)
	l := spec.Spec{
		Profile: p.Name(), Network: network, PodCIDRs: s.PodCIDRs,
		Links: []spec.LinkPattern{
			{Name: "flannel.[0-9]*", Kinds: []string{"vxlan"}}, {Name: "flannel-v6.[0-9]*", Kinds: []string{"vxlan"}},
			{Name: "flannel.ipip", Kinds: []string{"ipip"}}, {Name: "flannel-wg*", Kinds: []string{"wireguard"}}, {Name: "flannel[0-9]*", Kinds: []string{"tun", "tuntap"}},
			{Name: otherBridge, Kinds: []string{"bridge"}},
		},
		// host-gw, and vxlan with DirectRouting
		Routes:   []spec.RoutePattern{{Within: true, Gateway: true}},
		Chains:   []string{"FLANNEL-*"},
		Comments: []string{"flanneld masq", "flanneld forward"},
		Portmap:  true, Masquerade: true,
		Tables: []spec.Table{{Family: "ip", Name: "flannel-ipv4"}, {Family: "ip6", Name: "flannel-ipv6"}},
		Files: append([]spec.FilePattern{
			{Glob: "run/flannel"}, {Glob: "var/lib/cni/flannel/*", Kind: spec.Attachment},
		}, spec.NetworkFiles(network, profile.DefaultConfDir, profile.FirstOf(s.ConfFile, defaultConf))...),
		Stays: []string{
			"net.ipv4.ip_forward and net.bridge.bridge-nf-call-iptables stay 1: every CNI needs them",
			"/opt/cni/bin/flannel stays, for a way back",
			"annotations flannel.alpha.coreos.com/* of Node objects stay: they are the cluster's, not the node's",
		},
	}
	for _, name := range s.Links {
		if !strings.HasPrefix(name, "flannel") {
			l.Links = append(l.Links, spec.LinkPattern{Name: name, Kinds: []string{"bridge"}})
		}
	}
	return l
}
