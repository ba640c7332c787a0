package bridge_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// nftRules counts the rules of every chain of a namespace.
func nftRules(t testing.TB, ns *netns.NS) string {
	t.Helper()
	var b strings.Builder
	try(t, ns.Do(func() error {
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := nft.ListChains()
		if err != nil {
			return err
		}
		for _, c := range chains {
			rules, err := nft.GetRules(c.Table, c)
			if err != nil {
				return err
			}
			family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge"}[c.Table.Family]
			fmt.Fprintf(&b, "%s %s %s: %d rules\n", family, c.Table.Name, c.Name, len(rules))
		}
		return nil
	}))
	return b.String()
}

// outside connects the node to one more namespace, as 192.0.2.1 to 192.0.2.2
// and 2001:db8::1 to 2001:db8::2, where it returns a listener of each family.
func outside(t *testing.T, w *world) (v4, v6 net.PacketConn) {
	t.Helper()
	ns := kerneltest.NewNS(t)
	node, far := w.node(t), handle(t, ns)
	near := must(node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "out0"}, Peer: rtnl.New{Name: "in0"}, PeerNS: ns}))(t)
	end := must(far.Link("in0"))(t)
	for _, a := range []struct {
		h     *rtnl.Handle
		index int
		addrs [2]string
	}{{node, near.Index, [2]string{"192.0.2.1/24", "2001:db8::1/64"}}, {far, end.Index, [2]string{"192.0.2.2/24", "2001:db8::2/64"}}} {
		for _, addr := range a.addrs {
			try(t, a.h.AddAddr(a.index, rtnl.Addr{Prefix: prefix(addr), NoDAD: true}))
		}
		try(t, a.h.SetUp(a.index))
	}
	try(t, ns.Do(func() (err error) {
		if v4, err = net.ListenPacket("udp", "192.0.2.2:7777"); err == nil {
			v6, err = net.ListenPacket("udp", "[2001:db8::2]:7777")
		}
		return err
	}))
	t.Cleanup(func() { v4.Close(); v6.Close() })
	return v4, v6
}

// sourceSeen sends from the container and returns the address that arrives.
func sourceSeen(t *testing.T, w *world, to net.PacketConn) string {
	t.Helper()
	var c net.Conn
	try(t, w.pod.Do(func() (err error) {
		c, err = net.Dial("udp", to.LocalAddr().String())
		return err
	}))
	defer c.Close()
	buf := make([]byte, 16)
	// The first packets may find addresses that are still being verified.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		c.Write([]byte("hello"))
		to.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, from, err := to.ReadFrom(buf); err == nil {
			host, _, err := net.SplitHostPort(from.String())
			try(t, err)
			return host
		}
	}
	t.Fatalf("nothing arrives at %s", to.LocalAddr())
	return ""
}

const masqKeys = `"bridge":"braidbr0","isDefaultGateway":true,"ipMasq":true`

func TestMasqueradeByNFTables(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet)
	w := newWorld(t)
	v4, v6 := outside(t, w)
	s := w.spec(scenario{keys: masqKeys + `,"ipMasqBackend":"nftables"`, ipam: dual}.conf())
	w.attach(t, s)
	s.Prev = w.attach(t, s) // a repetition adds nothing
	for to, want := range map[net.PacketConn]string{v4: "192.0.2.1", v6: "2001:db8::1"} {
		if got := sourceSeen(t, w, to); got != want {
			t.Errorf("packets leave with source %s, want %s", got, want)
		}
	}
	if rules := nftRules(t, w.host); !strings.Contains(rules, "masq_checks: 2 rules\n") || !strings.Contains(rules, "postrouting: 3 rules\n") {
		t.Errorf("rules:\n%s", rules)
	}
	s.NetNS, s.Prev = nil, nil
	try(t, w.d.Detach(t.Context(), s))
	if rules := nftRules(t, w.host); !strings.Contains(rules, "masq_checks: 0 rules\n") {
		t.Errorf("left:\n%s", rules)
	}
}

func TestMasqueradeByIPTables(t *testing.T) {
	w := newWorld(t)
	needIPTables(t, w)
	v4, v6 := outside(t, w)
	s := w.spec(scenario{keys: masqKeys, ipam: dual}.conf())
	s.Host = inNode{w.host}
	before := natRules(t, w)
	w.attach(t, s)
	once := natRules(t, w)
	if !strings.Contains(once, "MASQUERADE") {
		t.Errorf("rules:\n%s", once)
	}
	s.Prev = w.attach(t, s)
	if twice := natRules(t, w); twice != once {
		t.Errorf("after a repetition:\n%sbefore:\n%s", twice, once)
	}
	for to, want := range map[net.PacketConn]string{v4: "192.0.2.1", v6: "2001:db8::1"} {
		if got := sourceSeen(t, w, to); got != want {
			t.Errorf("packets leave with source %s, want %s", got, want)
		}
	}
	s.NetNS, s.Prev = nil, nil
	for range 2 {
		try(t, w.d.Detach(t.Context(), s))
		if after := natRules(t, w); after != before {
			t.Errorf("left:\n%s", after)
		}
	}
}

// An attachment whose rules cannot be reached now must not count as clean.
func TestDetachWithoutAHandOnTheHostTellsThatRulesMayRemain(t *testing.T) {
	w := newWorld(t)
	needIPTables(t, w)
	s := w.spec(scenario{keys: masqKeys, ipam: oneIPv4}.conf())
	s.Host = inNode{w.host}
	s.Prev = w.attach(t, s)
	s.Host = nil
	if err := w.d.Detach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "iptables") {
		t.Errorf("Detach: %v", err)
	}
	s.Host = inNode{w.host}
	try(t, w.d.Detach(t.Context(), s))
	if rules := natRules(t, w); strings.Contains(rules, "CNI-") {
		t.Errorf("left:\n%s", rules)
	}
}

// The name of a network is its author's text.
func TestNameOfANetworkAddsNoRule(t *testing.T) {
	w := newWorld(t)
	needIPTables(t, w)
	conf := `{"name":"a\" \\\n-A POSTROUTING -j ACCEPT\n#","type":"bridge",` + masqKeys + `,"ipam":` + oneIPv4 + `}`
	s := w.spec(conf)
	s.Host = inNode{w.host}
	s.Prev = w.attach(t, s)
	if rules := natRules(t, w); strings.Contains(rules, "-A POSTROUTING -j ACCEPT\n") {
		t.Errorf("rules:\n%s", rules)
	}
	try(t, w.d.Detach(t.Context(), s))
	if rules := natRules(t, w); strings.Contains(rules, "CNI-") {
		t.Errorf("left:\n%s", rules)
	}
}

// needIPTables is for tests that need iptables in a new namespace. A kernel
// that has what one of its kinds stands on must have the program too.
func needIPTables(t *testing.T, w *world) {
	t.Helper()
	if inGuest() {
		kerneltest.Need(t, kerneltest.IptablesLegacy)
	} else {
		kerneltest.Need(t, kerneltest.NftInet)
	}
	natRules(t, w)
}

func natRules(t *testing.T, w *world) string {
	t.Helper()
	var b strings.Builder
	for _, program := range []string{"iptables", "ip6tables"} {
		out, err := inNode{w.host}.Exec(context.Background(), driver.Program{Name: program, Args: []string{"-t", "nat", "-S"}})
		try(t, err)
		fmt.Fprintf(&b, "-- %s\n%s", program, out)
	}
	return b.String()
}
