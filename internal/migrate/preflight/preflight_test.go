package preflight_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/migrate/preflight"
)

// The page holds the same table as the code.
func TestEveryCodeIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/migrate-preflight.md")
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `") && strings.Count(line, " | ") == 4 {
			have = append(have, strings.TrimSpace(line))
		}
	}
	for _, code := range preflight.Codes() {
		r := preflight.Rules[code]
		severity := string(r.Severity)
		if r.Also != "" {
			severity += ", " + string(r.Also)
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s | %s |", code, severity, r.Condition, r.Meaning, r.Fix))
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("docs/migrate-preflight.md holds another table than the code (-code +page):\n%s", diff)
	}
}

func TestCodesAreComplete(t *testing.T) {
	listed := preflight.Codes()
	for code, rule := range preflight.Rules {
		if !slices.Contains(listed, code) {
			t.Errorf("%s is not in Codes", code)
		}
		if rule.Meaning == "" || rule.Condition == "" {
			t.Errorf("%s says nothing", code)
		}
		if rule.Fix == "" && rule.Severity != preflight.Fact {
			t.Errorf("%s has no fix", code)
		}
	}
	if len(listed) != len(preflight.Rules) {
		t.Errorf("%d codes are listed, and there are %d rules", len(listed), len(preflight.Rules))
	}
}

// Every condition of the list has a code, and every code a condition.
func TestEveryConditionHasACode(t *testing.T) {
	have := map[string]bool{}
	for _, r := range preflight.Rules {
		for _, c := range strings.Split(r.Condition, ", ") {
			have[c] = true
		}
	}
	var want []string
	for i := 1; i <= 29; i++ {
		want = append(want, fmt.Sprintf("B3.%d", i))
	}
	want = append(want, "P1", "P2", "P3", "P4")
	for _, c := range want {
		if !have[c] {
			t.Errorf("no code is about %s", c)
		}
		delete(have, c)
	}
	if len(have) > 0 {
		t.Errorf("codes are about conditions that there are not: %v", have)
	}
}

// The way back from a target that is not even there yet has nothing in its way
// either, where the way forth has not.
func TestBothWays(t *testing.T) {
	for _, path := range worlds(t, "bases") {
		w := readWorld(t, path)
		c, err := preflight.ReadDir(w.dump(t))
		if err != nil {
			t.Fatal(err)
		}
		var from, to preflight.Side
		into(t, w.from, &from)
		into(t, w.to, &to)
		forth, back := preflight.Both(c, from, to, preflight.Options{})
		if !forth.OK || !back.OK {
			t.Errorf("%s: forth %t, back %t:\n%s", path, forth.OK, back.OK, text(t, back))
		}
		if back.From != to.Profile || back.To != from.Profile {
			t.Errorf("the way back is from %s to %s", back.From, back.To)
		}
	}
}

// What is printed as JSON is a contract.
func TestReportAsJSON(t *testing.T) {
	r := readWorld(t, "testdata/cases/pdb-blocks.txtar").check(t)
	r.Clients = r.Clients[:1]
	r.Findings = r.Findings[:1]
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "from": "flannel",
  "to": "cilium",
  "ok": false,
  "blockers": 1,
  "warnings": 0,
  "facts": 2,
  "findings": [
    {
      "code": "pdb-blocks",
      "severity": "blocker",
      "condition": "B3.18",
      "subjects": [
        "PodDisruptionBudget default/testapp"
      ],
      "message": "a budget permits no disruption: its pods cannot be evicted",
      "evidence": [
        "default/testapp: 3 healthy, 2 desired, 0 disruptions allowed",
        "default/testapp-0",
        "default/testapp-1",
        "default/testapp-2"
      ],
      "fix": "Add a replica, or let pods restart in place: --pods Restart."
    }
  ],
  "clients": [
    {
      "from": "old",
      "to": "old",
      "where": "same node",
      "by": "direct",
      "saw": "own",
      "count": 0
    }
  ]
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	empty, err := json.Marshal(preflight.Check(preflight.Cluster{}, preflight.Side{}, preflight.Side{}, preflight.Options{}))
	if err != nil || strings.Contains(string(empty), "null") {
		t.Errorf("a report of nothing has nulls: %s %v", empty, err)
	}
}

// Check changes nothing that it was given.
func TestCheckIsPure(t *testing.T) {
	w := readWorld(t, "testdata/bases/flannel-cilium.txtar")
	c, err := preflight.ReadDir(w.dump(t))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(c.Pods)
	slices.Reverse(c.Nodes)
	before, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var from, to preflight.Side
	into(t, w.from, &from)
	into(t, w.to, &to)
	a := preflight.Check(c, from, to, preflight.Options{})
	after, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("Check changed the cluster")
	}
	slices.Reverse(c.Pods)
	if diff := cmp.Diff(a, preflight.Check(c, from, to, preflight.Options{})); diff != "" {
		t.Errorf("the order of objects makes a difference:\n%s", diff)
	}
}

// What cannot be read is said, and the rest counts.
func TestReadDirSaysWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{
		"nodes.json":   `{"apiVersion":"v1","kind":"NodeList","items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}`,
		"mixed.yaml":   "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: x}\n---\n{\n---\nkind: Pod\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: q, namespace: x}\n",
		"list.yaml":    "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: s}}, 7, {apiVersion: v1, kind: Pod, metadata: {name: 5}}, {apiVersion: v1, kind: Secret, metadata: {name: x}}]\n",
		"notes.txt":    "not read",
		"facts/a.yaml": "kernel: 6.1\nlinks: [{name: eth0, mtu: 1500}]\n",
		"facts/b.json": "{",
		"twice.yaml":   "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: x, labels: {second: time}}\n",
		"null.yaml":    "---\n---\nnull\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "endless.yaml")); err != nil {
		t.Fatal(err)
	}
	c, err := preflight.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Nodes) != 2 || len(c.Pods) != 2 || len(c.Services) != 1 || c.Pods[0].Labels["second"] != "" {
		t.Errorf("%d nodes, %d pods, %d services", len(c.Nodes), len(c.Pods), len(c.Services))
	}
	if f := c.Facts["a"]; f.Name != "a" || len(f.Links) != 1 {
		t.Errorf("facts: %+v", c.Facts)
	}
	problems := strings.Join(c.Problems, "\n")
	for _, want := range []string{"mixed.yaml: document 2", "mixed.yaml: document 3", "list.yaml", "item 1", "item 2", "secrets are not wanted", "facts/b.json"} {
		if !strings.Contains(problems, want) {
			t.Errorf("nothing is said of %s:\n%s", want, problems)
		}
	}
	if len(c.Problems) != 4 {
		t.Errorf("%d problems:\n%s", len(c.Problems), problems)
	}
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := preflight.ReadDir(dir); err == nil {
			t.Errorf("there is nothing in %s", dir)
		}
	}
}

func TestWriteDirRefusesNodesThatAreNoFiles(t *testing.T) {
	c, err := preflight.ReadDir(readWorld(t, "testdata/bases/single-node.txtar").dump(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "", "a/b", ".."} {
		c.Facts[name] = c.Facts["node1"]
		if err := preflight.WriteDir(t.TempDir(), c); err == nil {
			t.Errorf("a node %q was written", name)
		}
		delete(c.Facts, name)
	}
}

// FuzzAddFile: whatever is in a file, reading it and judging what was read ends
// with a report.
func FuzzAddFile(f *testing.F) {
	paths, err := filepath.Glob("testdata/cases/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		_, objects, _ := strings.Cut(string(data), "-- objects.yaml --\n")
		objects, _, _ = strings.Cut(objects, "\n-- ")
		f.Add([]byte(objects))
	}
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"items":[]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c preflight.Cluster
		c.AddFile("file", data)
		from := preflight.Side{Profile: "flannel", Policies: []string{"NetworkPolicy"}}
		var report strings.Builder
		if err := preflight.Check(c, from, preflight.Side{Profile: "cilium"}, preflight.Options{}).Fprint(&report); err != nil || report.Len() == 0 {
			t.Errorf("no report: %v", err)
		}
	})
}
