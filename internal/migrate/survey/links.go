package survey

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/rtnl"
)

// Network returns the links and routes of the network namespace that the caller
// is in, all of them: the part of a survey that others look at now and again.
func Network() (links []facts.Link, routes []facts.Route, err error) {
	h, err := rtnl.Open(nil)
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	links, err = readLinks(h)
	if err != nil {
		return nil, nil, err
	}
	routes, err = readRoutes(h)
	return links, routes, err
}

func (s *survey) network() {
	h, err := rtnl.Open(nil)
	if err != nil {
		s.problem("links and routes are not known: %v", err)
		return
	}
	defer h.Close()
	links, err := readLinks(h)
	if err != nil {
		s.problem("links are not all known: %v", err)
	}
	s.node.Links = capped(s, "links", links, maxLinks)
	routes, err := readRoutes(h)
	if err != nil {
		s.problem("routes are not all known: %v", err)
	}
	s.node.Routes = capped(s, "routes", routes, maxRoutes)
}

// readLinks returns what could be read of the links, also beside an error.
func readLinks(h *rtnl.Handle) ([]facts.Link, error) {
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	addrs, errAddrs := h.AllAddrs()
	tunnels, errTunnels := h.Tunnels()
	return linkFacts(links, addrs, tunnels), errors.Join(errAddrs, errTunnels)
}

// linkFacts are the links by index, as the kernel lists them.
func linkFacts(links []rtnl.Link, addrs map[int][]rtnl.Addr, tunnels map[int]rtnl.Tunnel) []facts.Link {
	byIndex := make(map[int]rtnl.Link, len(links))
	for _, l := range links {
		byIndex[l.Index] = l
	}
	var out []facts.Link
	for _, l := range links {
		f := facts.Link{Name: l.Name, Kind: l.Kind, MTU: l.MTU, Up: l.Up, MAC: l.MAC.String(), Master: byIndex[l.Master].Name}
		if f.Kind == "device" {
			f.Kind = ""
		}
		// The other end of a veth is not below it, and an index of another
		// namespace is nobody's here.
		if l.Kind != "veth" && l.ParentNSID < 0 {
			f.Parent = byIndex[l.Parent].Name
		}
		for _, a := range addrs[l.Index] {
			if !derived(a.Prefix) {
				f.Addrs = append(f.Addrs, a.Prefix.String())
			}
		}
		if t, ok := tunnels[l.Index]; ok {
			f.Tunnel = tunnelFacts(t, byIndex)
			f.Parent = byIndex[t.Lower].Name
		}
		out = append(out, f)
	}
	return out
}

// derived addresses and routes are what the kernel gives every link by itself.
func derived(p netip.Prefix) bool {
	return p.Addr().Is6() && (p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast())
}

func tunnelFacts(t rtnl.Tunnel, links map[int]rtnl.Link) *facts.Tunnel {
	f := &facts.Tunnel{
		Kind: t.Kind, ID: t.ID, Port: t.Port, External: t.External, VNIFilter: t.VNIFilter, GBP: t.GBP, GPE: t.GPE,
		UDPZeroCsum6RX: t.UDPZeroCsum6RX, RemCsumRX: t.RemCsumRX, IPv6: t.IPv6,
	}
	if t.Local.IsValid() {
		f.Local = t.Local.String()
	}
	// The socket is bound to the VRF that the lower link is in, however far up.
	lower, ok := links[t.Lower]
	for depth := 0; ok && t.Kind == "vxlan" && depth < len(links); depth++ {
		if lower.Kind == "vrf" {
			f.L3MDev = lower.Name
			break
		}
		lower, ok = links[lower.Master]
	}
	return f
}

// readRoutes returns what could be read of the routes, also beside an error.
func readRoutes(h *rtnl.Handle) ([]facts.Route, error) {
	ways, err := h.Routes()
	if err != nil {
		return nil, err
	}
	links, errLinks := h.Links()
	all, errAll := h.EveryRoute()
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	return routeFacts(ways, all, names), errors.Join(errLinks, errAll)
}

// routeFacts are the routes that lead somewhere, and of the others those that
// lead nowhere, which have no link: first those of the main table, each table's
// by destination.
func routeFacts(ways []rtnl.Route, all []rtnl.AnyRoute, names map[int]string) []facts.Route {
	var out []facts.Route
	for _, r := range ways {
		if derived(r.Dst) {
			continue
		}
		f := facts.Route{Dst: r.Dst.String(), Dev: names[r.Link], Table: tableOf(r.Table), Protocol: r.Protocol}
		if r.Via.IsValid() {
			f.Via = r.Via.String()
		}
		if r.Src.IsValid() {
			f.Src = r.Src.String()
		}
		out = append(out, f)
	}
	for _, r := range all {
		if r.Type != "unicast" {
			out = append(out, facts.Route{Dst: r.Dst.String(), Table: tableOf(r.Table), Protocol: r.Protocol})
		}
	}
	slices.SortStableFunc(out, func(a, b facts.Route) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Dst, b.Dst), cmp.Compare(a.Dev, b.Dev), cmp.Compare(a.Via, b.Via))
	})
	return out
}

func tableOf(table int) int {
	if table == unix.RT_TABLE_MAIN {
		return 0
	}
	return table
}
