package manifest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// text lists what was read, one object per line.
func (s *Set) text() string {
	var b strings.Builder
	for _, w := range s.Workloads {
		fmt.Fprintf(&b, "%s %s/%s", w.Kind, w.Pod.Namespace, w.Pod.Name)
		if w.HostNetwork {
			b.WriteString(" on the host")
		}
		if a := w.Pod.Annotations["net"]; a != "" {
			fmt.Fprintf(&b, " net=%s", a)
		}
		b.WriteString("\n")
	}
	return b.String()
}

const all = `# only a comment
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {net: pod}}
spec: {containers: [{name: c}]}
---
kind: Pod
metadata: {generateName: b-, namespace: other}
spec: {hostNetwork: true}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {net: not this one}}
spec: {replicas: 3, template: {metadata: {annotations: {net: template}}, spec: {containers: [{name: c}]}}}
---
kind: StatefulSet
metadata: {name: db}
spec: {template: {spec: {containers: [{name: c}]}}}
---
kind: DaemonSet
metadata: {name: agent}
spec: {template: {spec: {hostNetwork: true, containers: [{name: c}]}}}
---
kind: Job
metadata: {name: once}
spec: {template: {spec: {containers: [{name: c}]}}}
---
kind: CronJob
metadata: {name: often}
spec: {jobTemplate: {spec: {template: {metadata: {annotations: {net: deep}}, spec: {containers: [{name: c}]}}}}}
---
kind: PodTemplate
metadata: {name: mould}
template: {metadata: {annotations: {net: top}}, spec: {containers: [{name: c}]}}
---
kind: Rollout
metadata: {name: custom}
spec: {template: {spec: {containers: [{name: c}]}}}
---
kind: SecretTemplate
metadata: {name: something-else}
spec: {template: "text"}
---
kind: ConfigMap
metadata: {name: c}
data: {a: b}
---
kind: List
items:
- kind: Pod
  metadata: {name: listed}
- kind: NetworkAttachmentDefinition
  metadata: {name: net, annotations: {k8s.v1.cni.cncf.io/resourceName: vendor.example/nic}}
  spec: {config: '{"type": "x"}'}
`

const want = `Pod ns/a net=pod
Pod other/b- on the host
Deployment ns/web net=template
StatefulSet ns/db
DaemonSet ns/agent on the host
Job ns/once
CronJob ns/often net=deep
PodTemplate ns/mould net=top
Rollout ns/custom
Pod ns/listed
`

func TestEverythingThatBecomesPodsIsRead(t *testing.T) {
	s := &Set{Namespace: "ns"}
	if err := s.Read([]byte(all)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, s.text()); diff != "" {
		t.Error(diff)
	}
	if d, ok := s.Definition("ns", "net"); !ok || d.Config != `{"type": "x"}` || d.ResourceName != "vendor.example/nic" {
		t.Errorf("definition %+v, %v", d, ok)
	}
	if _, ok := s.Definition("default", "net"); ok {
		t.Error("a definition of another namespace was found")
	}
}

func TestJSONOneAfterTheOther(t *testing.T) {
	s := &Set{}
	if err := s.Read([]byte(" {\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"}}\n{\"kind\":\"PodList\",\"items\":[{\"kind\":\"Pod\",\"metadata\":{\"name\":\"b\"}}]}")); err != nil {
		t.Fatal(err)
	}
	if have := s.text(); have != "Pod default/a\nPod default/b\n" {
		t.Error(have)
	}
}

func TestBrokenManifestsAreNamed(t *testing.T) {
	for text, words := range map[string]string{
		"kind: Pod\n---\nkind: [":                                                    "document 2",
		`{"kind": "Pod"} {"kind"`:                                                    "document 2",
		"kind: Pod\nmetadata: {name: a, annotations: {net: 7}}":                      "document 1",
		"kind: NetworkAttachmentDefinition\nmetadata: {name: x}\nspec: {config: {}}": "spec.config is no string",
		"kind: List\nitems: [{kind: Pod}, {kind: Pod, metadata: 7}]":                 "item 2",
		"kind: Pod\nmetadata: {name: x}\nspec: {hostNetwork: perhaps}":               "pod x",
		"just text": "document 1",
	} {
		if err := (&Set{}).Read([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, which lacks %q", text, err, words)
		}
	}
}

func TestDirectoriesAreReadInOrder(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"b.yaml": "kind: Pod\nmetadata: {name: b}", "a.yml": "kind: Pod\nmetadata: {name: a}", "c.json": `{"kind":"Pod","metadata":{"name":"c"}}`,
		"README.md": "kind: [", "run.sh": "{", "sub/d.yaml": "kind: Pod\nmetadata: {name: d}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for recursive, want := range map[bool]string{false: "abc", true: "abcd"} {
		s := &Set{}
		if err := s.ReadPath(dir, recursive); err != nil {
			t.Fatal(err)
		}
		var have string
		for _, w := range s.Workloads {
			have += w.Pod.Name
		}
		if have != want {
			t.Errorf("recursive %v: %s, want %s", recursive, have, want)
		}
	}
	if err := (&Set{}).ReadPath(filepath.Join(dir, "run.sh"), false); err == nil || !strings.Contains(err.Error(), "run.sh") {
		t.Errorf("a broken file: %v", err)
	}
	if err := (&Set{}).ReadPath(filepath.Join(dir, "none"), false); err == nil {
		t.Error("a missing file was read")
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(all))
	f.Add([]byte(`{"kind":"List","items":[null,{"kind":"Pod","spec":null}]}`))
	f.Add([]byte("---\n---\nkind: CronJob\nspec: {jobTemplate: null}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &Set{}
		if err := s.Read(data); err == nil && len(s.text()) > 0 != (len(s.Workloads) > 0) {
			t.Error("workloads without text")
		}
	})
}
