// Package explain says what a container runtime makes of its conf dir: which
// files it loads, in which order, as which interfaces, what it ignores and what
// is dangerous.
//
// No specification covers this directory. What is decided here is what
// containerd (through go-cni) and CRI-O (through ocicni) do in the versions
// named by Runtimes. Explain is a pure function over the files.
package explain

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"braid.dev/braid/internal/confdir"
)

// File is one entry of the conf dir, or of a directory below it.
type File struct {
	// Path is relative to the conf dir and has slashes.
	Path string
	Kind Kind
	// Link tells that the entry is a symbolic link; Kind is then that of its
	// target.
	Link bool
	Data []byte
	// Err says why a file could not be read.
	Err error
}

// Kind is what a File is.
type Kind int

// The kinds of files that a runtime treats differently.
const (
	Regular Kind = iota
	Directory
	// Special is a pipe or a device: reading it may never end.
	Special
)

// Input is everything that an explanation depends on.
type Input struct {
	// Files are all entries of the conf dir; those below its directories matter
	// where a runtime reads them as plugins of a network.
	Files   []File
	Runtime Runtime
	// MaxConfNum is containerd's max_conf_num: how many files it loads at most,
	// 0 for all. CRI-O has no such setting and ignores it.
	MaxConfNum int
	// DefaultNetwork is CRI-O's cni_default_network, empty for the first.
	DefaultNetwork string
	// Programs are the plugin binaries by type; nil means unknown. A type that
	// is missing from a map has no binary.
	Programs map[string]Program
	// Attached are the attachments that libcni's cache knows of.
	Attached []Attached
	// Seen is what a running runtime reports, nil for none asked.
	Seen *Seen
}

// Program is a plugin binary.
type Program struct {
	// Versions are those of the CNI specification that it supports, by its own
	// word; empty when it did not say.
	Versions []string
}

// Attached is one attachment of a pod that was made earlier.
type Attached struct{ Network, Container, IfName string }

// Explanation is what a runtime makes of a conf dir. Its JSON form is a
// contract.
type Explanation struct {
	// Networks are those that every pod gets, in order.
	Networks []Network `json:"networks"`
	// Ignored are the other entries of the directory, in byte order.
	Ignored  []Ignored `json:"ignored"`
	Findings []Finding `json:"findings"`
	// Error says why the runtime has no network at all; pods cannot start then.
	Error string `json:"error"`
}

// Network is one network that a runtime attaches every pod to.
type Network struct {
	File   string `json:"file"`
	Name   string `json:"name"`
	IfName string `json:"ifName"`
}

// Ignored is an entry of the directory that gives pods no network.
type Ignored struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// Finding is something that a person should know.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	Fix      string   `json:"fix"`
}

