package leftover

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
)

// strangers makes a world that nobody may touch.
func (p *place) strangers() {
	for _, program := range p.backends() {
		p.restore(program, strings.NewReplacer("172.17.0.0/16", family(program, "172.17.0.0/16"),
			"10.243.0.0/16", family(program, "10.243.0.0/16"), "192.0.2.0/24", family(program, "192.0.2.0/24")).Replace(strangersRules))
	}
	p.run("nft", "add table inet mine; add chain inet mine in { type filter hook input priority 0; }; add rule inet mine in tcp dport 9 counter drop")
	p.run("ip", "link", "set", "lo", "up")
	p.run("ip", "link", "add", "br-user", "type", "bridge")
	p.run("ip", "addr", "add", "192.168.9.1/24", "dev", "br-user")
	p.run("ip", "link", "set", "br-user", "up")
	p.run("ip", "route", "add", "10.243.0.0/16", "via", "192.168.9.254", "metric", "500") // somebody's, to the whole network
	p.run("ip", "route", "add", "10.50.0.0/24", "via", "192.168.9.254")
	p.run("ip", "rule", "add", "from", "192.168.9.0/24", "lookup", "77", "priority", "900")
	p.file("etc/cni/net.d/05-cilium.conflist", `{"name":"cilium"}`)
	p.file("etc/cni/net.d/README", "a person's")
	p.file("var/lib/cni/results/cbr0-two-abc-eth0", `{"kind":"cniCacheV1","containerId":"abc","networkName":"cbr0-two"}`)
	p.file("var/lib/cni/networks/net1/10.9.0.2", "someone\neth0")
	p.file("var/lib/cni/flannel-notes/x", "a person's")
}

// family gives IPv6's programs prefixes of their own.
func family(program, prefix string) string {
	if !strings.HasPrefix(program, "ip6") {
		return prefix
	}
	return map[string]string{"172.17.0.0/16": "fd17::/64", "10.243.0.0/16": "fd43::/48", "192.0.2.0/24": "2001:db8::/64"}[prefix]
}

// flannel makes what flanneld and its plugin leave, with one dead container.
func (p *place) flannel() {
	for _, program := range p.backends() {
		if program == "ip6tables-nft" {
			continue
		}
		p.restore(program, flannelRules)
		p.restore(program, hostPortTop)
		p.restore(program, hostPortRules("cbr0", "dead", "CNI-DN-1234567890abcdef12345", "10.243.0.7", "8080"))
	}
	p.run("nft", "add table ip flannel-ipv4; add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority srcnat; }; add rule ip flannel-ipv4 postrtg ip saddr 10.243.0.0/16 masquerade")
	p.run("ip", "link", "add", "cni0", "type", "bridge")
	p.run("ip", "addr", "add", "10.243.0.1/24", "dev", "cni0")
	p.run("ip", "link", "set", "cni0", "up")
	p.run("ip", "route", "add", "10.243.1.0/24", "via", "192.168.9.12") // as host-gw
	p.file("run/flannel/subnet.env", "FLANNEL_NETWORK=10.243.0.0/16\n")
	p.file("var/lib/cni/networks/cbr0/10.243.0.7", "dead\r\neth0")
	p.file("var/lib/cni/networks/cbr0/last_reserved_ip.0", "10.243.0.7")
	p.file("var/lib/cni/networks/cbr0/lock", "")
	p.file("var/lib/cni/results/cbr0-dead-eth0", `{"kind":"cniCacheV1","containerId":"dead","networkName":"cbr0"}`)
	p.file("var/lib/cni/flannel/dead", "{}")
	p.file("etc/cni/net.d/10-flannel.conflist.braid-migrate", `{"name":"cbr0"}`)
}

