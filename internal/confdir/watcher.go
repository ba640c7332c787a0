// Package confdir keeps Braid first, and the default network second, in the
// directory where a container runtime looks for its networks.
package confdir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"braid.dev/braid/internal/plan"
)

const (
	// settle is how long a Watcher waits for further changes before it looks:
	// whoever removes a file and writes it anew is then seen as having changed
	// it.
	settle = 50 * time.Millisecond
	// pace is the shortest time between two writes of Braid's own file. Against
	// an agent that takes the file away whenever it appears (Cilium with
	// cni-exclusive), it bounds the work and still restores within a second.
	pace = 250 * time.Millisecond
	// tellEvery is how often the log says that Braid's own file was put back:
	// such an agent has it put back several times a second.
	tellEvery = time.Minute
	// noticeEvery is how often a warning is repeated that still holds. The API
	// forgets events after an hour, and one that it could not be given within
	// two minutes is lost.
	noticeEvery = 30 * time.Minute
	// relist is how often the directory is read without any event, as a
	// directory that is mounted over or changed by a network file system
	// produces none.
	relist = 10 * time.Second
	// maxFile is the largest configuration that is read, in bytes.
	maxFile = 1 << 20
)

// Config says what a Watcher watches and writes.
type Config struct {
	// Dir is the conf dir of the runtime, such as /etc/cni/net.d.
	Dir string
	// StateDir is where the last good default network is remembered.
	StateDir string
	// Place is what the shim is told of the daemon. Socket is needed.
	Place Place
	// Changed, if not nil, is called after the default network or another
	// network of the directory changed. It must not block.
	Changed func()
	// Notify, if not nil, is told of agents that rename the configurations of
	// others: each Notice once, and a warning again every half hour as long as it
	// holds, however often an agent does it. It must not block.
	Notify func(Notice)
	// Restored, if not nil, is called each time Braid's own file was put back,
	// because it was "removed", by whatever name it went, or "changed". It must
	// not block.
	Restored func(reason string)
	Log      *slog.Logger
}

// Watcher follows one conf dir. Its methods may be called at any time from any
// goroutine. The networks they return are shared and must not be changed.
type Watcher struct {
	cfg Config
	// Only Run's goroutine uses these.
	watched    map[string]os.FileInfo // by path, as it was when the watch began
	remembered *Good
	written    time.Time         // last write of the own file
	told       time.Time         // when the log last said that it was put back
	untold     int               // how often it was put back since
	own        []byte            // the own file as it was last in order
	said       map[string]string // last problem by topic, to report it once
	guarded    bool              // Cilium cannot rename the own file
	notified   map[Notice]time.Time

	mu    sync.Mutex
	state State
}

// New makes a Watcher that knows what an earlier one remembered in c.StateDir.
// A memory that is unreadable is reported to the log and does not count.
func New(c Config) (*Watcher, error) {
	if c.Dir == "" || c.StateDir == "" || c.Place.Socket == "" {
		return nil, errors.New("watch a conf dir: Dir, StateDir and Place.Socket are needed")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("watch conf dir %s: %w", c.Dir, err)
	}
	c.Dir = dir
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{cfg: c, watched: map[string]os.FileInfo{}, said: map[string]string{}, notified: map[Notice]time.Time{}}
	known, err := recall(c.StateDir)
	if err != nil {
		w.cfg.Log.Warn("the remembered default network is unusable", "err", err)
	}
	w.remembered, w.state.Default = known, known
	return w, nil
}

// Default returns the default network and the name of the file that it came
// from, which may be gone by now. It is not ok as long as none was ever seen.
func (w *Watcher) Default() (n plan.Network, file string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Default == nil {
		return plan.Network{}, "", false
	}
	return w.state.Default.Network, w.state.Default.File, true
}

// First returns the default network and those behind it, in the order in which
// a runtime reads them, n at most.
func (w *Watcher) First(n int) []plan.Network {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.First(n)
}

// OnDisk returns the network of the conf dir that has the given CNI name.
func (w *Watcher) OnDisk(name string) (plan.Network, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.OnDisk(name)
}

// State returns what is in force, with notes for a person.
func (w *Watcher) State() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// Run follows the directory and keeps Braid's own file in it until ctx ends.
// The file stays then: without it the runtime would start pods on the default
// network alone. Trouble with the directory is logged and tried again; the only
// error is that the kernel gives no watch at all.
func (w *Watcher) Run(ctx context.Context) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch conf dir %s: %w", w.cfg.Dir, err)
	}
	defer events.Close()
	ticker := time.NewTicker(relist)
	defer ticker.Stop()
	look := time.NewTimer(0)
	defer look.Stop()
	pending := true // look is set and has not fired
	soon := func(after time.Duration) {
		if !pending {
			look.Reset(after)
			pending = true
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events.Events:
			if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				// A directory that is renamed loses its watch, even if it
				// comes back as the same inode.
				w.unwatch(events, e.Name)
			}
			if w.concerns(e) {
				soon(settle)
			}
		case err := <-events.Errors:
			w.cfg.Log.Warn("events of the conf dir may be lost", "dir", w.cfg.Dir, "err", err)
			soon(settle)
		case <-ticker.C:
			soon(0)
		case <-look.C:
			pending = false
			w.follow(events)
			if wait := w.sync(); wait > 0 {
				soon(wait)
			}
		}
	}
}

