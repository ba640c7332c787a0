package lab

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
)

// TestClusterProfiles brings up a lab of each kind with two nodes, one of them
// with DNS, and has pods reach each other across them. Flannel on
// user-mode-linux is that of TestClusterOfTwoNodes, and the bridge that of
// package demo.
func TestClusterProfiles(t *testing.T) {
	needCluster(t)
	for _, tc := range []struct {
		cni    string
		kernel guest.Kernel
		// proof is something on node1 that only this default network makes.
		proof, want string
	}{
		{"bridge", "host", "ip -o -4 addr show dev cni0", "10.244."},
		{"flannel", "host", "ip -d link show flannel.1", "vxlan id 1"},
		{"flannel-host-gw", "host", "ip route; cat " + flannelSubnetFile, "via 172.30.0.12 dev eth0"},
		{"flannel+cilium-latent", "host", "cilium-dbg status --brief; ls /etc/cni/net.d; ip -d link show cilium_vxlan", "OK\n10-flannel.conflist\n"},
		{"cilium", "host", "cilium-dbg status --brief; ls /etc/cni/net.d", "OK\n05-cilium.conflist"},
	} {
		t.Run(strings.ReplaceAll(tc.cni, "+", "-")+" on "+string(tc.kernel), func(t *testing.T) {
			dns := tc.cni == "flannel"
			ctx, l := upProfile(t, Config{CNI: tc.cni, NodeKernel: tc.kernel, DNS: dns})
			podsTalk(ctx, t, l)
			if dns {
				servesDNS(ctx, t, l)
			}
			if out, err := l.NodeRun(ctx, "node1", "sh", "-c", tc.proof); err != nil || !strings.Contains(out, tc.want) {
				t.Errorf("%s: %v, not %q in\n%s", tc.proof, err, tc.want, out)
			}
		})
	}
}

// upProfile brings up a lab that is removed, and leaves nothing, when the test
// ends.
func upProfile(t *testing.T, cfg Config) (context.Context, *Lab) {
	t.Helper()
	if cfg.NodeKernel == guest.Host {
		kerneltest.Need(t, kerneltest.Veth)
	}
	cfg.Name, cfg.Progress = "labtest-p", os.Stderr
	world := observeHost(t, cfg.Name)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() { world.downLeavesNothing(t) })
	l, err := Up(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	world.sawNamespace(t)
	return ctx, l
}

// servesDNS expects names of the cluster, and of nobody, to be answered for.
func servesDNS(ctx context.Context, t *testing.T, l *Lab) {
	if _, err := l.KubectlInput(ctx, strings.NewReader(twoPods), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"", []string{"wait", "--for=condition=Ready", "--timeout=90s", "pod/server", "pod/client"}},
		{"node1 node2", []string{"-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "--sort-by=.spec.nodeName", "-o", "jsonpath={.items[*].spec.nodeName}"}},
		{"nameserver " + DNSService.String(), []string{"exec", "client", "--", "cat", "/etc/resolv.conf"}},
		{apiService.String(), []string{"exec", "client", "--", "nslookup", "kubernetes.default.svc.cluster.local"}},
		{"hello", []string{"exec", "client", "--", "wget", "-q", "-O", "-", "http://server"}},
		{"hello", []string{"exec", "client", "--", "wget", "-q", "-O", "-", "http://server.default.svc.cluster.local"}},
	} {
		if out, err := l.Kubectl(ctx, tc.args...); err != nil || !strings.Contains(out, tc.want) {
			t.Errorf("kubectl %v: %v, not %q in\n%s", tc.args, err, tc.want, out)
		}
	}
	if out, err := l.Kubectl(ctx, "exec", "client", "--", "nslookup", "nobody.default.svc.cluster.local", DNSService.String()); err == nil {
		t.Errorf("a name that nobody has: %s", out)
	}
}
