package leftover

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
)

func TestTheVxlanLinkGoesAndAnotherOfThatNameStays(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN)
	p := newBarePlace(t)
	p.run("ip", "link", "set", "lo", "up")
	p.run("ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "local", "127.0.0.1", "dev", "lo", "nolearning")
	p.run("ip", "addr", "add", "10.243.0.0/32", "dev", "flannel.1")
	p.run("ip", "link", "set", "flannel.1", "up")
	p.run("ip", "route", "add", "10.243.1.0/24", "via", "10.243.1.0", "dev", "flannel.1", "onlink")
	p.run("bridge", "fdb", "append", "02:00:00:00:00:01", "dev", "flannel.1", "dst", "127.0.0.2")
	p.run("ip", "neigh", "add", "10.243.1.0", "lladdr", "02:00:00:00:00:01", "dev", "flannel.1", "nud", "permanent")
	p.run("ip", "link", "add", "flannel.9", "type", "bridge") // a person's, whatever its name says
	r, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err != nil || len(r.Items) > 0 || r.Cleaned != 1 || len(r.Changed) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if text := p.run("ip", "-o", "link"); strings.Contains(text, "flannel.1:") || !strings.Contains(text, "flannel.9:") {
		t.Error(text)
	}
}

// without hides programs of the host.
type without struct {
	*nsHost
	hidden []string
}

func (w without) Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	if slices.ContainsFunc(w.hidden, func(h string) bool { return strings.HasPrefix(args[0], h) }) {
		return nil, fmt.Errorf("%s: %w", args[0], exec.ErrNotFound)
	}
	return w.nsHost.Run(ctx, stdin, args...)
}

// A container may have made rules that no program of the host can read. That is
// not a clean node.
func TestRulesThatNobodyCanReadAreNotSaidToBeGone(t *testing.T) {
	p := newPlace(t)
	p.restore("iptables-nft", flannelRules)
	n := p.node()
	n.Host = without{p.host, []string{"iptables", "ip6tables"}}
	if _, err := Audit(t.Context(), n, flannel(), InUse{}); err == nil || !strings.Contains(err.Error(), "no iptables-nft to remove it with") {
		t.Errorf("error %v", err)
	}
	if !legacy() {
		return
	}
	q := newPlace(t)
	q.restore("iptables-legacy", flannelRules)
	n = q.node()
	n.Host = without{q.host, []string{"iptables-legacy", "ip6tables-legacy"}}
	if _, err := Audit(t.Context(), n, flannel(), InUse{}); err == nil || !strings.Contains(err.Error(), "tables of iptables-legacy (") {
		t.Errorf("error %v", err)
	}
}

// A host that has one iptables only, without saying which.
func TestAHostWithPlainIptablesIsCleaned(t *testing.T) {
	p := newPlace(t)
	p.restore("iptables", flannelRules)
	n := p.node()
	n.Host = without{p.host, []string{"iptables-nft", "iptables-legacy", "ip6tables", "ipset"}}
	r, err := Clean(t.Context(), n, flannel(), InUse{})
	if err != nil || len(r.Items) > 0 || r.Cleaned == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if strings.Contains(p.run("iptables-save"), "FLANNEL") {
		t.Error(p.run("iptables-save"))
	}
}

// user-mode-linux has no nftables for IP: the host's iptables-nft is there and
// cannot do anything.
func TestAKernelWithIptablesLegacyOnlyIsCleaned(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.IptablesLegacy)
	p := newBarePlace(t)
	p.restore("iptables-legacy", strangersRules)
	before := rulesOnly(p.run("iptables-legacy-save"))
	p.restore("iptables-legacy", flannelRules)
	r, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err != nil || len(r.Items) > 0 || len(r.Changed) > 0 || r.Cleaned != 4 {
		t.Errorf("%+v, %v", r, err)
	}
	if after := rulesOnly(p.run("iptables-legacy-save")); after != before {
		t.Error(cmp.Diff(before, after))
	}
}

