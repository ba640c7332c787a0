package preflight_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// The kernel is asked about every case that TunnelConflict is asked about, in
// both orders: what it refuses, when, and with which error.
func TestTheKernelAgreesAboutTunnels(t *testing.T) {
	for _, c := range tunnelCases {
		for order, pair := range map[string][2]facts.Tunnel{"": {c.a, c.b}, ", the other way": {c.b, c.a}} {
			t.Run(c.name+order, func(t *testing.T) {
				needTunnels(t, pair)
				made, up := setUpBoth(t, pair)
				if !refused(made, c.made) || !refused(up, c.up) {
					t.Errorf("made: %v, up: %v; expected %q and %q", made, up, c.made, c.up)
				}
				if got := preflight.TunnelConflict(pair[0], pair[1]); (got != "") != (made != nil || up != nil) {
					t.Errorf("TunnelConflict says %q", got)
				}
			})
		}
	}
}

func needTunnels(t *testing.T, pair [2]facts.Tunnel) {
	t.Helper()
	for _, p := range pair {
		if p.Kind == "geneve" {
			kerneltest.Need(t, kerneltest.Geneve)
		} else {
			kerneltest.Need(t, kerneltest.VXLAN)
		}
		if p.L3MDev != "" {
			kerneltest.Need(t, kerneltest.VRF, kerneltest.Dummy)
		}
	}
}

// refused tells whether an error is the one with that text, or none when it is
// empty.
func refused(err error, text string) bool {
	if text == "" {
		return err == nil
	}
	for errno, says := range map[syscall.Errno]string{
		syscall.EEXIST: "file exists", syscall.EADDRINUSE: "address already in use",
		syscall.EPERM: "operation not permitted", syscall.EBUSY: "device or resource busy",
	} {
		if says == text {
			return errors.Is(err, errno)
		}
	}
	return false
}

// setUpBoth makes the first tunnel and sets it up, and then the second.
func setUpBoth(t *testing.T, pair [2]facts.Tunnel) (made, up error) {
	t.Helper()
	ns := kerneltest.NewNS(t)
	h := open(t, ns)
	first, err := h.AddTunnel(rtnl.New{Name: "one"}, tunnel(t, h, pair[0]))
	if err == nil {
		err = h.SetUp(first.Index)
	}
	if err != nil && strings.Contains(err.Error(), "not supported") {
		t.Skipf("this kernel cannot make the first one: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.AddTunnel(rtnl.New{Name: "two"}, tunnel(t, h, pair[1]))
	if err != nil {
		return err, nil
	}
	return nil, h.SetUp(second.Index)
}

func open(t *testing.T, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// tunnel is what to ask the kernel for; a link in a VRF is made where one is
// named.
func tunnel(t *testing.T, h *rtnl.Handle, f facts.Tunnel) rtnl.Tunnel {
	t.Helper()
	out := rtnl.Tunnel{
		Kind: f.Kind, ID: f.ID, Port: f.Port, External: f.External, VNIFilter: f.VNIFilter, GBP: f.GBP, GPE: f.GPE,
		UDPZeroCsum6RX: f.UDPZeroCsum6RX, RemCsumRX: f.RemCsumRX, IPv6: f.IPv6,
	}
	if f.Local != "" {
		out.Local = netip.MustParseAddr(f.Local)
	}
	if f.Kind == "geneve" && !f.External {
		out.Remote = netip.MustParseAddr("192.0.2.1") // a link that is not external needs one
	}
	if f.L3MDev != "" {
		out.Lower = inVRF(t, h, f.L3MDev)
	}
	return out
}

func inVRF(t *testing.T, h *rtnl.Handle, name string) (lower int) {
	t.Helper()
	if l, err := h.Link("d-" + name); err == nil {
		return l.Index
	}
	vrf, err := h.AddVRF(rtnl.New{Name: name, Up: true}, uint32(100+len(name)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.AddDummy(rtnl.New{Name: "d-" + name, Up: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetMaster(l.Index, vrf.Index); err != nil {
		t.Fatal(err)
	}
	return l.Index
}

// A process's socket on any address keeps a tunnel from the port.
func TestTheKernelAgreesAboutListeners(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN)
	for _, c := range []struct{ network, addr string }{{"udp4", "0.0.0.0:8473"}, {"udp4", "127.0.0.1:8473"}, {"udp", "[::]:8473"}, {"udp6", "[::1]:8473"}, {"udp4", "0.0.0.0:8474"}} {
		for _, tn := range []facts.Tunnel{vxlan(1, 8473), vxlan(0, 8473, external), vxlan(1, 8473, ipv6)} {
			ns := kerneltest.NewNS(t)
			h := open(t, ns)
			lo, err := h.Link("lo")
			if err == nil {
				err = h.SetUp(lo.Index)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := ns.Do(func() error {
				l, err := net.ListenPacket(c.network, c.addr)
				if err == nil {
					t.Cleanup(func() { l.Close() })
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			link, err := h.AddTunnel(rtnl.New{Name: "vx"}, tunnel(t, h, tn))
			if err != nil {
				t.Fatal(err)
			}
			at := netip.MustParseAddrPort(c.addr)
			said := preflight.ListenerConflict(facts.Listener{Addr: at.Addr().String(), Port: at.Port()}, tn)
			if err := h.SetUp(link.Index); errors.Is(err, syscall.EADDRINUSE) != (said != "") {
				t.Errorf("%s and %+v: the kernel says %v, ListenerConflict %q", c.addr, tn, err, said)
			}
		}
	}
}
