package hostlocal

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"braid.dev/braid/internal/ipam"
)

// model is a file system in memory that knows what a power failure may lose:
// names since the directory was last synced, in any combination, and content
// that was never synced. Containers die with the power.
type model struct {
	names   map[string]*inode // by base name; there is one directory
	durable map[string]*inode
	locked  bool
	inodes  uint64
	// fault is asked before every change and may refuse it.
	fault func(op, name string) error
}

type inode struct {
	number uint64
	data   string
	synced bool
}

func newModel() *model {
	return &model{fault: func(string, string) error { return nil }}
}

func (m *model) change(op, path string) error {
	if err := m.fault(op, filepath.Base(path)); err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

func (m *model) MakeDir(dir string) error {
	if m.names != nil {
		return nil
	}
	if err := m.change("mkdir", dir); err != nil {
		return err
	}
	m.names, m.durable = make(map[string]*inode), make(map[string]*inode)
	return nil
}

func (m *model) Names(string) ([]string, error) { return slices.Collect(maps.Keys(m.names)), nil }

func (m *model) find(op, path string) (*inode, error) {
	if n, ok := m.names[filepath.Base(path)]; ok {
		return n, nil
	}
	return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
}

func (m *model) Stat(path string) (stamp, error) {
	n, err := m.find("stat", path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{inode: n.number, size: int64(len(n.data)), regular: true}, nil
}

func (m *model) Local(string) bool { return true }

func (m *model) Read(path string) ([]byte, error) {
	n, err := m.find("read", path)
	if err != nil {
		return nil, err
	}
	return []byte(n.data), nil
}

func (m *model) create(name, data string, synced bool) {
	m.inodes++
	m.names[name] = &inode{number: m.inodes, data: data, synced: synced}
}

func (m *model) Overwrite(path string, data []byte) error {
	if err := m.change("overwrite", path); err != nil {
		return err
	}
	m.create(filepath.Base(path), string(data), false)
	return nil
}

func (m *model) Create(path string, data []byte) error {
	if err := m.change("create", path); err != nil {
		return err
	}
	if _, err := m.find("create", path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	m.create(filepath.Base(path), "", false)
	if err := m.change("write", path); err != nil {
		return errors.Join(err, m.Remove(path))
	}
	m.create(filepath.Base(path), string(data), false)
	return nil
}

func (m *model) Remove(path string) error {
	if err := m.change("remove", path); err != nil {
		return err
	}
	if _, err := m.find("remove", path); err != nil {
		return err
	}
	delete(m.names, filepath.Base(path))
	return nil
}

func (m *model) Sync(dir string) error {
	if err := m.change("sync", dir); err != nil {
		return err
	}
	m.durable = maps.Clone(m.names)
	return nil
}

func (m *model) Lock(_ context.Context, path string) (func(), error) {
	if m.names == nil {
		return nil, fs.ErrNotExist
	}
	if m.locked {
		return nil, errors.New("locked twice: nobody else is there who could unlock")
	}
	if _, err := m.find("lock", path); err != nil {
		if err := m.change("create", path); err != nil {
			return nil, err
		}
		m.create(filepath.Base(path), "", true)
	}
	m.locked = true
	return func() { m.locked = false }, nil
}

// powerFailure keeps of every unsynced change what the draw says.
func (m *model) powerFailure(t *rapid.T) {
	after := make(map[string]*inode)
	union := maps.Clone(m.durable)
	maps.Copy(union, m.names)
	for _, name := range slices.Sorted(maps.Keys(union)) {
		n, old := m.names[name], m.durable[name]
		if n != old && rapid.Bool().Draw(t, "lose the change of "+name) {
			n = old
		}
		if n != nil {
			after[name] = n
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if n := after[name]; !n.synced {
			n.data = rapid.SampledFrom([]string{n.data, "", strings.Repeat("\x00", len(n.data))}).Draw(t, "content of "+name)
			n.synced = true
		}
	}
	m.names, m.durable = after, maps.Clone(after)
}

// held returns the addresses that id's files claim.
func (m *model) held(id string) (addrs []string) {
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		if !strings.HasPrefix(name, lastPrefix) && m.names[name].data == string(key{id, "net1"}.holder()) {
			addrs = append(addrs, name)
		}
	}
	return addrs
}

// torn returns the addresses whose files say nothing.
func (m *model) torn() (addrs []string) {
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		if name != lockName && !strings.HasPrefix(name, lastPrefix) && strings.Trim(m.names[name].data, "\x00") == "" {
			addrs = append(addrs, name)
		}
	}
	return addrs
}

const dualStack = `{"cniVersion":"1.0.0","name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/29"}],[{"subnet":"fd00::/64"}]]}}`

func modelRequest(id string) ipam.Request {
	return ipam.Request{ContainerID: id, IfName: "net1", Conf: []byte(dualStack)}
}

var errKilled = errors.New("the process is dead")

// killAfter lets n changes happen and refuses every one after that, as if the
// process had died.
func killAfter(n int) (fault func(string, string) error, died *bool) {
	died = new(bool)
	return func(string, string) error {
		if n--; n < 0 {
			*died = true
			return errKilled
		}
		return nil
	}, died
}

// TestNoCrashLosesOrLeaksAnAddress runs random Adds and Dels, ends the process
// or the power in the middle of some, and looks at the files.
func TestNoCrashLosesOrLeaksAnAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		p := newPlugin(Config{DataDir: "/data"}, m)
		owned := make(map[string]string) // by id: what its Add returned
		unsure := make(map[string]bool)  // ids whose last call was interrupted
		allIDs := []string{"a", "b", "c", "d"}
		ids := rapid.SampledFrom(allIDs)
		// fail ends the power, and with it every container.
		fail := func() {
			m.powerFailure(t)
			for id := range owned {
				unsure[id] = true
			}
			clear(owned)
		}
		// crash ends the process at the chosen change of f.
		crash := func(f func()) bool {
			steps := rapid.IntRange(0, 30).Draw(t, "changes before the crash")
			fault, died := killAfter(steps)
			m.fault = fault
			f()
			m.fault = newModel().fault
			if *died {
				p = newPlugin(Config{DataDir: "/data"}, m)
				if rapid.Bool().Draw(t, "power failure") && m.names != nil {
					fail()
				}
			}
			return *died
		}
		add := func(id string) {
			res, err := p.Add(t.Context(), modelRequest(id))
			switch {
			case err == nil:
				got := res.IPs[0].Address.IP.String() + " " + res.IPs[1].Address.IP.String()
				if had, ok := owned[id]; ok && had != got {
					t.Fatalf("second Add of %s gave %s, the first %s", id, got, had)
				}
				owned[id] = got
				delete(unsure, id)
			case errors.Is(err, errKilled):
				unsure[id] = true
			default:
				t.Fatalf("Add %s: %v", id, err)
			}
		}
		del := func(id string) {
			err := p.Del(t.Context(), modelRequest(id))
			switch {
			case err == nil:
				if left := append(m.held(id), m.torn()...); len(left) > 0 {
					t.Fatalf("Del of %s left %v", id, left)
				}
				delete(unsure, id)
			case errors.Is(err, errKilled):
				unsure[id] = true
			default:
				t.Fatalf("Del %s: %v", id, err)
			}
			delete(owned, id)
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) { add(ids.Draw(t, "id")) },
			"del": func(t *rapid.T) { del(ids.Draw(t, "id")) },
			"crash in add": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				if _, again := owned[id]; !again { // a repeated Add that fails gives everything back
					crash(func() { add(id) })
				}
			},
			"crash in del": func(t *rapid.T) { id := ids.Draw(t, "id"); crash(func() { del(id) }) },
			"power failure": func(t *rapid.T) {
				if m.names != nil {
					fail()
					p = newPlugin(Config{DataDir: "/data"}, m)
				}
			},
			"": func(t *rapid.T) {
				for _, id := range allIDs {
					if addrs := m.held(id); owned[id] == "" && !unsure[id] && len(addrs) > 0 {
						t.Fatalf("%s was released and has %v", id, addrs)
					}
				}
				for id, want := range owned {
					if addrs := m.held(id); strings.Join(addrs, " ") != want {
						t.Fatalf("%s holds %v, Add returned %s", id, addrs, want)
					}
				}
			},
		})
		for _, id := range allIDs {
			del(id)
		}
		for name := range m.names {
			if name != lockName && !strings.HasPrefix(name, lastPrefix) {
				t.Fatalf("in the end %s is left", name)
			}
		}
	})
}

