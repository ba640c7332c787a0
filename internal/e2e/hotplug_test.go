package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/e2e/recorder/note"
)

// becomes waits until the sandbox has these links and the status annotation of
// its pod has these interfaces. Meanwhile STATUS is asked, as a kubelet does.
func (s *sandbox) becomes(t *testing.T, want ...string) {
	t.Helper()
	err := within(t.Context(), 30*time.Second, fmt.Sprintf("the pod has %v", want), func() error {
		if err := s.status(t.Context()); err != nil {
			return err
		}
		inside := s.inside(t)
		var told []string
		for _, e := range s.statusElements(t) {
			told = append(told, e.Interface)
		}
		slices.Sort(told)
		if !slices.Equal(told, want) {
			return fmt.Errorf("the status annotation has %v", told)
		}
		for _, name := range want {
			if !strings.Contains(inside, name+" ") {
				return fmt.Errorf("%s is not in the sandbox:\n%s", name, inside)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lacks expects that a link is not in the sandbox.
func (s *sandbox) lacks(t *testing.T, name string) {
	t.Helper()
	if inside := s.inside(t); strings.Contains(inside, name+" ") {
		t.Errorf("%s is in the sandbox:\n%s", name, inside)
	}
}

func TestClusterEditedAnnotationChangesTheRunningPod(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	h.network(t, "other", h.bridged("braidother0", "10.78.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	s := p.newSandbox(t)
	s.mustAdd(t)
	s.becomes(t, "eth0", "net1")

	p.annotate(t, networksKey, "extra,other,extra@data")
	s.becomes(t, "data", "eth0", "net1", "net2")
	p.eventSays(t, "Add net2 [10.78.0.2/24] from "+h.namespace+"/other")
	p.eventSays(t, "Add data [10.77.0.3/24] from "+h.namespace+"/extra")
	s.mustCheck(t)
	before := s.inside(t)
	s.mustAdd(t) // a runtime that lost the answer
	if now := s.inside(t); now != before {
		t.Errorf("the repeated ADD made it\n%s\nfrom\n%s", now, before)
	}
	s.loses(t, "net2")
	if err := s.check(t.Context()); err == nil || !strings.Contains(err.Error(), "net2") {
		t.Errorf("CHECK without net2: %v", err)
	}

	// What is gone needs no definition; an edit while braidd is away is found.
	h.removeNetwork(t, "other")
	h.mustKill(t)
	p.annotate(t, networksKey, "extra@data")
	h.mustStart(t)
	s.becomes(t, "data", "eth0")
	p.eventSays(t, "Remove net1 from "+h.namespace+"/extra; no longer asked for")
	s.lacks(t, "net1")
	s.lacks(t, "net2")
	s.mustCheck(t)

	// A broken edit changes nothing, and says so.
	p.annotate(t, networksKey, "extra@data,[null]")
	p.eventSays(t, "the networks of the running pod are not changed yet")
	s.becomes(t, "data", "eth0")
	p.annotate(t, networksKey, "extra@data,extra")
	s.becomes(t, "data", "eth0", "net1")

	s.mustDel(t)
	s.isEmpty(t)
	h.nothingIsLeft(t)
}

// TestClusterHotPlugExample does what docs/hotplug.md says.
func TestClusterHotPlugExample(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text, err := os.ReadFile(filepath.Join(h.root, "examples/hotplug/networks.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var definition struct {
		Metadata struct{ Name string }
		Spec     struct{ Config string }
	}
	if err := yaml.Unmarshal(text, &definition); err != nil {
		t.Fatal(err)
	}
	h.network(t, definition.Metadata.Name, definition.Spec.Config)
	page, err := os.ReadFile(filepath.Join(h.root, "docs/hotplug.md"))
	if err != nil {
		t.Fatal(err)
	}
	edits := regexp.MustCompile(`networks='([^']*)'`).FindAllStringSubmatch(string(page), -1)
	if len(edits) != 2 {
		t.Fatalf("the page has the edits %q, want 2", edits)
	}
	s := h.createPod(t, "worker", nil).newSandbox(t)
	s.mustAdd(t)
	s.annotate(t, networksKey, edits[0][1])
	s.becomes(t, "eth0", "net1")
	if inside := s.inside(t); !strings.Contains(inside, "addr 10.30.1.11/24") {
		t.Errorf("the address is missing:\n%s", inside)
	}
	s.annotate(t, networksKey, edits[1][1])
	s.becomes(t, "bak", "eth0")
	s.lacks(t, "net1")
	s.eventSays(t, "Remove net1 from "+h.namespace+"/backup")
	if err := s.api.patch(t.Context(), s.object(), object{"metadata": object{"annotations": object{networksKey: nil}}}); err != nil {
		t.Fatal(err)
	}
	s.becomes(t, "eth0")
	s.lacks(t, "bak")
	s.mustDel(t)
	h.nothingIsLeft(t)
}

// A plugin stops a change in its middle, and then braidd is killed, or its hands
// on the host are.
func TestClusterKilledInTheMiddleOfAChange(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	s := p.newSandbox(t)
	s.mustAdd(t)
	for _, whom := range []string{"daemon", "hands"} {
		for _, c := range []struct {
			verb, ifName, networks string
			want                   []string
		}{
			{"ADD", "net2", "extra,extra", []string{"eth0", "net1", "net2"}},
			{"DEL", "net2", "extra", []string{"eth0", "net1"}},
			{"ADD", "data", "extra,extra@data", []string{"data", "eth0", "net1"}},
			{"DEL", "data", "extra", []string{"eth0", "net1"}},
		} {
			t.Run(c.verb+" "+c.ifName+" "+whom, func(t *testing.T) {
				before := len(h.callsOf(t, s.id, c.verb, c.ifName))
				h.behave(t, c.verb+"-"+c.ifName, note.Hang)
				p.annotate(t, networksKey, c.networks)
				must(t, within(t.Context(), 20*time.Second, "the plugin is called", func() error {
					if n := len(h.callsOf(t, s.id, c.verb, c.ifName)); n == before {
						return errors.Join(fmt.Errorf("it was called %d times", n), h.status(t.Context()))
					}
					return nil
				}))
				if whom == "daemon" {
					h.mustKill(t)
				} else {
					h.killHands(t)
				}
				h.behave(t, c.verb+"-"+c.ifName, "")
				if whom == "daemon" {
					h.mustStart(t)
				}
				s.becomes(t, c.want...)
				s.mustCheck(t)
			})
		}
	}
	s.mustDel(t)
	s.isEmpty(t)
	h.nothingIsLeft(t)
	h.mustKill(t)
	if left := h.records(t); len(left) > 0 {
		t.Errorf("%d records are left, the first: %+v", len(left), left[0])
	}
}

// callsOf are the calls of the recorder with this verb for this interface.
func (h *host) callsOf(t *testing.T, containerID, verb, ifName string) []note.Call {
	t.Helper()
	return slices.DeleteFunc(h.calls(t, containerID), func(c note.Call) bool { return c.Command != verb || c.IfName != ifName })
}

// killHands kills every shim of this host.
func (h *host) killHands(t *testing.T) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, exe := range all {
		if program, err := os.Readlink(exe); err != nil || program != h.path("bin/braid-cni") {
			continue // or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
		must(t, err)
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		killed++
	}
	if killed == 0 {
		t.Fatal("there is no shim")
	}
}

// A3, A4: an edit goes no way around what holds for a new pod, and none harms
// the pod or the loop that follows it.
func TestA04EditsThatAreRefusedChangeNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		must(t, os.WriteFile(h.path("braidd.yaml"), []byte("namespaceIsolation: true\nglobalNamespaces: [a04-edit-global]\n"), 0o644))
	})
	for _, namespace := range []string{"a04-edit-foreign", "a04-edit-global"} {
		must(t, h.api.namespace(t.Context(), namespace))
		h.networkIn(t, namespace, "net", h.bridged("braidother0", "10.78.0.0/24", h.recording("")), nil)
	}
	h.network(t, "net", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "net"})
	s := p.newSandbox(t)
	s.mustAdd(t)
	before := s.inside(t)
	calls := len(h.calls(t, s.id))
	for _, c := range []struct{ networks, says string }{
		{"net,a04-edit-foreign/net", "may not use the networks of namespace"},
		{`[{"name":"net"},{"name":"net","namespace":"a04-edit-foreign","interface":"x"}]`, "network a04-edit-foreign/net: element 2"},
		{"a04-edit-foreign/nosuch", "network a04-edit-foreign/nosuch"},
		{`[null]`, "have null"},
		{`{}`, "have an object"},
		{`[{}]`, "name: missing"},
		{"net,", "comma too many"},
		{strings.Repeat("net,", 60000), "are too many"},
		{strings.Repeat("[", 60000), "annotation"},
		{`[{"name":"net"},{"name":"net","mac":"not-a-mac"}]`, "mac"},
		{`[{"name":"net"},{"name":"net","bandwidth":{"ingressRate":1000}}]`, "declares the capability"},
		{`[{"name":"net"},{"name":"net","default-route":["10.77.0.1"]}]`, "default route of a pod that runs"},
	} {
		p.annotate(t, networksKey, c.networks)
		p.eventSays(t, c.says)
		s.mustCheck(t)
	}
	if now := s.inside(t); now != before {
		t.Errorf("the pod became\n%s\nfrom\n%s", now, before)
	}
	if n := len(h.callsOf(t, s.id, "ADD", "net1")) + len(h.callsOf(t, s.id, "CHECK", "net1")); n != len(h.calls(t, s.id)) || calls != 1 {
		t.Errorf("plugins were called for more than the pod has: %+v", h.calls(t, s.id))
	}
	p.annotate(t, networksKey, "net,a04-edit-global/net")
	s.becomes(t, "eth0", "net1", "net2")
	s.mustDel(t)
	h.nothingIsLeft(t)
}

// A21: what was plugged is released by its record, whatever has become of the
// network and of the pod's object.
func TestA21WhatWasPluggedIsReleasedByItsRecord(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(t *testing.T, s *sandbox)
		// unplugged says that an edit takes the network away before the DEL.
		unplugged bool
	}{
		"pod deleted": {change: func(t *testing.T, s *sandbox) {
			must(t, s.api.remove(t.Context(), s.object()))
		}},
		"network and pod deleted, braidd restarted": {change: func(t *testing.T, s *sandbox) {
			s.removeNetwork(t, "plugged")
			must(t, s.api.remove(t.Context(), s.object()))
			s.restart(t)
		}},
		"network changed": {change: func(t *testing.T, s *sandbox) {
			s.network(t, "plugged", s.bridged("braidelse0", "10.79.0.0/24"))
		}},
		"network deleted before it is unplugged": {change: func(t *testing.T, s *sandbox) {
			s.removeNetwork(t, "plugged")
		}, unplugged: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.network(t, "plugged", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
			p := h.createPod(t, "pod", nil)
			s := p.newSandbox(t)
			s.mustAdd(t)
			p.annotate(t, networksKey, "plugged")
			s.becomes(t, "eth0", "net1")
			if held := h.held(t); len(held) != 1 {
				t.Fatalf("the recorder holds %v: the test does not test what it should", held)
			}
			c.change(t, s)
			if c.unplugged {
				p.annotate(t, networksKey, "")
				s.becomes(t, "eth0")
				if held := h.held(t); len(held) > 0 {
					t.Errorf("left with the recorder: %v", held)
				}
			}
			s.mustDel(t)
			s.isEmpty(t)
			h.nothingIsLeft(t)
		})
	}
}
