package firewall_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/firewall"
	"braid.dev/braid/internal/driver/tuning"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// segment is a node with two containers on one bridge: in VLAN 2001 where the
// kernel has VLANs on bridges (tier guest), and without one where it has not.
// The answers are those of docs/firewall.md.
type segment struct {
	world
	vlan  bool
	specs map[string]driver.Spec
}

var segmentAddr = map[string]string{"a": "10.20.1.11", "b": "10.20.1.12"}

func newSegment(t *testing.T, keys string) *segment {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth, kerneltest.Bridge)
	if inGuest() {
		kerneltest.Need(t, kerneltest.BridgeVLAN)
	}
	g := &segment{world: world{node: kerneltest.NewNS(t)}, vlan: inGuest(), specs: map[string]driver.Spec{}}
	g.at = map[string]*netns.NS{}
	g.d = firewall.New(firewall.Config{HostNS: g.node})
	node := g.handle(t, g.node)
	must(node.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0", Up: true}, VLANFiltering: g.vlan}))(t)
	if g.vlan {
		keys += `,"vlan":2001`
	}
	d := drivertest.Finishing(bridge.New(bridge.Config{HostNS: g.node}))
	for who, addr := range segmentAddr {
		ns, path := kerneltest.NewNamedNS(t)
		g.at[who] = ns
		s := driver.Spec{
			ContainerID: who, IfName: "net1", NetNS: ns, NetNSPath: path, Host: inNode{g.node},
			Conf: []byte(`{"cniVersion":"1.0.0","name":"segment","type":"bridge","bridge":"braidbr0"` + keys + `}`),
		}
		s.Prev = must(d.Attach(t.Context(), s))(t)
		h := g.handle(t, ns)
		up(t, h, must(h.Link("lo"))(t))
		up(t, h, must(h.Link("net1"))(t), addr+"/24")
		two := 2
		s.Prev.IPs = []*current.IPConfig{{Interface: &two, Address: net.IPNet{IP: net.ParseIP(addr), Mask: net.CIDRMask(24, 32)}}}
		g.specs[who] = s
		serve(t, ns)
	}
	return g
}

// chain runs one more plugin of the network's list for both containers.
func (g *segment) chain(t *testing.T, d driver.Driver, conf string) {
	t.Helper()
	for _, s := range g.specs {
		s.Conf = []byte(`{"cniVersion":"1.0.0","name":"segment",` + conf + `}`)
		must(d.Attach(t.Context(), s))(t)
	}
}

func (g *segment) reaches(t *testing.T, want bool, when string) {
	t.Helper()
	if got := g.ask("b", segmentAddr["a"], patience[want]); got != want {
		t.Errorf("%s: b reaches a: %v, want %v", when, got, want)
	}
}

const isolatedConf = `"type":"firewall","ingressPolicy":"isolated"`

// The strictest policy on a node that forwards nothing does nothing to frames
// that the bridge passes on.
func TestFirewallDoesNotSeeBridgedFrames(t *testing.T) {
	needRules(t, "")
	g := newSegment(t, "")
	g.bridgedFramesAreTheNodes(t, false)
	g.forwardNothing(t)
	g.reaches(t, true, "FORWARD policy DROP")
	g.chain(t, g.d, isolatedConf)
	g.reaches(t, true, "ingressPolicy isolated")
}

// With br_netfilter it does, but for frames that come in tagged, by the trunk,
// only when asked for once more.
func TestFirewallSeesBridgedFramesWithBrNetfilter(t *testing.T) {
	needRules(t, "")
	g := newSegment(t, "")
	if !g.bridgedFramesAreTheNodes(t, true) {
		t.Skip("missing feature: br_netfilter")
	}
	g.reaches(t, true, "no policy")
	g.chain(t, g.d, isolatedConf)
	g.reaches(t, false, "ingressPolicy isolated with br_netfilter")
	if !g.vlan {
		return
	}
	g.beyondTheTrunk(t)
	for value, want := range map[string]bool{"0": true, "1": false} {
		try(t, rtnl.Sysctl{}.Set(g.node, rtnl.Setting{Path: "bridge/bridge-nf-filter-vlan-tagged", Value: value}))
		if got := g.ask("c", segmentAddr["a"], patience[want]); got != want {
			t.Errorf("bridge-nf-filter-vlan-tagged %s: c reaches a by the trunk: %v, want %v", value, got, want)
		}
	}
}

