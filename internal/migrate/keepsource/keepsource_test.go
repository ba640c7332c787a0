package keepsource

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

var update = flag.Bool("update", false, "write the golden files")

// worlds are the ways in which a node's masquerades are written.
var worlds = []struct {
	name         string
	firewall     Backend
	flannelInNFT bool
}{
	{"iptables-nft", NFT, false},
	{"flannel-nftables", NFT, true},
	{"iptables-legacy", Legacy, false},
}

func eachWorld(t *testing.T, test func(t *testing.T, w *world, dir string)) {
	for _, tc := range worlds {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tc.firewall)
			w.masquerades(t, tc.flannelInNFT)
			test(t, w, t.TempDir())
		})
	}
}

// everywhere runs fn for both nodes.
func (w *world) everywhere(t *testing.T, dir string, fn func(Config)) {
	t.Helper()
	for _, node := range []string{"node1", "node2"} {
		fn(w.config(t, node, dir))
	}
}

func (w *world) apply(t *testing.T, dir string) {
	t.Helper()
	w.everywhere(t, dir, func(c Config) {
		must(Apply(t.Context(), c))(t)
		try(t, Verify(t.Context(), c))
	})
}

func (w *world) remove(t *testing.T, dir string) {
	t.Helper()
	w.everywhere(t, dir, func(c Config) { try(t, Remove(t.Context(), c)) })
}

// Whom servers see in the four directions.
func own(from, _ string, is6 bool) string      { return address(from, is6).String() }
func hidden(_, hidden string, is6 bool) string { return address(hidden, is6).String() }

func (w *world) check(t *testing.T, when string, want func(from, hidden string, is6 bool) string) {
	t.Helper()
	for _, is6 := range []bool{false, true} {
		for _, d := range four {
			if got, want := w.seen(t, d.from, at(d.to, is6), patient), want(d.from, d.hidden, is6); got != want {
				t.Errorf("%s: %s sees %s as %s, want %s", when, d.to, d.from, got, want)
			}
		}
	}
}

func TestServersSeeThePodsOwnAddresses(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		w.deliversUnseen(t)
		w.dropsInvalid(t)
		w.check(t, "before", hidden)
		w.apply(t, dir)
		w.check(t, "meanwhile", own)
		for _, node := range []string{"node1", "node2"} {
			e := must(ReadEffect(t.Context(), w.config(t, node, dir)))(t)
			// The pods of node1 begin all connections. Of one that takes two ways,
			// its node does not see the answer come, and the other node takes the
			// answer for the beginning.
			want := map[string]Effect{
				"node1": {OldToNew: Count{Kept: 4}, NewToOld: Count{Kept: 4, Passed: e.NewToOld.Passed}},
				"node2": {NewToOld: Count{Kept: 4, Passed: e.NewToOld.Passed}},
			}
			if e != want[node] || e.NewToOld.Passed == 0 {
				t.Errorf("%s: %s", node, e)
			}
		}
		w.remove(t, dir)
		w.check(t, "after", hidden)
	})
}

// Without NAT the two directions of a connection take different overlays, which
// each of the two other parts has to make up for.
func TestEndOfNATAloneBreaksWhatNATHeldTogether(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cause func(*world, *testing.T)
	}{
		{"strict reverse path", (*world).strict},
		{"invalid dropped", func(w *world, t *testing.T) { w.deliversUnseen(t); w.dropsInvalid(t) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, usual())
			w.masquerades(t, false)
			tc.cause(w, t)
			f1toC2 := func(when, want string) {
				t.Helper()
				wait := patient
				if want == "nobody" {
					wait = brief
				}
				if got := w.seen(t, "f1", at("c2", false), wait); got != want {
					t.Errorf("%s: c2 sees f1 as %s, want %s", when, got, want)
				}
			}
			f1toC2("before", hidden("", "node1 cilium_host", false))
			dir := t.TempDir()
			w.everywhere(t, dir, func(c Config) {
				c = mustChecked(t, c)
				p := must(c.inspect(t.Context(), &lessons{noTable: [2]bool{inGuest(), inGuest()}}))(t)
				nat := slices.DeleteFunc(p.Steps, func(s Step) bool { return s.Part != PartNFTables && s.Table != "nat" })
				must(c.do(t.Context(), nat))(t)
			})
			f1toC2("without NAT", "nobody")
			w.apply(t, dir)
			f1toC2("with all parts", own("f1", "", false))
		})
	}
}

