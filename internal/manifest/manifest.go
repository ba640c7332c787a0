// Package manifest reads Kubernetes manifests as far as networks are
// concerned: the pods, also those that a workload would make, and the
// NetworkAttachmentDefinitions.
package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/plan"
)

// definitionKind is the kind of a network (NPWG specification 1.3, section 3).
const definitionKind = "NetworkAttachmentDefinition"

// defaultNamespace is where an object without a namespace is applied, unless
// the user says otherwise.
const defaultNamespace = "default"

// Workload is something that becomes pods: a Pod itself, or an object with a
// pod template, whose pods all get the same networks.
type Workload struct {
	// Kind is that of the object, such as Deployment. A Pod is one.
	Kind string
	// Pod has the name of the object, as those of its pods are not known yet.
	Pod plan.Pod
	// HostNetwork says that the pods use the node's network and get none.
	HostNetwork bool
}

// Set is what was read, in the order in which it was read.
type Set struct {
	// Namespace is for objects without one. The zero value is "default".
	Namespace string
	Workloads []Workload

	definitions map[[2]string]plan.Definition
}

// Definition looks a NetworkAttachmentDefinition up. The last one of a name
// counts, as when all are applied.
func (s *Set) Definition(namespace, name string) (plan.Definition, bool) {
	d, ok := s.definitions[[2]string{namespace, name}]
	return d, ok
}

// ReadPath reads a file, the files *.yaml, *.yml and *.json of a directory, or
// with recursive also those of the directories in it. Errors name the file.
func (s *Set) ReadPath(path string, recursive bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return s.readFile(path)
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(path, e.Name())
		switch {
		case e.IsDir() && recursive:
			err = s.ReadPath(name, recursive)
		case !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
			err = s.readFile(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) readFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := s.Read(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Read reads a file's content: documents in YAML separated by lines of three
// dashes, or JSON objects one after the other. Objects of other kinds are
// passed over. Errors name the document, counted from 1.
func (s *Set) Read(data []byte) error {
	next := yamlDocuments(data)
	if text := bytes.TrimSpace(data); len(text) > 0 && text[0] == '{' {
		next = jsonDocuments(text)
	}
	for i := 1; ; i++ {
		doc, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = s.add(doc)
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", i, err)
		}
	}
}

// yamlDocuments returns one document after the other, as JSON.
func yamlDocuments(data []byte) func() ([]byte, error) {
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	return func() ([]byte, error) {
		doc, err := r.Read()
		if err != nil {
			return nil, err
		}
		return yaml.YAMLToJSON(doc)
	}
}

func jsonDocuments(data []byte) func() ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	return func() ([]byte, error) {
		var doc json.RawMessage
		err := dec.Decode(&doc)
		return doc, err
	}
}

// object is the part of a manifest that matters here.
type object struct {
	Kind     string          `json:"kind"`
	Metadata metadata        `json:"metadata"`
	Spec     json.RawMessage `json:"spec"`
	// Template is where a PodTemplate has it.
	Template *template         `json:"template"`
	Items    []json.RawMessage `json:"items"`
}

type metadata struct {
	Name         string            `json:"name"`
	GenerateName string            `json:"generateName"`
	Namespace    string            `json:"namespace"`
	Annotations  map[string]string `json:"annotations"`
}

type template struct {
	Metadata metadata `json:"metadata"`
	Spec     podSpec  `json:"spec"`
}

type podSpec struct {
	HostNetwork bool              `json:"hostNetwork"`
	Containers  []json.RawMessage `json:"containers"`
}

// workloadSpec is the spec of everything with a pod template: Deployment,
// StatefulSet, DaemonSet, ReplicaSet, Job, and custom resources like them; or
// of a CronJob, where it is one level deeper.
type workloadSpec struct {
	Template    *template `json:"template"`
	JobTemplate struct {
		Spec struct {
			Template *template `json:"template"`
		} `json:"spec"`
	} `json:"jobTemplate"`
}

func (s *Set) add(doc []byte) error {
	if text := bytes.TrimSpace(doc); len(text) == 0 || string(text) == "null" {
		return nil // only comments
	}
	var o object
	if err := json.Unmarshal(doc, &o); err != nil {
		return err
	}
	switch {
	case o.Kind == "List" || strings.HasSuffix(o.Kind, "List") && o.Items != nil:
		for i, item := range o.Items {
			if err := s.add(item); err != nil {
				return fmt.Errorf("item %d: %w", i+1, err)
			}
		}
		return nil
	case o.Kind == definitionKind:
		return s.addDefinition(o)
	case o.Kind == "Pod":
		var spec podSpec
		if err := unmarshal(o.Spec, &spec); err != nil {
			return fmt.Errorf("pod %s: %w", o.Metadata.Name, err)
		}
		s.addWorkload(o, template{Metadata: o.Metadata, Spec: spec})
		return nil
	case o.Template != nil:
		s.addWorkload(o, *o.Template)
		return nil
	}
	var spec workloadSpec
	if err := unmarshal(o.Spec, &spec); err != nil {
		return nil // something else that has a template of its own kind
	}
	for _, t := range []*template{spec.Template, spec.JobTemplate.Spec.Template} {
		if t != nil && len(t.Spec.Containers) > 0 {
			s.addWorkload(o, *t)
		}
	}
	return nil
}

// unmarshal leaves to as it is when there is nothing to read.
func unmarshal(data json.RawMessage, to any) error {
	if len(data) == 0 {
		return nil
	}
	return json.Unmarshal(data, to)
}

func (s *Set) addDefinition(o object) error {
	var spec struct {
		Config string `json:"config"`
	}
	if err := unmarshal(o.Spec, &spec); err != nil {
		return fmt.Errorf("%s %s: spec.config is no string (in YAML it needs quotes or a | before it): %w", o.Kind, o.Metadata.Name, err)
	}
	if s.definitions == nil {
		s.definitions = map[[2]string]plan.Definition{}
	}
	namespace := s.namespaceOf(o.Metadata)
	s.definitions[[2]string{namespace, o.Metadata.Name}] = plan.Definition{
		Namespace: namespace, Name: o.Metadata.Name, Config: spec.Config,
		ResourceName: o.Metadata.Annotations[plan.ResourceAnnotation],
	}
	return nil
}

func (s *Set) addWorkload(o object, t template) {
	name := o.Metadata.Name
	if name == "" {
		name = o.Metadata.GenerateName
	}
	s.Workloads = append(s.Workloads, Workload{
		Kind:        o.Kind,
		Pod:         plan.Pod{Namespace: s.namespaceOf(o.Metadata), Name: name, Annotations: t.Metadata.Annotations},
		HostNetwork: t.Spec.HostNetwork,
	})
}

func (s *Set) namespaceOf(m metadata) string {
	switch {
	case m.Namespace != "":
		return m.Namespace
	case s.Namespace != "":
		return s.Namespace
	}
	return defaultNamespace
}
