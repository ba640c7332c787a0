package bridge_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// testFrames is an EtherType for experiments (IEEE 802), which nobody else uses.
const testFrames = 0x88b5

// wire sends and receives Ethernet frames on a link of a namespace.
type wire struct {
	fd    int
	index int
}

func openWire(t testing.TB, ns *netns.NS, link string) *wire {
	t.Helper()
	w := &wire{index: must(handle(t, ns).Link(link))(t).Index}
	err := ns.Do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(be16(unix.ETH_P_ALL)))
		return err
	})
	try(t, err)
	t.Cleanup(func() { unix.Close(w.fd) })
	try(t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: be16(unix.ETH_P_ALL), Ifindex: w.index}))
	return w
}

func be16(v uint16) uint16 { return v<<8 | v>>8 }

// say broadcasts text from a source address.
func (w *wire) say(t testing.TB, from net.HardwareAddr, text string) {
	t.Helper()
	frame := append([]byte{255, 255, 255, 255, 255, 255}, from...)
	frame = binary.BigEndian.AppendUint16(frame, testFrames)
	try(t, unix.Sendto(w.fd, append(frame, text...), 0, &unix.SockaddrLinklayer{Ifindex: w.index}))
}

// hear returns the text of the next test frame that arrives.
func (w *wire) hear(t testing.TB) string {
	t.Helper()
	frame := w.next(t, func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == testFrames })
	return string(bytes.TrimRight(frame[14:], "\x00"))
}

// next returns the next incoming frame that match accepts, or fails the test
// when there is none for ten seconds.
func (w *wire) next(t testing.TB, match func([]byte) bool) []byte {
	t.Helper()
	frame, err := w.await(10*time.Second, match)
	try(t, err)
	return frame
}

func (w *wire) await(limit time.Duration, match func([]byte) bool) ([]byte, error) {
	buf := make([]byte, 2048)
	for end := time.Now().Add(limit); ; {
		tv := unix.NsecToTimeval(max(time.Until(end), time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return nil, err
		}
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
			return nil, fmt.Errorf("no such frame within %s", limit)
		}
		if errors.Is(err, unix.EINTR) {
			continue // Go's own signals: with a time limit the kernel does not begin again
		}
		if err != nil {
			return nil, err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING || n < 14 {
			continue
		}
		if match(buf[:n]) {
			return buf[:n], nil
		}
	}
}

// neighbour is one more container on the world's node.
func (w *world) neighbour(t testing.TB, id, conf string) (driver.Spec, net.HardwareAddr) {
	t.Helper()
	s := w.spec(conf)
	s.ContainerID = id
	s.NetNS, s.NetNSPath = kerneltest.NewNamedNS(t)
	s.Prev = w.attach(t, s)
	mac, err := net.ParseMAC(s.Prev.Interfaces[2].Mac)
	try(t, err)
	return s, mac
}

func TestFramesStayInTheirVLAN(t *testing.T) {
	kerneltest.Need(t, kerneltest.BridgeVLAN)
	w := newWorld(t)
	join := func(id, keys string) (*wire, net.HardwareAddr) {
		s, mac := w.neighbour(t, id, scenario{keys: `"bridge":"braidbr0",` + keys}.conf())
		return openWire(t, s.NetNS, "net1"), mac
	}
	a, macA := join("a", `"vlan":2001`)
	b, _ := join("b", `"vlan":2001`)
	c, macC := join("c", `"vlan":2002`)
	d, macD := join("d", `"vlan":2002`)
	a.say(t, macA, "in 2001")
	if got := b.hear(t); got != "in 2001" {
		t.Errorf("in VLAN 2001: %q", got)
	}
	// What c says afterwards must be the first that d hears, and the first
	// that c hears is what d says.
	c.say(t, macC, "from c")
	d.say(t, macD, "from d")
	if got := d.hear(t); got != "from c" {
		t.Errorf("first in VLAN 2002: %q", got)
	}
	if got := c.hear(t); got != "from d" {
		t.Errorf("first in VLAN 2002: %q", got)
	}
}

func TestIsolatedPortsDoNotHearEachOther(t *testing.T) {
	w := newWorld(t)
	join := func(id, keys string) (*wire, net.HardwareAddr) {
		s, mac := w.neighbour(t, id, scenario{keys: `"bridge":"braidbr0"` + keys}.conf())
		return openWire(t, s.NetNS, "net1"), mac
	}
	a, macA := join("a", `,"portIsolation":true`)
	b, _ := join("b", `,"portIsolation":true`)
	open, macOpen := join("open", "")
	a.say(t, macA, "isolated")
	if got := open.hear(t); got != "isolated" {
		t.Errorf("on a port that is not isolated: %q", got)
	}
	open.say(t, macOpen, "to all")
	if got := b.hear(t); got != "to all" {
		t.Errorf("first on the other isolated port: %q", got)
	}
}

func TestSpoofedFramesAreDropped(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftBridge)
	w := newWorld(t)
	conf := scenario{keys: `"bridge":"braidbr0","macspoofchk":true`}.conf()
	a, _ := w.neighbour(t, "a", conf)
	// The rules of a repeated Attach replace the first ones.
	res, err := w.d.Attach(t.Context(), a)
	try(t, err)
	a.Prev = res
	mac, err := net.ParseMAC(res.Interfaces[2].Mac)
	try(t, err)
	b, _ := w.neighbour(t, "b", conf)
	from, to := openWire(t, a.NetNS, "net1"), openWire(t, b.NetNS, "net1")
	from.say(t, net.HardwareAddr{2, 9, 9, 9, 9, 9}, "spoofed")
	from.say(t, mac, "honest")
	if got := to.hear(t); got != "honest" {
		t.Errorf("first that arrives: %q", got)
	}
	for _, s := range []driver.Spec{a, b} {
		s.NetNS = nil // the namespace may be gone by then
		try(t, w.d.Detach(t.Context(), s))
	}
	if rules := nftRules(t, w.host); rules != "bridge nat PREROUTING: 0 rules\n" {
		t.Errorf("left:\n%s", rules)
	}
}

