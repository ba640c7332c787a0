package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/ipam/request"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// dadTimeout bounds the wait for duplicate address detection. The kernel needs
// one to two seconds.
const dadTimeout = 5 * time.Second

// Interface is a link in a container's namespace that is to carry a result.
// Every driver that hands out addresses uses it, so that they all do the same.
type Interface struct {
	NS   *netns.NS
	Name string
	// DAD makes the kernel look for duplicates of the IPv6 addresses before
	// they are used; Configure then waits for the outcome.
	DAD bool
	// KernelDAD leaves that as the kernel has it set, in the place of DAD.
	// Configure waits for the outcome there too.
	KernelDAD bool
	Sysctl    rtnl.Sysctl
	// Handle is one in NS that is open already. Nil opens one for each call.
	Handle *rtnl.Handle
	// Index is the link's when it was just made. Without it it is looked up by
	// Name.
	Index int
	// Up says that SetUp was called.
	Up bool
}

// handle returns Handle, or one that is open until done is called.
func (i Interface) handle() (h *rtnl.Handle, done func(), err error) {
	if i.Handle != nil {
		return i.Handle, func() {}, nil
	}
	if h, err = rtnl.Open(i.NS); err != nil {
		return nil, nil, err
	}
	return h, h.Close, nil
}

// SetUp brings the link up before it is known what it will carry, so that what
// the kernel has to do for that is done while somebody finds out.
func (i Interface) SetUp() error {
	h, index, done, err := i.open()
	if err != nil {
		return err
	}
	defer done()
	if err := i.prepare(carried{}); err != nil {
		return err
	}
	return h.SetUp(index)
}

// open returns what handle does, and the link's index.
func (i Interface) open() (h *rtnl.Handle, index int, done func(), err error) {
	if h, done, err = i.handle(); err != nil || i.Index != 0 {
		return h, i.Index, done, err
	}
	link, err := h.Link(i.Name)
	if err != nil {
		done()
	}
	return h, link.Index, done, err
}

// Configure gives the link the addresses and routes of res that belong to it,
// brings it up in between where it is not, and waits until its IPv6 addresses
// can be used. It expects a link that has no addresses yet.
//
// An address belongs to the link that its Interface index names. One without
// an index is nobody's; one with an index that names another link is an error.
// A route without a gateway gets that of the first address of its family.
func (i Interface) Configure(ctx context.Context, res *current.Result) error {
	want, err := wanted(i.Name, res)
	if err != nil {
		return err
	}
	h, index, done, err := i.open()
	if err != nil {
		return err
	}
	defer done()
	if err := i.prepare(want); err != nil {
		return err
	}
	for _, a := range want.addrs {
		if err := h.AddAddr(index, rtnl.Addr{Prefix: a}); err != nil {
			return err
		}
	}
	if !i.Up {
		if err := h.SetUp(index); err != nil {
			return err
		}
	}
	if want.ipv6() {
		if err := i.settle(ctx, h, index); err != nil {
			return err
		}
	}
	for _, r := range want.routes {
		r.Link = index
		// A result may list a route twice; the second is not another one.
		if err := h.AppendRoute(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return err
		}
	}
	return nil
}

// carried is what a link is to carry. Its routes have no link index yet.
type carried struct {
	addrs  []netip.Prefix
	routes []rtnl.Route
}

