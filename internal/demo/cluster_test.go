package demo_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"braid.dev/braid/internal/demo"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/lab"
)

// TestCluster walks one lab whose nodes have kernels of their own through
// everything that takes a real kubelet: the demo, the commands of the
// documentation, braidd killed, pods deleted; what takes those kernels: ipvlan;
// and the end, Braid removed.
func TestCluster(t *testing.T) {
	if os.Getenv("BRAID_TIER") != "cluster" {
		t.Skip("needs a lab: make test-cluster")
	}
	s := up(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"demo", s.demoHolds},
		{"status and events", s.statusAndEvents},
		{"documented commands", s.documentedCommands},
		{"braidd killed", s.killed},
		{"deleted", s.deleted},
		{"ipvlan", s.ipvlanAcrossNodes},
		{"removed", s.removed},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow() // each step builds on the one before
		}
	}
}

// scenario is a lab with a demo running in it.
type scenario struct {
	demo.Demo
	lab   *lab.Lab
	image string
}

func up(t *testing.T) *scenario {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "braid.tar")
	if err := image.Write(archive, image.Braid(filepath.Join(root, "bin"), image.Ref)); err != nil {
		t.Fatalf("%v (make build)", err)
	}
	const name = "scenario"
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), name, os.Stderr); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Up(t.Context(), lab.Config{Name: name, Source: root, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	return &scenario{lab: l, image: archive, Demo: demo.Demo{Cluster: l, Root: root, Out: os.Stdout}}
}

// demoHolds runs the demo while braidd crashes on every node as its pods start,
// and is replaced everywhere while they are looked at. Nothing of it fails, and
// no sandbox had to be set up a second time.
func (s *scenario) demoHolds(t *testing.T) {
	i := &interrupter{Lab: s.lab, crash: func() {
		for _, node := range s.lab.Nodes() {
			s.killBraidd(t, node)
		}
	}}
	d := s.Demo
	d.Cluster = i
	if err := d.VLAN(t.Context(), s.image); err != nil {
		t.Fatal(err)
	}
	if i.crashes.Load() != 1 || i.updates.Load() != 1 {
		t.Errorf("braidd crashed %d times and was replaced %d times in the middle of it, want once each", i.crashes.Load(), i.updates.Load())
	}
	s.kubectl(t, "-n", "braid-system", "rollout", "status", "daemonset/braidd", "--timeout=120s")
	if failed := s.kubectl(t, "get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}"); failed != "" {
		t.Errorf("sandboxes failed: %s", failed)
	}
}

// interrupter is a lab whose braidd does not stay.
type interrupter struct {
	*lab.Lab
	crash            func()
	crashes, updates atomic.Int32
}

// Kubectl lets braidd crash once the pods of the demo are on their way, and has
// it replaced before the first of them is looked at.
func (i *interrupter) Kubectl(ctx context.Context, args ...string) (string, error) {
	if args[0] == "exec" && i.updates.CompareAndSwap(0, 1) {
		if _, err := i.Lab.Kubectl(ctx, "-n", "braid-system", "rollout", "restart", "daemonset/braidd"); err != nil {
			return "", err
		}
	}
	out, err := i.Lab.Kubectl(ctx, args...)
	if applied := args[0] == "apply" && strings.Contains(strings.Join(args, " "), "examples/vlan"); applied && err == nil {
		i.crashes.Add(1)
		i.crash()
	}
	return out, err
}

// networkStatus waits for a pod's network-status annotation, which comes soon
// after its networks.
func (s *scenario) networkStatus(t *testing.T, pod string) (text string) {
	t.Helper()
	err := s.Eventually(t.Context(), time.Minute, "network-status of "+pod, func(ctx context.Context) (err error) {
		text, err = s.lab.Kubectl(ctx, "get", "pod", pod, "-o", `jsonpath={.metadata.annotations.k8s\.v1\.cni\.cncf\.io/network-status}`)
		if err == nil && text == "" {
			err = errors.New("there is none")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (s *scenario) statusAndEvents(t *testing.T) {
	status := s.networkStatus(t, "pod2")
	for _, want := range []string{`"name": "default/vlan-2002"`, `"interface": "net1"`, `"10.20.2.11"`, `"default": true`, `"default": false`} {
		if !strings.Contains(unspaced(status), unspaced(want)) {
			t.Errorf("no %s in the network-status %s", want, status)
		}
	}
	events := s.kubectl(t, "get", "events", "--field-selector=involvedObject.name=pod2", "-o", "jsonpath={.items[*].message}")
	if !strings.Contains(events, "default/vlan-2002") {
		t.Errorf("no event tells of default/vlan-2002: %s", events)
	}
}

func unspaced(s string) string { return strings.ReplaceAll(s, " ", "") }

// killed ends braidd on every node with SIGKILL. The pods that run keep their
// networks; a pod that starts meanwhile waits and starts.
func (s *scenario) killed(t *testing.T) {
	before := s.kubectl(t, "exec", "pod1a", "--", "ip", "address")
	for _, node := range s.lab.Nodes() {
		s.killBraidd(t, node)
	}
	s.apply(t, late)
	if after := s.kubectl(t, "exec", "pod1a", "--", "ip", "address"); after != before {
		t.Errorf("links of pod1a after braidd was killed:\n%s\nbefore:\n%s", after, before)
	}
	s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=180s", "pod/late")
	if out := s.kubectl(t, "exec", "late", "--", "ip", "address", "show", "net1"); !strings.Contains(out, "10.20.1.20/24") {
		t.Errorf("late has not got its address:\n%s", out)
	}
	// As docs/network-status.md says: the pod can read what it got.
	s.kubectl(t, "exec", "late", "--", "timeout", "120", "sh", "-c", "until grep -q 10.20.1.20 /etc/podinfo/network-status; do sleep 1; done")
	s.kubectl(t, "exec", "pod1a", "--", "arping", "-f", "-w", "20", "-I", "net1", "10.20.1.20")
	s.kubectl(t, "-n", "braid-system", "rollout", "status", "daemonset/braidd", "--timeout=120s")
}

// killBraidd ends the daemon of a node, which is a process of the guest only.
func (s *scenario) killBraidd(t *testing.T, node string) {
	t.Helper()
	if _, err := s.lab.NodeRun(t.Context(), node, "sh", "-c", "kill -KILL $(pidof braidd)"); err != nil {
		t.Fatal(err)
	}
}

const late = `
apiVersion: v1
kind: Pod
metadata:
  name: late
  annotations:
    k8s.v1.cni.cncf.io/networks: '[{"name": "vlan-2001", "ips": ["10.20.1.20/24"]}]'
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: shell
      image: braid.dev/toolbox:dev
      command: ["tail", "-f", "/dev/null"]
      volumeMounts: [{name: podinfo, mountPath: /etc/podinfo}]
  volumes:
    - name: podinfo
      downwardAPI:
        items:
          - path: network-status
            fieldRef: {fieldPath: "metadata.annotations['k8s.v1.cni.cncf.io/network-status']"}
`

// deleted kills braidd once more while the pods go: nothing of them stays.
func (s *scenario) deleted(t *testing.T) {
	s.kubectl(t, "delete", "pod", "late", "worker", "--grace-period=1", "--wait=false")
	for _, node := range s.lab.Nodes() {
		s.killBraidd(t, node)
	}
	if err := s.RemoveVLAN(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "wait", "--for=delete", "--timeout=120s", "pod/late", "pod/worker")
	for _, node := range s.lab.Nodes() {
		s.nothingLeftOn(t, node)
	}
}

// nothingLeftOn expects neither veths nor address files on a node without pods
// of its own network.
func (s *scenario) nothingLeftOn(t *testing.T, node string) {
	look := `ip -o link show type veth; ls /var/lib/cni/networks/*/ | grep -E '^[0-9a-f]+[.:]' || true`
	deadline := time.Now().Add(90 * time.Second) // kubelet takes a sandbox down some time after its pod is gone
	for {
		out, err := s.lab.NodeRun(t.Context(), node, "sh", "-c", look)
		if err == nil && strings.TrimSpace(out) == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left on %s: %v\n%s", node, err, out)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(time.Second):
		}
	}
}

// documentedCommands runs the command blocks of pages as they stand.
func (s *scenario) documentedCommands(t *testing.T) {
	s.follow(t, "docs/vlan.md")
	s.follow(t, "docs/hotplug.md")
}

// removed takes Braid off the nodes by the command blocks of docs/install.md. A
// pod that has nothing but the default network keeps it and ends as any other,
// and so does one that starts then.
func (s *scenario) removed(t *testing.T) {
	s.kubectl(t, "delete", "pod", "one", "two")
	_, two := s.twoPods(t, "node1", "node2", "")
	s.follow(t, "docs/install.md")
	for _, node := range s.lab.Nodes() {
		left := s.on(t, node, "find /etc/cni/net.d /opt/cni/bin -name '*braid*'; find /run/braid /var/lib/braid -mindepth 1")
		if left != "" {
			t.Errorf("left on %s:\n%s", node, left)
		}
	}
	s.pings(t, "eth0", two.address["eth0"])
	s.kubectl(t, "delete", "pod", "one", "two")
	for _, node := range s.lab.Nodes() {
		s.nothingLeftOn(t, node)
	}
	_, two = s.twoPods(t, "node1", "node2", "")
	s.pings(t, "eth0", two.address["eth0"])
}

// follow runs the command blocks of a page.
func (s *scenario) follow(t *testing.T, page string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Root, page))
	if err != nil {
		t.Fatal(err)
	}
	blocks := shellBlocks(string(text))
	if len(blocks) == 0 {
		t.Errorf("%s has no commands", page)
	}
	for _, block := range blocks {
		if out, err := s.shell(t.Context(), block); err != nil {
			t.Errorf("%s: %v\n%s\n%s", page, err, block, out)
		}
	}
}

func (s *scenario) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.lab.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *scenario) apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := s.lab.KubectlInput(t.Context(), strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}