// Explain says what in.Runtime makes of the files.
func Explain(in Input) Explanation {
	in.Files = slices.Clone(in.Files)
	slices.SortFunc(in.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	e := explainer{Input: in, out: Explanation{Networks: []Network{}, Ignored: []Ignored{}, Findings: []Finding{}}}
	if in.Runtime.crio {
		e.loadCRIO()
	} else {
		e.loadContainerd()
	}
	e.ignoreOthers()
	for _, rule := range []func(){
		e.checkNone, e.checkNames, e.checkFiles, e.checkCounts, e.checkRoutes, e.checkSubnets, e.checkCapabilities, e.checkAddresses,
		e.checkVersions, e.checkCRIO, e.checkBraid, e.checkAgents, e.checkMultus, e.checkPrograms, e.checkAttached, e.checkSeen,
	} {
		rule()
	}
	slices.SortStableFunc(e.out.Findings, func(a, b Finding) int {
		return cmp.Compare(a.Severity.rank(), b.Severity.rank())
	})
	return e.out
}

// explainer is an explanation in the making.
type explainer struct {
	Input
	out Explanation
	// loaded are the networks of out, as they were read.
	loaded []network
	// dormant are the other configurations that could be read.
	dormant []network
}

func (e *explainer) find(code Code, format string, args ...any) {
	rule := Rules[code]
	e.out.Findings = append(e.out.Findings, Finding{
		Code: code, Severity: rule.Severity, Message: fmt.Sprintf(format, args...), Fix: rule.Fix,
	})
}

func (e *explainer) ignore(file, format string, args ...any) {
	e.out.Ignored = append(e.out.Ignored, Ignored{File: file, Reason: fmt.Sprintf(format, args...)})
}

func (e *explainer) use(n network) {
	e.out.Networks = append(e.out.Networks, Network{File: n.file, Name: n.name, IfName: fmt.Sprintf("eth%d", len(e.loaded))})
	e.loaded = append(e.loaded, n)
}

// loadContainerd follows go-cni: the first MaxConfNum files in byte order, and
// none at all when one of them is broken.
func (e *explainer) loadContainerd() {
	files := e.candidates()
	limit := len(files)
	if e.MaxConfNum > 0 {
		limit = min(limit, e.MaxConfNum)
	}
	var good []network
	for i, f := range files[:limit] {
		n, err := e.read(f)
		if err == nil {
			good = append(good, n)
			continue
		}
		e.out.Error = fmt.Sprintf("containerd loads no network at all: %s: %v", f.Path, err)
		e.broken(f, err)
		for _, n := range good {
			e.ignore(n.file, "not loaded, because %s is broken: the whole load fails", f.Path)
		}
		e.ignore(f.Path, "broken: %v", err)
		for _, later := range files[i+1:] {
			e.ignore(later.Path, "never read: the load ends at %s", f.Path)
		}
		e.dormant = good
		return
	}
	for _, n := range good {
		e.use(n)
	}
	for _, f := range files[limit:] {
		e.ignore(f.Path, "beyond max_conf_num %d: never read", e.MaxConfNum)
		n, err := e.read(f)
		if err != nil {
			e.find(DormantFile, "%s is broken: %v; it lies beyond max_conf_num %d and does no harm until that is raised or a file before it goes away", f.Path, err, e.MaxConfNum)
			continue
		}
		e.dormant = append(e.dormant, n)
	}
}

// broken reports a file that ends the load.
func (e *explainer) broken(f File, err error) {
	if f.Kind == Special {
		e.find(SpecialFile, "%s is no regular file, and lies within max_conf_num: reading it may block the runtime for ever", f.Path)
		return
	}
	e.find(InvalidFile, "%s: %v; containerd then loads no file at all, the node becomes NotReady, and pods can neither start nor end", f.Path, err)
}

// loadCRIO follows ocicni: all files in byte order without the broken ones; of
// networks with one name the first; and then one of them is the default.
func (e *explainer) loadCRIO() {
	var good []network
	for _, f := range e.candidates() {
		n, err := e.read(f)
		switch {
		case err != nil:
			if f.Kind == Special {
				e.find(SpecialFile, "%s is no regular file: reading it may block the runtime for ever", f.Path)
			} else {
				e.find(SkippedFile, "%s: %v; CRI-O skips the file and says so only in its log", f.Path, err)
			}
			e.ignore(f.Path, "broken: %v", err)
			continue
		case e.unusable(n) != "":
			e.ignore(f.Path, "%s: CRI-O skips the file", e.unusable(n))
			e.dormant = append(e.dormant, n)
			continue
		case n.name == "":
			n.name = f.Path
		}
		if same := slices.IndexFunc(good, func(g network) bool { return g.name == n.name }); same >= 0 {
			e.ignore(f.Path, "a network named %q is already in %s", n.name, good[same].file)
			e.find(SameName, "%s and %s both define the network %q; CRI-O keeps the first", good[same].file, f.Path, n.name)
			continue
		}
		good = append(good, n)
	}
	for _, n := range good {
		wanted := len(e.loaded) == 0
		if e.DefaultNetwork != "" {
			wanted = n.name == e.DefaultNetwork
		}
		if wanted {
			e.use(n)
			continue
		}
		e.dormant = append(e.dormant, n)
		e.ignore(n.file, "CRI-O attaches its default network only")
	}
}

// unusable says why CRI-O, which asks all plugins of a file for their versions,
// would skip it. Without knowing the programs nothing is said.
func (e *explainer) unusable(n network) string {
	if missing := e.missingProgram(n); missing != "" {
		return fmt.Sprintf("the plugin %q has no binary", missing)
	}
	if e.Programs == nil {
		return ""
	}
	for _, p := range n.plugins {
		wanted := cmp.Or(n.version, "0.1.0")
		if !slices.Contains(e.Programs[p.Network.Type].Versions, wanted) {
			return fmt.Sprintf("the plugin %q does not support CNI %s", p.Network.Type, wanted)
		}
	}
	return ""
}

// missingProgram is the first plugin type without a binary, if that is known.
func (e *explainer) missingProgram(n network) string {
	if e.Programs == nil {
		return ""
	}
	for _, p := range n.plugins {
		if _, ok := e.Programs[p.Network.Type]; !ok {
			return p.Network.Type
		}
	}
	return ""
}

// candidates are the entries that runtimes take for configurations: those with
// one of three extensions that are not directories themselves.
func (e *explainer) candidates() []File {
	var out []File
	for _, f := range e.Files {
		if e.top(f) && isConf(f.Path) && (f.Kind != Directory || f.Link) {
			out = append(out, f)
		}
	}
	return out
}

func (e *explainer) top(f File) bool { return !strings.Contains(f.Path, "/") }

func isConf(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// ignoreOthers lists what is no configuration.
func (e *explainer) ignoreOthers() {
	for _, f := range e.Files {
		switch {
		case !e.top(f):
		case f.Kind == Directory && !f.Link:
			if by := e.pluginsOf(f.Path); by != "" {
				e.find(PluginDirectory, "the .conf files in the directory %s are plugins of the network in %s", f.Path, by)
				continue
			}
			if f.Path == confdir.OwnFile+ciliumSuffix {
				e.ignore(f.Path, "a directory of Braid's: Cilium cannot rename "+confdir.OwnFile+" to it")
				continue
			}
			e.ignore(f.Path, "a directory")
		case isConf(f.Path):
		case strings.HasSuffix(f.Path, ciliumSuffix):
			e.ignore(f.Path, "renamed by Cilium, whose exclusive mode does not tolerate other configurations")
		default:
			e.ignore(f.Path, "only .conf, .conflist and .json are loaded")
		}
	}
	slices.SortStableFunc(e.out.Ignored, func(a, b Ignored) int { return cmp.Compare(a.File, b.File) })
}

// pluginsOf names the file of the loaded network that has plugins in dir.
func (e *explainer) pluginsOf(dir string) string {
	for _, n := range e.loaded {
		if n.pluginDir == dir && n.fromDir > 0 {
			return n.file
		}
	}
	return ""
}
