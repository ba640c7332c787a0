package known

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

func TestEveryProfileIsFoundByItsName(t *testing.T) {
	for _, name := range Names() {
		p, err := Profile(name)
		if err != nil || p.Name() != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Profile("weave"); err == nil || !strings.Contains(err.Error(), "flannel, cilium") {
		t.Errorf("error %v", err)
	}
}

// The one whose configuration the runtime takes is what pods are on, however
// many DaemonSets the other has.
func TestTheLoadedConfigurationDecides(t *testing.T) {
	c := profiletest.Cluster(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: cilium-config, namespace: kube-system}
data: {ipam: cluster-pool, cluster-pool-ipv4-cidr: 172.20.0.0/16}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: cilium, namespace: kube-system}
spec: {template: {spec: {containers: [{name: cilium-agent, image: c}]}}}
`, profiletest.WithConf("node1", "10-flannel.conflist", `{"name": "cbr0", "plugins": [{"type": "flannel", "delegate": {}}]}`))
	found := Detect(c)
	if len(found) != 3 || found[0].Side.Profile != "flannel" || found[1].Side.Profile != "cilium" || found[2].Side.Profile != "generic" {
		t.Errorf("%+v", found)
	}
}

func TestAnEmptyClusterHasNone(t *testing.T) {
	if found := Detect(preflight.Cluster{}); len(found) != 0 {
		t.Errorf("%+v", found)
	}
}

// Whatever a profile claims must not be what Kubernetes, a firewall or the
// kernel has on every node.
func TestNoProfileClaimsWhatIsEverybodys(t *testing.T) {
	for _, p := range All() {
		l := p.Leftovers(preflight.Side{Profile: p.Name(), Network: "net", ConfFile: "10-x.conflist", Links: []string{"cni0"}, HostPort: "portmap"})
		for _, chain := range []string{"KUBE-SERVICES", "KUBE-FORWARD", "KUBE-POSTROUTING", "DOCKER", "DOCKER-USER", "ufw-user-input", "POSTROUTING", "FORWARD", "CNI-HOSTPORT-DNAT"} {
			if matches(l.Chains, chain) {
				t.Errorf("%s claims the chain %s", p.Name(), chain)
			}
		}
		for _, comment := range []string{"kubernetes postrouting rules", "kubernetes service portals", "ssh", ""} {
			if matches(l.Comments, comment) {
				t.Errorf("%s claims rules with the comment %q", p.Name(), comment)
			}
		}
		for _, name := range []string{"lo", "eth0", "docker0", "ens3", "bond0", "br-lan", "vlan7", "tunl0", "wg0"} {
			for _, link := range l.Links {
				if matches([]string{link.Name}, name) {
					t.Errorf("%s claims the link %s", p.Name(), name)
				}
			}
		}
		for _, r := range l.Routes {
			if r == (spec.RoutePattern{}) || !r.Within && r.Table == 0 {
				t.Errorf("%s claims routes to anywhere: %+v", p.Name(), r)
			}
		}
		for _, f := range l.Files {
			if strings.HasPrefix(f.Glob, "/") || strings.Count(f.Glob, "/") < 1 || strings.HasPrefix(f.Glob, "*") {
				t.Errorf("%s claims the files %s", p.Name(), f.Glob)
			}
		}
	}
}

func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, _ := filepath.Match(p, name); ok {
			return true
		}
	}
	return false
}

func TestEveryProfileHasItsPage(t *testing.T) {
	table, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		if _, err := os.Stat("../" + name + "/README.md"); err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(table), "["+name+"]("+name+"/README.md)") {
			t.Errorf("the table does not have %s", name)
		}
	}
}

func FuzzParseConf(f *testing.F) {
	f.Add(`{"name": "a", "plugins": [{"type": "flannel", "delegate": {"bridge": "x"}}]}`)
	f.Add(`{"type": "ptp", "ipam": {"ranges": [[{"subnet": "x"}], []]}}`)
	f.Add(`{"plugins": [null]}`)
	f.Fuzz(func(t *testing.T, text string) {
		l, err := profile.ParseConf(text)
		if err != nil {
			return
		}
		if len(l.Plugins) == 0 {
			t.Error("a list of nothing")
		}
		l.Types()
		l.Bridges()
		Detect(profiletest.Cluster(t, "", profiletest.WithConf("n", "10-x.conflist", text)))
	})
}

// The manifests that the project shows are what they are said to be: they
// install Flannel, and no pod gets it by that.
func TestTheExampleInstallsALatentFlannel(t *testing.T) {
	text, err := os.ReadFile("../../../../examples/migrate/flannel/kube-flannel.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Profile("flannel")
	if err != nil {
		t.Fatal(err)
	}
	side, score := p.Detect(profiletest.Cluster(t, string(text)))
	if score == 0 || side.WritesConf || len(side.PodCIDRs) == 0 || side.Tunnel == nil || len(side.Workloads) != 1 {
		t.Errorf("score %d: %+v", score, side)
	}
	if changes := p.Latent(profiletest.Objects(t, string(text))); len(changes) != 0 {
		t.Errorf("%v", changes)
	}
}
