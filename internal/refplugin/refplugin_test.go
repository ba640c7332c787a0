package refplugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestBuiltPluginTellsItsVersion(t *testing.T) {
	dir := Dir(t, "static", "host-local")
	for _, name := range []string{"static", "host-local"} {
		cmd := exec.Command(filepath.Join(dir, name))
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"supportedVersions"`) {
			t.Errorf("%s VERSION: %v\n%s", name, err, out)
		}
	}
}

func TestNamedDirectoryIsUsedAsItIs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("BRAID_REF_PLUGINS", dir)
	if err := os.WriteFile(filepath.Join(dir, "static"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := Dir(t, "static"); got != dir {
		t.Errorf("Dir = %s, want %s", got, dir)
	}
	if missing := lacks(dir, []string{"static", "bridge"}); len(missing) != 1 || missing[0] != "bridge" {
		t.Errorf("missing = %v, want [bridge]", missing)
	}
}

func TestUnknownPluginIsRefused(t *testing.T) {
	t.Setenv("BRAID_CACHE", t.TempDir())
	if _, err := build([]string{"no-such-plugin"}); err == nil {
		t.Error("built a plugin that does not exist")
	}
}

func TestOneBuildAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, count int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			unlock, err := lock(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			mu.Lock()
			inside++
			if inside != 1 {
				t.Errorf("%d holders of the lock at once", inside)
			}
			mu.Unlock()
			mu.Lock()
			inside--
			count++
			mu.Unlock()
		})
	}
	wg.Wait()
	if count != 8 {
		t.Errorf("%d of 8 got the lock", count)
	}
}
