package drivertest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
)

// Scenario is one configuration with all that is needed to run it.
type Scenario struct {
	// Name is that of the golden file.
	Name string
	// Keys are members of the configuration's JSON object.
	Keys string
	// IPAM is the configuration's ipam object, empty for none.
	IPAM string
	// Args is the CNI_ARGS.
	Args string
	// Prev is the result of the plugins before this one as JSON, empty for none.
	Prev  string
	Needs []kerneltest.Feature
	// Node and Pod prepare the node after Subject.Node, and the container.
	Node func(t testing.TB, node *netns.NS)
	Pod  func(t testing.TB, pod *netns.NS)
	// Differs says why the reference plugin builds something else, or nothing.
	Differs string
	// CheckFails says why the reference's CHECK fails here for what it built
	// itself too.
	CheckFails string
}

// IPAM objects that many scenarios use.
const (
	OneIPv4 = `{"type":"static","addresses":[{"address":"10.1.0.5/24"}]}`
	OneIPv6 = `{"type":"static","addresses":[{"address":"fd00:1::5/64"}]}`
	Dual    = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"address":"fd00:1::5/64","gateway":"fd00:1::1"}],` +
		`"routes":[{"dst":"10.99.0.0/16"},{"dst":"fd00:99::/32"}],"dns":{"nameservers":["10.1.0.53"],"domain":"ipam.test"}}`
	WithRoutes = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.254"}],` +
		`"routes":[{"dst":"10.99.0.0/16"},{"dst":"10.98.0.0/16","gw":"10.1.0.77","priority":7}]}`
	OtherTable = `{"type":"static","addresses":[{"address":"10.1.0.5/24"}],` +
		`"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1","table":100},{"dst":"10.97.0.0/16","scope":253,"table":100}]}`
)

