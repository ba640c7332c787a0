package confswitch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/plan"
)

const (
	flannel = `{
  "name": "cbr0", "cniVersion": "0.3.1",
  "plugins": [ {"type": "flannel", "delegate": {"hairpinMode": true}}, {"type": "portmap", "capabilities": {"portMappings": true}} ]
}
`
	cilium = `{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni","capabilities":{"bandwidth":true}}]}`
	single = `{"cniVersion":"1.0.0","name":"lonely","type":"ptp","ipam":{"type":"host-local"},"capabilities":{"ips":true}}`
	junk   = `{"cniVersion":"1.0.0","name":"podman","plugins":[{"type":"bridge"}]}`
)

// node is a conf dir and its migration.
type node struct {
	t *testing.T
	Config
	source string // its file as it was
}

// kind is a sort of node.
type kind struct {
	name               string
	fromFile, fromText string
	toFile, toText     string
	braid              bool
}

var kinds = []kind{
	{name: "target first", fromFile: "10-flannel.conflist", fromText: flannel, toFile: "05-cilium.conflist", toText: cilium},
	{name: "source first", fromFile: "05-cilium.conflist", fromText: cilium, toFile: "10-flannel.conflist", toText: flannel},
	{name: "single configurations", fromFile: "10-ptp.conf", fromText: single, toFile: "10-cilium.json", toText: strings.ReplaceAll(single, "lonely", "other")},
	{name: "one file name", fromFile: "10-cni.conflist", fromText: flannel, toFile: "10-cni.conflist", toText: cilium},
	{name: "one file name, one network name", fromFile: "10-cni.conflist", fromText: flannel, toFile: "10-cni.conflist", toText: strings.Replace(cilium, `"cilium"`, `"cbr0"`, 1)},
	{name: "Braid", fromFile: "10-flannel.conflist", fromText: flannel, toFile: "05-cilium.conflist", toText: cilium, braid: true},
	{name: "Braid, source first", fromFile: "05-cilium.conflist", fromText: cilium, toFile: "10-flannel.conflist", toText: flannel, braid: true},
	{name: "Braid, one file name", fromFile: "10-cni.conflist", fromText: flannel, toFile: "10-cni.conflist", toText: cilium, braid: true},
}

func (k kind) node(t *testing.T) node {
	t.Helper()
	n := node{t: t, source: k.fromText, Config: Config{
		Dir: memory(t), StateDir: memory(t), Migration: "m", Probes: "braid-migrate", Message: "please wait",
		From: v1alpha1.Network{Profile: "a", ConfFile: k.fromFile},
		To:   v1alpha1.Network{Profile: "b", ConfFile: k.toFile, Conf: k.toText},
	}}
	n.write(k.fromFile, k.fromText)
	n.write("87-podman.conflist", junk)
	if k.braid {
		network, err := plan.ParseNetwork([]byte(k.fromText), "")
		if err != nil {
			t.Fatal(err)
		}
		n.write(confdir.OwnFile, string(confdir.OwnConf(network, confdir.Place{Socket: "/run/braid/braid.sock", Notes: "/var/lib/braid/notes"})))
	}
	return n
}

// memory is a directory that syncs at once, where the machine has one: a test
// that cuts hundreds of times would wait for its disk otherwise.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "braid")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (n node) write(name, text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n node) read(name string) string {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Dir, name))
	if err != nil {
		n.t.Error(err)
	}
	return string(data)
}

func (n node) set(want v1alpha1.RuntimeState) {
	n.t.Helper()
	if err := Set(n.t.Context(), n.Config, want); err != nil {
		n.t.Fatal(err)
	}
	if have, err := Observe(n.Config); err != nil || have != want {
		n.t.Fatalf("observed %q, want %s: %v", have, want, err)
	}
	n.check()
}

