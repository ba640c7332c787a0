package leftover

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"braid.dev/braid/internal/migrate/leftover/spec"
)

// disk is the host's file system. Nothing is reached through a link that leads
// out of it.
type disk struct {
	root *os.Root
	// hosts says that it is not another mount namespace's, so that what is mounted
	// can be changed.
	hosts bool
}

func (n Node) disk() (*disk, error) {
	dir := firstOf(n.Root, "/")
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &disk{root: root, hosts: path.Clean(dir) == "/"}, nil
}

// match lists the files of a pattern.
func (d *disk) match(glob string) ([]string, error) {
	found, err := fs.Glob(d.root.FS(), glob)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", glob, err)
	}
	slices.Sort(found)
	return found, d.readable(glob)
}

// readable returns the error that a pattern's directory cannot be read with, if
// it is there: fs.Glob passes over it.
func (d *disk) readable(glob string) error {
	dir := path.Dir(glob)
	for strings.ContainsAny(dir, `*?[\`) {
		dir = path.Dir(dir)
	}
	f, err := d.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// find lists the files that are the network's own.
func (d *disk) find(l spec.Spec, use InUse, v living) ([]finding, error) {
	var found []finding
	var errs []error
	seen := map[string]bool{}
	for _, p := range l.Files {
		matches, err := d.match(p.Glob)
		errs = append(errs, err)
		for _, name := range matches {
			if seen[name] {
				continue
			}
			seen[name] = true
			more, err := d.judge(p.Kind, name, l, v)
			errs = append(errs, err)
			if claimedFile(use.Other, name) {
				for i := range more {
					more[i].inUse = both(use.Other)
				}
			}
			found = append(found, more...)
		}
	}
	return found, errors.Join(errs...)
}

// judge says what one file of that kind comes to, usually one finding.
func (d *disk) judge(kind spec.FileKind, name string, l spec.Spec, v living) ([]finding, error) {
	f := finding{kind: "file", name: "/" + name, stage: inFiles, inUse: v.network(),
		remove: func(context.Context, *hands) error { return d.removeAll(name) }}
	switch kind {
	case spec.Ranges:
		return d.ranges(f, name, v)
	case spec.Cache:
		text, err := d.root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		var cache struct{ ContainerID, NetworkName string }
		if json.Unmarshal(text, &cache) != nil { // half written: by its name it is ours
			return []finding{f}, err
		}
		if cache.NetworkName != l.Network {
			return nil, err
		}
		f.inUse = v.container(cache.ContainerID)
		return []finding{f}, err
	case spec.Attachment:
		f.inUse = v.container(path.Base(name))
	case spec.Conf:
		first, err := d.firstConf(path.Dir(name))
		if err != nil {
			return nil, err
		}
		if first == path.Base(name) {
			f.inUse = "the runtime takes it: no other configuration comes before it"
		}
	case spec.Foreign:
		if d.sameWithout(name, ".cilium_bak") {
			break // it is back in its place
		}
		f.inUse = fmt.Sprintf("somebody's configuration that %s put aside: put it back, or remove it", l.Profile)
	case spec.Mount:
		return d.mounted(f, name)
	case spec.Pin:
		f.kind, f.stage = "bpf", inPins
	}
	if d.emptyMount(name) {
		return nil, nil
	}
	if at, err := d.mountBelow(name); err != nil {
		return nil, err
	} else if at != "" && f.inUse == "" {
		f.inUse = "something is mounted on /" + at
	}
	return []finding{f}, nil
}

// sameWithout says that the file without the ending is there, with the same text.
func (d *disk) sameWithout(name, ending string) bool {
	aside, err := d.root.ReadFile(name)
	if err != nil {
		return false
	}
	back, err := d.root.ReadFile(strings.TrimSuffix(name, ending))
	return err == nil && string(aside) == string(back)
}

// ranges judges a directory of host-local. Addresses of containers that are no
// more go one by one, and the directory when no others are left.
func (d *disk) ranges(dir finding, name string, v living) ([]finding, error) {
	entries, err := fs.ReadDir(d.root.FS(), name)
	if err != nil {
		return nil, err
	}
	var found []finding
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // the lock, or which address was given out last
		}
		text, err := d.root.ReadFile(name + "/" + e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		id, _, _ := strings.Cut(string(text), "\n")
		file := name + "/" + e.Name()
		reason := firstOf(v.container(strings.TrimSpace(id)), v.addr(addr))
		dir.inUse = firstOf(dir.inUse, reason)
		found = append(found, finding{kind: "file", name: "/" + file, stage: inFiles, inUse: reason,
			remove: func(context.Context, *hands) error { return d.removeAll(file) }})
	}
	return append(found, dir), nil
}

// firstConf is the configuration that a runtime takes from a conf dir.
func (d *disk) firstConf(dir string) (string, error) {
	entries, err := fs.ReadDir(d.root.FS(), dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries { // sorted by name, bytewise, as runtimes sort them
		if slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) && !e.IsDir() {
			return e.Name(), nil
		}
	}
	return "", nil
}

// mounted judges a directory that the CNI mounted something on. In a container
// the host's mounts can be seen, and not changed.
func (d *disk) mounted(f finding, name string) ([]finding, error) {
	mount, err := d.isMount(name)
	if err != nil || !mount {
		return nil, err
	}
	f.kind = "mount"
	if !d.hosts {
		f.inUse = firstOf(f.inUse, "umount it on the host, or reboot")
	}
	f.stage = inRules // before the directory itself goes
	f.remove = func(ctx context.Context, h *hands) error {
		if _, err := h.host.Run(ctx, nil, "umount", "/"+name); err != nil {
			return fmt.Errorf("umount /%s: %w", name, err)
		}
		return nil
	}
	return []finding{f}, nil
}

// device is that of a file's file system; false when it is not there.
func (d *disk) device(name string) (dev uint64, isDir bool, err error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return 0, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false, fmt.Errorf("/%s: no device", name)
	}
	return st.Dev, info.IsDir(), nil
}

// isMount reports whether something is mounted on the file itself.
func (d *disk) isMount(name string) (bool, error) {
	above, _, err := d.device(path.Dir(name))
	if err != nil {
		return false, err
	}
	dev, _, err := d.device(name)
	return err == nil && dev != above, err
}

// mountBelow is the first directory below name that something else is mounted
// on; empty if there is none, or no such directory.
func (d *disk) mountBelow(name string) (string, error) {
	dev, isDir, err := d.device(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !isDir {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return d.mountIn(name, dev)
}

func (d *disk) mountIn(name string, above uint64) (string, error) {
	dev, isDir, err := d.device(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if dev != above {
		return name, nil
	}
	if !isDir {
		return "", nil
	}
	entries, err := fs.ReadDir(d.root.FS(), name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if at, err := d.mountIn(name+"/"+e.Name(), dev); at != "" || err != nil {
			return at, err
		}
	}
	return "", nil
}

// removeAll removes a file, or a directory with all that is in it. It does not
// go where something else is mounted below: what is there may be anything, such
// as the machine's cgroups. A directory that is itself a mount is emptied.
func (d *disk) removeAll(name string) error {
	dev, isDir, err := d.device(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mount, err := d.isMount(name)
	if err != nil || !mount || !isDir {
		return errors.Join(err, d.removeIn(name, dev))
	}
	entries, err := fs.ReadDir(d.root.FS(), name)
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, d.removeIn(name+"/"+e.Name(), dev))
	}
	return errors.Join(errs...)
}

// emptyMount says that a directory is nothing but the place of a mount.
func (d *disk) emptyMount(name string) bool {
	mount, err := d.isMount(name)
	if err != nil || !mount {
		return false
	}
	entries, err := fs.ReadDir(d.root.FS(), name)
	return err == nil && len(entries) == 0
}

func (d *disk) removeIn(name string, above uint64) error {
	dev, isDir, err := d.device(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case dev != above:
		return fmt.Errorf("remove /%s: something is mounted there", name)
	}
	if isDir {
		entries, err := fs.ReadDir(d.root.FS(), name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if err := d.removeIn(name+"/"+e.Name(), dev); err != nil {
				return err
			}
		}
	}
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func claimedFile(l spec.Spec, name string) bool {
	return slices.ContainsFunc(l.Files, func(p spec.FilePattern) bool {
		ok, _ := path.Match(p.Glob, name)
		return ok && p.Kind != spec.Foreign // those are nobody's but their owner's
	})
}

// inside reports whether a directory is the network's own, or below one that is.
func inside(l spec.Spec, dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		if claimedFile(l, dir) {
			return true
		}
	}
	return false
}

// others writes down what else is in the directories where the network's files
// would be. Directories of the whole system are too busy to be compared.
func (d *disk) others(l, other spec.Spec, s *snapshot) error {
	busy := []string{".", "run", "tmp", "var", "var/run", "var/lib", "var/log", "opt", "etc"}
	var dirs []string
	conf := map[string]bool{}
	for _, p := range l.Files {
		dir := path.Dir(p.Glob)
		if strings.ContainsAny(dir, `*?[\`) || slices.Contains(busy, dir) || inside(l, dir) || inside(other, dir) {
			continue
		}
		conf[dir] = conf[dir] || p.Kind == spec.Conf
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	var errs []error
	for _, dir := range slices.Compact(dirs) {
		entries, err := fs.ReadDir(d.root.FS(), dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, e := range entries {
			name := dir + "/" + e.Name()
			if claimedFile(l, name) || claimedFile(other, name) {
				continue
			}
			line := name
			if conf[dir] && e.Type().IsRegular() {
				text, err := d.root.ReadFile(name)
				if err != nil {
					continue // gone meanwhile
				}
				line += fmt.Sprintf(" %x", sha256.Sum256(text))
			}
			s.addOnly("file", line)
		}
	}
	return errors.Join(errs...)
}
