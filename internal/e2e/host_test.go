// Package e2e tests Braid whole: the real shim and daemon, a real API server,
// the library of containerd and CRI-O (or the real cnitool) in the place of the
// runtime, and no kubelet, so that a test has each call of the runtime in its
// own hand.
package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/e2e/recorder/note"
	"braid.dev/braid/internal/lab"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// cluster is what all hosts have in common.
type cluster struct {
	root     string // of the repository
	lab      *lab.Lab
	api      *api
	recorder string // the program
	hosts    atomic.Int32
}

// host is a machine with Braid on it: a network namespace, directories, and a
// daemon whose access to the cluster is that of deploy/.
type host struct {
	*cluster
	node      string
	namespace string // where its pods and networks are
	dir       string // conf, bin, run, state, addresses and more below it
	ns        *netns.NS
	way       *way
	flags     []string // of braidd, beside those that every host has
	braidd    *exec.Cmd
	log       *os.File
}

// shared is the host of the tests that ask for none of their own. They run one
// after the other.
var shared *host

func TestMain(m *testing.M) {
	if os.Getenv("BRAID_TIER") != "cluster" {
		fmt.Println("these tests need a control plane: make test-cluster")
		os.Exit(0)
	}
	flag.Parse()
	// Most tests wait most of the time.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx := context.Background()
	c, err := newCluster(ctx, labName())
	if err == nil {
		shared, err = c.newHost(ctx, "default")
	}
	if err == nil {
		code = m.Run()
	}
	err = errors.Join(err, shared.close(), c.close(ctx))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// labName is the name of the lab: with another one in BRAID_E2E_LAB two
// checkouts can run these tests on one machine.
func labName() string {
	if name := os.Getenv("BRAID_E2E_LAB"); name != "" {
		return strings.ToLower(name)
	}
	return "e2e"
}

// newCluster brings a control plane up with the parts of deploy/ that concern
// the API server. What it returns is closed also on error.
func newCluster(ctx context.Context, name string) (*cluster, error) {
	c := &cluster{}
	var err error
	if c.root, err = filepath.Abs("../.."); err != nil {
		return c, err
	}
	if c.lab, err = lab.Up(ctx, lab.Config{Name: name, ControlPlaneOnly: true, Source: c.root, Progress: os.Stderr}); err != nil {
		return c, err
	}
	if c.api, err = newAPI(c.lab); err != nil {
		return c, err
	}
	if c.recorder, err = c.buildRecorder(ctx); err != nil {
		return c, err
	}
	args := []string{"apply"}
	for _, file := range []string{"namespace.yaml", "crds/network-attachment-definitions.yaml", "rbac.yaml", "admission.yaml"} {
		args = append(args, "-f", filepath.Join(c.root, "deploy", file))
	}
	if _, err := c.lab.Kubectl(ctx, args...); err != nil {
		return c, err
	}
	_, err = c.lab.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "network-attachment-definitions.k8s.cni.cncf.io")
	return c, err
}

func (c *cluster) close(ctx context.Context) error {
	var errs []error
	if c.recorder != "" {
		errs = append(errs, os.RemoveAll(filepath.Dir(c.recorder)))
	}
	if c.lab != nil {
		errs = append(errs, c.lab.Down(ctx))
	}
	return errors.Join(errs...)
}

func (c *cluster) buildRecorder(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "braid-e2e-recorder-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "recorder")
	build := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", program, "./internal/e2e/recorder")
	build.Dir = c.root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return program, fmt.Errorf("build the recorder: %w: %s", err, out)
	}
	return program, nil
}

