package v1alpha1

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
)

// TestGeneratedFilesAreThoseOfTheTypes: who changes a type runs make generate.
func TestGeneratedFilesAreThoseOfTheTypes(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("go", "tool", "controller-gen", "crd", "object", "paths=.",
		"output:crd:dir="+dir, "output:object:dir="+dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, place := range map[string]string{
		"braid.dev_migrations.yaml":     "../../deploy/crds",
		"braid.dev_nodemigrations.yaml": "../../deploy/crds",
		"zz_generated.deepcopy.go":      ".",
	} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(place, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s/%s is not what the types say (%v): run make generate", place, name, err)
		}
	}
}

// TestWhatIsNotSetIsNotWritten: an API server refuses null for a list, a time
// or an object, and takes an empty value of an enumeration for a wrong one.
func TestWhatIsNotSetIsNotWritten(t *testing.T) {
	for _, tc := range []struct {
		object runtime.Object
		want   string
	}{
		{&NodeMigration{}, `{"metadata":{},"spec":{}}`},
		{&NodeMigration{Status: NodeMigrationStatus{Message: "x", Probe: &ProbeReport{Results: []ProbeResult{{From: Source, To: "dns"}}}}},
			`{"metadata":{},"spec":{},"status":{"message":"x","onSource":0,"onTarget":0,"probe":{"round":0,"results":[{"from":"Source","to":"dns"}]}}}`},
		{&Migration{Spec: MigrationSpec{From: Network{PodCIDRs: []string{"10.0.0.0/16"}}, To: Network{PodCIDRs: []string{"10.1.0.0/16"}}}},
			`{"metadata":{},"spec":{"from":{"profile":"","confFile":"","podCIDRs":["10.0.0.0/16"]},"to":{"profile":"","confFile":"","podCIDRs":["10.1.0.0/16"]},"strategy":{"canary":0},"probes":{}}}`},
		{&Migration{Status: MigrationStatus{Nodes: []NodeProgress{{Name: "n", On: Source, Want: Target, Step: StepPending}}, Rounds: []RoundSummary{{Round: 1, When: "before"}}}},
			`"status":{"nodes":[{"name":"n","on":"Source","want":"Target","step":"Pending"}],"rounds":[{"round":1,"when":"before","asked":0,"failed":0}]}`},
	} {
		text, err := json.Marshal(tc.object)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), tc.want) {
			t.Errorf("got\n%s, want in it\n%s", text, tc.want)
		}
	}
}
