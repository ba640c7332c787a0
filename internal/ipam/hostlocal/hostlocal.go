// Package hostlocal gives attachments addresses that are unique on this node,
// from the ranges of their configuration, as the CNI reference plugin
// host-local does.
//
// It keeps its records in the files and under the lock of the reference, so
// that both can work on one directory at the same time. README.md says what it
// reads, how the files look and where it differs from the reference.
package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/request"
)

// DefaultDataDir is where the reference keeps its records.
const DefaultDataDir = "/var/lib/cni/networks"

// Config is what New needs. The zero value serves.
type Config struct {
	// DataDir holds one directory per network, for configurations without
	// ipam.dataDir. Empty means DefaultDataDir.
	DataDir string
	// HostDirs are the directories of the node that the daemon sees, each at
	// its own path; nil means all of them. Only configurations whose files lie
	// below them are served.
	HostDirs []string
}

// New returns the dialect host-local.
func New(c Config) ipam.Plugin {
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	return newPlugin(c, disk{})
}

func newPlugin(c Config, files files) *plugin {
	return &plugin{Config: c, files: files, networks: networks{open: make(map[string]*network)}}
}

type plugin struct {
	Config
	files    files
	networks networks
}

// Serves reports whether the daemon sees the files that conf names. A
// configuration that cannot be read is served: the call will say why it fails.
func (p *plugin) Serves(conf []byte) bool {
	if p.HostDirs == nil {
		return true
	}
	paths, err := parsePaths(conf, p.DataDir)
	if err != nil {
		return true
	}
	for _, path := range paths {
		if !slices.ContainsFunc(p.HostDirs, func(dir string) bool { return below(path, dir) }) {
			return false
		}
	}
	return true
}

// below reports whether path is dir or lies under it.
func below(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// Add gives the attachment one address of each range set. What the same
// attachment holds from an earlier call is kept where it fits the request, and
// released where it does not or when Add fails.
func (p *plugin) Add(ctx context.Context, r ipam.Request) (*current.Result, error) {
	if err := request.Identity(r); err != nil {
		return nil, err
	}
	c, err := parse(r.Conf, r.Args, p.DataDir)
	if err != nil {
		return nil, err
	}
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: c.routes}
	if c.resolvConf != "" {
		data, err := readSmallFile(c.resolvConf)
		if err != nil {
			return nil, fmt.Errorf("ipam.resolvConf: %w", err)
		}
		res.DNS = parseResolvConf(data)
	}
	choices, err := p.reserve(ctx, c, key{r.ContainerID, r.IfName})
	if err != nil {
		return nil, err
	}
	for _, ch := range choices {
		res.IPs = append(res.IPs, request.IPConfig(netip.PrefixFrom(ch.addr, ch.span.subnet.Bits()), ch.span.gateway))
	}
	return res, nil
}

// reserve chooses and records the addresses under the lock of the network. On
// error k holds nothing any more. It does not wait for the disk: a power failure
// that takes a record takes the container that has the address too.
func (p *plugin) reserve(ctx context.Context, c config, k key) ([]choice, error) {
	if err := p.files.MakeDir(c.dir); err != nil {
		return nil, fmt.Errorf("make directory of the network: %w", err)
	}
	d, err := p.enter(ctx, c.dir)
	if err != nil {
		return nil, err
	}
	defer d.leave()
	st, err := d.read(len(c.sets))
	if err != nil {
		return nil, err
	}
	choices, err := d.fill(c, k, st)
	keep := func(a netip.Addr) bool {
		return slices.ContainsFunc(choices, func(ch choice) bool { return ch.addr == a })
	}
	if dropErr := d.remove(slices.DeleteFunc(st.heldBy(k), keep)); dropErr != nil {
		return nil, errors.Join(err, dropErr)
	}
	return choices, err
}

// fill records one new address after the other until each range set has given
// one. It updates st with what it did.
func (d *directory) fill(c config, k key, st state) ([]choice, error) {
	for {
		choices, err := choose(c.sets, c.asked, st, k)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(choices, func(ch choice) bool { return !ch.held })
		if i < 0 {
			return choices, nil
		}
		ch := choices[i]
		holder := k.holder()
		err = d.record(ch, k, st.torn[ch.addr])
		if errors.Is(err, fs.ErrExist) {
			// Somebody who does not take the lock was faster, such as another
			// node on a shared file system that emulates locks.
			holder, err = "", nil
		}
		if err != nil {
			return nil, fmt.Errorf("record address %s: %w", ch.addr, err)
		}
		delete(st.torn, ch.addr)
		st.holders[ch.addr] = holder
		st.last[ch.set] = ch.addr
	}
}

// Del releases every address that the attachment holds in the network, from
// whatever ranges, and those whose files a crash left empty. It reads nothing of
// the configuration but the name and ipam.dataDir.
func (p *plugin) Del(ctx context.Context, r ipam.Request) error {
	if err := request.Identity(r); err != nil {
		return err
	}
	dir, err := parseDir(r.Conf, p.DataDir)
	if err != nil {
		return err
	}
	return p.release(ctx, dir, key{r.ContainerID, r.IfName})
}

func (p *plugin) release(ctx context.Context, dir string, k key) error {
	d, err := p.enter(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := d.read(0)
	if err == nil {
		err = d.remove(append(st.releasable(k), st.ownerless()...))
	}
	d.leave()
	// Who asked forgets the container now. Also when there was nothing to
	// remove: an earlier Del may have been interrupted at this point, and a power
	// failure would undo what it did.
	if syncErr := p.files.Sync(dir); syncErr != nil {
		err = errors.Join(err, fmt.Errorf("make the release durable: %w", syncErr))
	}
	return err
}

// Check reports an attachment without any record, and the first address of
// prevResult that lies in the network's ranges and is not recorded for it.
func (p *plugin) Check(ctx context.Context, r ipam.Request) error {
	if err := request.Identity(r); err != nil {
		return err
	}
	c, err := parse(r.Conf, r.Args, p.DataDir)
	if err != nil {
		return err
	}
	prev, err := request.PrevResult(r.Conf)
	if err != nil {
		return err
	}
	st, err := p.look(ctx, c.dir)
	if err != nil {
		return err
	}
	k := key{r.ContainerID, r.IfName}
	held := st.releasable(k)
	if len(held) == 0 {
		return fmt.Errorf("no address of %v is recorded in %s", k.holder(), c.dir)
	}
	for _, ip := range prev.IPs {
		a, ok := request.PrefixOf(ip)
		if !ok || slices.Contains(held, a.Addr()) {
			continue
		}
		if _, err := assign(c.sets, []netip.Addr{a.Addr()}); err != nil {
			continue // not from these ranges
		}
		h, taken := st.holders[a.Addr()]
		if !taken {
			return fmt.Errorf("address %s of %v is not recorded in %s", a.Addr(), k.holder(), c.dir)
		}
		return fmt.Errorf("address %s of %v is held by %v", a.Addr(), k.holder(), h)
	}
	return nil
}

// look reads the state of a network; a network without directory has none.
func (p *plugin) look(ctx context.Context, dir string) (state, error) {
	d, err := p.enter(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, err
	}
	defer d.leave()
	return d.read(0)
}