func (c carried) ipv6() bool {
	return slices.ContainsFunc(c.addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// wanted decides what of res the named link carries.
func wanted(name string, res *current.Result) (carried, error) {
	var c carried
	gateways := map[bool]netip.Addr{} // by Is6
	for _, ip := range res.IPs {
		if ip.Interface == nil {
			continue
		}
		if n := *ip.Interface; n < 0 || n >= len(res.Interfaces) || res.Interfaces[n].Name != name {
			return c, fmt.Errorf("address %s is for interface %d of the result, which is not %s", ip.Address.String(), n, name)
		}
		p, err := Prefix(ip.Address)
		if err != nil {
			return c, err
		}
		c.addrs = append(c.addrs, p)
		gw, ok := netip.AddrFromSlice(ip.Gateway)
		if _, have := gateways[gw.Unmap().Is6()]; ok && !have {
			gateways[gw.Unmap().Is6()] = gw.Unmap()
		}
	}
	for _, r := range res.Routes {
		route, err := routeOf(r)
		if err != nil {
			return c, err
		}
		if !route.Via.IsValid() {
			route.Via = gateways[route.Dst.Addr().Is6()]
		}
		c.routes = append(c.routes, route)
	}
	return c, nil
}

func routeOf(r *types.Route) (rtnl.Route, error) {
	dst, err := Prefix(r.Dst)
	if err != nil {
		return rtnl.Route{}, fmt.Errorf("route: %w", err)
	}
	route := rtnl.Route{Dst: dst.Masked(), Metric: r.Priority, MTU: r.MTU, AdvMSS: r.AdvMSS}
	if r.GW != nil {
		gw, ok := netip.AddrFromSlice(r.GW)
		if !ok {
			return rtnl.Route{}, fmt.Errorf("route to %s: gateway %q is no address", dst, r.GW)
		}
		route.Via = gw.Unmap()
	}
	if r.Table != nil {
		route.Table = *r.Table
	}
	if r.Scope != nil {
		route.Scope = *r.Scope
	}
	return route, nil
}

// Prefix converts an address with its mask, host bits kept.
func Prefix(n net.IPNet) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	addr = addr.Unmap()
	if !ok || bits < addr.BitLen() { // bits is 0 for a mask with holes
		return netip.Prefix{}, fmt.Errorf("%q is no address with a prefix length", n.String())
	}
	// A 16-byte mask may go with an IPv4 address.
	if ones -= bits - addr.BitLen(); ones < 0 || ones > addr.BitLen() {
		return netip.Prefix{}, fmt.Errorf("%q has no prefix length of its family", n.String())
	}
	return netip.PrefixFrom(addr, ones), nil
}

// prepare sets the sysctls that must be there before the link is up, and those
// that must be there before it has the addresses of want.
func (i Interface) prepare(want carried) error {
	var settings []rtnl.Setting
	if !i.Up {
		settings = i.beforeUp()
	}
	if want.ipv6() {
		v6 := "ipv6/conf/" + i.Name
		settings = append(settings,
			rtnl.Setting{Path: "ipv6/conf/lo/disable_ipv6", Value: "0"},
			rtnl.Setting{Path: v6 + "/disable_ipv6", Value: "0"},
			rtnl.Setting{Path: v6 + "/keep_addr_on_down", Value: "1"})
	}
	if len(settings) == 0 {
		return nil
	}
	err := i.Sysctl.Set(i.NS, settings...)
	if !want.ipv6() && errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without IPv6 carries IPv4 just as well
	}
	return err
}

func (i Interface) beforeUp() []rtnl.Setting {
	v4, v6 := "ipv4/conf/"+i.Name, "ipv6/conf/"+i.Name
	// With arp_notify and ndisc_notify the kernel tells the neighbours when an
	// address gets a new MAC: they had another pod there before.
	settings := []rtnl.Setting{{Path: v4 + "/arp_notify", Value: "1"}}
	switch {
	case i.KernelDAD:
	case i.DAD:
		settings = append(settings, rtnl.Setting{Path: v6 + "/accept_dad", Value: "1"}, rtnl.Setting{Path: v6 + "/enhanced_dad", Value: "1"})
	default:
		settings = append(settings, rtnl.Setting{Path: v6 + "/accept_dad", Value: "0"})
	}
	return append(settings, rtnl.Setting{Path: v6 + "/ndisc_notify", Value: "1"})
}

// settle waits for duplicate address detection.
func (i Interface) settle(ctx context.Context, h *rtnl.Handle, index int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dadTimeout, fmt.Errorf("IPv6 addresses of %s are still tentative after %s", i.Name, dadTimeout))
	defer cancel()
	return rtnl.Await(ctx, i.NS, func() (bool, error) {
		addrs, err := h.Addrs(index)
		if err != nil {
			return false, err
		}
		for _, a := range addrs {
			if a.DADFailed {
				return false, fmt.Errorf("address %s of %s is in use by somebody else on the link", a.Addr(), i.Name)
			}
			if a.Tentative {
				return false, nil
			}
		}
		return true, nil
	})
}

