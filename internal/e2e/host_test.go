// Package e2e tests Braid whole: the real shim and daemon, a real API server,
// the real cnitool in the place of the runtime, and no kubelet, so that a test
// has each call of the runtime in its own hand.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/lab"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

const nodeName = "host1"

// host is a machine with Braid on it: the network namespace of a lab that has
// a control plane and no nodes, and directories of its own.
type host struct {
	dir    string // conf, bin, run, state, addresses below it
	root   string // of the repository
	lab    *lab.Lab
	ns     *netns.NS
	braidd *exec.Cmd
	log    *os.File
}

var shared *host

func TestMain(m *testing.M) {
	if os.Getenv("BRAID_TIER") != "cluster" {
		fmt.Println("these tests need a control plane: make test-cluster")
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx := context.Background()
	h, err := newHost(ctx)
	if err == nil {
		shared = h
		code = m.Run()
	}
	if err = errors.Join(err, h.close(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func newHost(ctx context.Context) (*host, error) {
	h := &host{}
	var err error
	if h.root, err = filepath.Abs("../.."); err != nil {
		return h, err
	}
	if h.dir, err = os.MkdirTemp("", "braid-e2e-"); err != nil {
		return h, err
	}
	if h.lab, err = lab.Up(ctx, lab.Config{Name: labName(), ControlPlaneOnly: true, Source: h.root, Progress: os.Stderr}); err != nil {
		return h, err
	}
	if h.ns, err = netns.Open(h.lab.NetNS()); err != nil {
		return h, err
	}
	if err := h.furnish(ctx); err != nil {
		return h, err
	}
	return h, h.start(ctx)
}

// labName is the name of the lab: with another one in BRAID_E2E_LAB two
// checkouts can run these tests on one machine.
func labName() string {
	if name := os.Getenv("BRAID_E2E_LAB"); name != "" {
		return strings.ToLower(name)
	}
	return "e2e"
}

// furnish makes the directories of a node as its runtime and Braid expect them.
func (h *host) furnish(ctx context.Context) error {
	for _, d := range []string{"conf", "bin", "run", "state", "addresses"} {
		if err := os.Mkdir(h.path(d), 0o755); err != nil {
			return err
		}
	}
	shim, err := os.ReadFile(filepath.Join(h.root, "bin/braid-cni"))
	if err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	files := map[string]string{
		"bin/braid-cni":      string(shim),
		"bin/hangs":          "#!/bin/sh\nexec sleep 1000\n",
		"bin/prints-rubbish": "#!/bin/sh\necho hello\n",
		"bin/prints-nothing": "#!/bin/sh\n",
		"bin/host-local":     "#!/bin/sh\ntouch " + h.path("host-local-ran") + "\nexec " + h.lab.Program("host-local") + "\n",
		"braidd.yaml":        "pluginTimeout: 3s\n",
		"conf/10-default.conflist": `{"cniVersion":"1.0.0","name":"default-net","plugins":[{"type":"bridge","bridge":"braidcni0",
			"isDefaultGateway":true,"ipam":{"type":"host-local","dataDir":"` + h.path("addresses") + `","subnet":"10.76.0.0/24"}}]}`,
	}
	for name, content := range files {
		if err := os.WriteFile(h.path(name), []byte(content), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(h.path("bin/not-executable"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		return err
	}
	for _, plugin := range []string{"macvlan", "static"} {
		if err := os.Symlink(h.lab.Program(plugin), h.path("bin/"+plugin)); err != nil {
			return err
		}
	}
	if _, err := h.lab.Kubectl(ctx, "apply", "-f", filepath.Join(h.root, "deploy/crds/network-attachment-definitions.yaml")); err != nil {
		return err
	}
	if _, err := h.lab.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "network-attachment-definitions.k8s.cni.cncf.io"); err != nil {
		return err
	}
	return h.apply(ctx, fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q}}`, nodeName))
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) apply(ctx context.Context, manifest string) error {
	_, err := h.lab.KubectlInput(ctx, strings.NewReader(manifest), "apply", "-f", "-")
	return err
}

// start starts braidd as a process of the host and returns when it is ready.
func (h *host) start(ctx context.Context) error {
	if h.log == nil {
		log, err := os.Create(h.path("braidd.log"))
		if err != nil {
			return err
		}
		h.log = log
	}
	h.braidd = exec.Command(filepath.Join(h.root, "bin/braidd"),
		"--node-name="+nodeName, "--kubeconfig="+h.lab.Kubeconfig(), "--config="+h.path("braidd.yaml"),
		"--run-dir="+h.path("run"), "--state-dir="+h.path("state"),
		"--cni-conf-dir="+h.path("conf"), "--cni-bin-dir="+h.path("bin"),
		"--host-dirs="+h.path("addresses"))
	h.braidd.Stdout, h.braidd.Stderr = h.log, h.log
	if err := h.ns.Do(h.braidd.Start); err != nil {
		return err
	}
	return within(ctx, 30*time.Second, "braidd is ready", func() error {
		conf, err := os.ReadFile(h.path("conf/00-braid.conflist"))
		if err != nil {
			return err
		}
		return h.status(ctx, conf)
	})
}

// status calls the shim's STATUS as a runtime does.
func (h *host) status(ctx context.Context, conflist []byte) error {
	stdin, err := pluginConf(conflist)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, h.path("bin/braid-cni"))
	cmd.Env = []string{"CNI_COMMAND=STATUS", "CNI_PATH=" + h.path("bin")}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("STATUS: %w: %s", err, out)
	}
	return nil
}

// pluginConf is what a runtime gives the first plugin of a list.
func pluginConf(conflist []byte) ([]byte, error) {
	var list struct {
		Name    string
		Plugins []map[string]any
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		return nil, err
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, "1.1.0"
	return json.Marshal(conf)
}

// kill ends braidd as a power cut would.
func (h *host) kill() error {
	if err := h.braidd.Process.Kill(); err != nil {
		return err
	}
	_ = h.braidd.Wait() // it was killed: its exit status says just that
	h.braidd = nil
	return nil
}

func (h *host) close(ctx context.Context) error {
	var err error
	if h.braidd != nil {
		err = h.kill()
	}
	if h.ns != nil {
		err = errors.Join(err, h.ns.Close())
	}
	if h.lab != nil {
		err = errors.Join(err, h.lab.Down(ctx))
	}
	if os.Getenv("BRAID_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "kept", h.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(h.dir))
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

// pod is a pod of the API server with a network namespace but no kubelet.
type pod struct {
	*host
	name, uid string
	ns        *netns.NS
}

// newPod creates a pod whose networks annotation is given; none when empty.
func (h *host) newPod(t *testing.T, networks string) *pod {
	t.Helper()
	p := &pod{host: h, name: regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "-")}
	p.name = strings.Trim(p.name[max(0, len(p.name)-50):], "-")
	manifest, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": p.name, "annotations": map[string]string{"k8s.v1.cni.cncf.io/networks": networks}},
		"spec": map[string]any{"nodeName": nodeName, "tolerations": []any{map[string]string{"operator": "Exists"}},
			"containers": []any{map[string]string{"name": "none", "image": "none"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.apply(t.Context(), string(manifest)); err != nil {
		t.Fatal(err)
	}
	p.uid = p.get(t, "{.metadata.uid}")
	ns := "braid-e2e-" + p.name
	if p.ns, err = netns.New(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.ns.Close()
		if err := netns.Delete(ns); err != nil {
			t.Error(err)
		}
		if _, err := h.lab.Kubectl(context.Background(), "delete", "pod", p.name, "--force", "--grace-period=0", "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *pod) get(t *testing.T, jsonpath string) string {
	t.Helper()
	out, err := p.lab.Kubectl(t.Context(), "get", "pod", p.name, "-o", "jsonpath="+jsonpath)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cnitool runs one verb for the pod, as its runtime would, and returns what
// cnitool printed.
func (p *pod) cnitool(ctx context.Context, verb string) (string, error) {
	cmd := exec.CommandContext(ctx, p.lab.Program("cnitool"), verb, "braid", netns.Path("braid-e2e-"+p.name))
	cmd.Env = append(os.Environ(), "NETCONFPATH="+p.path("conf"), "CNI_PATH="+p.path("bin"),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+p.name+";K8S_POD_UID="+p.uid)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := p.host.ns.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("cnitool %s: %w: %s", verb, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// inside is the pod's world as text.
func (p *pod) inside(t *testing.T) string {
	t.Helper()
	text, err := rtnl.Observe(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// removeLink deletes a link behind Braid's back.
func removeLink(ns *netns.NS, name string) error {
	h, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	return h.Del(link.Index)
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
