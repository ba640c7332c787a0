package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClusterCnitoolAddsChecksAndDeletes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.extraNetwork(t)
	p := h.newPod(t, `[{"name":"extra","ips":["10.77.0.50"],"mac":"02:00:00:00:77:50","interface":"extra0"},{"name":"extra"}]`)
	// The first attachment makes the bridges, which stay as upstream's do.
	for range 2 {
		mustRun(t, p, "add")
		mustRun(t, p, "check")
		inside := p.inside(t)
		for _, want := range []string{"eth0", "10.76.0.", "extra0", "10.77.0.50/24", "net2", "10.77.0."} {
			if !strings.Contains(inside, want) {
				t.Errorf("no %q in the pod:\n%s", want, inside)
			}
		}
		p.statusBecomes(t, `"default-net"`, `"`+h.namespace+`/extra"`, `"extra0"`, `"02:00:00:00:77:50"`, `"10.77.0.50"`)
		mustRun(t, p, "del")
		mustRun(t, p, "del")
		h.nothingLeft(t, p)
	}
}

// braidd in its container does not see every directory of the node. Addresses
// that are recorded in another one are the reference plugin's to hand out.
func TestClusterAddressesWhereBraiddCannotLook(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	elsewhere := t.TempDir()
	h.network(t, "elsewhere", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"braidextra0",
  "ipam":{"type":"host-local","dataDir":"`+elsewhere+`","subnet":"10.79.0.0/24"}}]}`)
	p := h.newPod(t, "elsewhere")
	ran := h.path("host-local-ran")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the host's host-local ran for addresses that braidd can reach")
	}
	mustRun(t, p, "add")
	if _, err := os.Stat(ran); err != nil {
		t.Error("the host's host-local did not run")
	}
	address := filepath.Join(elsewhere, "elsewhere", "10.79.0.2")
	if _, err := os.Stat(address); err != nil {
		t.Error(err)
	}
	mustRun(t, p, "check")
	mustRun(t, p, "del")
	if _, err := os.Stat(address); err == nil {
		t.Errorf("%s is still reserved", address)
	}
	h.nothingLeft(t, p)
}

func TestClusterBadInputIsAClearErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t, impatient)
	h.extraNetwork(t)
	h.network(t, "broken-json", `{"cniVersion": "1.0.0", "type": "bridge",`)
	h.network(t, "no-uplink", `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidextra0","uplink":"nosuch0"}`)
	h.network(t, "no-master", `{"cniVersion":"1.0.0","type":"macvlan","master":"nosuch0"}`)
	for _, plugin := range []string{"no-such-plugin", "not-executable", "hangs", "prints-rubbish", "prints-nothing"} {
		h.network(t, plugin, `{"cniVersion":"1.0.0","type":"`+plugin+`"}`)
	}
	for name, tc := range map[string]struct{ networks, want string }{
		"unknown network":         {"nowhere", "/nowhere"},
		"annotation broken":       {`[{"name": "extra",`, "k8s.v1.cni.cncf.io/networks"},
		"config broken":           {"broken-json", "/broken-json"},
		"interface taken":         {"extra@eth0", "eth0"},
		"interface twice":         {"extra@twin,extra@twin", "twin"},
		"interface too long":      {"extra@sixteen-letters-", "15"},
		"address outside":         {`[{"name":"extra","ips":["10.78.0.5"]}]`, "10.78.0.5"},
		"address malformed":       {`[{"name":"extra","ips":["10.77.0.300"]}]`, "10.77.0.300"},
		"bridge without uplink":   {"no-uplink", "nosuch0"},
		"macvlan without master":  {"no-master", "master nosuch0: there is no such link"},
		"plugin missing":          {"no-such-plugin", "no-such-plugin"},
		"plugin not executable":   {"not-executable", "not executable"},
		"plugin hangs":            {"hangs", "hangs"},
		"plugin prints rubbish":   {"prints-rubbish", "hello"},
		"plugin prints nothing":   {"prints-nothing", "prints-nothing"},
		"second attachment fails": {"extra,no-such-plugin", "no-such-plugin"},
	} {
		t.Run(name, func(t *testing.T) {
			p := h.newPod(t, tc.networks)
			out, err := p.cnitool(t.Context(), "add")
			if err == nil {
				t.Fatalf("ADD succeeded: %s", out)
			}
			if !strings.Contains(out, tc.want) {
				t.Errorf("the error does not name %q: %s", tc.want, out)
			}
			h.nothingLeft(t, p)
			p.eventSays(t, tc.want)
			mustRun(t, p, "del")
		})
	}
}

// nothingLeft expects the pod's namespace to be empty and the host to have
// neither ports nor reserved addresses.
func (h *host) nothingLeft(t *testing.T, p *pod) {
	t.Helper()
	for _, link := range []string{"eth0", "net1", "net2", "extra0", "second"} {
		if inside := p.inside(t); strings.Contains(inside, link) {
			t.Errorf("left in the pod:\n%s", inside)
		}
	}
	if world := h.world(t); strings.Contains(world, "veth") || strings.Contains(world, h.path("addresses")) {
		t.Errorf("left on the host:\n%s", world)
	}
}

func measure(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}
