package rtnl

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/kerneltest"
)

// The kernel does not add a broadcast address by itself.
func TestAddressesHaveABroadcastAddressWhereThereIsRoom(t *testing.T) {
	kerneltest.Need(t, kerneltest.Bridge)
	h, err := Open(kerneltest.NewNS(t))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.AddBridge(Bridge{New: New{Name: "br0", Up: true}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"192.0.2.5/24 broadcast 192.0.2.255", "192.0.2.129/25 broadcast 192.0.2.255", "198.51.100.1/31", "198.51.100.9/32 peer 203.0.113.1/32",
		"203.0.113.6/32 peer 203.0.113.5/30 broadcast 203.0.113.7", "10.0.0.1/8 broadcast 10.255.255.255 scope link", "2001:db8::5/64",
	}
	for _, a := range []Addr{
		{Prefix: netip.MustParsePrefix("192.0.2.5/24")},
		{Prefix: netip.MustParsePrefix("192.0.2.129/25")},
		{Prefix: netip.MustParsePrefix("198.51.100.1/31")},
		{Prefix: netip.MustParsePrefix("198.51.100.9/32"), Peer: netip.MustParsePrefix("203.0.113.1/32")},
		{Prefix: netip.MustParsePrefix("203.0.113.6/30"), Peer: netip.MustParsePrefix("203.0.113.5/30")},
		{Prefix: netip.MustParsePrefix("10.0.0.1/8"), Scope: unix.RT_SCOPE_LINK},
		{Prefix: netip.MustParsePrefix("2001:db8::5/64"), NoDAD: true},
	} {
		if err := h.AddAddr(l.Index, a); err != nil {
			t.Error(err)
		}
	}
	all, err := ask(h, func(lib *netlink.Handle) ([]netlink.Addr, error) { return lib.AddrList(at(l.Index), unix.AF_UNSPEC) })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range all {
		if a.Scope != unix.RT_SCOPE_LINK || a.IP.To4() != nil {
			got = append(got, addrText(a))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("have %q\nwant %q", got, want)
	}
}

func addrText(a netlink.Addr) string {
	addr := addrFrom(a)
	text := addr.Prefix.String()
	if addr.Peer.IsValid() {
		text += " peer " + addr.Peer.String()
	}
	if a.Broadcast != nil {
		text += " broadcast " + a.Broadcast.String()
	}
	if addr.Scope == unix.RT_SCOPE_LINK {
		text += " scope link"
	}
	return text
}
