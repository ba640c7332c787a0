// Package round decides what a round of probes asks, and judges the answers.
package round

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"braid.dev/braid/api/v1alpha1"
)

// Kinds of targets.
const (
	KindPod       = "pod"       // a probe's pod, asked over HTTP
	KindService   = "service"   // a service of probes' pods, asked over HTTP
	KindNode      = "node"      // a node's own probe, asked over HTTP
	KindDNS       = "dns"       // a name server, asked for a name
	KindAPIServer = "apiserver" // an API server, as far as the end of the TLS handshake
	KindOutside   = "outside"   // a TCP port anywhere
)

// A Probe is a pod that asks and is asked. Of one node and side there is one;
// with two families it is here once for each address.
type Probe struct {
	Node string
	Side v1alpha1.Side
	Addr netip.AddrPort
}

// A Node is a node whose own probe answers at Addr.
type Node struct {
	Name string
	Addr netip.AddrPort
}

// A Service is one of probes' pods. Side is empty when it has pods of both.
type Service struct {
	Name string
	Side v1alpha1.Side
	Addr netip.AddrPort
}

// World is everything that a round can ask.
type World struct {
	Probes     []Probe
	Nodes      []Node
	Services   []Service
	DNS        []netip.AddrPort
	APIServers []netip.AddrPort
	// Outside are host:port, where a host may be a name.
	Outside []string
}

// Targets lists what every probe asks in a round. Names differ, and the order
// depends on nothing but the world's contents.
func Targets(w World) []v1alpha1.ProbeTarget {
	var l list
	for _, p := range w.Probes {
		l.add(v1alpha1.ProbeTarget{Name: asker{p.Node, p.Side}.String(), Kind: KindPod, Side: p.Side, Node: p.Node, Address: p.Addr.String()})
	}
	for _, s := range w.Services {
		l.add(v1alpha1.ProbeTarget{Name: "service " + s.Name, Kind: KindService, Side: s.Side, Address: s.Addr.String()})
	}
	for _, n := range w.Nodes {
		l.add(v1alpha1.ProbeTarget{Name: n.Name, Kind: KindNode, Node: n.Name, Address: n.Addr.String()})
	}
	for _, a := range w.DNS {
		l.add(v1alpha1.ProbeTarget{Name: "DNS", Kind: KindDNS, Address: a.String()})
	}
	for _, a := range w.APIServers {
		l.add(v1alpha1.ProbeTarget{Name: "API server", Kind: KindAPIServer, Address: a.String()})
	}
	for _, a := range w.Outside {
		l.add(v1alpha1.ProbeTarget{Name: "outside", Kind: KindOutside, Address: a})
	}
	return l.named()
}

type list []v1alpha1.ProbeTarget

func (l *list) add(t v1alpha1.ProbeTarget) { *l = append(*l, t) }

// kinds is the order of kinds in a round.
var kinds = []string{KindPod, KindService, KindNode, KindDNS, KindAPIServer, KindOutside}

// named sorts the targets and makes their names differ, by their addresses.
func (l list) named() []v1alpha1.ProbeTarget {
	slices.SortFunc(l, func(a, b v1alpha1.ProbeTarget) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
			cmp.Compare(a.Side, b.Side), // Source is before Target, as old is before new
			cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.Address, b.Address),
		)
	})
	l = slices.Compact(l)
	times := map[string]int{}
	for _, t := range l {
		times[t.Name]++
	}
	for i, t := range l {
		if times[t.Name] > 1 {
			l[i].Name = fmt.Sprintf("%s (%s)", t.Name, t.Address)
		}
	}
	return l
}

// An asker is one that asks every target: the probe of a side on a node, or,
// without a side, the node itself.
type asker struct {
	node string
	side v1alpha1.Side
}

func (a asker) String() string {
	if a.side == "" {
		return a.node
	}
	return age(a.side) + " pod on " + a.node
}

// age is what people call a side, and a node's own.
func age(s v1alpha1.Side) string {
	switch s {
	case v1alpha1.Source:
		return "old"
	case v1alpha1.Target:
		return "new"
	default:
		return "node"
	}
}
