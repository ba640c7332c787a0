package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"braid.dev/braid/internal/plan"
)

func TestParseNetworkKeepsEveryByteOfAPlugin(t *testing.T) {
	first := "{ \"type\":\"bridge\",\n\t\"unknown\": 1.000000000000000000001, \"big\":12345678901234567890, \"z\": \"\\u003c<\", \"a\": 1 }"
	second := `{"type":"tuning","sysctl":{"net.core.somaxconn":"500"}}`
	n, err := plan.ParseNetwork([]byte("\n {\"cniVersion\": \"1.0.0\", \"name\": \"lab\", \"plugins\": [ "+first+" , "+second+" ] } \n"), "")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{first, second} {
		if have := string(n.Plugins[i].Conf); have != want {
			t.Errorf("plugin %d: have %s\nwant %s", i, have, want)
		}
	}
	single := `{"cniVersion":"0.4.0", "name":"one","type":"macvlan","x":1e2}`
	if n, err = plan.ParseNetwork([]byte(" "+single+"\n"), "other"); err != nil {
		t.Fatal(err)
	}
	if n.Name != "one" || len(n.Plugins) != 1 || string(n.Plugins[0].Conf) != single {
		t.Errorf("single configuration: %+v", n)
	}
}

func TestParseNetworkReadsWhatPlansNeed(t *testing.T) {
	n, err := plan.ParseNetwork([]byte(`{
		"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "9.0.0"], "disableCheck": true, "disableGC": "TRUE",
		"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}, "capabilities": {"ips": true, "mac": false}}, {"type": "tuning", "ipam": {}}]
	}`), "given")
	if err != nil {
		t.Fatal(err)
	}
	if n.Name != "given" || n.CNIVersion != "1.1.0" || !n.DisableCheck || !n.DisableGC {
		t.Errorf("network: %+v", n)
	}
	p := n.Plugins[0]
	if p.Type != "bridge" || p.IPAM != "host-local" || !p.Capabilities["ips"] || p.Capabilities["mac"] {
		t.Errorf("plugin 1: %+v", p)
	}
	if p := n.Plugins[1]; p.Type != "tuning" || p.IPAM != "" || len(p.Capabilities) != 0 {
		t.Errorf("plugin 2: %+v", p)
	}
	if n, err = plan.ParseNetwork([]byte(`{"type": "bridge"}`), "given"); err != nil || n.CNIVersion != "0.1.0" {
		t.Errorf("without a version: %+v, %v", n, err)
	}
}

var badNetworks = []struct {
	config, want string
	code         uint
}{
	{"", "broken JSON: nothing but white space", 7},
	{" \n", "broken JSON: nothing but white space", 7},
	{"{", "broken JSON at 1:2: unexpected end of JSON input", 7},
	{"{\n  \"type\": \"bridge\",\n  \"mtu\": 15oo\n}", "broken JSON at 3:12: invalid character 'o'", 7},
	{"{\"ä\": \"ö\", x}", "broken JSON at 1:12", 7},
	{`{"type": "bridge"} {"type": "bridge"}`, "broken JSON at 1:20", 7},
	{"[]", "want an object { }, have a list", 7},
	{"null", "want an object { }, have null", 7},
	{`"bridge"`, "want an object { }, have a string", 7},
	{"{}", "type: missing", 7},
	{`{"type": ""}`, "type: missing", 7},
	{`{"type": 7}`, "type: want a string, have a number", 7},
	{`{"type": "../../bin/sh"}`, `type: "../../bin/sh" is no plugin name`, 7},
	{`{"type": ".."}`, "is no plugin name", 7},
	{`{"type": "bridge", "ipam": {"type": "/bin/sh"}}`, `ipam type of plugin bridge: "/bin/sh" is no plugin name`, 7},
	{`{"type": "bridge", "ipam": "static"}`, "ipam of plugin bridge: want an object { }, have a string", 7},
	{`{"type": "bridge", "capabilities": {"ips": "yes"}}`, "capabilities of plugin bridge", 7},
	{`{"plugins": []}`, "plugins: the list is empty", 7},
	{`{"plugins": {}}`, "plugins: want a list [ ], have an object", 7},
	{`{"plugins": null}`, "plugins: want a list [ ], have null", 7},
	{`{"plugins": [null]}`, "plugin 1: want an object { }, have null", 7},
	{`{"plugins": [{"type": "bridge"}, {"mtu": 1}]}`, "plugin 2: type: missing", 7},
	{`{"plugins": [{"type": "bridge"}], "disableCheck": "maybe"}`, "disableCheck: want true or false", 7},
	{`{"name": "a b", "type": "bridge"}`, `name "a b": a network name begins`, 7},
	{`{"name": "../x", "type": "bridge"}`, `name "../x"`, 7},
	{`{"name": ["x"], "type": "bridge"}`, "name: want a string, have a list", 7},
	{`{"cniVersion": "1.2.0", "type": "bridge"}`, `cniVersion "1.2.0": unknown; Braid knows 0.1.0`, 1},
	{`{"cniVersion": "1.0", "type": "bridge"}`, `cniVersion "1.0": unknown`, 1},
	{`{"cniVersion": 1, "type": "bridge"}`, "cniVersion: want a string, have a number", 1},
	{`{"cniVersions": ["2.0.0"], "type": "bridge"}`, `unknown`, 1},
	{`{"cniVersions": "1.0.0", "type": "bridge"}`, "cniVersions: want a list of strings", 1},
	{`{"type": "braid-cni"}`, "a network cannot be Braid itself", 7},
	{`{"plugins": [{"type": "bridge"}, {"type": "braid-cni"}]}`, "a network cannot be Braid itself", 7},
	{`{"type": "flannel", "delegate": {"type": "braid\u002dcni"}}`, "a network cannot be Braid itself", 7},
	{`{"type": "multus", "delegates": [{"plugins": [{"type": "braid-cni"}]}]}`, "a network cannot be Braid itself", 7},
	{`{"type": "bridge", "ipam": {"type": "braid-cni"}}`, "a network cannot be Braid itself", 7},
	{`{"type": "bridge", "x": "` + strings.Repeat("x", 64<<10) + `"}`, "65563 bytes are too long; 65536 are allowed", 7},
	{`{"type": "bridge", "x": ` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, "nested more than 64 levels deep", 7},
	{strings.Repeat("[", 65_000), "nested more than 64 levels deep", 7},
	{`{"plugins": [` + strings.Repeat(`{"type": "a"},`, 32) + `{"type": "a"}]}`, "plugins: 33 elements are too many; 32 are allowed", 7},
}

