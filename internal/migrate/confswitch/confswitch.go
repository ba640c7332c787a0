// Package confswitch decides, in the middle of a migration, which network a
// node's container runtime gives to new pods, by the files of its conf dir.
//
// Between the two networks' own configurations stands a gate: a configuration
// that sorts before all others and whose plugin, braid-cni, refuses new pods for
// a while or gives them the other network, and has every sandbox that ends taken
// down by the network that made it. The gate is written before the
// configuration behind it goes, and goes after the other one has come, so that
// at every moment the runtime has one to load.
package confswitch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
)

// Config is one node's part in a migration. All paths are as this process sees
// them, but CacheDir.
type Config struct {
	// Dir is the conf dir of the runtime, such as /etc/cni/net.d.
	Dir string
	// StateDir holds a directory for each migration with what the conf dir held
	// before it, such as /var/lib/braid/migrate.
	StateDir string
	// Migration is its name.
	Migration string
	From, To  v1alpha1.Network
	// Probes is the namespace of the pods that a closed gate lets through.
	Probes string
	// Message is what those learn that it does not let through.
	Message string
	// CacheDir is where libcni remembers its attachments, as the runtime sees it;
	// empty means /var/lib/cni.
	CacheDir string
	// BinDirs are the runtime's directories of plugins. When there are any, no
	// gate is written before the plugins of both networks are in them.
	BinDirs []string
}

// BackupDir is where the conf dir of before the migration is kept.
func (c Config) BackupDir() string { return filepath.Join(c.StateDir, c.Migration, "conf") }

func (c Config) check() error {
	switch {
	case c.Dir == "" || c.StateDir == "":
		return errors.New("the conf dir and the state dir must be given")
	case c.Migration == "" || c.Migration != filepath.Base(c.Migration) || c.Migration[0] == '.':
		return fmt.Errorf("migration %q: that is no name of an object", c.Migration)
	}
	for _, n := range []v1alpha1.Network{c.From, c.To} {
		if n.ConfFile != filepath.Base(n.ConfFile) || !confdir.IsConf(n.ConfFile) {
			return fmt.Errorf("profile %s: %q is no name of a configuration that a runtime loads", n.Profile, n.ConfFile)
		}
		if n.ConfFile == confdir.OwnFile || n.ConfFile == confdir.GateFile {
			return fmt.Errorf("profile %s: the name %s is Braid's", n.Profile, n.ConfFile)
		}
	}
	if c.From.ConfFile == c.To.ConfFile && c.To.Conf == "" {
		return fmt.Errorf("both networks have the name %s, and the Migration does not say what is in the new one", c.To.ConfFile)
	}
	return nil
}

// tries bounds Set against agents that write their own files meanwhile.
const tries = 4

// Set makes the conf dir what the wanted state is: whatever it holds, and
// wherever an earlier Set was interrupted. What it writes outlasts a power cut.
// On error the runtime has a configuration to load, that of before or the wanted
// one, and Set can be called again.
//
// Files that are not of the two networks stay as they are. One that sorts before
// the configuration that is wanted is an error.
//
// With Source or Target, sandboxes that are on the other network by then are
// taken down by the wrong one: move or remove them before, probes too.
func Set(ctx context.Context, c Config, want v1alpha1.RuntimeState) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("set the runtime to %s: %w", want, err)
		}
	}()
	if err := c.check(); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.backup(); err != nil {
		return fmt.Errorf("back up %s: %w", c.Dir, err)
	}
	for range tries {
		w, err := c.world()
		if err != nil {
			return err
		}
		ops, err := Plan(w, want)
		if err != nil {
			return errors.Join(err, c.culprits())
		}
		if len(ops) == 0 {
			return nil
		}
		if err := c.havePlugins(w, want); err != nil {
			return err
		}
		for _, op := range ops {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := c.do(op); err != nil {
				return fmt.Errorf("%s: %w", op, err)
			}
		}
	}
	return errors.Join(fmt.Errorf("others keep changing %s", c.Dir), c.culprits())
}

// lock keeps the old and the new daemon of an update apart.
func (c Config) lock() (unlock func(), err error) {
	dir := filepath.Join(c.StateDir, c.Migration)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another daemon is at it (%s): %w", f.Name(), err), f.Close())
	}
	return func() { f.Close() }, nil
}

