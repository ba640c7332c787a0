package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// sandbox is one sandbox of a pod as the runtime has it. Its methods call the
// shim through the library that containerd and CRI-O call it through.
type sandbox struct {
	*pod
	id   string
	path string // of the namespace
	ns   *netns.NS
	// args follow those that every pod has.
	args [][2]string
	// capabilities are what the runtime offers, such as portMappings.
	capabilities map[string]any
	// shim is the plugin that runs for it, if any.
	shim atomic.Pointer[os.Process]
}

// newSandbox makes a sandbox, which disappears with the test. Its networks do
// not: whether they do is what tests are about.
func (p *pod) newSandbox(t *testing.T) *sandbox {
	t.Helper()
	s, err := p.openSandbox()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openSandbox is newSandbox for a caller who calls remove.
func (p *pod) openSandbox() (*sandbox, error) {
	random := make([]byte, 16)
	rand.Read(random)
	id := hex.EncodeToString(random)
	name := "braid-e2e-" + id[:12]
	ns, err := netns.New(name)
	if err != nil {
		return nil, err
	}
	return &sandbox{
		pod: p, id: id, path: netns.Path(name), ns: ns,
		capabilities: map[string]any{"io.kubernetes.cri.pod-annotations": p.annotations},
	}, nil
}

// remove takes the namespace away, as a reboot or a crash of the runtime does.
// The second time it does nothing.
func (s *sandbox) remove() error {
	if s.ns == nil {
		return nil
	}
	err := errors.Join(s.ns.Close(), netns.Delete(filepath.Base(s.path)))
	s.ns = nil
	return err
}

func (s *sandbox) config() *libcni.RuntimeConf {
	args := [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", s.namespace}, {"K8S_POD_NAME", s.name},
		{"K8S_POD_INFRA_CONTAINER_ID", s.id}, {"K8S_POD_UID", s.uid},
	}
	return &libcni.RuntimeConf{
		ContainerID: s.id, NetNS: s.path, IfName: "eth0", Args: append(args, s.args...), CapabilityArgs: s.capabilities,
	}
}

func (s *sandbox) add(ctx context.Context) (*current.Result, error) {
	list, cni, err := s.runtime(s)
	if err != nil {
		return nil, err
	}
	result, err := cni.AddNetworkList(ctx, list, s.config())
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(result)
}

func (s *sandbox) del(ctx context.Context) error {
	list, cni, err := s.runtime(s)
	if err != nil {
		return err
	}
	return cni.DelNetworkList(ctx, list, s.config())
}

func (s *sandbox) check(ctx context.Context) error {
	list, cni, err := s.runtime(s)
	if err != nil {
		return err
	}
	return cni.CheckNetworkList(ctx, list, s.config())
}

func (s *sandbox) mustAdd(t *testing.T) *current.Result {
	t.Helper()
	result, err := s.add(t.Context())
	if err != nil {
		t.Fatalf("ADD: %v", err)
	}
	return result
}

func (s *sandbox) mustDel(t *testing.T) {
	t.Helper()
	if err := s.del(t.Context()); err != nil {
		t.Fatalf("DEL: %v", err)
	}
}

func (s *sandbox) mustCheck(t *testing.T) {
	t.Helper()
	if err := s.check(t.Context()); err != nil {
		t.Fatalf("CHECK: %v", err)
	}
}

// inside is the sandbox's world as text.
func (s *sandbox) inside(t *testing.T) string {
	t.Helper()
	text, err := rtnl.Observe(s.ns)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// isEmpty expects nothing in the sandbox but its loopback.
func (s *sandbox) isEmpty(t *testing.T) {
	t.Helper()
	h, err := rtnl.Open(s.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name != "lo" {
			t.Errorf("%s is in the sandbox", l.Name)
		}
	}
}

// runtime loads the configuration as the runtime does, for sandbox s or none.
func (h *host) runtime(s *sandbox) (*libcni.NetworkConfigList, *libcni.CNIConfig, error) {
	list, err := libcni.ConfListFromFile(h.path("conf/00-braid.conflist"))
	if err != nil {
		return nil, nil, err
	}
	return list, libcni.NewCNIConfigWithCacheDir([]string{h.path("bin")}, h.path("cni"), &starter{host: h, sandbox: s}), nil
}

// status calls the shim's STATUS as a runtime does.
func (h *host) status(ctx context.Context) error {
	list, cni, err := h.runtime(nil)
	if err != nil {
		return err
	}
	return cni.GetStatusNetworkList(ctx, list)
}

// gc has the shim collect what is not in the list. (The library would DEL what
// it remembers itself before it asks.)
func (h *host) gc(ctx context.Context, valid ...types.GCAttachment) error {
	_, err := h.call(ctx, "GC", nil, func(conf object) { conf["cni.dev/valid-attachments"] = append([]types.GCAttachment{}, valid...) })
	return err
}

// call starts the shim without the library between: with a configuration that
// change has changed and with the given environment beside the verb.
func (h *host) call(ctx context.Context, verb string, env []string, change func(conf object)) ([]byte, error) {
	text, err := os.ReadFile(h.path("conf/00-braid.conflist"))
	if err != nil {
		return nil, err
	}
	stdin, err := pluginConf(text)
	if err != nil {
		return nil, err
	}
	if change != nil {
		var conf object
		if err := json.Unmarshal(stdin, &conf); err != nil {
			return nil, err
		}
		change(conf)
		if stdin, err = json.Marshal(conf); err != nil {
			return nil, err
		}
	}
	env = append([]string{"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + verb, "CNI_PATH=" + h.path("bin")}, env...)
	return (&starter{host: h}).ExecPlugin(ctx, h.path("bin/braid-cni"), stdin, env)
}

// pluginConf is what a runtime gives the first plugin of a list.
func pluginConf(conflist []byte) ([]byte, error) {
	var list struct {
		Name    string
		Plugins []object
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		return nil, err
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, "1.1.0"
	return json.Marshal(conf)
}

// starter starts plugins on the host.
type starter struct {
	version.PluginDecoder
	host    *host
	sandbox *sandbox // nil for none
}

// ExecPlugin runs the plugin and turns what it complains about into an error.
func (s *starter) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second // for those that outlive a killed shim
	if err := s.host.ns.Do(cmd.Start); err != nil {
		return nil, err
	}
	if s.sandbox != nil {
		s.sandbox.shim.Store(cmd.Process)
		defer s.sandbox.shim.Store(nil)
	}
	err := cmd.Wait()
	if err == nil {
		return stdout.Bytes(), nil
	}
	var failure types.Error
	if json.Unmarshal(stdout.Bytes(), &failure) == nil && failure.Msg != "" {
		return nil, &failure
	}
	return nil, fmt.Errorf("%s: %w: %s %s", filepath.Base(path), err, stdout.Bytes(), stderr.Bytes())
}

// FindInPath is the library's own search.
func (s *starter) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// codeOf is the CNI error code of what the shim answered, 0 for none.
func codeOf(err error) uint {
	var failure *types.Error
	if errors.As(err, &failure) {
		return failure.Code
	}
	return 0
}
