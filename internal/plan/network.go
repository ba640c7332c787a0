package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	// maxNetwork is the largest configuration of a network, in bytes. Those of
	// the largest networks known are a few kilobytes long.
	maxNetwork = 64 << 10
	// maxPlugins is the longest chain of plugins.
	maxPlugins = 32
)

// OwnType is the plugin type of Braid's own configuration.
const OwnType = "braid-cni"

// PodAnnotations is the capability by which containerd and CRI-O pass on the
// annotations of the pod, a map of strings in runtimeConfig.
const PodAnnotations = "io.kubernetes.cri.pod-annotations"

// cniVersions are the versions of the CNI specification that a network may be
// written for, oldest first.
var cniVersions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// ParseNetwork reads a CNI configuration list, or a single configuration as a
// list of one, such as a NetworkAttachmentDefinition's spec.config or a file of
// the conf dir. The given name is used when data has none (NPWG specification
// 1.3, section 3.4.1); a configuration without any name is refused.
//
// The highest version that cniVersion and cniVersions offer and Braid knows is
// chosen, as libcni does; without both it is 0.1.0, as every plugin assumes.
//
// Errors are of type *Error and give broken JSON's place as line:column.
func ParseNetwork(data []byte, name string) (Network, error) {
	if len(data) > maxNetwork {
		return Network{}, invalid("%d bytes are too long; %d are allowed", len(data), maxNetwork)
	}
	data = bytes.TrimSpace(data)
	if err := shallow(data); err != nil {
		return Network{}, invalid("%w", err)
	}
	ms, err := members(data)
	if err != nil {
		return Network{}, invalid("%w", err)
	}
	if callsBraid(data) {
		return Network{}, invalid("plugin type %q: %w", OwnType, ErrSelf)
	}
	var n Network
	if n.Name, err = networkName(ms, name); err != nil {
		return Network{}, invalid("%w", err)
	}
	if n.CNIVersion, err = networkVersion(ms); err != nil {
		return Network{}, &Error{Code: types.ErrIncompatibleCNIVersion, Err: err}
	}
	plugins := []json.RawMessage{data}
	if list, ok := lookup(ms, "plugins"); ok {
		if n.DisableCheck, err = boolOf(ms, "disableCheck"); err != nil {
			return Network{}, invalid("%w", err)
		}
		if n.DisableGC, err = boolOf(ms, "disableGC"); err != nil {
			return Network{}, invalid("%w", err)
		}
		if plugins, err = elements(list, maxPlugins); err != nil {
			return Network{}, invalid("plugins: %w", err)
		}
		if len(plugins) == 0 {
			return Network{}, invalid("plugins: the list is empty")
		}
	}
	for i, conf := range plugins {
		p, err := parsePlugin(conf)
		if err != nil {
			if len(plugins) > 1 || len(conf) != len(data) {
				err = fmt.Errorf("plugin %d: %w", i+1, err)
			}
			return Network{}, invalid("%w", err)
		}
		n.Plugins = append(n.Plugins, p)
	}
	return n, nil
}

// AppendPlugins returns a configuration list with the plugins behind it that dir
// has for its name, as the directory beside the list has them for libcni 1.3 and
// later. The list says with loadOnlyInlinedPlugins that it wants none; what is
// returned with plugins appended says so too. A list without any is returned as
// it is.
func AppendPlugins(list []byte, dir func(name string) [][]byte) ([]byte, error) {
	ms, err := members(list)
	if err != nil {
		return nil, err
	}
	only, err := boolOf(ms, onlyInlined)
	if err != nil {
		return nil, err
	}
	name, err := networkName(ms, "")
	if err != nil || only {
		return list, nil // ParseNetwork says what is wrong with a name
	}
	more := dir(name)
	if len(more) == 0 {
		return list, nil
	}
	var plugins []json.RawMessage
	if value, ok := lookup(ms, "plugins"); ok {
		if plugins, err = elements(value, maxPlugins); err != nil {
			return nil, fmt.Errorf("plugins: %w", err)
		}
	}
	for _, conf := range more {
		if _, err := members(conf); err != nil {
			return nil, err
		}
		plugins = append(plugins, bytes.TrimSpace(conf))
	}
	text := append([]byte{'['}, bytes.Join(rawBytes(plugins), []byte(", "))...)
	return setMembers(list, []member{{key: "plugins", value: append(text, ']')}, {key: onlyInlined, value: []byte("true")}})
}

// onlyInlined is the key by which a list does without the plugins of a directory.
const onlyInlined = "loadOnlyInlinedPlugins"