// world reads everything that a plan is made from.
func (c Config) world() (World, error) {
	files, err := confdir.ReadDir(c.Dir)
	if err != nil {
		return World{}, err
	}
	files = slices.DeleteFunc(files, func(f confdir.File) bool { return !confdir.IsConf(f.Name) })
	w := World{Migration: c.Migration, Files: files, Probes: c.Probes, Message: c.Message, CacheDir: c.CacheDir}
	guard, err := os.Lstat(filepath.Join(c.Dir, confdir.GateFile+confdir.CiliumSuffix))
	w.Guarded = err == nil && guard.IsDir()
	for _, n := range []v1alpha1.Network{c.From, c.To} {
		if _, err := os.Lstat(filepath.Join(c.Dir, n.ConfFile+AsideSuffix)); err == nil {
			w.Aside = append(w.Aside, n.ConfFile)
		}
	}
	backup := filepath.Join(c.BackupDir(), c.From.ConfFile)
	// The source's is the node's own, byte for byte, whatever the others have.
	if w.Source, err = c.own(c.From, file(backup), text(c.From.Conf)); err != nil {
		return World{}, err
	}
	backup = filepath.Join(c.BackupDir(), c.To.ConfFile)
	w.Target, err = c.own(c.To, text(c.To.Conf), file(backup))
	return w, err
}

// place is where a configuration may be found.
type place func(*fs.FileMode) ([]byte, error)

func file(path string) place {
	return func(mode *fs.FileMode) ([]byte, error) { return readConf(path, mode) }
}

func text(conf string) place { return func(*fs.FileMode) ([]byte, error) { return []byte(conf), nil } }

// own is a network's own configuration on this node, from the first of places
// that has one, else as it is in the conf dir: set aside, in use, or renamed by
// an agent before there was a backup.
func (c Config) own(n v1alpha1.Network, places ...place) (Conf, error) {
	for _, name := range []string{n.ConfFile + AsideSuffix, n.ConfFile, n.ConfFile + confdir.CiliumSuffix} {
		places = append(places, file(filepath.Join(c.Dir, name)))
	}
	conf := Conf{File: n.ConfFile, Mode: 0o600}
	for _, read := range places {
		data, err := read(&conf.Mode)
		if err != nil {
			return conf, err
		}
		if len(data) > 0 {
			conf.Data = data
			return conf, nil
		}
	}
	return conf, nil
}

// readConf returns nothing for what does not exist or is no file.
func readConf(path string, mode *fs.FileMode) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err == nil && len(data) > 0 {
		*mode = info.Mode().Perm()
	}
	return data, err
}

// do performs one step so that it outlasts a power cut.
func (c Config) do(op Op) error {
	path := filepath.Join(c.Dir, op.File)
	switch op.Do {
	case Guard:
		_, err := confdir.StandFirm(c.Dir, op.File)
		return err
	case Write:
		return confdir.Replace(c.Dir, op.File, op.Data, op.Mode)
	case SetAside:
		if err := os.Rename(path, path+AsideSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case Remove:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case Unguard:
		return confdir.RemoveGuard(c.Dir, op.File)
	}
	return confdir.SyncDir(c.Dir)
}

// culprits names the agents that have renamed one of the files in question.
func (c Config) culprits() error {
	var errs []error
	for _, file := range []string{confdir.GateFile, c.From.ConfFile, c.To.ConfFile} {
		if agent, to, remedy, ok := confdir.Renamed(c.Dir, file); ok {
			errs = append(errs, fmt.Errorf("%s has renamed %s to %s: %s", agent, file, to, remedy))
		}
	}
	return errors.Join(errs...)
}

// havePlugins refuses a gate that could not do its work.
func (c Config) havePlugins(w World, want v1alpha1.RuntimeState) error {
	if len(c.BinDirs) == 0 || !IsGate(want) {
		return nil
	}
	types, err := w.plugins()
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range types {
		if !slices.ContainsFunc(c.BinDirs, func(dir string) bool {
			info, err := os.Stat(filepath.Join(dir, name))
			return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
		}) && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("plugins %q are not in %q", missing, c.BinDirs)
	}
	return nil
}

// Possible says why the node's runtime could not be set to one of the states,
// as the conf dir is now. Nothing is changed, and there need not be a backup.
func Possible(c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	w, err := c.world()
	if err != nil {
		return err
	}
	for _, want := range States() {
		_, err := Plan(w, want)
		if err == nil {
			err = c.havePlugins(w, want)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("the runtime could not be set to %s: %w", want, err), c.culprits())
		}
	}
	return nil
}

// Observe tells from the files which state the conf dir is in. It is empty, with
// the reason as the error, when it is in none of the known.
func Observe(c Config) (v1alpha1.RuntimeState, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	w, err := c.world()
	if err != nil {
		return "", err
	}
	state, err := w.state()
	if err != nil {
		return "", errors.Join(err, c.culprits())
	}
	return state, nil
}

// Finish removes what a migration that is over has set aside. The backup stays.
func Finish(c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	state, err := Observe(c)
	if err != nil {
		return err
	}
	if IsGate(state) {
		return fmt.Errorf("finish: the runtime is at %s still", state)
	}
	for _, n := range []v1alpha1.Network{c.From, c.To} {
		if err := os.Remove(filepath.Join(c.Dir, n.ConfFile+AsideSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return confdir.SyncDir(c.Dir)
}
