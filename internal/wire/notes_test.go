package wire

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func del(id string) Request {
	return Request{
		Command: "DEL", ContainerID: id, NetNS: "/run/netns/x", IfName: "eth0", Args: "A=<b>;C=d", Path: "/opt/cni/bin",
		Stdin: []byte(`{"cniVersion":"1.1.0","name":"braid"}`), Timeout: time.Minute,
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// noted are the notes of a directory in which nothing is damaged.
func noted(t *testing.T, dir string) []Note {
	t.Helper()
	notes, damaged, err := ReadNotes(dir)
	if err != nil || len(damaged) > 0 {
		t.Fatalf("%v, %v", damaged, err)
	}
	return notes
}

func TestNotesAreReadAsTheyWereWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "notes")
	if got := noted(t, dir); len(got) > 0 {
		t.Errorf("notes of a directory that does not exist: %v", got)
	}
	var want []Note
	for _, id := range []string{"a", "b.1_2-3", strings.Repeat("f", 64)} {
		n, err := WriteNote(dir, del(id), openFile(t, "/proc/self/ns/net"))
		if err != nil {
			t.Fatal(err)
		}
		if n.Namespace.Ino == 0 || time.Since(n.Written).Abs() > time.Minute {
			t.Errorf("%+v", n)
		}
		want = append(want, n)
	}
	if got := noted(t, dir); !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v\nwant %+v", got, want)
	}
	again, err := WriteNote(dir, del("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := noted(t, dir); len(got) != 3 || got[0].Namespace != (Namespace{}) || !got[0].Written.Equal(again.Written) {
		t.Errorf("after a repeated DEL: %+v", got)
	}
	for _, n := range want {
		for range 2 { // what is gone is gone
			if err := RemoveNote(dir, n.File); err != nil {
				t.Error(err)
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestNotesAreForRootsEyesOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	n, err := WriteNote(dir, del("c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, n.File): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestNotesFollowNoLink(t *testing.T) {
	elsewhere, dir := t.TempDir(), t.TempDir()
	link := filepath.Join(dir, "notes")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteNote(link, del("c"), nil); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a directory that is a link: %v", err)
	}
	victim := filepath.Join(elsewhere, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	notes := filepath.Join(dir, "real")
	if err := os.Mkdir(notes, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(notes, NoteFile(del("c")))); err != nil {
		t.Fatal(err)
	}
	if _, damaged, err := ReadNotes(notes); err != nil || len(damaged) != 1 || !errors.Is(damaged[0], syscall.ELOOP) {
		t.Errorf("a note that is a link: %v, %v", damaged, err)
	}
	if _, err := WriteNote(notes, del("c"), nil); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "untouched" {
		t.Errorf("the file behind the link: %q, %v", data, err)
	}
	if len(noted(t, notes)) != 1 {
		t.Error("the link was not replaced")
	}
}

func TestDirectoryOfAnotherUserIsNotTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	dir := filepath.Join(t.TempDir(), "notes")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteNote(dir, del("c"), nil); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("WriteNote: %v", err)
	}
}

func TestWhatIsNoNoteIsReportedAndTheOthersAreRead(t *testing.T) {
	dir := t.TempDir()
	n, err := WriteNote(dir, del("good"), nil)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, n.File))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Replace(good, []byte("/opt/cni"), []byte("/opt/cnj"), 1)
	for name, data := range map[string][]byte{
		"empty@eth0.json":     {},
		"truncated@eth0.json": good[:len(good)/2],
		"list@eth0.json":      []byte("[]"),
		"null@eth0.json":      []byte("null"),
		"object@eth0.json":    []byte("{}"),
		"flipped@eth0.json":   flipped,
		"moved@eth0.json":     good,
		"newer@eth0.json":     bytes.Replace(good, []byte(`"format":1`), []byte(`"format":2`), 1),
		"README":              []byte("what is this?"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "dir"), 0o700), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	notes, damaged, err := ReadNotes(dir)
	if err != nil || len(notes) != 1 || notes[0].Request.ContainerID != "good" || len(damaged) != 11 {
		t.Errorf("%d notes, %d damaged, %v", len(notes), len(damaged), err)
	}
	for _, d := range damaged {
		if !strings.Contains(d.Error(), d.File) || d.Unwrap() == nil {
			t.Errorf("%v", d)
		}
		if err := RemoveNote(dir, d.File); err != nil {
			t.Error(err)
		}
	}
	if got := noted(t, dir); len(got) != 1 {
		t.Errorf("after they were removed: %v", got)
	}
}

func TestNotesOfNamesThatAreNoneAreRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	for name, change := range map[string]func(*Request){
		"ADD":                    func(r *Request) { r.Command = "ADD" },
		"no container":           func(r *Request) { r.ContainerID = "" },
		"no interface":           func(r *Request) { r.IfName = "" },
		"container is a path":    func(r *Request) { r.ContainerID = "../x" },
		"container is hidden":    func(r *Request) { r.ContainerID = ".tmp-x" },
		"interface is a path":    func(r *Request) { r.IfName = "../../x" },
		"container without end":  func(r *Request) { r.ContainerID = strings.Repeat("x", 1000) },
		"configuration too long": func(r *Request) { r.Stdin = make([]byte, MaxFrame) },
	} {
		r := del("c")
		change(&r)
		if n, err := WriteNote(dir, r, nil); err == nil {
			t.Errorf("%s: %+v", name, n)
		}
	}
	for _, file := range []string{"", ".", "..", "../x", "a/b"} {
		if err := RemoveNote(dir, file); err == nil {
			t.Errorf("RemoveNote %q succeeded", file)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

func TestNotesAreBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// A file without content counts as one, and a hole as long as it says.
	big, err := os.Create(filepath.Join(dir, "big@eth0.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	if err := big.Truncate(MaxNotesSize); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteNote(dir, del("c"), nil); !errors.Is(err, ErrTooManyNotes) {
		t.Errorf("beyond %d bytes: %v", MaxNotesSize, err)
	}
	if err := big.Truncate(0); err != nil {
		t.Fatal(err)
	}
	for i := range MaxNotes - 2 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d@eth0.json", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := WriteNote(dir, del("last"), nil); err != nil {
		t.Errorf("the last that is allowed: %v", err)
	}
	if _, err := WriteNote(dir, del("last"), nil); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if _, err := WriteNote(dir, del("c"), nil); !errors.Is(err, ErrTooManyNotes) {
		t.Errorf("beyond %d notes: %v", MaxNotes, err)
	}
}

func TestUnfinishedNotesAreOverlookedAndRemovedWhenTheyAreOld(t *testing.T) {
	dir := t.TempDir()
	old, young := filepath.Join(dir, noteTemp+"old"), filepath.Join(dir, noteTemp+"young")
	for _, path := range []string{old, young} {
		if err := os.WriteFile(path, []byte("half a no"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-2 * noteTempAge)
	if err := os.Chtimes(old, before, before); err != nil {
		t.Fatal(err)
	}
	if got := noted(t, dir); len(got) > 0 {
		t.Errorf("read %v", got)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 1 || left[0] != young {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestNotesOfOneContainerAtOnceLeaveOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := WriteNote(dir, del("c"), nil); err != nil {
				t.Error(err)
			}
			if notes, damaged, err := ReadNotes(dir); err != nil || len(damaged) > 0 || len(notes) != 1 {
				t.Errorf("%v, %v, %v", notes, damaged, err)
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func FuzzDecodeNote(f *testing.F) {
	n := Note{File: "c@eth0.json", Written: time.Unix(1700000000, 0).UTC(), Namespace: Namespace{4, 4026531840}, Request: del("c")}
	good, err := encodeNote(n)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(n.File, good)
	f.Add(n.File, good[:len(good)-1])
	f.Add("d@eth0.json", good)
	f.Add(n.File, []byte(`{"format":1,"crc32":0,"note":null}`))
	f.Add(n.File, []byte(`{"format":1,"crc32":3632233996,"note":[]}`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		n, err := decodeNote(name, data)
		if err != nil {
			return
		}
		if strings.Contains(n.File, "/") || n.File != name || n.Request.Command != "DEL" {
			t.Fatalf("accepted %+v", n)
		}
		again, err := encodeNote(n)
		if err != nil {
			t.Fatalf("%+v was read but cannot be written: %v", n, err)
		}
		if m, err := decodeNote(name, again); err != nil || !reflect.DeepEqual(m, n) {
			t.Fatalf("%+v became %+v, %v", n, m, err)
		}
	})
}