func mustChecked(t *testing.T, c Config) Config {
	t.Helper()
	return must(c.checked())(t)
}

func TestServicesKeepTheSourceUnlessKubeProxyAsks(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		w.apply(t, dir)
		for _, is6 := range []bool{false, true} {
			plain, marked := w.service(t, is6)
			for to, want := range map[netip.AddrPort]string{plain: own("f1", "", is6), marked: hidden("", "node1 cilium_host", is6)} {
				if got := w.seen(t, "f1", to, patient); got != want {
					t.Errorf("by %s c2 sees f1 as %s, want %s", to, got, want)
				}
			}
		}
	})
}

// kube-proxy's mode nftables has chains of its own, and drops no invalid
// packets.
func TestKubeProxyInNFTables(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet)
	w := newWorld(t, NFT)
	w.masquerades(t, true)
	w.deliversUnseen(t)
	for _, n := range []string{"1", "2"} {
		w.nft(t, "node"+n, `table ip kube-proxy {
 chain filter-forward {
  type filter hook forward priority filter
  ct state new ip daddr 10.96.0.0/16 reject
 }
 chain nat-prerouting {
  type nat hook prerouting priority dstnat
  ip daddr 10.96.0.10 tcp dport 80 dnat to 172.20.2.2:8080
  ip daddr 10.96.0.11 tcp dport 80 meta mark set mark or 0x4000 dnat to 172.20.2.2:8080
 }
 chain nat-postrouting {
  type nat hook postrouting priority srcnat
  mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
 }
}
`)
	}
	dir := t.TempDir()
	w.apply(t, dir)
	w.check(t, "meanwhile", own)
	for to, want := range map[string]string{"10.96.0.10:80": own("f1", "", false), "10.96.0.11:80": hidden("", "node1 cilium_host", false)} {
		if got := w.seen(t, "f1", netip.MustParseAddrPort(to), patient); got != want {
			t.Errorf("by %s c2 sees f1 as %s, want %s", to, got, want)
		}
	}
}

func TestConnectionsSurviveBothTurns(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		type talk struct {
			*conversation
			seen netip.Addr
		}
		var talks []talk
		begin := func() {
			t.Helper()
			for _, is6 := range []bool{false, true} {
				for _, d := range four {
					k, seen, err := w.connect(d.from, at(d.to, is6), patient)
					try(t, err)
					talks = append(talks, talk{k, seen})
				}
			}
		}
		goOn := func(when string) {
			t.Helper()
			for _, k := range talks {
				if got, err := k.again(); err != nil || got != k.seen {
					t.Errorf("%s: %s is seen as %s, %v; before as %s", when, k.LocalAddr(), got, err, k.seen)
				}
			}
		}
		begin()
		w.apply(t, dir)
		goOn("after Apply")
		begin()
		w.remove(t, dir)
		goOn("after Remove")
		begin()
		for i, want := range []bool{false, true, false} {
			for j, k := range talks[i*8 : i*8+8] {
				if kept := k.seen.String() == own(four[j%4].from, "", j >= 4); kept != want {
					t.Errorf("connection %d of turn %d is seen as %s", j, i, k.seen)
				}
				k.Close()
			}
		}
	})
}

func TestRemoveLeavesTheNodeAsItWas(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		w.dropsInvalid(t)
		w.strict(t)
		before := w.text(t, "node1")
		c := w.config(t, "node1", dir)
		for range 2 {
			if changed := must(Apply(t.Context(), c))(t); !changed {
				t.Error("Apply did nothing")
			}
			if changed := must(Apply(t.Context(), c))(t); changed {
				t.Error("Apply did something again")
			}
			if w.text(t, "node1") == before {
				t.Error("Apply changed nothing")
			}
			for range 2 { // with addresses of another migration, or none
				try(t, Remove(t.Context(), Config{NS: c.NS, Host: c.Host, StateFile: c.StateFile}))
			}
			if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
				t.Errorf("after Remove: %s", diff)
			}
		}
		if _, err := os.Stat(c.StateFile); !os.IsNotExist(err) {
			t.Errorf("the state file is still there: %v", err)
		}
	})
}

