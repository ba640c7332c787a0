package confswitch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/cri"
)

// runtime is one that answers with what it has loaded.
type runtime struct {
	status cri.Status
	err    error
	// before, if not nil, is called before each answer.
	before func(*runtime)
}

func (r *runtime) Status(context.Context) (cri.Status, error) {
	if r.before != nil {
		r.before(r)
	}
	return r.status, r.err
}

// load has the runtime load the first of the conf dir, in the form in which
// containerd reports it.
func (r *runtime) load(n node) {
	n.t.Helper()
	data := []byte(n.read(n.loadable()[0]))
	list, network, err := asList(Conf{Data: data})
	if err != nil { // it calls Braid
		list = data
	}
	var conf struct {
		Name    string
		Plugins []json.RawMessage
	}
	if err := json.Unmarshal(list, &conf); err != nil {
		n.t.Fatal(err)
	}
	type plugin struct{ Source string }
	type config struct {
		Name    string
		Plugins []plugin
	}
	type net struct {
		IFName string
		Config config
	}
	c := config{Name: conf.Name}
	for _, p := range conf.Plugins {
		var any map[string]any // libcni orders the keys anew
		if err := json.Unmarshal(p, &any); err != nil {
			n.t.Fatal(err, network)
		}
		text, err := json.Marshal(any)
		if err != nil {
			n.t.Fatal(err)
		}
		c.Plugins = append(c.Plugins, plugin{string(text)})
	}
	text, err := json.Marshal(map[string]any{
		"PluginConfDir": "/etc/cni/net.d", "PluginMaxConfNum": 1,
		"Networks": []net{{"lo", config{Name: "cni-loopback"}}, {"eth0", c}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	r.status = cri.Status{Name: "containerd", NetworkReady: true, Info: map[string]string{"cniconfig": string(text), "lastCNILoadStatus": "OK"}}
}

func TestARuntimeThatFollowsIsVerifiedInEveryState(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			n, r := k.node(t), &runtime{}
			for _, want := range append(States(), States()...) {
				n.set(want)
				r.load(n)
				if err := Verify(t.Context(), n.Config, r, want); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A containerd that has missed an event stays with what it had.
func TestARuntimeThatStaysBehindIsFoundOut(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for _, from := range States() {
				for _, to := range States() {
					plain := !IsGate(from) && !IsGate(to)
					if from == to || k.braid && plain || strings.Contains(k.name, "one file") && from == v1alpha1.RuntimeSource && to == v1alpha1.RuntimeTarget {
						continue // behind Braid, or in one file, these differ by files only
					}
					n, r := k.node(t), &runtime{}
					n.set(from)
					r.load(n)
					n.set(to)
					if have, err := Loaded(t.Context(), n.Config, r); have == to {
						t.Errorf("it is at %s, and taken for %s, %v", from, have, err)
					}
				}
			}
		})
	}
}

func TestWhatIsWrongWithARuntimeIsSaid(t *testing.T) {
	n := kinds[0].node(t)
	n.set(v1alpha1.RuntimeTarget)
	for want, change := range map[string]func(*runtime){
		"connection refused":                     func(r *runtime) { r.err = errors.New("connection refused") },
		"cni plugin not initialized":             func(r *runtime) { r.status.NetworkReady, r.status.Message = false, "cni plugin not initialized" },
		"did not load its configuration: no net": func(r *runtime) { r.status.Info["lastCNILoadStatus"] = "no net" },
		"cniconfig":                              func(r *runtime) { r.status.Info["cniconfig"] = "{" },
		"no network":                             func(r *runtime) { r.status.Info["cniconfig"] = `{"Networks":[]}` },
		`"else" with the plugins [x ?]`: func(r *runtime) {
			r.status.Info["cniconfig"] = `{"Networks":[{"IFName":"eth0","Config":{"Name":"else","Plugins":[{"Source":"{\"type\":\"x\"}"},{"Source":""}]}}]}`
		},
	} {
		r := &runtime{}
		r.load(n)
		change(r)
		if have, err := Loaded(t.Context(), n.Config, r); err == nil || have != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", want, have, err)
		}
	}
}

func TestCRIOIsBelievedUnlessItIsPinned(t *testing.T) {
	n, r := kinds[0].node(t), &runtime{status: cri.Status{Name: "cri-o", NetworkReady: true, Info: map[string]string{}}}
	for _, want := range States() {
		n.set(want)
		if err := Verify(t.Context(), n.Config, r, want); err != nil {
			t.Error(err)
		}
	}
	r.status.Info["config"] = "[crio.network]\n\t# cni_default_network = \"\"\n\tcni_default_network = \"cbr0\"\n"
	if _, err := Loaded(t.Context(), n.Config, r); err == nil || !strings.Contains(err.Error(), `"cbr0"`) {
		t.Error(err)
	}
	r.status.Info["config"] = "\tcni_default_network = \"\"\n"
	if _, err := Loaded(t.Context(), n.Config, r); err != nil {
		t.Error(err)
	}
	r.status.NetworkReady = false
	if _, err := Loaded(t.Context(), n.Config, r); err == nil {
		t.Error("it is not ready")
	}
}

// Containerd reads its conf dir again at any write.
func TestARuntimeThatHasMissedAnEventIsNudged(t *testing.T) {
	n, r := kinds[0].node(t), &runtime{}
	r.load(n)
	n.set(v1alpha1.RuntimeTarget)
	info, err := os.Stat(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	changed := info.ModTime()
	r.before = func(r *runtime) {
		if info, err := os.Stat(n.Dir); err != nil || info.ModTime().After(changed) {
			r.load(n)
		}
	}
	if err := Verify(t.Context(), n.Config, r, v1alpha1.RuntimeTarget); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(n.Dir, nudgeFile)); !os.IsNotExist(err) {
		t.Error("the nudge is left:", err)
	}
}

func TestVerifyGivesUpWithTheContext(t *testing.T) {
	n, r := kinds[0].node(t), &runtime{}
	r.load(n)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := Verify(ctx, n.Config, r, v1alpha1.RuntimeTarget)
	if err == nil || err.Error() != "verify that the runtime is at Target: it is at Source" {
		t.Error(err)
	}
}

func FuzzLoaded(f *testing.F) {
	f.Add(`{"Networks":[{"IFName":"eth0","Config":{"Name":"cbr0","Plugins":[{"Source":"{}"}]}}]}`, "OK", "")
	f.Fuzz(func(t *testing.T, cniconfig, load, config string) {
		w := World{
			Migration: "m", Files: []confdir.File{{Name: "10-a.conflist", Data: []byte(flannel)}},
			Source: Conf{File: "10-a.conflist", Data: []byte(flannel)}, Target: Conf{File: "05-b.conflist", Data: []byte(cilium)},
		}
		have, err := w.loaded(cri.Status{NetworkReady: true, Info: map[string]string{"cniconfig": cniconfig, "lastCNILoadStatus": load, "config": config}})
		if (have == "") != (err != nil) {
			t.Error(fmt.Sprint(have, err))
		}
	})
}
