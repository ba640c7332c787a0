package lab

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/guest"
)

func TestClusterSurvivesAReboot(t *testing.T) {
	needCluster(t)
	ctx, l := upProfile(t, Config{CNI: "flannel", NodeKernel: "host"})
	l.Progress = NewProgress(t.Output())
	if _, err := l.KubectlInput(ctx, strings.NewReader(twoPods), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	run := func(node, script string) string {
		t.Helper()
		out, err := l.NodeRun(ctx, node, "sh", "-ec", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := l.Kubectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	kubectl("wait", "--for=condition=Ready", "--timeout=90s", "pod/server", "pod/client")
	const files = "cat /etc/cni/net.d/10-flannel.conflist /var/lib/braid/kept; ls /var/lib/containerd"
	run("node1", "echo kept >/var/lib/braid/kept; ip link add braidgone type veth peer name braidgone2")
	before := run("node1", files)

	if err := l.RebootNode(ctx, "node1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, run("node1", files)); diff != "" {
		t.Errorf("the disk before and after:\n%s", diff)
	}
	if links := run("node1", "ls /sys/class/net"); strings.Contains(links, "braidgone") {
		t.Errorf("a link has survived: %s", links)
	}
	// The same pod, with another sandbox.
	kubectl("wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "--timeout=90s", "pod/server")
	kubectl("wait", "--for=condition=Ready", "--timeout=90s", "pod/server")
	server := kubectl("get", "pod", "server", "-o", "jsonpath={.status.podIP}")
	kubectl("exec", "client", "--", "ping", "-c", "1", "-w", "20", server)

	if err := l.RebootNode(ctx, "node7"); err == nil || !strings.Contains(err.Error(), "node1 node2") {
		t.Errorf("error %v", err)
	}
	t.Run("its API server goes and comes", func(t *testing.T) { apiServerGoesAndComes(ctx, t, l) })
}

func apiServerGoesAndComes(ctx context.Context, t *testing.T, l *Lab) {
	for range 2 { // the second time there is nothing to do
		if err := l.StopAPI(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := l.Kubectl(ctx, "get", "nodes", "--request-timeout=5s"); err == nil {
		t.Errorf("it answers: %s", out)
	}
	again, err := Up(ctx, l.state.Config)
	if err != nil {
		t.Errorf("the lab is not found any more: %v", err)
	}
	for range 2 {
		if err := again.StartAPI(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Kubectl(ctx, "get", "nodes"); err != nil {
		t.Error(err)
	}
	if s := again.Status(ctx); !s.Running {
		t.Errorf("status %+v", s)
	}
}

func TestNodeStartsAtBootWhatItWasRunningBefore(t *testing.T) {
	var s startup
	for _, d := range []string{"containerd", "kubelet", "flanneld", "kubelet"} {
		s.enable(guest.Daemon{Name: d}, true)
	}
	s.enable(guest.Daemon{Name: "flanneld"}, false)
	var names []string
	for _, d := range s.Daemons {
		names = append(names, d.Name)
	}
	if want := []string{"containerd", "kubelet"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}

func TestNodesThatKeepNothingAreNotRebooted(t *testing.T) {
	cfg, err := Config{NodeKernel: "uml"}.complete()
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{state: newState(cfg, nil)}
	if err := l.RebootNode(t.Context(), "node1"); err == nil || !strings.Contains(err.Error(), "--disk") {
		t.Errorf("error %v", err)
	}
	if cfg, err = (Config{NodeKernel: "host"}).complete(); err != nil || !cfg.Disk {
		t.Errorf("nodes on the machine's kernel keep nothing: %+v, %v", cfg, err)
	}
}
