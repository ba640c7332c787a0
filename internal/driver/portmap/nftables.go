package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"braid.dev/braid/internal/nft"
)

// The table and its chains are the reference plugin's, and so is the comment
// of each rule, the container's ID: either can remove what the other made.
const (
	tableName   = "cni_hostport"
	chainAll    = "hostports_all"
	chainPorts  = "hostports"
	chainOld    = "hostip_hostports" // of older releases of the reference plugin
	chainMasq   = "masquerading"
	chainBefore = "prerouting"
	chainOutput = "output"
)

// ruled are the chains that have rules of containers.
var ruled = []string{chainPorts, chainOld, chainMasq}

func table(is6 bool) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamily(nft.IPFamily(is6)), Name: tableName}
}

func (a *attachment) owner() nft.Owner {
	return nft.Owner{Comment: a.spec.ContainerID, IfName: a.spec.IfName}
}

// addNFTables makes the rules of all addresses in one transaction, and removes
// in the same what an interrupted call left.
func (a *attachment) addNFTables(to []netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := nft.Change(a.HostNS, func(conn *nft.Conn) error {
		for _, is6 := range []bool{false, true} {
			if err := a.deleteOwn(conn, table(is6)); err != nil {
				return err
			}
		}
		for _, t := range to {
			a.addChains(conn, table(t.Addr().Is6()))
			a.addMappings(conn, table(t.Addr().Is6()), t)
		}
		return conn.Flush()
	})
	if err != nil {
		return fmt.Errorf("port mappings by nftables: %w", err)
	}
	return nil
}

// deleteOwn puts the removal of the attachment's rules into the transaction.
func (a *attachment) deleteOwn(conn *nft.Conn, t *nftables.Table) error {
	for _, name := range ruled {
		rules, err := a.owner().Rules(conn, &nftables.Chain{Table: t, Name: name})
		if err != nil {
			return err
		}
		if err := conn.Delete(rules); err != nil {
			return err
		}
	}
	return nil
}

// addChains makes the table and its chains, whole each time: whoever changed
// them did not mean to.
func (a *attachment) addChains(conn *nft.Conn, t *nftables.Table) {
	conn.AddTable(t)
	add := func(name string, exprs ...[]expr.Any) {
		c := conn.AddChain(&nftables.Chain{Table: t, Name: name})
		if len(exprs) > 0 {
			conn.FlushChain(c)
		}
		for _, e := range exprs {
			conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: e})
		}
	}
	add(chainPorts)
	add(chainOld)
	add(chainAll, nft.Jump(chainOld), nft.Jump(chainPorts))
	for _, c := range []*nftables.Chain{
		{Name: chainBefore, Hooknum: nftables.ChainHookPrerouting},
		{Name: chainOutput, Hooknum: nftables.ChainHookOutput},
	} {
		c.Table, c.Type, c.Priority = t, nftables.ChainTypeNAT, nftables.ChainPriorityNATDest
		conn.AddChain(c)
		conn.FlushChain(c)
		conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: nft.Join(nft.ToLocal(), nft.Jump(chainAll))})
	}
	if a.snat() {
		conn.AddChain(&nftables.Chain{
			Table: t, Name: chainMasq, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
	}
}

// addMappings leads the ports to one address.
func (a *attachment) addMappings(conn *nft.Conn, t *nftables.Table, to netip.Prefix) {
	add := func(chain string, exprs ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{
			Table: t, Chain: &nftables.Chain{Table: t, Name: chain},
			Exprs: nft.Join(exprs...), UserData: a.owner().UserData(),
		})
	}
	is6 := to.Addr().Is6()
	for _, m := range a.mappings(is6) {
		match := a.nftables[is6]
		if m.exact() {
			match = nft.Join(match, nft.Addr(nft.Destination, expr.CmpOpEq, single(m.hostIP)))
		}
		add(chainPorts, match, nft.Protocol(m.protocol), nft.Port(nft.Destination, expr.CmpOpEq, uint16(m.HostPort)),
			nft.SendTo(netip.AddrPortFrom(to.Addr(), uint16(m.ContainerPort))))
	}
	if !a.snat() {
		return
	}
	masquerade := []expr.Any{&expr.Masq{}}
	toIt := nft.Addr(nft.Destination, expr.CmpOpEq, single(to.Addr()))
	add(chainMasq, nft.Addr(nft.Source, expr.CmpOpEq, single(to.Addr())), toIt, masquerade)
	if !is6 {
		loopback := single(loopback4)
		add(chainMasq, nft.Addr(nft.Source, expr.CmpOpEq, loopback), toIt, masquerade)
	}
	for _, m := range a.mappings(is6) {
		var from []expr.Any
		if !a.MasqAll {
			// Neighbours on the container's own link would get the answer
			// directly, from an address that they have not asked.
			from = nft.Addr(nft.Source, expr.CmpOpEq, to.Masked())
		}
		add(chainMasq, from, toIt, nft.Protocol(m.protocol), nft.Port(nft.Destination, expr.CmpOpEq, uint16(m.ContainerPort)),
			nft.Redirected(uint16(m.HostPort)), masquerade)
	}
}

