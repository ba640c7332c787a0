package generic

import (
	"testing"

	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/profiletest"
)

func TestWhatTheConfigurationSaysIsKnown(t *testing.T) {
	c := profiletest.Cluster(t, "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {podCIDR: 10.1.0.0/24}\n",
		profiletest.WithConf("node1", "10-weave.conflist", `{"name": "weave", "plugins": [{"type": "weave-net"}, {"type": "portmap"}]}`))
	s, score := Profile{}.Detect(c)
	if score != 1 || s.Network != "weave" || s.HostPort != "portmap" || s.PodCIDRs[0].String() != "10.1.0.0/24" || s.HostGateway != "" {
		t.Errorf("score %d: %+v", score, s)
	}
	v := &profiletest.View{Program: []string{"portmap"}}
	if got := (Profile{}).Ready(t.Context(), v, s); got != "the runtime's bin dir has no weave-net" {
		t.Error(got)
	}
	v.Program = append(v.Program, "weave-net")
	if got := (Profile{}).Ready(t.Context(), v, s); got != profile.Ready {
		t.Error(got)
	}
	if l := (Profile{}).Leftovers(s); len(l.Links)+len(l.Chains)+len(l.Routes)+len(l.Tables) != 0 {
		t.Errorf("it claims what nobody described: %+v", l)
	}
}

func TestWhoMountsTheConfDirIsNamed(t *testing.T) {
	const ds = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: w, namespace: net}\nspec: {template: {spec: {volumes: [{name: a, hostPath: {path: /etc/cni/net.d}}]}}}\n"
	if changes := (Profile{}).Latent(profiletest.Objects(t, ds)); len(changes) != 1 || changes[0].Object != "DaemonSet/net/w" {
		t.Errorf("%v", changes)
	}
	if _, err := (Profile{}).Conf(preflight.Side{}, preflight.Side{}); err == nil {
		t.Error("a configuration out of nothing")
	}
}
