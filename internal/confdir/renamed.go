package confdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The suffixes by which agents are known that rename the configurations of
// others.
const (
	// CiliumSuffix is what Cilium appends to every configuration but its own,
	// as long as its cni-exclusive is true.
	CiliumSuffix = ".cilium_bak"
	// MultusSuffix is what Multus appends to the configuration that it wraps,
	// when it is started with --rename-conf-file.
	MultusSuffix = ".old"
)

// renamers say who uses a suffix, and how to stop it.
var renamers = []struct{ suffix, agent, remedy string }{
	{CiliumSuffix, "Cilium", "set cni-exclusive to \"false\" in the ConfigMap cilium-config and restart the agents"},
	{MultusSuffix, "Multus", "start Multus without --rename-conf-file"},
}

// noteRenamed says which configurations an agent has taken away.
func (s *State) noteRenamed(file string) {
	for _, r := range renamers {
		base, ok := strings.CutSuffix(file, r.suffix)
		switch {
		case !ok || !isConf(base):
		case base == OwnFile:
			s.note("%s renames %s, and pods may start without Braid before it is put back: %s, then remove %s", r.agent, base, r.remedy, file)
		default:
			s.note("%s has renamed %s: to use that network again, %s, then rename it back", r.agent, base, r.remedy)
		}
	}
}

// isRenamed tells whether an agent gave a configuration this name.
func isRenamed(name string) bool {
	var s State
	s.noteRenamed(name)
	return len(s.Notes) > 0
}

// standFirm makes it impossible for Cilium to rename Braid's own file again,
// once it has done so: a file cannot be renamed to what is a directory. Neither
// Cilium nor a runtime looks into it. It reports whether it has done that now.
func standFirm(dir string) (bool, error) {
	taken := filepath.Join(dir, OwnFile+CiliumSuffix)
	info, err := os.Lstat(taken)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := os.Remove(taken); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Mkdir(taken, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	return true, nil
}

// culprit names the agent that has renamed Braid's own file, if it is known.
func culprit(dir string) string {
	for _, r := range renamers {
		if _, err := os.Lstat(filepath.Join(dir, OwnFile+r.suffix)); err == nil {
			return r.agent + " (" + r.remedy + ")"
		}
	}
	return "unknown"
}
