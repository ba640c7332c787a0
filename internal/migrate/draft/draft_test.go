package draft_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate/draft"
	"braid.dev/braid/internal/migrate/preflight"
)

// cluster is one of the clusters that preflight's cases begin with.
func cluster(t *testing.T, name string) preflight.Cluster {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("../preflight/testdata/bases", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range archive.Files {
		if f.Name != "objects.yaml" && !strings.HasPrefix(f.Name, "facts/") {
			continue
		}
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := preflight.ReadDir(dir)
	if err != nil || len(c.Problems) > 0 {
		t.Fatal(err, c.Problems)
	}
	return c
}

// flannel are the manifests of the lab's Flannel.
func flannel(t *testing.T) draft.Wish {
	t.Helper()
	text, err := os.ReadFile("../../../examples/migrate/flannel/kube-flannel.yaml")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := kube.ParseManifests(text)
	if err != nil {
		t.Fatal(err)
	}
	w := draft.Wish{To: "flannel"}
	for _, o := range objects {
		w.Manifests = append(w.Manifests, *o)
	}
	return w
}

func TestTheTargetIsWhatItsManifestsInstall(t *testing.T) {
	d, err := draft.Make(cluster(t, "bridge-flannel"), flannel(t))
	if err != nil {
		t.Fatal(err)
	}
	m := d.Migration
	if m.Name != "bridge-to-flannel" || m.Spec.From.Profile != "bridge" || m.Spec.To.ConfFile != "10-flannel.conflist" || m.Spec.Goal != v1alpha1.Target {
		t.Errorf("%+v", m)
	}
	if !slices.Equal(m.Spec.To.PodCIDRs, []string{"10.244.0.0/16"}) || !strings.Contains(m.Spec.To.Conf, `"flannel"`) || d.To.Tunnel == nil || d.To.Tunnel.Port != 8472 {
		t.Errorf("to %+v, tunnel %+v", m.Spec.To, d.To.Tunnel)
	}
	if len(d.Changes) > 0 {
		t.Errorf("the lab's manifests are latent, and yet: %v", d.Changes)
	}
	if d.Forth.From != "bridge" || d.Back.From != "flannel" {
		t.Errorf("forth from %s, back from %s", d.Forth.From, d.Back.From)
	}
}

func TestWhatMakesNoSenseIsSaid(t *testing.T) {
	c := cluster(t, "bridge-flannel")
	for want, wish := range map[string]draft.Wish{
		`no profile "nonsense": there are flannel`: {To: "nonsense"},
		`no profile "x"`: {From: "x", To: "flannel"},
		`cilium is not in the cluster: give the manifests that install it`: {To: "cilium"},
		`the manifests do not install cilium`:                              {To: "cilium", Manifests: flannel(t).Manifests},
	} {
		if _, err := draft.Make(c, wish); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("have %v, want %q", err, want)
		}
	}
}

func TestThePlanNamesEveryPodOnce(t *testing.T) {
	c := cluster(t, "bridge-flannel")
	d, err := draft.Make(c, flannel(t))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, n := range d.Plan(c, "").Nodes {
		for _, p := range n.Pods {
			seen[p.Pod]++
		}
	}
	for _, p := range c.Pods {
		name := p.Namespace + "/" + p.Name
		if want := map[bool]int{true: 0, false: 1}[p.Spec.HostNetwork]; seen[name] != want {
			t.Errorf("%s is planned %d times, not %d", name, seen[name], want)
		}
	}
}
