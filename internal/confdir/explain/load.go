package explain

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// network is a configuration as a runtime reads it.
type network struct {
	file    string
	name    string
	version string
	plugins []*libcni.PluginConfig
	// source is the list, in the form in which containerd reports it.
	source    []byte
	disableGC bool
	// fromDir is how many of the plugins, the last ones, come from files of
	// the directory pluginDir.
	fromDir   int
	pluginDir string
}

// read reads a candidate as the runtime's libcni does.
func (e *explainer) read(f File) (network, error) {
	switch {
	case f.Kind == Special:
		return network{}, errors.New("no regular file")
	case f.Kind == Directory:
		return network{}, errors.New("is a directory")
	case f.Err != nil:
		return network{}, f.Err
	case strings.HasSuffix(f.Path, ".conflist"):
		return e.readList(f)
	}
	return readSingle(f)
}

// readSingle reads a configuration of one plugin.
func readSingle(f File) (network, error) {
	//lint:ignore SA1019 the runtimes still load such files
	conf, err := libcni.ConfFromBytes(f.Data)
	if err != nil {
		return network{}, plain(err)
	}
	//lint:ignore SA1019 the runtimes still load such files
	list, err := libcni.ConfListFromConf(conf)
	if err != nil {
		return network{}, plain(err)
	}
	return fromList(f.Path, list), nil
}

func (e *explainer) readList(f File) (network, error) {
	data, err := e.Runtime.downgrade(f.Data)
	if err != nil {
		return network{}, plain(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return network{}, plain(err)
	}
	n := fromList(f.Path, list)
	if e.Runtime.lib >= lib13 && !list.LoadOnlyInlinedPlugins {
		extra, err := e.pluginsIn(n.name)
		if err != nil {
			return network{}, err
		}
		n.plugins = append(n.plugins, extra...)
		n.fromDir, n.pluginDir = len(extra), pluginDir(n.name)
	}
	if len(n.plugins) == 0 {
		return network{}, errors.New("no plugin configs found")
	}
	return n, nil
}

func fromList(file string, list *libcni.NetworkConfigList) network {
	return network{
		file: file, name: list.Name, version: list.CNIVersion, plugins: slices.Clone(list.Plugins),
		source: list.Bytes, disableGC: list.DisableGC,
	}
}

// downgrade changes a list so that the newest libcni reads it as that of the
// runtime would: keys that an older one does not know are gone, and what it
// refuses is an error.
func (r Runtime) downgrade(data []byte) ([]byte, error) {
	if r.lib >= lib13 {
		return data, nil
	}
	var list map[string]any
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	if _, ok := list["name"]; !ok {
		return nil, errors.New("no name")
	}
	if _, ok := list["plugins"]; !ok {
		return nil, errors.New("no 'plugins' key")
	}
	delete(list, "loadOnlyInlinedPlugins")
	if r.lib < lib12 {
		delete(list, "cniVersions")
		delete(list, "disableGC")
		if check, ok := list["disableCheck"]; ok {
			if _, ok := check.(bool); !ok {
				return nil, fmt.Errorf("invalid disableCheck type %T", check)
			}
		}
	}
	return json.Marshal(list)
}

// pluginsIn reads the plugins of a network from the directory that has the
// network's name (libcni 1.3 and later). Whatever keeps that directory from
// being read, other than its absence, makes the list invalid.
func (e *explainer) pluginsIn(name string) ([]*libcni.PluginConfig, error) {
	dir := pluginDir(name)
	if err := e.passable(name); err != nil {
		return nil, fmt.Errorf("the plugins of %q are looked for in the directory of that name: %w", name, err)
	}
	var out []*libcni.PluginConfig
	for _, f := range e.Files {
		if path.Dir(f.Path) != dir || filepath.Ext(f.Path) != ".conf" || f.Kind == Directory && !f.Link {
			continue
		}
		if f.Kind != Regular || f.Err != nil {
			return nil, fmt.Errorf("%s: no readable file", f.Path)
		}
		p, err := libcni.NetworkPluginConfFromBytes(f.Data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, plain(err))
		}
		out = append(out, p)
	}
	return out, nil
}

// pluginDir is where libcni 1.3 looks for plugins of a network, relative to the
// conf dir. Nothing keeps a name from leading elsewhere.
func pluginDir(name string) string { return path.Clean("./" + name) }

// passable refuses the names that the kernel refuses for a directory, and those
// that are files.
func (e *explainer) passable(name string) error {
	const maxName, maxPath = 255, 3800 // NAME_MAX; PATH_MAX less the conf dir's
	if strings.ContainsRune(name, 0) {
		return errors.New("invalid argument")
	}
	clean := pluginDir(name)
	parts := strings.Split(clean, "/")
	for i, part := range parts {
		if len(part) > maxName || len(clean) > maxPath {
			return errors.New("file name too long")
		}
		at := strings.Join(parts[:i+1], "/")
		j := slices.IndexFunc(e.Files, func(f File) bool { return f.Path == at })
		if j < 0 {
			return nil // absent, or outside of the conf dir
		}
		if e.Files[j].Kind != Directory {
			return fmt.Errorf("%s is not a directory", at)
		}
	}
	return nil
}

// plain takes the library's own preface off an error.
func plain(err error) error {
	text := err.Error()
	for _, preface := range []string{"error parsing configuration list: ", "error parsing configuration: "} {
		text = strings.ReplaceAll(text, preface, "")
	}
	return errors.New(strings.Replace(text, "failed to parse plugin config", "plugin", 1))
}

// field decodes one key of a plugin's configuration, leniently: a value of
// another type counts as none.
func field[T any](conf []byte, key string) (value T, ok bool) {
	var keys map[string]json.RawMessage
	if json.Unmarshal(conf, &keys) != nil || keys[key] == nil {
		return value, false
	}
	if json.Unmarshal(keys[key], &value) != nil {
		var zero T
		return zero, false
	}
	return value, true
}
