package keepsource

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigurationsThatExemptTooMuchOrNothingAreRefused(t *testing.T) {
	p := netip.MustParsePrefix
	good := Config{Old: []netip.Prefix{p("10.1.0.0/16")}, New: []netip.Prefix{p("10.2.0.0/16")}, StateFile: "f", Host: host{}}
	if _, err := good.checked(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"overlap":           func(c *Config) { c.New = []netip.Prefix{p("10.1.7.0/24")} },
		"no address family": func(c *Config) { c.New = []netip.Prefix{p("fd00::/48")} },
		"no addresses":      func(c *Config) { c.Old = []netip.Prefix{p("0.0.0.0/0")} },
		"devices":           func(c *Config) { c.OldDevices = []string{"["} },
		"no state file":     func(c *Config) { c.StateFile = "" },
		"run programs":      func(c *Config) { c.Host = nil },
		"invalid Prefix":    func(c *Config) { c.Old = append(c.Old, netip.Prefix{}) },
	} {
		c := good
		spoil(&c)
		if _, err := c.checked(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestOursAreFirstAndAlone(t *testing.T) {
	p := netip.MustParsePrefix
	want := acceptRules([]way{{from: p("10.1.0.0/16"), to: p("10.2.0.0/16")}, {from: p("10.2.0.0/16"), to: p("10.1.0.0/16"), fromNew: true}})
	one, two := want[0].String(), want[1].String()
	foreign := "-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD"
	put := []string{"-I FORWARD 1 " + one, "-I FORWARD 2 " + two}
	for name, tc := range map[string]struct{ have, lines []string }{
		"none":             {[]string{foreign}, put},
		"right":            {[]string{one, two, foreign}, nil},
		"alone":            {[]string{one, two}, nil},
		"one missing":      {[]string{two, foreign}, append([]string{"-D FORWARD " + two}, put...)},
		"behind":           {[]string{foreign, one, two}, append([]string{"-D FORWARD " + one, "-D FORWARD " + two}, put...)},
		"wrong order":      {[]string{two, one}, append([]string{"-D FORWARD " + two, "-D FORWARD " + one}, put...)},
		"one too many":     {[]string{one, two, foreign, one}, append([]string{"-D FORWARD " + one, "-D FORWARD " + two, "-D FORWARD " + one}, put...)},
		"other words":      {[]string{"-s 10.1.0.0/16 -d 10.2.0.0/16 -m comment --comment \"" + "braid-migration" + "\" -m conntrack --ctstate INVALID -c 1 2 -j ACCEPT", two}, nil},
		"not ours to have": {[]string{one + " -m mark --mark 0x1", two}, append([]string{"-D FORWARD " + one + " -m mark --mark 0x1", "-D FORWARD " + two}, put...)},
	} {
		if diff := cmp.Diff(tc.lines, (&Chain{Rules: tc.have}).change("FORWARD", want)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if got := (&Chain{Rules: []string{foreign, two}}).change("FORWARD", nil); !cmp.Equal(got, []string{"-D FORWARD " + two}) {
		t.Errorf("removal: %q", got)
	}
	var missing *Chain
	if got := missing.change("FORWARD", want); got != nil {
		t.Errorf("in a table that does not exist: %q", got)
	}
}

// Only what has the comment, as a comment, is ours.
func TestRulesOfOthersAreNotOurs(t *testing.T) {
	for _, text := range []string{
		"-j braid-migration",
		"-m comment --comment \"braid-migration 2\" -j DROP",
		"-m string --string \"--comment braid-migration\" -j DROP",
		"-m comment --comment \"a\\\" --comment braid-migration\" -j DROP",
	} {
		if _, ours := parseRule(text); ours {
			t.Errorf("%s is taken for ours", text)
		}
	}
}

func TestLinksAreMadeLooseWhereTheyAreStrict(t *testing.T) {
	p := netip.MustParsePrefix
	c := Config{Old: []netip.Prefix{p("10.1.0.0/16")}, New: []netip.Prefix{p("10.2.0.0/16")}}
	addressed := []Link{{"cni0", 3, 0, true, Addressed}, {"flannel.1", 4, 1, true, Addressed}, {"lxc1", 5, 2, true, Addressed},
		{"cali1", 6, 0, true, Routed}, {"eth0", 2, 1, false, ""}, {"lo", 1, 0, false, ""}}
	bare := append(addressed[:6:6], Link{"lxc2", 7, 0, true, Bare})
	strictBare := append(addressed[:6:6], Link{"lxc2", 7, 1, true, Bare})
	links := addressed
	for _, tc := range []struct {
		all, was int
		links    []Link
		want     string
	}{
		{0, 0, addressed, "flannel.1 1 -> 2"},
		{1, 1, addressed, "cni0 0 -> 2, flannel.1 1 -> 2"},
		{2, 2, addressed, ""},
		{0, 0, bare, "flannel.1 1 -> 2"},
		{0, 0, strictBare, "flannel.1 1 -> 2, lxc2 1 -> 0"},
		{1, 1, bare, "cni0 0 -> 2, flannel.1 1 -> 2, cali1 0 -> 1, lo 0 -> 1, all 1 -> 0"},
		{2, 2, strictBare, "cali1 0 -> 2, eth0 1 -> 2, lo 0 -> 2, lxc2 1 -> 0, all 2 -> 0"},
		// After all has been changed, what comes new is treated as all would have.
		{0, 1, addressed, "flannel.1 1 -> 2, cali1 0 -> 1, lo 0 -> 1"},
	} {
		var got []string
		for _, s := range planOf(c, Observed{All: tc.all, AllWas: tc.was, Links: tc.links}).Steps {
			got = append(got, strings.NewReplacer("sysctl net.ipv4.conf.", "", ".rp_filter", "").Replace(strings.TrimSpace(s.String())))
		}
		if strings.Join(got, ", ") != tc.want {
			t.Errorf("all = %d, was %d: %q, want %q", tc.all, tc.was, got, tc.want)
		}
	}
	c.Old, c.New = []netip.Prefix{p("fd01::/48")}, []netip.Prefix{p("fd02::/48")}
	if got := planOf(c, Observed{All: 1, Links: links}).Steps; len(got) > 0 {
		t.Errorf("IPv6 only: %v", got)
	}
}

func FuzzRule(f *testing.F) {
	f.Add("-s 10.1.0.0/16 -d 10.2.0.0/16 -m conntrack --ctstate INVALID -m comment --comment braid-migration -j ACCEPT")
	f.Add("-m comment --comment \"a \\\" b\" ! -s fd00::/8 -c 1 2 -j NETMAP --to ::/0")
	f.Add("! ! --mark")
	f.Add("\"")
	f.Fuzz(func(t *testing.T, text string) {
		r, ours := parseRule(text)
		if !ours || r.other {
			return
		}
		if !strings.Contains(text, name) {
			t.Errorf("%q is taken for ours", text)
		}
		if again, ours := parseRule(r.String()); r.from.IsValid() && r.to.IsValid() && r.target == "ACCEPT" && (!ours || again.from != r.from || again.to != r.to) {
			t.Errorf("%q became %q", text, r)
		}
	})
}
