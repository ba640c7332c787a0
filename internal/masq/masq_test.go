package masq

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

var (
	one  = Attachment{Network: "n", ContainerID: "c", IfName: "net1"}
	ten  = Attachment{Network: "n", ContainerID: "c", IfName: "net10"}
	dual = []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd00:1::5/64")}
)

// comments returns those of the rules of masq_checks.
func comments(t *testing.T, ns *netns.NS) []string {
	t.Helper()
	var out []string
	err := New(ns).withNFT(func(conn *nftables.Conn) error {
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
		rules, err := conn.GetRules(table, &nftables.Chain{Table: table, Name: chainName})
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			out = append(out, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRulesAreOfOneAttachment(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet)
	ns := kerneltest.NewNS(t)
	m := New(ns)
	long := one
	long.ContainerID = strings.Repeat("c", 200)
	for _, a := range []Attachment{one, ten, long} {
		a.Backend = "nftables"
		for range 2 { // a repetition replaces
			if err := m.Add(t.Context(), a, dual); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := comments(t, ns); len(got) != 6 {
		t.Errorf("rules: %q", got)
	}
	for _, a := range []Attachment{one, long} {
		if err := m.Remove(t.Context(), a, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := comments(t, ns)
	if len(got) != 2 || !strings.HasPrefix(got[0], ten.mark()+", net: n, if: net10") {
		t.Errorf("rules of net10: %q", got)
	}
}

// hand runs nothing and remembers what it was to run. Programs in broken fail.
type hand struct {
	broken string
	stdin  []string
	chain  string // is in POSTROUTING
}

func (h *hand) Exec(_ context.Context, p driver.Program) ([]byte, error) {
	if strings.HasPrefix(p.Name, h.broken) {
		return nil, &driver.ExitError{Program: p.Name, Code: 3, Stderr: []byte("no such table")}
	}
	if p.Stdin == nil {
		return fmt.Appendf(nil, "-P POSTROUTING ACCEPT\n-A POSTROUTING -s 10.1.0.5/32 -j %s\n", h.chain), nil
	}
	h.stdin = append(h.stdin, string(p.Stdin))
	return nil, nil
}

// A node may have iptables for IPv4 only. What was made there before that was
// found out must not stay beside the rules of nftables.
func TestFallbackToNFTablesLeavesNothingInIPTables(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet)
	ns := kerneltest.NewNS(t)
	h := &hand{broken: "ip6tables", chain: one.chain()}
	a := one
	a.Host = h
	if err := New(ns).Add(t.Context(), a, dual); err != nil {
		t.Fatal(err)
	}
	if got := comments(t, ns); len(got) != 2 {
		t.Errorf("rules in nftables: %q", got)
	}
	last := h.stdin[len(h.stdin)-1]
	if !strings.Contains(last, "-D POSTROUTING -s 10.1.0.5/32 -j "+one.chain()+"\n-X "+one.chain()+"\n") {
		t.Errorf("given to iptables: %q", h.stdin)
	}
}

func TestFamiliesThatAreNotKnownAreBoth(t *testing.T) {
	for _, tc := range []struct {
		addrs []netip.Prefix
		want  []bool
	}{{nil, []bool{false, true}}, {dual, []bool{false, true}}, {dual[:1], []bool{false}}, {dual[1:], []bool{true}}} {
		if got := families(tc.addrs); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.addrs, got, tc.want)
		}
	}
}

func FuzzIPTablesComment(f *testing.F) {
	f.Add("net", "id")
	f.Add("a\" \\\n-A POSTROUTING", "\x00\xff")
	f.Fuzz(func(t *testing.T, network, id string) {
		got := Attachment{Network: network, ContainerID: id}.ipTablesComment()
		if strings.ContainsAny(got, "\n\r\x00") {
			t.Errorf("%q ends the line", got)
		}
		inner := got[1 : len(got)-1]
		inner = strings.ReplaceAll(strings.ReplaceAll(inner, `\\`, ""), `\"`, "")
		if strings.Contains(inner, `"`) {
			t.Errorf("%q ends the quotes", got)
		}
	})
}
