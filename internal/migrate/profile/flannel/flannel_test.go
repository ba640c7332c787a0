package flannel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

const settings = `
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-flannel-cfg, namespace: kube-flannel}
data:
  cni-conf.json: |
    {"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
      {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
      {"type": "portmap", "capabilities": {"portMappings": true}}]}
  net-conf.json: |
    {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
`

const daemonSet = `---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec:
  selector: {matchLabels: {app: flannel}}
  template:
    metadata: {labels: {app: flannel}}
    spec:
      initContainers:
      - name: install-cni
        command: [cp]
        args: [-f, /etc/kube-flannel/cni-conf.json, /etc/cni/net.d/10-flannel.conflist]
      containers:
      - name: kube-flannel
        image: ghcr.io/flannel-io/flannel:v0.28.10
        command: [/opt/bin/flanneld]
        args: [--ip-masq, --kube-subnet-mgr, --healthz-port=8081]
---
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24]}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
`

func TestSettingsAndDaemonSetSayEverything(t *testing.T) {
	s, score := Profile{}.Detect(profiletest.Cluster(t, settings+daemonSet))
	if score != profile.ScoreSettings+profile.ScoreWorkload {
		t.Errorf("score %d", score)
	}
	s.Evidence, s.Settings = nil, nil
	want := preflight.Side{
		Profile: "flannel", Version: "0.28.10", PodCIDRs: profiletest.Prefixes("10.244.0.0/16"),
		IPAM:   preflight.IPAM{Source: "node", Mode: "kube-subnet-mgr", NodeMask4: 24, Blocks: s.IPAM.Blocks},
		Tunnel: &facts.Tunnel{Kind: "vxlan", ID: 1, Port: 8472}, Transport: "vxlan", Overhead: 50,
		Masquerades: []preflight.Masquerade{{Name: "FLANNEL-POSTRTG", Backend: "iptables", Out: true, In: true, Except: profiletest.Prefixes("224.0.0.0/4")}},
		Seen:        preflight.Seen{Same: "cni0", Other: "flannel.1"}, HostPort: "portmap",
		Ports:    []preflight.Port{{Port: 8081, Protocol: "tcp", Name: "flanneld health", Setting: "--healthz-port"}},
		ConfFile: "10-flannel.conflist", Network: "cbr0", WritesConf: true,
		Plugins: []string{"flannel", "portmap", "bridge", "host-local"}, Chained: []string{"portmap"}, Needs: []string{"vxlan"},
		Links: []string{"flannel*", "cni-flannel", "cni0"}, Autodetect: "default-route", HostGateway: preflight.Yes,
		Workloads: []string{"DaemonSet/kube-flannel/kube-flannel-ds"},
	}
	if diff := cmp.Diff(want, s, samePrefix); diff != "" {
		t.Error(diff)
	}
	if len(s.IPAM.Blocks) != 2 || s.IPAM.Blocks["node2"][0].String() != "10.244.1.0/24" {
		t.Errorf("blocks %v", s.IPAM.Blocks)
	}
}

var samePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestBackends(t *testing.T) {
	for conf, want := range map[string]struct {
		transport string
		overhead  int
		tunnel    string
		other     string
	}{
		`{"Type": "vxlan", "VNI": 7, "Port": 4789}`: {"vxlan", 50, "7:4789", "flannel.7"},
		`{"Type": "vxlan", "GBP": true}`:            {"vxlan", 50, "1:8472", "flannel.1"},
		`{"Type": "host-gw"}`:                       {"routes", 0, "", ""},
		`{"Type": "wireguard"}`:                     {"wireguard", 60, "", "flannel-wg"},
		`{"Type": "ipip"}`:                          {"ipip", 20, "", "flannel.ipip"},
	} {
		s, _ := Profile{}.Detect(profiletest.Cluster(t, strings.Replace(settings, `{"Type": "vxlan"}`, conf, 1)))
		tunnel := ""
		if s.Tunnel != nil {
			tunnel = fmt.Sprintf("%d:%d", s.Tunnel.ID, s.Tunnel.Port)
			if strings.Contains(conf, "GBP") != s.Tunnel.GBP {
				t.Errorf("%s: GBP %t", conf, s.Tunnel.GBP)
			}
		}
		if s.Transport != want.transport || s.Overhead != want.overhead || tunnel != want.tunnel || s.Seen.Other != want.other {
			t.Errorf("%s: %s, %d bytes, tunnel %q, seen as %q", conf, s.Transport, s.Overhead, tunnel, s.Seen.Other)
		}
	}
}

// By nftables the rule for what others send to pods cannot be reached.
func TestNftablesDoesNotMasqueradeWhatComesIn(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, strings.Replace(settings, `"Backend"`, `"EnableNFTables": true, "Backend"`, 1)+daemonSet))
	if len(s.Masquerades) != 1 || s.Masquerades[0].Backend != "nftables" || s.Masquerades[0].In || !s.Masquerades[0].Out {
		t.Errorf("%+v", s.Masquerades)
	}
	s, _ = Profile{}.Detect(profiletest.Cluster(t, settings+strings.Replace(daemonSet, "--ip-masq, ", "", 1)))
	if len(s.Masquerades) != 0 {
		t.Errorf("without --ip-masq: %+v", s.Masquerades)
	}
}