// loadable are the names that a runtime would load, in its order.
func (n node) loadable() []string {
	n.t.Helper()
	files, err := confdir.ReadDir(n.Dir)
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		if confdir.IsConf(f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// check is what holds at every moment.
func (n node) check() {
	n.t.Helper()
	names := n.loadable()
	braid := slices.Contains(names, confdir.OwnFile)
	names = slices.DeleteFunc(names, func(name string) bool { return name == confdir.OwnFile })
	if len(names) == 0 {
		n.t.Fatal("the runtime has nothing to load")
	}
	if ours := []string{confdir.GateFile, n.From.ConfFile, n.To.ConfFile}; !slices.Contains(ours, names[0]) {
		n.t.Fatalf("the runtime would load %s", names[0])
	}
	var list struct {
		Name string
		Type string
		// Plugins are those of a list.
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(n.read(names[0])), &list); err != nil || list.Name == "" || list.Type == "" && len(list.Plugins) == 0 {
		n.t.Fatalf("%s cannot be loaded: %v", names[0], err)
	}
	if braid && !slices.ContainsFunc(names, func(name string) bool { return name == n.From.ConfFile || name == n.To.ConfFile }) {
		n.t.Fatalf("Braid has no default network: %q", names)
	}
	if n.read("87-podman.conflist") != junk {
		n.t.Error("somebody else's file has changed")
	}
}

// wantFiles checks what a state is on disk.
func (n node) wantFiles(want v1alpha1.RuntimeState) {
	n.t.Helper()
	goal, text := n.From, n.source
	if sideOf(want) == v1alpha1.Target {
		goal, text = n.To, n.To.Conf
	}
	var names []string
	if IsGate(want) {
		names = append(names, confdir.GateFile)
	}
	_, err := os.Stat(filepath.Join(n.Dir, confdir.OwnFile))
	if err == nil {
		names = append(names, confdir.OwnFile)
	}
	if err == nil || !IsGate(want) {
		names = append(names, goal.ConfFile)
		if n.read(goal.ConfFile) != text {
			n.t.Errorf("%s is %q, want %q", goal.ConfFile, n.read(goal.ConfFile), text)
		}
	}
	if _, err := os.Lstat(filepath.Join(n.Dir, goal.ConfFile+AsideSuffix)); err == nil && !IsGate(want) && n.From.ConfFile != n.To.ConfFile {
		n.t.Errorf("%s is back and set aside", goal.ConfFile)
	}
	if have := n.loadable(); !slices.Equal(have, append(names, "87-podman.conflist")) {
		n.t.Errorf("%s: the runtime would load %q, want %q first", want, have, names)
	}
	if _, err := os.Lstat(filepath.Join(n.Dir, confdir.GateFile+confdir.CiliumSuffix)); (err == nil) != IsGate(want) {
		n.t.Errorf("%s: the guard of the gate is there: %v", want, err == nil)
	}
}

func TestEveryStateLeadsToEveryOtherAndBack(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			n := k.node(t)
			for _, from := range States() {
				for _, to := range States() {
					n.set(from)
					n.wantFiles(from)
					n.set(to)
					n.wantFiles(to)
				}
			}
			n.set(v1alpha1.RuntimeSource)
			n.wantFiles(v1alpha1.RuntimeSource)
			if err := Finish(n.Config); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(n.Dir)
			if err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.Contains(e.Name(), "migrate") }) {
				t.Errorf("left: %v, %v", entries, err)
			}
		})
	}
}

// A daemon may be killed, or the node lose its power, between any two steps.
func TestInterruptedAnywhereSetEndsInTheSame(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			cuts := 0
			for _, from := range States() {
				for _, to := range States() {
					cuts += cutEverywhere(t, k, from, to)
				}
			}
			if cuts < len(States()) {
				t.Errorf("only %d cuts were made", cuts)
			}
		})
	}
}

