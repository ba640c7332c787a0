package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/guest/control"
)

func TestAMissingModuleIsNamed(t *testing.T) {
	if err := (modules{dir: "/m"}).load("nope"); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Error(err)
	}
}

func TestEveryProcessorGetsAClock(t *testing.T) {
	in := "processor\t: 0\nmodel name\t: UML\n\nprocessor\t: 1\ncpu MHz\t\t: 7\n\n"
	want := "processor\t: 0\nmodel name\t: UML\ncpu MHz\t\t: 1000.000\n\nprocessor\t: 1\ncpu MHz\t\t: 7\n\n"
	if got := string(withClock([]byte(in), "1000.000")); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestHostsFile(t *testing.T) {
	b := control.Boot{
		Hostname: "node1",
		Links: []control.Link{
			{Name: "trunk0"}, {Name: "eth0", Addr: netip.MustParsePrefix("10.0.0.2/24")},
		},
		Hosts: map[string]netip.Addr{"b": netip.MustParseAddr("10.0.0.4"), "a": netip.MustParseAddr("fd00::3")},
	}
	const local = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
	if got, want := hostsFile(b), local+"10.0.0.2 node1\nfd00::3 a\n10.0.0.4 b\n"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	b.Hosts = map[string]netip.Addr{"node1": netip.MustParseAddr("10.9.9.9")}
	if got, want := hostsFile(b), local+"10.9.9.9 node1\n"; got != want {
		t.Errorf("with its own name given: %q, want %q", got, want)
	}
	if got, want := hostsFile(control.Boot{Hostname: "x"}), local+"127.0.1.1 x\n"; got != want {
		t.Errorf("without links: %q, want %q", got, want)
	}
}

func TestTheLastVariableOfANameWins(t *testing.T) {
	env := environment([]string{"A=1", "HOME=/x", "A=2"})
	if !slices.Contains(env, "A=2") || slices.Contains(env, "A=1") ||
		!slices.Contains(env, "HOME=/x") || slices.Contains(env, "HOME=/root") || len(env) != 5 {
		t.Error(env)
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":            "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/5.rp_filter": "/proc/sys/net/ipv4/conf/eth0.5/rp_filter",
	} {
		if got := sysctlPath(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}
