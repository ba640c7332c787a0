package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/e2e/recorder/note"
)

// Of the cases A1 to A22, those about the verbs of one sandbox.

func TestA15CheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra,extra@second"})
	for what, tc := range map[string]struct {
		harm func(t *testing.T, s *sandbox)
		want []string
	}{
		"interface of the first network": {func(t *testing.T, s *sandbox) { s.loses(t, "net1") }, []string{"net1", "/extra"}},
		"interface of the last network":  {func(t *testing.T, s *sandbox) { s.loses(t, "second") }, []string{"second", "/extra"}},
		"interface of the default":       {func(t *testing.T, s *sandbox) { s.loses(t, "eth0") }, []string{"eth0", "default-net"}},
		"what a chained plugin says": {func(t *testing.T, s *sandbox) {
			if err := os.Remove(h.path("recorder/" + note.Held + "/extra_" + s.id + "_second")); err != nil {
				t.Fatal(err)
			}
		}, []string{"second", "/extra", "recorder", "not held"}},
	} {
		t.Run(what, func(t *testing.T) {
			s := p.newSandbox(t)
			s.mustAdd(t)
			s.mustCheck(t)
			tc.harm(t, s)
			err := s.check(t.Context())
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("CHECK: %v, want it to name %q", err, want)
				}
			}
			s.mustDel(t)
			h.nothingIsLeft(t)
		})
	}
}

func (s *sandbox) loses(t *testing.T, link string) {
	t.Helper()
	if err := removeLink(s.ns, link); err != nil {
		t.Fatal(err)
	}
}

func TestA16GCReleasesEveryNetworkOfWhatTheRuntimeForgot(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra,extra"})
	kept, forgotten := p.newSandbox(t), p.newSandbox(t)
	kept.mustAdd(t)
	alone := h.state(t)
	forgotten.mustAdd(t)
	both := h.state(t)
	if err := h.gc(t.Context(), types.GCAttachment{ContainerID: kept.id, IfName: "eth0"}, types.GCAttachment{ContainerID: forgotten.id, IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if now := h.state(t); now != both {
		t.Errorf("GC that names both changed something:\n%s\nbefore:\n%s", now, both)
	}
	if err := h.gc(t.Context(), types.GCAttachment{ContainerID: kept.id, IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if now := h.state(t); now != alone {
		t.Errorf("after GC:\n%s\nwant:\n%s", now, alone)
	}
	forgotten.isEmpty(t)
	kept.mustCheck(t)
	// Whoever names nothing may know nothing: only what is proven dead goes.
	if err := h.gc(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept.mustCheck(t)
	if now := h.state(t); now != alone {
		t.Errorf("GC with an empty list changed something:\n%s\nbefore:\n%s", now, alone)
	}
	kept.mustDel(t)
	h.nothingIsLeft(t)
}

// state is the world of the host with what recorders hold.
func (h *host) state(t *testing.T) string {
	t.Helper()
	return h.world(t) + "\n" + strings.Join(h.held(t), "\n")
}

// The runtime gives up and kills the shim; or it calls DEL while ADD still
// runs, or the plugin's own time ends. In each case DEL comes after ADD has
// ended, and cleans up.
func TestA18DelComesAfterAnAddThatHangs(t *testing.T) {
	t.Parallel()
	h := newHost(t, impatient)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	for name, giveUp := range map[string]bool{"the runtime gives up": true, "the plugin's time ends": false} {
		t.Run(name, func(t *testing.T) {
			s := p.newSandbox(t)
			h.behave(t, "ADD", note.Hang)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			added := make(chan error, 1)
			go func() {
				_, err := s.add(ctx)
				added <- err
			}()
			h.awaitCall(t, s.id, "ADD", "net1")
			if giveUp {
				cancel()
			}
			deleted := make(chan error, 1)
			go func() { deleted <- s.del(t.Context()) }()
			if err := <-deleted; err != nil {
				t.Errorf("DEL: %v", err)
			}
			if err := <-added; err == nil {
				t.Error("ADD succeeded")
			}
			h.behave(t, "ADD", "")
			for _, c := range h.calls(t, s.id) {
				if runs(c.PID) {
					t.Errorf("%s of the plugin still runs", c.Command)
				}
			}
			s.isEmpty(t)
			h.nothingIsLeft(t)
			// The next one is none the worse for it.
			again := p.newSandbox(t)
			again.mustAdd(t)
			again.mustDel(t)
			h.nothingIsLeft(t)
		})
	}
}

// DEL is repeated by runtimes, comes before ADD, and comes for pods whose
// network is another one by now.
func TestClusterDelNeedsNothingButTheRecord(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	never := p.newSandbox(t)
	never.mustDel(t)
	for name, change := range map[string]func(t *testing.T, s *sandbox){
		"network changed": func(t *testing.T, _ *sandbox) {
			h.network(t, "extra", `{"cniVersion":"1.0.0","type":"no-such-plugin"}`)
		},
		"network deleted": func(t *testing.T, _ *sandbox) { h.removeNetwork(t, "extra") },
		"pod deleted": func(t *testing.T, _ *sandbox) {
			if err := h.api.remove(t.Context(), p.object()); err != nil {
				t.Fatal(err)
			}
		},
		"default network gone": func(t *testing.T, _ *sandbox) { must(t, os.Remove(h.path("conf/10-default.conflist"))) },
		"namespace gone":       func(t *testing.T, s *sandbox) { must(t, s.remove()) },
		"API server away":      func(*testing.T, *sandbox) { must(t, h.way.set(refused)) },
		"daemon killed":        func(t *testing.T, _ *sandbox) { h.restart(t) },
		"API server a black hole, daemon killed": func(t *testing.T, _ *sandbox) {
			must(t, h.way.set(blackholed))
			h.mustKill(t)
			must(t, h.launch())
		},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, h.way.set(open))
			h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
			h.defaultNetwork(t, "10-default.conflist")
			p = h.createPod(t, "pod", map[string]string{networksKey: "extra"})
			s, err := p.openSandbox()
			must(t, err)
			defer func() { must(t, s.remove()) }()
			s.mustAdd(t)
			change(t, s)
			s.mustDel(t)
			s.mustDel(t)
			h.nothingIsLeft(t)
			calls := h.calls(t, s.id)
			if i := slices.IndexFunc(calls, func(c note.Call) bool { return c.Command == "DEL" }); i < 0 || !sameConf(t, calls[0], calls[i]) {
				t.Errorf("the plugin was not given the configuration of ADD on DEL: %+v", calls)
			}
		})
	}
	must(t, h.way.set(open))
}

// must is for what a test depends on.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runs reports whether the process exists and is no zombie: some machines have
// a process 1 that takes no notice of those.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// sameConf compares what two calls were configured with, but for prevResult.
func sameConf(t *testing.T, a, b note.Call) bool {
	t.Helper()
	var confs [2]object
	for i, c := range []note.Call{a, b} {
		if err := json.Unmarshal(c.Stdin, &confs[i]); err != nil {
			t.Fatal(err)
		}
		delete(confs[i], "prevResult")
	}
	return reflect.DeepEqual(confs[0], confs[1])
}
