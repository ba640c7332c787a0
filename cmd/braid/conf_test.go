package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// confDir is a conf dir with the given files, names and contents in turn.
func confDir(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runBraid runs braid and returns its output and exit code.
func runBraid(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out strings.Builder
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	var code exitCode
	switch {
	case errors.As(err, &code):
		return out.String(), int(code)
	case err != nil:
		return out.String() + err.Error(), 1
	}
	return out.String(), 0
}

const aNetwork = `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp","ipam":{"type":"host-local"}}]}`

func TestConfExplainTellsPeople(t *testing.T) {
	dir := confDir(t, "10-a.conflist", aNetwork, "20-b.conflist", "{")
	out, code := runBraid(t, "conf", "explain", "--dir", dir)
	want := `eth0  a  10-a.conflist
-        20-b.conflist  beyond max_conf_num 1: never read

warning dormant-file: 20-b.conflist is broken: unexpected end of JSON input; it lies beyond max_conf_num 1 and does no harm until that is raised or a file before it goes away
    Repair the file, or move it out of the directory, before you change anything.
`
	if diff := cmp.Diff(want, out); diff != "" || code != 0 {
		t.Errorf("exit code %d, -want +got:\n%s", code, diff)
	}
}

// The JSON form is a contract: the keys are there also when they are empty.
func TestConfExplainTellsScripts(t *testing.T) {
	out, code := runBraid(t, "conf", "explain", "--dir", confDir(t, "10-a.conflist", aNetwork), "--runtime", "containerd-1.6", "-o", "json")
	var have any
	if err := json.Unmarshal([]byte(out), &have); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"networks": []any{map[string]any{"file": "10-a.conflist", "name": "a", "ifName": "eth0"}},
		"ignored":  []any{}, "findings": []any{}, "error": "",
	}
	if diff := cmp.Diff(want, have); diff != "" || code != 0 {
		t.Errorf("exit code %d, -want +got:\n%s", code, diff)
	}
}

func TestConfExplainEndsWith2WithoutANetwork(t *testing.T) {
	broken := confDir(t, "10-a.conflist", aNetwork, "20-b.conflist", "{")
	for name, args := range map[string][]string{
		"empty":              {"--dir", t.TempDir()},
		"absent, for a tool": {"--dir", "/nonexistent/net.d", "-o", "json"},
		"broken":             {"--dir", broken, "--max-conf-num", "2"},
		"broken, for a tool": {"--dir", broken, "--max-conf-num", "0", "-o", "json"},
	} {
		out, code := runBraid(t, append([]string{"conf", "explain"}, args...)...)
		if code != 2 || out == "" || strings.Contains(out, `"error": ""`) {
			t.Errorf("%s: exit code %d\n%s", name, code, out)
		}
	}
	if out, code := runBraid(t, "conf", "explain", "--dir", broken, "--max-conf-num", "2", "--runtime", "cri-o"); code != 0 {
		t.Errorf("CRI-O skips a broken file, exit code %d\n%s", code, out)
	}
}

func TestConfExplainRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--runtime docker", "containerd-1.6, containerd-1.7"},
		{"-o yaml", "there is only json"},
		{"--cri-endpoint tcp://127.0.0.1:1", "unix:///run/containerd"},
		{"--cri-endpoint unix:///nonexistent.sock", "/nonexistent.sock"},
		{"--dir /nonexistent/net.d", "/nonexistent/net.d"},
	} {
		out, code := runBraid(t, append([]string{"conf", "explain"}, strings.Fields(c.args)...)...)
		if code != 1 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d, %s", c.args, code, out)
		}
	}
}

// The page shows what the command says about the two networks of its example.
func TestConfExplainPageIsTrue(t *testing.T) {
	dir := confDir(t,
		"10-flannel.conflist", `{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}}]}`,
		"20-cilium.conflist", `{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni"}]}`)
	out, code := runBraid(t, "conf", "explain", "--max-conf-num", "2", "--dir", dir)
	page, err := os.ReadFile("../../docs/conf-explain.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(page), "$ braid conf explain --max-conf-num 2\n")
	shown, rest, found := strings.Cut(shown, "…")
	if !found || rest == "" || !strings.HasPrefix(out, shown) || code != 0 {
		t.Errorf("exit code %d, the command says\n%s\nthe page\n%s", code, out, shown)
	}
}