// Announce tells the neighbours which MAC the link's addresses have now. Call
// it once frames can leave: what the kernel sends by itself when Configure
// brings the link up is lost where a bridge port is not forwarding yet.
func (i Interface) Announce() error {
	h, index, done, err := i.open()
	if err != nil {
		return err
	}
	defer done()
	link, err := h.LinkByIndex(index)
	if err != nil {
		return err
	}
	return h.SetMAC(index, link.MAC)
}

// Check compares the link with what of res it should carry, and names the
// first difference: the link is down, an address or its connected route is
// gone, or a route.
func (i Interface) Check(res *current.Result) error {
	want, err := wanted(i.Name, res)
	if err != nil {
		return err
	}
	h, done, err := i.handle()
	if err != nil {
		return err
	}
	defer done()
	link, err := h.Link(i.Name)
	if err != nil {
		return err
	}
	if !link.Up {
		return fmt.Errorf("link %s is down", i.Name)
	}
	addrs, err := h.Addrs(link.Index)
	if err != nil {
		return err
	}
	routes, err := h.Routes()
	if err != nil {
		return err
	}
	return want.missing(i.Name, link.Index, addrs, routes)
}

func (c carried) missing(name string, index int, addrs []rtnl.Addr, routes []rtnl.Route) error {
	for _, p := range c.addrs {
		if !slices.ContainsFunc(addrs, func(a rtnl.Addr) bool { return a.Prefix == p }) {
			return fmt.Errorf("address %s of %s is missing", p, name)
		}
		connected := func(r rtnl.Route) bool { return r.Dst == p.Masked() }
		if !p.IsSingleIP() && !slices.ContainsFunc(routes, connected) {
			return fmt.Errorf("route %s to the subnet of %s is missing", p.Masked(), name)
		}
	}
	for _, want := range c.routes {
		there := func(r rtnl.Route) bool {
			// A plugin behind this one in the chain (sbr, vrf) may have moved what
			// was in the main table to another one.
			sameTable := want.Table == 0 || r.Table == want.Table
			return r.Dst == want.Dst && r.Via == want.Via && r.Link == index && sameTable
		}
		if !slices.ContainsFunc(routes, there) {
			return fmt.Errorf("route to %s via %s of %s is missing", want.Dst, want.Via, name)
		}
	}
	return nil
}

// RequestedMAC returns the MAC that the pod asks for, or nil: that of
// runtimeConfig.mac in conf, else of args.cni.mac, else MAC in CNI_ARGS. One
// that no single interface can have is an invalid configuration.
func RequestedMAC(conf []byte, args string) (net.HardwareAddr, error) {
	var c struct {
		Args struct {
			CNI struct {
				MAC string `json:"mac"`
			} `json:"cni"`
		} `json:"args"`
		RuntimeConfig struct {
			MAC string `json:"mac"`
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(conf, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read configuration", err.Error())
	}
	text := c.RuntimeConfig.MAC
	if text == "" {
		text = c.Args.CNI.MAC
	}
	if text == "" {
		text = request.Args(args)["MAC"]
	}
	if text == "" {
		return nil, nil
	}
	return ParseMAC(text)
}

// ParseMAC reads the address that a single interface is to have. Any other is
// an invalid configuration.
func ParseMAC(text string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mac %q is not six bytes such as 02:00:00:00:00:01", text), "")
	}
	if mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mac %s is not the address of one interface: it is zero or its first byte is odd", text), "")
	}
	return mac, nil
}

// OverrideDNS puts what a configuration says of name resolution, if anything, in
// the place of what its delegate says.
func OverrideDNS(res *current.Result, conf types.DNS) {
	if conf.Nameservers != nil || conf.Search != nil || conf.Options != nil || conf.Domain != "" {
		res.DNS = conf
	}
}