// A crash comes between two steps, of Apply or of Remove.
func TestCrashAnywhereThenRemoveLeavesTheNodeAsItWas(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		w.dropsInvalid(t)
		w.strict(t)
		before := w.text(t, "node1")
		c := mustChecked(t, w.config(t, "node1", dir))
		kernel := &lessons{noTable: [2]bool{inGuest(), inGuest()}}
		steps := must(c.inspect(t.Context(), kernel))(t).Steps
		var removal []Step
		for n := range len(steps) + 1 {
			try(t, c.remember(steps))
			must(c.do(t.Context(), steps[:n]))(t)
			known := must(c.recall())(t)
			removal = removalOf(must(c.observe(t.Context(), bothFamilies, known))(t), known).Steps
			try(t, Remove(t.Context(), c))
			if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
				t.Errorf("crash after %d of %d steps, then Remove: %s", n, len(steps), diff)
			}
		}
		for n := range len(removal) {
			must(Apply(t.Context(), c))(t)
			must(c.do(t.Context(), removal[:n]))(t)
			if n%2 == 0 { // somebody changed his mind
				must(Apply(t.Context(), c))(t)
				try(t, Verify(t.Context(), c))
			}
			try(t, Remove(t.Context(), c))
			if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
				t.Errorf("crash after %d of %d steps of a removal, then Remove: %s", n, len(removal), diff)
			}
		}
	})
}

func TestApplyHealsWhatOthersUndo(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		w.dropsInvalid(t)
		w.strict(t)
		c := w.config(t, "node1", dir)
		must(Apply(t.Context(), c))(t)
		whole := w.text(t, "node1")
		run := func(args ...string) func() {
			return func() { must(host{c.NS}.Run(t.Context(), nil, args...))(t) }
		}
		harms := map[string]func(){
			"a link made strict": func() {
				w.rpFilter(t, "node1", "cni0", "0") // and all is 1
			},
			"FORWARD emptied of ours":    run(program(w.firewall, false), "-D", "FORWARD", "1"),
			"somebody put himself first": run(program(w.firewall, true), "-I", "FORWARD", "1", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
		}
		if !inGuest() {
			harms["table deleted"] = run("nft", "delete", "table", "ip", name)
			harms["table emptied"] = run("nft", "flush", "table", "ip6", name)
			harms["table extended"] = run("nft", "add", "rule", "ip", name, chainName, "masquerade")
			harms["table put aside"] = run("nft", "add table ip "+name+" { flags dormant; }")
		}
		for what, harm := range harms {
			harm()
			if err := Verify(t.Context(), c); err == nil {
				t.Errorf("%s: Verify saw nothing", what)
			}
			if !must(Apply(t.Context(), c))(t) {
				t.Errorf("%s: Apply saw nothing", what)
			}
			try(t, Verify(t.Context(), c))
		}
		run(program(w.firewall, true), "-D", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")()
		if diff := cmp.Diff(sorted(whole), sorted(w.text(t, "node1"))); diff != "" {
			t.Errorf("after the harms: %s", diff)
		}
		if inGuest() {
			return
		}
		run("nft", "flush", "ruleset")() // as a firewall's restart does
		must(Apply(t.Context(), c))(t)
		try(t, Verify(t.Context(), c))
	})
}

// sorted is for texts whose tables are in the order in which they were made.
func sorted(text string) []string { return slices.Sorted(strings.Lines(text)) }

func (w *world) rpFilter(t *testing.T, node, link, value string) string {
	t.Helper()
	if value != "" {
		try(t, rtnl.Sysctl{}.Set(w.at[node], rtnl.Setting{Path: rpFilterPath(link), Value: value}))
	}
	return must(rtnl.Sysctl{}.Get(w.at[node], rpFilterPath(link)))(t)
}

