package calico

import (
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

const daemonSet = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: calico-node, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: calico-node}}
  template:
    metadata: {labels: {k8s-app: calico-node}}
    spec:
      initContainers:
      - {name: install-cni, image: cni, env: [{name: CNI_CONF_NAME, value: 10-calico.conflist}]}
      containers:
      - name: calico-node
        image: docker.io/calico/node:v3.30.0
        env:
        - {name: CALICO_IPV4POOL_CIDR, value: 192.168.0.0/16}
        - {name: CALICO_IPV4POOL_IPIP, value: Always}
        - {name: CALICO_IPV4POOL_VXLAN, value: Never}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: calico-config, namespace: kube-system}
data: {calico_backend: bird, veth_mtu: "1440"}
`

const pools = `---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: default}
spec: {cidr: 10.10.0.0/16, vxlanMode: CrossSubnet, ipipMode: Never, natOutgoing: true, blockSize: 26}
---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: flannels}
spec: {cidr: 10.244.0.0/16, disabled: true, natOutgoing: false}
---
apiVersion: crd.projectcalico.org/v1
kind: FelixConfiguration
metadata: {name: default}
spec: {vxlanPort: 4790, vxlanVNI: 77}
`

func TestTheDaemonSetSaysWhatPoolsAreMadeFrom(t *testing.T) {
	s, score := Profile{}.Detect(profiletest.Cluster(t, daemonSet))
	if score == 0 || s.Version != "3.30.0" || s.Transport != "ipip" || s.Overhead != 20 || s.Tunnel != nil || s.MTU != 1440 || !s.WritesConf ||
		!slices.Equal(s.PodCIDRs, profiletest.Prefixes("192.168.0.0/16")) || len(s.Masquerades) != 1 || s.Autodetect != "first-found" {
		t.Errorf("score %d: %+v", score, s)
	}
}

// Once there are pools, the settings that they were made from mean nothing. A
// disabled one gives no addresses.
func TestPoolsAreBelievedFirst(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, daemonSet+pools))
	if !slices.Equal(s.PodCIDRs, profiletest.Prefixes("10.10.0.0/16")) || s.Transport != "vxlan" || *s.Tunnel != (facts.Tunnel{Kind: "vxlan", ID: 77, Port: 4790}) {
		t.Errorf("%v by %s, %+v", s.PodCIDRs, s.Transport, s.Tunnel)
	}
}

func TestTheOperatorsSettingsAreRead(t *testing.T) {
	const installation = `
apiVersion: operator.tigera.io/v1
kind: Installation
metadata: {name: default}
spec: {calicoNetwork: {ipPools: [{cidr: 10.48.0.0/16, encapsulation: VXLANCrossSubnet, natOutgoing: Disabled}]}}
`
	s, score := Profile{}.Detect(profiletest.Cluster(t, installation))
	if score == 0 || s.Transport != "vxlan" || len(s.Masquerades) != 0 || !slices.Equal(s.PodCIDRs, profiletest.Prefixes("10.48.0.0/16")) {
		t.Errorf("score %d: %+v", score, s)
	}
	if changes := (Profile{}).Latent(profiletest.Objects(t, installation)); len(changes) != 1 {
		t.Errorf("%v", changes)
	}
}

func TestItsInitContainerMustWriteElsewhere(t *testing.T) {
	if changes := (Profile{}).Latent(profiletest.Objects(t, daemonSet)); len(changes) != 1 || !strings.Contains(changes[0].Setting, "CNI_CONF_NAME") {
		t.Errorf("%v", changes)
	}
	elsewhere := strings.Replace(daemonSet, "value: 10-calico.conflist", "value: 10-calico.conflist.braid-migrate", 1)
	if changes := (Profile{}).Latent(profiletest.Objects(t, elsewhere)); len(changes) != 0 {
		t.Errorf("%v", changes)
	}
}

func TestReady(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, daemonSet+pools))
	v := &profiletest.View{Program: s.Plugins, Link: []facts.Link{{Name: "vxlan.calico", Up: true}}}
	if got := (Profile{}).Ready(t.Context(), v, s); !strings.Contains(got, "felix") {
		t.Errorf("no felix: %q", got)
	}
	v.Status = map[string]int{"http://127.0.0.1:9099/readiness": 204}
	if got := (Profile{}).Ready(t.Context(), v, s); got != profile.Ready {
		t.Errorf("all well: %q", got)
	}
	v.Link = nil
	if got := (Profile{}).Ready(t.Context(), v, s); got != "there is no link vxlan.calico" {
		t.Errorf("no link: %q", got)
	}
}

func TestNothingOfItIsNothing(t *testing.T) {
	if s, score := (Profile{}).Detect(preflight.Cluster{}); score != 0 {
		t.Errorf("score %d: %+v", score, s)
	}
}
