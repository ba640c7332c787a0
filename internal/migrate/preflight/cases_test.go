package preflight_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/migrate/preflight"
)

var update = flag.Bool("update", false, "write the reports of the cases")

// world is a cluster with the two sides, as it is written down in testdata: a
// base, and cases that are small differences from a base.
//
//	base: NAME      what it is a difference from
//	fires: CODES    findings that it must have
//	quiet: CODES    findings that it must not have, though it nearly does
//	both            the way back is checked too
//
// objects.yaml and the facts are merged into those of the base: maps by key, null
// removes, a key with + in front appends to a list; facts/all.yaml is for all
// nodes. Below delete are objects that are no more. from.yaml, to.yaml and
// options.yaml are merged likewise; only/from.yaml stands for itself.
type world struct {
	archive *txtar.Archive
	base    string
	fires   []preflight.Code
	quiet   []preflight.Code

	objects  []map[string]any
	facts    map[string]any
	from, to map[string]any
	options  map[string]any
	report   string
}

func readWorld(t testing.TB, path string) *world {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{archive: archive, facts: map[string]any{}, from: map[string]any{}, to: map[string]any{}, options: map[string]any{}}
	for l := range strings.Lines(string(archive.Comment)) {
		key, value, _ := strings.Cut(strings.TrimSpace(l), ": ")
		switch key {
		case "base":
			w.base = value
		case "fires":
			w.fires = codes(value)
		case "quiet":
			w.quiet = codes(value)
		}
	}
	if w.base != "" {
		b := base(t, w.base).world
		w.objects, w.facts, w.from, w.to, w.options = b.objects, maps.Clone(b.facts), b.from, b.to, b.options
	}
	for _, f := range archive.Files {
		w.overlay(t, f)
	}
	return w
}

func codes(s string) []preflight.Code {
	var list []preflight.Code
	for _, f := range strings.Fields(s) {
		list = append(list, preflight.Code(f))
	}
	return list
}

func (w *world) overlay(t testing.TB, f txtar.File) {
	t.Helper()
	switch name, isFacts := strings.CutPrefix(f.Name, "facts/"); {
	case isFacts && name == "all.yaml":
		for node := range w.facts {
			w.facts[node] = merge(w.facts[node], parse(t, f))
		}
	case isFacts:
		node := strings.TrimSuffix(name, ".yaml")
		if w.facts[node] = merge(w.facts[node], parse(t, f)); w.facts[node] == nil {
			delete(w.facts, node)
		}
	case f.Name == "objects.yaml":
		for _, doc := range strings.Split(string(f.Data), "\n---\n") {
			w.object(t, parse(t, txtar.File{Name: f.Name, Data: []byte(doc)}).(map[string]any))
		}
	case f.Name == "delete":
		for _, id := range strings.Fields(string(f.Data)) {
			before := len(w.objects)
			w.objects = slices.DeleteFunc(slices.Clone(w.objects), func(o map[string]any) bool { return idOf(o) == id })
			if len(w.objects) == before {
				t.Fatalf("there is no %s to delete", id)
			}
		}
	case f.Name == "from.yaml":
		w.from = merge(w.from, parse(t, f)).(map[string]any)
	case f.Name == "to.yaml":
		w.to = merge(w.to, parse(t, f)).(map[string]any)
	case f.Name == "options.yaml":
		w.options = merge(w.options, parse(t, f)).(map[string]any)
	case f.Name == "only/from.yaml":
		w.from = parse(t, f).(map[string]any)
	case f.Name == "only/to.yaml":
		w.to = parse(t, f).(map[string]any)
	case f.Name == "report.txt":
		w.report = string(f.Data)
	default:
		t.Fatalf("what is %s?", f.Name)
	}
}

func (w *world) object(t testing.TB, o map[string]any) {
	t.Helper()
	w.objects = slices.Clone(w.objects)
	for i, have := range w.objects {
		if idOf(have) == idOf(o) {
			w.objects[i] = merge(have, o).(map[string]any)
			return
		}
	}
	w.objects = append(w.objects, merge(nil, o).(map[string]any))
}

