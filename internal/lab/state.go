package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A state is what is written down of a lab, for the commands that come after
// the one that brought it up. Removing a lab does not depend on it.
type state struct {
	Name    string    `json:"name"`
	Up      bool      `json:"up"`
	Created time.Time `json:"created"`
	Config  Config    `json:"config"`
	Nodes   []node    `json:"nodes"`
	// Guests are the nodes and the external host.
	Guests    []node     `json:"guests"`
	Binaries  Binaries   `json:"binaries"`
	Processes []*process `json:"processes"`
}

func newState(cfg Config, bin Binaries) state {
	return state{Name: cfg.Name, Created: time.Now().UTC(), Config: cfg,
		Nodes: cfg.nodes(), Guests: cfg.guests(), Binaries: bin}
}

func readState(p paths) (state, error) {
	var s state
	data, err := os.ReadFile(p.state())
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", p.state(), err)
	}
	return s, nil
}

// A ledger keeps the state on disk while a lab grows.
type ledger struct {
	mu    sync.Mutex
	path  string
	state state
}

func (l *ledger) add(p *process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Processes = append(l.state.Processes, p)
	return l.write()
}

func (l *ledger) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Up = true
	return l.write()
}

func (l *ledger) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write()
}

// write replaces the file, so that a reader never sees half of it.
func (l *ledger) write() error {
	data, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(l.path+".tmp", l.path)
}

func (l *ledger) alive() error {
	l.mu.Lock()
	processes := slices.Clone(l.state.Processes)
	l.mu.Unlock()
	for _, p := range processes {
		if err := p.alive(); err != nil {
			return err
		}
	}
	return nil
}

// makeStateDir makes the directory of a lab, a file system in memory: etcd and
// all logs live there, and it is gone with one unmount.
func makeStateDir(p paths) error {
	if err := os.MkdirAll(p.dir(), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("braid-lab", p.dir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=4g"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", p.dir(), err)
	}
	for _, dir := range []string{"pki", "log", "guest", "boot", "disk"} {
		if err := os.Mkdir(filepath.Join(p.dir(), dir), 0o700); err != nil {
			return err
		}
	}
	// What a node's programs may do is decided in the node.
	if err := unix.Mount("braid-lab-disk", p.disks(), "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", p.disks(), err)
	}
	return nil
}

// removeStateDir unmounts the directory and whatever is mounted in it, the
// deepest first, and removes what is under the mount.
func removeStateDir(p paths) error {
	mounts, err := mountsBelow(p.dir())
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return os.RemoveAll(p.dir())
}

// mountsBelow lists the mounts on dir and below, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(text), dir), nil
}

// parseMounts finds mount points in the text of proc_pid_mountinfo(5).
func parseMounts(mountinfo, dir string) []string {
	var mounts []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescapeMount(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			mounts = append(mounts, point)
		}
	}
	return mounts
}

// unescapeMount undoes the octal escapes for space, tab, newline, backslash.
func unescapeMount(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// lock keeps two commands from changing one lab at the same time. The lock
// goes with the process that holds it, also when that is killed.
func lock(p paths) (unlock func(), err error) {
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(p.lock(), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			holder, _ := os.ReadFile(p.lock())
			f.Close()
			return nil, fmt.Errorf("lab %s is being changed by process %s: %w", p.Name, strings.TrimSpace(string(holder)), err)
		}
		if !sameFile(f, p.lock()) {
			f.Close() // the previous holder removed it in between
			continue
		}
		if err := writePID(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return func() {
			os.Remove(p.lock())
			f.Close()
		}, nil
	}
}

func sameFile(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}

// Names lists the labs of this machine, running or half removed.
func Names() ([]string, error) {
	entries, err := os.ReadDir(stateRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []string
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, e.Name())
		}
	}
	return list, err
}

// A nodeSubnet is the range of the pods of a node.
type nodeSubnet struct {
	Node   node
	Subnet netip.Prefix
}

// An exchange collects the ranges of all nodes and gives them to each.
type exchange struct {
	mu    sync.Mutex
	want  int
	all   []nodeSubnet
	ready chan struct{}
}

func newExchange(want int) *exchange { return &exchange{want: want, ready: make(chan struct{})} }

// exchange adds the range of n and waits for those of all the others.
func (e *exchange) exchange(ctx context.Context, n node, subnet netip.Prefix) ([]nodeSubnet, error) {
	e.mu.Lock()
	e.all = append(e.all, nodeSubnet{n, subnet})
	if len(e.all) == e.want {
		close(e.ready)
	}
	e.mu.Unlock()
	select {
	case <-e.ready:
		return e.all, nil // nobody writes any more
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
