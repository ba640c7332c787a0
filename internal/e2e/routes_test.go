package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/rtnl"
)

// way out of a pod: interface and gateway of the default route of a family.
type exit struct{ dev, via string }

// The kernel, the result that the runtime gets, what the runtime's library
// remembers of it, and the status annotation say the same.
func TestA13DefaultRouteIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) { h.dualStackDefault(t) })
	renaming := newHost(t, func(h *host) { h.dualStackDefault(t, h.recording(`"rename":"renamed0"`)) })
	chained := newHost(t, func(h *host) { h.dualStackDefault(t, h.recording("")) })
	for _, host := range []*host{h, renaming, chained} {
		for name, ranges := range map[string]string{
			"v4": `[{"subnet":"10.78.0.0/24"}]`, "v6": `[{"subnet":"fd00:78::/64"}]`,
			"dual": `[{"subnet":"10.79.0.0/24"}],[{"subnet":"fd00:79::/64"}]`,
		} {
			host.network(t, name, fmt.Sprintf(`{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"braid%s","isDefaultGateway":true,
				"ipam":{"type":"host-local","dataDir":%q,"ranges":[%s]}}]}`, name, host.path("addresses"), ranges))
		}
		host.network(t, "none", host.bridged("braidnone", "10.75.0.0/24"))
	}
	own4, own6 := exit{"eth0", "10.76.0.1"}, exit{"eth0", "fd00:76::1"}
	for name, tc := range map[string]struct {
		host     *host
		networks string
		v4, v6   exit
	}{
		"not asked for":        {h, "dual", own4, own6},
		"IPv4":                 {h, `[{"name":"v4","default-route":["10.78.0.1"]}]`, exit{"net1", "10.78.0.1"}, own6},
		"IPv6":                 {h, `[{"name":"v6","default-route":["fd00:78::1"]}]`, own4, exit{"net1", "fd00:78::1"}},
		"both":                 {h, `[{"name":"dual","default-route":["10.79.0.1","fd00:79::1"]}]`, exit{"net1", "10.79.0.1"}, exit{"net1", "fd00:79::1"}},
		"one of two":           {h, `[{"name":"dual","default-route":["fd00:79::1"]}]`, own4, exit{"net1", "fd00:79::1"}},
		"empty":                {h, `[{"name":"dual","default-route":[]}]`, exit{"net1", "10.79.0.1"}, exit{"net1", "fd00:79::1"}},
		"empty of one family":  {h, `[{"name":"v4","default-route":[]}]`, exit{"net1", "10.78.0.1"}, own6},
		"another gateway":      {h, `[{"name":"none","default-route":["10.75.0.77"]}]`, exit{"net1", "10.75.0.77"}, own6},
		"the second network":   {h, `[{"name":"v4"},{"name":"dual","default-route":[]},{"name":"v6"}]`, exit{"net2", "10.79.0.1"}, exit{"net2", "fd00:79::1"}},
		"chained":              {chained, `[{"name":"dual","default-route":[]}]`, exit{"net1", "10.79.0.1"}, exit{"net1", "fd00:79::1"}},
		"chained, not moved":   {chained, "dual", own4, own6},
		"renamed by a plugin":  {renaming, `[{"name":"v4","default-route":[]}]`, exit{"net1", "10.78.0.1"}, exit{"renamed0", "fd00:76::1"}},
		"renamed, moved whole": {renaming, `[{"name":"dual","default-route":[]}]`, exit{"net1", "10.79.0.1"}, exit{"net1", "fd00:79::1"}},
		"renamed, not moved":   {renaming, "dual", exit{"renamed0", "10.76.0.1"}, exit{"renamed0", "fd00:76::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := tc.host.createPod(t, testName(t), map[string]string{networksKey: tc.networks})
			s := p.newSandbox(t)
			result := s.mustAdd(t)
			want := []exit{tc.v4, tc.v6}
			if got := s.kernelExits(t); !slices.Equal(got, want) {
				t.Errorf("the kernel has the default routes %v, want %v\n%s", got, want, s.inside(t))
			}
			// The result that the runtime sees is about the default network alone.
			var ofDefault []string
			for _, e := range want {
				if e.dev != "net1" && e.dev != "net2" {
					ofDefault = append(ofDefault, e.via)
				}
			}
			if got := resultExits(result); !slices.Equal(got, ofDefault) {
				t.Errorf("the runtime is told of the default routes via %v, want %v", got, ofDefault)
			}
			if got := resultExits(s.cachedResult(t)); !slices.Equal(got, ofDefault) {
				t.Errorf("the runtime's library remembers the default routes via %v, want %v", got, ofDefault)
			}
			p.awaitStatus(t, func(string) error {
				if got := p.statusExits(t); !slices.Equal(got, want) {
					return fmt.Errorf("the default routes %v, and not %v,", got, want)
				}
				return nil
			})
			if tc.host != renaming { // CHECK is about the name that the runtime gave
				s.mustCheck(t)
			}
			s.mustDel(t)
			s.isEmpty(t)
			tc.host.nothingIsLeft(t)
		})
	}
}