func idOf(o map[string]any) string {
	meta, _ := o["metadata"].(map[string]any)
	if meta["namespace"] == nil {
		return fmt.Sprintf("%v/%v", o["kind"], meta["name"])
	}
	return fmt.Sprintf("%v/%v/%v", o["kind"], meta["namespace"], meta["name"])
}

func parse(t testing.TB, f txtar.File) any {
	t.Helper()
	var v any
	if err := yaml.UnmarshalStrict(f.Data, &v); err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
	return v
}

// merge is a JSON merge patch that can append to lists.
func merge(a, b any) any {
	patch, ok := b.(map[string]any)
	if !ok {
		return b
	}
	have, _ := a.(map[string]any)
	out := maps.Clone(have)
	if out == nil {
		out = map[string]any{}
	}
	for key, v := range patch {
		name, add := strings.CutPrefix(key, "+")
		switch {
		case add:
			list, _ := out[name].([]any)
			out[name] = slices.Concat(list, v.([]any))
		case v == nil:
			delete(out, key)
		default:
			out[key] = merge(out[key], v)
		}
	}
	return out
}

// dump writes the world as somebody would dump a cluster.
func (w *world) dump(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "facts"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, v any) {
		data, err := json.Marshal(v) // which is YAML
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("all.yaml", map[string]any{"apiVersion": "v1", "kind": "List", "items": w.objects})
	for node, f := range w.facts {
		write("facts/"+node+".yaml", f)
	}
	return dir
}

func into(t testing.TB, v any, out any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		t.Fatal(err)
	}
}

// check reads the world's dump, as a person would have it checked.
func (w *world) check(t testing.TB) preflight.Report {
	t.Helper()
	c, err := preflight.ReadDir(w.dump(t))
	if err != nil {
		t.Fatal(err)
	}
	var from, to preflight.Side
	var o preflight.Options
	into(t, w.from, &from)
	into(t, w.to, &to)
	into(t, w.options, &o)
	return preflight.Check(c, from, to, o)
}

// based is a base that was read once.
type based struct {
	world  *world
	report func() preflight.Report
}

var bases sync.Map

func base(t testing.TB, name string) based {
	t.Helper()
	if b, ok := bases.Load(name); ok {
		return b.(based)
	}
	w := readWorld(t, filepath.Join("testdata", "bases", name+".txtar"))
	b := based{w, sync.OnceValue(func() preflight.Report { return w.check(t) })}
	bases.Store(name, b)
	return b
}

// blocks are the findings as text, each by itself.
func blocks(t *testing.T, r preflight.Report) []string {
	t.Helper()
	var list []string
	for _, f := range r.Findings {
		one := text(t, preflight.Report{Findings: []preflight.Finding{f}})
		one = strings.TrimSuffix(one, "\n")
		list = append(list, one[:strings.LastIndexByte(one, '\n')+1])
	}
	return list
}

