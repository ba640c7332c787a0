package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

// Table is a table with all that is in it, as far as two looks at it can be
// compared.
type Table struct {
	// Family is ip, ip6, inet, arp, bridge or netdev.
	Family, Name string
	// Chains are the names of its chains, in the kernel's order.
	Chains []string
	// Rules is how many rules it has.
	Rules int
	// Marked are those of its rules that have a comment.
	Marked []MarkedRule
	// Digest is of its chains, rules and the names of its sets. Counters, elements
	// of sets and whatever else the passing of packets changes are not in it.
	Digest string
}

// MarkedRule is a rule that says in a comment whose it is.
type MarkedRule struct {
	Family, Table, Chain, Comment string
	// Addrs are the addresses, of the table's family, that it compares with or
	// translates to.
	Addrs  []netip.Addr
	handle uint64
}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	nftables.TableFamilyARP: "arp", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyNetdev: "netdev",
}

// Tables returns all tables of ns (nil: the current namespace), those of
// iptables among them. A kernel without nftables has none.
func Tables(ns *netns.NS) ([]Table, error) {
	var tables []Table
	err := Change(ns, func(c *Conn) (err error) {
		tables, err = c.tables()
		return err
	})
	if Unsupported(err) {
		return nil, nil
	}
	return tables, err
}

func (c *Conn) tables() ([]Table, error) {
	list, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var tables []Table
	for _, t := range list {
		table := Table{Family: families[t.Family], Name: t.Name}
		var text strings.Builder
		for _, chain := range chains {
			if chain.Table.Name != t.Name || chain.Table.Family != t.Family {
				continue
			}
			table.Chains = append(table.Chains, chain.Name)
			fmt.Fprintln(&text, describeChain(chain))
			rules, err := c.Rules(chain)
			if err != nil {
				return nil, err
			}
			table.Rules += len(rules)
			for _, r := range rules {
				if comment := tagsOf(r.userData)[tagComment]; comment != "" {
					table.Marked = append(table.Marked, MarkedRule{
						Family: table.Family, Table: t.Name, Chain: chain.Name, Comment: comment, Addrs: addrsIn(r.exprs), handle: r.handle,
					})
				}
				fmt.Fprintf(&text, "%d %x %x\n", r.handle, r.userData, stateless(r.exprs))
			}
		}
		sets, err := c.GetSets(t)
		if err != nil {
			return nil, fmt.Errorf("list sets of table %s: %w", t.Name, err)
		}
		var names []string
		for _, s := range sets {
			names = append(names, s.Name)
		}
		slices.Sort(names)
		fmt.Fprintln(&text, names)
		sum := sha256.Sum256([]byte(text.String()))
		table.Digest = hex.EncodeToString(sum[:])
		tables = append(tables, table)
	}
	return tables, nil
}

func describeChain(c *nftables.Chain) string {
	text := fmt.Sprintf("chain %s %s", c.Name, c.Type)
	if c.Hooknum != nil {
		text += fmt.Sprintf(" hook %d", *c.Hooknum)
	}
	if c.Priority != nil {
		text += fmt.Sprintf(" priority %d", *c.Priority)
	}
	if c.Policy != nil {
		text += fmt.Sprintf(" policy %d", *c.Policy)
	}
	return text
}

// counting are the expressions that carry what has passed them.
var counting = []string{"counter", "quota", "last", "connlimit", "limit"}

// stateless is a rule's list of expressions without what packets change in it.
// What cannot be read is kept as it is.
func stateless(exprs []byte) []byte {
	list, err := netlink.UnmarshalAttributes(exprs)
	if err != nil {
		return exprs
	}
	var out []byte
	for _, element := range list {
		parts, err := netlink.UnmarshalAttributes(element.Data)
		if err != nil {
			return exprs
		}
		name := ""
		for _, p := range parts {
			if p.Type == unix.NFTA_EXPR_NAME {
				name = strings.TrimRight(string(p.Data), "\x00")
			}
		}
		data := element.Data
		if slices.Contains(counting, name) {
			data = []byte(name)
		}
		out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
		out = append(out, data...)
	}
	return out
}

// addrsIn are the values in a rule's expressions that are as long as addresses.
func addrsIn(exprs []byte) []netip.Addr {
	var addrs []netip.Addr
	var walk func(data []byte, depth int)
	walk = func(data []byte, depth int) {
		attrs, err := netlink.UnmarshalAttributes(data)
		if err != nil {
			return
		}
		for _, a := range attrs {
			// A list of expressions, their data, a value in it, its bytes.
			if depth == 3 && a.Type&^unix.NLA_F_NESTED == unix.NFTA_DATA_VALUE {
				if addr, ok := netip.AddrFromSlice(a.Data); ok {
					addrs = append(addrs, addr)
				}
			} else if depth < 3 {
				walk(a.Data, depth+1)
			}
		}
	}
	walk(exprs, 0)
	return addrs
}

// DeleteMarked removes a rule that Tables returned. One that is not there is
// removed already.
func DeleteMarked(ns *netns.NS, m MarkedRule) error {
	return Change(ns, func(c *Conn) error {
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		for _, chain := range chains {
			if chain.Name != m.Chain || chain.Table.Name != m.Table || families[chain.Table.Family] != m.Family {
				continue
			}
			rules, err := c.Rules(chain)
			if err != nil {
				return err
			}
			rules = slices.DeleteFunc(rules, func(r Rule) bool { return r.handle != m.handle })
			if len(rules) == 0 {
				return nil
			}
			if err := c.Delete(rules); err != nil {
				return err
			}
			return c.Flush()
		}
		return nil
	})
}

// DeleteTable removes a table with all that is in it. One that is not there is
// removed already.
func DeleteTable(ns *netns.NS, family, name string) error {
	return Change(ns, func(c *Conn) error {
		list, err := c.ListTables()
		if err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		for _, t := range list {
			if families[t.Family] == family && t.Name == name {
				c.DelTable(t)
				if err := c.Flush(); err != nil {
					return fmt.Errorf("delete table %s %s: %w", family, name, err)
				}
			}
		}
		return nil
	})
}
