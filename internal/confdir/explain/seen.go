package explain

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// Seen is what a running runtime reports through the CRI.
type Seen struct {
	// ConfDir and MaxConfNum are its settings; an empty ConfDir means that it
	// does not tell.
	ConfDir    string
	MaxConfNum int
	// Dir is the conf dir that is explained.
	Dir string
	// Networks are those that it has loaded, without the loopback; nil means
	// that it does not tell.
	Networks []SeenNetwork
	// LoadError is what its last load of the directory ended with.
	LoadError string
	// NotReady is why its network is not ready, empty if it is.
	NotReady string
	// Classes are its runtime classes with settings of their own.
	Classes []Class
}

// SeenNetwork is a network in a runtime's memory.
type SeenNetwork struct {
	Name, IfName string
	// Plugins are the configurations of the plugins, in order.
	Plugins []string
}

// Class is a runtime class.
type Class struct {
	Name       string
	ConfDir    string
	MaxConfNum int
}

// checkSeen compares the directory with what the runtime made of it.
func (e *explainer) checkSeen() {
	s := e.Seen
	if s == nil {
		return
	}
	if s.ConfDir != "" && s.ConfDir != s.Dir {
		e.find(RuntimeSettings, "the runtime's conf dir is %s, explained is %s", s.ConfDir, s.Dir)
	}
	if s.ConfDir != "" && s.MaxConfNum != e.MaxConfNum {
		e.find(RuntimeSettings, "the runtime's max_conf_num is %d, assumed is %d", s.MaxConfNum, e.MaxConfNum)
	}
	if s.LoadError != "" {
		e.find(RuntimeFailed, "the runtime's last load ended with: %s", s.LoadError)
	}
	if s.NotReady != "" {
		e.find(RuntimeNotReady, "the runtime says: %s", s.NotReady)
	}
	for _, c := range s.Classes {
		switch {
		case c.ConfDir != "":
			e.find(ClassNetworks, "pods of the runtime class %s get the networks of %s", c.Name, c.ConfDir)
		case c.MaxConfNum != 0:
			e.find(ClassLimit, "the runtime class %s sets cni_max_conf_num %d without cni_conf_dir", c.Name, c.MaxConfNum)
		}
	}
	if s.Networks == nil {
		return
	}
	if difference := e.differs(s.Networks); difference != "" {
		e.find(RuntimeDiffers, "%s", difference)
	}
}

// differs names the first difference between the directory and a runtime's
// memory.
func (e *explainer) differs(seen []SeenNetwork) string {
	for i := range max(len(seen), len(e.loaded)) {
		switch {
		case i >= len(e.loaded):
			return fmt.Sprintf("the runtime has the network %q as %s, which the directory does not give", seen[i].Name, seen[i].IfName)
		case i >= len(seen):
			return fmt.Sprintf("the runtime has not loaded %s", e.loaded[i].file)
		case seen[i].Name != e.loaded[i].name:
			return fmt.Sprintf("%s is the network %q in the runtime, %s says %q", seen[i].IfName, seen[i].Name, e.loaded[i].file, e.loaded[i].name)
		case seen[i].IfName != e.out.Networks[i].IfName:
			return fmt.Sprintf("%q is %s in the runtime, not %s", seen[i].Name, seen[i].IfName, e.out.Networks[i].IfName)
		case !e.loaded[i].same(seen[i].Plugins):
			return fmt.Sprintf("the runtime has another version of %s than the directory", e.loaded[i].file)
		}
	}
	return ""
}

// same tells whether the plugins are those of the runtime.
func (n network) same(seen []string) bool {
	return slices.EqualFunc(n.plugins, seen, func(p *libcni.PluginConfig, text string) bool {
		var a, b any
		return json.Unmarshal(p.Bytes, &a) == nil && json.Unmarshal([]byte(text), &b) == nil && reflect.DeepEqual(a, b)
	})
}

// ParseSeen reads the verbose part of containerd's answer to the CRI's Status:
// the entries "cniconfig", "config" and "lastCNILoadStatus". CRI-O has none of
// them, and nothing is known then.
func ParseSeen(info map[string]string) (Seen, error) {
	var s Seen
	text, ok := info["cniconfig"]
	if !ok {
		return s, nil
	}
	var cni struct {
		PluginConfDir    string
		PluginMaxConfNum int
		Networks         []struct {
			IFName string
			Config struct {
				Name    string
				Plugins []struct{ Source string }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &cni); err != nil {
		return s, fmt.Errorf("cniconfig: %w", err)
	}
	s.ConfDir, s.MaxConfNum, s.Networks = cni.PluginConfDir, cni.PluginMaxConfNum, []SeenNetwork{}
	for _, n := range cni.Networks {
		if n.IFName == "lo" {
			continue
		}
		seen := SeenNetwork{Name: n.Config.Name, IfName: n.IFName}
		for _, p := range n.Config.Plugins {
			seen.Plugins = append(seen.Plugins, p.Source)
		}
		s.Networks = append(s.Networks, seen)
	}
	if load := info["lastCNILoadStatus"]; load != "OK" {
		s.LoadError = load
	}
	s.Classes = parseClasses(info["config"])
	return s, nil
}

// parseClasses reads the runtime classes that have CNI settings of their own.
// It asks for little, as this part is containerd's configuration as it is.
func parseClasses(config string) []Class {
	var c struct {
		Containerd struct {
			Runtimes map[string]struct {
				ConfDir    string `json:"cniConfDir"`
				MaxConfNum int    `json:"cniMaxConfNum"`
			} `json:"runtimes"`
		} `json:"containerd"`
	}
	if json.Unmarshal([]byte(config), &c) != nil {
		return nil
	}
	var out []Class
	for name, r := range c.Containerd.Runtimes {
		if r.ConfDir != "" || r.MaxConfNum != 0 {
			out = append(out, Class{Name: name, ConfDir: r.ConfDir, MaxConfNum: r.MaxConfNum})
		}
	}
	slices.SortFunc(out, func(a, b Class) int { return strings.Compare(a.Name, b.Name) })
	return out
}
