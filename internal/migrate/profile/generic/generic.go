// Package generic knows what can be known of any CNI: what its configuration
// and the nodes say. The rest is a person's to tell.
package generic

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
)

// Profile is that of a CNI without a profile of its own.
type Profile struct{}

// Name is "generic".
func (Profile) Name() string { return "generic" }

// Detect implements profile.Profile. Every configuration that a runtime takes is
// one of a generic CNI, with the least score there is.
func (p Profile) Detect(c preflight.Cluster) (preflight.Side, int) {
	s := preflight.Side{Profile: p.Name(), HostPort: "none"}
	conf, n := profile.ConfOf(c, func(profile.List) bool { return true })
	if n == 0 {
		return s, 0
	}
	profile.FromConf(&s, conf)
	s.IPAM = preflight.IPAM{Source: "node", Blocks: profile.NodeBlocks(c)}
	s.IPAM.NodeMask4, s.IPAM.NodeMask6 = profile.Masks(s.IPAM.Blocks)
	s.PodCIDRs = profile.Cover(s.IPAM.Blocks)
	s.Links = conf.List.Bridges()
	s.Evidence = append(s.Evidence, "no profile knows it: its pods' addresses are taken to be from node.spec.podCIDR")
	return s, 1
}

// Conf implements profile.Profile.
func (Profile) Conf(to, _ preflight.Side) (profile.Conf, error) {
	if to.ConfFile == "" {
		return profile.Conf{}, fmt.Errorf("generic: a configuration has to be given")
	}
	return profile.Conf{File: to.ConfFile}, nil
}

// Latent implements profile.Profile: nothing is known of the manifests, except
// that some program in them mounts the conf dir.
func (Profile) Latent(objects []unstructured.Unstructured) []profile.Change {
	var out []profile.Change
	for _, o := range objects {
		volumes, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "volumes")
		for _, v := range volumes {
			m, _ := v.(map[string]any)
			if path, _, _ := unstructured.NestedString(m, "hostPath", "path"); path == profile.DefaultConfDir {
				out = append(out, profile.Change{Object: profile.Name(o), Setting: "the volume for " + path, Want: "left out, or another directory",
					Why: "it may write its configuration there before its turn"})
			}
		}
	}
	return out
}

// Ready implements profile.Profile: the programs of the configuration are there.
func (Profile) Ready(_ context.Context, n profile.NodeView, s preflight.Side) string {
	return profile.FirstOf(profile.MissingPlugins(n, s.Plugins...), profile.Ready)
}

// Leftovers implements profile.Profile: the records of the plugins of everybody,
// and nothing of the CNI's own, which nobody has described.
func (p Profile) Leftovers(s preflight.Side) spec.Spec {
	return spec.Spec{
		Profile: p.Name(), Network: s.Network, PodCIDRs: s.PodCIDRs,
		Portmap: slices.Contains(s.Plugins, "portmap"), Masquerade: true, Firewall: slices.Contains(s.Plugins, "firewall"),
		Files: spec.NetworkFiles(s.Network, profile.DefaultConfDir, s.ConfFile),
		Stays: []string{"links, routes, rules and files of the CNI itself stay: nothing is known of them"},
	}
}
