package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"braid.dev/braid/internal/nft"
)

// filter is the table that the new iptables keeps its rules in. The rules are
// written as iptables writes them, so that it can read them, and the reference
// plugin remove them.
type filter struct {
	conn  *nft.Conn
	table *nftables.Table
	admin string
}

func (a *attachment) filter(conn *nft.Conn, is6 bool) filter {
	return filter{conn, &nftables.Table{Family: nftables.TableFamily(nft.IPFamily(is6)), Name: tableName}, a.AdminChain}
}

func (f filter) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: f.table, Name: name}
}

// families are those (Is6) that rules are needed in.
func (a *attachment) families() (out []bool) {
	for _, is6 := range []bool{false, true} {
		if len(ofFamily(a.addrs, is6)) > 0 {
			out = append(out, is6)
		}
	}
	return out
}

// addNFTables makes, in one transaction, what is missing of the shared rules,
// and the container's own for accept.
func (a *attachment) addNFTables(accept []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := nft.Change(a.HostNS, func(conn *nft.Conn) error {
		for _, is6 := range a.families() {
			f := a.filter(conn, is6)
			if err := f.delete(a.key(), nil); err != nil {
				return err
			}
			if err := f.ensure(a.shared(len(accept) > 0)); err != nil {
				return err
			}
			for _, r := range own(ofFamily(accept, is6)) {
				f.add(r, nft.Tag(a.key()))
			}
		}
		return conn.Flush()
	})
	if err != nil {
		return fmt.Errorf("firewall rules by nftables: %w", err)
	}
	return nil
}

// ensure puts the chains and the missing ones of the rules into the
// transaction.
func (f filter) ensure(rules []rule) error {
	have := map[string][]nft.Rule{}
	f.conn.AddTable(f.table)
	for _, name := range chainsOf(rules) {
		c := f.chain(name)
		if name == chainHook {
			c.Type, c.Hooknum, c.Priority = nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter
		}
		f.conn.AddChain(c)
		var err error
		if have[name], err = f.conn.Rules(f.chain(name)); err != nil {
			return err
		}
	}
	lack, stale := missing(rules, func(r rule) bool { return find(have[r.chain], r) >= 0 })
	if stale {
		at := find(have[chainHook], rule{chain: chainHook, verdict: chainStage1})
		if err := f.conn.Delete(have[chainHook][at : at+1]); err != nil {
			return err
		}
	}
	for _, r := range lack {
		f.add(r, nil)
	}
	return nil
}

