package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
)

func TestFactsAreThoseOfTheHostsTree(t *testing.T) {
	root := t.TempDir()
	const conf = `{"name":"cbr0","plugins":[{"type":"flannel"}]}`
	dir := filepath.Join(root, "etc/cni/net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-flannel.conflist"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := braidd(t.Context(), "facts", "--host-root", root, "--node-name", "n1", "--runtime-endpoint", filepath.Join(root, "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var n facts.Node
	if err := json.Unmarshal([]byte(out), &n); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if want := []facts.File{{Name: "10-flannel.conflist", Text: conf}}; n.Name != "n1" || !reflect.DeepEqual(n.CNI.Files, want) {
		t.Errorf("%s", out)
	}
	if problems := strings.Join(n.Problems, "\n"); !strings.Contains(problems, "none.sock") {
		t.Errorf("a runtime that does not answer is no problem: %s", problems)
	}
}

func TestPeersHaveANodeAnAddressAndAPort(t *testing.T) {
	for _, text := range []string{"", "n2", "n2=", "=192.0.2.1:8473", "n2=192.0.2.1", "n2=host:8473"} {
		if _, err := braidd(t.Context(), "facts", "--peer", text); err == nil || !strings.Contains(err.Error(), "NODE=ADDRESS:PORT") {
			t.Errorf("%q: %v", text, err)
		}
	}
	p, err := parsePeer("n2=[2001:db8::1]:8473")
	if err != nil || p.Node != "n2" || p.Addr.String() != "2001:db8::1" || len(p.Ports) != 1 || p.Ports[0] != 8473 {
		t.Errorf("%+v, %v", p, err)
	}
}
