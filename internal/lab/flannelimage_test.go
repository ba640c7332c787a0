package lab

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLibrariesAreWhereTheLinkerFindsThem(t *testing.T) {
	const ldd = `/usr/sbin/xtables-nft-multi:
	linux-vdso.so.1 (0x00007ffd0d3f2000)
	libmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f7d3c0f5000)
	libnone.so.0 => not found
	/lib64/ld-linux-x86-64.so.2 (0x00007f7d3c1a0000)
/usr/lib/x86_64-linux-gnu/xtables/libxt_mark.so:
	statically linked
`
	want := []string{"/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"}
	if got := libraries(ldd); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestClusterGetsFlannelWithoutAnyPodOnIt applies the example that a migration
// to Flannel begins with.
func TestClusterGetsFlannelWithoutAnyPodOnIt(t *testing.T) {
	needCluster(t)
	root, err := sourceRoot("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{NodeKernel: "host"}
	if err := cfg.PodNet.UnmarshalText([]byte("10.200.0.0/16")); err != nil {
		t.Fatal(err)
	}
	ctx, l := upProfile(t, cfg)
	if err := l.LoadFlannel(ctx, BuildConfig{}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(root, "examples/migrate/flannel/kube-flannel.yaml")},
		{"-n", "kube-flannel", "rollout", "status", "daemonset/kube-flannel-ds", "--timeout=90s"},
	} {
		if _, err := l.Kubectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	// Flannel's DaemonSet has no readiness probe: its pods count before they serve.
	if _, err := l.NodeRun(ctx, "node1", "timeout", "60", "sh", "-c", "until test -s /run/flannel/subnet.env; do sleep 0.2; done"); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"ls /etc/cni/net.d":             "10-default.conflist\n",
		"cat /run/flannel/subnet.env":   "FLANNEL_NETWORK=10.244.0.0/16\n",
		"ip -d link show dev flannel.1": "dstport 8472",
		"test -x /opt/cni/bin/flannel && iptables -t nat -S FLANNEL-POSTRTG": "-j MASQUERADE",
	} {
		if out, err := l.NodeRun(ctx, "node1", "sh", "-c", command); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, not %q in\n%s", command, err, want, out)
		}
	}
	podsTalk(ctx, t, l)
	if out, err := l.NodeRun(ctx, "node1", "ip", "-o", "-4", "addr", "show", "dev", "podbr0"); err != nil || !strings.Contains(out, "10.200.0.1/24") {
		t.Errorf("pods are not on the bridge: %q, %v", out, err)
	}
}
