package drivertest

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"braid.dev/braid/internal/netns"
)

// Hears says whether a datagram that is sent from one namespace to addr, an
// address of another, comes in there. It tries until it does, for the first
// ones may be lost while neighbours are looked for, and gives up after a while.
func Hears(t testing.TB, from, to *netns.NS, addr string) bool {
	t.Helper()
	where := netip.AddrPortFrom(netip.MustParseAddr(addr), 5000)
	var in *net.UDPConn
	try(t, to.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(where))
		return err
	}))
	defer in.Close()
	var out *net.UDPConn
	if err := from.Do(func() (err error) {
		out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(where))
		return err
	}); err != nil {
		return false // no route
	}
	defer out.Close()
	buf := make([]byte, 16)
	for range 12 {
		out.Write([]byte("braid")) // an error tells of the last one, which was lost
		in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := in.Read(buf); err == nil {
			return true
		}
	}
	return false
}