func TestParseNetworkRefuses(t *testing.T) {
	for _, c := range badNetworks {
		n, err := plan.ParseNetwork([]byte(c.config), "lab")
		var e *plan.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v\nhave %v\nwant code %d, %q", c.config[:min(len(c.config), 200)], n, err, c.code, c.want)
		}
		if self := strings.Contains(c.want, "itself"); errors.Is(err, plan.ErrSelf) != self {
			t.Errorf("%s: errors.Is(err, ErrSelf) is not %v", c.config, self)
		}
	}
	if _, err := plan.ParseNetwork([]byte(`{"type": "bridge"}`), ""); err == nil || !strings.Contains(err.Error(), "name: missing") {
		t.Errorf("without any name: %v", err)
	}
}

func FuzzParseNetwork(f *testing.F) {
	for _, c := range badNetworks {
		if len(c.config) <= maxSeed {
			f.Add([]byte(c.config), "lab")
		}
	}
	f.Add([]byte(bridgeStatic), "")
	f.Add([]byte(`{"name":"x","cniVersion":"1.1.0","plugins":[{"type":"a","ipam":{"type":"b"}},{"type":"c","capabilities":{"ips":true}}]}`), "")
	f.Fuzz(func(t *testing.T, config []byte, name string) {
		before := bytes.Clone(config)
		n, err := plan.ParseNetwork(config, name)
		if !bytes.Equal(before, config) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			var e *plan.Error
			if !errors.As(err, &e) {
				t.Fatalf("no *plan.Error: %v", err)
			}
			return
		}
		if n.Name == "" || n.CNIVersion == "" || len(n.Plugins) == 0 {
			t.Fatalf("incomplete: %+v", n)
		}
		for _, p := range n.Plugins {
			if p.Type == "" || strings.Contains(p.Type, "/") || p.Type == plan.OwnType || !json.Valid(p.Conf) || !bytes.Contains(config, p.Conf) {
				t.Fatalf("plugin %+v", p)
			}
		}
	})
}

// TestParseNetworkAgreesWithLibcni reads configurations that well-known
// networks write, as the runtime's library does.
func TestParseNetworkAgreesWithLibcni(t *testing.T) {
	for _, config := range []string{
		`{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}`,
		`{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni", "enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log"}]}`,
		`{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [{"type": "calico", "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}}, {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}, {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}`,
		`{"cniVersion": "0.4.0", "name": "kindnet", "plugins": [{"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.244.0.0/24"}]]}, "mtu": 1500}, {"type": "portmap", "capabilities": {"portMappings": true}}]}`,
		`{"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0", "1.2.0"], "name": "new", "disableCheck": true, "disableGC": "true", "plugins": [{"type": "a", "capabilities": {"x": false}}]}`,
		`{"cniVersion": "1.1.0", "cniVersions": ["0.4.0", "0.3.1"], "name": "newer", "disableCheck": "False", "plugins": [{"type": "a"}]}`,
	} {
		want, err := libcni.ConfListFromBytes([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		have, err := plan.ParseNetwork([]byte(config), "")
		if err != nil {
			t.Error(err)
			continue
		}
		if have.Name != want.Name || have.CNIVersion != want.CNIVersion || have.DisableCheck != want.DisableCheck || have.DisableGC != want.DisableGC || len(have.Plugins) != len(want.Plugins) {
			t.Errorf("%s:\nhave %+v\nwant %+v", config, have, want)
			continue
		}
		for i, p := range have.Plugins {
			w := want.Plugins[i].Network
			if p.Type != w.Type || p.IPAM != w.IPAM.Type || !maps.Equal(p.Capabilities, w.Capabilities) {
				t.Errorf("%s:\nplugin %d: have %+v, want %+v", config, i+1, p, w)
			}
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	in := input(`[{"name": "lab", "ips": ["10.20.1.11/24"]}]`)
	for b.Loop() {
		if _, err := plan.Build(in); err != nil {
			b.Fatal(err)
		}
	}
}