// Neighbours may remember another container under the same address.
func TestNewAddressIsAnnounced(t *testing.T) {
	w := newWorld(t)
	other, _ := w.neighbour(t, "other", scenario{keys: `"bridge":"braidbr0"`}.conf())
	ear := openWire(t, other.NetNS, "net1")
	s := w.spec(scenario{keys: `"bridge":"braidbr0"`, ipam: dual}.conf())
	res := w.attach(t, s)
	mac, err := net.ParseMAC(res.Interfaces[2].Mac)
	try(t, err)
	ipv4 := netip.MustParseAddr("10.1.0.5").As4()
	arp := ear.next(t, func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP })
	if !bytes.Equal(arp[22:28], mac) || !bytes.Equal(arp[28:32], ipv4[:]) || !bytes.Equal(arp[38:42], ipv4[:]) {
		t.Errorf("ARP is no announcement of 10.1.0.5 at %s: %x", mac, arp[14:42])
	}
	ipv6 := netip.MustParseAddr("fd00:1::5").As16()
	const unsolicited = 136 // neighbour advertisement
	ear.next(t, func(f []byte) bool {
		return binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && len(f) >= 78 && f[54] == unsolicited && bytes.Equal(f[62:78], ipv6[:])
	})
}

// A plugin behind the bridge in its chain may rename the interface, or take it
// out of the namespace, before the bridge finishes.
func TestAddressOfARenamedInterfaceIsAnnounced(t *testing.T) {
	w := newWorld(t)
	other, _ := w.neighbour(t, "other", scenario{keys: `"bridge":"braidbr0"`}.conf())
	s := w.spec(scenario{keys: `"bridge":"braidbr0"`, ipam: dual}.conf())
	unfinished := bridge.New(bridge.Config{HostNS: w.host})
	res, err := unfinished.Attach(t.Context(), s)
	try(t, err)
	pod, err := rtnl.Open(s.NetNS)
	try(t, err)
	defer pod.Close()
	link, err := pod.Link(s.IfName)
	try(t, err)
	try(t, pod.SetDown(link.Index))
	try(t, pod.SetName(link.Index, "renamed0"))
	try(t, pod.SetUp(link.Index))
	ear := openWire(t, other.NetNS, "net1")
	try(t, unfinished.(driver.Finisher).Finish(t.Context(), s, res))
	ear.next(t, func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP })
	try(t, pod.Del(link.Index))
	try(t, unfinished.(driver.Finisher).Finish(t.Context(), s, res))
}

// A repeated request is finished with what the whole chain came to, and a plugin
// behind the bridge may have made anything of its interfaces.
func TestAddressIsAnnouncedByTheResultOfTheWholeChain(t *testing.T) {
	w := newWorld(t)
	other, _ := w.neighbour(t, "other", scenario{keys: `"bridge":"braidbr0"`}.conf())
	s := w.spec(scenario{keys: `"bridge":"braidbr0"`, ipam: dual}.conf())
	unfinished := bridge.New(bridge.Config{HostNS: w.host})
	res, err := unfinished.Attach(t.Context(), s)
	try(t, err)
	slices.Reverse(res.Interfaces)
	ear := openWire(t, other.NetNS, "net1")
	try(t, unfinished.(driver.Finisher).Finish(t.Context(), s, res))
	ear.next(t, func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP })
	res.Interfaces = nil
	try(t, unfinished.(driver.Finisher).Finish(t.Context(), s, res))
}
