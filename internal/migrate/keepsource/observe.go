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

	"braid.dev/braid/internal/rtnl"
)

// observe reads from the kernel what planOf and removalOf need.
func (c Config) observe(ctx context.Context, families []bool) (Observed, error) {
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
	seen.Links, err = c.links()
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
func (c Config) links() ([]Link, error) {
	h, err := rtnl.Open(c.NS)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	all, err := h.Links()
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, l := range all {
		value, err := c.rpFilter(l.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		links = append(links, Link{Name: l.Name, Index: l.Index, RPFilter: value, Ours: c.carries(l.Name)})
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
