package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"braid.dev/braid/internal/migrate"
)

// dumped writes one of the clusters of preflight's cases as a dump.
func dumped(t *testing.T, name string) string {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("../../internal/migrate/preflight/testdata/bases", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range archive.Files {
		if f.Name != "objects.yaml" && !strings.HasPrefix(f.Name, "facts/") {
			continue
		}
		path := filepath.Join(dir, f.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// braid runs the command line and returns what it wrote.
func braid(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := root()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

const flannelManifests = "../../examples/migrate/flannel"

func TestMigratePreflightJudgesADump(t *testing.T) {
	dir := dumped(t, "bridge-flannel")
	out, err := braid(t, "migrate", "preflight", "--dir", dir, "--to", "flannel", "--manifests", flannelManifests, "-o", "json")
	var v verdict
	if jsonErr := json.Unmarshal([]byte(out), &v); jsonErr != nil {
		t.Fatalf("%v: %s", jsonErr, out)
	}
	if v.Forth.From != "bridge" || v.Rollback.From != "flannel" || v.Manifests == nil {
		t.Errorf("%+v", v)
	}
	if (err == nil) != v.OK {
		t.Errorf("ok %v, and the command ends with %v", v.OK, err)
	}
	text, _ := braid(t, "migrate", "preflight", "--dir", dir, "--to", "flannel", "--manifests", flannelManifests)
	for _, want := range []string{"From bridge to flannel", "Back from flannel to bridge"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestMigrateManifestsThatAreNotLatentAreABlocker(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(flannelManifests, "kube-flannel.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// As upstream's, whose init container writes the configuration.
	marker := "      initContainers:\n"
	if !bytes.Contains(text, []byte(marker)) {
		t.Fatal("the example has another shape")
	}
	text = bytes.Replace(text, []byte(marker), []byte(marker+`        - name: install-cni
          image: flannel
          command: [cp]
          args: [-f, /etc/kube-flannel/cni-conf.json, /etc/cni/net.d/10-flannel.conflist]
          volumeMounts: [{name: cni, mountPath: /etc/cni/net.d}]
`), 1)
	file := filepath.Join(t.TempDir(), "upstream.yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := braid(t, "migrate", "preflight", "--dir", dumped(t, "bridge-flannel"), "--to", "flannel", "--manifests", file)
	if !errors.Is(err, exitCode(2)) || !strings.Contains(out, "blocker  manifests: DaemonSet/kube-flannel/kube-flannel-ds") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMigratePlanIsPrinted(t *testing.T) {
	args := []string{"migrate", "plan", "--dir", dumped(t, "bridge-flannel"), "--to", "flannel", "--manifests", flannelManifests}
	out, err := braid(t, append(args, "-o", "json")...)
	var p migrate.Plan
	if err != nil || json.Unmarshal([]byte(out), &p) != nil || len(p.Nodes) == 0 || len(p.Nodes[0].Steps) == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err = braid(t, args...); err != nil || !strings.Contains(out, "1. "+p.Nodes[0].Name) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestMigrateBadInputIsRefused(t *testing.T) {
	dir := dumped(t, "bridge-flannel")
	for want, args := range map[string][]string{
		`required flag(s) "to" not set`:         {"migrate", "preflight", "--dir", dir},
		`no profile "x"`:                        {"migrate", "preflight", "--dir", dir, "--to", "x"},
		`--pods "Delete"`:                       {"migrate", "plan", "--dir", dir, "--to", "flannel", "--pods", "Delete"},
		"--batch must be 1 or more":             {"migrate", "plan", "--dir", dir, "--to", "flannel", "--batch", "0"},
		"no such file or directory":             {"migrate", "plan", "--dir", dir, "--to", "flannel", "--manifests", "/nonexistent"},
		"there are no manifests":                {"migrate", "plan", "--dir", dir, "--to", "flannel", "--manifests", t.TempDir()},
		"output \"yaml\": there is only json":   {"migrate", "plan", "--dir", dir, "--to", "flannel", "--manifests", flannelManifests, "-o", "yaml"},
		"/nonexistent: no such file":            {"migrate", "preflight", "--dir", "/nonexistent", "--to", "flannel"},
		"/nonexistent/kubeconfig: no such file": {"migrate", "status", "--kubeconfig", "/nonexistent/kubeconfig"},
	} {
		if out, err := braid(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: have %v, want %q\n%s", args, err, want, out)
		}
	}
}
