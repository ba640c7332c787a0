package onnode

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/facts"
)

func TestASideIsWhatTheMigrationSaysOfIt(t *testing.T) {
	side, err := Side(v1alpha1.Network{
		Profile: "flannel", ConfFile: "10-flannel.conflist", PodCIDRs: []string{"10.243.0.0/16"},
		Detected: &runtime.RawExtension{Raw: []byte(`{"profile":"flannel","transport":"host-gw","podCIDRs":["10.9.0.0/16"]}`)},
	})
	if err != nil || side.Transport != "host-gw" || len(side.PodCIDRs) != 1 || side.PodCIDRs[0].String() != "10.243.0.0/16" {
		t.Errorf("%+v, %v", side, err)
	}
	for _, bad := range []v1alpha1.Network{
		{Profile: "flannel", PodCIDRs: []string{"nonsense"}},
		{Profile: "flannel", Detected: &runtime.RawExtension{Raw: []byte(`{"podCIDRs":7}`)}},
	} {
		if _, err := Side(bad); err == nil {
			t.Errorf("%+v is no error", bad)
		}
	}
}

// An agent that still runs would make again what is removed.
func TestAgentsThatRunAreFound(t *testing.T) {
	sandbox := func(namespace, pod string, ready bool) facts.Sandbox {
		return facts.Sandbox{Namespace: namespace, Pod: pod, Ready: ready, HostNetwork: true}
	}
	have := running([]string{"DaemonSet/kube-flannel/kube-flannel-ds", "Deployment/kube-system/operator", "nonsense"}, []facts.Sandbox{
		sandbox("kube-flannel", "kube-flannel-ds-x2x4z", true),
		sandbox("kube-flannel", "kube-flannel-ds-other-x2x4z", true),
		sandbox("kube-flannel", "kube-flannel-ds-old12", false),
		sandbox("other", "kube-flannel-ds-x2x4z", true),
		sandbox("kube-system", "operator-5c4f-2x", true),
	})
	if !slices.Equal(have, []string{"pod kube-flannel/kube-flannel-ds-x2x4z"}) {
		t.Errorf("%v", have)
	}
}
