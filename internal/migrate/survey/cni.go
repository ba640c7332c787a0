package survey

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"braid.dev/braid/internal/confdir/explain"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/migrate/facts"
)

// Where runtimes look when nobody told them otherwise.
const (
	usualConfDir = "/etc/cni/net.d"
	usualBinDir  = "/opt/cni/bin"
)

// cni is what the runtime says, and what is in its directories.
func (s *survey) cni(ctx context.Context) {
	c := &s.node.CNI
	c.ConfDir, c.BinDir = s.ConfDir, s.BinDir
	if s.Runtime != nil {
		s.runtime(ctx, c)
	}
	c.ConfDir = cmp.Or(c.ConfDir, usualConfDir)
	c.BinDir = cmp.Or(c.BinDir, usualBinDir)
	c.Files = s.confFiles(c.ConfDir)
	c.Plugins = s.plugins(c.BinDir)
	c.State = s.state()
}

func (s *survey) runtime(ctx context.Context, c *facts.CNI) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	status, err := s.Runtime.Status(ctx)
	if err != nil {
		s.problem("what the runtime says is not known: %v", err)
		return
	}
	if err := runtimeFacts(status, c); err != nil {
		s.problem("what the runtime says of its networks is not known: %v", err)
	}
	if name := strings.ToLower(status.Name); name == "cri-o" || name == "crio" {
		c.DefaultNetwork = s.crioDefault()
	}
}

// runtimeFacts fills what the runtime says of itself into c. Directories that c
// has are kept.
func runtimeFacts(status cri.Status, c *facts.CNI) error {
	c.Runtime, c.Version = status.Name, status.Version
	c.NetworkReady, c.Message = status.NetworkReady, status.Message
	c.LoadStatus = status.Info["lastCNILoadStatus"]
	seen, err := explain.ParseSeen(status.Info)
	if err != nil {
		return err
	}
	c.MaxConfNum = seen.MaxConfNum
	c.ConfDir = cmp.Or(c.ConfDir, seen.ConfDir)
	for _, n := range seen.Networks {
		c.Loaded = append(c.Loaded, n.Name)
	}
	var dirs struct{ PluginDirs []string }
	if text, ok := status.Info["cniconfig"]; ok && c.BinDir == "" {
		if err := json.Unmarshal([]byte(text), &dirs); err != nil {
			return err
		}
		if len(dirs.PluginDirs) > 0 {
			c.BinDir = dirs.PluginDirs[0]
		}
	}
	return nil
}

var crioDefaultNetwork = regexp.MustCompile(`(?m)^\s*cni_default_network\s*=\s*["']([^"'\n]*)["']`)

// crioDefault is CRI-O's setting cni_default_network, of which it tells nobody.
// Of several files the last one counts.
func (s *survey) crioDefault() string {
	const file, dir = "/etc/crio/crio.conf", "/etc/crio/crio.conf.d"
	files := []string{file}
	entries, _, err := s.host.list(dir, maxEntries)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.problem("CRI-O's settings are not known: %v", err)
	}
	for _, e := range entries {
		files = append(files, path.Join(dir, e.Name()))
	}
	network := ""
	for _, f := range files {
		text, _, err := s.host.read(f, maxText)
		if err != nil {
			continue
		}
		for _, m := range crioDefaultNetwork.FindAllStringSubmatch(text, -1) {
			network = m[1]
		}
	}
	return network
}

// confFiles are the entries of the conf dir, with the text of configurations. A
// directory's name ends in a slash.
func (s *survey) confFiles(dir string) []facts.File {
	var files []facts.File
	for _, e := range s.entries(dir) {
		if e.IsDir() {
			files = append(files, facts.File{Name: e.Name() + "/"})
			continue
		}
		f := facts.File{Name: e.Name()}
		if isConf(e.Name()) {
			f.Text = confText(s.text(path.Join(dir, e.Name())))
		}
		files = append(files, f)
	}
	return files
}

// isConf tells configurations, also those that somebody set aside, from all
// else that CNIs keep beside them, such as access to the cluster.
func isConf(name string) bool {
	return strings.Contains(name, ".conf") || strings.Contains(name, ".json")
}

var secrets = regexp.MustCompile(`(?i)("[^"\\]*(?:token|passw|secret|private_?key|key[-_]?data)[^"\\]*"\s*:\s*)"(?:[^"\\]|\\.)*"?`)

// confText is the text without secrets: some plugins have tokens in their
// configuration. What is not JSON is not told at all.
func confText(text string) string {
	if !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return ""
	}
	return secrets.ReplaceAllString(text, `$1"(not told)"`)
}

// entries lists a directory that may be missing.
func (s *survey) entries(dir string) []fs.DirEntry {
	entries, more, err := s.host.list(dir, maxEntries)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.problem("%v", err)
	}
	if more {
		s.problem("%s has more than %d entries: only some of them are told", dir, maxEntries)
	}
	return entries
}

// text reads a file that is listed; it may be a link to nothing.
func (s *survey) text(file string) string {
	text, more, err := s.host.read(file, maxText)
	if err != nil {
		s.problem("%v", err)
	}
	if more {
		s.problem("%s is cut after %d bytes", file, maxText)
	}
	return text
}

func (s *survey) plugins(dir string) []string {
	var names []string
	for _, e := range s.entries(dir) {
		if s.host.program(dir, e) {
			names = append(names, e.Name())
		}
	}
	return names
}

// stateFiles are files of CNIs whose text is short, and stateDirs directories
// whose files' names tell something: of which container, or at which node.
var (
	stateFiles = []string{
		"/run/flannel/subnet.env", "/var/lib/calico/nodename", "/var/lib/calico/mtu", "/var/lib/weave/weave-netdata.db",
		"/run/cilium/cilium.pid",
	}
	stateDirs = []string{"/var/lib/cni/flannel", "/var/lib/cni/results", "/var/lib/cni/cache", "/run/cilium/state"}
)

// hostLocal is where the plugin of that name keeps the addresses that it gave,
// each a short file, by network.
const hostLocal = "/var/lib/cni/networks"

// state is what CNIs keep outside of the conf dir.
func (s *survey) state() []facts.File {
	var files []facts.File
	for _, name := range stateFiles {
		text, more, err := s.host.read(name, 1024)
		if err != nil {
			continue // another CNI's
		}
		if more || strings.ContainsRune(text, 0) {
			text = ""
		}
		files = append(files, facts.File{Name: name, Text: text})
	}
	for _, dir := range stateDirs {
		for _, e := range s.entries(dir) {
			files = append(files, facts.File{Name: path.Join(dir, e.Name())})
		}
	}
	for _, network := range s.entries(hostLocal) {
		dir := path.Join(hostLocal, network.Name())
		if !network.IsDir() {
			continue
		}
		for _, e := range s.entries(dir) {
			if e.Type().IsRegular() && e.Name() != "lock" {
				text, _, err := s.host.read(path.Join(dir, e.Name()), 256)
				if err == nil {
					files = append(files, facts.File{Name: path.Join(dir, e.Name()), Text: text})
				}
			}
		}
	}
	slices.SortFunc(files, func(a, b facts.File) int { return cmp.Compare(a.Name, b.Name) })
	return files
}
