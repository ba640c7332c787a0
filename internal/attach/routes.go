package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// A pod has one default route of each family. Networks do not know of each
// other: one would put its route before that of the network before it, another
// would fail because there is one. So each attachment's default routes are
// lifted out of the namespace before the next one is made, and at the end those
// that the pod shall have are put in. Nothing runs in the namespace meanwhile.
// That is spared where no network but the first can make any.

// contested tells whether there is anything to decide: the pod asks for a default
// route, or a network behind the first may make one.
func contested(records []store.Record) bool {
	for i, r := range records {
		if r.Attachment.Claim != nil || i > 0 && r.Attachment.MayMakeDefault() {
			return true
		}
	}
	return false
}

// liftDefaults takes the default routes out of the main table and returns them.
// Those that the kernel makes itself, of router advertisements, stay.
func liftDefaults(h *rtnl.Handle) ([]rtnl.Route, error) {
	lifted, err := defaults(h)
	if err != nil {
		return nil, err
	}
	for _, r := range lifted {
		// A route of several next hops is listed once for each, and may be gone
		// with the first.
		if err := h.DelRoute(r); err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return nil, err
		}
	}
	return lifted, nil
}

// defaults are the default routes of the main table, but for those that the
// kernel makes itself, of router advertisements. Without a namespace there are
// none.
func defaults(h *rtnl.Handle) ([]rtnl.Route, error) {
	if h == nil {
		return nil, nil
	}
	all, err := h.Routes()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r rtnl.Route) bool {
		return r.Dst.Bits() != 0 || r.Table != rtnl.MainTable || r.Protocol == unix.RTPROT_RA || r.Protocol == unix.RTPROT_KERNEL
	}), nil
}

// settlement is how the pod's default routes end up.
type settlement struct {
	// routes are to be put in, in this order. One without a link leads through
	// the interface of the attachment of.
	routes []ownedRoute
	// results are those of the attachments, with the routes that are kept.
	results []*current.Result
	// notes say of each attachment what became of its routes.
	notes [][]string
}

type ownedRoute struct {
	rtnl.Route
	of int
}

// settle decides which default routes the pod has, from what each attachment
// brought: of each family those of the attachment that the pod asks for, else
// of the first one that brought any. It changes no result that it is given.
func settle(done []Attached, brought [][]rtnl.Route) (settlement, error) {
	s := settlement{notes: make([][]string, len(done))}
	for _, d := range done {
		s.results = append(s.results, d.Result)
	}
	for _, is6 := range []bool{false, true} {
		owner, via, err := ownerOf(done, brought, is6)
		if err != nil {
			return s, err
		}
		if owner < 0 {
			continue
		}
		for i := range done {
			mine := ofFamily(brought[i], is6)
			switch {
			case i != owner:
				s.drop(i, is6, mine, done[owner].Attachment)
			case via.IsValid():
				s.claim(i, via)
			default:
				for _, r := range mine {
					s.routes = append(s.routes, ownedRoute{r, i})
				}
			}
		}
	}
	var before []plan.Destinations
	for i, d := range done {
		if d.HasOwnTable() {
			continue
		}
		to := destinations(d)
		s.notes[i] = append(s.notes[i], to.Overlaps(before)...)
		before = append(before, to)
	}
	return s, nil
}

// ownerOf is the attachment that a family's default route leads through, -1 for
// none, and the gateway when it is not that of a route that it brought.
func ownerOf(done []Attached, brought [][]rtnl.Route, is6 bool) (owner int, via netip.Addr, err error) {
	for i, d := range done {
		if !d.Claim.Covers(is6) {
			continue
		}
		gw, named := d.Claim.Gateway(is6)
		switch {
		case named && !onLink(d.Result, gw):
			return -1, gw, fmt.Errorf("attach %s (%s): %w", d.IfName, d.Network, refuse(types.ErrInvalidNetworkConfig,
				"default-route: gateway %s is in no subnet of %s (%s)", gw, d.IfName, addressesOf(d.Result)))
		case named:
			return i, gw, nil
		case len(ofFamily(brought[i], is6)) > 0:
			return i, netip.Addr{}, nil
		}
		if gw, ok := gatewayOf(d.Result, is6); ok {
			return i, gw, nil
		}
		if _, other := gatewayOf(d.Result, !is6); !other && len(brought[i]) == 0 {
			return -1, gw, fmt.Errorf("attach %s (%s): %w", d.IfName, d.Network, refuse(types.ErrInvalidNetworkConfig,
				"default-route: the network brings no gateway; name one, such as [\"192.0.2.1\"]"))
		}
	}
	for i := range done {
		if len(ofFamily(brought[i], is6)) > 0 {
			return i, netip.Addr{}, nil
		}
	}
	return -1, netip.Addr{}, nil
}

func ofFamily(routes []rtnl.Route, is6 bool) []rtnl.Route {
	var list []rtnl.Route
	for _, r := range routes {
		if r.Dst.Addr().Is6() == is6 {
			list = append(list, r)
		}
	}
	return list
}

