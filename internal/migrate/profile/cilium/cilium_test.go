package cilium

import (
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

// chart is what the chart of 1.19 makes of its default values, as far as it is
// read here.
const chart = `
apiVersion: v1
kind: ConfigMap
metadata: {name: cilium-config, namespace: kube-system}
data:
  ipam: cluster-pool
  cluster-pool-ipv4-cidr: 172.20.0.0/16
  cluster-pool-ipv4-mask-size: "24"
  enable-ipv4: "true"
  enable-ipv6: "false"
  enable-ipv4-masquerade: "true"
  routing-mode: tunnel
  tunnel-protocol: vxlan
  kube-proxy-replacement: "false"
  enable-policy: default
  write-cni-conf-when-ready: /host/etc/cni/net.d/05-cilium.conflist
  cni-exclusive: "true"
  cni-uninstall: "true"
  custom-cni-conf: "false"
  unmanaged-pod-watcher-interval: "15s"
  agent-health-port: "9879"
  cluster-health-port: "4240"
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: cilium, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: cilium}}
  template:
    metadata: {labels: {k8s-app: cilium}}
    spec:
      containers:
      - {name: cilium-agent, image: "quay.io/cilium/cilium:v1.19.0@sha256:00", command: [cilium-agent]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cilium-operator, namespace: kube-system}
spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: o, image: o}]}}}
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: node1}
spec: {ipam: {podCIDRs: [172.20.3.0/24]}}
`

// latentChart is the same with the values that an installation waits with.
var latentChart = strings.NewReplacer(`custom-cni-conf: "false"`, `custom-cni-conf: "true"`,
	`  write-cni-conf-when-ready: /host/etc/cni/net.d/05-cilium.conflist`+"\n", "", `cni-exclusive: "true"`, `cni-exclusive: "false"`,
	`cni-uninstall: "true"`, `cni-uninstall: "false"`, `"15s"`, `"0"`, "enable-policy: default", `enable-policy: never`,
	"tunnel-protocol: vxlan", "tunnel-protocol: vxlan\n  tunnel-port: \"8473\"\n  enable-host-legacy-routing: \"true\"").Replace(chart)

func TestTheChartSaysEverything(t *testing.T) {
	s, score := Profile{}.Detect(profiletest.Cluster(t, chart))
	if score != profile.ScoreSettings+profile.ScoreWorkload || s.Version != "1.19.0" {
		t.Errorf("score %d, version %q", score, s.Version)
	}
	if *s.Tunnel != (facts.Tunnel{Kind: "vxlan", Port: 8472, External: true}) || s.Transport != "vxlan" || s.Overhead != 50 {
		t.Errorf("tunnel %+v by %s, %d bytes", s.Tunnel, s.Transport, s.Overhead)
	}
	if !slices.Equal(s.PodCIDRs, profiletest.Prefixes("172.20.0.0/16")) || s.IPAM.Source != "pool" || s.IPAM.NodeMask4 != 24 || len(s.IPAM.Blocks["node1"]) != 1 {
		t.Errorf("addresses %v, %+v", s.PodCIDRs, s.IPAM)
	}
	if !s.WritesConf || !s.Exclusive || !s.RestartsPods || !s.Enforces || !s.Bypasses || s.HostPort != "none" || s.Autodetect != "devices" {
		t.Errorf("%+v", s)
	}
	if !slices.Equal(s.Workloads, []string{"DaemonSet/kube-system/cilium", "Deployment/kube-system/cilium-operator"}) {
		t.Errorf("workloads %v", s.Workloads)
	}
}

func TestALatentInstallationTakesNothing(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, latentChart))
	if s.WritesConf || s.Exclusive || s.RestartsPods || s.Enforces || s.Bypasses || s.Tunnel.Port != 8473 {
		t.Errorf("%+v", s)
	}
}

