package keepsource

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/nft"
)

// The chain is asked before every other that changes sources.
const (
	chainName = "keepsrc"
	priority  = 100 - 10 // srcnat - 10
)

func table(is6 bool) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamily(nft.IPFamily(is6))}
}

// tableText is the table as nft prints it, without counters.
func tableText(s Step) string {
	family := familyName(s.IPv6)
	var b strings.Builder
	fmt.Fprintf(&b, "nft table %s %s {\n\tchain %s {\n", family, name, chainName)
	fmt.Fprintf(&b, "\t\ttype nat hook postrouting priority srcnat - 10; policy accept;\n")
	fmt.Fprintf(&b, "\t\tmeta mark & 0x%08x == 0x%08x return\n", s.Mark, s.Mark)
	for _, w := range s.Ways {
		fmt.Fprintf(&b, "\t\t%s saddr %s %s daddr %s counter snat to %s saddr\n", family, w.from, family, w.to, family)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// rulesOf are the table's rules: packets whose masquerade kube-proxy has asked
// for are left to it; the others get the source that they have. A connection
// that has a source keeps it, whatever other chains want to give it.
func rulesOf(ways []way, mark uint32) [][]expr.Any {
	bit := binaryutil.NativeEndian.PutUint32(mark)
	rules := [][]expr.Any{{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bit, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bit},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}}
	for _, w := range ways {
		rules = append(rules, nft.Join(
			nft.Addr(nft.Source, expr.CmpOpEq, w.from),
			nft.Addr(nft.Destination, expr.CmpOpEq, w.to),
			[]expr.Any{&expr.Counter{}, source(w.from), &expr.NAT{
				Type: expr.NATTypeSourceNAT, Family: uint32(nft.IPFamily(w.from.Addr().Is6())), RegAddrMin: 1, RegAddrMax: 1,
			}},
		))
	}
	return rules
}

// source loads the packet's source.
func source(p netip.Prefix) expr.Any {
	return nft.Addr(nft.Source, expr.CmpOpEq, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))[0]
}

// changeTable puts the table in place of the present one, or removes it, in one
// transaction.
func (c Config) changeTable(s Step) error {
	return nft.Do(c.NS, func(conn *nft.Conn) error {
		t := table(s.IPv6)
		conn.AddTable(t) // so that there is one to delete
		conn.DelTable(t)
		if len(s.Ways) > 0 {
			conn.AddTable(t)
			accept := nftables.ChainPolicyAccept
			ch := conn.AddChain(&nftables.Chain{
				Table: t, Name: chainName, Type: nftables.ChainTypeNAT, Policy: &accept,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityRef(priority),
			})
			for _, exprs := range rulesOf(s.Ways, s.Mark) {
				conn.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: exprs})
			}
		}
		return conn.Flush()
	})
}

// refused says that this kernel has no nftables that could do it. Nothing that
// the transaction names can be missing: it makes what it names.
func refused(err error) bool {
	return nft.Unsupported(err) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}