// beyondTheTrunk adds c, who is in VLAN 2001 behind a trunk port of the bridge.
func (g *segment) beyondTheTrunk(t *testing.T) {
	t.Helper()
	kerneltest.Need(t, kerneltest.VLAN)
	g.at["c"] = kerneltest.NewNS(t)
	node, far := g.handle(t, g.node), g.handle(t, g.at["c"])
	trunk := must(node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "trunk0", Up: true}, Peer: rtnl.New{Name: "trunk0"}, PeerNS: g.at["c"]}))(t)
	try(t, node.SetMaster(trunk.Index, must(node.Link("braidbr0"))(t).Index))
	try(t, node.AddVLANs(trunk.Index, rtnl.OfPort, rtnl.VLANs{From: 2001, To: 2001}))
	parent := must(far.Link("trunk0"))(t)
	up(t, far, parent)
	up(t, far, must(far.AddVLAN(rtnl.VLAN{New: rtnl.New{Name: "vlan2001"}, Parent: parent.Index, ID: 2001}))(t), "10.20.1.13/24")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	try(t, rtnl.Await(ctx, g.node, func() (bool, error) {
		l, err := node.Link("trunk0")
		return l.Running, err
	}))
}

func TestIsolatedPortsDoNotReachEachOther(t *testing.T) {
	g := newSegment(t, `,"portIsolation":true`)
	g.reaches(t, false, "portIsolation")
}

// Rules of the bridge family see every frame, VLAN or not.
func TestBridgeFamilyOfNFTablesFilters(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftBridge)
	g := newSegment(t, "")
	g.reaches(t, true, "no rule")
	port := g.specs["a"].Prev.Interfaces[1].Name
	for _, command := range []string{
		"add table bridge pods",
		// -200, before br_netfilter takes the frame away: at priority 0 the rule
		// is passed over by kernel 6.1 when that is at work.
		"add chain bridge pods forward { type filter hook forward priority filter ; }",
		fmt.Sprintf("add rule bridge pods forward oifname %s ip saddr != 10.20.1.99 tcp dport 80 drop", port),
	} {
		g.run(t, "nft", strings.Fields(command)...)
	}
	g.reaches(t, false, "rule in the bridge family")
}

// What tuning sets is in the container, where the interface is.
func TestTuningWorksOnBridgedInterfaces(t *testing.T) {
	g := newSegment(t, "")
	d := tuning.New(tuning.Config{DataDir: t.TempDir(), Allowlist: "/nonexistent"})
	g.chain(t, d, `"type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.arp_ignore":"8"}`)
	g.reaches(t, false, "arp_ignore 8, answer nobody")
	g.chain(t, d, `"type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.arp_ignore":"0"}`)
	for _, ns := range g.at { // forget that there was no answer
		h := g.handle(t, ns)
		for _, addr := range segmentAddr {
			_ = h.DelNeigh(must(h.Link("net1"))(t).Index, netip.MustParseAddr(addr))
		}
	}
	g.reaches(t, true, "arp_ignore 0")
}

// The container's own rules are in the way of every frame that it receives.
func TestRulesInTheContainerFilter(t *testing.T) {
	needRules(t, "")
	g := newSegment(t, "")
	g.reaches(t, true, "no rule")
	pod := inNode{g.at["a"]}
	must(pod.Exec(t.Context(), driver.Program{Name: "iptables", Args: strings.Fields("-A INPUT -i net1 -p tcp --dport 80 -j DROP")}))(t)
	g.reaches(t, false, "rule in the container")
}