func TestSetsGoAfterTheRulesThatLookIntoThem(t *testing.T) {
	p := newPlace(t)
	if _, err := p.host.Run(t.Context(), nil, "ipset", "create", "cali40s:x", "hash:ip"); err != nil {
		t.Skipf("missing feature: ipset: %v", err)
	}
	p.run("ipset", "create", "mine", "hash:ip")
	p.restore("iptables-nft", "*filter\n:cali-in - [0:0]\n-A INPUT -m comment --comment \"cali:a\" -j cali-in\n-A cali-in -m set --match-set cali40s:x src -j DROP\nCOMMIT\n")
	l := spec.Spec{Profile: "calico", Chains: []string{"cali-*"}, Comments: []string{"cali:*"}, IPSets: []string{"cali40*"}}
	r, err := Clean(t.Context(), p.node(), l, InUse{})
	if err != nil || len(r.Items) > 0 || len(r.Changed) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if got := strings.Fields(p.run("ipset", "list", "-n")); !slices.Equal(got, []string{"mine"}) {
		t.Errorf("sets %v", got)
	}
}

// Links below a directory that is removed are removed, and not followed.
func TestALinkIsRemovedAndNotFollowed(t *testing.T) {
	p := newPlace(t)
	outside := t.TempDir()
	p.file("var/keep/data", "precious")
	p.file("run/flannel/subnet.env", "x")
	if err := os.WriteFile(filepath.Join(outside, "data"), []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"abs": outside, "rel": "../../var/keep"} {
		if err := os.Symlink(to, filepath.Join(p.root, "run/flannel", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Clean(t.Context(), p.node(), flannel(), InUse{}); err != nil {
		t.Fatal(err)
	}
	for _, kept := range []string{filepath.Join(outside, "data"), filepath.Join(p.root, "var/keep/data")} {
		if _, err := os.Stat(kept); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(p.root, "run/flannel")); !os.IsNotExist(err) {
		t.Errorf("run/flannel: %v", err)
	}
}

// What is mounted below may be all cgroups of the machine.
func TestNothingIsRemovedWhereSomethingIsMounted(t *testing.T) {
	p := newPlace(t)
	p.file("run/cilium/state/x", "x")
	at := filepath.Join(p.root, "run/cilium/cgroupv2")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mounted := true
	umount := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(at, 0); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(umount)
	p.file("run/cilium/cgroupv2/kubepods/x", "x")
	l := spec.Spec{Profile: "cilium", Files: []spec.FilePattern{{Glob: "run/cilium/cgroupv2", Kind: spec.Mount}, {Glob: "run/cilium"}}}
	r, err := Clean(t.Context(), p.node(), l, InUse{})
	if err != nil || r.Cleaned != 0 || len(r.Items) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Items[0].InUse != "something is mounted on /run/cilium/cgroupv2" || r.Items[1].Kind != "mount" || !strings.Contains(r.Items[1].InUse, "umount it on the host") {
		t.Errorf("%+v", r.Items)
	}
	if _, err := os.Stat(filepath.Join(at, "kubepods/x")); err != nil {
		t.Error(err)
	}
	umount()
	if r, err = Clean(t.Context(), p.node(), l, InUse{}); err != nil || len(r.Items) > 0 || r.Cleaned != 1 {
		t.Errorf("after it is unmounted: %+v, %v", r, err)
	}
}

// A directory of the CNI's may be a file system of its own. It is emptied, and
// its place stays.
func TestADirectoryThatIsAMountIsEmptied(t *testing.T) {
	p := newPlace(t)
	at := filepath.Join(p.root, "run/flannel")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	if r, err := Audit(t.Context(), p.node(), flannel(), InUse{}); err != nil || len(r.Items) > 0 {
		t.Errorf("an empty one: %+v, %v", r, err)
	}
	p.file("run/flannel/subnet.env", "x")
	p.file("run/flannel/deep/er", "x")
	r, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err != nil || len(r.Items) > 0 || r.Cleaned != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if left, err := os.ReadDir(at); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// The configuration that the runtime takes is the last thing to go.
func TestTheConfigurationGoesOnlyBehindAnother(t *testing.T) {
	p := newPlace(t)
	p.file("etc/cni/net.d/10-flannel.conflist", `{"name":"cbr0"}`)
	p.file("etc/cni/net.d/20-later.conflist", `{"name":"later"}`)
	r, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err != nil || len(r.Items) != 1 || !strings.Contains(r.Items[0].InUse, "the runtime takes it") {
		t.Fatalf("%+v, %v", r, err)
	}
	p.file("etc/cni/net.d/05-cilium.conflist", `{"name":"cilium"}`)
	if r, err = Clean(t.Context(), p.node(), flannel(), InUse{}); err != nil || len(r.Items) > 0 {
		t.Errorf("behind another: %+v, %v", r, err)
	}
}

func TestSomebodysConfigurationThatWasPutAsideStays(t *testing.T) {
	p := newPlace(t)
	p.file("etc/cni/net.d/00-multus.conf.cilium_bak", `{"name":"multus"}`)
	p.file("etc/cni/net.d/10-flannel.conflist.cilium_bak", `{"name":"cbr0"}`)
	p.file("etc/cni/net.d/10-flannel.conflist", `{"name":"cbr0"}`)
	l := spec.Spec{Profile: "cilium", Files: []spec.FilePattern{{Glob: "etc/cni/net.d/*.cilium_bak", Kind: spec.Foreign}}}
	r, err := Clean(t.Context(), p.node(), l, InUse{})
	want := "/etc/cni/net.d/00-multus.conf.cilium_bak"
	if err != nil || len(r.Items) != 1 || r.Items[0].Name != want || r.Cleaned != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAnotherConfDirIsTheRuntimes(t *testing.T) {
	p := newPlace(t)
	p.file("var/lib/k3s/net.d/10-flannel.conflist.braid-migrate", "{}")
	p.file("etc/cni/net.d/10-flannel.conflist.braid-migrate", "{}")
	r, err := Clean(t.Context(), p.node(), flannel().In("/var/lib/k3s/net.d"), InUse{})
	if err != nil || r.Cleaned != 1 || !strings.Contains(p.text(), "etc/cni/net.d/10-flannel") {
		t.Errorf("%+v, %v", r, err)
	}
}

// Of the tables that all networks share, only rules of the network's dead
// containers go, and the table when it has no others.
func TestRulesOfDeadContainersInSharedTablesGo(t *testing.T) {
	p := newPlace(t)
	const script = `add table ip cni_hostport; add chain ip cni_hostport hostports; add chain ip cni_hostport hostports_all; add rule ip cni_hostport hostports_all jump hostports;
add rule ip cni_hostport hostports tcp dport 80 dnat to 10.243.0.7:80 comment "dead";
add rule ip cni_hostport hostports tcp dport 81 dnat to 10.243.0.8:80 comment "living";
add rule ip cni_hostport hostports tcp dport 82 dnat to 172.20.0.8:80 comment "othersdead";
add table inet cni_plugins_masquerade; add chain inet cni_plugins_masquerade masq_checks;
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.243.0.7 masquerade comment "0a-0b, net: cbr0, if: eth0, id: dead"`
	p.run("nft", strings.ReplaceAll(script, "\n", " "))
	use := InUse{Sandboxes: []facts.Sandbox{sandbox("living", "web-0", "10.243.0.8")}}
	r, err := Clean(t.Context(), p.node(), flannel(), use)
	text := p.run("nft", "list", "ruleset")
	if err != nil || r.Cleaned != 2 || strings.Contains(text, `"dead"`) || strings.Contains(text, "id: dead") || !strings.Contains(text, `"living"`) || !strings.Contains(text, "othersdead") {
		t.Errorf("%+v, %v\n%s", r, err, text)
	}
	r, err = Clean(t.Context(), p.node(), flannel(), InUse{})
	text = p.run("nft", "list", "ruleset")
	if err != nil || len(r.Items) > 0 || len(r.Changed) > 0 || strings.Contains(text, "cni_plugins_masquerade") || !strings.Contains(text, "othersdead") {
		t.Errorf("nobody lives: %+v, %v\n%s", r, err, text)
	}
}

func FuzzParseSave(f *testing.F) {
	f.Add(strangersRules)
	f.Add(flannelRules)
	f.Add(hostPortRules("cbr0", "dead", "CNI-DN-1234567890abcdef12345", "10.243.0.7", "8080"))
	f.Add("*nat\n:X\n-A X\n-A Y -j\n:\n*\n-A")
	f.Add("*nat\n:A - [0:0]\n-A A -m comment --comment \"a \\\" b\" --comment -s 1.2.3.4/0 -j \"\"\n")
	l := flannel()
	l.Firewall = true
	f.Fuzz(func(t *testing.T, text string) {
		for _, table := range parseSave(text) {
			w := &firewall{name: "x"}
			s := newSnapshot()
			found := w.find(table, l, InUse{}, livingOf(l, InUse{}))
			w.others(table, l, spec.Spec{}, s)
			for _, f := range found {
				for _, line := range append(slices.Clone(f.batch.remove), append(f.batch.flush, f.batch.drop...)...) {
					if strings.ContainsAny(line, "\n") || strings.HasPrefix(line, "-D KUBE-") {
						t.Errorf("%q", line)
					}
				}
			}
		}
	})
}

// A person's rule may say anything, and is not the network's for it.
func TestOnlyTheNetworksOwnHostPortsAreClaimed(t *testing.T) {
	// As iptables-save prints it: one table, all chains first.
	var chains, rules []string
	for line := range strings.Lines(hostPortTop + hostPortRules("cbr0", "a", "CNI-DN-1234567890abcdef12345", "10.243.0.7", "80") +
		hostPortRules("cbr0-two", "b", "CNI-DN-abcdef1234567890abcde", "10.243.0.8", "81")) {
		if strings.HasPrefix(line, ":") && !slices.Contains(chains, line) {
			chains = append(chains, line)
		}
		if strings.HasPrefix(line, "-A") {
			rules = append(rules, line)
		}
	}
	tables := parseSave("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n" + strings.Join(append(chains, rules...), "") + "COMMIT\n")
	var removed []string
	for _, table := range tables {
		for _, f := range (&firewall{name: "x"}).find(table, flannel(), InUse{}, livingOf(flannel(), InUse{})) {
			removed = append(removed, f.name)
		}
	}
	want := []string{
		`x nat CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"cbr0\" id: \"a\"" -m multiport --dports 80 -j CNI-DN-1234567890abcdef12345`,
		`x nat CNI-DN-1234567890abcdef12345`,
	}
	if diff := cmp.Diff(want, removed); diff != "" {
		t.Error(diff)
	}
}

func TestSnapshotsSayWhatIsDifferent(t *testing.T) {
	a, b := newSnapshot(), newSnapshot()
	for _, l := range []string{"one", "two", "two", "three"} {
		a.add("chain", l)
	}
	for _, l := range []string{"two", "one", "three", "four"} {
		b.add("chain", l)
	}
	a.addOnly("link", "eth0")
	b.addOnly("link", "eth0")
	b.addOnly("link", "veth1")
	want := []string{"chain: gone: two", "chain: new: four", "chain: in another order"}
	if diff := cmp.Diff(want, a.changes(b)); diff != "" {
		t.Error(diff)
	}
	if got := a.changes(a); got != nil {
		t.Errorf("no difference is %v", got)
	}
}

func TestWithinIsAPartAndNotTheWhole(t *testing.T) {
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.243.0.0/16")}
	for text, want := range map[string]bool{"10.243.1.0/24": true, "10.243.0.0/16": false, "10.0.0.0/8": false, "0.0.0.0/0": false, "10.244.1.0/24": false, "fd00::/64": false} {
		if got := within(cidrs, netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}