// tables looks at one family: our table, and which tables of iptables there are.
func (c Config) tables(is6 bool) (state TableState, iptables []string, err error) {
	err = nft.Do(c.NS, func(conn *nft.Conn) error {
		all, err := conn.ListTablesOfFamily(nftables.TableFamily(nft.IPFamily(is6)))
		if err != nil {
			if refused(err) {
				return nil // a kernel without nftables
			}
			return err
		}
		state = TableAbsent
		for _, t := range all {
			switch t.Name {
			case name:
				state = c.tableState(conn, t, is6)
			case "filter", "nat":
				hook := map[string]string{"filter": "FORWARD", "nat": "POSTROUTING"}[t.Name]
				_, err := conn.ListChain(t, hook)
				if err == nil {
					iptables = append(iptables, t.Name)
				} else if !strings.Contains(err.Error(), unix.ENOENT.Error()) { // which the library does not wrap
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", nil, fmt.Errorf("list nftables: %w", err)
	}
	if state == "" {
		return TableRefused, nil, nil
	}
	return state, iptables, nil
}

// tableState compares the table with what it should be. What cannot be read is
// none of ours.
func (c Config) tableState(conn *nft.Conn, t *nftables.Table, is6 bool) TableState {
	if t.Flags != 0 { // such as dormant: it is there and does nothing
		return TableWrong
	}
	ch, err := conn.ListChain(t, chainName)
	if err != nil || !rightChain(ch) {
		return TableWrong
	}
	rules, err := conn.GetRules(t, ch)
	if err != nil {
		return TableWrong
	}
	have := make([][]expr.Any, len(rules))
	for i, r := range rules {
		have[i] = uncounted(r.Exprs)
	}
	if !reflect.DeepEqual(have, rulesOf(c.ways(is6), c.MasqueradeBit)) {
		return TableWrong
	}
	return TableRight
}

func rightChain(ch *nftables.Chain) bool {
	return ch.Type == nftables.ChainTypeNAT && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookPostrouting &&
		ch.Priority != nil && *ch.Priority == priority && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyAccept
}

// uncounted is a rule as it was when it had seen no packet.
func uncounted(exprs []expr.Any) []expr.Any {
	out := slices.Clone(exprs)
	for i, e := range out {
		if _, ok := e.(*expr.Counter); ok {
			out[i] = &expr.Counter{}
		}
	}
	return out
}

// droppers are the chains, of nftables' own, that are asked about forwarded
// packets, or are in a table with one that is, and have a rule that drops
// invalid ones. They are for a note: what cannot be read is passed over.
func (c Config) droppers(is6 bool) (found []string, err error) {
	err = nft.Do(c.NS, func(conn *nft.Conn) error {
		for _, family := range []nftables.TableFamily{nftables.TableFamily(nft.IPFamily(is6)), nftables.TableFamilyINet} {
			chains, err := conn.ListChainsOfTableFamily(family)
			if err != nil && !refused(err) {
				return err
			}
			asked := map[string]bool{}
			for _, ch := range chains {
				if ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Type == nftables.ChainTypeFilter {
					asked[ch.Table.Name] = true
				}
			}
			for _, ch := range chains {
				if asked[ch.Table.Name] && dropsInvalid(conn, ch) {
					found = append(found, fmt.Sprintf("nftables chain %s %s %s", familyOf(family), ch.Table.Name, ch.Name))
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	slices.Sort(found)
	return found, nil
}

func familyOf(f nftables.TableFamily) string {
	if f == nftables.TableFamilyINet {
		return "inet"
	}
	return familyName(f == nftables.TableFamilyIPv6)
}

// dropsInvalid finds "ct state invalid drop", alone or in a map of verdicts.
// iptables writes it otherwise, and Apply takes care of it.
func dropsInvalid(conn *nft.Conn, ch *nftables.Chain) bool {
	invalid := binaryutil.NativeEndian.PutUint32(uint32(expr.CtStateBitINVALID))
	rules, err := conn.Rules(ch)
	if err != nil {
		return false
	}
	byMap := false
	for _, r := range rules {
		if !r.Names("ct") {
			continue
		}
		if r.Compares(invalid) > 0 && r.Ends(expr.VerdictDrop) {
			return true
		}
		byMap = byMap || r.Names("lookup")
	}
	if !byMap {
		return false
	}
	// The library leaves the verdict of an element as the kernel encodes it.
	verdict := netlink.Attribute{Type: unix.NFTA_VERDICT_CODE, Data: make([]byte, 4)} // NF_DROP
	drop, err := netlink.MarshalAttributes([]netlink.Attribute{verdict})
	if err != nil {
		return false
	}
	sets, err := conn.GetSets(ch.Table)
	if err != nil {
		return false
	}
	for _, s := range sets {
		elements, err := conn.GetSetElements(s)
		if err != nil || !s.IsMap {
			continue
		}
		for _, e := range elements {
			if slices.Equal(e.Key, invalid) && slices.Equal(e.Val, drop) {
				return true
			}
		}
	}
	return false
}
