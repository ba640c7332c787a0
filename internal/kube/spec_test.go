package kube

import (
	"os"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	sigsyaml "sigs.k8s.io/yaml"

	"braid.dev/braid/internal/plan"
)

// TestSpec01DefinitionsAreThoseOfTheSpecification holds the first numbered
// requirement of the NPWG multi-network specification 1.3.
func TestSpec01DefinitionsAreThoseOfTheSpecification(t *testing.T) {
	text, err := os.ReadFile(deployDir + "/crds/network-attachment-definitions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd unstructured.Unstructured
	if err := sigsyaml.Unmarshal(text, &crd.Object); err != nil {
		t.Fatal(err)
	}
	at := func(path ...string) string {
		value, _, _ := unstructured.NestedString(crd.Object, path...)
		return value
	}
	have := []string{at("metadata", "name"), at("spec", "group"), at("spec", "scope"), at("spec", "names", "kind")}
	want := []string{definitionResource.Resource + "." + definitionResource.Group, "k8s.cni.cncf.io", "Namespaced", "NetworkAttachmentDefinition"}
	if !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
	if short, _, _ := unstructured.NestedStringSlice(crd.Object, "spec", "names", "shortNames"); !slices.Equal(short, []string{"net-attach-def"}) {
		t.Errorf("short names %q", short)
	}
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if len(versions) != 1 {
		t.Fatalf("versions %v", versions)
	}
	version := versions[0].(map[string]any)
	spec, _, _ := unstructured.NestedMap(version, "schema", "openAPIV3Schema", "properties", "spec")
	kind, _, _ := unstructured.NestedString(spec, "properties", "config", "type")
	if version["name"] != "v1" || version["served"] != true || kind != "string" || spec["required"] != nil {
		t.Errorf("version %v, spec.config is %q, required %v", version["name"], kind, spec["required"])
	}
}

func TestSpec01DefinitionsAreReadWithTheirResource(t *testing.T) {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"config": `{"type":"sriov"}`}}}
	o.SetNamespace("ns")
	o.SetName("vf")
	o.SetAnnotations(map[string]string{"k8s.v1.cni.cncf.io/resourceName": "vendor.example/nic"})
	_, d := reduceDefinition(o)
	if d != (plan.Definition{Namespace: "ns", Name: "vf", Config: `{"type":"sriov"}`, ResourceName: "vendor.example/nic"}) {
		t.Errorf("%+v", d)
	}
	o = &unstructured.Unstructured{Object: map[string]any{}}
	if _, d := reduceDefinition(o); d != (plan.Definition{}) {
		t.Errorf("an empty one is read as %+v", d)
	}
}
