package confdir_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/kerneltest"
)

var place = confdir.Place{Socket: "/run/braid/braid.sock", Notes: "/var/lib/braid/notes"}

// world is a conf dir and a state dir, with or without a Watcher at work.
type world struct {
	t          *testing.T
	dir, state string
	changes    atomic.Int32
	log        recorder
	told       struct {
		sync.Mutex
		notices []confdir.Notice
	}
	*confdir.Watcher
}

// notices are the warnings, or the others, that were passed on.
func (w *world) notices(warnings bool) []confdir.Notice {
	w.told.Lock()
	defer w.told.Unlock()
	var out []confdir.Notice
	for _, n := range w.told.notices {
		if n.Warning == warnings {
			out = append(out, n)
		}
	}
	return out
}

// recorder keeps what was logged.
type recorder struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) has(s string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(r.text.String(), s)
}

func (r *recorder) count(s string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.text.String(), s)
}

func newWorld(t *testing.T) *world {
	return &world{t: t, dir: filepath.Join(t.TempDir(), "net.d"), state: t.TempDir()}
}

// start runs a Watcher until stop is called or the test ends.
func (w *world) start() (stop func()) {
	w.t.Helper()
	var err error
	w.Watcher, err = confdir.New(confdir.Config{
		Dir:      w.dir,
		StateDir: w.state,
		Place:    place,
		Changed:  func() { w.changes.Add(1) },
		Notify: func(n confdir.Notice) {
			w.told.Lock()
			defer w.told.Unlock()
			w.told.notices = append(w.told.notices, n)
		},
		Log: slog.New(slog.NewTextHandler(io.MultiWriter(w.t.Output(), &w.log), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	run := w.Run
	go func() { done <- run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) mkdir() {
	w.t.Helper()
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name string, data []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) rename(from, to string) {
	w.t.Helper()
	if err := os.Rename(filepath.Join(w.dir, from), filepath.Join(w.dir, to)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits for what the Watcher does. It polls, as a runtime that only
// reads the directory would see it.
func (w *world) eventually(limit time.Duration, what string, holds func() bool) {
	w.t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			network, file, _ := w.Default()
			w.t.Fatalf("not within %v: %s\ndefault network %s of %s\n%+v", limit, what, network.Name, file, w.State().Notes)
		}
	}
}

func (w *world) waitDefault(name, file string) {
	w.t.Helper()
	w.eventually(5*time.Second, "default network "+name+" of "+file, func() bool {
		n, f, ok := w.Default()
		return ok && n.Name == name && f == file
	})
}

// restored waits for Braid's own file, for the second that the contract gives.
func (w *world) restored() {
	w.t.Helper()
	n, _, _ := w.Default()
	want := confdir.OwnConf(n, place)
	w.eventually(time.Second, confdir.OwnFile+" is there", func() bool {
		have, err := os.ReadFile(filepath.Join(w.dir, confdir.OwnFile))
		return err == nil && bytes.Equal(have, want)
	})
}

// ready is a world with one network and a Watcher that has done its work.
func ready(t *testing.T) (w *world, stop func()) {
	w = newWorld(t)
	w.mkdir()
	w.write("10-flannel.conflist", conf("cbr0"))
	stop = w.start()
	w.waitDefault("cbr0", "10-flannel.conflist")
	w.restored()
	return w, stop
}

func TestOwnFileIsWhatRuntimesExpect(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	list, err := libcni.ConfListFromFile(filepath.Join(w.dir, confdir.OwnFile))
	if err != nil {
		t.Fatal(err)
	}
	if list.Name != "braid" || list.CNIVersion != "1.1.0" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "braid-cni" {
		t.Errorf("libcni reads %s", list.Bytes)
	}
	if !list.Plugins[0].Network.Capabilities["portMappings"] {
		t.Errorf("the default network's capability is missing: %s", list.Bytes)
	}
	if !list.Plugins[0].Network.Capabilities["io.kubernetes.cri.pod-annotations"] {
		t.Errorf("the runtime would not tell the pod's annotations: %s", list.Bytes)
	}
	var old struct {
		CNIVersion string
		Plugins    []struct{ Socket, Notes string }
	}
	if err := json.Unmarshal(list.Bytes, &old); err != nil || old.CNIVersion != "1.0.0" || old.Plugins[0] != struct{ Socket, Notes string }(place) {
		t.Errorf("a runtime that does not know cniVersions reads %+v, %v", old, err)
	}
	files, err := libcni.ConfFiles(w.dir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) != 2 || filepath.Base(files[0]) != confdir.OwnFile {
		t.Errorf("a runtime sees %v, %v", files, err)
	}
	info, err := os.Stat(filepath.Join(w.dir, confdir.OwnFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
}

func TestSpec34OwnFileWaitsForADefaultNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.mkdir()
	w.write("10-flannel.conflist", conf("cbr0")[:20])
	w.start()
	w.eventually(5*time.Second, "the broken file is noticed", func() bool { return len(w.State().Notes) > 0 })
	if _, err := os.Stat(filepath.Join(w.dir, confdir.OwnFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s without a default network: %v", confdir.OwnFile, err)
	}
	if _, _, ok := w.Default(); ok {
		t.Error("a default network out of nothing")
	}
	w.write("10-flannel.conflist", conf("cbr0"))
	w.waitDefault("cbr0", "10-flannel.conflist")
	w.restored()
}

func TestLastGoodNetworkSurvivesItsFile(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(w *world){
		"half written": func(w *world) { w.write("10-flannel.conflist", conf("cbr0")[:30]) },
		"emptied":      func(w *world) { w.write("10-flannel.conflist", nil) },
		"renamed away": func(w *world) { w.rename("10-flannel.conflist", "10-flannel.conflist.cilium_bak") },
		"removed":      func(w *world) { w.remove("10-flannel.conflist") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, stop := ready(t)
			spoil(w)
			w.eventually(5*time.Second, "the change is noticed", func() bool { return len(w.State().Notes) > 0 })
			w.waitDefault("cbr0", "10-flannel.conflist")
			w.restored()
			stop()
			w.start()
			if n, _, ok := w.Default(); !ok || n.Name != "cbr0" {
				t.Errorf("after a restart the default network is %v", n)
			}
			w.remove(confdir.OwnFile)
			w.restored()
			w.write("10-flannel.conflist", conf("new"))
			w.waitDefault("new", "10-flannel.conflist")
			w.restored()
		})
	}
}

func TestAnEarlierFileBecomesTheDefault(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	before := w.changes.Load()
	w.write("05-cilium.conflist", []byte(`{"cniVersion": "1.0.0", "name": "cilium", "type": "cilium-cni", "capabilities": {"bandwidth": true}}`))
	w.waitDefault("cilium", "05-cilium.conflist")
	w.restored()
	if w.changes.Load() == before {
		t.Error("nobody was told")
	}
	if n, ok := w.OnDisk("cbr0"); !ok || n.Plugins[0].Type != "ptp" {
		t.Errorf("the other network is not on disk: %v", n)
	}
	w.remove("05-cilium.conflist")
	w.waitDefault("cbr0", "10-flannel.conflist")
	w.restored()
}

func TestSpec03OnDiskPrefersLists(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	w.write("20-lab.conf", []byte(`{"cniVersion": "1.0.0", "name": "lab", "type": "single"}`))
	w.write("30-lab.conflist", []byte(`{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "list"}]}`))
	w.eventually(5*time.Second, "network lab, out of the list", func() bool {
		n, ok := w.OnDisk("lab")
		return ok && n.Plugins[0].Type == "list"
	})
	for _, name := range []string{"braid", "none", ""} {
		if n, ok := w.OnDisk(name); ok {
			t.Errorf("network %q is on disk: %v", name, n)
		}
	}
}

func TestSpec35OwnFileIsPutBack(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	for _, c := range []struct {
		name  string
		spoil func()
	}{
		{"renamed", func() { w.rename(confdir.OwnFile, confdir.OwnFile+".bak") }},
		{"removed", func() { w.remove(confdir.OwnFile) }},
		{"edited", func() { w.write(confdir.OwnFile, []byte("{}")) }},
		{"emptied", func() { w.write(confdir.OwnFile, nil) }},
		{"replaced", func() {
			w.write("x.tmp", conf("x"))
			w.rename("x.tmp", confdir.OwnFile)
		}},
		{"made a link", func() {
			w.remove(confdir.OwnFile)
			if err := os.Symlink("nowhere", filepath.Join(w.dir, confdir.OwnFile)); err != nil {
				t.Fatal(err)
			}
		}},
		{"moved out of the directory", func() { w.rename(confdir.OwnFile, "../"+confdir.OwnFile) }},
	} {
		c.spoil()
		w.restored()
		t.Log(c.name)
	}
	// Who runs the cluster learns of both ways, and not once for each time.
	for _, how := range []string{"was removed or renamed", "was changed"} {
		if n := w.noticesWith(how); n != 1 {
			t.Errorf("%d notices that it %s", n, how)
		}
	}
}

// noticesWith counts the notices with these words.
func (w *world) noticesWith(words string) int {
	w.told.Lock()
	defer w.told.Unlock()
	n := 0
	for _, notice := range w.told.notices {
		if strings.Contains(notice.Text, words) {
			n++
		}
	}
	return n
}

// cilium does once what Cilium 1.19 does in its exclusive mode at its start and
// whenever something happens in the directory: it renames what is not its own,
// and ignores that it cannot.
func (w *world) cilium() {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Error(err)
	}
	for _, e := range entries {
		if name := e.Name(); !e.IsDir() && name != "05-cilium.conflist" && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name)) {
			_ = os.Rename(filepath.Join(w.dir, name), filepath.Join(w.dir, name+".cilium_bak"))
		}
	}
}

var ciliumConf = []byte(`{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni"}]}`)

// TestCiliumNeverRenamesOwnFile has a runtime look at the directory while Cilium
// is at work without a pause: from the first moment that Braid's file is there,
// it stays.
func TestCiliumNeverRenamesOwnFile(t *testing.T) {
	t.Parallel()
	for name, network := range map[string]string{"Cilium is there before Braid": "05-cilium.conflist", "Cilium comes later": "10-flannel.conflist"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.mkdir()
			w.write(network, ciliumConf)
			w.start()
			path := filepath.Join(w.dir, confdir.OwnFile)
			var first os.FileInfo
			if network != "05-cilium.conflist" {
				w.waitDefault("cilium", network)
				w.restored()
				w.write("05-cilium.conflist", ciliumConf)
			}
			rounds := 0
			w.eventually(10*time.Second, "Cilium has looked often enough", func() bool {
				w.cilium()
				switch info, err := os.Stat(path); {
				case first == nil && err == nil:
					first = info
				case first != nil && (err != nil || rounds < 20 && !os.SameFile(first, info)):
					t.Fatalf("Braid's file did not stay: %v", err)
				}
				if first != nil {
					rounds++
				}
				return rounds == 200
			})
			w.eventually(5*time.Second, "it is told once that Cilium may rename others", func() bool {
				return len(w.notices(false)) == 1 && strings.Contains(w.notices(false)[0].Text, "It cannot rename 00-braid.conflist: the directory 00-braid.conflist.cilium_bak is in the way.")
			})
			if w.log.has("put Braid's configuration back") {
				t.Error("Braid's file was put back")
			}
		})
	}
}

// TestCiliumRenamesOwnFileOnlyOnce: braidd was away while somebody removed the
// directory that was in Cilium's way.
func TestCiliumRenamesOwnFileOnlyOnce(t *testing.T) {
	t.Parallel()
	w, stop := ready(t)
	stop()
	w.remove(confdir.OwnFile + confdir.CiliumSuffix)
	w.write("05-cilium.conflist", ciliumConf)
	w.cilium()
	if _, err := os.Stat(filepath.Join(w.dir, confdir.OwnFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Cilium has not renamed the file: %v", err)
	}
	w.start()
	w.waitDefault("cilium", "05-cilium.conflist")
	w.restored()
	path := filepath.Join(w.dir, confdir.OwnFile)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	w.cilium()
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("Braid's file is another one: %v", err)
	}
	warnings := func() string {
		var texts []string
		for _, n := range w.notices(true) {
			texts = append(texts, n.Text)
		}
		return strings.Join(texts, "\n")
	}
	for _, want := range []string{"Cilium renames 00-braid.conflist", "should be started anew", "Cilium has renamed 10-flannel.conflist", `cni.exclusive=false in Cilium's chart (cni-exclusive: "false" in the ConfigMap cilium-config)`} {
		w.eventually(5*time.Second, "somebody is told: "+want, func() bool { return strings.Contains(warnings(), want) })
	}
	for _, want := range []string{"Cilium renamed Braid's configuration", "Cilium has renamed 10-flannel.conflist"} {
		if !w.log.has(want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	// With the directory in place, whoever takes the file away is not Cilium.
	w.remove(confdir.OwnFile)
	w.restored()
	w.eventually(time.Second, "the log does not accuse it", func() bool { return w.log.has(`by=unknown`) })
}

// TestTheDirectoryInCiliumsWayIsPutBack, as Braid's file is.
func TestTheDirectoryInCiliumsWayIsPutBack(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	w.remove(confdir.OwnFile + confdir.CiliumSuffix)
	w.eventually(time.Second, "it is there again", func() bool {
		info, err := os.Stat(filepath.Join(w.dir, confdir.OwnFile+confdir.CiliumSuffix))
		return err == nil && info.IsDir()
	})
}

// TestANoticeIsNoFlood: another agent writes its file as soon as Cilium has
// renamed it.
func TestANoticeIsNoFlood(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	w.write("05-cilium.conflist", ciliumConf)
	w.waitDefault("cilium", "05-cilium.conflist")
	for i := range 10 {
		name := fmt.Sprint("r", i)
		w.write("20-other.conflist", conf(name))
		w.eventually(5*time.Second, "the file is seen", func() bool { _, ok := w.OnDisk(name); return ok })
		w.cilium()
		w.eventually(5*time.Second, "the file is gone", func() bool { _, ok := w.OnDisk(name); return !ok })
		w.remove("20-other.conflist.cilium_bak")
	}
	others := 0
	for _, n := range w.notices(true) {
		if strings.Contains(n.Text, "20-other.conflist") {
			others++
		}
	}
	if others > 1 {
		t.Errorf("told %d times of one file: %v", others, w.notices(true))
	}
	w.eventually(5*time.Second, "the network that stays away is told of", func() bool {
		return strings.Contains(fmt.Sprint(w.notices(true)), "Cilium has renamed 10-flannel.conflist to")
	})
}

// TestOwnFileIsPutBackAgainstAnAgent has an agent rename Braid's file as soon
// as it appears, to a name that Braid cannot take.
func TestOwnFileIsPutBackAgainstAnAgent(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	start := time.Now()
	const rounds = 8
	for range rounds {
		w.rename(confdir.OwnFile, confdir.OwnFile+".old")
		w.restored()
	}
	if took := time.Since(start); took < (rounds-2)*200*time.Millisecond {
		t.Errorf("%d rounds took %v: the two would keep the node busy", rounds, took)
	}
	w.eventually(time.Second, "a note names the agent", func() bool {
		return strings.Contains(strings.Join(w.State().Notes, "\n"), "Multus renames "+confdir.OwnFile)
	})
	if told := w.log.count("put Braid's configuration back"); told != 1 {
		t.Errorf("the log says %d times that the file was put back; once a minute is enough", told)
	}
	if !w.log.has(`by="Multus (start Multus without`) {
		t.Error("the log does not name the agent")
	}
}

func TestOwnFileIsNeverEmptyNorDeleted(t *testing.T) {
	t.Parallel()
	w, stop := ready(t)
	path := filepath.Join(w.dir, confdir.OwnFile)
	for i := range 8 {
		capability := fmt.Sprintf("c%d", i)
		w.write("10-flannel.conflist", []byte(`{"cniVersion": "1.0.0", "name": "cbr0", "type": "ptp", "capabilities": {"`+capability+`": true}}`))
		w.eventually(5*time.Second, "the capability is passed on", func() bool {
			list, err := libcni.ConfListFromFile(path)
			if err != nil {
				t.Fatalf("a runtime would find: %v", err)
			}
			return list.Plugins[0].Network.Capabilities[capability]
		})
	}
	stop()
	if _, err := libcni.ConfListFromFile(path); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func TestTwoWatchersAgree(t *testing.T) {
	t.Parallel()
	first, _ := ready(t)
	second := &world{t: t, dir: first.dir, state: first.state}
	second.start()
	both := func(name string) {
		t.Helper()
		for _, w := range []*world{first, second} {
			w.eventually(5*time.Second, "network "+name, func() bool { _, ok := w.OnDisk(name); return ok })
		}
	}
	for i := range 10 {
		name := fmt.Sprintf("n%d", i)
		first.write("05-x.conf", []byte(`{"cniVersion": "1.0.0", "name": "`+name+`", "type": "ptp", "capabilities": {"`+name+`": true}}`))
		both(name)
		first.restored()
	}
	// A Watcher answers for a network before it sees to the file, so what one
	// round finds in order is certain only after the next.
	first.write("20-settled.conf", conf("settled"))
	both("settled")
	path := filepath.Join(first.dir, confdir.OwnFile)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		first.write(fmt.Sprintf("30-%d.conf", i), conf(fmt.Sprint("y", i)))
		both(fmt.Sprint("y", i))
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the watchers keep writing: %v", err)
	}
}

func TestDirectoryMayAppearLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dir = filepath.Join(t.TempDir(), "etc", "cni", "net.d")
	w.start()
	w.mkdir()
	w.write("10-flannel.conflist", conf("cbr0"))
	w.waitDefault("cbr0", "10-flannel.conflist")
	w.restored()
}

func TestDirectoryMayBeReplaced(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	if err := os.Rename(w.dir, w.dir+".old"); err != nil {
		t.Fatal(err)
	}
	w.mkdir()
	w.restored()
	w.write("20-new.conflist", conf("new"))
	w.waitDefault("new", "20-new.conflist")
	// The Watcher may put its file back in the middle of it.
	w.eventually(5*time.Second, "the directory is removed", func() bool { return os.RemoveAll(w.dir) == nil })
	if n, _, ok := w.Default(); !ok || n.Name != "new" {
		t.Errorf("the default network went with the directory: %v", n)
	}
	w.mkdir()
	w.restored()
	w.remove(confdir.OwnFile)
	w.restored()
}

func TestDirectoryMayBeUnreadable(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	if err := os.Rename(w.dir, w.dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.dir, nil, 0o600); err != nil { // permission bits do not stop root
		t.Fatal(err)
	}
	w.eventually(5*time.Second, "the trouble is reported", func() bool { return w.log.has("cannot read the conf dir") })
	if n, _, ok := w.Default(); !ok || n.Name != "cbr0" {
		t.Errorf("the default network is forgotten: %v", n)
	}
	if err := os.Remove(w.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.dir+".old", w.dir); err != nil {
		t.Fatal(err)
	}
	w.write("05-a.conf", conf("a"))
	w.waitDefault("a", "05-a.conf")
	w.eventually(time.Second, "the end of the trouble is reported", func() bool { return w.log.has("can read the conf dir again") })
	w.remove(confdir.OwnFile)
	w.restored()
}

func TestDirectoryMayBeRenamedAndComeBack(t *testing.T) {
	t.Parallel()
	w, _ := ready(t)
	for range 3 {
		if err := os.Rename(w.dir, w.dir+".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(w.dir+".old", w.dir); err != nil {
			t.Fatal(err)
		}
		w.remove(confdir.OwnFile)
		w.restored()
	}
}

func TestThingsThatAreNoFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.mkdir()
	at := func(name string) string { return filepath.Join(w.dir, name) }
	for _, err := range []error{
		syscall.Mkfifo(at("01-pipe.conf"), 0o600),
		os.Mkdir(at("02-dir.conflist"), 0o755),
		os.Symlink("nowhere", at("03-dangling.conf")),
		os.WriteFile(at("04-large.conf"), bytes.Repeat([]byte(" "), 2<<20), 0o600),
		os.WriteFile(filepath.Join(w.state, "target"), conf("linked"), 0o600),
		os.Symlink(filepath.Join(w.state, "target"), at("05-link.conf")),
		os.Mkdir(at("linked-list"), 0o755),
		os.WriteFile(at("linked-list/10-tuning.conf"), []byte(`{"type": "tuning"}`), 0o600),
		os.WriteFile(at("linked-list/README"), []byte("x"), 0o600),
		syscall.Mkfifo(at("linked-list/20-pipe.conf"), 0o600),
		os.Mkdir(at("linked-list/30-dir.conf"), 0o755),
		os.WriteFile(at("06-list.conflist"), conf("linked-list"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	w.waitDefault("linked", "05-link.conf")
	notes := strings.Join(w.State().Notes, "\n")
	for _, want := range []string{"03-dangling.conf is skipped", "04-large.conf is skipped: larger than"} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes %q lack %q", notes, want)
		}
	}
	if n, ok := w.OnDisk("linked-list"); !ok || len(n.Plugins) != 2 || n.Plugins[1].Type != "tuning" {
		t.Errorf("the list with a directory of plugins: %+v, %v", n, ok)
	}
	w.restored()
}

func TestUnusableMemoryDoesNotCount(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "{", "[]", `{"version": 2}`, `{"version": 1, "file": "a.conf", "config": {"type": "braid-cni", "name": "x"}}`} {
		w := newWorld(t)
		w.mkdir()
		if err := os.WriteFile(filepath.Join(w.state, "default-network.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := w.start()
		if n, _, ok := w.Default(); ok {
			t.Errorf("%q is remembered as %v", text, n)
		}
		w.write("10-flannel.conflist", conf("cbr0"))
		w.waitDefault("cbr0", "10-flannel.conflist")
		w.restored()
		stop()
		w.start()
		w.waitDefault("cbr0", "10-flannel.conflist")
	}
}

func TestLeftoverOfACrashIsNoObstacle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.mkdir()
	w.write(".00-braid.conflist.tmp", bytes.Repeat([]byte("torn "), 1000))
	w.write("10-flannel.conflist", conf("cbr0"))
	w.start()
	w.waitDefault("cbr0", "10-flannel.conflist")
	w.restored()
	if _, err := os.Lstat(filepath.Join(w.dir, ".00-braid.conflist.tmp")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the leftover is still there: %v", err)
	}
}

func TestFullDiskLeavesTheOldFile(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS) // to be root
	t.Parallel()
	w := newWorld(t)
	w.mkdir()
	if err := syscall.Mount("braid-test", w.dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(w.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w.write("10-flannel.conflist", conf("cbr0"))
	w.start()
	w.waitDefault("cbr0", "10-flannel.conflist")
	w.restored()
	w.write("05-cilium.conflist", []byte(`{"cniVersion": "1.0.0", "name": "first", "type": "cilium-cni", "capabilities": {"first": true}}`))
	w.waitDefault("first", "05-cilium.conflist")
	w.restored()
	ballast, err := os.Create(filepath.Join(w.dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for size := 4096; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = ballast.Write(make([]byte, size))
		}
	}
	// The network's own file fits into the page that it has.
	w.write("05-cilium.conflist", []byte(`{"cniVersion": "1.0.0", "name": "second", "type": "cilium-cni", "capabilities": {"second": true}}`))
	w.waitDefault("second", "05-cilium.conflist")
	w.eventually(5*time.Second, "the trouble is reported", func() bool { return w.log.has("cannot write " + confdir.OwnFile) })
	if list, err := libcni.ConfListFromFile(filepath.Join(w.dir, confdir.OwnFile)); err != nil || !list.Plugins[0].Network.Capabilities["first"] {
		t.Errorf("on a full disk a runtime finds: %v", err)
	}
	w.eventually(5*time.Second, "the failed write is cleaned up", func() bool {
		_, err := os.Lstat(filepath.Join(w.dir, ".00-braid.conflist.tmp"))
		return errors.Is(err, fs.ErrNotExist)
	})
	if err := os.Remove(ballast.Name()); err != nil {
		t.Fatal(err)
	}
	if err := ballast.Close(); err != nil {
		t.Fatal(err)
	}
	w.eventually(5*time.Second, "the file is written once there is room", func() bool {
		list, err := libcni.ConfListFromFile(filepath.Join(w.dir, confdir.OwnFile))
		return err == nil && list.Plugins[0].Network.Capabilities["second"]
	})
}
