package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// daemons are the programs that init keeps running.
type daemons struct {
	procs *reaper
	mu    sync.Mutex
	all   map[string]*daemon
}

func newDaemons(procs *reaper) *daemons {
	return &daemons{procs: procs, all: map[string]*daemon{}}
}

// daemon is one supervised program. Its fields belong to daemons.mu.
type daemon struct {
	command control.Command
	restart bool
	log     *os.File
	proc    process
	running bool
	starts  int
	exit    string
	stop    chan struct{} // closed: do not start again
	ended   chan struct{} // closed: will not run again
}

const (
	restartDelay = time.Second
	// patience is how long a daemon may take to end after SIGTERM.
	patience = 10 * time.Second
	// parting is the same when the guest powers off: its memory is lost anyway.
	parting = time.Second
)

// start executes the command and supervises it from then on.
func (ds *daemons) start(name string, c control.Command, restart bool) error {
	if name == "" || name != filepath.Base(name) {
		return fmt.Errorf("daemon name %q is no file name", name)
	}
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d, ok := ds.all[name]; ok && !isClosed(d.ended) {
		return fmt.Errorf("daemon %s runs already (process %d)", name, d.proc.pid)
	}
	log, err := os.OpenFile(filepath.Join(control.LogDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("daemon %s: %w", name, err)
	}
	d := &daemon{
		command: c, restart: restart, log: log,
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	out, err := ds.execute(d)
	if err != nil {
		log.Close()
		return fmt.Errorf("daemon %s: %w", name, err)
	}
	ds.all[name] = d
	go ds.supervise(d, out)
	return nil
}

// execute starts the program of d once. The caller holds ds.mu.
func (ds *daemons) execute(d *daemon) (*output, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, err := newOutput(through{d.log})
	if err != nil {
		return nil, err
	}
	d.proc, err = ds.procs.start(d.command, [3]*os.File{null, out.w, out.w})
	out.started()
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, suffix(out.finish()))
	}
	d.running, d.starts = true, d.starts+1
	return out, nil
}

func suffix(err error) string {
	if err == nil {
		return ""
	}
	return "; " + err.Error()
}

// through writes to a file of the host such that the host sees it at once:
// without it, output would stay in the guest's page cache for seconds, and be
// lost with a guest that dies.
type through struct{ f *os.File }

func (t through) Write(p []byte) (int, error) {
	n, err := t.f.Write(p)
	if err == nil {
		err = unix.SyncFileRange(int(t.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return n, err
}

// supervise follows one daemon until it is stopped, or ended and not to be
// started again.
func (ds *daemons) supervise(d *daemon, out *output) {
	defer close(d.ended)
	defer d.log.Close()
	for {
		status := <-d.proc.done
		err := out.finish()
		ds.mu.Lock()
		d.running, d.exit = false, describe(status)+suffix(err)
		ds.mu.Unlock()
		if !d.restart {
			return
		}
		select {
		case <-d.stop:
			return
		case <-time.After(restartDelay):
		}
		if out = ds.again(d); out == nil {
			return
		}
	}
}

// again starts the program of d once more, unless it was stopped meanwhile.
func (ds *daemons) again(d *daemon) *output {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if isClosed(d.stop) {
		return nil
	}
	out, err := ds.execute(d)
	if err != nil {
		d.exit = err.Error()
		return nil
	}
	return out
}

// stop ends a daemon for good and returns when it is gone.
func (ds *daemons) stop(name string) { ds.end(name, patience) }

func (ds *daemons) end(name string, limit time.Duration) {
	ds.mu.Lock()
	d, ok := ds.all[name]
	if ok && !isClosed(d.stop) {
		close(d.stop)
	}
	if ok && d.running {
		d.proc.signal(unix.SIGTERM)
	}
	ds.mu.Unlock()
	if !ok {
		return
	}
	select {
	case <-d.ended:
		return
	case <-time.After(limit):
	}
	ds.mu.Lock()
	if d.running {
		d.proc.signal(unix.SIGKILL)
	}
	ds.mu.Unlock()
	<-d.ended
}

// stopAll ends every daemon before the guest powers off.
func (ds *daemons) stopAll() {
	ds.mu.Lock()
	names := slices.Collect(maps.Keys(ds.all))
	ds.mu.Unlock()
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() { ds.end(name, parting) })
	}
	all.Wait()
}

func (ds *daemons) signal(name string, sig syscall.Signal) error {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d, ok := ds.all[name]
	if !ok || !d.running {
		return fmt.Errorf("daemon %s does not run", name)
	}
	d.proc.signal(sig)
	return nil
}

func (ds *daemons) list() []control.Daemon {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	var list []control.Daemon
	for _, name := range slices.Sorted(maps.Keys(ds.all)) {
		d := ds.all[name]
		s := control.Daemon{Name: name, Starts: d.starts, Exit: d.exit}
		if d.running {
			s.PID = d.proc.pid
		}
		list = append(list, s)
	}
	return list
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