func TestSettings(t *testing.T) {
	for what, tt := range map[string]struct {
		from, to string
		is       func(preflight.Side) bool
	}{
		"geneve has its own port":     {"tunnel-protocol: vxlan", "tunnel-protocol: geneve", func(s preflight.Side) bool { return s.Tunnel.Kind == "geneve" && s.Tunnel.Port == 6081 }},
		"native routing":              {"routing-mode: tunnel", "routing-mode: native", func(s preflight.Side) bool { return s.Tunnel == nil && s.Transport == "routes" && !s.Masquerades[0].In }},
		"until 1.14":                  {"routing-mode: tunnel", "tunnel: disabled", func(s preflight.Side) bool { return s.Tunnel == nil }},
		"replaces kube-proxy":         {`kube-proxy-replacement: "false"`, `kube-proxy-replacement: "true"`, func(s preflight.Side) bool { return s.KubeProxyReplacement && s.SocketLB && s.HostPort == "native" }},
		"no masquerading":             {`enable-ipv4-masquerade: "true"`, `enable-ipv4-masquerade: "false"`, func(s preflight.Side) bool { return len(s.Masquerades) == 0 }},
		"masquerades by eBPF":         {"ipam: cluster-pool", "ipam: cluster-pool\n  enable-bpf-masquerade: \"true\"", func(s preflight.Side) bool { return s.Masquerades[0].Backend == "bpf" }},
		"exempt":                      {"ipam: cluster-pool", "ipam: cluster-pool\n  ipv4-native-routing-cidr: 10.0.0.0/8", func(s preflight.Side) bool { return s.Masquerades[0].Except[0].String() == "10.0.0.0/8" }},
		"addresses of the nodes":      {"ipam: cluster-pool", "ipam: kubernetes", func(s preflight.Side) bool { return s.IPAM.Source == "node" }},
		"hostPorts by chaining":       {"ipam: cluster-pool", "ipam: cluster-pool\n  cni-chaining-mode: portmap", func(s preflight.Side) bool { return s.HostPort == "portmap" }},
		"devices are pinned":          {"ipam: cluster-pool", "ipam: cluster-pool\n  devices: eth0 eth1", func(s preflight.Side) bool { return s.Autodetect == "" && len(s.Pinned) == 2 }},
		"several pools":               {"172.20.0.0/16", "172.20.0.0/16 172.21.0.0/16", func(s preflight.Side) bool { return len(s.PodCIDRs) == 2 }},
		"another health port":         {`"9879"`, `"9999"`, func(s preflight.Side) bool { return s.Ports[0].Port == 9999 && s.Ports[0].Local }},
		"a port that is none at all":  {`"4240"`, `"99999"`, func(s preflight.Side) bool { return len(s.Ports) == 1 }},
		"a mask that cannot be read":  {`mask-size: "24"`, `mask-size: "x"`, func(s preflight.Side) bool { return s.IPAM.NodeMask4 == 24 }},
		"not exclusive beside others": {`cni-exclusive: "true"`, `cni-exclusive: "false"`, func(s preflight.Side) bool { return !s.Exclusive && s.WritesConf }},
	} {
		if !strings.Contains(chart, tt.from) {
			t.Fatalf("%s: the chart has no %q", what, tt.from)
		}
		s, _ := Profile{}.Detect(profiletest.Cluster(t, strings.Replace(chart, tt.from, tt.to, 1)))
		if !tt.is(s) {
			t.Errorf("%s: %+v", what, s)
		}
	}
}

func TestEverySettingThatIsNotLatentIsNamed(t *testing.T) {
	var values []string
	for _, c := range (Profile{}).Latent(profiletest.Objects(t, chart)) {
		if c.Object != "ConfigMap/kube-system/cilium-config" || c.Why == "" {
			t.Errorf("%+v", c)
		}
		values = append(values, c.Value)
	}
	want := []string{"cni.customConf=true", "cni.exclusive=false", "cni.uninstall=false", "operator.unmanagedPodWatcher.restart=false",
		"policyEnforcementMode=never", "bpf.hostLegacyRouting=true", "tunnelPort=8473"}
	if !slices.Equal(values, want) {
		t.Errorf("%q", values)
	}
	if changes := (Profile{}).Latent(profiletest.Objects(t, latentChart)); len(changes) != 0 {
		t.Errorf("latent already: %v", changes)
	}
}

func TestReady(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, strings.Replace(chart, `"9879"`, `"9999"`, 1)))
	v := &profiletest.View{Link: []facts.Link{{Name: "cilium_host", Up: true}}, Program: []string{"cilium-cni"}}
	if got := (Profile{}).Ready(t.Context(), v, s); !strings.Contains(got, "connection refused") {
		t.Errorf("no agent: %q", got)
	}
	v.Status = map[string]int{"http://127.0.0.1:9999/healthz": 503}
	if got := (Profile{}).Ready(t.Context(), v, s); !strings.Contains(got, "answers 503") || v.Asked["brief"] != "true" {
		t.Errorf("a sick agent: %q, asked with %v", got, v.Asked)
	}
	v.Status["http://127.0.0.1:9999/healthz"] = 200
	if got := (Profile{}).Ready(t.Context(), v, s); got != profile.Ready {
		t.Errorf("all well: %q", got)
	}
	v.Link[0].Up = false
	if got := (Profile{}).Ready(t.Context(), v, s); got != "link cilium_host is down" {
		t.Errorf("link down: %q", got)
	}
}

func TestItsConfigurationIsOne(t *testing.T) {
	conf, err := Profile{}.Conf(preflight.Side{}, preflight.Side{})
	if err != nil || conf.File != "05-cilium.conflist" {
		t.Fatal(conf, err)
	}
	if l, err := profile.ParseConf(conf.Text); err != nil || l.Name != "cilium" || !isConf(l) {
		t.Errorf("%+v, %v", l, err)
	}
}
