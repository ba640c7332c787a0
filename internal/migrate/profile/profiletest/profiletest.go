// Package profiletest has clusters and nodes for the tests of profiles.
package profiletest

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
)

// Cluster reads manifests.
func Cluster(t testing.TB, manifests string, nodes ...facts.Node) preflight.Cluster {
	t.Helper()
	var c preflight.Cluster
	for _, doc := range documents(manifests) {
		raw, err := yaml.YAMLToJSON([]byte(doc))
		if err == nil {
			err = c.Add(raw)
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
	c.Facts = map[string]facts.Node{}
	for _, n := range nodes {
		c.Facts[n.Name] = n
	}
	return c
}

// Objects reads manifests as objects of any kind.
func Objects(t testing.TB, manifests string) []unstructured.Unstructured {
	t.Helper()
	var out []unstructured.Unstructured
	for _, doc := range documents(manifests) {
		var o unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

func documents(manifests string) []string {
	all := strings.Split("\n"+manifests, "\n---")
	return slices.DeleteFunc(all, func(doc string) bool { return strings.TrimSpace(doc) == "" })
}

// WithConf is a node with one configuration.
func WithConf(name, file, text string, links ...facts.Link) facts.Node {
	return facts.Node{Name: name, Links: links, CNI: facts.CNI{ConfDir: profile.DefaultConfDir, Files: []facts.File{{Name: file, Text: text}}}}
}

// Prefixes parses prefixes.
func Prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// View is a node that a profile looks at.
type View struct {
	Link    []facts.Link
	Route   []facts.Route
	File    map[string]string
	Program []string
	// Status are answers by URL; Asked is what was sent with the last question.
	Status map[string]int
	Asked  map[string]string
}

// Links implements profile.NodeView.
func (v *View) Links() ([]facts.Link, error) { return v.Link, nil }

// Routes implements profile.NodeView.
func (v *View) Routes() ([]facts.Route, error) { return v.Route, nil }

// ReadFile implements profile.NodeView.
func (v *View) ReadFile(path string) ([]byte, error) {
	text, ok := v.File[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

// Plugin implements profile.NodeView.
func (v *View) Plugin(name string) bool { return slices.Contains(v.Program, name) }

// Get implements profile.NodeView.
func (v *View) Get(_ context.Context, url string, header map[string]string) (int, error) {
	v.Asked = header
	status, ok := v.Status[url]
	if !ok {
		return 0, fmt.Errorf("%s: connection refused", url)
	}
	return status, nil
}