func TestLinksThatAppearLaterAreLooseAndThoseThatReturnAreNew(t *testing.T) {
	w := newWorld(t, usual())
	c := w.config(t, "node1", t.TempDir())
	filter := func(link, value string) string { t.Helper(); return w.rpFilter(t, "node1", link, value) }
	h := w.handle(t, "node1")
	appear := func(value string) rtnl.Link {
		t.Helper()
		l := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "lxc9"}, Peer: rtnl.New{Name: "peer"}, PeerNS: w.at["c1"]}))(t)
		up(t, h, l, netip.MustParsePrefix("172.20.1.99/32"))
		filter("lxc9", value)
		return l
	}
	filter("flannel.1", "1")
	must(Apply(t.Context(), c))(t)
	first := appear("1")
	must(Apply(t.Context(), c))(t)
	if got := filter("lxc9", ""); got != "2" {
		t.Errorf("a new link has %s", got)
	}
	try(t, h.Del(first.Index))
	second := appear("2") // as somebody wants it
	must(Apply(t.Context(), c))(t)
	if first.Index == second.Index {
		t.Fatalf("the kernel gave index %d twice", first.Index)
	}
	filter("flannel.1", "0") // which somebody changed meanwhile
	try(t, Remove(t.Context(), c))
	if got := filter("lxc9", "") + filter("flannel.1", ""); got != "20" {
		t.Errorf("lxc9 and flannel.1 have %s, want what others gave them", got)
	}
}

// The kernel takes no packet from a link without an address that no route leads
// to, be it strict or loose. Such are the links of Cilium's pods.
func TestLinksWithoutAddressNeedAllToBeOff(t *testing.T) {
	w := newWorld(t, usual())
	w.at["x"] = kerneltest.NewNS(t)
	h, x := w.handle(t, "node1"), w.handle(t, "x")
	lxc := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "lxc7"}, Peer: rtnl.New{Name: "eth0"}, PeerNS: w.at["x"]}))(t)
	up(t, h, lxc)
	eth := must(x.Link("eth0"))(t)
	up(t, x, eth)
	w.awaitLinks(t, "x")
	w.awaitLinks(t, "node1")
	// An address whose route on node1 is the other overlay.
	up(t, x, eth, netip.MustParsePrefix("172.20.2.77/32"))
	gw := netip.MustParseAddr("172.20.1.1")
	try(t, x.AddRoute(rtnl.Route{Dst: netip.PrefixFrom(gw, 32), Link: eth.Index, Scope: 253}))
	try(t, x.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: gw, Link: eth.Index}))
	passes := func() bool {
		t.Helper()
		const enough = 80 // while the neighbours are asked for, the first ones may be lost
		return w.hears(t, "f1", "x", address("f1", false), enough)
	}
	filter := func(link, value string) string { t.Helper(); return w.rpFilter(t, "node1", link, value) }
	if !passes() {
		t.Fatal("the packet does not pass without any filter")
	}
	for _, all := range []string{"1", "2"} {
		filter("all", all)
		if w.hears(t, "f1", "x", address("f1", false), 5) {
			t.Fatalf("all = %s: the packet passes, so that there is nothing to do", all)
		}
	}
	filter("all", "1")
	filter("cni0", "2")
	before := w.text(t, "node1")
	c := w.config(t, "node1", t.TempDir())
	c.OldDevices = append(c.OldDevices, "nothing*")
	c.NewDevices = []string{"lxc7", "cilium_host"}
	must(Apply(t.Context(), c))(t)
	if !passes() {
		t.Error("the packet does not pass")
	}
	late := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "late"}, Peer: rtnl.New{Name: "late"}, PeerNS: w.at["x"]}))(t)
	must(Apply(t.Context(), c))(t)
	if must(Apply(t.Context(), c))(t) {
		t.Error("Apply does not come to rest")
	}
	for link, want := range map[string]string{"all": "0", "lxc7": "0", "cilium_host": "2", "cni0": "2", "lxc0": "1", "lo": "1", "late": "1"} {
		if got := filter(link, ""); got != want {
			t.Errorf("%s has %s, want %s", link, got, want)
		}
	}
	filter("all", "1") // as the node's own boot scripts say
	must(Apply(t.Context(), c))(t)
	if !passes() {
		t.Error("the packet does not pass after somebody had changed all")
	}
	try(t, Remove(t.Context(), c))
	try(t, h.Del(late.Index))
	if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
		t.Error(diff)
	}
}

