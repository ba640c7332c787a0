// Package masq lets what containers send beyond their subnets leave with the
// node's address.
//
// Its rules are those of the CNI reference plugins, by iptables or by nftables,
// so that either side removes what the other made.
package masq

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
)

// Masquerade keeps the rules of one node.
type Masquerade struct {
	ns *netns.NS
	// mu lets one at a time change the nftables: rules are removed by listing
	// them first, and a list that is read while somebody changes it may have
	// holes.
	mu sync.Mutex
}

// New returns the rules of the node whose namespace is ns, nil for the current
// one.
func New(ns *netns.NS) *Masquerade { return &Masquerade{ns: ns} }

// Attachment is whose rules they are.
type Attachment struct {
	Network     string
	ContainerID string
	IfName      string
	// Backend is iptables or nftables. Empty means iptables, and nftables where
	// iptables cannot be used, as the reference plugins choose.
	Backend string
	// Host runs iptables. Nil when nobody is connected who could.
	Host driver.Host
}

// ValidBackend refuses a name that is no Backend.
func ValidBackend(name string) error {
	if name != "" && name != "iptables" && name != "nftables" {
		return fmt.Errorf("ipMasqBackend %q is neither iptables nor nftables", name)
	}
	return nil
}

// Add hides the addresses behind the node's where packets leave the subnet
// that each address is of. Rules that the attachment has are replaced.
func (m *Masquerade) Add(ctx context.Context, a Attachment, addrs []netip.Prefix) error {
	switch {
	case a.Backend == "nftables", a.Backend == "" && a.Host == nil:
		return m.addNFT(a, addrs)
	case a.Backend == "iptables":
		return a.addIPTables(ctx, addrs)
	}
	err := a.addIPTables(ctx, addrs)
	if err == nil {
		return nil
	}
	// One family may have its rules by now. Where iptables cannot be used at
	// all, as expected here, this fails too and there is nothing to remove.
	_ = a.removeIPTables(ctx, families(addrs))
	if nftErr := m.addNFT(a, addrs); nftErr != nil {
		return errors.Join(err, nftErr)
	}
	return nil
}

// Remove removes the rules of both backends, unless the attachment says which
// one made them. The addresses are those that were added, or none when that is
// not known. It is a CNI error of code 11 when rules may remain because nobody
// is connected who could run iptables.
func (m *Masquerade) Remove(ctx context.Context, a Attachment, addrs []netip.Prefix) error {
	found := false
	if a.Backend != "iptables" {
		var err error
		if found, err = m.removeNFT(a); err != nil {
			return err
		}
	}
	if a.Backend == "nftables" || found {
		return nil
	}
	return a.removeIPTables(ctx, families(addrs))
}

// Addresses returns the addresses of a result, nil for none.
func Addresses(res *current.Result) ([]netip.Prefix, error) {
	if res == nil {
		return nil, nil
	}
	var addrs []netip.Prefix
	for _, ip := range res.IPs {
		p, err := driver.Prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, p)
	}
	return addrs, nil
}

// families are those (Is6) of the addresses, or both when none is known.
func families(addrs []netip.Prefix) []bool {
	var have [2]bool
	for _, p := range addrs {
		if p.Addr().Is6() {
			have[1] = true
		} else {
			have[0] = true
		}
	}
	switch have {
	case [2]bool{true, false}:
		return []bool{false}
	case [2]bool{false, true}:
		return []bool{true}
	}
	return []bool{false, true}
}
