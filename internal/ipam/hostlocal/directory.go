package hostlocal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"braid.dev/braid/internal/ipam/request"
)

// Names in the directory of a network, which are the reference's. A file by the
// name of an address, as Go prints it, records its holder.
const (
	lockName   = "lock"
	lastPrefix = "last_reserved_ip." // followed by the number of the range set
)

// files is the file system below the data dir.
type files interface {
	// MakeDir makes dir and its parents, durably.
	MakeDir(dir string) error
	Names(dir string) ([]string, error)
	// Stat does not follow a symbolic link.
	Stat(path string) (stamp, error)
	// Local reports whether dir is on a disk or in the memory of this machine.
	Local(dir string) bool
	Read(path string) ([]byte, error)
	// Overwrite replaces the content of path, without waiting for the disk.
	Overwrite(path string, data []byte) error
	// Create writes data to a new file. It fails with fs.ErrExist where somebody
	// has taken the name. A process that is killed leaves all of the data or an
	// empty file.
	Create(path string, data []byte) error
	Remove(path string) error
	// Sync makes the names in a directory durable.
	Sync(dir string) error
	// Lock waits for the exclusive lock on path, which it creates.
	Lock(ctx context.Context, path string) (unlock func(), err error)
}

// stamp changes when a file is replaced or written.
type stamp struct {
	inode   uint64
	changed int64 // nanoseconds
	size    int64
	regular bool
}

// clockStep is longer than the step of any file system's clock, and than clocks
// of two machines that keep the same time are apart. localStep is longer than
// that of the kernel, by which its own file systems go: 10 ms at most.
const clockStep, localStep = time.Second, 20 * time.Millisecond

// settled is false while a change could still leave the stamp as it is, because
// the file system's clock has not ticked. A stamp of whole seconds may be one of
// a file system that knows no others, as ext4 with small inodes does not.
func (s stamp) settled(now time.Time, local bool) bool {
	step := clockStep
	if local && s.changed%int64(time.Second) != 0 {
		step = localStep
	}
	return now.Sub(time.Unix(0, s.changed)) > step
}

// networks remembers, for each directory in use, who is inside and what its
// files said.
type networks struct {
	mu   sync.Mutex
	open map[string]*network
}

type network struct {
	users int
	// turn holds a token while a caller of this process is inside. The file
	// lock alone would do, but must be polled; see disk.Lock.
	turn chan struct{}
	// seen saves reading every file on every call: what a file said last time
	// holds as long as its stamp is the same. Guarded by turn.
	seen map[string]record
	// local is Local of the directory.
	local bool
}

type record struct {
	stamp stamp
	// settled says that the stamp was when the file was read.
	settled bool
	holder  holder
	torn    bool
}

// directory is a locked network.
type directory struct {
	files
	path    string
	network *network
	leave   func()
}

// enter waits until this call is alone in the network, in this process and
// among all that use the reference's lock. The error is fs.ErrNotExist when the
// directory does not exist.
func (p *plugin) enter(ctx context.Context, path string) (*directory, error) {
	n := p.networks.get(path)
	select {
	case n.turn <- struct{}{}:
	case <-ctx.Done():
		p.networks.put(path, n)
		return nil, fmt.Errorf("wait for the lock of %s: %w", path, context.Cause(ctx))
	}
	unlock, err := p.files.Lock(ctx, filepath.Join(path, lockName))
	leave := func() {
		if unlock != nil {
			unlock()
		}
		if len(n.seen) == 0 {
			n.seen = nil
		}
		<-n.turn
		p.networks.put(path, n)
	}
	if err != nil {
		leave()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if n.seen == nil {
		n.local = p.files.Local(path)
	}
	return &directory{files: p.files, path: path, network: n, leave: leave}, nil
}

func (ns *networks) get(path string) *network {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	n := ns.open[path]
	if n == nil {
		n = &network{turn: make(chan struct{}, 1)}
		ns.open[path] = n
	}
	n.users++
	return n
}

// put forgets a network that nobody uses and that has no address.
func (ns *networks) put(path string, n *network) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if n.users--; n.users == 0 && n.seen == nil {
		delete(ns.open, path)
	}
}

// read returns what the files say. sets is the number of range sets whose last
// address is of interest.
func (d *directory) read(sets int) (state, error) {
	names, err := d.Names(d.path)
	if err != nil {
		return state{}, fmt.Errorf("read address records: %w", err)
	}
	st := state{holders: make(map[netip.Addr]holder), torn: make(map[netip.Addr]bool), last: make([]netip.Addr, sets)}
	seen := make(map[string]record)
	for _, name := range names {
		a, err := request.Addr(name)
		if err != nil {
			continue
		}
		r, err := d.readRecord(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return state{}, fmt.Errorf("read address record: %w", err)
		}
		seen[name] = r
		switch _, known := st.holders[a]; {
		case name != a.String():
			// Nobody writes such a name, so it says nothing for certain; the
			// address is not handed out.
			if !known {
				st.holders[a] = ""
			}
		case r.torn:
			st.torn[a] = true
		default:
			st.holders[a] = r.holder
		}
	}
	d.network.seen = seen
	for i := range st.last {
		st.last[i] = d.readLast(i)
	}
	return st, nil
}

// readRecord reads one address file. One without content is torn: every writer
// holds the lock until it has written, so whoever made it died before, or a
// power failure took the content, and the container too.
func (d *directory) readRecord(name string) (record, error) {
	path := filepath.Join(d.path, name)
	s, err := d.Stat(path)
	if err != nil {
		return record{}, err
	}
	if old, ok := d.network.seen[name]; ok && old.settled && old.stamp == s {
		return old, nil
	}
	r := record{stamp: s, settled: s.settled(time.Now(), d.network.local)}
	if !s.regular {
		return r, nil
	}
	data, err := d.Read(path)
	if err != nil {
		return record{}, err
	}
	// Some file systems fill what a power failure lost with zero bytes.
	r.torn = len(bytes.Trim(data, "\x00 \t\r\n")) == 0
	r.holder = holder(bytes.TrimSpace(data))
	return r, nil
}

// readLast returns the address that range set i gave last. Not to know it costs
// nothing but the order of addresses, so nothing about it is a failure.
func (d *directory) readLast(i int) netip.Addr {
	data, err := d.Read(filepath.Join(d.path, lastPrefix+strconv.Itoa(i)))
	if err != nil {
		return netip.Addr{}
	}
	a, err := request.Addr(string(data))
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// record notes k under its address. What the set gave last is written first: a
// crash in between skips an address in the order, whereas the other way round a
// failed write would have to be undone.
func (d *directory) record(ch choice, k key, torn bool) error {
	err := d.Overwrite(filepath.Join(d.path, lastPrefix+strconv.Itoa(ch.set)), []byte(ch.addr.String()))
	if err != nil {
		return err
	}
	if torn {
		if err := d.remove([]netip.Addr{ch.addr}); err != nil {
			return err
		}
	}
	return d.Create(filepath.Join(d.path, ch.addr.String()), []byte(k.holder()))
}

// remove removes all it can.
func (d *directory) remove(addrs []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		if err := d.Remove(filepath.Join(d.path, a.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("release %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}
