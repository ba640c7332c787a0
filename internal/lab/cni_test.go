package lab

import (
	"slices"
	"strings"
	"testing"
)

func TestEachLabBuildsOnlyWhatItsNetworkNeeds(t *testing.T) {
	every := Config{CNI: "bridge"}.programs()
	for _, name := range []string{"flanneld", "flannel", "cilium-agent", "cilium-cni"} {
		if slices.Contains(every, name) {
			t.Errorf("every lab would build %s", name)
		}
	}
	list, err := selectPrograms(nil)
	if err != nil || !slices.Equal(programNames(list), every) {
		t.Errorf("`lab build` and a plain lab differ: %v, %v, %v", programNames(list), every, err)
	}
	for cni, want := range map[string][]string{
		"flannel":                {"flanneld", "flannel"},
		"flannel-host-gw":        {"flanneld", "flannel"},
		"cilium":                 {"cilium-agent", "cilium-operator-generic", "cilium-cni", "cilium-dbg"},
		"flannel-host-gw+cilium": {"flanneld", "flannel", "cilium-agent", "cilium-operator-generic", "cilium-cni", "cilium-dbg"},
	} {
		var got []string
		for _, name := range (Config{CNI: cni}).programs() {
			if !slices.Contains(every, name) {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", cni, got, want)
		}
	}
}

func TestCiliumComesSecondOnlyBesideAnother(t *testing.T) {
	alone := strings.Join(Config{CNI: "cilium"}.ciliumAgentArgs(), " ")
	second := strings.Join(Config{CNI: "flannel-host-gw+cilium"}.ciliumAgentArgs(), " ")
	for _, want := range []string{"--cni-exclusive=true", "/05-cilium.conflist", "--routing-mode=tunnel"} {
		if !strings.Contains(alone, want) || strings.Contains(second, want) {
			t.Errorf("%s: alone %q, second %q", want, alone, second)
		}
	}
	for _, want := range []string{"--cni-exclusive=false", "/20-cilium.conflist", "--routing-mode=native"} {
		if strings.Contains(alone, want) || !strings.Contains(second, want) {
			t.Errorf("%s: alone %q, second %q", want, alone, second)
		}
	}
}
