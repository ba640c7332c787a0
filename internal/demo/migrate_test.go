package demo_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/lab"
	"braid.dev/braid/internal/migrate/probe"
)

// Migrations of a live cluster under load, with real CNIs.

// TestClusterMigrateFlannelToCilium is the page about it: Flannel with vxlan on
// port 8472 to Cilium with vxlan on port 8473, and back, without a request lost.
func TestClusterMigrateFlannelToCilium(t *testing.T) {
	s := migrating(t, lab.Config{Name: "migrate", CNI: "flannel+cilium-latent", NodeKernel: guest.Host, Nodes: 3, DNS: true})
	load := s.underLoad(t)
	s.braid(t, "migrate", "run", "--to=cilium", "--yes", "--outside="+s.outside)
	s.wantPodsIn(t, "172.20.")
	s.wantTable(t, "probes")
	s.braid(t, "migrate", "rollback", "--follow")
	s.wantPodsIn(t, "10.244.")
	load.wantNoneLost(t)
}

// A migrated is a lab with the daemons of a migration.
type migrated struct {
	*scenario
	// outside is a server that is no part of the cluster, as host:port.
	outside string
}

// migrating brings up a lab with Braid's image, the daemons of a migration, and
// a server outside of the cluster.
func migrating(t *testing.T, cfg lab.Config) *migrated {
	t.Helper()
	s := &migrated{scenario: upWith(t, cfg)}
	s.loadImage(t)
	for _, n := range s.lab.Status(t.Context()).Nodes {
		if n.Name == lab.External {
			s.outside = n.Addr.String() + ":8080"
		}
	}
	err := s.lab.StartDaemon(t.Context(), lab.External, guest.Daemon{
		Name: "outside", Restart: true, Args: []string{filepath.Join(s.Root, "bin", "braidd"), "probe", "--pod=outside"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.braid(t, "migrate", "install")
	return s
}

// braid runs the command line inside the lab and fails with what it printed.
func (s *migrated) braid(t *testing.T, args ...string) string {
	t.Helper()
	out, code := s.tryBraid(t, args...)
	if code != 0 {
		t.Fatalf("braid %s: exit status %d:\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// tryBraid runs the command line inside the lab, and returns what it wrote.
func (s *migrated) tryBraid(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	full := append([]string{"--net=" + s.lab.NetNS(), filepath.Join(s.Root, "bin", "braid")}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", append(full, "--kubeconfig="+s.lab.Kubeconfig())...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	t.Logf("$ braid %s\n%s", strings.Join(args, " "), out.String())
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// wantPodsIn expects the addresses of all pods with a network of their own to
// begin so.
func (s *migrated) wantPodsIn(t *testing.T, prefix string) {
	t.Helper()
	out := s.kubectl(t, "get", "pods", "-A", "--no-headers", "-o",
		"custom-columns=:.metadata.namespace,:.metadata.name,:.spec.hostNetwork,:.status.podIP,:.status.phase")
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 5 && f[2] != "true" && f[4] == "Running" && !strings.HasPrefix(f[3], prefix) {
			t.Errorf("%s/%s has %s, not %s…", f[0], f[1], f[3], prefix)
		}
	}
}

// migration reads the Migration object.
func (s *migrated) migration(t *testing.T) v1alpha1.Migration {
	t.Helper()
	out := s.kubectl(t, "get", "migrations.braid.dev", "-o", "json")
	var list struct{ Items []v1alpha1.Migration }
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Items) != 1 {
		t.Fatalf("%d migrations, %v", len(list.Items), err)
	}
	return list.Items[0]
}

func (s *migrated) wantTable(t *testing.T, _ string) {
	t.Helper()
	for _, r := range s.migration(t).Status.Rounds {
		t.Logf("%s: %d asked, %d failed", r.When, r.Asked, r.Failed)
	}
}

// A load is what the clients of the workloads have counted.
type load struct {
	s       *migrated
	end     context.CancelFunc
	watched sync.WaitGroup
	mu      sync.Mutex
	logs    map[string]*bytes.Buffer
}

// underLoad starts the workloads of examples/migrate and keeps what their
// clients print, also of those that end in between.
func (s *migrated) underLoad(t *testing.T) *load {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Root, "examples/migrate/workloads.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.apply(t, strings.ReplaceAll(string(text), "OUTSIDE", s.outside))
	for _, what := range []string{"deployment/web", "statefulset/db", "daemonset/agent", "deployment/client", "daemonset/client-on-node"} {
		s.kubectl(t, "-n", "shop", "rollout", "status", what, "--timeout=180s")
	}
	ctx, end := context.WithCancel(t.Context())
	l := &load{s: s, end: end, logs: map[string]*bytes.Buffer{}}
	t.Cleanup(func() { end(); l.watched.Wait() })
	l.watched.Go(func() { l.watch(ctx) })
	return l
}

// watch follows the log of every client there is.
func (l *load) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		out, err := l.s.lab.Kubectl(ctx, "-n", "shop", "get", "pods", "-l", "app=client", "--field-selector=status.phase=Running", "-o", "name")
		for pod := range strings.Lines(out) {
			if pod = strings.TrimSpace(pod); err == nil && pod != "" {
				l.follow(ctx, pod)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (l *load) follow(ctx context.Context, pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logs[pod] != nil {
		return
	}
	out := &bytes.Buffer{}
	l.logs[pod] = out
	l.watched.Go(func() {
		// It ends with the client, which prints its counts last.
		_, _ = l.s.lab.RunKubectl(ctx, lab.Streams{Out: out}, "-n", "shop", "logs", "-f", pod)
	})
}

// wantNoneLost ends the clients and expects that none of their requests failed.
func (l *load) wantNoneLost(t *testing.T) {
	t.Helper()
	l.s.kubectl(t, "-n", "shop", "delete", "deployment/client", "daemonset/client-on-node", "--wait")
	l.s.kubectl(t, "-n", "shop", "wait", "--for=delete", "pod", "-l", "app=client", "--timeout=120s")
	time.AfterFunc(5*time.Second, l.end) // logs end by themselves; the watch does not
	l.watched.Wait()
	total := map[string][2]int{}
	for pod, out := range l.logs {
		var counts probe.Counts
		if err := json.Unmarshal(out.Bytes(), &counts); err != nil {
			t.Errorf("%s: %v: %q", pod, err, out.String())
			continue
		}
		for _, c := range counts.Targets {
			sum := total[c.Name]
			total[c.Name] = [2]int{sum[0] + c.Asked, sum[1] + c.Failed}
			if c.Failed > 0 {
				t.Errorf("%s lost %d of %d requests to %s: %+v", pod, c.Failed, c.Asked, c.Name, c.Errors)
			}
		}
	}
	for name, sum := range total {
		t.Logf("%s: %d requests by %d clients, %d failed", name, sum[0], len(l.logs), sum[1])
		if sum[0] < 100 {
			t.Errorf("%s: only %d requests", name, sum[0])
		}
	}
	if len(total) == 0 {
		t.Error("no client has counted anything")
	}
}

// loadImage makes Braid's image known to every node.
func (s *scenario) loadImage(t *testing.T) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "braid.tar")
	if err := image.Write(archive, image.Braid(filepath.Join(s.Root, "bin"), image.Ref)); err != nil {
		t.Fatalf("%v (make build)", err)
	}
	if err := s.lab.LoadImage(t.Context(), archive); err != nil {
		t.Fatal(fmt.Errorf("load Braid's image: %w", err))
	}
}