func rawBytes(list []json.RawMessage) [][]byte {
	out := make([][]byte, len(list))
	for i, raw := range list {
		out[i] = raw
	}
	return out
}

func parsePlugin(conf json.RawMessage) (Plugin, error) {
	ms, err := members(conf)
	if err != nil {
		return Plugin{}, err
	}
	p := Plugin{Conf: slices.Clone(conf)}
	value, _ := lookup(ms, "type")
	if p.Type, err = pluginType(value); err != nil {
		return Plugin{}, fmt.Errorf("type: %w", err)
	}
	if p.Type == "" {
		return Plugin{}, fmt.Errorf("type: missing; it names the plugin, such as bridge")
	}
	if value, _ := lookup(ms, "ipam"); !isNull(value) {
		ipam, err := members(value)
		if err != nil {
			return Plugin{}, fmt.Errorf("ipam of plugin %s: %w", p.Type, err)
		}
		value, _ := lookup(ipam, "type")
		if p.IPAM, err = pluginType(value); err != nil {
			return Plugin{}, fmt.Errorf("ipam type of plugin %s: %w", p.Type, err)
		}
	}
	if value, _ := lookup(ms, "capabilities"); !isNull(value) {
		if err := json.Unmarshal(value, &p.Capabilities); err != nil {
			return Plugin{}, fmt.Errorf("capabilities of plugin %s: want an object of booleans, such as {\"ips\": true}", p.Type)
		}
	}
	return p, nil
}

// pluginType reads the name of a plugin. It becomes the name of a program, so
// it must not lead out of the directories that are searched for it.
func pluginType(value json.RawMessage) (string, error) {
	s, err := stringOf(value)
	if err != nil {
		return "", err
	}
	if s == "." || s == ".." || strings.ContainsAny(s, "/\\\x00") {
		return "", fmt.Errorf("%s is no plugin name; a bare name without a slash is", quote(s))
	}
	return s, nil
}

// validName is the form of a network name (CNI specification 1.1, section 1).
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

func networkName(ms []member, fallback string) (string, error) {
	value, _ := lookup(ms, "name")
	name, err := stringOf(value)
	if err != nil {
		return "", fmt.Errorf("name: %w", err)
	}
	if name == "" {
		name = fallback
	}
	if name == "" {
		return "", fmt.Errorf("name: missing")
	}
	if !validName.MatchString(name) {
		return "", fmt.Errorf("name %s: a network name begins with a letter or digit, followed by letters, digits, '_', '.' or '-'", quote(name))
	}
	return name, nil
}

func networkVersion(ms []member) (string, error) {
	value, _ := lookup(ms, "cniVersion")
	version, err := stringOf(value)
	if err != nil {
		return "", fmt.Errorf("cniVersion: %w", err)
	}
	offered := []string{version}
	if value, _ := lookup(ms, "cniVersions"); !isNull(value) {
		if err := json.Unmarshal(value, &offered); err != nil {
			return "", fmt.Errorf("cniVersions: want a list of strings")
		}
		offered = append(offered, version)
	}
	best := -1
	for _, v := range offered {
		best = max(best, slices.Index(cniVersions, v))
	}
	switch {
	case best >= 0:
		return cniVersions[best], nil
	case len(offered) == 1 && version == "":
		return cniVersions[0], nil
	default:
		return "", fmt.Errorf("cniVersion %s: unknown; Braid knows %s", quote(strings.Join(offered, " ")), strings.Join(cniVersions, ", "))
	}
}

// boolOf reads a boolean, which libcni also takes as a string.
func boolOf(ms []member, key string) (bool, error) {
	value, _ := lookup(ms, key)
	if isNull(value) {
		return false, nil
	}
	switch strings.ToLower(strings.Trim(string(value), `"`)) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%s: want true or false, have %s", key, quote(string(value)))
}

// callsBraid tells whether any object of a configuration has Braid's own type.
// It looks everywhere, as plugins that delegate (flannel, Multus, sbr) hide the
// configuration of the next plugin under keys of their own, and a request that
// came back to the daemon would start itself over and over.
func callsBraid(data []byte) bool {
	// Nothing but itself and an escape of one of its characters spells the name.
	if !bytes.Contains(data, []byte(OwnType)) && !bytes.Contains(data, []byte(`\u`)) {
		return false
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		return false // the caller has verified data
	}
	return hasType(tree, OwnType)
}

func hasType(tree any, name string) bool {
	switch t := tree.(type) {
	case map[string]any:
		if t["type"] == name {
			return true
		}
		for _, v := range t {
			if hasType(v, name) {
				return true
			}
		}
	case []any:
		for _, v := range t {
			if hasType(v, name) {
				return true
			}
		}
	}
	return false
}
