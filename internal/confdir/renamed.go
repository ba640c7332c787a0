package confdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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

const (
	// guardDir is a directory with the name that Cilium would give Braid's own
	// file: a file cannot be renamed to what is a directory.
	guardDir = OwnFile + CiliumSuffix
	// legacyCilium is Cilium's own file of old versions. Newer ones rename it in
	// every mode, which says nothing about the configurations of others.
	legacyCilium = "05-cilium.conf"

	stopCilium = "set cni.exclusive=false in Cilium's chart (cni-exclusive: \"false\" in the ConfigMap cilium-config) and restart its agents"
)

// renamers say who uses a suffix, and how to stop it.
var renamers = []struct{ suffix, agent, remedy string }{
	{CiliumSuffix, "Cilium", stopCilium},
	{MultusSuffix, "Multus", "start Multus without --rename-conf-file"},
}

// Notice is what those who run the cluster should learn about an agent that
// renames the configurations of others, or harms Braid's own.
type Notice struct {
	// Warning tells that it has done so. Otherwise it may do so.
	Warning bool
	// Text names the agent, the file, what Braid does and what a person can do.
	Text string
}

// noticeRenamed says which configurations an agent has taken away.
func (s *State) noticeRenamed(file string) {
	for _, r := range renamers {
		base, ok := strings.CutSuffix(file, r.suffix)
		var text string
		switch {
		case !ok || !IsConf(base) || file == legacyCilium+CiliumSuffix:
			continue
		case file == guardDir:
			text = fmt.Sprintf("%s renames %s to %s. Braid puts it back, and keeps that name by a directory, so that it happens once; pods that started before that may lack their networks and should be started anew. To stop it for other configurations, %s",
				r.agent, base, file, r.remedy)
		case base == OwnFile:
			text = fmt.Sprintf("%s renames %s to %s. Braid puts it back; pods that started before that may lack their networks and should be started anew. To stop it, %s, then remove %s",
				r.agent, base, file, r.remedy, file)
		default:
			text = fmt.Sprintf("%s has renamed %s to %s, and Braid leaves it so. To use that network again, %s, then rename it back; if nobody needs it, remove it",
				r.agent, base, file, r.remedy)
		}
		s.Notices = append(s.Notices, Notice{Warning: true, Text: text})
		s.note("%s", text)
	}
}

// isRenamed tells whether an agent gave a configuration this name.
func isRenamed(name string) bool {
	var s State
	s.noticeRenamed(name)
	return len(s.Notices) > 0
}

// notices are what is to be told. That Cilium may rename configurations is
// worth a word also when it finds nothing to rename: its mode cannot be seen in
// the directory, and whoever adds a network there needs to know.
func (s State) notices(guarded bool) []Notice {
	all := slices.Clip(s.Notices)
	ciliums := func(g Good) bool { return calls(g.Network, "cilium-cni") }
	if guarded && slices.ContainsFunc(s.Networks, ciliums) {
		all = append(all, Notice{Text: fmt.Sprintf(
			"Cilium renames the configurations of others unless its cni-exclusive is \"false\". It cannot rename %s: the directory %s is in the way. Before you add other networks to the conf dir, %s",
			OwnFile, guardDir, stopCilium)})
	}
	return all
}

// A step is what is to be done about the name that Cilium would give Braid's
// own file.
type step int

const (
	// leave it: a directory has the name.
	leave step = iota
	// occupy the name: nothing has it.
	occupy
	// evict what has the name: Cilium has renamed Braid's file.
	evict
)

func stepFor(exists bool, mode fs.FileMode) step {
	switch {
	case !exists:
		return occupy
	case mode.IsDir():
		return leave
	default:
		return evict
	}
}

// standFirm makes it impossible for Cilium to rename Braid's own file, by a
// directory of the name that it would give it. Cilium ignores that its rename
// fails, and neither it nor a runtime looks into the directory. It reports
// whether Cilium had renamed the file before.
//
// The directory is made on every node. Where Cilium is to come it is too late
// to make it when it has come: it renames the files of others in the very step
// in which it writes its own, and nothing in the conf dir tells of it before.
func standFirm(dir string) (renamed bool, err error) { return StandFirm(dir, OwnFile) }

// StandFirm does for any file of a conf dir what keeps Braid's own from being
// renamed by Cilium: the file may come before or after. RemoveGuard undoes it.
func StandFirm(dir, file string) (renamed bool, err error) {
	guard := file + CiliumSuffix
	name := filepath.Join(dir, guard)
	const tries = 4 // others, Cilium or another daemon, may come in between
	for range tries {
		info, err := os.Lstat(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return renamed, err
		}
		exists, mode := err == nil, fs.FileMode(0)
		if exists {
			mode = info.Mode()
		}
		switch stepFor(exists, mode) {
		case leave:
			return renamed, nil
		case occupy:
			err = os.Mkdir(name, 0o755)
		case evict:
			renamed = true
			err = syscall.Unlink(name) // unlike os.Remove, it leaves directories
		}
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EISDIR) {
			return renamed, fmt.Errorf("take the name %s: %w", guard, err)
		}
	}
	return renamed, fmt.Errorf("take the name %s: others keep taking it", guard)
}

// RemoveGuard undoes StandFirm. There may be nothing to undo.
func RemoveGuard(dir, file string) error {
	err := syscall.Rmdir(filepath.Join(dir, file+CiliumSuffix))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}

// culprit names the agent that has renamed Braid's own file, if it is known.
func culprit(dir string) string {
	if agent, _, remedy, ok := Renamed(dir, OwnFile); ok {
		return agent + " (" + remedy + ")"
	}
	return unknown
}

// unknown is the agent that nothing tells of.
const unknown = "unknown"

// putBack is the notice that somebody who left no trace harmed the own file.
func putBack(how string) Notice {
	return Notice{Warning: true, Text: fmt.Sprintf(
		"%s was %s, by whom is not known, and Braid has put it back; pods that started before that may lack their networks and should be started anew",
		OwnFile, how)}
}

// Renamed tells which agent has renamed a configuration of a conf dir, to what,
// and what a person can do about it.
func Renamed(dir, file string) (agent, to, remedy string, ok bool) {
	for _, r := range renamers {
		if info, err := os.Lstat(filepath.Join(dir, file+r.suffix)); err == nil && !info.IsDir() {
			return r.agent, file + r.suffix, r.remedy, true
		}
	}
	return "", "", "", false
}