func text(t *testing.T, r preflight.Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.Fprint(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// difference is what a case's report has that its base's has not.
func difference(t *testing.T, base, r preflight.Report) string {
	t.Helper()
	before, now := blocks(t, base), blocks(t, r)
	var out strings.Builder
	for _, b := range before {
		if !slices.Contains(now, b) {
			first, _, _ := strings.Cut(b, "\n")
			fmt.Fprintf(&out, "- %s\n", first)
		}
	}
	for _, b := range now {
		if !slices.Contains(before, b) {
			out.WriteString("+ " + b)
		}
	}
	was, is := clients(t, base), clients(t, r)
	if was != is {
		out.WriteString(is)
	}
	if out.Len() == 0 {
		return "nothing else than the base\n"
	}
	return out.String()
}

func clients(t *testing.T, r preflight.Report) string {
	t.Helper()
	r.Findings = nil
	s := strings.TrimSuffix(text(t, r), "\n")
	return s[:strings.LastIndexByte(s, '\n')+1]
}

func worlds(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no worlds in %s: %v", dir, err)
	}
	return paths
}

func (w *world) compare(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		w.archive.Files = slices.DeleteFunc(w.archive.Files, func(f txtar.File) bool { return f.Name == "report.txt" })
		w.archive.Files = append(w.archive.Files, txtar.File{Name: "report.txt", Data: []byte(got)})
		if err := os.WriteFile(path, txtar.Format(w.archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(w.report, got); diff != "" {
		t.Errorf("the report is another one:\n%s", diff)
	}
}

// A base is a cluster that can be migrated: its whole report is written down.
func TestBases(t *testing.T) {
	for _, path := range worlds(t, "bases") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			w := readWorld(t, path)
			r := w.check(t)
			if !r.OK {
				t.Errorf("a base has no blockers, this one has %d", r.Blockers)
			}
			w.compare(t, path, text(t, r))
		})
	}
}

func TestCases(t *testing.T) {
	fires, quiet := map[preflight.Code]int{}, map[preflight.Code]int{}
	severities := map[string]bool{}
	paths := worlds(t, "cases")
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			w := readWorld(t, path)
			if w.base == "" {
				t.Fatal("a case has a base")
			}
			r, before := w.check(t), base(t, w.base).report()
			for _, f := range r.Findings {
				rule := preflight.Rules[f.Code]
				severities[string(f.Code)+" "+string(f.Severity)] = true
				if f.Severity != rule.Severity && f.Severity != rule.Also && !f.Accepted {
					t.Errorf("%s is a %s", f.Code, f.Severity)
				}
			}
			for _, code := range w.fires {
				fires[code]++
				if !r.Has(code) {
					t.Errorf("%s should have fired", code)
				}
			}
			for _, code := range w.quiet {
				quiet[code]++
				if r.Has(code) {
					t.Errorf("%s should have been quiet", code)
				}
			}
			if len(w.fires)+len(w.quiet) == 0 {
				t.Error("a case says which codes it is about")
			}
			w.compare(t, path, difference(t, before, r))
		})
	}
	if len(paths) < 60 {
		t.Errorf("%d cases are too few", len(paths))
	}
	for _, code := range preflight.Codes() {
		if fires[code] == 0 {
			t.Errorf("no case has %s fire", code)
		}
		for _, s := range []preflight.Severity{preflight.Rules[code].Severity, preflight.Rules[code].Also} {
			if s != "" && !severities[string(code)+" "+string(s)] {
				t.Errorf("no case has %s as a %s", code, s)
			}
		}
		if quiet[code] == 0 {
			t.Errorf("no case has %s nearly fire and stay quiet", code)
		}
	}
}

// A dump that is written again says the same, of every object in the cases.
func TestDumpOfEverything(t *testing.T) {
	w := &world{facts: map[string]any{}, options: map[string]any{}}
	for _, path := range append(worlds(t, "bases"), worlds(t, "cases")...) {
		c := readWorld(t, path)
		for _, o := range c.objects {
			w.object(t, o)
		}
		for n, f := range c.facts {
			w.facts[n] = merge(w.facts[n], f)
		}
		w.from, w.to = c.from, c.to
	}
	c, err := preflight.ReadDir(w.dump(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := preflight.WriteDir(dir, c); err != nil {
		t.Fatal(err)
	}
	again, err := preflight.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var from, to preflight.Side
	into(t, w.from, &from)
	into(t, w.to, &to)
	report := preflight.Check(c, from, to, preflight.Options{})
	if len(report.Findings) < 15 {
		t.Errorf("only %d findings of everything", len(report.Findings))
	}
	if diff := cmp.Diff(report, preflight.Check(again, from, to, preflight.Options{})); diff != "" {
		t.Errorf("the report changes when the cluster is written and read again:\n%s", diff)
	}
}
