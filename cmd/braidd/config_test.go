package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	read := func(text string) (config, error) {
		path := filepath.Join(t.TempDir(), "braidd.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return readConfig(path)
	}
	c, err := read("pluginTimeout: 3s\nparallel: 4\n")
	if err != nil || time.Duration(c.PluginTimeout) != 3*time.Second || c.Parallel != 4 || c.RequestTimeout != defaults().RequestTimeout {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := read("confDirNetworks: 2\n"); err != nil || c.ConfDirNetworks != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := read("waitForNetworkStatus: true\n"); err != nil || !c.WaitForNetworkStatus || defaults().WaitForNetworkStatus {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := read(""); err != nil || !reflect.DeepEqual(c, defaults()) {
		t.Errorf("an empty file: %+v, %v", c, err)
	}
	if c := defaults().isolation(); c.On || !slices.Equal(c.Global, []string{"default"}) {
		t.Errorf("isolation without a setting: %+v", c)
	}
	if c, err := read("namespaceIsolation: true\nglobalNamespaces: [shared, kube-system]\n"); err != nil || !c.isolation().On || !slices.Equal(c.isolation().Global, []string{"shared", "kube-system"}) {
		t.Errorf("isolation: %+v, %v", c, err)
	}
	if c, err := read("namespaceIsolation: true\nglobalNamespaces: []\n"); err != nil || len(c.isolation().Global) != 0 {
		t.Errorf("isolation of every namespace: %+v, %v", c, err)
	}
	for _, text := range []string{"pluginTimeuot: 3s", "pluginTimeout: 3", "pluginTimeout: -3s", "parallel: 0", "parallel: many", "confDirNetworks: 0", "confDirNetworks: 1000", "waitForNetworkStatus: maybe", "globalNamespaces: [Shared]", "globalNamespaces: \"a,b\"", "- list", "{"} {
		if c, err := read(text); err == nil || !strings.Contains(err.Error(), "braidd.yaml") {
			t.Errorf("%q became %+v, %v", text, c, err)
		}
	}
	if _, err := readConfig("/nonexistent/braidd.yaml"); err == nil {
		t.Error("a missing file was accepted")
	}
}

func TestInstallReplacesAProgramThatRuns(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "opt/cni/bin")
	source := filepath.Join(from, "braid-cni")
	for _, text := range []string{"first", "second"} {
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, ".braid-cni.tmp"), []byte("left by a crash"), 0o600); err == nil && text == "first" {
			t.Fatal("the directory exists already")
		}
		if err := install(source, to); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(to, "braid-cni"))
		info, statErr := os.Stat(filepath.Join(to, "braid-cni"))
		if err != nil || statErr != nil || string(got) != text || info.Mode().Perm() != 0o755 {
			t.Errorf("installed %q %v, %v %v", got, info, err, statErr)
		}
	}
	entries, err := os.ReadDir(to)
	if err != nil || len(entries) != 1 {
		t.Errorf("in the directory: %v, %v", entries, err)
	}
	if err := install(filepath.Join(from, "nosuch"), to); err == nil {
		t.Error("a missing program was installed")
	}
}