// TestFullOrReadOnlyDiskLeavesNothing refuses each change of an Add in turn.
func TestFullOrReadOnlyDiskLeavesNothing(t *testing.T) {
	for _, disease := range []struct {
		err    error
		spares string // the operation that still works
	}{{unix.ENOSPC, "remove"}, {unix.EIO, ""}, {unix.EROFS, "none"}} {
		for step := 0; ; step++ {
			m := newModel()
			p := newPlugin(Config{DataDir: "/data"}, m)
			if _, err := p.Add(t.Context(), modelRequest("other")); err != nil {
				t.Fatal(err)
			}
			n := 0
			m.fault = func(op, name string) error {
				n++
				sick := n == step+1
				if disease.spares != "" { // it does not get well again
					sick = n > step && op != disease.spares && op != "sync"
				}
				if sick {
					return disease.err
				}
				return nil
			}
			_, err := p.Add(t.Context(), modelRequest("a"))
			if err == nil {
				if step < 4 {
					t.Errorf("%v: only %d changes in an Add", disease.err, step)
				}
				break
			}
			if !errors.Is(err, disease.err) {
				t.Errorf("%v at change %d: %v", disease.err, step, err)
			}
			left := append(m.held("a"), m.torn()...)
			if disease.err == unix.EROFS {
				continue // what is there can only stay; Del says so below
			}
			// One failed removal cannot be repeated; everything else is undone.
			if len(left) > 0 {
				t.Errorf("%v at change %d: left %v", disease.err, step, left)
			}
		}
	}
}