func cutEverywhere(t *testing.T, k kind, from, to v1alpha1.RuntimeState) (cuts int) {
	for after := 0; ; after++ {
		n := k.node(t)
		n.set(from)
		w, err := n.world()
		if err != nil {
			t.Fatal(err)
		}
		ops, err := Plan(w, to)
		if err != nil {
			t.Fatal(err)
		}
		if after > len(ops) {
			return cuts
		}
		for _, op := range ops[:after] {
			if err := n.do(op); err != nil {
				t.Fatal(err)
			}
			n.check()
		}
		if after < len(ops) && ops[after].Do == Write { // cut in the middle of a write
			n.write("."+ops[after].File+".tmp", string(ops[after].Data[:len(ops[after].Data)/2]))
			n.check()
		}
		n.set(to)
		n.wantFiles(to)
		n.set(v1alpha1.RuntimeSource)
		n.wantFiles(v1alpha1.RuntimeSource)
		cuts++
	}
}

func TestTheSourcesFileComesBackFromTheBackup(t *testing.T) {
	n := kinds[0].node(t)
	if err := os.Chmod(filepath.Join(n.Dir, n.From.ConfFile), 0o640); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeTarget)
	if err := os.Remove(filepath.Join(n.Dir, n.From.ConfFile+AsideSuffix)); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeClosedToSource)
	n.set(v1alpha1.RuntimeSource)
	n.wantFiles(v1alpha1.RuntimeSource)
	if info, err := os.Stat(filepath.Join(n.Dir, n.From.ConfFile)); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestWithoutABackupTheFileThatWasSetAsideComesBack(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeTarget)
	if err := os.RemoveAll(n.StateDir); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeClosedToSource)
	n.set(v1alpha1.RuntimeSource)
	n.wantFiles(v1alpha1.RuntimeSource)
}