func TestOnlyWhatFlannelLeftIsRemoved(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	before := p.text()
	p.flannel()
	dirty := p.text()
	use := InUse{Sandboxes: []facts.Sandbox{sandbox("live", "web-0", "172.20.0.4")}}

	audit, err := Audit(t.Context(), p.node(), flannel(), use)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.text(); got != dirty {
		t.Errorf("an audit changed something:\n%s", cmp.Diff(dirty, got))
	}
	if len(audit.Items) == 0 || inUse(audit) != nil {
		t.Errorf("audit found %d things, in use %v", len(audit.Items), inUse(audit))
	}

	golden(t, "flannel.audit", listing(audit, legacy()))

	report, err := Clean(t.Context(), p.node(), flannel(), use)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Items) > 0 || len(report.Changed) > 0 || report.Cleaned != len(audit.Items) || report.Kept != audit.Kept {
		t.Errorf("cleaned %d of %d, kept %d of %d, left %v, changed %v", report.Cleaned, len(audit.Items), report.Kept, audit.Kept, report.Items, report.Changed)
	}
	if got := p.text(); got != before {
		t.Errorf("it is not as it was before Flannel:\n%s", cmp.Diff(before, got))
	}
	again, err := Clean(t.Context(), p.node(), flannel(), use)
	if err != nil || again.Cleaned != 0 || len(again.Items) > 0 {
		t.Errorf("a second cleaning: %+v, %v", again, err)
	}
	for _, ran := range p.host.ran {
		if strings.Contains(ran, "-restore") && !strings.Contains(ran, "--noflush") {
			t.Errorf("it flushes: %s", ran)
		}
	}
}

// listing prints an audit. What iptables-legacy has is the same as what
// iptables-nft has, and is compared instead of printed: not every kernel has it.
func listing(r v1alpha1.LeftoverReport, legacy bool) string {
	var b, old, fresh strings.Builder
	for _, i := range r.Items {
		switch line := i.Kind + " " + i.Name + "\n"; {
		case strings.Contains(line, "iptables-legacy "):
			old.WriteString(strings.Replace(line, "iptables-legacy ", "iptables-nft ", 1))
		case strings.Contains(line, "iptables-nft "):
			fresh.WriteString(line)
			b.WriteString(line)
		default:
			b.WriteString(line)
		}
	}
	if legacy && old.String() != fresh.String() {
		b.WriteString("iptables-legacy has:\n" + old.String())
	}
	return b.String()
}

// golden compares with a file of testdata; BRAID_UPDATE=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("BRAID_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func inUse(r v1alpha1.LeftoverReport) []v1alpha1.Leftover {
	var out []v1alpha1.Leftover
	for _, i := range r.Items {
		if i.InUse != "" {
			out = append(out, i)
		}
	}
	return out
}

func TestWhatALivingPodNeedsStays(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	p.flannel()
	p.restore("iptables-nft", hostPortRules("cbr0", "living", "CNI-DN-abcdef1234567890abcde", "10.243.0.9", "9090"))
	p.file("var/lib/cni/networks/cbr0/10.243.0.9", "living\neth0")
	p.file("var/lib/cni/results/cbr0-living-eth0", `{"kind":"cniCacheV1","containerId":"living","networkName":"cbr0"}`)
	use := InUse{Sandboxes: []facts.Sandbox{sandbox("living", "db-0", "10.243.0.9")}}
	before := p.text()
	report, err := Clean(t.Context(), p.node(), flannel(), use)
	if err != nil {
		t.Fatal(err)
	}
	var removed []string
	now := p.text()
	for line := range strings.Lines(before) {
		if !strings.Contains(now, line) {
			removed = append(removed, strings.TrimSpace(line))
		}
	}
	for _, line := range removed {
		if !strings.Contains(line, "dead") && !strings.Contains(line, "10.243.0.7") && !strings.Contains(line, "CNI-DN-12345") {
			t.Errorf("removed although db-0 lives: %s", line)
		}
	}
	if len(removed) == 0 || len(report.Changed) > 0 || report.Cleaned == 0 {
		t.Errorf("what the dead container had stayed: cleaned %d, changed %v", report.Cleaned, report.Changed)
	}
	for _, i := range report.Items {
		if i.InUse == "" || !strings.Contains(i.InUse, "db-0") {
			t.Errorf("%s %s: in use %q", i.Kind, i.Name, i.InUse)
		}
	}
}

func TestNothingIsRemovedWhileTheAgentRuns(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	p.flannel()
	before := p.text()
	report, err := Clean(t.Context(), p.node(), flannel(), InUse{Agents: []string{"pod kube-flannel/kube-flannel-ds-x2x4"}})
	if err != nil || report.Cleaned != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if got := p.text(); got != before {
		t.Error(cmp.Diff(before, got))
	}
	for _, i := range report.Items {
		if !strings.Contains(i.InUse, "kube-flannel-ds-x2x4 still runs") {
			t.Errorf("%s %s: in use %q", i.Kind, i.Name, i.InUse)
		}
	}
}

