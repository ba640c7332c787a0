package rtnl

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MainTable is the routing table that is used without any rule.
const MainTable = unix.RT_TABLE_MAIN

// Route is a route of one next hop.
type Route struct {
	Dst netip.Prefix // 0.0.0.0/0 or ::/0 for the default route
	// Via is the gateway; the zero value is a route to the link itself.
	Via netip.Addr
	// Src is the preferred source address, or the zero value.
	Src  netip.Addr
	Link int
	// Table is 0 for MainTable.
	Table int
	// Scope is RT_SCOPE_*; 0 is the world.
	Scope  int
	Metric int
	// OnLink says that Via is reachable through Link even if no address of the
	// link says so.
	OnLink bool
	// MTU and AdvMSS are in bytes; 0 leaves them to the kernel.
	MTU, AdvMSS int
	// Protocol is who made the route: 0 when the caller did, 2 is the kernel.
	Protocol int
}

// String prints the route as iproute2 does, with the link's index.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	return fmt.Sprintf("%s dev %d%s", s, r.Link, r.suffix())
}

func (r Route) suffix() (s string) {
	if r.Src.IsValid() {
		s += " src " + r.Src.String()
	}
	if r.Table != 0 && r.Table != MainTable {
		s += fmt.Sprintf(" table %d", r.Table)
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	switch r.Scope {
	case unix.RT_SCOPE_UNIVERSE:
	case unix.RT_SCOPE_LINK:
		s += " scope link"
	case unix.RT_SCOPE_HOST:
		s += " scope host"
	default:
		s += fmt.Sprintf(" scope %d", r.Scope)
	}
	if r.OnLink {
		s += " onlink"
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	if r.AdvMSS != 0 {
		s += fmt.Sprintf(" advmss %d", r.AdvMSS)
	}
	return s
}

// Routes returns the unicast routes of all tables but the local one, both
// families. A route with several next hops is returned once for each.
func (h *Handle) Routes() ([]Route, error) {
	list := func(lib *netlink.Handle) ([]netlink.Route, error) {
		// Table 0 in the filter means every table.
		return lib.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	}
	all, err := dump(h, list)
	if err != nil {
		return nil, failed(err, "list routes")
	}
	routes := make([]Route, 0, len(all))
	for _, r := range all {
		if r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST {
			continue
		}
		routes = append(routes, routesOf(r)...)
	}
	return routes, nil
}

func routesOf(r netlink.Route) []Route {
	one := Route{
		Dst:      prefixOf(r.Dst),
		Via:      addrOf(r.Gw),
		Src:      addrOf(r.Src),
		Link:     r.LinkIndex,
		Table:    r.Table,
		Scope:    int(r.Scope),
		Metric:   r.Priority,
		OnLink:   r.Flags&unix.RTNH_F_ONLINK != 0,
		MTU:      r.MTU,
		AdvMSS:   r.AdvMSS,
		Protocol: int(r.Protocol),
	}
	if len(r.MultiPath) == 0 {
		return []Route{one}
	}
	var routes []Route
	for _, hop := range r.MultiPath {
		next := one
		next.Via, next.Link = addrOf(hop.Gw), hop.LinkIndex
		next.OnLink = hop.Flags&unix.RTNH_F_ONLINK != 0
		routes = append(routes, next)
	}
	return routes
}

// AddRoute adds a route. It is ErrExists when a route to the same destination
// with the same metric is there, through whatever link.
func (h *Handle) AddRoute(r Route) error {
	return failed(h.newRoute(r, unix.NLM_F_EXCL), "add route %s", r)
}

// AppendRoute adds a route beside those to the same destination. IPv6 makes
// one route of several next hops of them. It is ErrExists only when this very
// route is there.
func (h *Handle) AppendRoute(r Route) error {
	return failed(h.newRoute(r, 0), "add route %s", r)
}

// ReplaceRoute adds a route, in the place of one to the same destination with
// the same metric.
func (h *Handle) ReplaceRoute(r Route) error {
	return failed(h.newRoute(r, unix.NLM_F_REPLACE), "replace route %s", r)
}

// newRoute makes a route. The flags say what is to become of others.
func (h *Handle) newRoute(r Route, flags uint16) error {
	head := nl.NewRtMsg()
	head.Scope = uint8(r.Scope)
	req := r.request(unix.RTM_NEWROUTE, head)
	req.Flags |= unix.NLM_F_CREATE | flags
	return h.conn.change(req)
}

// DelRoute removes a route. One that is not there is ErrNotFound. Scope 0
// stands for any scope here.
func (h *Handle) DelRoute(r Route) error {
	head := nl.NewRtDelMsg()
	if r.Scope != 0 {
		head.Scope = uint8(r.Scope)
	}
	return failed(h.conn.change(r.request(unix.RTM_DELROUTE, head)), "remove route %s", r)
}

// request completes head by the route.
func (r Route) request(kind int, head *nl.RtMsg) *nl.NetlinkRequest {
	dst := r.Dst.Masked()
	head.Family, head.Dst_len = unix.AF_INET, uint8(dst.Bits())
	if dst.Addr().Is6() {
		head.Family = unix.AF_INET6
	}
	if r.Protocol != 0 {
		head.Protocol = uint8(r.Protocol)
	}
	if r.OnLink {
		head.Flags |= unix.RTNH_F_ONLINK
	}
	req := nl.NewNetlinkRequest(kind, 0)
	req.AddData(head)
	add := func(kind int, value []byte, given bool) {
		if given {
			req.AddData(nl.NewRtAttr(kind, value))
		}
	}
	// A number of more than a byte has no room in the head.
	if r.Table > 255 {
		head.Table = unix.RT_TABLE_UNSPEC
	} else if r.Table > 0 {
		head.Table = uint8(r.Table)
	}
	add(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table)), r.Table > 255)
	add(unix.RTA_DST, dst.Addr().AsSlice(), true)
	add(unix.RTA_PREFSRC, r.Src.AsSlice(), r.Src.IsValid())
	add(unix.RTA_GATEWAY, r.Via.AsSlice(), r.Via.IsValid())
	add(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Metric)), r.Metric > 0)
	if r.MTU > 0 || r.AdvMSS > 0 {
		req.AddData(r.metrics())
	}
	add(unix.RTA_OIF, nl.Uint32Attr(uint32(r.Link)), true)
	return req
}

func (r Route) metrics() *nl.RtAttr {
	metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
	if r.MTU > 0 {
		metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
	}
	if r.AdvMSS > 0 {
		metrics.AddRtAttr(unix.RTAX_ADVMSS, nl.Uint32Attr(uint32(r.AdvMSS)))
	}
	return metrics
}
