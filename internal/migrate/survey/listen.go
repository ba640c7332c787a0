package survey

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"braid.dev/braid/internal/migrate/facts"
)

// listeners reads the sockets of the node's namespace.
func (s *survey) listeners() {
	s.node.UDP = s.protocol("udp")
	s.node.TCP = s.protocol("tcp")
	own(s.node.UDP, s.node.Links)
}

func (s *survey) protocol(name string) []facts.Listener {
	var list []facts.Listener
	for _, file := range []string{name, name + "6"} {
		f, err := os.Open("/proc/thread-self/net/" + file)
		if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			continue
		}
		if err != nil {
			s.problem("sockets of %s are not known: %v", file, err)
			continue
		}
		some, err := parseSockets(f, name == "tcp")
		f.Close()
		if err != nil {
			s.problem("sockets of %s are not all known: %v", file, err)
		}
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b facts.Listener) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Addr, b.Addr))
	})
	return capped(s, "listeners of "+name, slices.Compact(list), maxListeners)
}

// States of a socket in /proc/net (linux/net/tcp_states.h). An UDP socket that
// has no peer is closed.
const (
	stateClose  = 0x07
	stateListen = 0x0a
)

// parseSockets reads /proc/net/udp and its like (proc_pid_net(5)), and returns
// the sockets that wait for whoever comes. What is no line of that form ends it.
func parseSockets(r io.Reader, tcp bool) ([]facts.Listener, error) {
	want := uint64(stateClose)
	if tcp {
		want = stateListen
	}
	var list []facts.Listener
	lines := bufio.NewScanner(r)
	for first := true; lines.Scan(); first = false {
		if first {
			continue // the heading
		}
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			return list, fmt.Errorf("line %q: too few fields", lines.Text())
		}
		state, err := strconv.ParseUint(f[3], 16, 8)
		if err != nil {
			return list, fmt.Errorf("line %q: state: %w", lines.Text(), err)
		}
		if state != want {
			continue
		}
		local, err := parseSocket(f[1])
		if err != nil {
			return list, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		list = append(list, facts.Listener{Addr: local.Addr().String(), Port: local.Port()})
	}
	return list, lines.Err()
}

// parseSocket reads such as 0100007F:0035: the address is made of 32-bit words,
// each printed as the number that it is on this machine.
func parseSocket(text string) (netip.AddrPort, error) {
	a, p, ok := strings.Cut(text, ":")
	port, err := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q: no port", text)
	}
	raw, err := hex.DecodeString(a)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %q: neither 4 nor 16 bytes", text)
	}
	for word := raw; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(port)), nil
}

// own marks the sockets of tunnels, which are the kernel's, and learns from them
// the family of tunnels that have no addresses.
//
// The kernel gives its own sockets an inode number, as it does to those of
// processes, and which process has one can be seen only by who may trace all of
// them. But a tunnel that is up has its port on all addresses of its families,
// and nobody else can have it then.
func own(udp []facts.Listener, links []facts.Link) {
	at := map[netip.AddrPort]int{}
	for i, l := range udp {
		if a, err := netip.ParseAddr(l.Addr); err == nil && a.IsUnspecified() {
			at[netip.AddrPortFrom(a, l.Port)] = i + 1
		}
	}
	for _, l := range links {
		t := l.Tunnel
		if t == nil || !l.Up {
			continue
		}
		four := at[netip.AddrPortFrom(netip.IPv4Unspecified(), t.Port)]
		six := at[netip.AddrPortFrom(netip.IPv6Unspecified(), t.Port)]
		if four == 0 && six != 0 && !t.External {
			t.IPv6 = true
		}
		if four != 0 && (!t.IPv6 || t.External) {
			udp[four-1].Kernel = true
		}
		if six != 0 && (t.IPv6 || t.External) {
			udp[six-1].Kernel = true
		}
	}
}