// concerns tells whether an event may change anything: one in the directory,
// or one of the directory itself or of a directory on the way to it.
func (w *Watcher) concerns(e fsnotify.Event) bool {
	if filepath.Dir(e.Name) == w.cfg.Dir {
		return IsConf(e.Name) || isRenamed(filepath.Base(e.Name))
	}
	return e.Name == w.cfg.Dir || strings.HasPrefix(w.cfg.Dir, strings.TrimSuffix(e.Name, "/")+"/")
}

// follow watches the directory, if it exists, and the nearest directory above
// it that does, where it would appear or be replaced.
func (w *Watcher) follow(events *fsnotify.Watcher) {
	above := w.above()
	const tries = 16 // a directory of the way may have appeared before the watch
	for range tries {
		w.watch(events, above)
		now := w.above()
		if now == above {
			break
		}
		above = now
	}
	for path := range w.watched {
		if path != w.cfg.Dir && path != above {
			w.unwatch(events, path)
		}
	}
	w.watch(events, w.cfg.Dir)
}

// above is the nearest directory above the conf dir that exists.
func (w *Watcher) above() string {
	above := filepath.Dir(w.cfg.Dir)
	for above != filepath.Dir(above) {
		if _, err := os.Stat(above); err == nil {
			break
		}
		above = filepath.Dir(above)
	}
	return above
}

// watch watches a directory if it exists. A watch belongs to an inode, not to a
// path, so it is renewed when another one has the path.
func (w *Watcher) watch(events *fsnotify.Watcher, path string) {
	info, err := os.Stat(path)
	if err != nil {
		w.unwatch(events, path)
		return // sync reports a directory that cannot be read
	}
	if old, ok := w.watched[path]; ok && os.SameFile(old, info) {
		return
	}
	w.unwatch(events, path)
	err = events.Add(path)
	w.report("watch "+path, err)
	if err == nil {
		w.watched[path] = info
	}
}

func (w *Watcher) unwatch(events *fsnotify.Watcher, path string) {
	if _, ok := w.watched[path]; !ok {
		return
	}
	delete(w.watched, path)
	// A watch whose directory was removed is gone already.
	if err := events.Remove(path); err != nil && !errors.Is(err, fsnotify.ErrNonExistentWatch) {
		w.cfg.Log.Debug("stop watching", "dir", path, "err", err)
	}
}

// sync reads the directory, decides, and makes it so. It returns how long to
// wait before the next look when something remains to be done.
func (w *Watcher) sync() (wait time.Duration) {
	files, err := ReadDir(w.cfg.Dir)
	w.report("read the conf dir", err)
	if err != nil {
		return 0
	}
	before := w.State()
	now := Choose(files, before)
	w.adopt(before, now)
	defer func() { w.notify(now.notices(w.guarded), time.Now()) }()
	if now.Default == nil {
		return 0
	}
	if w.remembered == nil || !w.remembered.equal(*now.Default) {
		err := remember(w.cfg.StateDir, *now.Default)
		w.report("remember the default network", err)
		if err == nil {
			w.remembered = now.Default
		}
	}
	return w.keepOwn(files, OwnConf(now.Default.Network, w.cfg.Place))
}

// adopt puts a state in force and tells who wants to know.
func (w *Watcher) adopt(before, now State) {
	w.mu.Lock()
	w.state = now
	w.mu.Unlock()
	notes := strings.Join(now.Notes, "; ")
	if notes != strings.Join(before.Notes, "; ") && notes != "" {
		w.cfg.Log.Warn("conf dir", "dir", w.cfg.Dir, "notes", notes)
	}
	if now.same(before) {
		return
	}
	if now.Default != nil && (before.Default == nil || !now.Default.equal(*before.Default)) {
		w.cfg.Log.Info("default network", "network", now.Default.Network.Name, "file", now.Default.File)
	}
	if w.cfg.Changed != nil {
		w.cfg.Changed()
	}
}

// notify passes on what was not passed on yet, and warnings again after a while.
func (w *Watcher) notify(notices []Notice, now time.Time) {
	for _, n := range notices {
		if at, told := w.notified[n]; told && (!n.Warning || now.Sub(at) < noticeEvery) {
			continue
		}
		w.notified[n] = now
		if !n.Warning { // warnings are in the log with the other notes
			w.cfg.Log.Info(n.Text, "dir", w.cfg.Dir)
		}
		if w.cfg.Notify != nil {
			w.cfg.Notify(n)
		}
	}
	// What is over is forgotten only then: it may come and go many times a second.
	maps.DeleteFunc(w.notified, func(n Notice, at time.Time) bool {
		return now.Sub(at) >= noticeEvery && !slices.Contains(notices, n)
	})
}

