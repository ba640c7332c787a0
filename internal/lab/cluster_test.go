package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

// needCluster skips tests that bring up labs everywhere but in the tier that
// is there for them: they take minutes when nothing was built yet.
func needCluster(t *testing.T) {
	t.Helper()
	if os.Getenv(kerneltest.EnvTier) != string(kerneltest.Cluster) {
		t.Skipf("brings up a lab: %s=%s", kerneltest.EnvTier, kerneltest.Cluster)
	}
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge, kerneltest.Tap, kerneltest.UML)
}

const twoPods = `
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
    - name: box
      image: braid.dev/toolbox:dev
      command: [sh, -c, "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 0
  containers:
    - {name: box, image: braid.dev/toolbox:dev, command: [tail, -f, /dev/null]}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{port: 80}]}
`

func TestClusterOfTwoNodes(t *testing.T) {
	needCluster(t)
	const name = "labtest"
	world := observeHost(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cfg := Config{Name: name, CNI: "flannel", Progress: os.Stderr}
	l, err := Up(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { world.downLeavesNothing(t) })
	world.sawNamespace(t)

	t.Run("all of it runs", func(t *testing.T) {
		s := l.Status(ctx)
		if !s.Running || len(s.Components) != 4 || len(s.Nodes) != 3 {
			t.Errorf("status %+v", s)
		}
		for _, n := range s.Nodes {
			if !n.Running || n.Ready != (n.Name != External) {
				t.Errorf("node %+v", n)
			}
		}
	})
	t.Run("a second up finds it", func(t *testing.T) {
		again, err := Up(ctx, cfg)
		if err != nil || again.Name() != name {
			t.Errorf("%v, %v", again, err)
		}
		more := cfg
		more.Nodes = 3
		if _, err := Up(ctx, more); err == nil || !strings.Contains(err.Error(), "already running with 2 nodes") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("pods reach each other and services", func(t *testing.T) { podsTalk(ctx, t, l) })
	t.Run("the trunk carries full frames in VLANs, and keeps VLANs apart", func(t *testing.T) { trunkCarriesVLANs(ctx, t, l) })
	t.Run("components have logs", func(t *testing.T) {
		logs, err := l.Logs()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"etcd", "kube-apiserver", "node1/kubelet", "node2/containerd", "ext/console"} {
			if _, err := os.Stat(logs[want]); err != nil {
				t.Errorf("%s: %v (of %v)", want, err, logs)
			}
		}
	})
}

func podsTalk(ctx context.Context, t *testing.T, l *Lab) {
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := l.Kubectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if _, err := l.KubectlInput(ctx, strings.NewReader(twoPods), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	kubectl("wait", "--for=condition=Ready", "--timeout=90s", "pod/server", "pod/client")
	server := kubectl("get", "pod", "server", "-o", "jsonpath={.status.podIP}")
	service := kubectl("get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	kubectl("exec", "client", "--", "ping", "-c", "1", "-w", "10", server)
	if out := kubectl("exec", "client", "--", "wget", "-q", "-O", "-", "http://"+server); out != "hello" {
		t.Errorf("the pod's address answers %q", out)
	}
	// A connection that begins before kube-proxy knows the service never gets there.
	if out := kubectl("exec", "client", "--", "timeout", "20", "sh", "-c",
		"until timeout 2 wget -q -O - http://"+service+"; do sleep 0.2; done"); !strings.HasSuffix(out, "hello") {
		t.Errorf("the service's address answers %q", out)
	}
	conn, err := l.Dial(ctx, "tcp", net.JoinHostPort(server, "80"))
	if err != nil {
		t.Errorf("from the host into the pod: %v", err)
	} else {
		conn.Close()
	}
	kubectl("delete", "pod", "server", "client", "--wait")
}

// trunkCarriesVLANs puts a namespace on node1 where a pod would be.
func trunkCarriesVLANs(ctx context.Context, t *testing.T, l *Lab) {
	root, err := sourceRoot("")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time, everything is there already
		if _, err := l.NodeScript(ctx, "node1", filepath.Join(root, "examples/vlan/prepare-node.sh")); err != nil {
			t.Fatal(err)
		}
	}
	out, err := l.NodeRun(ctx, "node1", "sh", "-ec", `
		ip netns add braidpod
		trap 'ip netns del braidpod' EXIT
		ip link add braidvp type veth peer name eth1 netns braidpod
		ip link set braidvp master vlanbr0 up
		bridge vlan add dev braidvp vid 2001 pvid untagged
		bridge vlan del dev braidvp vid 1
		ip -n braidpod addr add 10.20.1.77/24 dev eth1
		ip -n braidpod addr add 10.20.2.77/24 dev eth1
		ip -n braidpod link set eth1 up
		in="ip netns exec braidpod busybox"
		$in arping -c 1 -w 10 -I eth1 10.20.1.1 | grep -o '02:42:0a:14:01:01'
		$in ping -c 1 -w 10 -s 1472 10.20.1.1 >&2
		$in arping -c 2 -w 2 -I eth1 10.20.2.1 >&2 && echo leak
		exit 0`)
	if err != nil || strings.TrimSpace(out) != "02:42:0a:14:01:01" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestClusterControlPlaneAlone also has a second lab beside the first.
func TestClusterControlPlaneAlone(t *testing.T) {
	needCluster(t)
	for _, name := range []string{"labtest-a", "labtest-b"} {
		world := observeHost(t, name)
		l, err := Up(t.Context(), Config{Name: name, ControlPlaneOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { world.downLeavesNothing(t) })
		world.sawNamespace(t)
		out, err := l.Kubectl(t.Context(), "get", "serviceaccount", "default", "-o", "name")
		if err != nil || strings.TrimSpace(out) != "serviceaccount/default" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		if entries, err := os.ReadDir(filepath.Join(l.dir(), "kubectl")); err != nil || len(entries) == 0 {
			t.Errorf("%s: what kubectl remembers is not with the lab: %v, %v", name, entries, err)
		}
	}
}

// TestClusterRemovedAfterUpWasKilled kills `lab up` where it hurts: the words
// are those of its progress.
func TestClusterRemovedAfterUpWasKilled(t *testing.T) {
	needCluster(t)
	for _, at := range []struct{ kernel, moment string }{
		{"uml", "network namespace, bridges"}, {"uml", "its kernel runs"}, {"uml", "containerd runs"},
		{"host", "its namespaces are there"}, {"host", "containerd runs"}, {"host", "Ready, pods are in"},
	} {
		t.Run(at.kernel+" at "+at.moment, func(t *testing.T) {
			world := observeHost(t, "labtest-k")
			t.Setenv(envKernel, at.kernel)
			up := startUp(t, "labtest-k", at.moment)
			world.sawNamespace(t)
			if err := up.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = up.Wait() // "signal: killed", as intended
			world.downLeavesNothing(t)
		})
	}
}

func TestClusterRemovesItselfWhenInterrupted(t *testing.T) {
	needCluster(t)
	world := observeHost(t, "labtest-i")
	up := startUp(t, "labtest-i", "its kernel runs")
	world.sawNamespace(t)
	if err := up.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := up.Wait(); err == nil {
		t.Error("an interrupted up ended as if it had succeeded")
	}
	world.nothingLeft(t)
}

// TestClusterUpAfterUpWasKilled needs nobody to clean up by hand.
func TestClusterUpAfterUpWasKilled(t *testing.T) {
	needCluster(t)
	const name = "labtest-u"
	world := observeHost(t, name)
	up := startUp(t, name, "its kernel runs")
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = up.Wait()
	t.Cleanup(func() { world.downLeavesNothing(t) })
	if _, err := Up(t.Context(), Config{Name: name, ControlPlaneOnly: true, Progress: os.Stderr}); err != nil {
		t.Fatal(err)
	}
	world.sawNamespace(t)
}

// TestClusterRemovedWithoutItsState has the remains of a lab whose state was
// never, or only half, written down.
func TestClusterRemovedWithoutItsState(t *testing.T) {
	needCluster(t)
	const name = "labtest-h"
	world := observeHost(t, name)
	t.Cleanup(func() { world.downLeavesNothing(t) })
	if _, err := Up(t.Context(), Config{Name: name, ControlPlaneOnly: true}); err != nil {
		t.Fatal(err)
	}
	world.sawNamespace(t)
	if err := os.WriteFile(world.state(), []byte(`{"name": "lab`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); err == nil {
		t.Error("half a state was taken for a whole one")
	}
	world.downLeavesNothing(t)
}

func TestClusterIsChangedByOneProcessAtATime(t *testing.T) {
	needCluster(t)
	const name = "labtest-l"
	unlock, err := lock(paths{name})
	if err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), name, nil); err == nil || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("error %v does not name the process", err)
	}
	unlock()
	if err := Down(t.Context(), name, nil); err != nil {
		t.Error(err)
	}
}

// envUp makes the test binary a `lab up` of the lab it names.
const envUp = "BRAID_LAB_TEST_UP"

// envKernel is the kernel of that lab's nodes.
const envKernel = "BRAID_LAB_TEST_KERNEL"

func TestMain(m *testing.M) {
	name := os.Getenv(envUp)
	if name == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	_, err := Up(ctx, Config{Name: name, NodeKernel: guest.Kernel(os.Getenv(envKernel)), Progress: os.Stdout})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startUp starts a process that brings up a lab, and returns when it says the
// given words.
func startUp(t *testing.T, name, words string) *exec.Cmd {
	t.Helper()
	// Build first: the test is about labs, not about compilers.
	if _, err := Build(t.Context(), BuildConfig{Progress: NewProgress(os.Stderr)}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envUp+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it has ended if this fails
			_ = cmd.Wait()
		}
		if err := Down(context.Background(), name, nil); err != nil {
			t.Error(err)
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Fprintln(os.Stderr, lines.Text())
		if strings.Contains(lines.Text(), words) {
			go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
			return cmd
		}
	}
	t.Fatalf("lab up ended before it said %q", words)
	return nil
}

// A hostView is what a machine looks like to someone who wonders what a lab
// has left on it.
type hostView struct {
	paths
	links []string
	ns    netns.ID
}

func observeHost(t *testing.T, name string) *hostView {
	t.Helper()
	if err := Down(context.Background(), name, os.Stderr); err != nil {
		t.Fatal(err)
	}
	return &hostView{paths: paths{name}, links: hostLinkNames(t)}
}

// sawNamespace remembers the lab's namespace, to look for those who hold it.
func (h *hostView) sawNamespace(t *testing.T) {
	t.Helper()
	ns, err := netns.Open(h.netns())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if h.ns, err = ns.ID(); err != nil {
		t.Fatal(err)
	}
}

func (h *hostView) downLeavesNothing(t *testing.T) {
	t.Helper()
	if err := Down(context.Background(), h.Name, os.Stderr); err != nil {
		t.Error(err)
	}
	h.nothingLeft(t)
}

// nothingLeft looks for itself, without the help of the code under test.
func (h *hostView) nothingLeft(t *testing.T) {
	t.Helper()
	for _, path := range []string{
		"/run/braid-lab/" + h.Name, "/run/braid-lab/" + h.Name + ".lock", "/run/netns/braid-" + h.Name,
		"/sys/fs/cgroup/braid-lab-" + h.Name, "/sys/fs/cgroup/unified/braid-lab-" + h.Name,
	} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if groups, err := filepath.Glob("/sys/fs/cgroup/*/braid-lab-" + h.Name); err != nil || len(groups) > 0 {
		t.Errorf("cgroups are left: %v, %v", groups, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "braid-lab/"+h.Name+" ") || strings.Contains(string(mounts), "braid-"+h.Name+" ") {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	if now := hostLinkNames(t); !slices.Equal(now, h.links) {
		t.Errorf("links of the machine: %v, and before %v", now, h.links)
	}
	for _, p := range h.processes(t) {
		t.Errorf("process left: %s", p)
	}
}

// processes lists those that are in the lab's cgroup or network namespace, or
// have it in their arguments.
func (h *hostView) processes(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, dir := range dirs {
		// A process may end while it is looked at; then it is not left.
		group, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		mine := strings.Contains(string(group), "braid-lab-"+h.Name+"\n") ||
			strings.Contains(string(args), "/run/braid-lab/"+h.Name+"/")
		if info, err := os.Stat(filepath.Join(dir, "ns/net")); err == nil && !h.ns.IsZero() {
			st := info.Sys().(*syscall.Stat_t)
			mine = mine || netns.ID{Dev: st.Dev, Ino: st.Ino} == h.ns
		}
		if mine && len(args) > 0 {
			left = append(left, filepath.Base(dir)+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return left
}

func hostLinkNames(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "braid") {
			names = append(names, e.Name())
		}
	}
	return names
}