// Without any object, as when flanneld is a service of the host.
func TestANodeAloneSaysWhatItCan(t *testing.T) {
	n := profiletest.WithConf("node1", "10-flannel.conflist", `{"name": "podnet", "plugins": [{"type": "flannel", "delegate": {"bridge": "br-pods"}}]}`,
		facts.Link{Name: "flannel.1", Kind: "vxlan", Up: true})
	n.CNI.State = []facts.File{{Name: subnetEnv, Text: "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"}}
	s, score := Profile{}.Detect(profiletest.Cluster(t, "", n))
	if score < profile.ScoreLoaded || s.Network != "podnet" || s.HostPort != "none" || len(s.Masquerades) != 0 ||
		!slices.Equal(s.PodCIDRs, profiletest.Prefixes("10.9.0.0/16")) || !slices.Contains(s.Links, "br-pods") || s.Transport != "vxlan" {
		t.Errorf("score %d: %+v", score, s)
	}
}

func TestAnotherClusterIsNotFlannels(t *testing.T) {
	n := profiletest.WithConf("node1", "05-cilium.conflist", `{"name": "cilium", "plugins": [{"type": "cilium-cni"}]}`)
	if s, score := (Profile{}).Detect(profiletest.Cluster(t, "", n)); score != 0 {
		t.Errorf("score %d: %v", score, s.Evidence)
	}
}

// Two networks cannot share one bridge: its plugin refuses a second address.
func TestTheBridgeIsNotTheOthers(t *testing.T) {
	to, _ := Profile{}.Detect(profiletest.Cluster(t, settings+daemonSet))
	for _, tt := range []struct {
		from   preflight.Side
		bridge string
	}{
		{preflight.Side{Profile: "cilium", Links: []string{"cilium_*"}}, "cni0"},
		{preflight.Side{Profile: "bridge", Links: []string{"cni0"}}, "cni-flannel"},
	} {
		conf, err := Profile{}.Conf(to, tt.from)
		if err != nil || conf.File != "10-flannel.conflist" {
			t.Fatal(conf.File, err)
		}
		l, err := profile.ParseConf(conf.Text)
		if err != nil || l.Name != "cbr0" || !l.Has("portmap") || !slices.Equal(l.Bridges(), []string{tt.bridge}) {
			t.Errorf("after %s: bridges %v, %v in %s", tt.from.Profile, l.Bridges(), err, conf.Text)
		}
	}
}

func TestTheInitContainerHasToGo(t *testing.T) {
	changes := Profile{}.Latent(profiletest.Objects(t, settings+daemonSet))
	if len(changes) != 1 || changes[0].Object != "DaemonSet/kube-flannel/kube-flannel-ds" || changes[0].Setting != "container install-cni" {
		t.Errorf("%v", changes)
	}
	latent := strings.Replace(daemonSet, "/etc/cni/net.d/10-flannel.conflist", "/tmp/x", 1)
	if changes := (Profile{}).Latent(profiletest.Objects(t, settings+latent)); len(changes) != 0 {
		t.Errorf("latent already: %v", changes)
	}
}

func TestReady(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, settings+daemonSet))
	good := func() *profiletest.View {
		return &profiletest.View{
			Link:    []facts.Link{{Name: "flannel.1", Kind: "vxlan", Up: true, Tunnel: &facts.Tunnel{Kind: "vxlan", ID: 1, Port: 8472}}},
			File:    map[string]string{subnetEnv: "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"},
			Program: []string{"flannel", "bridge", "host-local", "portmap"},
		}
	}
	for what, tt := range map[string]struct {
		spoil func(*profiletest.View)
		want  string
	}{
		"all well":          {func(*profiletest.View) {}, profile.Ready},
		"no subnet.env":     {func(v *profiletest.View) { v.File = nil }, "subnet.env"},
		"half a subnet.env": {func(v *profiletest.View) { v.File[subnetEnv] = "FLANNEL_NETWORK=10.244.0.0/16\n" }, "no FLANNEL_SUBNET"},
		"another network's": {func(v *profiletest.View) {
			v.File[subnetEnv] = "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.1.1/24\n"
		}, "of the network 10.9.0.0/16"},
		"no plugin":          {func(v *profiletest.View) { v.Program = v.Program[1:] }, "no flannel"},
		"no link":            {func(v *profiletest.View) { v.Link = nil }, "no link flannel.1"},
		"link down":          {func(v *profiletest.View) { v.Link[0].Up = false }, "flannel.1 is down"},
		"link of other port": {func(v *profiletest.View) { v.Link[0].Tunnel.Port = 8473 }, "port 8472"},
	} {
		v := good()
		tt.spoil(v)
		if got := (Profile{}).Ready(t.Context(), v, s); !strings.Contains(got, tt.want) || got == profile.Ready != (tt.want == profile.Ready) {
			t.Errorf("%s: %q", what, got)
		}
	}
}

func TestLeftoversAreOfTheSettings(t *testing.T) {
	l := Profile{}.Leftovers(preflight.Side{PodCIDRs: profiletest.Prefixes("10.9.0.0/16"), Network: "podnet", ConfFile: "20-f.conflist", Links: []string{"flannel*", "br-pods"}})
	var globs []string
	for _, f := range l.Files {
		globs = append(globs, f.Glob)
	}
	for _, want := range []string{"var/lib/cni/networks/podnet", "etc/cni/net.d/20-f.conflist.braid-migrate", "run/flannel"} {
		if !slices.Contains(globs, want) {
			t.Errorf("no %s in %v", want, globs)
		}
	}
	if last := l.Links[len(l.Links)-1]; last.Name != "br-pods" || last.Kinds[0] != "bridge" {
		t.Errorf("links %v", l.Links)
	}
}
