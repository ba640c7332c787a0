package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"braid.dev/braid/internal/ipam/request"
)

// span is a run of addresses of one subnet, both ends included. It is never
// empty.
type span struct {
	first, last netip.Addr
	subnet      netip.Prefix
	// gateway is never handed out. It may lie outside the span.
	gateway netip.Addr
}

// rangeSet yields one address per attachment. Its spans are of one family and
// do not overlap.
type rangeSet []span

func newSet(conf setConf) (rangeSet, error) {
	if len(conf) == 0 {
		return nil, errors.New("is empty")
	}
	var set rangeSet
	for _, rc := range conf {
		s, err := newSpan(rc)
		if err != nil {
			return nil, err
		}
		if len(set) > 0 && set[0].first.Is4() != s.first.Is4() {
			return nil, errors.New("mixes IPv4 and IPv6")
		}
		if set.overlaps(rangeSet{s}) {
			return nil, fmt.Errorf("%v overlaps with another range of the set", s)
		}
		set = append(set, s)
	}
	return set, nil
}

// newSpan fills in what rc leaves out: the second address of the subnet as
// gateway, the same as the first address (the allocator steps over the
// gateway), and as the last one the subnet's last, for IPv4 the one before the
// broadcast address.
func newSpan(rc rangeConf) (span, error) {
	subnet, err := parseSubnet(rc.Subnet)
	if err != nil {
		return span{}, err
	}
	s := span{subnet: subnet, gateway: subnet.Addr().Next(), first: subnet.Addr().Next(), last: lastOf(subnet)}
	if s.first.Is4() {
		s.last = s.last.Prev()
	}
	for _, f := range []struct {
		name, text string
		to         *netip.Addr
	}{{"gateway", rc.Gateway, &s.gateway}, {"rangeStart", rc.RangeStart, &s.first}, {"rangeEnd", rc.RangeEnd, &s.last}} {
		if f.text == "" {
			continue
		}
		if *f.to, err = request.Addr(f.text); err != nil {
			return span{}, fmt.Errorf("%s: %w", f.name, err)
		}
		if f.to != &s.gateway && !subnet.Contains(*f.to) {
			return span{}, fmt.Errorf("%s %s is not in subnet %s", f.name, *f.to, subnet)
		}
	}
	if s.last.Less(s.first) {
		return span{}, fmt.Errorf("range %v of subnet %s ends before it starts", s, subnet)
	}
	return s, nil
}

func parseSubnet(text *string) (netip.Prefix, error) {
	if text == nil {
		return netip.Prefix{}, errors.New("subnet is missing")
	}
	p, err := request.Prefix(*text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("subnet: %w", err)
	}
	if strings.Contains(*text, ":") && p.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("subnet %q is IPv4 in IPv6 form", *text)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("subnet %s has host bits set, the network is %s", p, p.Masked())
	}
	if p.Bits() > p.Addr().BitLen()-2 {
		return netip.Prefix{}, fmt.Errorf("subnet %s is too small to allocate from", p)
	}
	return p, nil
}

// lastOf returns the last address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (s span) contains(a netip.Addr) bool {
	return a.BitLen() == s.first.BitLen() && !a.Less(s.first) && !s.last.Less(a)
}

func (s span) String() string { return s.first.String() + "-" + s.last.String() }

// find returns the index of the span that contains a.
func (set rangeSet) find(a netip.Addr) (int, bool) {
	for i, s := range set {
		if s.contains(a) {
			return i, true
		}
	}
	return 0, false
}

func (set rangeSet) overlaps(other rangeSet) bool {
	for _, s := range set {
		for _, o := range other {
			if s.contains(o.first) || o.contains(s.first) {
				return true
			}
		}
	}
	return false
}

func (set rangeSet) String() string {
	var parts []string
	for _, s := range set {
		parts = append(parts, s.String())
	}
	return strings.Join(parts, ",")
}

// next returns the first free address after the given one, going round through
// the whole set once, so that an address that was just released is used again
// as late as possible. An address outside the set, or an invalid one, means to
// begin at the set's start.
//
// Every step either finds a free address or passes a taken one or a gateway,
// so the work is bounded by what is taken and not by the size of the set.
func (set rangeSet) next(after netip.Addr, taken func(netip.Addr) bool) (netip.Addr, bool) {
	i, ok := set.find(after)
	cur := after
	if !ok {
		i, cur = 0, netip.Addr{}
	}
	advance := func() {
		switch {
		case !cur.IsValid():
			cur = set[i].first
		case cur == set[i].last:
			i = (i + 1) % len(set)
			cur = set[i].first
		default:
			cur = cur.Next()
		}
	}
	advance()
	for begin := cur; ; {
		if cur != set[i].gateway && !taken(cur) {
			return cur, true
		}
		if advance(); cur == begin {
			return netip.Addr{}, false
		}
	}
}
