package differential

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// allowance is one difference that may be, with the code under which
// docs/drivers.md gives the reason.
type allowance struct {
	code string
	// in says which cases it is about, nil for all.
	in func(testCase) bool
	// lines matches lines of a world or a result that are left out on both
	// sides; edit finds what becomes to. An allowance without either is asked
	// for by the test itself.
	lines, edit *regexp.Regexp
	to          string
}

func about(types ...string) func(testCase) bool {
	return func(c testCase) bool { return slices.ContainsFunc(types, c.has) }
}

var allowanceList = []allowance{
	{code: "check-own"},
	{code: "default-twice"},
	{code: "forwarding-stays"},
	{code: "refused-clean"},
	{code: "ndisc-notify", lines: regexp.MustCompile(`^sysctl ipv6/conf/\S+/ndisc_notify = 1$`)},
	{code: "link-sysctls", in: about("ptp", "tap", "dummy", "vlan", "ipvlan", "host-device"),
		lines: regexp.MustCompile(`^sysctl (ipv4/conf/\S+/arp_notify = 1|ipv6/conf/\S+/accept_dad = (0|-1))$`)},
	{code: "veth-queue", edit: regexp.MustCompile(`(?m)^(link veth#\d* .* txqlen) 0$`), to: "$1 1000"},
	{code: "bandwidth-once", in: about("bandwidth"), edit: regexp.MustCompile(`(?m)( action mirred egress redir to bwp\S+){2}$`), to: "$1"},
	{code: "bridge-accept-ra", in: func(c testCase) bool { return c.has("bridge") && c.node != nil },
		lines: regexp.MustCompile(`^sysctl ipv6/conf/braidbr0/accept_ra = 0$`)},
	{code: "args-mac", in: about("macvlan", "tap"), edit: regexp.MustCompile(`02:00:00:00:00:06`), to: "MAC"},
	{code: "tap-owner", in: about("tap"), edit: regexp.MustCompile(`(?m)( tuntap mode 2 flags 0x)5(100 )`), to: "${1}1$2"},
	{code: "firewall-chain", in: about("firewall"), edit: regexp.MustCompile(`(?m)^\tchain CNI-FW-[0-9a-f]+ \{\n(\t\t.*\n)*\t\}\n`)},
	{code: "nft-comments", lines: regexp.MustCompile(`^\s*comment "`)},
	{code: "empty-tables", edit: regexp.MustCompile(`(?m)^table \S+ \S+ \{\n\}\n`)},
	{code: "portmap-hairpin", in: about("portmap"),
		lines: regexp.MustCompile(`^\s*(ip6? saddr \S+ )?ip6? daddr \S+ (tcp|udp|sctp) dport \d+ ct status dnat ct original proto-dst \d+ masquerade comment`)},
	{code: "loopback-version", in: func(c testCase) bool { return c.has("loopback") && c.cni == "0.4.0" },
		edit: regexp.MustCompile(`,\s*"version": "[46]"|\s*"dns": \{\},`)},
}

// forwarding are the settings that say whether a node is a router, and those
// that follow from it.
var forwarding = regexp.MustCompile(`^sysctl (ipv4/ip_forward|ipv[46]/conf/\S+/forwarding|ipv4/conf/all/accept_redirects) `)

// allowances counts which of them were needed.
type allowances struct {
	list []allowance
	mu   sync.Mutex
	used map[string]int
}

var allowed = &allowances{list: allowanceList, used: map[string]int{}}

func (a *allowances) use(code string, t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, known := range a.list {
		if known.code == code {
			a.used[code]++
			t.Logf("allowed difference: %s", code)
			return
		}
	}
	t.Errorf("no allowance is called %s", code)
}

// without leaves out what may differ in the case.
func (a *allowances) without(c testCase, text string) string {
	for _, known := range a.list {
		if known.in != nil && !known.in(c) {
			continue
		}
		if known.edit != nil {
			text = known.edit.ReplaceAllString(text, known.to)
		}
		if known.lines != nil {
			text = withoutLines(text, known.lines)
		}
	}
	return text
}

func withoutLines(text string, match *regexp.Regexp) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !match.MatchString(strings.TrimRight(line, "\n")) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// difference shows the lines that only one text has.
func difference(ours, theirs string) string {
	var b strings.Builder
	a, r := strings.Split(ours, "\n"), strings.Split(theirs, "\n")
	i, j := 0, 0
	for _, m := range append(common(a, r), [2]int{len(a), len(r)}) {
		for ; i < m[0]; i++ {
			b.WriteString("  Braid:     " + a[i] + "\n")
		}
		for ; j < m[1]; j++ {
			b.WriteString("  reference: " + r[j] + "\n")
		}
		i, j = m[0]+1, m[1]+1
	}
	return b.String()
}

// common returns a longest common subsequence, as pairs of indexes.
func common(a, b []string) [][2]int {
	length := make([][]int, len(a)+1)
	for i := range length {
		length[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	var pairs [][2]int
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			pairs = append(pairs, [2]int{i, j})
			i, j = i+1, j+1
		case length[i+1][j] >= length[i][j+1]:
			i++
		default:
			j++
		}
	}
	return pairs
}

// The page is the list that people read, so it must be this one.
func TestDocumentedDifferencesAreTheAllowedOnes(t *testing.T) {
	page := string(must(os.ReadFile("../../docs/drivers.md"))(t))
	rows := regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|.*\\|.*\\S.*\\|$").FindAllStringSubmatch(page, -1)
	documented := map[string]bool{}
	for _, row := range rows {
		documented[row[1]] = true
	}
	for _, a := range allowanceList {
		if !documented[a.code] {
			t.Errorf("docs/drivers.md does not have a row with a reason for `%s`", a.code)
		}
		delete(documented, a.code)
	}
	for code := range documented {
		t.Errorf("docs/drivers.md lists `%s`, which the test does not allow", code)
	}
}
