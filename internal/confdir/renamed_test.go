package confdir

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestStepFor(t *testing.T) {
	for _, c := range []struct {
		exists bool
		mode   fs.FileMode
		want   step
	}{
		{false, 0, occupy},
		{true, fs.ModeDir | 0o755, leave},
		{true, 0o600, evict},
		{true, fs.ModeSymlink | 0o777, evict}, // a rename would replace the link
		{true, fs.ModeNamedPipe | 0o600, evict},
	} {
		if have := stepFor(c.exists, c.mode); have != c.want {
			t.Errorf("exists %t, %v: have step %d, want %d", c.exists, c.mode, have, c.want)
		}
	}
}

func TestStandFirm(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  func(path string) error
		renamed bool
	}{
		{"nothing", func(string) error { return nil }, false},
		{"a file", func(path string) error { return os.WriteFile(path, nil, 0o600) }, true},
		{"a link to a directory", func(path string) error { return os.Symlink(".", path) }, true},
		{"a link to nowhere", func(path string) error { return os.Symlink("nowhere", path) }, true},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }, false},
		{"a directory with something in it", func(path string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			own := filepath.Join(dir, OwnFile)
			if err := c.before(own + CiliumSuffix); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(own, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, want := range []bool{c.renamed, false} { // the second time there is nothing to do
				if renamed, err := standFirm(dir); renamed != want || err != nil {
					t.Errorf("have %t, %v, want %t", renamed, err, want)
				}
				if err := os.Rename(own, own+CiliumSuffix); err == nil {
					t.Fatal("the file can be renamed")
				}
			}
		})
	}
	if _, err := standFirm(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("no error without the conf dir")
	}
}

// TestNoticesOfCilium: that it may rename others is said where it is, and only
// if Braid's own file is safe from it.
func TestNoticesOfCilium(t *testing.T) {
	network := func(file, kind string) File {
		return File{Name: file, Data: []byte(`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "x"}, {"type": "` + kind + `"}]}`)}
	}
	for _, c := range []struct {
		name                string
		files               []File
		guarded             bool
		warnings, otherwise int
	}{
		{"Flannel", []File{network("10-flannel.conflist", "portmap")}, true, 0, 0},
		{"Cilium", []File{network("05-cilium.conflist", "cilium-cni")}, true, 0, 1},
		{"Cilium in a chain behind another network", []File{network("05-a.conflist", "x"), network("20-b.conflist", "cilium-cni")}, true, 0, 1},
		{"nothing in its way", []File{network("05-cilium.conflist", "cilium-cni")}, false, 0, 0},
		{"it has renamed", []File{network("05-cilium.conflist", "cilium-cni"), {Name: "a.conf.cilium_bak"}, {Name: "b.json.cilium_bak"}}, true, 2, 1},
		{"it was here once", []File{network("10-flannel.conflist", "portmap"), {Name: "a.conf.cilium_bak"}}, true, 1, 0},
	} {
		warnings, otherwise := 0, 0
		for _, n := range Choose(c.files, State{}).notices(c.guarded) {
			if n.Warning {
				warnings++
			} else {
				otherwise++
			}
			if len(n.Text) > 1000 {
				t.Errorf("%s: %d bytes are too many for an event: %s", c.name, len(n.Text), n.Text)
			}
		}
		if warnings != c.warnings || otherwise != c.otherwise {
			t.Errorf("%s: have %d warnings and %d others, want %d and %d", c.name, warnings, otherwise, c.warnings, c.otherwise)
		}
	}
}

func TestAWarningIsRepeatedAsLongAsItHolds(t *testing.T) {
	var told []Notice
	w, err := New(Config{Dir: t.TempDir(), StateDir: t.TempDir(), Place: Place{Socket: "/s"}, Notify: func(n Notice) { told = append(told, n) }})
	if err != nil {
		t.Fatal(err)
	}
	warning, other := Notice{Warning: true, Text: "w"}, Notice{Text: "o"}
	start := time.Now()
	for _, c := range []struct {
		after   time.Duration
		notices []Notice
		want    int // of all that were told by then
	}{
		{0, []Notice{warning, other}, 2},
		{time.Second, []Notice{warning, other}, 2},
		{2 * time.Second, nil, 2},
		{3 * time.Second, []Notice{warning, other}, 2}, // again so soon
		{noticeEvery, []Notice{warning, other}, 3},
		{noticeEvery + time.Second, []Notice{warning, other}, 3},
		{3 * noticeEvery, nil, 3},
		{3*noticeEvery + time.Second, []Notice{warning, other}, 5},
	} {
		w.notify(c.notices, start.Add(c.after))
		if len(told) != c.want {
			t.Errorf("after %v: told %d times, want %d", c.after, len(told), c.want)
		}
	}
	w.notify(nil, start.Add(9*noticeEvery))
	if len(w.notified) != 0 {
		t.Errorf("what is over is kept: %v", w.notified)
	}
}
