package kerneltest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The probes speak netlink in its raw form, because internal/rtnl is one of
// the packages whose tests ask for features.

var native = binary.NativeEndian

// link is a link to create: what `ip link add` takes.
type link struct {
	kind, name string
	parent     int    // index of the lower link, 0: none
	data       []byte // attributes of the kind
}

func addLink(l link) error {
	info := attr(unix.IFLA_INFO_KIND, []byte(l.kind))
	if l.data != nil {
		info = append(info, attr(unix.IFLA_INFO_DATA, l.data)...)
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	body = append(body, attr(unix.IFLA_IFNAME, append([]byte(l.name), 0))...)
	if l.parent != 0 {
		body = append(body, attr32(unix.IFLA_LINK, uint32(l.parent))...)
	}
	body = append(body, attr(unix.IFLA_LINKINFO, info)...)
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if err := talk(unix.NETLINK_ROUTE, message(unix.RTM_NEWLINK, flags, body), 1); err != nil {
		return fmt.Errorf("create %s: %w", l.kind, err)
	}
	return nil
}

func linkIndex(name string) (int, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return i.Index, nil
}

// addBridgeVLAN is `bridge vlan add vid ID dev BRIDGE self`.
func addBridgeVLAN(bridge int, vid uint16) error {
	const (
		brFlags, brVLANInfo = 0, 2 // IFLA_BRIDGE_FLAGS, IFLA_BRIDGE_VLAN_INFO
		brSelf              = 2    // BRIDGE_FLAGS_SELF
	)
	body := make([]byte, unix.SizeofIfInfomsg)
	body[0] = unix.AF_BRIDGE
	native.PutUint32(body[4:], uint32(bridge))
	vlan := native.AppendUint16(native.AppendUint16(nil, 0), vid)
	spec := append(attr16(brFlags, brSelf), attr(brVLANInfo, vlan)...)
	body = append(body, attr(unix.IFLA_AF_SPEC, spec)...)
	if err := talk(unix.NETLINK_ROUTE, message(unix.RTM_SETLINK, 0, body), 1); err != nil {
		return fmt.Errorf("add VLAN %d to bridge: %w", vid, err)
	}
	return nil
}

// addIngress is `tc qdisc add dev LINK ingress`.
func addIngress(index int) error {
	const handle, parent, kind = 0xffff0000, 0xfffffff1, 1 // ffff:, TC_H_INGRESS, TCA_KIND
	body := make([]byte, 20)                               // struct tcmsg
	native.PutUint32(body[4:], uint32(index))
	native.PutUint32(body[8:], handle)
	native.PutUint32(body[12:], parent)
	body = append(body, attr(kind, []byte("ingress\x00"))...)
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if err := talk(unix.NETLINK_ROUTE, message(unix.RTM_NEWQDISC, flags, body), 1); err != nil {
		return fmt.Errorf("add ingress queueing discipline: %w", err)
	}
	return nil
}

// addNftTable creates a table, as a batch of one.
func addNftTable(family byte) error {
	const tableName = 1 // NFTA_TABLE_NAME
	head := func(family byte, resource uint16) []byte {
		// struct nfgenmsg; the resource is in network byte order.
		return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	}
	begin := message(unix.NFNL_MSG_BATCH_BEGIN, 0, head(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	body := append(head(family, 0), attr(tableName, []byte("braid\x00"))...)
	kind := uint16(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE)
	table := message(kind, unix.NLM_F_CREATE, body)
	end := message(unix.NFNL_MSG_BATCH_END, 0, head(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	clearAck(begin)
	clearAck(end)
	batch := append(append(begin, table...), end...)
	if err := talk(unix.NETLINK_NETFILTER, batch, 1); err != nil {
		return fmt.Errorf("create nftables table: %w", err)
	}
	return nil
}

// message is a netlink message that asks for an acknowledgement.
func message(kind, flags uint16, body []byte) []byte {
	m := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	m = native.AppendUint16(m, kind)
	m = native.AppendUint16(m, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m = append(m, make([]byte, 8)...) // sequence number and port
	return append(m, body...)         // attributes keep it aligned
}

// clearAck makes the kernel answer to a message only when it refuses it.
func clearAck(m []byte) {
	native.PutUint16(m[6:], native.Uint16(m[6:])&^unix.NLM_F_ACK)
}

func attr(kind uint16, value []byte) []byte {
	a := native.AppendUint16(nil, uint16(4+len(value)))
	a = native.AppendUint16(a, kind)
	a = append(a, value...)
	for len(a)%4 != 0 {
		a = append(a, 0)
	}
	return a
}

func attr16(kind, value uint16) []byte { return attr(kind, native.AppendUint16(nil, value)) }

func attr32(kind uint16, value uint32) []byte { return attr(kind, native.AppendUint32(nil, value)) }

// talk sends a request and reads acknowledgements until the first refusal.
func talk(protocol int, request []byte, acks int) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return os.NewSyscallError("netlink socket", err)
	}
	defer unix.Close(s)
	// A kernel that does not answer must not hang the test.
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return os.NewSyscallError("netlink socket", err)
	}
	if err := unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("netlink send", err)
	}
	buf := make([]byte, 1<<16)
	for range acks {
		n, _, err := unix.Recvfrom(s, buf, 0)
		for errors.Is(err, unix.EINTR) { // Go's own signals: with a time limit the kernel does not begin again
			n, _, err = unix.Recvfrom(s, buf, 0)
		}
		if err != nil {
			return os.NewSyscallError("netlink receive", err)
		}
		if err := ack(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// ack is the kernel's answer: nil, or the errno it refuses with.
func ack(m []byte) error {
	if len(m) < unix.SizeofNlMsghdr+4 || native.Uint16(m[4:]) != unix.NLMSG_ERROR {
		return errors.New("netlink: unexpected answer")
	}
	if errno := -int32(native.Uint32(m[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