// Another kernel, another life: values of before a reboot are nobody's.
func TestStateOfAnotherLifeIsForgotten(t *testing.T) {
	w := newWorld(t, usual())
	c := mustChecked(t, w.config(t, "node1", t.TempDir()))
	set := func(value string) {
		t.Helper()
		try(t, rtnl.Sysctl{}.Set(c.NS, rtnl.Setting{Path: rpFilterPath("cni0"), Value: value}))
	}
	set("1")
	must(Apply(t.Context(), c))(t)
	s := must(c.load())(t)
	s.Boot = "the one before"
	try(t, c.save(s))
	if err := Remove(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := must(rtnl.Sysctl{}.Get(c.NS, rpFilterPath("cni0")))(t); got != "2" {
		t.Errorf("cni0 has %s", got)
	}
}

func TestUnreadableStateIsNotTakenForNone(t *testing.T) {
	w := newWorld(t, usual())
	c := w.config(t, "node1", t.TempDir())
	w.dropsInvalid(t)
	before := w.text(t, "node1")
	must(Apply(t.Context(), c))(t)
	try(t, os.MkdirAll(filepath.Dir(c.StateFile), 0o700))
	try(t, os.WriteFile(c.StateFile, []byte("{"), 0o600))
	if err := Remove(t.Context(), c); err == nil || !strings.Contains(err.Error(), c.StateFile) {
		t.Errorf("Remove says %v", err)
	}
	if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
		t.Errorf("rules are left: %s", diff)
	}
	if _, err := Apply(t.Context(), c); err == nil {
		t.Error("Apply does without a state")
	}
	if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
		t.Errorf("Apply began without a state: %s", diff)
	}
}

// An accept of ours cannot overrule a drop in a chain of somebody's own. What
// the note asks for does.
func TestChainsThatDropAreNamed(t *testing.T) {
	for _, drop := range []string{"ct state invalid drop", "ct state vmap { established : accept, invalid : drop }"} {
		w := newWorld(t, NFT)
		w.deliversUnseen(t)
		dir := t.TempDir()
		for _, n := range []string{"node1", "node2"} {
			w.nft(t, n, "table inet fw { chain forward { type filter hook forward priority 0; jump more; }\n chain more { "+drop+"; }; }")
		}
		w.apply(t, dir)
		notes := must(Inspect(t.Context(), w.config(t, "node1", dir)))(t).String()
		if !strings.Contains(notes, "IPv4: nftables chain inet fw more drops") {
			t.Errorf("%s: notes %s", drop, notes)
		}
		if got := w.seen(t, "f1", at("c2", false), brief); got != "nobody" {
			t.Errorf("%s: c2 sees f1 as %s: the note is wrong", drop, got)
		}
		for _, n := range []string{"node1", "node2"} {
			w.nft(t, n, "insert rule inet fw more ip saddr 172.20.0.0/16 ip daddr 10.243.0.0/16 accept")
		}
		if got := w.seen(t, "f1", at("c2", false), patient); got != own("f1", "", false) {
			t.Errorf("%s: c2 sees f1 as %s: the note does not help", drop, got)
		}
	}
}

