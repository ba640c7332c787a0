package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// The tests named TestA01 to TestA22 are the cases of the research on Multus,
// one for each of its defects: what it loses, Braid keeps. This file has those
// about what a pod asks for.

// What the runtime passes is the default network's (multi-net-spec 1.3,
// section 7.5), also when another network knows the capability.
func TestA01RuntimeConfigReachesTheDefaultNetworkAlone(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		h.defaultNetwork(t, "10-default.conflist", h.recording(`"capabilities":{"portMappings":true,"bandwidth":true}`))
	})
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording(`"capabilities":{"portMappings":true,"bandwidth":true}`)))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	s := p.newSandbox(t)
	s.capabilities["portMappings"] = []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}
	s.capabilities["bandwidth"] = map[string]any{"ingressRate": 1000000, "ingressBurst": 1000000}
	s.mustAdd(t)
	s.mustCheck(t)
	s.mustDel(t)
	seen := map[string]int{}
	for _, c := range h.calls(t, s.id) {
		given := runtimeConfig(t, c)
		seen[c.IfName+c.Command]++
		for _, key := range []string{"portMappings", "bandwidth"} {
			if _, ok := given[key]; ok != (c.IfName == "eth0") {
				t.Errorf("%s of %s is given the runtimeConfig %v", c.Command, c.IfName, given)
			}
		}
		if _, ok := given["io.kubernetes.cri.pod-annotations"]; ok {
			t.Errorf("%s of %s is given the pod's annotations, which it did not ask for", c.Command, c.IfName)
		}
	}
	for _, call := range []string{"eth0ADD", "net1ADD", "eth0CHECK", "net1CHECK", "net1DEL", "eth0DEL"} {
		if seen[call] != 1 {
			t.Errorf("%s came %d times", call, seen[call])
		}
	}
	h.nothingIsLeft(t)
}

func TestA02WhatNoPluginCanDoIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "plain", h.recordedNetwork(""))
	for name, tc := range map[string]struct{ request, want string }{
		"ips":             {`"ips":["10.77.0.9"]`, `"ips"`},
		"mac":             {`"mac":"02:00:00:00:00:01"`, `"mac"`},
		"portmappings":    {`"portMappings":[{"hostPort":8080,"containerPort":80}]`, `"portMappings"`},
		"bandwidth":       {`"bandwidth":{"ingressRate":1000,"ingressBurst":1000}`, `"bandwidth"`},
		"infiniband-guid": {`"infiniband-guid":"c2:11:22:33:44:55:66:77"`, `"infinibandGUID"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := h.createPod(t, name, map[string]string{networksKey: `[{"name":"plain",` + tc.request + `}]`})
			s := p.newSandbox(t)
			_, err := s.add(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("ADD: %v, want an error about the capability %s", err, tc.want)
			}
			if code := codeOf(err); code != types.ErrInvalidNetworkConfig {
				t.Errorf("the code is %d", code)
			}
			if calls := h.calls(t, s.id); len(calls) > 0 {
				t.Errorf("the plugin was called: %+v", calls)
			}
			s.isEmpty(t)
			p.eventSays(t, tc.want)
			s.mustDel(t)
			h.nothingIsLeft(t)
		})
	}
}

// Whatever people write into the annotation is an answer for their pod, and no
// matter to the daemon or to another pod.
func TestA03NoAnnotationHarmsTheDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.extraNetwork(t)
	daemon := h.braidd.Process.Pid
	running := h.createPod(t, "running", map[string]string{networksKey: "extra"})
	s := running.newSandbox(t)
	s.mustAdd(t)
	const large = 250_000 // the API server takes 256 KiB of annotations in all
	bad := map[string]string{
		"null element": `[null]`, "object": `{}`, "empty element": `[{}]`, "empty name": `[{"name":""}]`, "null in list": `[{"name":"extra"},null]`,
		"comma at the end": "extra,", "commas": ",,,", "space": " ", "slash": "/", "at": "@", "number": `[1]`, "half": `[{"name":`,
		"deep":           strings.Repeat("[", large),
		"deep in a key":  `[{"name":"extra","cni-args":` + strings.Repeat(`{"a":`, large/6) + `1` + strings.Repeat("}", large/6) + `}]`,
		"many elements":  "[" + strings.Repeat(`{"name":"extra"},`, large/18) + `{"name":"extra"}]`,
		"many names":     strings.Repeat("extra,", large/6) + "extra",
		"long name":      strings.Repeat("a", large),
		"long interface": "extra@" + strings.Repeat("a", large),
		"many ips":       `[{"name":"extra","ips":["` + strings.Repeat(`10.77.0.9","`, large/12) + `10.77.0.9"]}]`,
		"not UTF-8":      "[{\"name\":\"\\ud800\"}]",
	}
	for name, annotation := range bad {
		t.Run(name, func(t *testing.T) {
			p := h.createPod(t, strings.ReplaceAll(strings.ToLower(name), " ", "-"), map[string]string{networksKey: annotation})
			s := p.newSandbox(t)
			var err error
			took := measure(func() { _, err = s.add(t.Context()) })
			if err == nil {
				t.Fatal("ADD succeeded")
			}
			t.Logf("%s: %.200v", took.Round(time.Millisecond), err)
			if len(err.Error()) > 5000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			s.isEmpty(t)
			s.mustDel(t)
			running.annotate(t, networksKey, annotation)
		})
	}
	if pid := h.braidd.Process.Pid; pid != daemon || !h.alive() {
		t.Error("braidd did not survive")
	}
	s.mustCheck(t)
	good := h.createPod(t, "good", map[string]string{networksKey: `[{"name":"extra"}]`})
	after := good.newSandbox(t)
	after.mustAdd(t)
	after.mustDel(t)
	s.mustDel(t)
	h.nothingIsLeft(t)
}

func TestA04ForeignNamespacesAreRefusedEverywhere(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		must(t, os.WriteFile(h.path("braidd.yaml"), []byte("namespaceIsolation: true\nglobalNamespaces: [a04-global]\n"), 0o644))
	})
	for _, namespace := range []string{"a04-foreign", "a04-global"} {
		must(t, h.api.namespace(t.Context(), namespace))
		h.networkIn(t, namespace, "net", h.recordedNetwork(""), nil)
	}
	h.network(t, "net", h.recordedNetwork(""))
	for name, tc := range map[string]struct {
		annotations map[string]string
		allowed     bool
	}{
		"own":                 {map[string]string{networksKey: "net"}, true},
		"own by name":         {map[string]string{networksKey: h.namespace + "/net"}, true},
		"global":              {map[string]string{networksKey: "a04-global/net"}, true},
		"foreign":             {map[string]string{networksKey: "a04-foreign/net"}, false},
		"foreign as JSON":     {map[string]string{networksKey: `[{"name":"net","namespace":"a04-foreign"}]`}, false},
		"foreign among own":   {map[string]string{networksKey: "net,a04-foreign/net"}, false},
		"default own":         {map[string]string{defaultKey: h.namespace + "/net"}, true},
		"default global":      {map[string]string{defaultKey: "a04-global/net"}, true},
		"default foreign":     {map[string]string{defaultKey: "a04-foreign/net"}, false},
		"foreign, no such":    {map[string]string{networksKey: "a04-foreign/nosuch"}, false},
		"namespace not there": {map[string]string{networksKey: "a04-nowhere/net"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := h.createPod(t, testName(t), tc.annotations)
			s := p.newSandbox(t)
			_, err := s.add(t.Context())
			switch {
			case tc.allowed && err != nil:
				t.Errorf("ADD: %v", err)
			case !tc.allowed && (codeOf(err) != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), "namespace")):
				t.Errorf("ADD: %v, want a refusal", err)
			case !tc.allowed:
				if calls := h.calls(t, s.id); len(calls) > 0 {
					t.Errorf("a plugin was called: %+v", calls)
				}
				p.eventSays(t, "namespace")
			}
			s.mustDel(t)
			h.nothingIsLeft(t)
		})
	}
}

// Some runtimes and people pass more than Braid knows, in forms that splitting
// at every sign of equality loses.
func TestA20CNIArgsArePassedOnAsTheyAre(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.recordedNetwork(""))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	s := p.newSandbox(t)
	const rest = "TOKEN=a=b==;EMPTY=;novalue;UNKNOWN=1;"
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + p.namespace + ";K8S_POD_NAME=" + p.name + ";K8S_POD_UID=" + p.uid + ";" + rest
	env := []string{"CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.path, "CNI_IFNAME=eth0", "CNI_ARGS=" + args}
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		if _, err := h.call(t.Context(), verb, env, nil); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
	}
	calls := h.calls(t, s.id)
	if len(calls) != 3 {
		t.Fatalf("%d calls of the plugin", len(calls))
	}
	for _, c := range calls {
		if !strings.Contains(c.Args, strings.TrimSuffix(rest, ";")) || !strings.Contains(c.Args, "K8S_POD_NAME="+p.name) {
			t.Errorf("%s is given CNI_ARGS %q", c.Command, c.Args)
		}
	}
	h.nothingIsLeft(t)
}

func TestA19APluginThatIsBeingReplacedIsTriedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "replaced", `{"cniVersion":"1.0.0","plugins":[`+strings.Replace(h.recording(""), "recorder", "replaced", 1)+`]}`)
	program, err := os.ReadFile(h.recorder)
	if err == nil {
		err = os.WriteFile(h.path("bin/replaced"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := h.createPod(t, "pod", map[string]string{networksKey: "replaced"})
	s := p.newSandbox(t)
	// As long as somebody has it open for writing, the kernel refuses to run it.
	for _, verb := range []func() error{func() error { _, err := s.add(t.Context()); return err }, func() error { return s.del(t.Context()) }} {
		writer, err := os.OpenFile(h.path("bin/replaced"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := len(h.calls(t, s.id))
		done := make(chan error, 1)
		go func() { done <- verb() }()
		select {
		case err := <-done:
			t.Errorf("it ended while the plugin could not run: %v", err)
			done <- err
		case <-time.After(150 * time.Millisecond): // the replacing takes that long
		}
		if err := writer.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(h.calls(t, s.id)) != before+1 {
			t.Error("the plugin was not called")
		}
	}
	h.nothingIsLeft(t)
}