// loopback4 is the source of what the node sends to itself.
var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// removeNFTables says whether there was anything.
func (a *attachment) removeNFTables() (found bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, is6 := range []bool{false, true} {
		err := nft.Change(a.HostNS, func(conn *nft.Conn) error {
			n, err := a.countOwn(conn, table(is6), ruled...)
			if err != nil || n == 0 {
				return err
			}
			found = true
			if err := a.deleteOwn(conn, table(is6)); err != nil {
				return err
			}
			return conn.Flush()
		})
		if err != nil && !nft.Unsupported(err) {
			return found, fmt.Errorf("remove port mappings from nftables: %w", err)
		}
	}
	return found, nil
}

func (a *attachment) countOwn(conn *nft.Conn, t *nftables.Table, chains ...string) (int, error) {
	n := 0
	for _, name := range chains {
		rules, err := a.owner().Rules(conn, &nftables.Chain{Table: t, Name: name})
		if err != nil {
			return 0, err
		}
		n += len(rules)
	}
	return n, nil
}

// errMissing is a rule that is not there.
var errMissing = errors.New("missing")

// checkNFTables finds every rule that Attach, or the reference plugin, makes.
// It says whether it found any.
func (a *attachment) checkNFTables(to []netip.Prefix) (found bool, err error) {
	err = nft.Do(a.HostNS, func(conn *nft.Conn) error {
		var errs error
		for _, t := range to {
			n, err := a.checkTable(conn, t)
			found = found || n > 0
			if errs == nil {
				errs = err
			}
		}
		return errs
	})
	return found, err
}

func (a *attachment) checkTable(conn *nft.Conn, to netip.Prefix) (found int, err error) {
	is6 := to.Addr().Is6()
	t := table(is6)
	masq := 0
	if a.snat() {
		masq = map[bool]int{false: 2, true: 1}[is6]
	}
	for _, want := range []struct {
		chains []string
		rules  int
	}{{[]string{chainPorts, chainOld}, len(a.mappings(is6))}, {[]string{chainMasq}, masq}} {
		n, countErr := a.countOwn(conn, t, want.chains...)
		if countErr != nil {
			return found, countErr
		}
		found += n
		if n < want.rules && err == nil {
			err = fmt.Errorf("chain %s of table %s has %d of the %d rules that lead to %s: %w", want.chains[0], tableName, n, want.rules, to.Addr(), errMissing)
		}
	}
	if err != nil {
		return found, err
	}
	return found, jumpsThere(conn, t)
}

// jumpsThere finds the way from the hooks to the mappings.
func jumpsThere(conn *nft.Conn, t *nftables.Table) error {
	for _, way := range [][2]string{{chainBefore, chainAll}, {chainOutput, chainAll}, {chainAll, chainPorts}} {
		from, to := way[0], way[1]
		rules, err := conn.Rules(&nftables.Chain{Table: t, Name: from})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(rules, func(r nft.Rule) bool { return r.Names(to) }) {
			return fmt.Errorf("chain %s of table %s does not lead to %s: %w", from, tableName, to, errMissing)
		}
	}
	return nil
}
