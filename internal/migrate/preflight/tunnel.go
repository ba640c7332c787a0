package preflight

import (
	"fmt"
	"net/netip"
	"strings"

	"braid.dev/braid/internal/migrate/facts"
)

// TunnelConflict says why the kernel cannot have both tunnels up in one network
// namespace, or nothing when it can.
//
// A vxlan link waits on a UDP socket of the family of its addresses; an external
// one on a socket of each family. Links with the same port, receive flags and
// VRF share the socket and need different VNIs. A link that differs in the flags
// alone, or in being in a VRF, needs a second socket on the port: it can be made
// and cannot be set up. So a link that exists proves nothing.
func TunnelConflict(a, b facts.Tunnel) (conflict string) {
	if a.Port != b.Port {
		return ""
	}
	apart := a.IPv6 != b.IPv6 && !a.External && !b.External
	switch {
	case apart:
		return ""
	case a.Kind != b.Kind:
		return fmt.Sprintf("%s and %s both want UDP port %d: the second cannot be set up (address already in use)", describe(a), describe(b), a.Port)
	case a.Kind == "geneve":
		return geneveConflict(a, b)
	case receiveFlags(a) != receiveFlags(b):
		return fmt.Sprintf("%s and %s cannot share UDP port %d: the second cannot be set up (address already in use)", describe(a), describe(b), a.Port)
	case a.External && !a.VNIFilter:
		return fmt.Sprintf("two of %s want UDP port %d: the second cannot be made (file exists)", describe(a), a.Port)
	case !a.External && a.ID == b.ID:
		return fmt.Sprintf("two of %s have VNI %d and UDP port %d: the second cannot be made (file exists)", describe(a), a.ID, a.Port)
	case a.L3MDev != b.L3MDev && (a.L3MDev == "" || b.L3MDev == ""):
		return fmt.Sprintf("only one of two on UDP port %d is in a VRF: the second cannot be set up (address already in use)", a.Port)
	}
	return ""
}

// geneveConflict is about links on one port. The kernel has one external link
// on a port, and no other link beside it.
func geneveConflict(a, b facts.Tunnel) string {
	switch {
	case a.External && b.External:
		return fmt.Sprintf("two external geneve links want UDP port %d: the second cannot be made (device or resource busy)", a.Port)
	case a.External || b.External:
		return fmt.Sprintf("an external geneve link must be alone on UDP port %d: the second cannot be made (operation not permitted)", a.Port)
	case a.ID == b.ID:
		return fmt.Sprintf("two geneve links have VNI %d and UDP port %d: the second cannot be made (device or resource busy) unless their remotes differ", a.ID, a.Port)
	}
	return ""
}

// receiveFlags are those that the key of a vxlan socket holds.
func receiveFlags(t facts.Tunnel) string {
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{
		{t.External, "external"}, {t.VNIFilter, "vnifilter"}, {t.GBP, "gbp"}, {t.GPE, "gpe"},
		{t.UDPZeroCsum6RX, "udp6zerocsumrx"}, {t.RemCsumRX, "remcsumrx"},
	} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	return strings.Join(flags, " ")
}

// describe is such as "vxlan (external)".
func describe(t facts.Tunnel) string {
	if t.Kind == "geneve" {
		return "geneve"
	}
	if flags := receiveFlags(t); flags != "" {
		return fmt.Sprintf("%s (%s)", t.Kind, flags)
	}
	return t.Kind + " (classic)"
}

// ListenerConflict says why a tunnel cannot be set up beside a UDP socket of a
// process, or nothing when it can. The tunnel's socket is on all addresses, so
// one that is on any of them is in its way.
func ListenerConflict(l facts.Listener, t facts.Tunnel) (conflict string) {
	if l.Kernel || l.Port != t.Port {
		return ""
	}
	// A socket on [::] is on 0.0.0.0 too, unless it was told not to be.
	if a, err := netip.ParseAddr(l.Addr); err == nil && !t.External {
		if a.Is4() && t.IPv6 || a.Is6() && !a.Is4In6() && !a.IsUnspecified() && !t.IPv6 {
			return ""
		}
	}
	return fmt.Sprintf("a process waits on UDP %s: %s on that port cannot be set up (address already in use)", netip.AddrPortFrom(addrOr(l.Addr), l.Port), describe(t))
}

func addrOr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.IPv4Unspecified()
	}
	return a
}