func TestDelAfterAnInterruptedDelIsDurable(t *testing.T) {
	m := newModel()
	p := newPlugin(Config{DataDir: "/data"}, m)
	if _, err := p.Add(t.Context(), modelRequest("a")); err != nil {
		t.Fatal(err)
	}
	m.fault, _ = killAfter(2) // both files are removed, the directory is not synced
	if err := p.Del(t.Context(), modelRequest("a")); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	m.fault = newModel().fault
	if err := p.Del(t.Context(), modelRequest("a")); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(m.durable, m.names) {
		t.Errorf("durable are %v, visible are %v", m.durable, m.names)
	}
}

func TestDelSaysWhatItCannotRelease(t *testing.T) {
	m := newModel()
	p := newPlugin(Config{DataDir: "/data"}, m)
	if _, err := p.Add(t.Context(), modelRequest("a")); err != nil {
		t.Fatal(err)
	}
	m.fault = func(op, _ string) error {
		if op == "sync" {
			return nil
		}
		return unix.EROFS
	}
	err := p.Del(t.Context(), modelRequest("a"))
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "release 10.0.0.2") || !strings.Contains(err.Error(), "release fd00::2") {
		t.Error(err)
	}
	if err := p.Del(t.Context(), modelRequest("unknown")); err != nil {
		t.Errorf("nothing to release: %v", err)
	}
}

// A file system that is shared between nodes may show a name late.
func TestAnAddressTakenWithoutTheLockIsNotTakenOver(t *testing.T) {
	m := newModel()
	p := newPlugin(Config{DataDir: "/data"}, m)
	m.fault = func(op, name string) error {
		if op == "create" && name == "10.0.0.2" && m.names[name] == nil {
			m.create(name, "foreign\r\neth0", true)
		}
		return nil
	}
	res, err := p.Add(t.Context(), modelRequest("a"))
	if err != nil || res.IPs[0].Address.String() != "10.0.0.3/29" {
		t.Fatalf("%v, %v", res, err)
	}
	if got := m.names["10.0.0.2"].data; got != "foreign\r\neth0" {
		t.Errorf("10.0.0.2 says %q", got)
	}
}
