package kmod

import (
	"maps"
	"slices"
	"testing"
)

func TestModulesLoadAfterWhatTheyNeed(t *testing.T) {
	deps := Parse("kernel/net/802/stp.ko: kernel/net/llc/llc.ko\n"+
		"kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n"+
		"kernel/net/br-netfilter.ko:\nnot a line\n", "kernel/net/ipv6/ipv6.ko\n")
	want := Deps{
		"stp":          {"kernel/net/llc/llc.ko", "kernel/net/802/stp.ko"},
		"bridge":       {"kernel/net/llc/llc.ko", "kernel/net/802/stp.ko", "kernel/net/bridge/bridge.ko"},
		"br_netfilter": {"kernel/net/br-netfilter.ko"},
		"ipv6":         {},
	}
	if !maps.EqualFunc(deps, want, slices.Equal[[]string]) {
		t.Errorf("got %v, want %v", deps, want)
	}
	if got := deps.Files("br-netfilter"); !slices.Equal(got, want["br_netfilter"]) {
		t.Errorf("a name with a dash: %v", got)
	}
	if got := deps.Files("ipv6"); got == nil {
		t.Error("a module that is built in: none")
	}
	if got := deps.Files("none"); got != nil {
		t.Errorf("a module that is not there: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("kernel/a.ko: kernel/b.ko\n")
	f.Add(":\n:::\n")
	f.Fuzz(func(t *testing.T, text string) {
		for module, files := range Parse(text, "") {
			if len(files) == 0 || name(files[len(files)-1]) != module {
				t.Errorf("%q does not come last in %q", module, files)
			}
		}
	})
}
