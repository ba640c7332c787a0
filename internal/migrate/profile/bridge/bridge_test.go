package bridge

import (
	"fmt"
	"slices"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

func node(i int, kind string, links ...facts.Link) facts.Node {
	return profiletest.WithConf(fmt.Sprintf("node%d", i), "20-pods.conflist", fmt.Sprintf(`{"name": "pods", "plugins": [
  {"type": %q, "isGateway": true, "ipMasq": true, "mtu": 1400, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.200.%d.0/24"}]]}},
  {"type": "firewall"}, {"type": "portmap", "capabilities": {"portMappings": true}}]}`, kind, i), links...)
}

func TestAllIsInTheNodesConfigurations(t *testing.T) {
	s, score := Profile{}.Detect(profiletest.Cluster(t, "", node(0, "bridge"), node(1, "bridge"), node(2, "bridge")))
	if score != profile.ScoreLoaded || s.ConfFile != "20-pods.conflist" || s.Network != "pods" || s.MTU != 1400 || s.HostPort != "portmap" || len(s.Masquerades) != 1 {
		t.Errorf("score %d: %+v", score, s)
	}
	if !slices.Equal(s.PodCIDRs, profiletest.Prefixes("10.200.0.0/22")) || s.IPAM.NodeMask4 != 24 || s.IPAM.Source != "conf" || len(s.IPAM.Blocks) != 3 {
		t.Errorf("addresses %v: %+v", s.PodCIDRs, s.IPAM)
	}
	if !slices.Equal(s.Links, []string{"cni0"}) || !slices.Equal(s.Plugins, []string{"bridge", "host-local", "firewall", "portmap"}) {
		t.Errorf("links %v, plugins %v", s.Links, s.Plugins)
	}
	l := Profile{}.Leftovers(s)
	if !l.Firewall || !l.Portmap || !l.Masquerade || len(l.Routes) != 0 || len(l.Links) != 1 {
		t.Errorf("%+v", l)
	}
}

func TestABridgeWithoutAddressIsNoGateway(t *testing.T) {
	for _, tt := range []struct {
		links []facts.Link
		want  preflight.Answer
	}{
		{nil, preflight.Yes}, // not made yet
		{[]facts.Link{{Name: "cni0", Kind: "bridge", Addrs: []string{"10.200.0.1/24"}}}, preflight.Yes},
		{[]facts.Link{{Name: "cni0", Kind: "bridge"}}, preflight.No},
	} {
		if s, _ := (Profile{}).Detect(profiletest.Cluster(t, "", node(0, "bridge", tt.links...))); s.HostGateway != tt.want {
			t.Errorf("%+v: %s", tt.links, s.HostGateway)
		}
	}
}

func TestPtpHasNoBridge(t *testing.T) {
	s, _ := Profile{}.Detect(profiletest.Cluster(t, "", node(0, "ptp")))
	if !slices.Equal(s.Links, []string{"veth*"}) || len((Profile{}).Leftovers(s).Links) != 0 {
		t.Errorf("links %v", s.Links)
	}
}

func TestWithoutAnyConfigurationThereIsNone(t *testing.T) {
	if _, err := (Profile{}).Conf(preflight.Side{}, preflight.Side{}); err == nil {
		t.Error("a configuration out of nothing")
	}
}
