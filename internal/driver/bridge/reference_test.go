package bridge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/refplugin"
)

// reference is the reference plugin, run as a program in a world's node.
type reference struct {
	dir string
	w   *world
}

func newReference(t testing.TB, w *world) reference {
	return reference{dir: refplugin.Dir(t, "bridge", "static"), w: w}
}

// run executes one verb and returns what the plugin printed.
func (r reference) run(ctx context.Context, verb string, s driver.Spec) ([]byte, error) {
	conf, err := withPrevResult(s)
	if err != nil {
		return nil, err
	}
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(r.dir, "bridge"))
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.ContainerID, "CNI_IFNAME=" + s.IfName,
		"CNI_NETNS=" + s.NetNSPath, "CNI_ARGS=" + s.Args, "CNI_PATH=" + r.dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &out, &stderr
	if err := r.w.host.Do(cmd.Run); err != nil {
		return nil, fmt.Errorf("reference plugin: %s: %w: %s%s", verb, err, out.Bytes(), stderr.Bytes())
	}
	return out.Bytes(), nil
}

func (r reference) attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	out, err := r.run(ctx, "ADD", s)
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

// TestSameAsTheReferencePlugin builds every scenario with both, compares the
// results and the worlds, and lets each check and remove what the other built.
func TestSameAsTheReferencePlugin(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			if sc.differs != "" {
				t.Skip("different on purpose: " + sc.differs)
			}
			if !sc.vlan && inGuest() {
				t.Skip("compared on the host's kernel in tier net; to start programs in a guest is slow")
			}
			ours, theirs := sc.world(t), sc.world(t)
			ref := newReference(t, theirs)
			a, b := ours.spec(sc.conf()), theirs.spec(sc.conf())
			a.Prev = ours.attach(t, a)
			var err error
			b.Prev, err = ref.attach(t.Context(), b)
			try(t, err)
			same(t, "result", plain(t, a.Prev), plain(t, b.Prev))
			same(t, "world", ours.text(t), theirs.text(t))

			if err := theirs.d.Check(t.Context(), b); err != nil {
				t.Errorf("Check of what the reference built: %v", err)
			}
			ref.w = ours
			_, err = ref.run(t.Context(), "CHECK", a)
			if fails := sc.ipam == "" || sc.otherTables; (err != nil) != fails {
				t.Errorf("the reference's CHECK of what the driver built: %v", err)
			}
			try(t, theirs.d.Detach(t.Context(), b))
			_, err = ref.run(t.Context(), "DEL", a)
			try(t, err)
			same(t, "world after the other removed it", ours.text(t), theirs.text(t))
		})
	}
}

func same(t *testing.T, what, ours, theirs string) {
	t.Helper()
	if ours != theirs {
		t.Errorf("%s differs\n--- driver\n%s--- reference\n%s", what, ours, theirs)
	}
}

// Both must agree on the rules too, so that each removes the other's.
func TestMasqueradeIsTheReferencePlugins(t *testing.T) {
	if inGuest() {
		t.Skip("compared on the host's kernel in tier net; here the reference plugin does not find the right iptables")
	}
	ours, theirs := newWorld(t), newWorld(t)
	needIPTables(t, ours)
	ref := newReference(t, theirs)
	conf := scenario{keys: masqKeys, ipam: dual}.conf()
	a, b := ours.spec(conf), theirs.spec(conf)
	a.Host, b.Host = inNode{ours.host}, inNode{theirs.host}
	a.Prev = ours.attach(t, a)
	var err error
	b.Prev, err = ref.attach(t.Context(), b)
	try(t, err)
	same(t, "nat table", natRules(t, ours), natRules(t, theirs))
	try(t, theirs.d.Detach(t.Context(), b))
	ref.w = ours
	_, err = ref.run(t.Context(), "DEL", a)
	try(t, err)
	same(t, "nat table after the other removed it", natRules(t, ours), natRules(t, theirs))
}

// Refusals have the reference's meaning: what it refuses, the driver refuses.
func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	for _, conf := range []string{
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","vlan":4095}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","vlanTrunk":[{"minID":2}]}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","vlanTrunk":[{"minID":3,"maxID":2}]}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","vlanTrunk":[{"id":0}]}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","hairpinMode":true,"promiscMode":true}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","disableContainerInterface":true,"ipam":{"type":"static"}}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"lo"}`,
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","runtimeConfig":{"mac":"zz"}}`,
	} {
		w := newWorld(t)
		if _, err := newReference(t, w).run(t.Context(), "ADD", w.spec(conf)); err == nil {
			t.Errorf("the reference accepts %s", conf)
		}
		w = newWorld(t)
		if _, err := w.d.Attach(t.Context(), w.spec(conf)); err == nil {
			t.Errorf("the driver accepts %s", conf)
		}
	}
}
