package differential

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

// family generates cases: each picks a value for every option at random, the
// same ones in every run.
type family struct {
	typ, title string
	n          int
	// options are lists of alternatives, JSON members; an empty one leaves the
	// option out.
	options [][]string
	ipams   []string
	// wrap makes the chain of the plugin that the options describe.
	wrap  func(plugin string) []string
	guest bool
	needs []kerneltest.Feature
	// netfilter, node and capabilities are those of the cases.
	netfilter    bool
	node         func(*testing.T, *rtnl.Handle)
	capabilities []string
	// clash names options that no configuration may have together.
	clash [][2]string
}

func (f family) generate() []testCase {
	title := f.title
	if title == "" {
		title = f.typ
	}
	// A seed of its own for every family, so that one more case here changes
	// nothing there.
	r := rand.New(rand.NewPCG(20261121, uint64(len(title))<<32|uint64(title[0])))
	seen := map[string]bool{}
	var all []testCase
	for len(all) < f.n {
		c, ok := f.pick(r)
		if key := c.list() + c.capabilities; !ok || seen[key] {
			continue
		} else {
			seen[key] = true
		}
		c.title = fmt.Sprintf("%s/generated-%02d", title, len(all))
		all = append(all, c)
	}
	return all
}

func (f family) pick(r *rand.Rand) (testCase, bool) {
	var keys []string
	for _, o := range f.options {
		if v := o[r.IntN(len(o))]; v != "" {
			keys = append(keys, v)
		}
	}
	text := strings.Join(keys, ",")
	for _, c := range f.clash {
		if strings.Contains(text, c[0]) && strings.Contains(text, c[1]) {
			return testCase{}, false
		}
	}
	ipam := ""
	if len(f.ipams) > 0 {
		ipam = f.ipams[r.IntN(len(f.ipams))]
	}
	chain := []string{plugin(f.typ, text, ipam)}
	if f.wrap != nil {
		chain = f.wrap(chain[0])
	}
	c := testCase{
		generated: true, plugins: chain, guest: f.guest, needs: f.needs, netfilter: f.netfilter, node: f.node,
		cni: []string{"0.3.1", "0.4.0", "1.0.0", "1.0.0", "1.1.0"}[r.IntN(5)],
	}
	if len(f.capabilities) > 0 {
		c.capabilities = f.capabilities[r.IntN(len(f.capabilities))]
	}
	return c, true
}

var everyIPAM = []string{"", oneIPv4, oneIPv6, withGateway, defaultVia, dualStack, two, tables, hostLocal, hostLocal6}

// withAddress are those for plugins that do not work without.
var withAddress = everyIPAM[1:]

var bridgeFamily = family{
	typ: "bridge", n: 24, ipams: everyIPAM,
	options: [][]string{
		{`"bridge":"braidbr0"`, `"bridge":"braidbr0"`, ""},
		{`"isGateway":true`, `"isDefaultGateway":true`, "", ""},
		{`"mtu":1400`, `"mtu":1280`, "", ""},
		{`"hairpinMode":true`, `"promiscMode":true`, "", ""},
		{`"portIsolation":true`, "", ""},
		{`"enabledad":true`, "", ""},
		{`"dns":{"nameservers":["192.0.2.53"]}`, "", ""},
		{`"args":{"cni":{"mac":"02:00:00:00:00:07"}}`, "", ""},
	},
}

var macvlanFamily = family{
	typ: "macvlan", n: 16, ipams: everyIPAM, node: up0, needs: []kerneltest.Feature{kerneltest.Macvlan},
	options: [][]string{
		{`"master":"up0"`, `"master":"up0"`, ""},
		{`"mode":"bridge"`, `"mode":"private"`, `"mode":"vepa"`, `"mode":"passthru"`, ""},
		{`"mtu":1300`, `"mtu":1400`, ""},
		{`"bcqueuelen":500`, "", ""},
		{`"mac":"02:00:00:00:00:07"`, `"args":{"cni":{"mac":"02:00:00:00:00:06"}}`, "", ""},
	},
}

