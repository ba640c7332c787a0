package hostlocal

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// parseSets reads ipam as a configuration has it.
func parseSets(t rapid.TB, ipam string) ([]rangeSet, error) {
	t.Helper()
	c, err := parse([]byte(`{"cniVersion":"1.0.0","name":"n","ipam":`+ipam+`}`), "", "/data")
	return c.sets, err
}

func mustSets(t rapid.TB, ipam string) []rangeSet {
	t.Helper()
	sets, err := parseSets(t, ipam)
	if err != nil {
		t.Fatalf("%s: %v", ipam, err)
	}
	return sets
}

// all hands out addresses until there are none.
func all(set rangeSet, last netip.Addr, limit int) []string {
	taken := make(map[netip.Addr]bool)
	var out []string
	for len(out) < limit {
		a, ok := set.next(last, func(a netip.Addr) bool { return taken[a] })
		if !ok {
			break
		}
		taken[a], last = true, a
		out = append(out, a.String())
	}
	return out
}

func TestAddressesOfRanges(t *testing.T) {
	for ipam, want := range map[string]string{
		`{"subnet":"10.0.0.0/30"}`: "10.0.0.2",
		`{"subnet":"10.0.0.0/30","rangeStart":"10.0.0.0","rangeEnd":"10.0.0.3"}`:        "10.0.0.0 10.0.0.2 10.0.0.3",
		`{"subnet":"10.0.0.0/29","gateway":"10.0.0.3"}`:                                 "10.0.0.1 10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6",
		`{"subnet":"10.0.0.0/29","gateway":"10.9.9.9"}`:                                 "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6",
		`{"subnet":"fd00::/126"}`:                                                       "fd00::2 fd00::3",
		`{"subnet":"255.255.255.248/29","rangeStart":"255.255.255.253"}`:                "255.255.255.253 255.255.255.254",
		`{"subnet":"255.255.255.252/30","rangeEnd":"255.255.255.255"}`:                  "255.255.255.254 255.255.255.255",
		`{"subnet":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"}`:                      "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		`{"ranges":[[{"subnet":"10.0.0.0/30"},{"subnet":"10.1.0.0/30"}]]}`:              "10.0.0.2 10.1.0.2",
		`{"subnet":"10.0.0.0/8","rangeStart":"10.0.0.1","rangeEnd":"10.0.0.1"}`:         "",
		`{"subnet":"10.0.0.0/8","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.9"}`:         "10.0.0.9",
		`{"subnet":"10.0.0.0/24","rangeStart":"::ffff:10.0.0.9","rangeEnd":"10.0.0.9"}`: "10.0.0.9",
	} {
		sets := mustSets(t, ipam)
		if got := strings.Join(all(sets[0], netip.Addr{}, 100), " "); got != want || len(sets) != 1 {
			t.Errorf("%s: %s, want %s", ipam, got, want)
		}
	}
}

func TestRangesRefused(t *testing.T) {
	for ipam, want := range map[string]string{
		`{}`:                            "no range",
		`{"ranges":[]}`:                 "no range",
		`{"ranges":[[]]}`:               "range set 0: is empty",
		`{"ranges":[null]}`:             "is empty",
		`{"ranges":[[{}]]}`:             "subnet is missing",
		`{"ranges":[[null]]}`:           "subnet is missing",
		`{"subnet":""}`:                 "subnet",
		`{"subnet":"10.0.0.0"}`:         "CIDR",
		`{"subnet":"10.0.0.0/31"}`:      "too small",
		`{"subnet":"10.0.0.0/32"}`:      "too small",
		`{"subnet":"fd00::/127"}`:       "too small",
		`{"subnet":"10.0.0.1/24"}`:      "host bits set, the network is 10.0.0.0/24",
		`{"subnet":"::ffff:a00:0/120"}`: "IPv4 in IPv6 form",
		`{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}`:                                       "rangeStart 10.0.1.1 is not in subnet",
		`{"subnet":"10.0.0.0/24","rangeEnd":"fd00::1"}`:                                          "rangeEnd fd00::1 is not in subnet",
		`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}`:                 "ends before it starts",
		`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.255"}`:                                     "ends before it starts",
		`{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.0"}`:                                         "ends before it starts",
		`{"subnet":"10.0.0.0/24","gateway":"10.0.0"}`:                                            "gateway",
		`{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}`:                         "mixes",
		`{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.128/25"}]]}`:                     "overlaps with another range of the set",
		`{"subnet":"10.0.0.0/24","ranges":[[{"subnet":"fd00::/64"}],[{"subnet":"10.0.0.0/8"}]]}`: "range set 0 (10.0.0.1-10.0.0.254) overlaps with range set 2",
	} {
		if _, err := parseSets(t, ipam); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", ipam, err, want)
		}
	}
}

func TestRangesOfOneSubnetInDifferentSets(t *testing.T) {
	sets := mustSets(t, `{"ranges":[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.9"}],[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.10"}]]}`)
	if len(sets) != 2 {
		t.Error(sets)
	}
}