// A bridge with a port has somebody behind it, whatever the runtime says.
func TestABridgeWithAPortStays(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	p.flannel()
	p.run("ip", "link", "add", "vethaaaaaaaa", "type", "veth", "peer", "name", "other")
	p.run("ip", "link", "set", "vethaaaaaaaa", "master", "cni0")
	report, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err != nil {
		t.Fatal(err)
	}
	want := []v1alpha1.Leftover{{Kind: "link", Name: "cni0", InUse: "plugged into it: vethaaaaaaaa"}}
	if diff := cmp.Diff(want, report.Items); diff != "" {
		t.Error(diff)
	}
}

// What both networks have is the one's that stays.
func TestWhatTheOtherNetworkHasTooStays(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	p.flannel()
	p.run("ip", "addr", "add", "10.200.0.1/24", "dev", "cni0")
	other := spec.Spec{Profile: "bridge", Network: "br", Links: []spec.LinkPattern{{Name: "cni0"}}, Portmap: true,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")}}
	report, err := Clean(t.Context(), p.node(), flannel(), InUse{Other: other})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range report.Items {
		if !strings.Contains(i.InUse, "it is bridge br's too") {
			t.Errorf("%s %s: in use %q", i.Kind, i.Name, i.InUse)
		}
	}
	if !strings.Contains(p.text(), ":CNI-HOSTPORT-DNAT") || !strings.Contains(p.text(), "cni0 bridge") {
		t.Error("it removed what the other network stands on")
	}
	if strings.Contains(p.text(), "CNI-DN-12345") {
		t.Error("the dead container's hostPort stayed")
	}
}

// Both call their bridge cni0, and only one has made it.
func TestABridgeIsWhoseAddressItHas(t *testing.T) {
	p := newPlace(t)
	p.flannelLink()
	other := spec.Spec{Profile: "bridge", Network: "br", Links: []spec.LinkPattern{{Name: "cni0"}}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")}}
	mine, theirs := flannel(), other
	r, err := Clean(t.Context(), p.node(), theirs, InUse{Other: mine})
	if err != nil || len(r.Items) != 1 || r.Items[0].InUse != "it is flannel cbr0's too" {
		t.Errorf("cleaned up for bridge: %+v, %v", r, err)
	}
	if r, err = Clean(t.Context(), p.node(), mine, InUse{Other: theirs}); err != nil || len(r.Items) > 0 || r.Cleaned != 1 {
		t.Errorf("cleaned up for flannel: %+v, %v", r, err)
	}
}

// A cleaning that is killed after any step is finished by the next one.
func TestAKilledCleaningIsFinishedByTheNext(t *testing.T) {
	for cut := 1; ; cut++ {
		p := newPlace(t)
		p.strangers()
		before := p.text()
		p.flannel()
		ctx, kill := context.WithCancel(t.Context())
		steps := 0
		h, err := p.node().hands()
		if err != nil {
			t.Fatal(err)
		}
		found, _, err := h.look(ctx, flannel(), InUse{})
		if err != nil {
			t.Fatal(err)
		}
		batches := map[*transaction]bool{}
		found = slices.DeleteFunc(found, func(f finding) bool {
			if f.batch != nil { // those of one table are one step
				again := batches[f.batch]
				batches[f.batch] = true
				return again
			}
			return false
		})
		for i := range found {
			do := found[i].remove
			if b := found[i].batch; b != nil {
				do = func(ctx context.Context, h *hands) error { return b.run(ctx, h.host) }
				found[i].batch = nil
			}
			found[i].remove = func(ctx context.Context, h *hands) error {
				steps++
				defer func() {
					if steps == cut {
						kill()
					}
				}()
				return do(ctx, h)
			}
		}
		if err := h.remove(ctx, found); err != nil {
			t.Fatal(err)
		}
		h.close()
		kill()
		if _, err := Clean(t.Context(), p.node(), flannel(), InUse{}); err != nil {
			t.Fatalf("after %d steps: %v", cut, err)
		}
		if got := p.text(); got != before {
			t.Fatalf("after %d steps:\n%s", cut, cmp.Diff(before, got))
		}
		if steps < cut {
			if cut < 10 {
				t.Errorf("there were %d steps only", steps)
			}
			return
		}
		if cut > 3 {
			cut += 2 // one world takes a while: not every step of the later ones
		}
	}
}

func TestAFailingProgramIsReportedAndTheRestIsDone(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	p.flannel()
	p.host.refuse, p.host.times = "iptables-nft-restore", 100
	report, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("error %v", err)
	}
	for _, i := range report.Items {
		if i.Kind != "chain" && i.Kind != "rule" || !strings.Contains(i.Name, "iptables-nft") {
			t.Errorf("left: %s %s", i.Kind, i.Name)
		}
	}
	p.host.times = 0
	if report, err = Clean(t.Context(), p.node(), flannel(), InUse{}); err != nil || len(report.Items) > 0 {
		t.Errorf("after it works again: %+v, %v", report.Items, err)
	}
}

// What others change while a cleaning goes on is said, and is not undone.
func TestWhatOthersChangeMeanwhileIsReported(t *testing.T) {
	p := newPlace(t)
	p.strangers()
	p.flannel()
	busy := &meddler{nsHost: p.host, meddle: func() {
		p.run("iptables-nft", "-D", "INPUT", "-p", "tcp", "--dport", "22", "-m", "comment", "--comment", "ssh", "-j", "ACCEPT")
		p.run("iptables-nft", "-A", "KUBE-FORWARD", "-j", "RETURN")
		p.run("nft", "add", "table", "inet", "fresh")
	}}
	n := p.node()
	n.Host = busy
	report, err := Clean(t.Context(), n, flannel(), InUse{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`iptables-nft filter INPUT: gone: -p tcp -m tcp --dport 22 -m comment --comment ssh -j ACCEPT`,
		`nftables: new: table inet fresh, 0 rules, `,
	}
	for i := range report.Changed {
		if at := strings.Index(report.Changed[i], "rules, "); at >= 0 {
			report.Changed[i] = report.Changed[i][:at+len("rules, ")]
		}
	}
	if diff := cmp.Diff(want, report.Changed); diff != "" {
		t.Error(diff)
	}
}

// meddler is a host where somebody else is at work during the first change.
type meddler struct {
	*nsHost
	meddle func()
}

func (m *meddler) Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	if m.meddle != nil && strings.HasSuffix(args[0], "-restore") {
		meddle := m.meddle
		m.meddle = nil
		meddle()
	}
	return m.nsHost.Run(ctx, stdin, args...)
}

// Cilium moves the rule of the local table behind its own. A node without that
// rule does not reach itself.
func TestTheRuleOfTheLocalTableIsPutBack(t *testing.T) {
	for _, cut := range []bool{false, true} {
		testLocalRule(t, cut)
	}
}

func testLocalRule(t *testing.T, cut bool) {
	p := newPlace(t)
	p.run("ip", "link", "set", "lo", "up")
	before := p.run("ip", "rule")
	p.run("ip", "rule", "add", "from", "all", "lookup", "local", "priority", "100")
	if !cut { // killed after the one is back and before the other is gone
		p.run("ip", "rule", "del", "priority", "0")
	}
	p.run("ip", "rule", "add", "fwmark", "0x200/0xf00", "lookup", "2004", "priority", "9")
	p.run("ip", "route", "add", "local", "default", "dev", "lo", "table", "2004")
	l := spec.Spec{Profile: "cilium", LocalRule: 100, Rules: []spec.RulePattern{{Table: 2004}}, Routes: []spec.RoutePattern{{Table: 2004}}}
	report, err := Clean(t.Context(), p.node(), l, InUse{})
	if err != nil || len(report.Items) > 0 || len(report.Changed) > 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if got := p.run("ip", "rule"); got != before {
		t.Error(cmp.Diff(before, got))
	}
	if got := p.run("ip", "route", "show", "table", "all", "type", "local", "default"); strings.Contains(got, "2004") {
		t.Errorf("left: %s", got)
	}
}

func TestSomebodysRouteKeepsTheLink(t *testing.T) {
	p := newPlace(t)
	p.flannelLink()
	p.run("ip", "route", "add", "10.77.0.0/24", "via", "10.243.0.50", "dev", "cni0")
	report, err := Clean(t.Context(), p.node(), flannel(), InUse{})
	if err != nil || len(report.Items) != 1 || !strings.Contains(report.Items[0].InUse, "somebody's route leads through it: 10.77.0.0/24") {
		t.Errorf("%+v, %v", report, err)
	}
}

func (p *place) flannelLink() {
	p.run("ip", "link", "add", "cni0", "type", "bridge")
	p.run("ip", "addr", "add", "10.243.0.1/24", "dev", "cni0")
	p.run("ip", "link", "set", "cni0", "up")
}

func TestAFreshNodeHasNothingLeft(t *testing.T) {
	p := newPlace(t)
	report, err := Audit(t.Context(), p.node(), flannel(), InUse{})
	if err != nil || len(report.Items) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}