var ptpFamily = family{
	typ: "ptp", n: 8, ipams: []string{withGateway, defaultVia, dualStack, two, hostLocal, hostLocal6},
	options: [][]string{
		{`"mtu":1400`, ""},
		{`"dns":{"nameservers":["192.0.2.53"],"search":["own.test"]}`, ""},
	},
}

var tapFamily = family{
	typ: "tap", n: 6, ipams: everyIPAM, needs: tun,
	options: [][]string{
		{`"mtu":1400`, ""},
		{`"multiQueue":true`, ""},
		{`"owner":1000`, `"owner":0`, ""},
		{`"group":1000`, ""},
		{`"mac":"02:00:00:00:00:07"`, `"args":{"cni":{"mac":"02:00:00:00:00:06"}}`, ""},
	},
	// The reference forgets them (docs/drivers.md, tap-owner).
	clash: [][2]string{{`"owner"`, `"mtu"`}, {`"owner"`, `"mac"`}},
}

var ipvlanFamily = family{
	typ: "ipvlan", n: 10, ipams: withAddress, node: up0, guest: true,
	options: [][]string{
		{`"master":"up0"`, ""},
		{`"mode":"l2"`, `"mode":"l3"`, `"mode":"l3s"`, ""},
		{`"mtu":1300`, ""},
	},
}

var vlanFamily = family{
	typ: "vlan", n: 8, ipams: withAddress, node: up0, guest: true,
	options: [][]string{
		{`"master":"up0"`},
		{`"vlanId":1`, `"vlanId":2001`, `"vlanId":4094`},
		{`"mtu":1300`, ""},
		{`"dns":{"nameservers":["192.0.2.53"]}`, ""},
	},
}

var dummyFamily = family{typ: "dummy", n: 4, ipams: withAddress, guest: true}

var bridgeVLANFamily = family{
	typ: "bridge", title: "bridge-vlan", n: 10, ipams: everyIPAM, guest: true,
	options: [][]string{
		{`"bridge":"braidbr0"`},
		{`"vlan":5`, `"vlan":2001`, ""},
		{`"vlanTrunk":[{"id":200}]`, `"vlanTrunk":[{"minID":100,"maxID":103},{"id":7}]`, `"vlanTrunk":[]`, ""},
		{`"preserveDefaultVlan":true`, `"preserveDefaultVlan":false`, ""},
		{`"isGateway":true`, ""},
		{`"hairpinMode":true`, ""},
	},
}

var tuningFamily = family{
	typ: "tuning", n: 8,
	options: [][]string{
		{`"dataDir":"@DIR@"`},
		{`"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"}`, `"sysctl":{"net.ipv4.ip_unprivileged_port_start":"80"}`, ""},
		{`"mac":"02:00:00:00:00:07"`, ""},
		{`"promisc":true`, `"promisc":false`, ""},
		{`"mtu":1300`, ""},
		{`"allmulti":true`, `"allmulti":false`, ""},
		{`"txQLen":500`, ""},
	},
	wrap: func(p string) []string { return []string{bridged, p} },
}

var portmapFamily = family{
	typ: "portmap", n: 8, netfilter: true, node: up0, needs: nft,
	options: [][]string{
		{`"capabilities":{"portMappings":true}`},
		{`"backend":"iptables"`, `"backend":"nftables"`},
		{`"snat":false`, `"snat":true`, ""},
		{`"masqAll":true`, ""},
	},
	wrap: func(p string) []string {
		return []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, dualStack), p}
	},
	capabilities: []string{ports,
		`{"portMappings":[{"hostPort":8443,"containerPort":443,"protocol":"sctp"}]}`,
		`{"portMappings":[{"hostPort":8443,"containerPort":443,"protocol":"tcp","hostIP":"::"}]}`,
	},
}
