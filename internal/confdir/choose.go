package confdir

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"braid.dev/braid/internal/plan"
)

// File is one file of the conf dir as it was read.
type File struct {
	Name string
	Data []byte
	// Err says why Data could not be read.
	Err error
	// Plugins are the files *.conf of a directory: the plugins at the end of the
	// list that has the directory's name.
	Plugins []File
}

// Good is a network that can be attached, and where it comes from.
type Good struct {
	// File is the name of the file, without its directory.
	File    string
	Data    []byte
	Network plan.Network
}

// State is what is in force in a conf dir. The zero State knows nothing.
type State struct {
	// Default is the default network, nil as long as none was ever seen. Its
	// file may be gone or broken by now.
	Default *Good
	// Networks are all networks of the directory but Braid's own, in the order
	// in which a runtime reads them.
	Networks []Good
	// Notes says what a person should know about the directory: files that are
	// skipped, versions that stay in force although their file changed, and
	// agents that rename the configurations of others.
	Notes []string
	// Notices are those of the Notes that tell of such an agent.
	Notices []Notice
}

// Choose decides what is in force, from the files of the directory and from
// what was in force before.
//
// The default network is the first usable one in byte order, the order of
// containerd and CRI-O, that is not Braid's own or Multus'. A file that cannot be read or
// parsed, as it is half written for example, counts with its last good version
// and is skipped without one. When nothing usable is left, the default network
// of before stays: pods that are started while an agent replaces its file get
// the network that the node had, not none.
func Choose(files []File, before State) State {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	var now State
	for _, f := range files {
		now.noticeRenamed(f.Name)
		if f.Name == OwnFile || !IsConf(f.Name) {
			continue
		}
		if f.Name == GateFile {
			now.note("%s: this node is in the middle of a migration, which asks Braid for the pods that it lets start", f.Name)
			continue
		}
		if f.Name < OwnFile {
			now.note("%s sorts before %s: the runtime uses it instead of Braid; rename it", f.Name, OwnFile)
		}
		network, err := plan.Network{}, f.Err
		if err == nil {
			f.Data, err = withPlugins(f, files)
		}
		if err == nil {
			network, err = plan.ParseNetwork(f.Data, "")
		}
		good, kept := before.version(f.Name)
		switch {
		case err == nil && isMultus(network):
			now.note("%s is passed over: Braid attaches pods to their networks as Multus does, and would do so a second time; remove Multus", f.Name)
		case err == nil:
			now.Networks = append(now.Networks, Good{File: f.Name, Data: f.Data, Network: network})
		case errors.Is(err, plan.ErrSelf):
			now.note("%s is skipped: %v", f.Name, err)
		case kept:
			now.note("%s: its last good version stays in force: %v", f.Name, err)
			now.Networks = append(now.Networks, good)
		default:
			now.note("%s is skipped: %v", f.Name, err)
		}
	}
	switch {
	case len(now.Networks) > 0:
		now.Default = &now.Networks[0]
	case before.Default != nil && !isMultus(before.Default.Network):
		now.Default = before.Default
		now.note("no usable network is left: %s of %s stays the default network", before.Default.Network.Name, before.Default.File)
	}
	return now
}

// withPlugins is the configuration with the plugins that a directory of the
// network's name adds to a list.
func withPlugins(f File, files []File) ([]byte, error) {
	if filepath.Ext(f.Name) != ".conflist" {
		return f.Data, nil
	}
	var broken error
	data, err := plan.AppendPlugins(f.Data, func(name string) (plugins [][]byte) {
		i := slices.IndexFunc(files, func(dir File) bool { return dir.Name == name && len(dir.Plugins) > 0 })
		if i < 0 {
			return nil
		}
		for _, p := range files[i].Plugins {
			if p.Err == nil && !json.Valid(p.Data) {
				p.Err = errors.New("broken JSON")
			}
			if p.Err != nil && broken == nil {
				broken = fmt.Errorf("%s/%s: %w", name, p.Name, p.Err)
			}
			plugins = append(plugins, p.Data)
		}
		return plugins
	})
	if broken != nil {
		return nil, broken
	}
	return data, err
}

// isMultus tells the configuration by which a runtime calls Multus from a
// network. Multus is one program or, with a daemon, a shim.
func isMultus(n plan.Network) bool { return calls(n, "multus", "multus-shim") }

func calls(n plan.Network, types ...string) bool {
	return slices.ContainsFunc(n.Plugins, func(p plan.Plugin) bool { return slices.Contains(types, p.Type) })
}

// IsConf tells whether a runtime would load a file of this name.
func IsConf(name string) bool {
	switch filepath.Ext(name) {
	case ".conf", ".conflist", ".json":
		return true
	}
	return false
}

// version returns the good version of a file that is in force.
func (s State) version(file string) (Good, bool) {
	for _, g := range s.Networks {
		if g.File == file {
			return g, true
		}
	}
	if s.Default != nil && s.Default.File == file {
		return *s.Default, true
	}
	return Good{}, false
}

// First are the default network and those behind it, in order, n at most.
func (s State) First(n int) []plan.Network {
	if s.Default == nil || n <= 0 {
		return nil
	}
	list := []plan.Network{s.Default.Network}
	for i, g := range s.Networks {
		if i > 0 && len(list) < n { // the first of them is the default network
			list = append(list, g.Network)
		}
	}
	return list
}

// OnDisk looks a network up by its CNI name; lists go before single
// configurations (NPWG specification 1.3, section 3.4).
func (s State) OnDisk(name string) (plan.Network, bool) {
	for _, list := range []bool{true, false} {
		for _, g := range s.Networks {
			if g.Network.Name == name && list == (filepath.Ext(g.File) == ".conflist") {
				return g.Network, true
			}
		}
	}
	return plan.Network{}, false
}

func (s *State) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// same tells whether two states attach the same networks.
func (s State) same(t State) bool {
	if (s.Default == nil) != (t.Default == nil) || s.Default != nil && !s.Default.equal(*t.Default) {
		return false
	}
	return slices.EqualFunc(s.Networks, t.Networks, Good.equal)
}

func (g Good) equal(h Good) bool { return g.File == h.File && bytes.Equal(g.Data, h.Data) }
