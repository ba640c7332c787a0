package attach

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// What an ADD comes to is mostly known before it is made: addresses are found in
// files, MACs by chance, and the rest is what the configuration says. Who has to
// tell it can begin while the kernel works.

// foreseeable is the first of the chains from which on each can be foretold,
// after it was prepared for that. It is len(chains) when the last one cannot.
func foreseeable(chains []chain) int {
	first := len(chains)
	for first > 0 && chains[first-1].foreseeable() {
		first--
	}
	return first
}

// foreseeable gives the chain's first plugin what it needs to tell the same as
// it makes later. What is told of a device is what its plugin writes down.
func (c *chain) foreseeable() bool {
	for _, p := range c.plugins() {
		if _, ok := c.attacher.Drivers[p.Type].(driver.Foreteller); !ok {
			return false
		}
	}
	m := c.first
	if m == nil || c.info() != nil {
		return false
	}
	if m.spec.IPAM != nil {
		if _, ok := m.spec.IPAM.(driver.Detached); !ok {
			return false
		}
		m.spec.IPAM = &once{IPAM: m.spec.IPAM}
	}
	m.spec.MAC = randomMAC()
	return true
}

// randomMAC is one as the kernel chooses them: of a single interface, and
// locally administered.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // it does not fail
	mac[0] = mac[0]&^1 | 2
	return mac
}

// foretell tells what the chains will come to, behind those that are done and
// that brought these routes, if that can be known.
func foretell(ctx context.Context, chains []chain, done []Attached, brought [][]rtnl.Route, tell func([]Attached)) {
	done, brought = slices.Clone(done), slices.Clone(brought)
	for _, c := range chains {
		var result *current.Result
		err := Safely(func() (err error) {
			result, err = c.foretell(ctx)
			return err
		})
		if err != nil {
			return // Attach will say why
		}
		done = append(done, Attached{Attachment: c.record.Attachment, Result: result})
		brought = append(brought, defaultsOf(result))
	}
	s, err := settle(done, brought)
	if err != nil {
		return
	}
	for i := range done {
		done[i].Result = s.results[i]
	}
	tell(done)
}

func (c chain) foretell(ctx context.Context) (result *current.Result, err error) {
	for i, p := range c.plugins() {
		m, err := c.next(i, result)
		if err != nil {
			return nil, err
		}
		f := m.driver.(driver.Foreteller) // foreseeable has looked
		if result, err = f.Foretell(ctx, m.spec); err != nil {
			return nil, c.explain("foretell", p, err)
		}
	}
	return result, nil
}

// defaultsOf are the default routes of the main table that a result speaks of.
func defaultsOf(r *current.Result) []rtnl.Route {
	var routes []rtnl.Route
	for _, route := range r.Routes {
		if !isDefault(route) {
			continue
		}
		via, _ := netip.AddrFromSlice(route.GW)
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if isIPv6(route) {
			dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		routes = append(routes, rtnl.Route{Dst: dst, Via: via.Unmap()})
	}
	return routes
}

// once is a delegate that is asked for addresses once, for whoever wants to
// know them. Each gets an answer of its own to work with.
type once struct {
	driver.IPAM
	result *current.Result
	err    error
}

// Add returns the answer to its first call since a Del.
func (o *once) Add(ctx context.Context) (*current.Result, error) {
	if o.result == nil && o.err == nil {
		o.result, o.err = o.IPAM.Add(ctx)
	}
	if o.err != nil || o.result == nil {
		return nil, o.err
	}
	return copied(o.result), nil
}

// Del makes the answer void.
func (o *once) Del(ctx context.Context) error {
	o.result, o.err = nil, nil
	return o.IPAM.Del(ctx)
}

// copied is a result whose addresses and routes can be changed.
func copied(r *current.Result) *current.Result {
	out := *r
	out.IPs, out.Routes = nil, nil
	for _, ip := range r.IPs {
		out.IPs = append(out.IPs, ip.Copy())
	}
	for _, route := range r.Routes {
		out.Routes = append(out.Routes, route.Copy())
	}
	out.DNS = *r.DNS.Copy()
	return &out
}