// drawSpan returns a small range as people write it, and the addresses it must
// give, found the slow way.
func drawSpan(t *rapid.T, base string) (conf map[string]string, want []netip.Addr) {
	first := netip.MustParseAddr(base)
	bits := rapid.IntRange(first.BitLen()-6, first.BitLen()-2).Draw(t, "bits")
	subnet := netip.PrefixFrom(first, bits)
	conf = map[string]string{"subnet": subnet.String()}
	var inside []netip.Addr
	for a := first; subnet.Contains(a) && a.IsValid(); a = a.Next() {
		inside = append(inside, a)
	}
	start, end := 1, len(inside)-1
	if first.Is4() {
		end--
	}
	if rapid.Bool().Draw(t, "with start") {
		start = rapid.IntRange(0, end).Draw(t, "start")
		conf["rangeStart"] = inside[start].String()
	}
	if rapid.Bool().Draw(t, "with end") {
		end = rapid.IntRange(start, len(inside)-1).Draw(t, "end")
		conf["rangeEnd"] = inside[end].String()
	}
	gateway := inside[1]
	if rapid.Bool().Draw(t, "with gateway") {
		gateway = rapid.SampledFrom(inside).Draw(t, "gateway")
		conf["gateway"] = gateway.String()
	}
	for i, a := range inside {
		if i >= start && i <= end && a != gateway {
			want = append(want, a)
		}
	}
	return conf, want
}

func TestEveryAddressOfASetIsGivenOnceInTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bases := rapid.SampledFrom([][]string{
			{"10.0.0.0", "192.168.255.192", "255.255.255.192"},
			{"fd00::", "fd00::8000:0:0:0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0"},
		}).Draw(t, "family")
		var conf []map[string]string
		var want []netip.Addr
		for _, base := range bases[:rapid.IntRange(1, 3).Draw(t, "ranges")] {
			c, w := drawSpan(t, base)
			conf, want = append(conf, c), append(want, w...)
		}
		data, err := json.Marshal(map[string]any{"ranges": []any{conf}})
		if err != nil {
			t.Fatal(err)
		}
		set := mustSets(t, string(data))[0]
		// Begin after any address, also one that is no member.
		last := netip.Addr{}
		if len(want) > 0 && rapid.Bool().Draw(t, "with last") {
			i := rapid.IntRange(0, len(want)-1).Draw(t, "last")
			last = want[i]
			want = append(slices.Clone(want[i+1:]), want[:i+1]...)
		}
		if got := all(set, last, 1000); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s after %v:\n got %v\nwant %v", data, last, got, want)
		}
	})
}

func TestHugeRangesCostNothing(t *testing.T) {
	begin := time.Now()
	for _, tt := range []struct{ ipam, last, want string }{
		{`{"subnet":"fd00::/64","rangeStart":"fd00::8000:0:0:1"}`, "", "fd00::8000:0:0:1 fd00::8000:0:0:2 fd00::8000:0:0:3"},
		{`{"subnet":"fd00::/48"}`, "fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1:: fd00:0:0:1::1 fd00:0:0:1::2"},
		{`{"subnet":"fd00::/48"}`, "fd00::ffff:ffff:ffff:ffff:fffe", "fd00::ffff:ffff:ffff:ffff:ffff fd00::2 fd00::3"},
		{`{"subnet":"::/0"}`, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::2 ::3 ::4"},
		{`{"subnet":"0.0.0.0/0"}`, "255.255.255.253", "255.255.255.254 0.0.0.2 0.0.0.3"},
	} {
		var last netip.Addr
		if tt.last != "" {
			last = netip.MustParseAddr(tt.last)
		}
		if got := strings.Join(all(mustSets(t, tt.ipam)[0], last, 3), " "); got != tt.want {
			t.Errorf("%s after %s: %s, want %s", tt.ipam, tt.last, got, tt.want)
		}
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("took %v", d)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"name":"n","ipam":{"subnet":"10.0.0.0/24"}}`,
		`{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.5","rangeEnd":"10.0.0.9","gateway":"10.0.0.1"}],[{"subnet":"fd00::/64"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"/tmp/x","resolvConf":"/etc/resolv.conf"}}`,
		`{"name":"n","runtimeConfig":{"ips":["10.0.0.5","fd00::5/64"],"ipRanges":[[{"subnet":"10.1.0.0/16"}]]},"args":{"cni":{"ips":["10.0.0.6/24"]}},"ipam":{"subnet":"10.0.0.0/24"}}`,
		`{"name":"n","ipam":{"dataDir":"relative"}}`, `{"ipam":null}`, `[]`,
	} {
		f.Add([]byte(s), "IP=10.0.0.9")
	}
	f.Fuzz(func(t *testing.T, data []byte, args string) {
		c, err := parse(data, args, "/data")
		if err != nil {
			return
		}
		for i, set := range c.sets {
			for j, s := range set {
				if !s.subnet.Contains(s.first) || !s.subnet.Contains(s.last) || s.last.Less(s.first) {
					t.Errorf("set %d, range %d: %v of %v", i, j, s, s.subnet)
				}
			}
			seen := make(map[string]bool)
			for _, a := range all(set, netip.Addr{}, 20) {
				if _, ok := set.find(netip.MustParseAddr(a)); !ok || seen[a] {
					t.Errorf("set %v gives %s", set, a)
				}
				seen[a] = true
			}
		}
		if _, err := parseDir(data, "/data"); err != nil {
			t.Errorf("Add knows the directory, Del does not: %v", err)
		}
	})
}