// newHost makes a host for one test, with a namespace of the cluster for its
// pods and networks. Change, if given, changes its directories before braidd
// starts.
func newHost(t *testing.T, change ...func(h *host)) *host {
	t.Helper()
	h, err := shared.cluster.newHost(t.Context(), "", change...)
	t.Cleanup(func() {
		if t.Failed() {
			h.printLog(t)
		}
		if err := h.close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// newHost makes a host with a daemon that is ready. Its pods and networks are
// in the given namespace, or in one of its own. What it returns is closed also
// on error.
func (c *cluster) newHost(ctx context.Context, namespace string, change ...func(h *host)) (*host, error) {
	h := &host{cluster: c, node: fmt.Sprintf("host%d", c.hosts.Add(1)), namespace: namespace}
	if namespace == "" {
		h.namespace = "of-" + h.node
	}
	var err error
	if h.dir, err = os.MkdirTemp("", "braid-e2e-"); err != nil {
		return h, err
	}
	if h.ns, err = netns.NewUnnamed(); err != nil {
		return h, err
	}
	if err := h.connect(ctx); err != nil {
		return h, err
	}
	if err := h.furnish(); err != nil {
		return h, err
	}
	for _, f := range change {
		f(h)
	}
	return h, h.start(ctx)
}

// connect gives the host a way to the API server and an account there.
func (h *host) connect(ctx context.Context) error {
	if err := h.ns.Do(func() error { return loopbackUp(h.ns) }); err != nil {
		return err
	}
	var err error
	h.way, err = newWay(h.ns, func(ctx context.Context) (net.Conn, error) { return h.lab.Dial(ctx, "tcp", h.api.address) })
	if err != nil {
		return err
	}
	if err := h.api.create(ctx, "/api/v1/nodes", object{"metadata": object{"name": h.node}}); err != nil {
		return err
	}
	if err := h.api.namespace(ctx, h.namespace); err != nil {
		return err
	}
	token, err := h.api.braiddToken(ctx, h.node)
	if err != nil {
		return err
	}
	server, _, err := net.SplitHostPort(h.api.address)
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "host",
		"clusters": []object{{"name": "host", "cluster": object{
			"server": "https://" + h.way.addr.String(), "tls-server-name": server,
			"certificate-authority-data": base64.StdEncoding.EncodeToString(h.api.ca),
		}}},
		"users":    []object{{"name": "host", "user": object{"token": token}}},
		"contexts": []object{{"name": "host", "context": object{"cluster": "host", "user": "host"}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(h.path("kubeconfig"), text, 0o600)
}

func loopbackUp(ns *netns.NS) error {
	handle, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer handle.Close()
	lo, err := handle.Link("lo")
	if err != nil {
		return err
	}
	return handle.SetUp(lo.Index)
}

// furnish makes the directories of a node as its runtime and Braid expect them.
func (h *host) furnish() error {
	for _, d := range []string{"conf", "bin", "run", "state", "addresses", "cni"} {
		if err := os.Mkdir(h.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := note.Prepare(h.path("recorder")); err != nil {
		return err
	}
	shim, err := os.ReadFile(filepath.Join(h.root, "bin/braid-cni"))
	if err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	files := map[string]string{
		"bin/braid-cni":            string(shim),
		"bin/hangs":                "#!/bin/sh\nexec sleep 1000\n",
		"bin/prints-rubbish":       "#!/bin/sh\necho hello\n",
		"bin/prints-nothing":       "#!/bin/sh\n",
		"bin/host-local":           "#!/bin/sh\ntouch " + h.path("host-local-ran") + "\nexec " + h.lab.Program("host-local") + "\n",
		"braidd.yaml":              "pluginTimeout: 25s\n", // machines that run tests may be busy
		"conf/10-default.conflist": h.defaultConf("default-net"),
	}
	for name, content := range files {
		if err := os.WriteFile(h.path(name), []byte(content), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(h.path("bin/not-executable"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		return err
	}
	for name, program := range map[string]string{
		"macvlan": h.lab.Program("macvlan"), "static": h.lab.Program("static"), "recorder": h.recorder,
	} {
		if err := os.Symlink(program, h.path("bin/"+name)); err != nil {
			return err
		}
	}
	return nil
}

// defaultConf is a default network: a bridge with addresses, followed by more
// plugins.
func (h *host) defaultConf(name string, more ...string) string {
	plugins := append([]string{fmt.Sprintf(`{"type":"bridge","bridge":"braidcni0","isDefaultGateway":true,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.76.0.0/16"}]]}}`, h.path("addresses"))}, more...)
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, strings.Join(plugins, ","))
}

// impatient has braidd give plugins 3 s.
func impatient(h *host) {
	if err := os.WriteFile(h.path("braidd.yaml"), []byte("pluginTimeout: 3s\n"), 0o644); err != nil {
		panic(err) // the directory was made just now
	}
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

// start starts braidd as a process of the host and returns when it is ready.
func (h *host) start(ctx context.Context) error {
	if err := h.launch(); err != nil {
		return err
	}
	return within(ctx, 30*time.Second, "braidd is ready", func() error { return h.status(ctx) })
}

// launch starts braidd and does not wait for it.
func (h *host) launch() error {
	if h.log == nil {
		log, err := os.OpenFile(h.path("braidd.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		h.log = log
	}
	h.braidd = exec.Command(filepath.Join(h.root, "bin/braidd"),
		"--node-name="+h.node, "--kubeconfig="+h.path("kubeconfig"), "--config="+h.path("braidd.yaml"),
		"--run-dir="+h.path("run"), "--state-dir="+h.path("state"),
		"--cni-conf-dir="+h.path("conf"), "--cni-bin-dir="+h.path("bin"),
		"--host-dirs="+h.path("addresses"), "--cni-cache-dir="+h.path("cni/results"))
	h.braidd.Args = append(h.braidd.Args, h.flags...)
	h.braidd.Stdout, h.braidd.Stderr = h.log, h.log
	return h.ns.Do(h.braidd.Start)
}

// kill ends braidd as a power cut would. That it does not run is no error.
func (h *host) kill() error {
	if h.braidd == nil {
		return nil
	}
	if err := h.braidd.Process.Kill(); err != nil {
		return err
	}
	_ = h.braidd.Wait() // it was killed: its exit status says just that
	h.braidd = nil
	return nil
}

func (h *host) mustKill(t *testing.T) {
	t.Helper()
	if err := h.kill(); err != nil {
		t.Fatal(err)
	}
}

func (h *host) mustStart(t *testing.T) {
	t.Helper()
	if err := h.start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// restart is a crash: braidd is killed and started again.
func (h *host) restart(t *testing.T) {
	t.Helper()
	h.mustKill(t)
	h.mustStart(t)
}

// alive reports whether braidd runs.
func (h *host) alive() bool {
	return h.braidd != nil && h.braidd.Process.Signal(syscall.Signal(0)) == nil
}

func (h *host) close() error {
	if h == nil {
		return nil
	}
	errs := []error{h.kill()}
	if h.way != nil {
		errs = append(errs, h.way.close())
	}
	if h.log != nil {
		errs = append(errs, h.log.Close())
	}
	if h.ns != nil {
		errs = append(errs, h.ns.Close())
	}
	if os.Getenv("BRAID_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "kept", h.dir)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}

// printLog shows the end of what braidd has to say.
func (h *host) printLog(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(h.path("braidd.log"))
	if err != nil {
		t.Log(err)
		return
	}
	lines := bytes.Split(text, []byte("\n"))
	t.Logf("braidd says:\n%s", bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}

// world is what Braid may change outside of pods, as text: links, addresses
// and routes of the host, and the files of reserved addresses.
func (h *host) world(t *testing.T) string {
	t.Helper()
	text, err := rtnl.Observe(h.ns)
	if err != nil {
		t.Fatal(err)
	}
	reserved, err := filepath.Glob(h.path("addresses/*/*.*.*.*"))
	if err != nil {
		t.Fatal(err)
	}
	return text + strings.Join(reserved, "\n")
}

// nothingIsLeft expects no links of pods, no reserved addresses, nothing held by
// a plugin that is a program, and no rules of pods.
func (h *host) nothingIsLeft(t *testing.T) {
	t.Helper()
	if world := h.world(t); strings.Contains(world, "veth") || strings.Contains(world, h.path("addresses")) {
		t.Errorf("left on the host:\n%s", world)
	}
	if held := h.held(t); len(held) > 0 {
		t.Errorf("left with the recorder: %v", held)
	}
	for _, c := range h.overlapping(t) {
		t.Errorf("%s of %s %s was called while another call for the container ran", c.Command, c.ContainerID, c.IfName)
	}
}

// records are what braidd remembers. It must not be running.
func (h *host) records(t *testing.T) []store.Record {
	t.Helper()
	s, err := store.Open(t.Context(), h.path("state/braid.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// within repeats check, which has no event to wait for, until it succeeds.
func within(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		case <-tick.C:
		}
	}
}
