// Package refplugin finds or builds the CNI reference plugins, the programs
// that Braid's drivers and dialects are compared with in tests.
package refplugin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// Version is the release of github.com/containernetworking/plugins that Dir
// builds. The module lab/cni pins it with its checksums.
const Version = "v1.9.1"

// importPaths is the place of every reference plugin in its module.
var importPaths = map[string]string{
	"bandwidth":   "meta/bandwidth",
	"bridge":      "main/bridge",
	"dhcp":        "ipam/dhcp",
	"dummy":       "main/dummy",
	"firewall":    "meta/firewall",
	"host-device": "main/host-device",
	"host-local":  "ipam/host-local",
	"ipvlan":      "main/ipvlan",
	"loopback":    "main/loopback",
	"macvlan":     "main/macvlan",
	"portmap":     "meta/portmap",
	"ptp":         "main/ptp",
	"sbr":         "meta/sbr",
	"static":      "ipam/static",
	"tap":         "main/tap",
	"tuning":      "meta/tuning",
	"vlan":        "main/vlan",
	"vrf":         "meta/vrf",
}

// Dir returns a directory that holds the named reference plugins, such as
// "bridge" and "host-local", as static programs. It fails the test when it
// cannot provide one of them.
//
// The directory is that of the environment variable BRAID_REF_PLUGINS, which
// must then hold them all. Without it, Dir builds the missing ones into
// $BRAID_CACHE (~/.cache/braid when unset) with the Go tool chain, once per
// machine: test programs that run at the same time wait for each other.
func Dir(t testing.TB, names ...string) string {
	t.Helper()
	if dir := os.Getenv("BRAID_REF_PLUGINS"); dir != "" {
		if missing := lacks(dir, names); len(missing) > 0 {
			t.Fatalf("BRAID_REF_PLUGINS=%s has no program %s", dir, strings.Join(missing, ", "))
		}
		return dir
	}
	dir, err := build(names)
	if err != nil {
		t.Fatalf("reference plugins %s: %v", strings.Join(names, ", "), err)
	}
	return dir
}

func build(names []string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "ref-plugins-"+Version)
	if len(lacks(dir, names)) == 0 {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	for _, name := range lacks(dir, names) {
		if err := buildOne(dir, name); err != nil {
			return "", fmt.Errorf("build %s: %w", name, err)
		}
	}
	return dir, nil
}

func cacheDir() (string, error) {
	if dir := os.Getenv("BRAID_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("%w (set BRAID_CACHE or BRAID_REF_PLUGINS)", err)
	}
	return filepath.Join(home, ".cache", "braid"), nil
}

// lacks returns the names that are no executable file in dir.
func lacks(dir string, names []string) []string {
	var missing []string
	for _, name := range names {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
			missing = append(missing, name)
		}
	}
	return missing
}

// lock waits for the exclusive lock on path. The kernel drops it when the
// process ends in whichever way.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// buildOne builds under a temporary name, so that an interrupted build leaves
// nothing that a later run takes for the plugin.
func buildOne(dir, name string) error {
	path, ok := importPaths[name]
	if !ok {
		return errors.New("no such reference plugin")
	}
	module, err := pins()
	if err != nil {
		return err
	}
	const plugins = "github.com/containernetworking/plugins"
	tmp := filepath.Join(dir, "."+name+".tmp")
	cmd := exec.Command("go", "build", "-mod=readonly", "-trimpath",
		"-ldflags=-s -w -X "+plugins+"/pkg/utils/buildversion.BuildVersion="+Version,
		"-o", tmp, plugins+"/plugins/"+path)
	cmd.Dir = module
	// Flags of the test run, such as -race in GOFLAGS, are not for the plugin.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return os.Rename(tmp, filepath.Join(dir, name))
}

// pins finds the module lab/cni upwards from the working directory, which is
// the directory of the package under test.
func pins() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		module := filepath.Join(dir, "lab", "cni")
		mod, err := os.ReadFile(filepath.Join(module, "go.mod"))
		if err == nil {
			if !strings.Contains(string(mod), "github.com/containernetworking/plugins "+Version+" ") {
				return "", fmt.Errorf("%s/go.mod does not pin plugins %s", module, Version)
			}
			return module, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no lab/cni above %s", wd)
		}
	}
}

// Call is one request to a plugin.
type Call struct {
	Command     string // ADD, DEL, CHECK, …
	ContainerID string
	IfName      string
	// NetNS is the path of the network namespace. An IPAM plugin needs none
	// and accepts any text.
	NetNS string
	Args  string
	Conf  []byte
}

// Run runs the named plugin of dir and returns what it printed. An error that
// the plugin printed, as the CNI specification wants it, comes back as
// *types.Error.
func Run(ctx context.Context, dir, name string, c Call) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, name))
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"CNI_COMMAND=" + c.Command,
		"CNI_CONTAINERID=" + c.ContainerID,
		"CNI_IFNAME=" + c.IfName,
		"CNI_NETNS=" + cmp.Or(c.NetNS, "none"),
		"CNI_ARGS=" + c.Args,
		"CNI_PATH=" + dir,
		// The namespace of the test itself must not matter.
		"CNI_NETNS_OVERRIDE=1",
	}
	cmd.Stdin = bytes.NewReader(c.Conf)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var cniErr types.Error
	if json.Unmarshal(out, &cniErr) == nil && cniErr.Msg != "" {
		return nil, &cniErr
	}
	return nil, fmt.Errorf("%s %s: %w\n%s%s", name, c.Command, err, out, stderr.Bytes())
}