// keepOwn writes Braid's own file unless it is there as it should be, and sees
// to it, before, that Cilium cannot rename it.
func (w *Watcher) keepOwn(files []File, want []byte) (wait time.Duration) {
	own := slices.IndexFunc(files, func(f File) bool { return f.Name == OwnFile })
	inOrder := own >= 0 && files[own].Err == nil && bytes.Equal(files[own].Data, want)
	if wait := pace - time.Since(w.written); !inOrder && wait > 0 {
		return wait
	}
	by := culprit(w.cfg.Dir)
	w.guard()
	if inOrder {
		w.own = want
		return 0
	}
	w.written = time.Now()
	err := replace(w.cfg.Dir, OwnFile, ownTemp, want)
	w.report("write "+OwnFile, err)
	if err != nil {
		return time.Second
	}
	switch {
	case !bytes.Equal(w.own, want):
		w.cfg.Log.Info("wrote Braid's configuration", "dir", w.cfg.Dir, "file", OwnFile)
	case own < 0:
		w.restored("removed")
		w.tellPutBack("it was removed or renamed", "by", by)
		if by == unknown {
			w.notify([]Notice{putBack("removed or renamed")}, time.Now())
		}
	default:
		w.restored("changed")
		w.tellPutBack("it was changed")
		w.notify([]Notice{putBack("changed")}, time.Now())
	}
	w.own = want
	return 0
}

func (w *Watcher) restored(reason string) {
	if w.cfg.Restored != nil {
		w.cfg.Restored(reason)
	}
}

// guard keeps Cilium from renaming the own file. Without that the file is put
// back each time.
func (w *Watcher) guard() {
	renamed, err := standFirm(w.cfg.Dir)
	w.report("keep Cilium from renaming "+OwnFile, err)
	w.guarded = err == nil
	if renamed && w.guarded {
		w.cfg.Log.Warn("Cilium renamed Braid's configuration; a directory of the name that it gave it keeps that from happening again",
			"dir", w.cfg.Dir, "directory", guardDir, "remedy", stopCilium)
	}
}

// tellPutBack logs that the own file was put back, and how often since the log
// last said so.
func (w *Watcher) tellPutBack(why string, args ...any) {
	w.untold++
	if !w.told.IsZero() && time.Since(w.told) < tellEvery {
		return
	}
	w.cfg.Log.Warn("put Braid's configuration back: "+why, append(args, "times", w.untold, "dir", w.cfg.Dir, "file", OwnFile)...)
	w.told, w.untold = time.Now(), 0
}

// report logs a problem when it appears, changes or ends, not each time it is
// met: what is tried again every few seconds would fill the log.
func (w *Watcher) report(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if w.said[what] == text {
		return
	}
	w.said[what] = text
	if err != nil {
		w.cfg.Log.Error("cannot "+what+"; trying again", "dir", w.cfg.Dir, "err", err)
	} else {
		w.cfg.Log.Info("can "+what+" again", "dir", w.cfg.Dir)
	}
}

// ReadDir reads the configurations of a directory, and those of plugins in the
// directories in it. Anything else that is no regular file is left out, as
// runtimes do and as a pipe would block.
func ReadDir(dir string) ([]File, error) {
	files, err := readFiles(dir, func(name string, isDir bool) bool { return IsConf(name) || isRenamed(name) && !isDir })
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err != nil || !info.IsDir() || IsConf(e.Name()) || isRenamed(e.Name()) {
			continue
		}
		plugins, err := readFiles(path, func(name string, _ bool) bool { return filepath.Ext(name) == ".conf" })
		if err == nil && len(plugins) > 0 { // one that cannot be read is nobody's, as most directories here
			files = append(files, File{Name: e.Name(), Plugins: plugins})
		}
	}
	return files, nil
}

// readFiles reads the regular files of a directory whose names are wanted.
func readFiles(dir string, want func(name string, isDir bool) bool) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		if !want(e.Name(), e.IsDir()) {
			continue
		}
		if !IsConf(e.Name()) {
			files = append(files, File{Name: e.Name()}) // only the name matters
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path) // a symbolic link counts as what it points to
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink == 0:
			continue // removed since the directory was read
		case err == nil && !info.Mode().IsRegular():
			continue
		}
		f := File{Name: e.Name(), Err: err}
		if err == nil {
			f.Data, f.Err = readFile(path)
		}
		if errors.Is(f.Err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		files = append(files, f)
	}
	return files, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return data, err
}
