package deploy_test

import (
	"bytes"
	"os"
	"reflect"
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

// What is uninstalled is what was installed, on the same nodes.
func TestUninstallReachesWhatWasInstalled(t *testing.T) {
	type daemonSet struct {
		Metadata struct{ Namespace string }
		Spec     struct {
			Template struct {
				Spec struct {
					HostNetwork    bool
					NodeSelector   map[string]string
					Tolerations    []map[string]string
					InitContainers []container
					Containers     []container
					Volumes        []struct {
						HostPath struct{ Path string }
					}
				}
			}
		}
	}
	read := func(name string) (ds daemonSet) {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &ds); err != nil {
			t.Fatal(err)
		}
		return ds
	}
	install, uninstall := read("daemonset.yaml"), read("uninstall/daemonset.yaml")
	a, b := install.Spec.Template.Spec, uninstall.Spec.Template.Spec
	if install.Metadata != uninstall.Metadata || !reflect.DeepEqual(a.NodeSelector, b.NodeSelector) || !reflect.DeepEqual(a.Tolerations, b.Tolerations) || !b.HostNetwork {
		t.Error("it does not run where Braid does")
	}
	paths := map[string]bool{}
	for _, v := range b.Volumes {
		paths[v.HostPath.Path] = true
	}
	for _, path := range []string{"/etc/cni/net.d", "/opt/cni/bin", "/run/braid", "/var/lib/braid", "/var/lib/cni/networks"} {
		if !paths[path] {
			t.Errorf("it does not see %s", path)
		}
	}
	if len(b.InitContainers) != 1 || len(b.Containers) != 1 {
		t.Fatal("one container is to do it, and one to stay")
	}
	for _, c := range []container{b.InitContainers[0], b.Containers[0]} {
		if c.Image != deploy.Image || len(c.Command) < 2 || c.Command[1] != "uninstall" || len(c.VolumeMounts) != len(b.Volumes) || len(c.SecurityContext) == 0 {
			t.Errorf("container %+v", c)
		}
	}
}

type container struct {
	Image           string
	Command         []string
	VolumeMounts    []map[string]any
	SecurityContext map[string]any
}
