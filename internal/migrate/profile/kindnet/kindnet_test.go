package kindnet

import (
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

const daemonSet = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kindnet, namespace: kube-system}
spec:
  selector: {matchLabels: {app: kindnet}}
  template:
    metadata: {labels: {app: kindnet}}
    spec:
      containers:
      - {name: kindnet-cni, image: "docker.io/kindest/kindnetd:v20250512", env: [{name: POD_SUBNET, value: "10.244.0.0/16"}]}
      volumes:
      - {name: cni-cfg, hostPath: {path: /etc/cni/net.d}}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDR: 10.244.0.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
spec: {podCIDR: 10.244.1.0/24}
`

const conf = `{"cniVersion": "0.3.1", "name": "kindnet", "plugins": [
  {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "ranges": [[{"subnet": "10.244.0.0/24"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`

func TestDetect(t *testing.T) {
	c := profiletest.Cluster(t, daemonSet, profiletest.WithConf("node1", "10-kindnet.conflist", conf))
	s, score := Profile{}.Detect(c)
	if score != profile.ScoreLoaded+profile.ScoreWorkload || s.MTU != 1500 || s.IPAM.NodeMask4 != 24 || !s.WritesConf || s.Transport != "routes" ||
		!slices.Equal(s.PodCIDRs, profiletest.Prefixes("10.244.0.0/16")) || !slices.Equal(s.Plugins, []string{"ptp", "host-local", "portmap"}) {
		t.Errorf("score %d: %+v", score, s)
	}
}

func TestItsDaemonMustWriteElsewhere(t *testing.T) {
	if changes := (Profile{}).Latent(profiletest.Objects(t, daemonSet)); len(changes) != 1 {
		t.Errorf("%v", changes)
	}
	elsewhere := strings.Replace(daemonSet, "/etc/cni/net.d", "/var/lib/braid/kindnet.d", 1)
	if changes := (Profile{}).Latent(profiletest.Objects(t, elsewhere)); len(changes) != 0 {
		t.Errorf("%v", changes)
	}
}

// The node's own block has no route as long as there are no pods on it.
func TestReadyWantsTheRoutesToOtherNodes(t *testing.T) {
	three := daemonSet + "---\napiVersion: v1\nkind: Node\nmetadata: {name: node3}\nspec: {podCIDR: 10.244.2.0/24}\n"
	s, _ := Profile{}.Detect(profiletest.Cluster(t, three))
	to := func(dst string) facts.Route { return facts.Route{Dst: dst, Via: "192.0.2.2", Dev: "eth0"} }
	pod := facts.Route{Dst: "10.244.0.2/32", Dev: "veth1"}
	for _, tt := range []struct {
		routes []facts.Route
		want   string
	}{
		{[]facts.Route{to("0.0.0.0/0"), to("10.244.1.0/24"), to("10.244.2.0/24")}, profile.Ready},
		{[]facts.Route{pod, to("10.244.1.0/24"), to("10.244.2.0/24")}, profile.Ready},
		{[]facts.Route{pod, to("10.244.1.0/24")}, "there is no route to 10.244.2.0/24, the block of node node3"},
		{[]facts.Route{to("0.0.0.0/0")}, "there is no route to 10.244.0.0/24, the block of node node1; 10.244.1.0/24, the block of node node2; 10.244.2.0/24, the block of node node3"},
	} {
		v := &profiletest.View{Program: s.Plugins, Route: tt.routes}
		if got := (Profile{}).Ready(t.Context(), v, s); got != tt.want {
			t.Errorf("%v: %q", tt.routes, got)
		}
	}
}
