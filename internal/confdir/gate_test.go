package confdir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAGateSortsBeforeBraidAndIsNoDefaultNetwork(t *testing.T) {
	if GateFile >= OwnFile {
		t.Fatalf("%s does not sort before %s", GateFile, OwnFile)
	}
	state := Choose([]File{
		{Name: GateFile, Data: []byte(`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"braid-cni","switch":{}}]}`)},
		{Name: "10-n.conflist", Data: []byte(`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}`)},
	}, State{})
	if state.Default == nil || state.Default.File != "10-n.conflist" {
		t.Errorf("default network %+v", state.Default)
	}
	if len(state.Notes) != 1 || !strings.Contains(state.Notes[0], "migration") {
		t.Errorf("notes %q", state.Notes)
	}
}

func TestAnyFileCanBeKeptFromCilium(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, GateFile)
	if err := Replace(dir, GateFile, []byte("{}"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, file+CiliumSuffix); err != nil {
		t.Fatal(err)
	}
	if agent, to, remedy, ok := Renamed(dir, GateFile); !ok || agent != "Cilium" || to != GateFile+CiliumSuffix || remedy == "" {
		t.Errorf("%q renamed it to %q, %v; do: %q", agent, to, ok, remedy)
	}
	if renamed, err := StandFirm(dir, GateFile); err != nil || !renamed {
		t.Errorf("renamed before: %v, %v", renamed, err)
	}
	if err := Replace(dir, GateFile, []byte("{}"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, file+CiliumSuffix); err == nil {
		t.Error("it can be renamed nevertheless")
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	for range 2 { // there may be nothing to undo
		if err := RemoveGuard(dir, GateFile); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", slices.Collect(slices.Values(entries)), err)
	}
}
