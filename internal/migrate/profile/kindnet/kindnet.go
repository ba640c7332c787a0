// Package kindnet knows kindnet, the CNI of kind: a veth pair per pod, routes
// between the nodes, and masquerading by iptables or nftables.
package kindnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
)

// Profile is kindnet's.
type Profile struct{}

// Name is "kindnet".
func (Profile) Name() string { return "kindnet" }

const (
	defaultConf    = "10-kindnet.conflist"
	defaultNetwork = "kindnet"
	ranges         = "run/cni-ipam-state" // where its configuration keeps host-local's records
)

func isConf(l profile.List) bool { return l.Name == defaultNetwork || l.Has("cni-kindnet") }

func isDaemonSet(d appsv1.DaemonSet) bool { return d.Name == "kindnet" }

// Detect implements profile.Profile.
func (p Profile) Detect(c preflight.Cluster) (preflight.Side, int) {
	s := preflight.Side{Profile: p.Name(), Network: defaultNetwork, ConfFile: defaultConf, HostPort: "portmap",
		Plugins: []string{"ptp", "host-local", "portmap"}, Chained: []string{"portmap"}}
	score := 0
	if conf, n := profile.ConfOf(c, isConf); n > 0 {
		score += n
		profile.FromConf(&s, conf)
		for _, plugin := range conf.List.Plugins {
			s.MTU = max(s.MTU, plugin.MTU)
		}
	}
	s.IPAM = preflight.IPAM{Source: "node", Mode: "host-local", Blocks: profile.NodeBlocks(c)}
	s.IPAM.NodeMask4, s.IPAM.NodeMask6 = profile.Masks(s.IPAM.Blocks)
	var except []netip.Prefix
	if d := profile.DaemonSet(c, isDaemonSet); d != nil {
		score += profile.ScoreWorkload
		s.WritesConf = true // its daemon does, always
		s.Workloads = append(s.Workloads, profile.Workload("DaemonSet", d.Namespace, d.Name))
		s.Evidence = append(s.Evidence, fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name))
		for _, container := range d.Spec.Template.Spec.Containers {
			s.Version = profile.FirstOf(s.Version, profile.Tag(container.Image))
			s.PodCIDRs = append(s.PodCIDRs, profile.Prefixes(profile.Env(container, "POD_SUBNET"))...)
			flag, _ := profile.Flag(profile.Args(container), "no-masquerade-cidr")
			except = append(except, profile.Prefixes(flag)...)
		}
	}
	if len(s.PodCIDRs) == 0 {
		s.PodCIDRs = profile.Cover(s.IPAM.Blocks)
	}
	s.Transport = "routes"
	s.Masquerades = []preflight.Masquerade{{Name: "kindnet-ipmasq", Backend: "nftables", Out: true, Except: except}}
	s.Policies, s.Enforces = []string{"NetworkPolicy"}, true
	s.Links = []string{"veth*"}
	s.Autodetect, s.HostGateway = "default-route", preflight.Yes
	s.Settings = map[string]string{
		"pod-cidr": "POD_SUBNET", "ipam": "node.spec.podCIDR", "masquerade": "--masquerade", "masquerade-except": "--no-masquerade-cidr",
		"latent": "kindnetd writes its configuration always", "mtu": "the MTU of eth0",
	}
	return s, score
}

// Conf implements profile.Profile: every node has its own range in it.
func (Profile) Conf(to, _ preflight.Side) (profile.Conf, error) {
	return profile.Conf{File: profile.FirstOf(to.ConfFile, defaultConf)}, nil
}

// Latent implements profile.Profile.
func (Profile) Latent(objects []unstructured.Unstructured) []profile.Change {
	var out []profile.Change
	for _, o := range objects {
		if o.GetKind() != "DaemonSet" || o.GetName() != "kindnet" || mountsElsewhere(o) {
			continue
		}
		out = append(out, profile.Change{
			Object: profile.Name(o), Setting: "the volume for /etc/cni/net.d", Want: "another directory of the host, such as /var/lib/braid/kindnet.d",
			Why: "kindnetd writes " + defaultConf + " at once, and again when it is moved; a migration takes it from there",
		})
	}
	return out
}

// mountsElsewhere says that the daemon's conf dir is not the runtime's.
func mountsElsewhere(o unstructured.Unstructured) bool {
	volumes, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "volumes")
	for _, v := range volumes {
		m, _ := v.(map[string]any)
		if path, _, _ := unstructured.NestedString(m, "hostPath", "path"); path == profile.DefaultConfDir {
			return false
		}
	}
	return len(volumes) > 0
}

// Ready implements profile.Profile: the node routes to the blocks of the others.
func (Profile) Ready(_ context.Context, n profile.NodeView, s preflight.Side) string {
	if missing := profile.MissingPlugins(n, s.Plugins...); missing != "" {
		return missing
	}
	return profile.FirstOf(profile.MissingRoutes(n, s.IPAM.Blocks), profile.Ready)
}

// Leftovers implements profile.Profile.
func (p Profile) Leftovers(s preflight.Side) spec.Spec {
	name := profile.FirstOf(s.Network, defaultNetwork)
	files := spec.NetworkFiles(name, profile.DefaultConfDir, profile.FirstOf(s.ConfFile, defaultConf))
	return spec.Spec{
		Profile: p.Name(), Network: name, PodCIDRs: s.PodCIDRs,
		Routes:   []spec.RoutePattern{{Within: true, Gateway: true}},
		Chains:   []string{"KIND-MASQ-AGENT"},
		Comments: []string{"kind-masq-agent: *"},
		Portmap:  slices.Contains(s.Plugins, "portmap"), Masquerade: true,
		Tables: []spec.Table{
			{Family: "inet", Name: "kindnet-ipmasq"}, {Family: "inet", Name: "kindnet-fastpath"}, {Family: "inet", Name: "kindnet-dnscache"},
			{Family: "inet", Name: "kindnet-network-policies"},
		},
		Files: append([]spec.FilePattern{{Glob: ranges + "/" + spec.Literal(name), Kind: spec.Ranges}, {Glob: "var/lib/cni-kindnet"}}, files...),
		Stays: []string{
			"the table inet kube-network-policies stays: the project of that name may be installed beside",
			"net.ipv4.ip_forward stays 1",
		},
	}
}
