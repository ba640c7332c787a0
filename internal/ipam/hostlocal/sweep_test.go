package hostlocal_test

import (
	"os"
	"path/filepath"
	"testing"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/hostlocal"
)

func TestSweepReleasesWhatOneContainerHoldsInAllNetworks(t *testing.T) {
	n := newNode(t)
	add := func(id, text string) {
		t.Helper()
		if _, err := n.plugin.Add(t.Context(), n.request(id, text, "")); err != nil {
			t.Fatal(err)
		}
	}
	one := `{"ipam":{"type":"host-local","subnet":"10.3.0.0/24"},"name":"one"}`
	two := `{"ipam":{"type":"host-local","subnet":"10.4.0.0/24"},"name":"two"}`
	add("gone", one)
	add("gone", two)
	add("gone-not", one)
	// A record of the reference plugin before it knew interfaces, and what is
	// no network.
	for name, text := range map[string]string{"two/10.4.0.9": "gone", "two/10.4.0.10": "other", "a-file": "gone"} {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := n.plugin.(ipam.Sweeper).Sweep(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{
		"one/10.3.0.2": false, "two/10.4.0.2": false, "two/10.4.0.9": false,
		"one/10.3.0.3": true, "two/10.4.0.10": true, "a-file": true,
	} {
		if _, err := os.Stat(filepath.Join(n.dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %t, want %t", name, err == nil, want)
		}
	}
	nowhere := hostlocal.New(hostlocal.Config{DataDir: filepath.Join(n.dir, "nowhere")})
	if err := nowhere.(ipam.Sweeper).Sweep(t.Context(), "gone"); err != nil {
		t.Errorf("without a directory: %v", err)
	}
	if err := nowhere.(ipam.Sweeper).Sweep(t.Context(), ""); err == nil {
		t.Error("everybody's addresses were swept")
	}
}