func TestTheBackupHasAllAndIsMadeOnce(t *testing.T) {
	n := kinds[0].node(t)
	sub := filepath.Join(n.Dir, "cbr0")
	if err := errors.Join(os.Mkdir(sub, 0o755), os.WriteFile(filepath.Join(sub, "10-x.conf"), []byte("x"), 0o600),
		os.WriteFile(filepath.Join(n.Dir, "kubeconfig"), []byte("secret"), 0o600),
		os.Symlink(filepath.Join(sub, "10-x.conf"), filepath.Join(n.Dir, "link")), os.Symlink("nowhere", filepath.Join(n.Dir, "dangling")),
		syscall.Mkfifo(filepath.Join(n.Dir, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeClosedToTarget)
	n.write(n.From.ConfFile, "changed")
	n.set(v1alpha1.RuntimeOpenToTarget)
	for name, want := range map[string]string{n.From.ConfFile: flannel, "cbr0/10-x.conf": "x", "kubeconfig": "secret", "link": "x", "87-podman.conflist": junk} {
		data, err := os.ReadFile(filepath.Join(n.BackupDir(), name))
		if err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	entries, err := os.ReadDir(n.BackupDir())
	if err != nil || len(entries) != 5 {
		t.Errorf("%v, %v", entries, err)
	}
	if info, err := os.Stat(n.BackupDir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("others may read it: %v, %v", info.Mode(), err)
	}
}

func TestAnInterruptedBackupIsMadeAnew(t *testing.T) {
	n := kinds[0].node(t)
	part := filepath.Join(filepath.Dir(n.BackupDir()), ".conf.part")
	if err := errors.Join(os.MkdirAll(part, 0o700), os.WriteFile(filepath.Join(part, n.From.ConfFile), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeTarget)
	n.set(v1alpha1.RuntimeSource)
	n.wantFiles(v1alpha1.RuntimeSource)
}

// Flannel's init container, kindnet and Calico write their file again.
func TestAFileThatAnAgentWritesAgainIsSetAsideAgain(t *testing.T) {
	for _, want := range States()[1:4] {
		n := kinds[0].node(t)
		n.set(want)
		n.write(n.From.ConfFile, strings.Replace(flannel, "hairpinMode", "newer", 1))
		n.check()
		n.set(want)
		n.wantFiles(want)
	}
}

func TestAnAgentsOwnVersionOfTheWantedFileStays(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeTarget)
	newer := strings.Replace(cilium, `"type"`, `"log-file":"x","type"`, 1)
	n.write(n.To.ConfFile, newer)
	n.set(v1alpha1.RuntimeTarget)
	if n.read(n.To.ConfFile) != newer {
		t.Error("it was overwritten: the agent would write it again, and so on")
	}
	for _, broken := range []string{"", "{", `{"name":"other","cniVersion":"1.0.0","plugins":[{"type":"x"}]}`} {
		n.write(n.To.ConfFile, broken)
		n.set(v1alpha1.RuntimeTarget)
		n.wantFiles(v1alpha1.RuntimeTarget)
	}
}

func TestTheGateHasWhatTheShimAndTheRuntimeNeed(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeClosedToTarget)
	const want = `{
	"cniVersion": "0.3.1", "name": "cilium", "disableCheck": true, "disableGC": true,
	"plugins": [{"type": "braid-cni", "capabilities": {"portMappings": true, "bandwidth": true}, "switch": {
		"from": %s, "to": %s, "admit": "probes", "probes": "braid-migrate", "message": "please wait",
		"migration": "m", "state": "ClosedToTarget"}}]}`
	if have := n.read(confdir.GateFile); !sameJSON([]byte(have), fmt.Appendf(nil, want, flannel, cilium)) {
		t.Error(have)
	}
	n.set(v1alpha1.RuntimeOpenToSource)
	have := n.read(confdir.GateFile)
	if w := `"admit": "all"`; !strings.Contains(have, w) || !strings.Contains(have, `"name": "cbr0"`) {
		t.Errorf("want %s in %s", w, have)
	}
}

func TestASingleConfigurationIsAListInTheGate(t *testing.T) {
	n := kinds[2].node(t)
	n.set(v1alpha1.RuntimeClosedToTarget)
	var gate struct {
		CNIVersion string
		Plugins    []struct {
			Capabilities map[string]bool
			Switch       struct {
				From struct {
					Name    string
					Plugins []struct{ Type, Name string }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(n.read(confdir.GateFile)), &gate); err != nil {
		t.Fatal(err)
	}
	from := gate.Plugins[0].Switch.From
	if gate.CNIVersion != "1.0.0" || from.Name != "lonely" || len(from.Plugins) != 1 || from.Plugins[0].Type != "ptp" || !gate.Plugins[0].Capabilities["ips"] {
		t.Errorf("%+v", gate)
	}
}

func TestWithBraidTheGateLeadsToBraid(t *testing.T) {
	n := kinds[5].node(t)
	n.set(v1alpha1.RuntimeOpenToTarget)
	var gate struct {
		Name    string
		Plugins []struct {
			Capabilities map[string]bool
			Switch       struct {
				To struct {
					Name    string
					Plugins []struct{ Type, Socket, Notes string }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(n.read(confdir.GateFile)), &gate); err != nil {
		t.Fatal(err)
	}
	to := gate.Plugins[0].Switch.To
	want := struct{ Type, Socket, Notes string }{"braid-cni", "/run/braid/braid.sock", "/var/lib/braid/notes"}
	if gate.Name != "braid" || to.Name != "braid" || len(to.Plugins) != 1 || to.Plugins[0] != want {
		t.Errorf("%+v", gate)
	}
	for _, c := range []string{"bandwidth", "portMappings", plan.PodAnnotations} {
		if !gate.Plugins[0].Capabilities[c] {
			t.Errorf("capabilities %v lack %s", gate.Plugins[0].Capabilities, c)
		}
	}
}

func TestAFileThatWouldComeFirstIsAnError(t *testing.T) {
	n := kinds[0].node(t)
	n.write(".hidden.conflist", junk)
	for _, want := range States() {
		err := Set(t.Context(), n.Config, want)
		if err == nil || !strings.Contains(err.Error(), ".hidden.conflist") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := Possible(n.Config); err == nil || !strings.Contains(err.Error(), ".hidden.conflist") {
		t.Error(err)
	}
	if have := n.loadable(); !slices.Equal(have, []string{".hidden.conflist", n.From.ConfFile, "87-podman.conflist"}) {
		t.Errorf("%q", have)
	}
}

func TestPossibleChangesNothing(t *testing.T) {
	n := kinds[0].node(t)
	if err := Possible(n.Config); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(n.StateDir)
	if err != nil || len(entries) != 0 || len(n.loadable()) != 2 {
		t.Errorf("%v, %v, %q", entries, err, n.loadable())
	}
}

func TestMissingPluginsKeepTheGateAway(t *testing.T) {
	n := kinds[0].node(t)
	bin := t.TempDir()
	n.BinDirs = []string{"/nowhere", bin}
	for _, name := range []string{"flannel", "portmap", "cilium-cni"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := Set(t.Context(), n.Config, v1alpha1.RuntimeClosedToTarget)
	if err == nil || !strings.Contains(err.Error(), "braid-cni") || strings.Contains(err.Error(), "portmap") {
		t.Error(err)
	}
	n.check()
	if err := os.WriteFile(filepath.Join(bin, "braid-cni"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeClosedToTarget)
}

// cilium renames whatever is not its own, as its agent does while cni-exclusive
// is true.
func (n node) ciliumRenames(t *testing.T) {
	t.Helper()
	for _, name := range n.loadable() {
		if name == n.To.ConfFile {
			continue
		}
		path := filepath.Join(n.Dir, name)
		if err := os.Rename(path, path+confdir.CiliumSuffix); err != nil && !errors.Is(err, syscall.EISDIR) && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
}

func TestCiliumCannotRenameTheGate(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeOpenToTarget)
	n.ciliumRenames(t)
	if have := n.loadable(); !slices.Contains(have, confdir.GateFile) {
		t.Errorf("%q", have)
	}
}

func TestAnErrorSaysThatCiliumRenamed(t *testing.T) {
	n := kinds[0].node(t)
	n.To.Conf = "" // Cilium is to write it
	n.write(n.To.ConfFile, cilium)
	n.ciliumRenames(t)
	err := os.Remove(filepath.Join(n.Dir, n.To.ConfFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{Set(t.Context(), n.Config, v1alpha1.RuntimeClosedToTarget), Possible(n.Config)} {
		if err == nil || !strings.Contains(err.Error(), "Cilium has renamed 10-flannel.conflist") || !strings.Contains(err.Error(), "cni.exclusive=false") {
			t.Error(err)
		}
	}
	if _, err := Observe(n.Config); err == nil || !strings.Contains(err.Error(), "Cilium has renamed") {
		t.Error(err)
	}
}

func TestTheSourceComesBackThatCiliumRenamed(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeTarget)
	n.set(v1alpha1.RuntimeOpenToSource)
	n.set(v1alpha1.RuntimeSource)
	if err := os.Rename(filepath.Join(n.Dir, n.From.ConfFile), filepath.Join(n.Dir, n.From.ConfFile+confdir.CiliumSuffix)); err != nil {
		t.Fatal(err)
	}
	n.set(v1alpha1.RuntimeSource)
	n.wantFiles(v1alpha1.RuntimeSource)
}

func TestAFullDiskLeavesTheOldState(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS) // root, to mount
	for _, from := range States() {
		for _, to := range States() {
			if from == to || from == v1alpha1.RuntimeTarget && to == v1alpha1.RuntimeSource {
				continue // to fill: without a gate a file may only have to be renamed
			}
			n := kinds[0].node(t)
			full := t.TempDir()
			if err := syscall.Mount("tmpfs", full, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			n.Dir = full
			n.write(n.From.ConfFile, flannel)
			n.write("87-podman.conflist", junk)
			n.set(from)
			fill(t, filepath.Join(full, "filler"))
			before := n.loadable()
			err := Set(t.Context(), n.Config, to)
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			n.check()
			if have, err := Observe(n.Config); have != from || err != nil || !slices.Equal(before, n.loadable()) {
				t.Errorf("%s to %s: now %q, %v; files %q, before %q", from, to, have, err, n.loadable(), before)
			}
			if err := os.Remove(filepath.Join(full, "filler")); err != nil {
				t.Fatal(err)
			}
			n.set(to)
			n.wantFiles(to)
			if err := syscall.Unmount(full, 0); err != nil {
				t.Error(err)
			}
		}
	}
}

// fill writes until nothing fits.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 4096; size > 0; {
		if _, err := f.Write(bytes.Repeat([]byte{'x'}, size)); err != nil {
			size /= 2
		}
	}
}

func TestTwoDaemonsDoNotMeet(t *testing.T) {
	n := kinds[0].node(t)
	unlock, err := n.lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := Set(t.Context(), n.Config, v1alpha1.RuntimeTarget); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Error(err)
	}
	unlock()
	n.set(v1alpha1.RuntimeTarget)
}

func TestSenselessConfigsAreRefused(t *testing.T) {
	good := kinds[0].node(t).Config
	for name, change := range map[string]func(*Config){
		"no dir":          func(c *Config) { c.Dir = "" },
		"no migration":    func(c *Config) { c.Migration = "" },
		"path":            func(c *Config) { c.Migration = "a/b" },
		"parent":          func(c *Config) { c.Migration = ".." },
		"conf in a path":  func(c *Config) { c.To.ConfFile = "../x.conflist" },
		"not loadable":    func(c *Config) { c.To.ConfFile = "05-cilium" },
		"Braid's":         func(c *Config) { c.To.ConfFile = confdir.OwnFile },
		"the gate's":      func(c *Config) { c.From.ConfFile = confdir.GateFile },
		"not told apart":  func(c *Config) { c.To.ConfFile, c.To.Conf = c.From.ConfFile, "" },
		"broken":          func(c *Config) { c.To.Conf = "{" },
		"calls Braid":     func(c *Config) { c.To.Conf = `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"braid-cni"}]}` },
		"unknown version": func(c *Config) { c.To.Conf = strings.Replace(cilium, "0.3.1", "0.2.0", 1) },
	} {
		c := good
		change(&c)
		if err := Possible(c); err == nil {
			t.Errorf("%s: possible", name)
		}
		if err := Set(t.Context(), c, v1alpha1.RuntimeClosedToTarget); err == nil {
			t.Errorf("%s: set", name)
		}
	}
	if err := Set(t.Context(), good, "Sideways"); err == nil {
		t.Error("set to an unknown state")
	}
}

func TestTheGateOfAnotherMigrationIsNamed(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeClosedToTarget)
	n.Migration = "second"
	if have, err := Observe(n.Config); err == nil || have != "" || !strings.Contains(err.Error(), `"m"`) {
		t.Errorf("%q, %v", have, err)
	}
}

func FuzzParseGate(f *testing.F) {
	w := World{Migration: "m", Source: Conf{File: "10-a.conflist", Data: []byte(flannel)}, Target: Conf{File: "05-b.conflist", Data: []byte(cilium)}}
	for _, state := range States()[1:3] {
		data, err := w.gate(state)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"plugins":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parseGate(data)
		if err == nil && !IsGate(g.State) {
			t.Errorf("%q is no state of a gate", g.State)
		}
	})
}

func FuzzPlanNeverLeavesNothingToLoad(f *testing.F) {
	f.Add([]byte(flannel), []byte(cilium), uint8(1))
	f.Add([]byte(single), []byte(single), uint8(3))
	f.Fuzz(func(t *testing.T, source, target []byte, state uint8) {
		want := States()[int(state)%len(States())]
		w := World{
			Migration: "m", Files: []confdir.File{{Name: "10-a.conflist", Data: source}},
			Source: Conf{File: "10-a.conflist", Data: source}, Target: Conf{File: "05-b.conflist", Data: target},
		}
		ops, err := Plan(w, want)
		if err != nil {
			return
		}
		loadable := 1
		for _, op := range ops {
			switch op.Do {
			case Write:
				loadable++
			case SetAside, Remove:
				loadable--
			}
			if loadable == 0 {
				t.Fatalf("nothing to load after %q of %q", op, ops)
			}
		}
	})
}
