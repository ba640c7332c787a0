// Package bridge knows clusters whose nodes have a configuration of the plugins
// bridge or ptp with ranges of their own, and routes between the nodes that
// somebody else keeps.
package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
)

// Profile is that of the plugins bridge and ptp.
type Profile struct{}

// Name is "bridge".
func (Profile) Name() string { return "bridge" }

func isConf(l profile.List) bool {
	return slices.Contains([]string{"bridge", "ptp"}, l.Plugins[0].Type) && l.Name != "kindnet"
}

// Detect implements profile.Profile. There are no objects of it in a cluster:
// all is in the nodes' configurations.
func (p Profile) Detect(c preflight.Cluster) (preflight.Side, int) {
	conf, score := profile.ConfOf(c, isConf)
	s := preflight.Side{Profile: p.Name(), Transport: "routes", HostPort: "none"}
	if score == 0 {
		return s, 0
	}
	profile.FromConf(&s, conf)
	s.IPAM = preflight.IPAM{Source: "conf", Mode: conf.List.Plugins[0].IPAM.Type, Blocks: blocks(c, conf)}
	s.IPAM.NodeMask4, s.IPAM.NodeMask6 = profile.Masks(s.IPAM.Blocks)
	s.PodCIDRs = profile.Cover(s.IPAM.Blocks)
	first := conf.List.Plugins[0]
	s.MTU = first.MTU
	if first.IPMasq {
		s.Masquerades = []preflight.Masquerade{{Name: "the chains CNI-* of ipMasq", Backend: "iptables", Out: true, Except: profile.Prefixes("224.0.0.0/4")}}
	}
	s.Links = conf.List.Bridges()
	s.Seen.Same = profile.FirstOf(s.Links...)
	if first.Type == "ptp" {
		s.Links = append(s.Links, "veth*")
	}
	s.HostGateway = preflight.Yes
	if first.Type == "bridge" && !gateway(c, s.Links) {
		s.HostGateway = preflight.No
		s.Evidence = append(s.Evidence, "the bridge has no address: the node is not its pods' gateway")
	}
	s.Settings = map[string]string{
		"pod-cidr": "ipam.ranges in " + conf.File, "mtu": "mtu in " + conf.File, "masquerade": "ipMasq in " + conf.File, "hostport": "the plugin portmap in " + conf.File,
		"latent": "it has no agent that could write it",
	}
	return s, score
}

// blocks are the nodes' ranges.
func blocks(c preflight.Cluster, conf profile.Found) map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, f := range profile.Confs(c) {
		if f.File != conf.File || !isConf(f.List) {
			continue
		}
		i := f.List.Plugins[0].IPAM
		out[f.Node] = append(out[f.Node], profile.Prefixes(i.Subnet)...)
		for _, set := range i.Ranges {
			for _, r := range set {
				out[f.Node] = append(out[f.Node], profile.Prefixes(r.Subnet)...)
			}
		}
	}
	return out
}

// gateway says whether a bridge has an address on some node. One that no pod was
// plugged into yet has none, and may not even be there.
func gateway(c preflight.Cluster, bridges []string) bool {
	there := false
	for _, f := range c.Facts {
		for _, l := range f.Links {
			if slices.Contains(bridges, l.Name) {
				there = true
				if len(l.Addrs) > 0 {
					return true
				}
			}
		}
	}
	return !there
}

// Conf implements profile.Profile: every node has its own range in it.
func (Profile) Conf(to, _ preflight.Side) (profile.Conf, error) {
	if to.ConfFile == "" {
		return profile.Conf{}, fmt.Errorf("bridge: no node has a configuration of it, and nobody but the nodes' keeper knows their ranges")
	}
	return profile.Conf{File: to.ConfFile}, nil
}

// Latent implements profile.Profile: there is nothing to install.
func (Profile) Latent([]unstructured.Unstructured) []profile.Change { return nil }

// Ready implements profile.Profile.
func (Profile) Ready(_ context.Context, n profile.NodeView, s preflight.Side) string {
	if missing := profile.MissingPlugins(n, s.Plugins...); missing != "" {
		return missing
	}
	return profile.FirstOf(profile.MissingRoutes(n, s.IPAM.Blocks), profile.Ready)
}

// Leftovers implements profile.Profile. The routes between the nodes are their
// keeper's and stay.
func (p Profile) Leftovers(s preflight.Side) spec.Spec {
	l := spec.Spec{
		Profile: p.Name(), Network: s.Network, PodCIDRs: s.PodCIDRs,
		Portmap: slices.Contains(s.Plugins, "portmap"), Masquerade: true, Firewall: slices.Contains(s.Plugins, "firewall"),
		Files: spec.NetworkFiles(s.Network, profile.DefaultConfDir, s.ConfFile),
		Stays: []string{
			"routes to other nodes' ranges stay: whoever set the nodes up made them, and may do so again",
			"net.ipv4.ip_forward stays 1",
		},
	}
	for _, name := range s.Links {
		if name != "veth*" { // those of pods go with the pods
			l.Links = append(l.Links, spec.LinkPattern{Name: name, Kinds: []string{"bridge"}})
		}
	}
	return l
}
