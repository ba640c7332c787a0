package preflight

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/migrate/facts"
)

// maxFile bounds how much of a dump is read at once: more than a cluster of
// 5,000 nodes has of one kind.
const maxFile = 256 << 20

// dump is what a directory holds beside objects and facts.
type dump struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Version    string   `json:"version,omitempty"`
	Problems   []string `json:"problems,omitempty"`
}

const (
	dumpAPI  = "braid.dev/v1alpha1"
	dumpKind = "ClusterDump"
)

// ReadDir reads a directory of dumps: manifests in YAML or JSON, as kubectl get
// -o yaml prints them, in files of any name, and the facts of nodes in
// facts/NODE.json. What it cannot read is a sentence in Problems; it fails only
// when there is no such directory, or nothing in it.
func ReadDir(dir string) (Cluster, error) {
	c := Cluster{Facts: map[string]facts.Node{}}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		switch ext := strings.ToLower(filepath.Ext(path)); {
		case err != nil && rel == ".":
			return err
		case err != nil:
			c.problem("%s: %v", rel, err)
		case !d.Type().IsRegular(), ext != ".yaml" && ext != ".yml" && ext != ".json":
		default:
			files++
			c.readFile(rel, path)
		}
		return nil
	})
	if err != nil {
		return Cluster{}, fmt.Errorf("read dump: %w", err)
	}
	if files == 0 {
		return Cluster{}, fmt.Errorf("read dump: %s holds no .yaml and no .json files", dir)
	}
	return c.sorted(), nil
}

func (c *Cluster) problem(format string, args ...any) {
	c.Problems = append(c.Problems, fmt.Sprintf(format, args...))
}

func (c *Cluster) readFile(rel, path string) {
	f, err := os.Open(path)
	if err != nil {
		c.problem("%s: %v", rel, err)
		return
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		c.problem("%s: %v", rel, err)
	case len(data) > maxFile:
		c.problem("%s is larger than %d MiB", rel, maxFile>>20)
	case filepath.Base(filepath.Dir(path)) == "facts":
		c.addFacts(rel, data)
	default:
		c.AddFile(rel, data)
	}
}

func (c *Cluster) addFacts(rel string, data []byte) {
	var n facts.Node
	read := yaml.Unmarshal
	if json.Valid(data) {
		read = func(data []byte, v any, _ ...yaml.JSONOpt) error { return json.Unmarshal(data, v) }
	}
	if err := read(data, &n); err != nil {
		c.problem("%s: facts: %v", rel, err)
		return
	}
	if n.Name == "" {
		n.Name = strings.TrimSuffix(filepath.Base(rel), filepath.Ext(rel))
	}
	if c.Facts == nil {
		c.Facts = map[string]facts.Node{}
	}
	c.Facts[n.Name] = n
}

// AddFile adds the objects of a file of manifests, YAML documents or JSON, by
// Add. What cannot be read is a problem that begins with name; the rest counts.
func (c *Cluster) AddFile(name string, data []byte) {
	if json.Valid(data) { // as most of a large dump is, and much faster to read
		c.addDocument(name, 1, data)
		return
	}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for i := 1; ; i++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			c.problem("%s: document %d: %v", name, i, err)
			return
		}
		raw, err := yaml.YAMLToJSON(doc)
		if err != nil {
			c.problem("%s: document %d: %v", name, i, err)
			continue
		}
		c.addDocument(name, i, raw)
	}
}

// addDocument adds what a document of a file holds, as JSON.
func (c *Cluster) addDocument(name string, i int, raw []byte) {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return
	}
	var d dump
	if json.Unmarshal(raw, &d) == nil && d.APIVersion == dumpAPI && d.Kind == dumpKind {
		c.Version = d.Version
		c.Problems = append(c.Problems, d.Problems...)
		return
	}
	if err := c.Add(raw); err != nil {
		c.problem("%s: document %d: %v", name, i, err)
	}
}

// WriteDir writes what ReadDir reads: a file for every kind, and facts. Of
// objects it leaves out who manages which field.
func WriteDir(dir string, c Cluster) error {
	lists := map[string][]any{}
	var kinds []string
	var bad error
	c.sorted().each(func(apiVersion, kind string, obj object) {
		raw, err := withKind(obj, apiVersion, kind)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s %s/%s: %w", kind, obj.GetNamespace(), obj.GetName(), err))
			return
		}
		file := fileOf(apiVersion, kind)
		if lists[file] == nil {
			kinds = append(kinds, file)
		}
		lists[file] = append(lists[file], raw)
	})
	if bad != nil {
		return fmt.Errorf("write dump: %w", bad)
	}
	if err := os.MkdirAll(filepath.Join(dir, "facts"), 0o755); err != nil {
		return fmt.Errorf("write dump: %w", err)
	}
	if err := writeYAML(filepath.Join(dir, "dump.yaml"), dump{dumpAPI, dumpKind, c.Version, c.Problems}); err != nil {
		return err
	}
	for _, file := range kinds {
		list := map[string]any{"apiVersion": "v1", "kind": "List", "items": lists[file]}
		if err := writeYAML(filepath.Join(dir, file), list); err != nil {
			return err
		}
	}
	return writeFacts(filepath.Join(dir, "facts"), c.Facts)
}

// fileOf is nodes-like: the kind in small letters, and its group when it is not
// one of those that Kubernetes brings.
func fileOf(apiVersion, kind string) string {
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
				return r
			}
			return '-'
		}, strings.ToLower(s))
	}
	group, _, _ := strings.Cut(apiVersion, "/")
	if strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io") || group == "k8s.cni.cncf.io" {
		return clean(kind) + "." + clean(group) + ".yaml"
	}
	return clean(kind) + ".yaml"
}

func withKind(obj object, apiVersion, kind string) (map[string]any, error) {
	raw, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	m["apiVersion"], m["kind"] = apiVersion, kind
	if meta, ok := m["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
	}
	return m, nil
}

func writeFacts(dir string, nodes map[string]facts.Node) error {
	for name, n := range nodes {
		if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return fmt.Errorf("write dump: node name %q", name)
		}
		data, err := json.MarshalIndent(n, "", "  ")
		if err != nil {
			return fmt.Errorf("write dump: facts of %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".json"), append(data, '\n'), 0o644); err != nil {
			return fmt.Errorf("write dump: %w", err)
		}
	}
	return nil
}

func writeYAML(path string, v any) error {
	data, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("write dump: %s: %w", filepath.Base(path), err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("write dump: %w", err)
	}
	return nil
}
