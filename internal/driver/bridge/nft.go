package bridge

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/nft"
)

// Tables, chains and comments are those of the reference plugin, so that
// either can remove what the other made.
const (
	spoofTable  = "nat"
	spoofHook   = "PREROUTING"
	maxComment  = 128 // NFTNL_UDATA_COMMENT_MAXLEN
	etherSource = 6   // offset in the Ethernet header
)

// withNFT runs fn with a netlink connection in the node's namespace. One at a
// time: rules are removed by listing them first, and a list that is read while
// somebody changes it may have holes.
func (b *bridge) withNFT(fn func(*nftables.Conn) error) error {
	b.nftMu.Lock()
	defer b.nftMu.Unlock()
	return nft.Do(b.HostNS, func(conn *nft.Conn) error { return fn(conn.Conn) })
}

// addSpoofCheck drops every frame that comes out of the container with a
// source MAC other than its own.
func (a *attachment) addSpoofCheck(port string, mac net.HardwareAddr) error {
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: spoofTable}
	ports, macs := a.spoofChains(table)
	accept, before := nftables.ChainPolicyAccept, nftables.ChainPriority(-300)
	hook := &nftables.Chain{
		Table: table, Name: spoofHook, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: &before, Policy: &accept,
	}
	err := a.withNFT(func(nft *nftables.Conn) error {
		// A rule that jumps into a chain must go before the chain can.
		if _, err := removeRules(nft, hook, a.spoofMark()); err != nil {
			return err
		}
		nft.AddTable(table)
		nft.AddChain(hook)
		for _, c := range []*nftables.Chain{ports, macs} {
			nft.AddChain(c)
			nft.FlushChain(c)
		}
		add := func(c *nftables.Chain, exprs ...expr.Any) {
			nft.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs, UserData: comment(a.spoofMark())})
		}
		add(hook, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: linkName(port)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name})
		add(ports, &expr.Verdict{Kind: expr.VerdictJump, Chain: macs.Name})
		add(macs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: etherSource, Len: 6},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac},
			&expr.Verdict{Kind: expr.VerdictReturn})
		add(macs, &expr.Verdict{Kind: expr.VerdictDrop})
		return nft.Flush()
	})
	if err != nil {
		return fmt.Errorf("macspoofchk: %w", err)
	}
	return nil
}

func (a *attachment) removeSpoofCheck() error {
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: spoofTable}
	ports, macs := a.spoofChains(table)
	err := a.withNFT(func(nft *nftables.Conn) error {
		if _, err := removeRules(nft, &nftables.Chain{Table: table, Name: spoofHook}, a.spoofMark()); err != nil {
			return err
		}
		for _, c := range []*nftables.Chain{ports, macs} { // ports jumps to macs
			nft.FlushChain(c)
			nft.DelChain(c)
			if err := nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		return nil
	})
	if err != nil && !nft.Unsupported(err) {
		return fmt.Errorf("remove macspoofchk: %w", err)
	}
	return nil
}

func (a *attachment) spoofChains(table *nftables.Table) (ports, macs *nftables.Chain) {
	name := "cni-br-iface-" + a.spoofID()
	return &nftables.Chain{Table: table, Name: name}, &nftables.Chain{Table: table, Name: name + "-mac"}
}

func (a *attachment) spoofID() string {
	id := a.spec.ContainerID + "-" + a.spec.IfName
	if len(id) > 100 { // must fit into a comment
		return digest(id)
	}
	return id
}

func (a *attachment) spoofMark() string { return "macspoofchk-" + a.spoofID() }

// linkName is a name as the kernel compares it: padded to IFNAMSIZ.
func linkName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

// removeRules removes the rules of a chain with this mark.
func removeRules(nft *nftables.Conn, c *nftables.Chain, mark string) (found bool, err error) {
	rules, err := rulesWith(nft, c, mark)
	if err != nil || len(rules) == 0 {
		return false, err
	}
	for _, r := range rules {
		if err := nft.DelRule(r); err != nil {
			return true, err
		}
	}
	if err := nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return true, err
	}
	return true, nil
}

// rulesWith returns none when the chain or its table is not there.
func rulesWith(nft *nftables.Conn, c *nftables.Chain, mark string) ([]*nftables.Rule, error) {
	rules, err := nft.GetRules(c.Table, c)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*nftables.Rule
	for _, r := range rules {
		// The kernel does not say the table's family in every answer.
		r.Table, r.Chain = c.Table, c
		if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && marked(text, mark) {
			out = append(out, r)
		}
	}
	return out, nil
}

// marked says that a comment is this attachment's: the mark alone, or with the
// words for people behind it. A mere prefix would take net10 for net1.
func marked(comment, mark string) bool {
	return comment == mark || strings.HasPrefix(comment, mark+",")
}

// comment encodes the comment of a rule. One that is too long is cut: what is
// looked for is at its beginning.
func comment(text string) []byte {
	if len(text) > maxComment-1 {
		text = text[:maxComment-1]
	}
	return userdata.AppendString(nil, userdata.TypeComment, text)
}
