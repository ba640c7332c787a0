package bridge

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

// masquerade hides the addresses of res behind the node's where they leave
// their subnets. Without a configured backend it is iptables, and nftables
// where iptables cannot be used, as the reference plugin chooses.
func (a *attachment) masquerade(ctx context.Context, res *current.Result) error {
	if !a.Masq {
		return nil
	}
	switch {
	case a.MasqBackend == "nftables", a.MasqBackend == "" && a.spec.Host == nil:
		return a.addMasqRules(res)
	case a.MasqBackend == "iptables":
		return a.addIPTables(ctx, res)
	}
	if err := a.addIPTables(ctx, res); err != nil {
		if nftErr := a.addMasqRules(res); nftErr != nil {
			return errors.Join(err, nftErr)
		}
	}
	return nil
}

// removeMasquerade removes the rules of both backends, unless the
// configuration says which one made them.
func (a *attachment) removeMasquerade(ctx context.Context) error {
	found := false
	if a.MasqBackend != "iptables" {
		var err error
		if found, err = a.removeMasqRules(); err != nil {
			return err
		}
	}
	if a.MasqBackend == "nftables" || found {
		return nil
	}
	return a.removeIPTables(ctx)
}

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

// chain is named as the reference plugin names it.
func (a *attachment) chain() string {
	return fmt.Sprintf("CNI-%x", sha512.Sum512([]byte(a.Name+a.spec.ContainerID)))[:28]
}

// addIPTables makes the rules of each family in one transaction. Naming the
// chain empties it, so that the call can be repeated; the jumps to it are
// removed first for the same reason.
func (a *attachment) addIPTables(ctx context.Context, res *current.Result) error {
	if a.spec.Host == nil {
		return types.NewError(types.ErrTryAgainLater, "masquerade by iptables: nobody is connected who could run it on the host", "")
	}
	byFamily, err := ipTablesRules(a.chain(), ipTablesComment(a.Name, a.spec.ContainerID), res)
	if err != nil {
		return err
	}
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
func ipTablesRules(chain, comment string, res *current.Result) (map[bool][]string, error) {
	rules := map[bool][]string{}
	for _, ip := range res.IPs {
		p, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		is6 := p.Addr().Is6()
		tail := "-m comment --comment " + comment
		rules[is6] = append(rules[is6],
			fmt.Sprintf("-A %s -d %s -j ACCEPT %s", chain, p, tail),
			fmt.Sprintf("-A %s ! -d %s -j MASQUERADE %s", chain, ipTablesOf(is6).multicast, tail),
			fmt.Sprintf("-A POSTROUTING -s %s -j %s %s", p.Addr(), chain, tail))
	}
	return rules, nil
}

// ipTablesComment is the reference plugin's comment in the quotes of
// iptables-restore. %q leaves no line end in it, which would begin a rule of
// the network's author's own.
func ipTablesComment(network, containerID string) string {
	text := fmt.Sprintf("name: %q id: %q", network, containerID)
	const most = 255
	if len(text) > most {
		text = text[:most]
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

func (a *attachment) removeIPTables(ctx context.Context) error {
	if a.spec.Host == nil {
		return types.NewError(types.ErrTryAgainLater, "remove masquerade from iptables: nobody is connected who could run it on the host", "")
	}
	for _, is6 := range a.families() {
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

// families are those (Is6) that the attachment has addresses of, or both when
// it is not known how far Attach came.
func (a *attachment) families() []bool {
	if a.spec.Prev == nil || len(a.spec.Prev.IPs) == 0 {
		return []bool{false, true}
	}
	var out []bool
	for _, is6 := range []bool{false, true} {
		for _, ip := range a.spec.Prev.IPs {
			if (ip.Address.IP.To4() == nil) == is6 {
				out = append(out, is6)
				break
			}
		}
	}
	return out
}

// jumps returns the lines that remove the present jumps to the chain.
func (a *attachment) jumps(ctx context.Context, is6 bool) ([]string, error) {
	out, err := a.spec.Host.Exec(ctx, driver.Program{
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

func (a *attachment) restore(ctx context.Context, is6 bool, lines []string) error {
	input := "*nat\n:" + a.chain() + " - [0:0]\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	_, err := a.spec.Host.Exec(ctx, driver.Program{
		Name:  ipTablesOf(is6).restore,
		Args:  []string{"-w", "--noflush"},
		Stdin: []byte(input),
	})
	return err
}
