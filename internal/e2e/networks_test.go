package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestClusterDefaultRouteThroughTheNetworkThePodAsksFor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "routed", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"braidextra1","isDefaultGateway":true,
  "ipam":{"type":"host-local","dataDir":"`+h.path("addresses")+`","subnet":"10.78.0.0/24"}}]}`)
	for networks, c := range map[string]struct{ route, kept, event string }{
		"routed":                                 {"0.0.0.0/0 via 10.76.0.1 dev eth0", "10.76.0.1", "by 10.78.0.1 is not kept, as that of eth0 comes first"},
		`[{"name":"routed","default-route":[]}]`: {"0.0.0.0/0 via 10.78.0.1 dev net1", "10.78.0.1", "by 10.76.0.1 is not kept, as that of net1 is asked for by the pod"},
	} {
		t.Run(c.kept, func(t *testing.T) {
			p := h.newPod(t, networks)
			result, err := p.cnitool(t.Context(), "add")
			if err != nil {
				t.Fatal(err)
			}
			inside := p.inside(t)
			if !strings.Contains(inside, c.route) || strings.Count(inside, "0.0.0.0/0") != 1 {
				t.Errorf("the default route is not %s alone:\n%s", c.route, inside)
			}
			if ours := c.kept == "10.76.0.1"; strings.Contains(result, `"0.0.0.0/0"`) != ours {
				t.Errorf("the runtime is told %s", result)
			}
			p.awaitStatus(t, func(text string) error {
				if strings.Count(text, `"gateway"`) != 1 || !strings.Contains(text, `"`+c.kept+`"`) {
					return fmt.Errorf("not %s as the one gateway", c.kept)
				}
				return nil
			})
			p.eventSays(t, c.event)
			mustRun(t, p, "check")
			mustRun(t, p, "del")
			h.nothingLeft(t, p)
		})
	}
}

// Flannel first and another network second, as seed 000 has it by the runtime's
// own max_conf_num. There is no program flannel on this host.
func TestClusterEveryPodGetsFlannelAndASecondNetwork(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		for name, text := range map[string]string{
			"braidd.yaml": "confDirNetworks: 2\n",
			"subnet.env":  "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
			"conf/05-flannel.conflist": `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel","subnetFile":"` + h.path("subnet.env") + `",
				"ipam":{"dataDir":"` + h.path("addresses") + `"},"delegate":{"bridge":"braidflannel0","isDefaultGateway":true}}]}`,
		} {
			must(t, os.WriteFile(h.path(name), []byte(text), 0o644))
		}
	})
	h.extraNetwork(t)
	p := h.newPod(t, "extra")
	mustRun(t, p, "add")
	inside := p.inside(t)
	for _, want := range []string{"10.244.9.", "10.244.0.0/16 via 10.244.9.1 dev eth0", "0.0.0.0/0 via 10.244.9.1 dev eth0", "eth1", "10.76.0.", "net1", "10.77.0."} {
		if !strings.Contains(inside, want) {
			t.Errorf("no %q in the pod:\n%s", want, inside)
		}
	}
	if strings.Count(inside, "0.0.0.0/0") != 1 {
		t.Errorf("more than one default route:\n%s", inside)
	}
	p.statusBecomes(t, `"cbr0"`, `"default-net"`, `"eth1"`, `"`+h.namespace+`/extra"`)
	mustRun(t, p, "check")
	mustRun(t, p, "del")
	h.nothingLeft(t, p)
}