// drop keeps the default routes of an attachment out.
func (s *settlement) drop(i int, is6 bool, routes []rtnl.Route, owner plan.Attachment) {
	if len(routes) == 0 {
		return
	}
	s.results[i] = withoutDefault(s.results[i], is6)
	why := "comes first"
	if owner.Claim.Covers(is6) {
		why = "is asked for by the pod"
	}
	for _, r := range routes {
		to := "its default route"
		if r.Via.IsValid() {
			to += " by " + r.Via.String()
		}
		s.notes[i] = append(s.notes[i], fmt.Sprintf("%s is not kept, as that of %s %s", to, owner.IfName, why))
	}
}

// claim gives an attachment the default route by a gateway that the pod or the
// network names.
func (s *settlement) claim(i int, via netip.Addr) {
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if via.Is6() {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	s.routes = append(s.routes, ownedRoute{rtnl.Route{Dst: dst, Via: via}, i})
	r := withoutDefault(s.results[i], via.Is6())
	r.Routes = append(r.Routes, &types.Route{
		Dst: net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(0, dst.Addr().BitLen())}, GW: via.AsSlice(),
	})
	s.results[i] = r
	s.notes[i] = append(s.notes[i], fmt.Sprintf("default route by %s, as the pod asks", via))
}

// withoutDefault is a copy of a result without the default routes of a family
// in the main table.
func withoutDefault(r *current.Result, is6 bool) *current.Result {
	out := *r
	out.Routes = nil
	for _, route := range r.Routes {
		if route == nil {
			continue
		}
		if !isDefault(route) || isIPv6(route) != is6 {
			out.Routes = append(out.Routes, route)
		}
	}
	return &out
}

// isDefault tells whether a result's route is a default one in the main table.
func isDefault(r *types.Route) bool {
	if r == nil {
		return false
	}
	ones, bits := r.Dst.Mask.Size()
	return ones == 0 && bits > 0 && (r.Table == nil || *r.Table == rtnl.MainTable || *r.Table == 0)
}

func isIPv6(r *types.Route) bool { return r.Dst.IP.To4() == nil }

// onLink tells whether a gateway is reached directly: it is in a subnet of the
// interface, or a route without a gateway leads to it. (A route that names none
// has that of the addresses, if they have one.)
func onLink(r *current.Result, gw netip.Addr) bool {
	for _, ip := range r.IPs {
		if ip != nil && ip.Address.Contains(gw.AsSlice()) {
			return true
		}
	}
	if _, all := gatewayOf(r, gw.Is6()); all {
		return false
	}
	for _, route := range r.Routes {
		if route == nil {
			continue
		}
		if ones, _ := route.Dst.Mask.Size(); ones > 0 && route.GW == nil && route.Dst.Contains(gw.AsSlice()) {
			return true
		}
	}
	return false
}

// gatewayOf is the gateway of a result's first address of a family that has one.
func gatewayOf(r *current.Result, is6 bool) (netip.Addr, bool) {
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && gw.Unmap().Is6() == is6 {
			return gw.Unmap(), true
		}
	}
	return netip.Addr{}, false
}

func addressesOf(r *current.Result) string {
	var list []string
	for _, ip := range r.IPs {
		if ip != nil {
			list = append(list, ip.Address.String())
		}
	}
	if len(list) == 0 {
		return "which has no address"
	}
	return strings.Join(list, ", ")
}

// destinations are where an attachment's result says that packets go.
func destinations(d Attached) plan.Destinations {
	to := plan.Destinations{IfName: d.IfName}
	add := func(n net.IPNet) {
		addr, ok := netip.AddrFromSlice(n.IP)
		ones, bits := n.Mask.Size()
		if !ok || bits == 0 || ones == 0 {
			return
		}
		addr = addr.Unmap()
		ones = max(0, ones-(bits-addr.BitLen())) // a 16-byte mask may go with an IPv4 address
		if p := netip.PrefixFrom(addr, ones); p.IsValid() {
			to.Add(p)
		}
	}
	for _, ip := range d.Result.IPs {
		if ip != nil {
			add(ip.Address)
		}
	}
	for _, r := range d.Result.Routes {
		if r != nil {
			add(r.Dst)
		}
	}
	return to
}

// put adds the routes of a settlement.
func (s settlement) put(h *rtnl.Handle, done []Attached) error {
	// The kernel puts each one before the others to the same destination.
	for _, r := range slices.Backward(s.routes) {
		d := done[r.of]
		claimed := r.Link == 0
		if claimed {
			link, err := h.Link(d.IfName)
			if err != nil {
				return fmt.Errorf("attach %s (%s): default route by %s: %w", d.IfName, d.Network, r.Via, err)
			}
			r.Link = link.Index
		}
		err := h.AppendRoute(r.Route)
		if claimed && (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)) {
			// The gateway is on the link, but the route that says so is in
			// another table, where sbr and vrf put it.
			r.OnLink = true
			err = h.AppendRoute(r.Route)
		}
		if err != nil {
			return fmt.Errorf("attach %s (%s): default route: %w", d.IfName, d.Network, err)
		}
	}
	return nil
}