// Conf is the scenario's configuration for a plugin of that type.
func (sc Scenario) Conf(typ string) string {
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"testnet","type":%q`, typ)
	if sc.Keys != "" {
		conf += "," + sc.Keys
	}
	if sc.IPAM != "" {
		conf += `,"ipam":` + sc.IPAM
	}
	return conf + "}"
}

func (sc Scenario) world(t testing.TB, s Subject) (*World, Pod) {
	t.Helper()
	kerneltest.Need(t, sc.Needs...)
	w := NewWorld(t, s)
	if sc.Node != nil {
		sc.Node(t, w.Node)
	}
	p := w.Pod(t)
	if sc.Pod != nil {
		sc.Pod(t, p.NS)
	}
	return w, p
}

func (sc Scenario) spec(t testing.TB, w *World, p Pod) driver.Spec {
	t.Helper()
	s := w.Spec(p, sc.Conf(w.subject.Type))
	s.Args = sc.Args
	if sc.Prev != "" {
		s.Prev = &current.Result{CNIVersion: current.ImplementedSpecVersion}
		try(t, json.Unmarshal([]byte(sc.Prev), s.Prev))
	}
	return s
}

// Golden builds every scenario and compares the world and the result with
// testdata/NAME.golden.
func Golden(t *testing.T, s Subject, scenarios []Scenario) {
	for _, sc := range scenarios {
		t.Run(sc.Name, func(t *testing.T) {
			w, p := sc.world(t, s)
			spec := w.Attached(t, sc.spec(t, w, p))
			text := sc.Conf(s.Type) + "\n" + w.Text(t, p) + "-- result\n" + Plain(t, spec.Prev)
			if err := w.Driver.Check(t.Context(), spec); err != nil {
				t.Errorf("Check of what was just built: %v", err)
			}
			try(t, w.Driver.Detach(t.Context(), spec))
			golden(t, sc.Name, text+"== after Detach\n"+w.Text(t, p))
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		try(t, os.MkdirAll("testdata", 0o755))
		try(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	try(t, err)
	if got != string(want) {
		t.Errorf("%s differs (UPDATE_GOLDEN=1 writes it anew)\n--- got\n%s--- want\n%s", path, got, want)
	}
}

// SameAsReference builds every scenario with the driver and with the reference
// plugin, compares the results and the worlds, and lets each check and remove
// what the other built.
func SameAsReference(t *testing.T, s Subject, scenarios []Scenario) {
	for _, sc := range scenarios {
		t.Run(sc.Name, func(t *testing.T) {
			if sc.Differs != "" {
				t.Skip("different on purpose: " + sc.Differs)
			}
			comparedOnce(t, s, sc)
			ours, ourPod := sc.world(t, s)
			theirs, theirPod := sc.world(t, s)
			a, b := sc.spec(t, ours, ourPod), sc.spec(t, theirs, theirPod)
			ref := reference{dir: refplugin.Dir(t, s.Type, "static"), typ: s.Type}
			a = ours.Attached(t, a)
			res, err := ref.attach(t, theirs, b)
			try(t, err)
			b.Prev = res
			same(t, "result", Plain(t, a.Prev), Plain(t, b.Prev))
			same(t, "world", ours.Text(t, ourPod), theirs.Text(t, theirPod))
			if err := theirs.Driver.Check(t.Context(), b); err != nil {
				t.Errorf("Check of what the reference built: %v", err)
			}
			if _, err := ref.run(t, ours, "CHECK", a); (err != nil) != (sc.CheckFails != "") {
				t.Errorf("the reference's CHECK of what the driver built: %v; expected to fail because: %q", err, sc.CheckFails)
			}
			try(t, theirs.Driver.Detach(t.Context(), b))
			if _, err := ref.run(t, ours, "DEL", a); err != nil {
				t.Errorf("the reference's DEL of what the driver built: %v", err)
			}
			same(t, "world after the other removed it", ours.Text(t, ourPod), theirs.Text(t, theirPod))
		})
	}
}

// comparedOnce skips in a guest what the host's kernel can do: every program
// that starts there takes long.
func comparedOnce(t *testing.T, s Subject, sc Scenario) {
	t.Helper()
	onlyGuest := func(f kerneltest.Feature) bool {
		return !slices.Contains([]kerneltest.Feature{
			kerneltest.NetNS, kerneltest.Veth, kerneltest.Bridge, kerneltest.Tap, kerneltest.Macvlan, kerneltest.NftInet,
		}, f)
	}
	if inGuest() && !slices.ContainsFunc(slices.Concat(s.Needs, sc.Needs), onlyGuest) {
		t.Skip("compared on the host's kernel in tier net")
	}
}

func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

func same(t *testing.T, what, ours, theirs string) {
	t.Helper()
	if ours != theirs {
		t.Errorf("%s differs\n--- driver\n%s--- reference\n%s", what, ours, theirs)
	}
}

// SameRefusals says that both refuse configurations with these keys.
func SameRefusals(t *testing.T, s Subject, keys ...string) {
	for _, k := range keys {
		t.Run(k, func(t *testing.T) {
			sc := Scenario{Keys: k}
			if s.Addresses == Required {
				sc.IPAM = OneIPv4
			}
			comparedOnce(t, s, sc)
			w, p := sc.world(t, s)
			ref := reference{dir: refplugin.Dir(t, s.Type, "static"), typ: s.Type}
			if _, err := ref.run(t, w, "ADD", sc.spec(t, w, p)); err == nil {
				t.Error("the reference accepts it")
			}
			w, p = sc.world(t, s)
			before := w.Text(t, p)
			if _, err := w.Driver.Attach(t.Context(), sc.spec(t, w, p)); err == nil {
				t.Error("the driver accepts it")
			}
			w.wantText(t, before, p)
		})
	}
}

// Bench measures Attach and Detach of a scenario by the driver ("driver"), by
// the reference plugin run as a program ("reference"), and, unless bare is nil,
// by the requests alone that every way to build the same objects must make
// ("netlink"): bare returns one round of them.
func Bench(b *testing.B, s Subject, sc Scenario, bare func(b *testing.B, w *World, p Pod) func() error) {
	b.Run("driver", func(b *testing.B) {
		w, p := sc.world(b, s)
		spec := sc.spec(b, w, p)
		for b.Loop() {
			res, err := w.Driver.Attach(b.Context(), spec)
			try(b, err)
			done := spec
			done.Prev = res
			try(b, w.Driver.Detach(b.Context(), done))
		}
	})
	b.Run("reference", func(b *testing.B) {
		w, p := sc.world(b, s)
		spec := sc.spec(b, w, p)
		ref := reference{dir: refplugin.Dir(b, s.Type, "static"), typ: s.Type}
		for b.Loop() {
			for _, verb := range []string{"ADD", "DEL"} {
				_, err := ref.run(b, w, verb, spec)
				try(b, err)
			}
		}
	})
	if bare == nil {
		return
	}
	b.Run("netlink", func(b *testing.B) {
		w, p := sc.world(b, s)
		round := bare(b, w, p)
		for b.Loop() {
			try(b, round())
		}
	})
}

// reference is the reference plugin, run as a program in a world's node.
type reference struct{ dir, typ string }

func (r reference) run(t testing.TB, w *World, verb string, s driver.Spec) (out []byte, err error) {
	conf, err := withPrevResult(s)
	try(t, err)
	err = w.Node.Do(func() error {
		out, err = refplugin.Run(t.Context(), r.dir, r.typ, refplugin.Call{
			Command: verb, ContainerID: s.ContainerID, IfName: s.IfName, NetNS: s.NetNSPath, Args: s.Args, Conf: conf,
		})
		return err
	})
	return out, err
}

func (r reference) attach(t testing.TB, w *World, s driver.Spec) (*current.Result, error) {
	out, err := r.run(t, w, "ADD", s)
	if err != nil {
		return nil, err
	}
	res, err := current.NewResult(out)
	if err != nil {
		return nil, err
	}
	full := res.(*current.Result)
	full.CNIVersion = current.ImplementedSpecVersion // the configuration's, until here
	return full, nil
}

func withPrevResult(s driver.Spec) ([]byte, error) {
	if s.Prev == nil {
		return s.Conf, nil
	}
	var conf map[string]any
	if err := json.Unmarshal(s.Conf, &conf); err != nil {
		return nil, err
	}
	var err error
	if conf["prevResult"], err = s.Prev.GetAsVersion(conf["cniVersion"].(string)); err != nil {
		return nil, err
	}
	return json.Marshal(conf)
}
