package preflight_test

import (
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
)

func vxlan(id uint32, port uint16, change ...func(*facts.Tunnel)) facts.Tunnel {
	t := facts.Tunnel{Kind: "vxlan", ID: id, Port: port}
	for _, c := range change {
		c(&t)
	}
	return t
}

func geneve(id uint32, port uint16, change ...func(*facts.Tunnel)) facts.Tunnel {
	t := vxlan(id, port, change...)
	t.Kind = "geneve"
	return t
}

func external(t *facts.Tunnel)  { t.External, t.ID = true, 0 }
func vnifilter(t *facts.Tunnel) { t.VNIFilter = true }
func gbp(t *facts.Tunnel)       { t.GBP = true }
func gpe(t *facts.Tunnel)       { t.GPE = true }
func zeroCsum(t *facts.Tunnel)  { t.UDPZeroCsum6RX = true }
func remCsum(t *facts.Tunnel)   { t.RemCsumRX = true }
func ipv6(t *facts.Tunnel)      { t.IPv6 = true }
func local(a string) func(*facts.Tunnel) {
	return func(t *facts.Tunnel) { t.Local = a }
}
func vrf(name string) func(*facts.Tunnel) {
	return func(t *facts.Tunnel) { t.L3MDev = name }
}

// tunnelCases begin with the rows of the table in docs/migrate-preflight.md.
// made and up are what the kernel says at creation and at set up of b.
var tunnelCases = []struct {
	name     string
	a, b     facts.Tunnel
	made, up string
}{
	{"two VNIs on one port", vxlan(1, 8472), vxlan(2, 8472), "", ""},
	{"one VNI on two ports", vxlan(1, 8472), vxlan(1, 8473), "", ""},
	{"one VNI on one port", vxlan(1, 8472), vxlan(1, 8472), "file exists", ""},
	{"one VNI on one port, other address", vxlan(1, 8472, local("10.0.0.1")), vxlan(1, 8472, local("10.0.0.2")), "file exists", ""},
	{"Flannel, then Cilium", vxlan(1, 8472), vxlan(0, 8472, external), "", "address already in use"},
	{"Cilium, then Flannel", vxlan(0, 8472, external), vxlan(1, 8472), "", "address already in use"},
	{"Flannel, and Cilium on 8473", vxlan(1, 8472), vxlan(0, 8473, external), "", ""},
	{"two external", vxlan(0, 8472, external), vxlan(0, 8472, external), "file exists", ""},
	{"two external with a filter", vxlan(0, 8472, external, vnifilter), vxlan(0, 8472, external, vnifilter), "", ""},
	{"classic and gbp", vxlan(1, 8472), vxlan(2, 8472, gbp), "", "address already in use"},
	{"classic and udp6zerocsumrx", vxlan(1, 8472), vxlan(2, 8472, zeroCsum), "", "address already in use"},
	{"one VNI and port, one IPv4 and one IPv6", vxlan(1, 8472, local("10.0.0.1")), vxlan(1, 8472, ipv6, local("fd00::1")), "", ""},
	// Beyond the table.
	{"Flannel and Calico", vxlan(1, 8472), vxlan(4096, 4789), "", ""},
	{"an external waits on both families", vxlan(0, 8472, external), vxlan(1, 8472, ipv6, local("fd00::1")), "", "address already in use"},
	{"external with and without a filter", vxlan(0, 8472, external), vxlan(0, 8472, external, vnifilter), "", "address already in use"},
	{"classic and gpe", vxlan(1, 8472), vxlan(0, 8472, external, gpe), "", "address already in use"},
	{"classic and remcsumrx", vxlan(1, 8472), vxlan(2, 8472, remCsum), "", "address already in use"},
	{"two gbp", vxlan(1, 8472, gbp), vxlan(2, 8472, gbp), "", ""},
	{"one of two in a VRF", vxlan(1, 8472), vxlan(2, 8472, vrf("red")), "", "address already in use"},
	{"each in a VRF of its own", vxlan(1, 8472, vrf("red")), vxlan(2, 8472, vrf("blue")), "", ""},
	{"both in one VRF", vxlan(1, 8472, vrf("red")), vxlan(2, 8472, vrf("red")), "", ""},
	{"one VNI in two VRFs", vxlan(1, 8472, vrf("red")), vxlan(1, 8472, vrf("blue")), "file exists", ""},
	{"vxlan and geneve on one port", vxlan(1, 6081), geneve(1, 6081), "", "address already in use"},
	{"vxlan and geneve on their own", vxlan(1, 4789), geneve(1, 6081), "", ""},
	{"two external geneve", geneve(0, 6081, external), geneve(0, 6081, external), "device or resource busy", ""},
	{"external geneve and another", geneve(0, 6081, external), geneve(7, 6081), "operation not permitted", ""},
	{"geneve, and external later", geneve(7, 6081), geneve(0, 6081, external), "operation not permitted", ""},
	{"two geneve of one VNI", geneve(7, 6081), geneve(7, 6081), "device or resource busy", ""},
	{"two geneve", geneve(7, 6081), geneve(8, 6081), "", ""},
	{"two external geneve on two ports", geneve(0, 6081, external), geneve(0, 6082, external), "", ""},
}

func TestTunnelConflict(t *testing.T) {
	for _, c := range tunnelCases {
		for _, pair := range [][2]facts.Tunnel{{c.a, c.b}, {c.b, c.a}} {
			got := preflight.TunnelConflict(pair[0], pair[1])
			if want := c.made + c.up; want == "" && got != "" || !strings.Contains(got, want) {
				t.Errorf("%s: %q, the kernel says %q", c.name, got, want)
			}
		}
	}
}

func TestListenerConflict(t *testing.T) {
	for _, c := range []struct {
		name     string
		listener facts.Listener
		tunnel   facts.Tunnel
		conflict bool
	}{
		{"all addresses", facts.Listener{Addr: "0.0.0.0", Port: 8472}, vxlan(1, 8472), true},
		{"one address", facts.Listener{Addr: "127.0.0.1", Port: 8472}, vxlan(1, 8472), true},
		{"all addresses of both families", facts.Listener{Addr: "::", Port: 8472}, vxlan(1, 8472), true},
		{"another port", facts.Listener{Addr: "0.0.0.0", Port: 8473}, vxlan(1, 8472), false},
		{"the kernel's own", facts.Listener{Addr: "0.0.0.0", Port: 8472, Kernel: true}, vxlan(1, 8472), false},
		{"an IPv6 address beside IPv4", facts.Listener{Addr: "fd00::1", Port: 8472}, vxlan(1, 8472), false},
		{"IPv4 beside IPv6", facts.Listener{Addr: "0.0.0.0", Port: 8472}, vxlan(1, 8472, ipv6), false},
		{"an IPv6 address beside an external", facts.Listener{Addr: "fd00::1", Port: 8472}, vxlan(0, 8472, external), true},
		{"an address that is none", facts.Listener{Addr: "?", Port: 8472}, vxlan(1, 8472), true},
	} {
		if got := preflight.ListenerConflict(c.listener, c.tunnel); (got != "") != c.conflict {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
