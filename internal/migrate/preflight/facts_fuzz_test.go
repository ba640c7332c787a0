package preflight_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
)

// FuzzFacts: facts come from nodes, and text in them from anybody; judging them
// ends with a report.
func FuzzFacts(f *testing.F) {
	f.Add([]byte("links: [{name: flannel.1, tunnel: {kind: vxlan, port: 8473}}]\nroutes: [{dst: 172.20.0.0/16}]\ncni: {files: [{name: 10-x.conflist, text: '{'}]}"))
	f.Add([]byte("firewall: [{backend: iptables-nft, text: \"*filter\\n:FORWARD DROP\\n:A -\\n-A FORWARD -j A\\n-A A -j A\\n-A A ! -s 10.0.0.0/8 -j ACCEPT\\nCOMMIT\\n\"}]"))
	f.Add([]byte("firewall: [{backend: nftables, text: \"table inet x {\\nchain y {\\ntype filter hook forward priority 0; policy drop;\\n\"}]"))
	f.Add([]byte("sysctls: {net.ipv4.ip_forward: x}\nudp: [{addr: x, port: 8473}]\npaths: [{node: n, port: 8473, mtu: -1}]\nkernel: 5.x"))
	side := func(cidr string, t *facts.Tunnel) preflight.Side {
		return preflight.Side{
			Profile: cidr, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, Tunnel: t, Links: []string{"flannel.*", "[", "cni0"},
			ConfFile: "10-x.conflist", MinKernel: "5.10", Needs: []string{"vxlan"}, Plugins: []string{"x"},
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var n facts.Node
		if yaml.Unmarshal(data, &n) != nil {
			return
		}
		c := preflight.Cluster{
			Nodes: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{
				Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.29.0.11"}},
			}}},
			Facts: map[string]facts.Node{"n": n},
		}
		r := preflight.Check(c, side("10.243.0.0/16", &facts.Tunnel{Kind: "vxlan", ID: 1, Port: 8472}),
			side("172.20.0.0/16", &facts.Tunnel{Kind: "vxlan", Port: 8473, External: true}), preflight.Options{PreserveSource: true})
		if r.Findings == nil {
			t.Error("no list of findings")
		}
	})
}