// What a kernel without nftables for IP gets, tried where there is one; under
// user-mode-linux the tests above get it by themselves.
func TestIPTablesTakeThePlaceOfTheTable(t *testing.T) {
	for _, tc := range []struct {
		target   string
		firewall Backend
	}{{"NETMAP", NFT}, {"NETMAP", Legacy}, {"ACCEPT", Legacy}} {
		t.Run(tc.target+" "+string(tc.firewall), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tc.firewall)
			w.masquerades(t, false)
			before := w.text(t, "node1")
			dir := t.TempDir()
			w.everywhere(t, dir, func(c Config) {
				c = mustChecked(t, c)
				no := tc.target == "ACCEPT"
				p := must(c.inspect(t.Context(), &lessons{noTable: [2]bool{true, true}, noNETMAP: [2]bool{no, no}}))(t)
				must(c.do(t.Context(), p.Steps))(t)
				if must(Apply(t.Context(), c))(t) {
					t.Error("Apply does something else")
				}
				notes := must(Inspect(t.Context(), c))(t).String()
				if want := "kept by " + program(tc.firewall, true) + ", target " + tc.target; !strings.Contains(notes, want) {
					t.Errorf("notes %s", notes)
				}
			})
			w.check(t, "meanwhile", own)
			if e := must(ReadEffect(t.Context(), w.config(t, "node1", dir)))(t); e.OldToNew.Kept != 4 || e.NewToOld.Kept != 4 {
				t.Errorf("effect: %s", e)
			}
			w.remove(t, dir)
			if diff := cmp.Diff(before, w.text(t, "node1")); diff != "" {
				t.Errorf("after Remove: %s", diff)
			}
		})
	}
}

// lacking is a host that has iptables under one name only, as some
// distributions do.
type lacking struct {
	host
	backend Backend
}

func (l lacking) Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	program := args[0]
	if strings.Contains(program, "-nft") || strings.Contains(program, "-legacy") {
		return nil, fmt.Errorf("run %s: %w", program, os.ErrNotExist)
	}
	if rest, ok := strings.CutPrefix(program, "ip6tables"); ok {
		program = "ip6tables-" + string(l.backend) + rest
	} else if rest, ok := strings.CutPrefix(program, "iptables"); ok {
		program = "iptables-" + string(l.backend) + rest
	}
	return l.host.Run(ctx, stdin, append([]string{program}, args[1:]...)...)
}

func TestIPTablesUnderItsPlainName(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		w.dropsInvalid(t)
		c := w.config(t, "node1", dir)
		must(Apply(t.Context(), c))(t)
		want := w.text(t, "node1")
		try(t, Remove(t.Context(), c))
		c.Host = lacking{host{c.NS}, w.firewall}
		must(Apply(t.Context(), c))(t)
		if diff := cmp.Diff(want, w.text(t, "node1")); diff != "" {
			t.Error(diff)
		}
		try(t, Remove(t.Context(), c))
		c.Host = lacking{host{c.NS}, map[Backend]Backend{NFT: Legacy, Legacy: NFT}[w.firewall]}
		if _, err := Apply(t.Context(), c); err == nil || !notFound(err) {
			t.Errorf("with rules of a firewall that the host has no program for: %v", err)
		}
	})
}

// The golden files are what the node's own programs print.
func TestRulesAsTheNodePrintsThem(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, dir string) {
		if inGuest() {
			t.Skip("the files are those of a kernel with nftables")
		}
		w.dropsInvalid(t)
		w.strict(t)
		c := w.config(t, "node1", dir)
		var b strings.Builder
		fmt.Fprintf(&b, "# plan\n%s", must(Inspect(t.Context(), c))(t))
		must(Apply(t.Context(), c))(t)
		fmt.Fprintf(&b, "# plan afterwards\n%s", must(Inspect(t.Context(), c))(t))
		for _, args := range [][]string{
			{"nft", "list", "table", "ip", name}, {"nft", "list", "table", "ip6", name},
			{program(w.firewall, false), "-S", "FORWARD"}, {program(w.firewall, true), "-S", "FORWARD"},
		} {
			fmt.Fprintf(&b, "# %s\n%s", strings.Join(args, " "), must(host{c.NS}.Run(t.Context(), nil, args...))(t))
		}
		file := filepath.Join("testdata", filepath.Base(t.Name())+".golden")
		if *update {
			try(t, os.WriteFile(file, []byte(b.String()), 0o644))
		}
		if diff := cmp.Diff(string(must(os.ReadFile(file))(t)), b.String()); diff != "" {
			t.Error(diff)
		}
	})
}
