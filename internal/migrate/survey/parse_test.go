package survey

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/rtnl"
)

// As Linux 6.18 prints them, of a vxlan link that is up on port 8472.
const udpOfFlannel = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            
 6991: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 19531813 2 00000000d861b2f5 0      
 6992: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 31 2 00000000de646710 0      
 6993: 0100007F:0036 0200007F:0035 01 00000000:00000000 00:00000000 00000000   101        0 32 2 00000000de646711 0      
`

const tcp6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0000000000000000FFFF00000100007F:0017 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
`

func TestSocketsThatWaitAreRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		tcp        bool
		want       []facts.Listener
		err        string
	}{
		{"udp, not those with a peer", udpOfFlannel, false, []facts.Listener{{Addr: "0.0.0.0", Port: 8472}, {Addr: "127.0.0.1", Port: 53}}, ""},
		{"tcp6, not those that are connected", tcp6, true, []facts.Listener{{Addr: "::", Port: 8080}, {Addr: "2001:db8::1", Port: 22}, {Addr: "::ffff:127.0.0.1", Port: 23}}, ""},
		{"nothing", "", false, nil, ""},
		{"a heading", "  sl\n", false, nil, ""},
		{"half a line", "sl\n 1: 00000000:2118 00\n", false, nil, "too few fields"},
		{"no address", "sl\n 1: 0000:2118 0:0 07\n", false, nil, "neither 4 nor 16 bytes"},
		{"no port", "sl\n 1: 00000000 0:0 07\n", false, nil, "no port"},
		{"no state", "sl\n 1: 00000000:2118 0:0 xx\n", false, nil, "state"},
		{"those before what is wrong", udpOfFlannel[:strings.Index(udpOfFlannel, " 6992")] + "x", false, []facts.Listener{{Addr: "0.0.0.0", Port: 8472}}, "too few fields"},
	} {
		have, err := parseSockets(strings.NewReader(c.text), c.tcp)
		if !slices.Equal(have, c.want) {
			t.Errorf("%s: have %v, want %v", c.name, have, c.want)
		}
		if got := ""; err != nil && (c.err == "" || !strings.Contains(err.Error(), c.err)) || err == nil && c.err != got {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add(udpOfFlannel, false)
	f.Add(tcp6, true)
	f.Fuzz(func(t *testing.T, text string, tcp bool) {
		list, _ := parseSockets(strings.NewReader(text), tcp)
		if len(list) > strings.Count(text, "\n") {
			t.Errorf("%d sockets in %d lines", len(list), strings.Count(text, "\n"))
		}
		for _, l := range list {
			if _, err := netip.ParseAddr(l.Addr); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSocketsOfTunnelsAreTheKernels(t *testing.T) {
	tunnel := func(up bool, t facts.Tunnel) facts.Link {
		t.Kind, t.Port = "vxlan", 8472
		return facts.Link{Name: "t0", Up: up, Tunnel: &t}
	}
	four := facts.Listener{Addr: "0.0.0.0", Port: 8472}
	six := facts.Listener{Addr: "::", Port: 8472}
	loopback := facts.Listener{Addr: "127.0.0.1", Port: 8472}
	other := facts.Listener{Addr: "0.0.0.0", Port: 8473}
	for _, c := range []struct {
		name   string
		link   facts.Link
		udp    []facts.Listener
		kernel []bool
		ipv6   bool
	}{
		{"IPv4", tunnel(true, facts.Tunnel{}), []facts.Listener{four, six}, []bool{true, false}, false},
		{"IPv6", tunnel(true, facts.Tunnel{IPv6: true}), []facts.Listener{four, six}, []bool{false, true}, true},
		{"both", tunnel(true, facts.Tunnel{External: true}), []facts.Listener{four, six}, []bool{true, true}, false},
		{"external without IPv6", tunnel(true, facts.Tunnel{External: true}), []facts.Listener{four}, []bool{true}, false},
		{"IPv6 without addresses", tunnel(true, facts.Tunnel{}), []facts.Listener{six}, []bool{true}, true},
		{"a link that is down has no socket", tunnel(false, facts.Tunnel{}), []facts.Listener{four}, []bool{false}, false},
		{"one address", tunnel(true, facts.Tunnel{}), []facts.Listener{loopback}, []bool{false}, false},
		{"another port", tunnel(true, facts.Tunnel{}), []facts.Listener{other}, []bool{false}, false},
		{"no tunnel", facts.Link{Name: "eth0", Up: true}, []facts.Listener{four}, []bool{false}, false},
	} {
		udp := slices.Clone(c.udp)
		own(udp, []facts.Link{c.link})
		for i, l := range udp {
			if l.Kernel != c.kernel[i] {
				t.Errorf("%s: %+v", c.name, l)
			}
		}
		if c.link.Tunnel != nil && c.link.Tunnel.IPv6 != c.ipv6 {
			t.Errorf("%s: %+v", c.name, *c.link.Tunnel)
		}
	}
}

const saved = `# Generated by iptables-save v1.8.9 (nf_tables) on Sun Nov 22 02:00:00 2026
*nat
:PREROUTING ACCEPT [12:3456]
:POSTROUTING ACCEPT [1:2]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq [1:2] # Generated by" -j FLANNEL-POSTRTG
[7:8] -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
COMMIT
# Completed on Sun Nov 22 02:00:00 2026
# Table ` + "`raw' is incompatible, use 'nft' tool." + `
`

const stripped = `*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq [1:2] # Generated by" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
COMMIT
# Table ` + "`raw' is incompatible, use 'nft' tool." + `
`

func TestRulesAreSavedWithoutWhatDiffersEachTime(t *testing.T) {
	if have := stripSave(saved); have != stripped {
		t.Errorf("have\n%swant\n%s", have, stripped)
	}
	if have := tables(saved); !slices.Equal(have, []string{"nat"}) {
		t.Errorf("tables %v", have)
	}
}

func FuzzStripSave(f *testing.F) {
	f.Add(saved)
	f.Fuzz(func(t *testing.T, text string) {
		once := stripSave(text)
		if !slices.Equal(tables(once), tables(text)) {
			t.Errorf("tables %v, had %v", tables(once), tables(text))
		}
		// A counter behind a counter is no counter of iptables'.
		if twice := stripSave(once); len(twice) > len(once) {
			t.Errorf("%q became %q", once, twice)
		}
	})
}

const ruleset = `# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
	}
}
table ip raw {
	chain mine {
	}
}
table ip6 nat {
	chain POSTROUTING {
	}
}
table ip flannel-ipv4 {
	chain postrtg {
		comment "table ip nat {"
	}
}
`

const others = `table ip raw {
	chain mine {
	}
}
table ip6 nat {
	chain POSTROUTING {
	}
}
table ip flannel-ipv4 {
	chain postrtg {
		comment "table ip nat {"
	}
}
`

func TestTablesOfIptablesAreNotToldTwice(t *testing.T) {
	// iptables can show ip nat; ip raw it cannot, and ip6 it was not asked.
	if have := ownTables(ruleset, map[string][]string{"ip": {"nat", "filter"}}); have != others {
		t.Errorf("have\n%swant\n%s", have, others)
	}
	if have := ownTables(others, nil); have != others {
		t.Errorf("have\n%swant\n%s", have, others)
	}
}

func FuzzOwnTables(f *testing.F) {
	f.Add(ruleset, "nat")
	f.Fuzz(func(t *testing.T, text, name string) {
		have := ownTables(text, map[string][]string{"ip": {name}})
		if again := ownTables(have, map[string][]string{"ip": {name}}); again != have {
			t.Errorf("%q became %q", have, again)
		}
	})
}

func TestPrettyName(t *testing.T) {
	for text, want := range map[string]string{
		"NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n": "Debian GNU/Linux 12 (bookworm)",
		"NAME=Alpine\nID=alpine\n":            "Alpine",
		"PRETTY_NAME='Flatcar \"x\"'":         "Flatcar \"x",
		"PRETTY_NAME=\nNAME=x":                "",
		"":                                    "",
		"# comment\n  PRETTY_NAME=\"a\\\"b\"": `a"b`,
	} {
		if have := prettyName(text); have != want {
			t.Errorf("%q: have %q, want %q", text, have, want)
		}
	}
}

func TestSecretsOfConfigurationsAreNotTold(t *testing.T) {
	for text, want := range map[string]string{
		`{"policy":{"k8s_auth_token":"abc\"def"},"type":"calico"}`: `{"policy":{"k8s_auth_token":"(not told)"},"type":"calico"}`,
		`{"Password" : "x", "name": "y"}`:                          `{"Password" : "(not told)", "name": "y"}`,
		`{"client-key-data":"abc`:                                  `{"client-key-data":"(not told)"`,
		`{"name":"cbr0"}`:                                          `{"name":"cbr0"}`,
		"apiVersion: v1\nkind: Config\nusers: []\n":                "",
		"": "",
	} {
		if have := confText(text); have != want {
			t.Errorf("%s: have %s, want %s", text, have, want)
		}
	}
}

func TestOnlyConfigurationsAreRead(t *testing.T) {
	for name, want := range map[string]bool{
		"10-flannel.conflist": true, "10-flannel.conflist.cilium_bak": true, "87-podman.conf": true, "x.json.bak": true,
		"00-braid-migrate.conflist.braid-migrate": true,
		"calico-kubeconfig":                       false, "multus.kubeconfig": false, "ZZZ-istio-cni-kubeconfig": false, "README": false,
	} {
		if have := isConf(name); have != want {
			t.Errorf("%s: %t", name, have)
		}
	}
}

func TestLinksHaveNamesInsteadOfIndexes(t *testing.T) {
	links := []rtnl.Link{
		{Index: 1, Name: "lo", Kind: "device", ParentNSID: -1},
		{Index: 2, Name: "eth0", Kind: "device", Master: 5, ParentNSID: -1},
		{Index: 3, Name: "eth0.7", Kind: "vlan", Parent: 2, ParentNSID: -1},
		{Index: 4, Name: "veth1", Kind: "veth", Parent: 2, ParentNSID: 0, Master: 6},
		{Index: 5, Name: "bond0", Kind: "bond", Master: 7, ParentNSID: -1},
		{Index: 6, Name: "cni0", Kind: "bridge", ParentNSID: -1},
		{Index: 7, Name: "red", Kind: "vrf", ParentNSID: -1},
		{Index: 8, Name: "vx", Kind: "vxlan", ParentNSID: -1},
		{Index: 9, Name: "mv", Kind: "macvlan", Parent: 2, ParentNSID: 1},
	}
	addrs := map[int][]rtnl.Addr{2: {{Prefix: netip.MustParsePrefix("192.0.2.1/24")}, {Prefix: netip.MustParsePrefix("fe80::1/64")}}}
	tunnels := map[int]rtnl.Tunnel{8: {Kind: "vxlan", ID: 1, Port: 8472, Lower: 2, Local: netip.MustParseAddr("192.0.2.1")}}
	want := []facts.Link{
		{Name: "lo"},
		{Name: "eth0", Master: "bond0", Addrs: []string{"192.0.2.1/24"}},
		{Name: "eth0.7", Kind: "vlan", Parent: "eth0"},
		{Name: "veth1", Kind: "veth", Master: "cni0"},
		{Name: "bond0", Kind: "bond", Master: "red"},
		{Name: "cni0", Kind: "bridge"},
		{Name: "red", Kind: "vrf"},
		{Name: "vx", Kind: "vxlan", Parent: "eth0", Tunnel: &facts.Tunnel{Kind: "vxlan", ID: 1, Port: 8472, Local: "192.0.2.1", L3MDev: "red"}},
		{Name: "mv", Kind: "macvlan"},
	}
	if have := linkFacts(links, addrs, tunnels); !reflect.DeepEqual(have, want) {
		t.Errorf("have %+v\nwant %+v", have, want)
	}
	// A link that says to be above itself is no VRF, and no endless loop.
	loop := map[int]rtnl.Link{2: {Index: 2, Master: 3}, 3: {Index: 3, Master: 2}}
	if f := tunnelFacts(rtnl.Tunnel{Kind: "vxlan", Lower: 2}, loop); f.L3MDev != "" {
		t.Errorf("%+v", f)
	}
}
