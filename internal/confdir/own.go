package confdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"braid.dev/braid/internal/plan"
)

const (
	// OwnFile is Braid's own configuration. Its name sorts before the names
	// that other networks use, so that the runtime calls Braid.
	OwnFile = "00-braid.conflist"
	// GateFile is the configuration of a node in the middle of a migration (package
	// confswitch). It sorts before all, Braid's own among them.
	GateFile = "00-braid-migrate.conflist"
	// ownTemp lies in the same directory, as containerd overlooks files that
	// are moved in from another one, and has an extension that no runtime loads.
	ownTemp = ".00-braid.conflist.tmp"
	// ownName is the name of the network in Braid's configuration.
	ownName = "braid"
)

// Place is where the shim finds the daemon, in paths of the host.
type Place struct {
	// Socket is where the daemon listens.
	Socket string
	// Notes is the directory of what it is told while it is away. Empty is the
	// shim's default.
	Notes string
}

// OwnConf returns Braid's configuration for a node with the given default
// network.
//
// A runtime with libcni 1.2 or later takes the highest of cniVersions that it
// knows, and thereby STATUS and GC; an older one does not know the key and
// takes cniVersion.
func OwnConf(network plan.Network, p Place) []byte {
	type plugin struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket"`
		Notes        string          `json:"notes,omitempty"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	own := plugin{Type: plan.OwnType, Socket: p.Socket, Notes: p.Notes, Capabilities: OwnCapabilities(network)}
	text, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{"1.0.0", []string{"0.4.0", "1.0.0", "1.1.0"}, ownName, []plugin{own}}, "", "  ")
	if err != nil {
		panic(err) // strings and booleans always have a JSON form
	}
	return append(text, '\n')
}

// OwnCapabilities are what Braid needs of the runtime: the arguments that the
// default network asks for, which the runtime would not pass otherwise, and the
// pod's annotations, for when the API server is away.
func OwnCapabilities(network plan.Network) map[string]bool {
	own := map[string]bool{plan.PodAnnotations: true}
	for _, p := range network.Plugins {
		for capability, declared := range p.Capabilities {
			if declared {
				own[capability] = true
			}
		}
	}
	return own
}

// Withdraw takes Braid's own configuration out of the directory, and what was
// put beside it: from then on the runtime calls the default network itself.
// There may be nothing to take.
func Withdraw(dir string) error {
	for _, name := range []string{OwnFile, ownTemp} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// What Cilium made of it is none of the runtime's, but would come back.
	renamed := filepath.Join(dir, guardDir)
	if info, err := os.Lstat(renamed); err == nil && info.Mode().IsRegular() {
		if err := os.Remove(renamed); err != nil {
			return err
		}
	}
	if err := RemoveGuard(dir, OwnFile); err != nil {
		return err
	}
	if err := SyncDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Replace writes a file of a directory so that a reader, also one after a power
// cut, sees either all of the old content or all of the new, in a way that
// containerd takes notice of. What a crash leaves has a name that no runtime
// loads, and the next Replace overwrites it.
func Replace(dir, name string, data []byte, mode fs.FileMode) error {
	return replaceMode(dir, name, "."+name+".tmp", data, mode)
}

// replace is Replace for root's eyes only. Temp is a name in the same directory
// that nobody reads.
func replace(dir, name, temp string, data []byte) (err error) {
	return replaceMode(dir, name, temp, data, 0o600)
}

func replaceMode(dir, name, temp string, data []byte, mode fs.FileMode) (err error) {
	f, err := lockTemp(filepath.Join(dir, temp))
	if err != nil {
		return err
	}
	renamed := false
	defer func() {
		if err != nil && !renamed {
			err = errors.Join(err, os.Remove(f.Name()))
		}
		f.Close() // gives the lock back; Sync has reported what matters
	}()
	if err := errors.Join(f.Truncate(0), f.Chmod(mode)); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	renamed = true
	return SyncDir(dir)
}

// lockTemp opens and locks the temporary file: two daemons, the old and the new
// one of an update, may write at the same time.
func lockTemp(path string) (*os.File, error) {
	const tries = 16 // each one lost means that another daemon finished a write
	for range tries {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The holder before us may have renamed what we opened.
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Lstat(path); err == nil && os.SameFile(locked, named) {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("lock %s: others keep replacing it", path)
}

// SyncDir makes what was renamed or removed in a directory outlast a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil // the file system cannot sync a directory
}
