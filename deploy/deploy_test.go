package deploy_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/deploy"
)

// What the command line applies is all that kustomize would.
func TestMigrateHasEveryResourceOfTheKustomization(t *testing.T) {
	text, err := deploy.Migrate("example.com/braid:1")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte(deploy.Image)) || !bytes.Contains(text, []byte("image: example.com/braid:1")) {
		t.Error("the image is another")
	}
	raw, err := os.ReadFile("migrate/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var k struct{ Resources []string }
	if err := yaml.Unmarshal(raw, &k); err != nil {
		t.Fatal(err)
	}
	for _, name := range k.Resources {
		if strings.HasPrefix(name, "../") {
			continue // named one by one
		}
		want, err := os.ReadFile("migrate/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, bytes.ReplaceAll(want, []byte(deploy.Image), []byte("example.com/braid:1"))) {
			t.Errorf("%s is missing", name)
		}
	}
}
