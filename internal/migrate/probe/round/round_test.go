package round

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/api/v1alpha1"
)

const (
	old = v1alpha1.Source
	new = v1alpha1.Target
)

// lab is the cluster of the research's table: one old and one new pod on each
// of two nodes.
var lab = World{
	Probes: []Probe{
		{"cil2", new, at("172.20.1.5:8080")},
		{"cil1", old, at("10.243.5.2:8080")},
		{"cil2", old, at("10.243.6.2:8080")},
		{"cil1", new, at("172.20.0.4:8080")},
	},
	Nodes:      []Node{{"cil2", at("172.29.0.12:18080")}, {"cil1", at("172.29.0.11:18080")}},
	Services:   []Service{{"probes", "", at("10.97.0.80:80")}},
	DNS:        []netip.AddrPort{at("10.97.0.10:53")},
	APIServers: []netip.AddrPort{at("10.97.0.1:443"), at("172.29.0.1:7443")},
	Outside:    []string{"example.org:443"},
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestTargetsAreAllOfTheWorldInOrder(t *testing.T) {
	var got strings.Builder
	for _, p := range Targets(lab) {
		fmt.Fprintf(&got, "%s | %s | %s | %s | %s\n", p.Kind, p.Name, p.Side, p.Node, p.Address)
	}
	want := `pod | old pod on cil1 | Source | cil1 | 10.243.5.2:8080
pod | old pod on cil2 | Source | cil2 | 10.243.6.2:8080
pod | new pod on cil1 | Target | cil1 | 172.20.0.4:8080
pod | new pod on cil2 | Target | cil2 | 172.20.1.5:8080
service | service probes |  |  | 10.97.0.80:80
node | cil1 |  | cil1 | 172.29.0.11:18080
node | cil2 |  | cil2 | 172.29.0.12:18080
dns | DNS |  |  | 10.97.0.10:53
apiserver | API server (10.97.0.1:443) |  |  | 10.97.0.1:443
apiserver | API server (172.29.0.1:7443) |  |  | 172.29.0.1:7443
outside | outside |  |  | example.org:443
`
	if got.String() != want {
		t.Errorf("targets:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestNamesOfTargetsDiffer(t *testing.T) {
	w := World{
		Probes:  []Probe{{"n", old, at("10.0.0.1:8080")}, {"n", old, at("[fd00::1]:8080")}, {"n", old, at("10.0.0.1:8080")}},
		Outside: []string{"a:1", "b:1", "a:1"},
	}
	var names []string
	for _, p := range Targets(w) {
		names = append(names, p.Name)
	}
	want := []string{"old pod on n (10.0.0.1:8080)", "old pod on n ([fd00::1]:8080)", "outside (a:1)", "outside (b:1)"}
	if !slices.Equal(names, want) {
		t.Errorf("names: %q, want %q", names, want)
	}
}

// reports has every asker answered as the network of the research does it.
func reports(n int64, w World, change func(node string, r *v1alpha1.ProbeResult)) map[string]v1alpha1.ProbeReport {
	out := map[string]v1alpha1.ProbeReport{}
	for _, node := range []string{"cil1", "cil2"} {
		report := v1alpha1.ProbeReport{Round: n}
		for _, from := range []v1alpha1.Side{old, new, ""} {
			for _, to := range Targets(w) {
				if !Asks(node, from, to) {
					continue
				}
				r := asInTheResearch(node, from, to)
				if change != nil {
					change(node, &r)
				}
				report.Results = append(report.Results, r)
			}
		}
		out[node] = report
	}
	return out
}

func asInTheResearch(node string, from v1alpha1.Side, to v1alpha1.ProbeTarget) v1alpha1.ProbeResult {
	r := v1alpha1.ProbeResult{From: from, To: to.Name, Source: "10.0.0.9", Client: "10.0.0.9", Saw: "own"}
	rewrite := func(link string) { r.Client, r.Saw = "address of "+link, link }
	side, where := to.Side, to.Node
	if to.Kind == KindService { // cil2's old pod answers
		r.Server, side, where = "10.243.6.2", old, "cil2"
	}
	switch {
	case from == "" && to.Side == new:
		rewrite("cilium_host")
	case from == "" && to.Node == node:
		rewrite("cni0")
	case from == "":
		rewrite("flannel.1")
	case to.Kind == KindNode && to.Node != node:
		rewrite("node")
	case to.Kind != KindPod && to.Kind != KindService && to.Kind != KindNode:
		r.Client, r.Saw = "", ""
	case from == old && side == new:
		rewrite("cilium_host")
	case from == new && side == old && where == node:
		rewrite("cni0")
	case from == new && side == old:
		rewrite("flannel.1")
	}
	return r
}

func judgeLab(n int64, reports map[string]v1alpha1.ProbeReport, preserve bool) v1alpha1.RoundSummary {
	return Judge(Round{v1alpha1.ProbeRequest{Round: n, Targets: Targets(lab)}, "cil2 Try"}, reports, preserve)
}

// The rows of pods that are asked directly are those of the seed and of the
// table in real-cni.md, section 6.
func TestTheTableIsThatOfTheResearch(t *testing.T) {
	sum := judgeLab(7, reports(7, lab, nil), false)
	var got strings.Builder
	if err := Fprint(&got, sum); err != nil {
		t.Fatal(err)
	}
	want := `round 7, cil2 Try: 48 asked, all answered
FROM   TO     WHERE        BY        SERVERS SAW   REQUESTS
old    old    other node   direct    own           2
old    new    same node    direct    cilium_host   2
old    new    other node   direct    cilium_host   2
old    node   same node    direct    own           2
old    node   other node   direct    node          2
new    old    same node    direct    cni0          2
new    old    other node   direct    flannel.1     2
new    new    other node   direct    own           2
new    node   same node    direct    own           2
new    node   other node   direct    node          2
node   old    same node    direct    cni0          2
node   old    other node   direct    flannel.1     2
node   new    same node    direct    cilium_host   2
node   new    other node   direct    cilium_host   2
old    old    other node   service   own           1
new    old    same node    service   cni0          1
new    old    other node   service   flannel.1     1
`
	if got.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestWithPreserveARewrittenAddressIsAFailure(t *testing.T) {
	sum := judgeLab(7, reports(7, lab, nil), true)
	want := []string{
		"old pod on cil1 → new pod on cil1 (172.20.0.4:8080): the server saw address of cilium_host (cilium_host), not the probe's own 10.0.0.9",
		"old pod on cil1 → new pod on cil2 (172.20.1.5:8080): the server saw address of cilium_host (cilium_host), not the probe's own 10.0.0.9",
		"old pod on cil2 → new pod on cil1 (172.20.0.4:8080): the server saw address of cilium_host (cilium_host), not the probe's own 10.0.0.9",
		"old pod on cil2 → new pod on cil2 (172.20.1.5:8080): the server saw address of cilium_host (cilium_host), not the probe's own 10.0.0.9",
		"new pod on cil1 → old pod on cil1 (10.243.5.2:8080): the server saw address of cni0 (cni0), not the probe's own 10.0.0.9",
		"new pod on cil1 → old pod on cil2 (10.243.6.2:8080): the server saw address of flannel.1 (flannel.1), not the probe's own 10.0.0.9",
		"new pod on cil1 → service probes (10.97.0.80:80): the server saw address of flannel.1 (flannel.1), not the probe's own 10.0.0.9",
		"new pod on cil2 → old pod on cil1 (10.243.5.2:8080): the server saw address of flannel.1 (flannel.1), not the probe's own 10.0.0.9",
		"new pod on cil2 → old pod on cil2 (10.243.6.2:8080): the server saw address of cni0 (cni0), not the probe's own 10.0.0.9",
		"new pod on cil2 → service probes (10.97.0.80:80): the server saw address of cni0 (cni0), not the probe's own 10.0.0.9",
	}
	if !slices.Equal(sum.Failures, want) || sum.Failed != len(want) {
		t.Errorf("%d failures:\n%s", sum.Failed, strings.Join(sum.Failures, "\n"))
	}
	kept := func(_ string, r *v1alpha1.ProbeResult) {
		if r.From != "" && r.Client != "" && !strings.HasPrefix(r.To, "cil") {
			r.Client, r.Saw = r.Source, "own"
		}
	}
	if sum := judgeLab(7, reports(7, lab, kept), true); sum.Failed != 0 {
		t.Errorf("all addresses are kept: %q", sum.Failures)
	}
}

// kube-proxy masquerades some of what services get, as it did before.
func TestPreserveIsNotAboutServicesOfTheOwnSide(t *testing.T) {
	masqueraded := func(_ string, r *v1alpha1.ProbeResult) {
		if r.From == old && r.Server != "" {
			r.Client, r.Saw = "172.29.0.11", "node"
		} else if r.From != "" && r.Client != "" && !strings.HasPrefix(r.To, "cil") {
			r.Client, r.Saw = r.Source, "own"
		}
	}
	if sum := judgeLab(7, reports(7, lab, masqueraded), true); sum.Failed != 0 {
		t.Errorf("failures: %q", sum.Failures)
	}
}

func TestFailuresAreSentences(t *testing.T) {
	broken := func(node string, r *v1alpha1.ProbeResult) {
		switch {
		case node == "cil1" && r.From == new && r.To == "old pod on cil2":
			r.Error, r.Client, r.Saw = "timed out after 3s, twice", "", ""
		case node == "cil2" && r.From == "" && r.To == "new pod on cil1":
			r.Error = "no route to host, twice"
		case node == "cil2" && r.From == old && r.To == "API server (10.97.0.1:443)":
			r.Error = "connection refused; then timed out after 3s"
		}
	}
	sum := judgeLab(7, reports(7, lab, broken), false)
	want := []string{
		"old pod on cil2 → API server (10.97.0.1:443): connection refused; then timed out after 3s",
		"new pod on cil1 → old pod on cil2 (10.243.6.2:8080): timed out after 3s, twice",
		"cil2 → new pod on cil1 (172.20.0.4:8080): no route to host, twice",
	}
	if !slices.Equal(sum.Failures, want) || sum.Failed != 3 || sum.Asked != 48 {
		t.Errorf("%d of %d failed: %q", sum.Failed, sum.Asked, sum.Failures)
	}
}

func TestWhatWasNotAskedHasFailed(t *testing.T) {
	all := reports(7, lab, nil)
	request := Round{v1alpha1.ProbeRequest{Round: 7, Targets: Targets(lab)}, ""}
	if missing := Missing(request, all); len(missing) != 0 {
		t.Errorf("missing although all have reported: %q", missing)
	}
	half := all["cil1"]
	half.Results = half.Results[1:]
	all["cil1"] = half
	sum := Judge(request, all, false)
	if len(sum.Failures) != 1 || sum.Failures[0] != "old pod on cil1 → old pod on cil2 (10.243.6.2:8080): was not asked" {
		t.Errorf("failures: %q", sum.Failures)
	}
	all["cil1"] = reports(6, lab, nil)["cil1"] // the round before
	if missing := Missing(request, all); !slices.Equal(missing, []string{"cil1"}) {
		t.Errorf("missing: %q", missing)
	}
	if sum := Judge(request, all, false); sum.Failed != 24 || len(sum.Failures) != MaxFailures {
		t.Errorf("a report of another round: %d failed, %d told", sum.Failed, len(sum.Failures))
	}
	if sum := Judge(request, nil, false); sum.Failed != 48 {
		t.Errorf("no reports at all: %d of %d failed", sum.Failed, sum.Asked)
	}
}

func TestManyFailuresAreCounted(t *testing.T) {
	dead := func(_ string, r *v1alpha1.ProbeResult) { r.Error = "timed out after 3s, twice" }
	var got strings.Builder
	if err := Fprint(&got, judgeLab(7, reports(7, lab, dead), false)); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.String(), "round 7, cil2 Try: 48 asked, 48 failed\n") || !strings.HasSuffix(got.String(), "\n  and 28 more\n") {
		t.Errorf("printed:\n%s", got.String())
	}
}

// Before the first pod moves there are only old probes, one for each node; on a
// cluster of one node it has only itself and others' things to ask.
func TestASingleNodeIsARound(t *testing.T) {
	w := World{Probes: []Probe{{"only", old, at("10.0.0.1:8080")}}, DNS: lab.DNS}
	request := Round{v1alpha1.ProbeRequest{Round: 1, Targets: Targets(w)}, "before"}
	report := v1alpha1.ProbeReport{Round: 1, Results: []v1alpha1.ProbeResult{
		{From: old, To: "DNS"},
		{To: "old pod on only", Source: "10.0.0.9", Client: "10.0.0.9", Saw: "cni0"},
	}}
	sum := Judge(request, map[string]v1alpha1.ProbeReport{"only": report}, true)
	if sum.Asked != 2 || sum.Failed != 0 || len(sum.Clients) != 1 {
		t.Errorf("summary: %+v", sum)
	}
}

// A service may choose the pod that asks. It is answered only because the
// node's address is put in place of its own.
func TestAServiceThatLeadsBackProvesNothing(t *testing.T) {
	itself := func(node string, r *v1alpha1.ProbeResult) {
		if node == "cil2" && r.From == new && r.Server != "" {
			r.Server, r.Client, r.Saw = "172.20.1.5", "172.29.0.12", "node"
		} else if r.From != "" && r.Client != "" && !strings.HasPrefix(r.To, "cil") {
			r.Client, r.Saw = r.Source, "own"
		}
	}
	sum := judgeLab(7, reports(7, lab, itself), true)
	if sum.Failed != 0 {
		t.Errorf("failures: %q", sum.Failures)
	}
	for _, row := range sum.Clients {
		if row.From == "new" && row.By == "service" && row.Saw != "own" {
			t.Errorf("row %+v", row)
		}
	}
}
