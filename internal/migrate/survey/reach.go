package survey

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/rtnl"
)

// reaches asks some of the node's own pods, from the address that the routing
// chooses. Where they answer, the node is the gateway of its pods.
func (s *survey) reaches(ctx context.Context) {
	pods := askable(s.node.Sandboxes)
	if len(pods) == 0 {
		return
	}
	h, err := rtnl.Open(nil)
	if err != nil {
		s.problem("whether the node reaches its pods is not known: %v", err)
		return
	}
	defer h.Close()
	for _, pod := range pods {
		for _, ip := range pod.IPs {
			s.node.Reaches = append(s.node.Reaches, reach(ctx, h, pod.Namespace+"/"+pod.Pod, ip))
		}
	}
}

// askable are a few sandboxes with addresses of their own.
func askable(all []facts.Sandbox) []facts.Sandbox {
	var some []facts.Sandbox
	for _, b := range all {
		if b.Ready && !b.HostNetwork && len(b.IPs) > 0 && len(some) < maxReaches {
			some = append(some, b)
		}
	}
	return some
}

func reach(ctx context.Context, h *rtnl.Handle, pod, ip string) facts.Reach {
	r := facts.Reach{Pod: pod, IP: ip}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	way, err := h.WayTo(addr)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	if l, err := h.LinkByIndex(way.Link); err == nil {
		r.Dev = l.Name
	}
	if err := ping(ctx, way.Src, addr); err != nil {
		r.Error = err.Error()
	}
	return r
}

// pings is how often an echo is asked for, each pingWait long: the first packet
// to a neighbour may be lost.
const (
	pings    = 3
	pingWait = time.Second
)

// Types of ICMP messages (RFC 792, RFC 4443).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// ping asks for an echo, from an address of this node.
func ping(ctx context.Context, from, to netip.Addr) error {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	var local *net.IPAddr
	if from.IsValid() {
		local = &net.IPAddr{IP: from.AsSlice()}
	}
	conn, err := net.DialIP(network, local, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()})
	if err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := make([]byte, 2)
	rand.Read(id) // never fails
	for seq := range uint16(pings) {
		err = pingOnce(conn, echo(to.Is6(), binary.BigEndian.Uint16(id), seq))
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func pingOnce(conn *net.IPConn, request []byte) error {
	if err := conn.SetDeadline(time.Now().Add(pingWait)); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	if _, err := conn.Write(request); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buf) // Read would not take off IPv4's header
		if err, ok := errors.AsType[net.Error](err); ok && err.Timeout() {
			return fmt.Errorf("no answer to a ping in %v", pingWait)
		}
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		if isReply(buf[:n], request) {
			return nil
		}
	}
}

// echo is an ICMP message that asks for itself.
func echo(six bool, id, seq uint16) []byte {
	m := []byte{echoRequest4, 0, 0, 0}
	if six {
		m[0] = echoRequest6
	}
	m = binary.BigEndian.AppendUint16(m, id)
	m = binary.BigEndian.AppendUint16(m, seq)
	m = append(m, "braid"...)
	if !six { // the kernel computes that of ICMPv6, which covers the addresses
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	return m
}

// checksum is that of RFC 1071.
func checksum(m []byte) uint16 {
	var sum uint32
	for i, b := range m {
		sum += uint32(b) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func isReply(m, request []byte) bool {
	if len(m) < 8 || len(request) < 8 {
		return false
	}
	want := map[byte]byte{echoRequest4: echoReply4, echoRequest6: echoReply6}[request[0]]
	return m[0] == want && m[1] == 0 && slices.Equal(m[4:8], request[4:8])
}
