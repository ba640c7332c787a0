package lab

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestEachLabBuildsOnlyWhatItsNetworkNeeds(t *testing.T) {
	every := Config{CNI: "bridge"}.programs()
	for _, name := range []string{"flanneld", "flannel", "cilium-agent", "cilium-cni"} {
		if slices.Contains(every, name) {
			t.Errorf("every lab would build %s", name)
		}
	}
	if names := (Config{CNI: "bridge", DNS: true}).programs(); !slices.Contains(names, "coredns") || slices.Contains(every, "coredns") {
		t.Errorf("CoreDNS: with --dns %v", names)
	}
	list, err := selectPrograms(nil, false)
	if err != nil || !slices.Equal(programNames(list), every) {
		t.Errorf("`lab build` and a plain lab differ: %v, %v, %v", programNames(list), every, err)
	}
	all, err := selectPrograms(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if names := programNames(all); !slices.Contains(names, "coredns") {
		t.Errorf("`lab build --all` leaves out CoreDNS: %v", names)
	}
	for cni, want := range map[string][]string{
		"flannel":                {"flanneld", "flannel"},
		"flannel-host-gw":        {"flanneld", "flannel"},
		"cilium":                 {"cilium-agent", "cilium-operator-generic", "cilium-cni", "cilium-dbg"},
		"flannel+cilium-latent":  {"flanneld", "flannel", "cilium-agent", "cilium-operator-generic", "cilium-cni", "cilium-dbg"},
		"flannel-host-gw+cilium": {"flanneld", "flannel", "cilium-agent", "cilium-operator-generic", "cilium-cni", "cilium-dbg"},
	} {
		var got []string
		for _, name := range (Config{CNI: cni}).programs() {
			if !slices.Contains(every, name) {
				got = append(got, name)
			}
			if !slices.Contains(programNames(all), name) {
				t.Errorf("`lab build --all` leaves out %s", name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", cni, got, want)
		}
	}
}

func TestCiliumComesSecondOnlyBesideAnother(t *testing.T) {
	alone := strings.Join(Config{CNI: "cilium"}.ciliumAgentArgs(), " ")
	second := strings.Join(Config{CNI: "flannel-host-gw+cilium"}.ciliumAgentArgs(), " ")
	for _, want := range []string{"--cni-exclusive=true", "/05-cilium.conflist", "--routing-mode=tunnel"} {
		if !strings.Contains(alone, want) || strings.Contains(second, want) {
			t.Errorf("%s: alone %q, second %q", want, alone, second)
		}
	}
	for _, want := range []string{"--cni-exclusive=false", "/20-cilium.conflist", "--routing-mode=native"} {
		if strings.Contains(alone, want) || !strings.Contains(second, want) {
			t.Errorf("%s: alone %q, second %q", want, alone, second)
		}
	}
}

func TestLatentCiliumWritesNoConfigurationAndLeavesPodsAlone(t *testing.T) {
	cfg := Config{CNI: "flannel+cilium-latent"}
	args := strings.Join(cfg.ciliumAgentArgs(), " ")
	for _, want := range []string{"--tunnel-port=8473", "--cni-exclusive=false", "--enable-policy=never", "--enable-host-legacy-routing=true"} {
		if !strings.Contains(args, want) {
			t.Errorf("no %s in %s", want, args)
		}
	}
	for _, not := range []string{"write-cni-conf", "custom-cni-conf", "cluster-pool-ipv4-cidr"} {
		if strings.Contains(args, not) {
			t.Errorf("the agent gets %s: %s", not, args)
		}
	}
	if cfg.flannelBackend() != "vxlan" || cfg.podNet() != podNet {
		t.Errorf("pods are on %s %s", cfg.flannelBackend(), cfg.podNet())
	}
}

func TestClusterSaysHowItWasSetUp(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want []string
	}{
		{Config{ControlPlaneOnly: true}, nil},
		{Config{CNI: "bridge"}, []string{"kube-system/kube-proxy config.conf: clusterCIDR: 10.244.0.0/16"}},
		{Config{CNI: "bridge", ClusterCIDR: NoClusterCIDR}, []string{`kube-system/kube-proxy config.conf: clusterCIDR: ""`}},
		{Config{CNI: "bridge", ClusterCIDR: "10.0.0.0/8"}, []string{"kube-system/kube-proxy config.conf: clusterCIDR: 10.0.0.0/8"}},
		{Config{CNI: "flannel+cilium-latent"}, []string{
			`kube-flannel/kube-flannel-cfg net-conf.json: "Network":"10.244.0.0/16"`,
			`kube-flannel/kube-flannel-cfg cni-conf.json: "name":"cbr0"`,
			"kube-system/cilium-config tunnel-port: 8473",
			"kube-system/cilium-config cluster-pool-ipv4-cidr: 172.20.0.0/16",
			"kube-system/cilium-config custom-cni-conf: true",
		}},
	} {
		objects, err := tc.cfg.objects()
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, o := range objects {
			var c struct {
				Metadata struct{ Namespace, Name string }
				Data     map[string]string
			}
			if err := json.Unmarshal(o.Body, &c); err != nil {
				t.Fatal(err)
			}
			for key, value := range c.Data {
				text = append(text, c.Metadata.Namespace+"/"+c.Metadata.Name+" "+key+": "+value)
			}
		}
		for _, want := range tc.want {
			head, tail, _ := strings.Cut(want, ": ")
			if !slices.ContainsFunc(text, func(s string) bool { return strings.HasPrefix(s, head+": ") && strings.Contains(s, tail) }) {
				t.Errorf("%+v: no %q in %q", tc.cfg, want, text)
			}
		}
		if len(tc.want) == 0 && len(objects) > 0 {
			t.Errorf("%+v: %q", tc.cfg, text)
		}
	}
}

func TestChosenPodNetworkIsApartFromTheNodesPodCIDRs(t *testing.T) {
	cfg := Config{CNI: "bridge", Nodes: 3, PodNet: netip.MustParsePrefix("10.200.0.0/16")}
	given := netip.MustParsePrefix("10.244.7.0/24")
	for i, want := range []string{"10.200.0.0/24", "10.200.1.0/24", "10.200.2.0/24"} {
		if got := cfg.podSubnet(cfg.nodes()[i], given); got.String() != want {
			t.Errorf("node %d: %s, want %s", i+1, got, want)
		}
	}
	if got := (Config{Nodes: 1}).podSubnet(cfg.nodes()[0], given); got != given {
		t.Errorf("without one: %s", got)
	}
	if !strings.Contains(string(cfg.proxyConfig(cfg.nodes()[0])), "clusterCIDR: 10.200.0.0/16") {
		t.Error("kube-proxy takes other addresses for the pods'")
	}
	if conf := string(cfg.defaultNetwork(given)); !strings.Contains(conf, `"bridge":"podbr0"`) {
		t.Errorf("the bridge would be Flannel's too: %s", conf)
	}
}
