package masq

import (
	"context"
	"crypto/sha512"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
)

// ipTables are the programs of one family.
type ipTables struct {
	list, restore string
	multicast     string
}

func ipTablesOf(is6 bool) ipTables {
	if is6 {
		return ipTables{"ip6tables", "ip6tables-restore", "ff00::/8"}
	}
	return ipTables{"iptables", "iptables-restore", "224.0.0.0/4"}
}

// chain is named as the reference plugins name it.
func (a Attachment) chain() string {
	return fmt.Sprintf("CNI-%x", sha512.Sum512([]byte(a.Network+a.ContainerID)))[:28]
}

// addIPTables makes the rules of each family in one transaction. Naming the
// chain empties it, so that the call can be repeated; the jumps to it are
// removed first for the same reason.
func (a Attachment) addIPTables(ctx context.Context, addrs []netip.Prefix) error {
	if a.Host == nil {
		return types.NewError(types.ErrTryAgainLater, "masquerade by iptables: nobody is connected who could run it on the host", "")
	}
	byFamily := a.ipTablesRules(addrs)
	for _, is6 := range []bool{false, true} {
		rules := byFamily[is6]
		if len(rules) == 0 {
			continue
		}
		jumps, err := a.jumps(ctx, is6)
		if err != nil {
			return fmt.Errorf("masquerade by iptables: %w", err)
		}
		if err := a.restore(ctx, is6, append(jumps, rules...)); err != nil {
			return fmt.Errorf("masquerade by iptables: %w", err)
		}
	}
	return nil
}

// ipTablesRules returns the rules by family (Is6), as lines for restore.
func (a Attachment) ipTablesRules(addrs []netip.Prefix) map[bool][]string {
	rules := map[bool][]string{}
	for _, p := range addrs {
		is6 := p.Addr().Is6()
		tail := "-m comment --comment " + a.ipTablesComment()
		rules[is6] = append(rules[is6],
			fmt.Sprintf("-A %s -d %s -j ACCEPT %s", a.chain(), p, tail),
			fmt.Sprintf("-A %s ! -d %s -j MASQUERADE %s", a.chain(), ipTablesOf(is6).multicast, tail),
			fmt.Sprintf("-A POSTROUTING -s %s -j %s %s", p.Addr(), a.chain(), tail))
	}
	return rules
}

// ipTablesComment is the reference plugins' comment in the quotes of
// iptables-restore. %q leaves no line end in it, which would begin a rule of
// the network's author's own.
func (a Attachment) ipTablesComment() string {
	text := fmt.Sprintf("name: %q id: %q", a.Network, a.ContainerID)
	const most = 255
	if len(text) > most {
		text = text[:most]
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

func (a Attachment) removeIPTables(ctx context.Context, families []bool) error {
	if a.Host == nil {
		return types.NewError(types.ErrTryAgainLater, "remove masquerade from iptables: nobody is connected who could run it on the host", "")
	}
	for _, is6 := range families {
		jumps, err := a.jumps(ctx, is6)
		if err != nil {
			return fmt.Errorf("remove masquerade from iptables: %w", err)
		}
		if len(jumps) == 0 {
			continue
		}
		if err := a.restore(ctx, is6, append(jumps, "-X "+a.chain())); err != nil {
			return fmt.Errorf("remove masquerade from iptables: %w", err)
		}
	}
	return nil
}

// jumps returns the lines that remove the present jumps to the chain.
func (a Attachment) jumps(ctx context.Context, is6 bool) ([]string, error) {
	out, err := a.Host.Exec(ctx, driver.Program{
		Name: ipTablesOf(is6).list,
		Args: []string{"-w", "-t", "nat", "-S", "POSTROUTING"},
	})
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		rule, ok := strings.CutPrefix(line, "-A ")
		if ok && strings.Contains(line+" ", " -j "+a.chain()+" ") {
			lines = append(lines, "-D "+rule)
		}
	}
	return lines, nil
}

func (a Attachment) restore(ctx context.Context, is6 bool, lines []string) error {
	input := "*nat\n:" + a.chain() + " - [0:0]\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	_, err := a.Host.Exec(ctx, driver.Program{
		Name:  ipTablesOf(is6).restore,
		Args:  []string{"-w", "--noflush"},
		Stdin: []byte(input),
	})
	return err
}
