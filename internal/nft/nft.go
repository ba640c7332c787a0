// Package nft holds what the nftables rules of several drivers have in common:
// the connection, whose rule is whose, and the matches they begin with.
package nft

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// Conn is a netlink connection in one namespace.
type Conn struct {
	*nftables.Conn
	list *netlink.Conn
}

// Do runs fn with a connection in ns, or in the current namespace when ns is
// nil.
func Do(ns *netns.NS, fn func(*Conn) error) error {
	c := &Conn{}
	dial := func() (err error) {
		if c.Conn, err = nftables.New(nftables.AsLasting()); err != nil {
			return err
		}
		c.list, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	}
	var err error
	if ns != nil {
		err = ns.Do(dial)
	} else {
		err = dial()
	}
	if c.Conn != nil {
		defer c.CloseLasting()
	}
	if c.list != nil {
		defer c.list.Close()
	}
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	return fn(c)
}

// Change runs fn, which lists what is there and then changes it in one
// transaction, and runs it again when something that it listed is gone by
// then, because somebody else was at work.
func Change(ns *netns.NS, fn func(*Conn) error) error {
	const tries = 5
	var err error
	for range tries {
		if err = Do(ns, fn); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

// Unsupported says that this kernel has no such nftables, and so no rules.
func Unsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Owner is whose a rule is. It is written into the rule, so that it is found
// again when nothing else is known.
type Owner struct {
	// Comment is the comment of the rule, by which a reference plugin finds it.
	Comment string
	// IfName tells the attachments of one container apart.
	IfName string
}

// Types of attributes in a rule's user data. The first is everybody's, the
// second Braid's own; nft passes over what it does not know.
const (
	tagComment = 0
	tagIfName  = 'b'
)

// maxComment is NFTNL_UDATA_COMMENT_MAXLEN, which counts the final NUL.
const maxComment = 128

// ShortComment is text if it fits into a comment, and else a digest of it.
func ShortComment(text string) string {
	if len(text) < maxComment {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// UserData is what a rule of this owner carries.
func (o Owner) UserData() []byte {
	return appendTag(appendTag(nil, tagComment, ShortComment(o.Comment)), tagIfName, o.IfName)
}

// Owns reports whether a rule with that user data is this owner's. A rule of
// the reference plugin does not say which attachment of the container it is
// for: it is everyone's.
func (o Owner) Owns(userData []byte) bool {
	tags := tagsOf(userData)
	comment, ok := tags[tagComment]
	if !ok || comment != ShortComment(o.Comment) {
		return false
	}
	ifName, ok := tags[tagIfName]
	return !ok || ifName == o.IfName
}

func appendTag(data []byte, tag byte, text string) []byte {
	data = append(data, tag, byte(len(text)+1))
	return append(append(data, text...), 0)
}

// tagsOf reads user data, which may be anybody's.
func tagsOf(data []byte) map[byte]string {
	tags := map[byte]string{}
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+data[1]]
		for len(value) > 0 && value[len(value)-1] == 0 {
			value = value[:len(value)-1]
		}
		tags[data[0]] = string(value)
		data = data[2+data[1]:]
	}
	return tags
}

// Rule is a rule that is there.
type Rule struct {
	chain    *nftables.Chain
	handle   uint64
	userData []byte
	exprs    []byte
}

// Names reports whether the rule names a chain, to jump or go to, or a match
// of iptables or its comment.
func (r Rule) Names(text string) bool { return bytes.Contains(r.exprs, append([]byte(text), 0)) }

// Tag is user data that says whose a rule is without a comment, for rules
// that others compare word by word.
func Tag(text string) []byte { return appendTag(nil, tagIfName, ShortComment(text)) }

// Tagged reports whether a rule has that Tag, or any when text is empty.
func (r Rule) Tagged(text string) bool {
	tags := tagsOf(r.userData)
	_, commented := tags[tagComment]
	tag, ok := tags[tagIfName]
	return ok && !commented && (text == "" || tag == ShortComment(text))
}

// Compares counts how often the rule compares a part of the packet with data.
func (r Rule) Compares(data []byte) int {
	value := netlink.Attribute{Type: unix.NFTA_DATA_VALUE, Data: data}
	encoded, err := netlink.MarshalAttributes([]netlink.Attribute{value})
	if err != nil {
		return 0 // longer than any value can be
	}
	return bytes.Count(r.exprs, encoded)
}

// Ends reports whether the rule ends in a verdict, such as expr.VerdictDrop.
// (The kernel encodes a verdict's code like a value.)
func (r Rule) Ends(verdict expr.VerdictKind) bool {
	return r.Compares(binary.BigEndian.AppendUint32(nil, uint32(verdict))) > 0
}

// Rules returns the rules of a chain that belong to the owner, none when the
// chain or its table is not there.
func (o Owner) Rules(conn *Conn, c *nftables.Chain) ([]Rule, error) {
	rules, err := conn.Rules(c)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rules, func(r Rule) bool { return !o.Owns(r.userData) }), nil
}

// Rules returns the rules of a chain, none when the chain or its table is not
// there. It does not look into them: they may be anybody's, and the nftables
// library cannot read every rule that can be written.
func (c *Conn) Rules(chain *nftables.Chain) ([]Rule, error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(chain.Table.Name), 0)},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(chain.Name), 0)},
	})
	if err != nil {
		return nil, err
	}
	request := netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE),
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{byte(chain.Table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	}
	answers, err := c.dump(request)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list chain %s: %w", chain.Name, err)
	}
	var rules []Rule
	for _, m := range answers {
		r, err := ruleOf(chain, m.Data)
		if err != nil {
			return nil, fmt.Errorf("list chain %s: %w", chain.Name, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// dump asks again when the kernel says that the rules changed under the list,
// so that it may have holes.
func (c *Conn) dump(request netlink.Message) (answers []netlink.Message, err error) {
	const tries = 10
	for range tries {
		if answers, err = c.list.Execute(request); err != nil {
			return nil, err
		}
		holes := func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }
		if !slices.ContainsFunc(answers, holes) {
			return answers, nil
		}
	}
	return nil, fmt.Errorf("rules change faster than they can be read: %w", unix.EAGAIN)
}

func ruleOf(chain *nftables.Chain, data []byte) (Rule, error) {
	const header = 4 // of struct nfgenmsg
	r := Rule{chain: chain}
	if len(data) < header {
		return r, fmt.Errorf("answer of %d bytes", len(data))
	}
	attrs, err := netlink.NewAttributeDecoder(data[header:])
	if err != nil {
		return r, err
	}
	attrs.ByteOrder = binary.BigEndian
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_RULE_HANDLE:
			r.handle = attrs.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.userData = attrs.Bytes()
		case unix.NFTA_RULE_EXPRESSIONS:
			r.exprs = attrs.Bytes()
		}
	}
	return r, attrs.Err()
}

// Delete puts the removal of rules into the transaction.
func (c *Conn) Delete(rules []Rule) error {
	for _, r := range rules {
		if err := c.DelRule(&nftables.Rule{Table: r.chain.Table, Chain: r.chain, Handle: r.handle}); err != nil {
			return err
		}
	}
	return nil
}
