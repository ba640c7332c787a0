package keepsource

import (
	"context"
	"fmt"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"braid.dev/braid/internal/iptables/rulespec"
	"braid.dev/braid/internal/nft"
)

// Effect is what the exemption did on this node since its rules were made,
// which is again after somebody flushed them.
type Effect struct {
	OldToNew, NewToOld Count
}

// Count is what happened in one direction.
type Count struct {
	// Kept are connections that left with the pod's own address, as this node
	// took them: one between two nodes counts on both, and where a node sees
	// only the answers, in their direction. Only the first packet of a
	// connection is asked about NAT.
	Kept uint64
	// Passed are packets that were no part of a connection that the node knew,
	// and were let through although.
	Passed uint64
}

func (e Effect) String() string {
	return fmt.Sprintf("old -> new: %d connections kept their source, %d packets passed without a known connection; new -> old: %d, %d",
		e.OldToNew.Kept, e.OldToNew.Passed, e.NewToOld.Kept, e.NewToOld.Passed)
}

// ReadEffect reads the counters of the rules that are in place.
func ReadEffect(ctx context.Context, cfg Config) (Effect, error) {
	var e Effect
	cfg, err := cfg.checked()
	if err != nil {
		return e, err
	}
	for _, is6 := range cfg.families() {
		if err := cfg.effect(ctx, is6, &e); err != nil {
			return e, fmt.Errorf("counters of %s: %w", familyLabel(is6), err)
		}
	}
	return e, nil
}

func (c Config) effect(ctx context.Context, is6 bool, e *Effect) error {
	f, err := c.family(ctx, is6)
	if err != nil {
		return err
	}
	if f.Table == TableRight {
		if err := c.countTable(is6, e); err != nil {
			return err
		}
	}
	for _, fw := range f.Firewalls {
		if fw.Postrouting.keeps() {
			if err := c.countChain(ctx, fw.Backend, is6, "nat", "POSTROUTING", e); err != nil {
				return err
			}
		}
		if fw.Forward.keeps() {
			if err := c.countChain(ctx, fw.Backend, is6, "filter", "FORWARD", e); err != nil {
				return err
			}
		}
	}
	return nil
}

// countTable adds what the rules of the nftables table, one for each way after
// the first, have counted.
func (c Config) countTable(is6 bool, e *Effect) error {
	ways := c.ways(is6)
	return nft.Do(c.NS, func(conn *nft.Conn) error {
		rules, err := conn.GetRules(table(is6), &nftables.Chain{Name: chainName})
		if err != nil || len(rules) != len(ways)+1 {
			return err
		}
		for i, w := range ways {
			for _, x := range rules[i+1].Exprs {
				if n, ok := x.(*expr.Counter); ok {
					e.of(w.fromNew).Kept += n.Packets
				}
			}
		}
		return nil
	})
}

func (c Config) countChain(ctx context.Context, b Backend, is6 bool, table, chain string, e *Effect) error {
	found, err := c.list(ctx, b, is6, table, chain, "-v")
	if err != nil || found == nil {
		return err
	}
	for _, text := range found.Rules {
		r, ours := parseRule(text)
		if !ours {
			continue
		}
		for _, w := range c.ways(is6) {
			if r.from != w.from || r.to != w.to {
				continue
			}
			if count := e.of(w.fromNew); table == "nat" {
				count.Kept += packets(text)
			} else {
				count.Passed += packets(text)
			}
		}
	}
	return nil
}

func (e *Effect) of(fromNew bool) *Count {
	if fromNew {
		return &e.NewToOld
	}
	return &e.OldToNew
}

// packets reads the first of the two counters that follow -c.
func packets(text string) uint64 {
	words := rulespec.Words(text)
	for i, w := range words {
		if w == "-c" && i+1 < len(words) {
			n, _ := strconv.ParseUint(words[i+1], 10, 64)
			return n
		}
	}
	return 0
}