func (h *host) dualStackDefault(t *testing.T, more ...string) {
	t.Helper()
	text := strings.Replace(h.defaultConf("default-net", more...), `[{"subnet":"10.76.0.0/16"}]`, `[{"subnet":"10.76.0.0/16"}],[{"subnet":"fd00:76::/64"}]`, 1)
	if err := os.WriteFile(h.path("conf/10-default.conflist"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// kernelExits are the sandbox's default routes, IPv4 first.
func (s *sandbox) kernelExits(t *testing.T) []exit {
	t.Helper()
	h, err := rtnl.Open(s.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	routes, err := h.Routes()
	if err != nil {
		t.Fatal(err)
	}
	var exits []exit
	for _, r := range routes {
		if r.Dst.Bits() != 0 || r.Table != 0 && r.Table != rtnl.MainTable {
			continue
		}
		link, err := h.LinkByIndex(r.Link)
		if err != nil {
			t.Fatal(err)
		}
		exits = append(exits, exit{link.Name, r.Via.String()})
	}
	return inFamilyOrder(exits)
}

func inFamilyOrder(exits []exit) []exit {
	slices.SortStableFunc(exits, func(a, b exit) int {
		return strings.Count(a.via, ":") - strings.Count(b.via, ":")
	})
	return exits
}

// resultExits are the gateways of the default routes in a result, IPv4 first.
func resultExits(r *current.Result) []string {
	var exits []exit
	for _, route := range r.Routes {
		if bits, _ := route.Dst.Mask.Size(); bits != 0 {
			continue
		}
		via, _ := netip.AddrFromSlice(route.GW)
		exits = append(exits, exit{via: via.Unmap().String()})
	}
	var list []string
	for _, e := range inFamilyOrder(exits) {
		list = append(list, e.via)
	}
	return list
}

// cachedResult is what libcni keeps of the sandbox.
func (s *sandbox) cachedResult(t *testing.T) *current.Result {
	t.Helper()
	text, err := os.ReadFile(s.host.path("cni/results/braid-" + s.id + "-eth0"))
	if err != nil {
		t.Fatal(err)
	}
	var cached struct{ Result *current.Result }
	if err := json.Unmarshal(text, &cached); err != nil {
		t.Fatal(err)
	}
	return cached.Result
}

// statusExits are the default routes in the status annotation, IPv4 first.
func (p *pod) statusExits(t *testing.T) []exit {
	t.Helper()
	var exits []exit
	for _, e := range p.statusElements(t) {
		for _, gateway := range e.Gateway {
			exits = append(exits, exit{e.Interface, gateway})
		}
	}
	return inFamilyOrder(exits)
}
