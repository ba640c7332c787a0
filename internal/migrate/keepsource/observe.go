package keepsource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"braid.dev/braid/internal/rtnl"
)

// observe reads from the kernel what planOf and removalOf need. Before is what
// the state file knows.
func (c Config) observe(ctx context.Context, families []bool, before []original) (Observed, error) {
	var seen Observed
	for _, is6 := range families {
		f, err := c.family(ctx, is6)
		if err != nil {
			return seen, fmt.Errorf("%s: %w", familyLabel(is6), err)
		}
		seen.Families = append(seen.Families, f)
	}
	var err error
	if seen.All, err = c.rpFilter("all"); err != nil {
		return seen, err
	}
	seen.AllWas = seen.All
	for _, o := range before {
		if o.Index == 0 && o.Made == seen.All {
			seen.AllWas = o.Value
		}
	}
	seen.Links, err = c.links(seen.AllWas)
	return seen, err
}

// family looks at the firewalls of one family. Only tables that exist are
// listed: asking iptables for one makes it.
func (c Config) family(ctx context.Context, is6 bool) (Family, error) {
	f := Family{IPv6: is6}
	var nftTables []string
	var err error
	if f.Table, nftTables, err = c.tables(is6); err != nil {
		return f, err
	}
	legacyTables, err := c.legacyTables(is6)
	if err != nil {
		return f, err
	}
	for _, b := range []struct {
		Backend
		tables []string
	}{{NFT, nftTables}, {Legacy, legacyTables}} {
		fw := Firewall{Backend: b.Backend}
		if slices.Contains(b.tables, "filter") {
			if fw.Forward, err = c.list(ctx, b.Backend, is6, "filter", "FORWARD"); err != nil {
				return f, err
			}
		}
		if slices.Contains(b.tables, "nat") && f.Table != TableRight {
			if fw.Postrouting, err = c.list(ctx, b.Backend, is6, "nat", "POSTROUTING"); err != nil {
				return f, err
			}
		}
		if fw.Postrouting.keeps() {
			f.Table = refusedBefore(f.Table)
		}
		if fw.Forward != nil || fw.Postrouting != nil {
			f.Firewalls = append(f.Firewalls, fw)
		}
	}
	return f, nil
}

// refusedBefore is the state of a table that an earlier round could not make,
// for which there are rules in iptables.
func refusedBefore(s TableState) TableState {
	if s == TableAbsent {
		return TableRefused
	}
	return s
}

// legacyTables are the tables of the old iptables that exist.
func (c Config) legacyTables(is6 bool) ([]string, error) {
	file := "/proc/thread-self/net/ip_tables_names"
	if is6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	var text []byte
	read := func() (err error) {
		text, err = os.ReadFile(file)
		return err
	}
	var err error
	if c.NS != nil {
		err = c.NS.Do(read)
	} else {
		err = read()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return strings.Fields(string(text)), nil
}

// links are all that have the setting; one that goes away meanwhile is none.
func (c Config) links(all int) ([]Link, error) {
	h, err := rtnl.Open(c.NS)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	found, err := h.Links()
	if err != nil {
		return nil, err
	}
	routed := sync.OnceValues(func() (map[int]bool, error) { return routedLinks(h) })
	var links []Link
	for _, l := range found {
		link := Link{Name: l.Name, Index: l.Index, Ours: c.carries(l.Name)}
		if link.RPFilter, err = c.rpFilter(l.Name); err == nil && link.Ours && max(link.RPFilter, all) != off {
			link.Kind, err = kindOf(h, l, routed)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, rtnl.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		links = append(links, link)
	}
	return links, nil
}

// kindOf asks about a link as the kernel does (fib_validate_source).
func kindOf(h *rtnl.Handle, l rtnl.Link, routed func() (map[int]bool, error)) (LinkKind, error) {
	addrs, err := h.Addrs(l.Index)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(addrs, func(a rtnl.Addr) bool { return a.Addr().Is4() }) {
		return Addressed, nil
	}
	links, err := routed()
	if err != nil {
		return "", err
	}
	if l.Master != 0 || links[l.Index] {
		return Routed, nil
	}
	return Bare, nil
}

// routedLinks are those that IPv4 routes lead to.
func routedLinks(h *rtnl.Handle) (map[int]bool, error) {
	routes, err := h.Routes()
	if err != nil {
		return nil, err
	}
	links := map[int]bool{}
	for _, r := range routes {
		if r.Dst.Addr().Is4() {
			links[r.Link] = true
		}
	}
	return links, nil
}

func rpFilterPath(link string) string { return "ipv4/conf/" + link + "/rp_filter" }

func (c Config) rpFilter(link string) (int, error) {
	text, err := c.Sysctl.Get(c.NS, rpFilterPath(link))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// set gives a link its setting. A link that is gone needs none.
func (c Config) set(s Step) error {
	err := c.Sysctl.Set(c.NS, rtnl.Setting{Path: rpFilterPath(s.Link), Value: strconv.Itoa(s.To)})
	if errors.Is(err, fs.ErrNotExist) && s.Index != 0 {
		return nil
	}
	return err
}