// chainsOf are the chains that rules are in or lead to, those that are led to
// first.
func chainsOf(rules []rule) (names []string) {
	add := func(name string) {
		if _, final := verdicts[name]; !final && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, r := range rules {
		add(r.verdict)
		add(r.chain)
	}
	return names
}

// find returns the index of a rule among those of its chain, or -1.
func find(rules []nft.Rule, want rule) int {
	for i, r := range rules {
		if same(r, want) {
			return i
		}
	}
	return -1
}

// same recognizes a rule by what it compares, its remark, and where it leads.
func same(have nft.Rule, want rule) bool {
	switch {
	case want.to.IsValid() && (have.Compares(want.to.AsSlice()) == 0 || !have.Names("conntrack")):
		return false
	case want.from.IsValid() && (have.Compares(want.from.AsSlice()) == 0 || have.Names("conntrack")):
		return false
	}
	compared := map[string]int{}
	for _, link := range []string{want.in, want.out} {
		if link != "" {
			compared[link]++
		}
	}
	for link, n := range compared {
		if have.Compares(linkName(link)) != n {
			return false
		}
	}
	kind, final := verdicts[want.verdict]
	switch {
	case final && !have.Ends(kind), !final && !have.Names(want.verdict):
		return false
	case want.chain == chainHook: // whoever made the jump
		return true
	}
	return want.remark == "" || have.Names(want.remark)
}

// verdicts are those that are no jump to a chain.
var verdicts = map[string]expr.VerdictKind{
	"ACCEPT": expr.VerdictAccept, "DROP": expr.VerdictDrop, "RETURN": expr.VerdictReturn,
}

// linkName is a name as iptables compares it: with its final NUL, not padded.
func linkName(name string) []byte { return append([]byte(name), 0) }

// add puts a rule into the transaction, in the words of iptables.
func (f filter) add(r rule, userData []byte) {
	out := &nftables.Rule{Table: f.table, Chain: f.chain(r.chain), Exprs: r.exprs(), UserData: userData}
	if r.first {
		f.conn.InsertRule(out)
	} else {
		f.conn.AddRule(out)
	}
}

func (r rule) exprs() []expr.Any {
	var exprs []expr.Any
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	if r.from.IsValid() {
		exprs = append(exprs, nft.Addr(nft.Source, expr.CmpOpEq, single(r.from))...)
	}
	if r.to.IsValid() {
		exprs = append(exprs, nft.Addr(nft.Destination, expr.CmpOpEq, single(r.to))...)
	}
	link := func(key expr.MetaKey, op expr.CmpOp, name string) {
		if name != "" {
			exprs = append(exprs, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: linkName(name)})
		}
	}
	link(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.in)
	link(expr.MetaKeyOIFNAME, map[bool]expr.CmpOp{false: expr.CmpOpEq, true: expr.CmpOpNeq}[r.notOut], r.out)
	if r.replies {
		exprs = append(exprs, repliesMatch())
	}
	if r.remark != "" {
		remark := xt.Comment(r.remark)
		exprs = append(exprs, &expr.Match{Name: "comment", Rev: 0, Info: &remark})
	}
	return append(exprs, &expr.Counter{}, r.nftVerdict())
}

func (r rule) nftVerdict() expr.Any {
	if kind, final := verdicts[r.verdict]; final {
		return &expr.Verdict{Kind: kind}
	}
	return &expr.Verdict{Kind: expr.VerdictJump, Chain: r.verdict}
}

// repliesMatch is "-m conntrack --ctstate RELATED,ESTABLISHED".
func repliesMatch() *expr.Match {
	const established, related = 1 << 1, 1 << 2 // XT_CONNTRACK_STATE_BIT
	info := &xt.ConntrackMtinfo3{}
	info.MatchFlags = uint16(xt.ConntrackState)
	info.StateMask = established | related
	return &expr.Match{Name: "conntrack", Rev: 3, Info: info}
}

// delete puts the removal of the container's rules into the transaction: those
// with its mark, and those that the reference plugin made for its addresses,
// which have no mark.
func (f filter) delete(mark string, addrs []netip.Addr) error {
	rules, err := f.conn.Rules(f.chain(chainForward))
	if err != nil {
		return err
	}
	for i, r := range rules {
		gone := r.Tagged(mark)
		for _, want := range own(addrs) {
			gone = gone || !r.Tagged("") && same(r, want)
		}
		if gone {
			if err := f.conn.Delete(rules[i : i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *attachment) removeNFTables() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, is6 := range []bool{false, true} {
		err := nft.Change(a.HostNS, func(conn *nft.Conn) error {
			if err := a.filter(conn, is6).delete(a.key(), ofFamily(a.addrs, is6)); err != nil {
				return err
			}
			return conn.Flush()
		})
		if err != nil && !nft.Unsupported(err) {
			return fmt.Errorf("remove firewall rules from nftables: %w", err)
		}
	}
	return nil
}

func (a *attachment) checkNFTables() error {
	return nft.Do(a.HostNS, func(conn *nft.Conn) error {
		for _, is6 := range a.families() {
			f := a.filter(conn, is6)
			for _, want := range append(a.shared(true), own(ofFamily(a.addrs, is6))...) {
				rules, err := conn.Rules(f.chain(want.chain))
				if err != nil {
					return err
				}
				if find(rules, want) < 0 {
					return fmt.Errorf("%s: rule %q is missing", program(is6), want)
				}
			}
		}
		return nil
	})
}
