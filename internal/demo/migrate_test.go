package demo_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/lab"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/probe"
)

// Migrations of a live cluster under load, with real CNIs.

// TestMigrateFlannelToCilium is the page about it: Flannel with vxlan on
// port 8472 to Cilium with vxlan on port 8473, and back, and once more with the
// pods' own addresses, all under load and without a request lost; then Flannel is
// cleaned up.
func TestMigrateFlannelToCilium(t *testing.T) {
	s := migrating(t, lab.Config{Name: "migrate", CNI: "flannel+cilium-latent", NodeKernel: guest.Host, Nodes: 3, DNS: true})
	load := s.underLoad(t)
	dry := s.braid(t, "migrate", "run", "--to=cilium", "--dry-run")
	for _, want := range []string{"1. node", "shop/bare", "StatefulSet db", "evicted", "web permits 1 disruptions now"} {
		if !strings.Contains(dry, want) {
			t.Errorf("the plan does not say %q", want)
		}
	}

	s.braid(t, "migrate", "run", "--to=cilium", "--yes", "--outside="+s.outside)
	s.wantPodsIn(t, "172.20.")
	before, between, after := s.tables(t)
	wantSeen(t, before, "old", "old", "other node", "own")
	for _, table := range [][]v1alpha1.ClientRow{between, after} {
		wantSeen(t, table, "new", "new", "other node", "own")
		wantSeen(t, table, "old", "old", "other node", "own")
		wantSeen(t, table, "new", "old", "other node", "flannel.1")
		wantSeen(t, table, "new", "old", "same node", "cni0")
		wantSeen(t, table, "old", "new", "other node", "cilium_host")
		wantSeen(t, table, "old", "new", "same node", "cilium_host")
	}
	s.braid(t, "migrate", "rollback", "--follow")
	s.wantPodsIn(t, "10.244.")
	s.kubectl(t, "delete", "migrations.braid.dev", "--all")

	s.braid(t, "migrate", "run", "--to=cilium", "--yes", "--preserve-source", "--outside="+s.outside)
	s.wantPodsIn(t, "172.20.")
	_, between, after = s.tables(t)
	for _, table := range [][]v1alpha1.ClientRow{between, after} {
		for _, sides := range [][2]string{{"old", "new"}, {"new", "old"}} {
			wantSeen(t, table, sides[0], sides[1], "other node", "own")
			wantSeen(t, table, sides[0], sides[1], "same node", "own")
		}
	}
	for _, node := range s.lab.Nodes() {
		if rules := s.on(t, node, "nft list tables; iptables-save"); strings.Contains(rules, "braid-migration") {
			t.Errorf("%s: the exemption from NAT is still there:\n%s", node, rules)
		}
		if err := s.lab.StopDaemon(t.Context(), node, "flanneld"); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := s.tryBraid(t, "migrate", "audit"); code != 2 || !strings.Contains(out, "flannel.1") {
		t.Errorf("before the cleanup the audit ends with %d", code)
	}
	s.braid(t, "migrate", "cleanup", "--yes")
	s.braid(t, "migrate", "audit")
	for _, node := range s.lab.Nodes() {
		// kube-proxy was told of Flannel's range, and still knows it.
		left := s.on(t, node, "ip -brief link; ip route; iptables-save | grep -v KUBE-; nft list tables; ls /etc/cni/net.d /run/flannel /var/lib/cni/networks 2>/dev/null || true")
		for _, what := range []string{"flannel", "FLANNEL", "cni0", "10.244.", "cbr0"} {
			if strings.Contains(left, what) {
				t.Errorf("%s: %s is left:\n%s", node, what, left)
			}
		}
	}
	s.wantPodsIn(t, "172.20.")
	load.wantNoneLost(t)
	s.braid(t, "migrate", "uninstall")
}

// TestMigrateThroughFaults moves a bridge with routes to Flannel, which
// its manifests install, while one thing after the other goes wrong. Each ends in
// progress, or in a stop with the reason and no node half way.
func TestMigrateThroughFaults(t *testing.T) {
	s := migrating(t, lab.Config{Name: "migrate-faults", CNI: "bridge", PodNet: netip.MustParsePrefix("10.200.0.0/16"), NodeKernel: guest.Host, Nodes: 2})
	if err := s.lab.LoadFlannel(t.Context(), lab.BuildConfig{Source: s.Root}); err != nil {
		t.Fatal(err)
	}
	// The bridge does not masquerade: the host of the API server knows the way back.
	s.outside = "172.30.0.1:6443"
	s.workloads(t)
	manifests := "--manifests=" + filepath.Join(s.Root, "examples/migrate/flannel")

	// A budget that permits nothing: the node opens again.
	s.kubectl(t, "-n", "shop", "patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"minAvailable":3}}`)
	run := []string{"migrate", "run", "--to=flannel", manifests, "--yes", "--outside=" + s.outside, "--evict-timeout=45s", "--step-timeout=90s"}
	if out, code := s.tryBraid(t, run...); code != 2 || !strings.Contains(out, "pdb-blocks") {
		t.Errorf("preflight lets a budget pass that blocks: exit status %d", code)
	}
	if out, code := s.tryBraid(t, append(run, "--accept=pdb-blocks")...); code != 1 || !strings.Contains(out, "The disruption budget web") {
		t.Errorf("a budget that blocks: exit status %d", code)
	}
	s.wantWhole(t, "10.200.")
	s.kubectl(t, "-n", "shop", "patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"minAvailable":2}}`)

	// Flannel's packets are lost: found before a pod of the second node moves.
	const lose = " INPUT -p udp --dport 8472 -j DROP"
	s.on(t, "node2", "iptables -I"+lose)
	if out, code := s.tryBraid(t, "migrate", "resume", "--follow"); code != 1 || !strings.Contains(out, "probes failed at step Try") {
		t.Errorf("a probe that fails: exit status %d", code)
	}
	s.on(t, "node2", "iptables -D"+lose)
	s.settled(t)

	// The leader's daemon is killed, its node rebooted, the API server away.
	s.braid(t, "migrate", "resume")
	var was v1alpha1.NodeProgress
	s.until(t, "a node to be on its way", func(m v1alpha1.Migration) (is bool) { was, is = onItsWay(m); return is })
	leader := s.migration(t).Status.Leader
	s.kubectl(t, "-n", "braid-system", "delete", "pod", "--field-selector=spec.nodeName="+leader, "--force", "--grace-period=0")
	s.until(t, "another step", func(m v1alpha1.Migration) bool { is, _ := onItsWay(m); return is.Step != was.Step })
	if err := s.lab.StopAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	select { // the fault is that it is away for so long
	case <-time.After(60 * time.Second):
	case <-t.Context().Done():
	}
	if err := s.lab.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until(t, "all nodes to be on flannel", func(m v1alpha1.Migration) bool { return m.Status.Phase == v1alpha1.PhaseDone })
	s.wantWhole(t, "10.244.")

	// On the way back, a node reboots in the middle.
	s.braid(t, "migrate", "rollback")
	s.until(t, "a node to be on its way", func(m v1alpha1.Migration) (is bool) { was, is = onItsWay(m); return is })
	if err := s.lab.RebootNode(t.Context(), was.Name); err != nil {
		t.Fatal(err)
	}
	s.until(t, "all nodes to be back", func(m v1alpha1.Migration) bool { return m.Status.Phase == v1alpha1.PhaseDone })
	s.wantWhole(t, "10.200.")
}

// onItsWay is the node whose runtime is neither on the one side nor on the other.
func onItsWay(m v1alpha1.Migration) (v1alpha1.NodeProgress, bool) {
	i := slices.IndexFunc(m.Status.Nodes, func(n v1alpha1.NodeProgress) bool {
		return slices.Contains([]v1alpha1.NodeStep{v1alpha1.StepTry, v1alpha1.StepEvict, v1alpha1.StepMove}, n.Step)
	})
	if i < 0 {
		return v1alpha1.NodeProgress{}, false
	}
	return m.Status.Nodes[i], true
}

// until waits for what a migration comes to; one that stops is an error.
func (s *migrated) until(t *testing.T, what string, holds func(v1alpha1.Migration) bool) {
	t.Helper()
	err := s.Eventually(t.Context(), 6*time.Minute, what, func(ctx context.Context) error {
		m, err := s.read(ctx)
		switch {
		case err != nil:
			return err
		case m.Status.ObservedGeneration != m.Generation:
			return errors.New("nobody has seen what was asked for")
		case m.Status.Phase == v1alpha1.PhaseStopped:
			t.Fatalf("waiting for %s: it stopped: %s", what, m.Status.Message)
		case holds(m):
			return nil
		}
		return fmt.Errorf("%s: %s", m.Status.Phase, m.Status.Message)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// settled waits until no node is on its way.
func (s *migrated) settled(t *testing.T) {
	t.Helper()
	err := s.Eventually(t.Context(), 3*time.Minute, "no node to be on its way", func(ctx context.Context) error {
		m, err := s.read(ctx)
		for _, n := range m.Status.Nodes {
			if n.Step != v1alpha1.StepPending && n.Step != v1alpha1.StepDone {
				return fmt.Errorf("%s is at %s: %s", n.Name, n.Step, n.Message)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wantWhole expects a cluster where nothing is half way: no node cordoned, no
// gate in a conf dir, every pod Ready on one network.
func (s *migrated) wantWhole(t *testing.T, prefix string) {
	t.Helper()
	s.settled(t)
	for _, what := range []string{"deployment/web", "statefulset/db", "daemonset/agent"} {
		s.kubectl(t, "-n", "shop", "rollout", "status", what, "--timeout=120s")
	}
	s.kubectl(t, "-n", "shop", "wait", "--for=condition=Ready", "pod/bare", "--timeout=120s")
	s.wantPodsIn(t, prefix)
	if out := s.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].spec.unschedulable}"); out != "" {
		t.Errorf("nodes are cordoned: %s", out)
	}
	for _, node := range s.lab.Nodes() {
		if files := s.on(t, node, "ls /etc/cni/net.d"); strings.Contains(files, "00-braid-migrate") {
			t.Errorf("%s: the gate is still there: %s", node, files)
		}
	}
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
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var out bytes.Buffer
	code, err := s.lab.Run(ctx, lab.Streams{Out: &out, Err: &out}, append([]string{filepath.Join(s.Root, "bin", "braid")}, args...)...)
	t.Logf("$ braid %s\n%s", strings.Join(args, " "), out.String())
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

// wantPodsIn expects the addresses of all pods with a network of their own to
// begin so.
func (s *migrated) wantPodsIn(t *testing.T, prefix string) {
	t.Helper()
	out := s.kubectl(t, "get", "pods", "-A", "--no-headers", "-o",
		"custom-columns=:.metadata.namespace,:.metadata.name,:.spec.hostNetwork,:.status.podIP,:.status.phase")
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 5 && f[0] != migrate.ProbeNamespace && f[2] != "true" && f[4] == "Running" && !strings.HasPrefix(f[3], prefix) {
			t.Errorf("%s/%s has %s, not %s…", f[0], f[1], f[3], prefix)
		}
	}
}

// migration reads the Migration object.
func (s *migrated) migration(t *testing.T) v1alpha1.Migration {
	t.Helper()
	m, err := s.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *migrated) read(ctx context.Context) (v1alpha1.Migration, error) {
	out, err := s.lab.Kubectl(ctx, "get", "migrations.braid.dev", "-o", "json")
	if err != nil {
		return v1alpha1.Migration{}, err
	}
	var list struct{ Items []v1alpha1.Migration }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return v1alpha1.Migration{}, err
	}
	if len(list.Items) != 1 {
		return v1alpha1.Migration{}, fmt.Errorf("there are %d migrations", len(list.Items))
	}
	return list.Items[0], nil
}

// tables are the client addresses that servers saw before the first node moved,
// when the last one had, and at the end.
func (s *migrated) tables(t *testing.T) (before, between, after []v1alpha1.ClientRow) {
	t.Helper()
	st := s.migration(t).Status
	for _, r := range st.Rounds {
		if r.Failed > 0 { // and was repeated: nothing would have moved otherwise
			t.Logf("round %d (%s): %v", r.Round, r.When, r.Failures)
			continue
		}
		switch {
		case r.Round == st.Before:
			before = r.Clients
		case r.Round == st.After:
			after = r.Clients
		case strings.Contains(r.When, "Verify"):
			between = r.Clients
		}
	}
	return before, between, after
}

// wantSeen expects what servers saw of clients that asked them directly.
func wantSeen(t *testing.T, table []v1alpha1.ClientRow, from, to, where, saw string) {
	t.Helper()
	for _, row := range table {
		if row.From == from && row.To == to && row.Where == where && row.By == "direct" {
			if row.Saw != saw {
				t.Errorf("%s → %s, %s: servers saw %s, not %s", from, to, where, row.Saw, saw)
			}
			return
		}
	}
	t.Errorf("%s → %s, %s: nobody asked", from, to, where)
}

// A load is what the clients of the workloads have counted.
type load struct {
	s       *migrated
	end     context.CancelFunc
	watched sync.WaitGroup
	mu      sync.Mutex
	logs    map[string]*bytes.Buffer
}

// workloads starts those of examples/migrate.
func (s *migrated) workloads(t *testing.T) {
	t.Helper()
	s.applyExample(t, "workloads.yaml", "deployment/web", "statefulset/db", "daemonset/agent")
	s.kubectl(t, "-n", "shop", "wait", "--for=condition=Ready", "pod/bare", "--timeout=180s")
}

func (s *migrated) applyExample(t *testing.T, name string, workloads ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Root, "examples/migrate", name))
	if err != nil {
		t.Fatal(err)
	}
	s.apply(t, strings.ReplaceAll(string(text), "OUTSIDE", s.outside))
	for _, what := range workloads {
		s.kubectl(t, "-n", "shop", "rollout", "status", what, "--timeout=180s")
	}
}

// underLoad starts the workloads, and clients of theirs, and keeps what those
// print, also the ones that end in between.
func (s *migrated) underLoad(t *testing.T) *load {
	t.Helper()
	s.workloads(t)
	s.applyExample(t, "clients.yaml", "deployment/client", "daemonset/client-on-node")
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
		counts, err := probe.ParseCounts(out.Bytes())
		if err != nil {
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
