package leftover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/nft"
	"braid.dev/braid/internal/rtnl"
)

// hands are what looking and removing need.
type hands struct {
	node Node
	host Host
	net  *rtnl.Handle
	disk *disk
}

func (n Node) hands() (*hands, error) {
	net, err := rtnl.Open(n.NS)
	if err != nil {
		return nil, err
	}
	d, err := n.disk()
	if err != nil {
		net.Close()
		return nil, err
	}
	return &hands{node: n, host: n.Host, net: net, disk: d}, nil
}

func (h *hands) close() error {
	h.net.Close()
	return h.disk.root.Close()
}

// look reads everything that the patterns may be about, and says what of it is
// the network's own and what is neither network's. What could not be read is
// the error; the rest is said all the same.
func (h *hands) look(ctx context.Context, l spec.Spec, use InUse) ([]finding, *snapshot, error) {
	v, s := livingOf(l, use), newSnapshot()
	var found []finding
	walls, err := readFirewalls(ctx, h.host)
	errs := []error{err}
	for _, w := range walls {
		for _, t := range w.tables {
			found = append(found, w.find(t, l, use, v)...)
			w.others(t, l, use.Other, s)
		}
	}

	tables, err := nft.Tables(h.node.NS)
	errs = append(errs, err, unreadable(walls, tables, l), h.unreadableLegacy(walls))
	found = append(found, findTables(tables, l, use, v)...)
	found = append(found, findMarked(tables, l, use, v)...)
	othersTables(tables, l, use.Other, has(walls, "iptables-nft", "iptables"), s)

	sets, err := readSets(ctx, h.host, l)
	errs = append(errs, err)
	found = append(found, findSets(sets, l, use, v)...)
	othersSets(sets, l, use.Other, s)

	k, err := readKernel(h.net)
	errs = append(errs, err)
	found = append(found, k.find(l, use, v)...)
	k.others(l, use.Other, s)

	files, err := h.disk.find(l, use, v)
	found = append(found, files...)
	return found, s, errors.Join(append(errs, err, h.disk.others(l, use.Other, s))...)
}

func has(walls []*firewall, names ...string) bool {
	return slices.ContainsFunc(walls, func(w *firewall) bool { return slices.Contains(names, w.name) })
}

// unreadable says that there are rules of the network that only a program could
// read which the host has not: somebody made them from a container.
func unreadable(walls []*firewall, tables []nft.Table, l spec.Spec) error {
	for _, t := range tables {
		program := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[t.Family]
		if !ofIptables(t) || has(walls, program+"-nft", program) {
			continue
		}
		for _, chain := range t.Chains {
			if matchAny(l.Chains, chain) {
				return fmt.Errorf("chain %s of table %s %s is there, and the host has no %s-nft to remove it with", chain, t.Family, t.Name, program)
			}
		}
	}
	return nil
}

// unreadableLegacy is the same for the tables of iptables-legacy, of which the
// kernel tells only the names.
func (h *hands) unreadableLegacy(walls []*firewall) error {
	for program, file := range map[string]string{"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"} {
		if has(walls, program+"-legacy", program) {
			continue
		}
		var names []byte
		read := func() (err error) {
			names, err = os.ReadFile("/proc/thread-self/net/" + file)
			return err
		}
		err := read
		if h.node.NS != nil {
			err = func() error { return h.node.NS.Do(read) }
		}
		if err() == nil && len(names) > 0 {
			return fmt.Errorf("there are tables of %s-legacy (%s), and the host has no such program to read them with", program, strings.Join(strings.Fields(string(names)), ", "))
		}
	}
	return nil
}
