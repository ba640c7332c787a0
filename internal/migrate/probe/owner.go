package probe

import (
	"fmt"
	"net/netip"
	"slices"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Owner is a link of a node and the addresses that it has.
type Owner struct {
	Link  string
	Addrs []netip.Addr
	// Node says that the link is the node's own way out: it has the default route.
	Node bool
}

// Owners returns the links of a node that have addresses, but the loopback. A
// nil namespace is the process's own.
func Owners(ns *netns.NS) ([]Owner, error) {
	h, err := rtnl.Open(ns)
	if err != nil {
		return nil, fmt.Errorf("look at the node's addresses: %w", err)
	}
	defer h.Close()
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	routes, err := h.Routes()
	if err != nil {
		return nil, err
	}
	var out []Owner
	for _, l := range links {
		addrs, err := h.Addrs(l.Index)
		if err != nil {
			return nil, err
		}
		o := Owner{Link: l.Name, Node: slices.ContainsFunc(routes, func(r rtnl.Route) bool {
			return r.Link == l.Index && r.Dst.Bits() == 0 && (r.Table == 0 || r.Table == rtnl.MainTable)
		})}
		for _, a := range addrs {
			if !a.Addr().IsLoopback() {
				o.Addrs = append(o.Addrs, a.Addr())
			}
		}
		if len(o.Addrs) > 0 {
			out = append(out, o)
		}
	}
	return out, nil
}

// saw names the owner of the address that a server saw: "own" for the asking
// probe's, "node" for the link with the node's default route, or else the link;
// empty when nobody on the node has it. A node that asks has several addresses,
// and which of them it took is what is of interest there.
func saw(client, source netip.Addr, fromNode bool, owners []Owner) string {
	if client == source && !fromNode {
		return "own"
	}
	for _, o := range owners {
		switch {
		case !slices.Contains(o.Addrs, client):
		case o.Node:
			return "node"
		default:
			return o.Link
		}
	}
	if client == source {
		return "own"
	}
	return ""
}
