package masq

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/nft"
)

// Table, chains and the beginning of each rule's comment are those of the
// reference plugins, so that either can remove what the other made.
const (
	tableName  = "cni_plugins_masquerade"
	chainName  = "masq_checks"
	maxComment = 128 // NFTNL_UDATA_COMMENT_MAXLEN
)

// withNFT runs fn with a netlink connection in the node's namespace.
func (m *Masquerade) withNFT(fn func(*nftables.Conn) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return nft.Do(m.ns, func(conn *nft.Conn) error { return fn(conn.Conn) })
}

func (m *Masquerade) addNFT(a Attachment, addrs []netip.Prefix) error {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	checks := &nftables.Chain{Table: table, Name: chainName}
	err := m.withNFT(func(conn *nftables.Conn) error {
		stale, err := a.rules(conn, checks)
		if err != nil {
			return err
		}
		addChains(conn, table, checks)
		for _, r := range stale {
			if err := conn.DelRule(r); err != nil {
				return err
			}
		}
		for _, p := range addrs {
			conn.AddRule(&nftables.Rule{Table: table, Chain: checks, Exprs: masqRule(p), UserData: a.userData()})
		}
		return conn.Flush()
	})
	if err != nil {
		return fmt.Errorf("masquerade by nftables: %w", err)
	}
	return nil
}

// addChains makes the table and its chains, whole each time: whoever changed
// them did not mean to.
func addChains(conn *nftables.Conn, table *nftables.Table, checks *nftables.Chain) {
	conn.AddTable(table)
	conn.AddChain(checks)
	post := conn.AddChain(&nftables.Chain{
		Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	conn.FlushChain(post)
	// Containers talk to each other by multicast, with their own addresses.
	for _, group := range []string{"224.0.0.0/4", "ff00::/8"} {
		match := addrMatch(netip.MustParsePrefix(group), false, expr.CmpOpEq)
		conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictReturn})})
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: checks.Name}}})
}

func masqRule(p netip.Prefix) []expr.Any {
	from := addrMatch(netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), true, expr.CmpOpEq)
	// The family has been matched: leave that part out of the second match.
	beyond := addrMatch(p.Masked(), false, expr.CmpOpNeq)[2:]
	return append(append(from, beyond...), &expr.Masq{})
}

// addrMatch compares the packet's source or destination with a prefix, in a
// table of both families.
func addrMatch(p netip.Prefix, source bool, op expr.CmpOp) []expr.Any {
	proto, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if p.Addr().Is6() {
		proto, offset, size = unix.NFPROTO_IPV6, 24, 16
	}
	if source {
		offset -= size
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// removeNFT says whether there were any rules.
func (m *Masquerade) removeNFT(a Attachment) (found bool, err error) {
	checks := &nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}, Name: chainName}
	err = m.withNFT(func(conn *nftables.Conn) error {
		rules, err := a.rules(conn, checks)
		if err != nil || len(rules) == 0 {
			return err
		}
		found = true
		for _, r := range rules {
			if err := conn.DelRule(r); err != nil {
				return err
			}
		}
		if err := conn.Flush(); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil // somebody else removed them meanwhile
	})
	if err != nil && !nft.Unsupported(err) {
		return found, fmt.Errorf("remove masquerade from nftables: %w", err)
	}
	return found, nil
}

// rules returns the attachment's rules. A comment is the attachment's when it
// is the mark, alone or with the words for people behind it. A mere prefix
// would take net10 for net1.
func (a Attachment) rules(conn *nftables.Conn, c *nftables.Chain) ([]*nftables.Rule, error) {
	all, err := conn.GetRules(c.Table, c)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // neither chain nor rules
	}
	if err != nil {
		return nil, err
	}
	var own []*nftables.Rule
	for _, r := range all {
		// The kernel does not say the table's family in every answer.
		r.Table, r.Chain = c.Table, c
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		if ok && (text == a.mark() || strings.HasPrefix(text, a.mark()+",")) {
			own = append(own, r)
		}
	}
	return own, nil
}

// mark is how the comments of the attachment's rules begin.
func (a Attachment) mark() string {
	return hash16(a.Network) + "-" + hash16(a.IfName+":"+a.ContainerID)
}

// userData is the comment. One that is too long is cut: what is looked for is
// at its beginning.
func (a Attachment) userData() []byte {
	plain := func(s string) string { return strings.ReplaceAll(s, `"`, "") }
	text := fmt.Sprintf("%s, net: %s, if: %s, id: %s", a.mark(), plain(a.Network), plain(a.IfName), plain(a.ContainerID))
	if len(text) > maxComment-1 {
		text = text[:maxComment-1]
	}
	return userdata.AppendString(nil, userdata.TypeComment, text)
}

func hash16(s string) string {
	sum := sha512.Sum512([]byte(s))
	return hex.EncodeToString(sum[:])[:16]
}
