package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// only fails the test when the directory holds anything but name.
func only(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("%s holds %v, want only %s", dir, entries, name)
	}
}

func TestInstallsAndReplaces(t *testing.T) {
	src, dir := filepath.Join(t.TempDir(), "tool"), t.TempDir()
	target := filepath.Join(dir, "tool")
	for _, content := range []string{"first", "second", strings.Repeat("x", 200<<10), strings.Repeat("x", 200<<10) + "y"} {
		write(t, src, content, 0o600)
		if err := Program(src, dir); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(target)
		if err != nil || string(got) != content {
			t.Fatalf("installed %d bytes, %v, want %d", len(got), err, len(content))
		}
		if info, _ := os.Stat(target); info.Mode() != 0o755 {
			t.Errorf("mode is %v, want 0755", info.Mode())
		}
		only(t, dir, "tool")
	}
}

func TestInstallingAgainChangesNothing(t *testing.T) {
	src, dir := filepath.Join(t.TempDir(), "tool"), t.TempDir()
	target := filepath.Join(dir, "tool")
	write(t, src, "content", 0o755)
	if err := Program(src, dir); err != nil {
		t.Fatal(err)
	}
	before := inode(t, target)
	if err := Program(src, dir); err != nil {
		t.Fatal(err)
	}
	if inode(t, target) != before {
		t.Error("an equal program was replaced")
	}
	// Equal content that nobody may run is not installed.
	if err := os.Chmod(target, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Program(src, dir); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(target); info.Mode() != 0o755 {
		t.Errorf("mode is %v, want 0755", info.Mode())
	}
}

// TestReplacesAProgramThatRuns: writing into the file would be refused with
// "text file busy".
func TestReplacesAProgramThatRuns(t *testing.T) {
	dir := t.TempDir()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "sleep")
	write(t, target, string(old), 0o755)
	running := exec.Command(target, "600")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		running.Process.Kill()
		running.Wait() // it was killed
	}()

	src := filepath.Join(t.TempDir(), "sleep")
	write(t, src, "new", 0o755)
	if err := Program(src, dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "new" {
		t.Errorf("installed %d bytes, want the new program", len(got))
	}
	if err := running.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the running program is gone: %v", err)
	}
	only(t, dir, "sleep")
}

func TestRefusalsLeaveNothingBehind(t *testing.T) {
	src := filepath.Join(t.TempDir(), "tool")
	write(t, src, "content", 0o755)

	if err := Program("/nonexistent/tool", t.TempDir()); err == nil || !strings.Contains(err.Error(), "install /nonexistent/tool as ") {
		t.Errorf("missing source: got %v", err)
	}
	if err := Program(src, "/nonexistent"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing directory: got %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Program(src, dir); err == nil || !strings.Contains(err.Error(), "the target is a directory") {
		t.Errorf("directory in the way: got %v", err)
	}
	only(t, dir, "tool")
}
