package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/e2e/recorder/note"
)

// A17: after a reboot every pod of the node starts at once, each with a plugin
// that takes 60 MB. None of that is the daemon's memory; as many run as may, the
// others wait their turn; and those that end do not wait behind those that begin.
func TestA17TwoHundredAddsAtOnce(t *testing.T) {
	t.Parallel()
	const (
		adds      = 200
		atOnce    = 16        // the daemon's default
		limit     = 128 << 20 // bytes, of the daemon
		megabytes = 60        // of the plugin
		ending    = 10
	)
	h := newHost(t, func(h *host) { must(t, os.WriteFile(h.path("braidd.yaml"), nil, 0o644)) })
	h.network(t, "light", h.bridged("braidextra0", "10.77.0.0/24"))
	h.network(t, "heavy", h.bridged("braidheavy0", "10.73.0.0/16", h.recording(fmt.Sprintf(`"megabytes":%d`, megabytes))))
	group := h.limitMemory(t, limit)
	pods := make([]*pod, 20)
	for i := range pods {
		pods[i] = h.createPod(t, fmt.Sprintf("pod-%d", i), map[string]string{networksKey: "heavy"})
	}
	old := h.createPod(t, "old", map[string]string{networksKey: "light"})
	var olds []*sandbox
	for range ending {
		s := old.newSandbox(t)
		s.mustAdd(t)
		olds = append(olds, s)
	}
	boxes := make([]*sandbox, adds)
	for i := range boxes {
		boxes[i] = pods[i%len(pods)].newSandbox(t)
	}
	began := time.Now()
	var all sync.WaitGroup
	var added, later atomic.Int64
	for _, s := range boxes {
		all.Go(func() {
			for !t.Failed() {
				_, err := s.add(t.Context())
				if codeOf(err) == 11 {
					later.Add(1) // in time, and the runtime tries again
					continue
				}
				if err != nil {
					t.Errorf("ADD: %v", err)
					return
				}
				added.Add(1)
				return
			}
		})
	}
	must(t, within(t.Context(), time.Minute, "plugins run", func() error {
		calls, err := note.Read(h.path("recorder"))
		if err == nil && len(calls) == 0 {
			err = errors.New("none was called")
		}
		return err
	}))
	for _, s := range olds {
		s.mustDel(t)
	}
	if n := added.Load(); n == adds {
		t.Error("the DELs came to their end after all ADDs")
	} else {
		t.Logf("%d DELs were done when %d of %d ADDs were, after %v", ending, n, adds, time.Since(began).Round(time.Millisecond))
	}
	if err := h.status(t.Context()); err != nil {
		t.Errorf("STATUS meanwhile: %v", err)
	}
	all.Wait()
	t.Logf("%d ADDs took %v; %d were told to come again", added.Load(), time.Since(began).Round(time.Millisecond), later.Load())
	if n := h.mostAtOnce(t); n > atOnce || n < 2 {
		t.Errorf("%d plugins ran at once, %d may", n, atOnce)
	} else {
		t.Logf("at most %d plugins ran at once", n)
	}
	if peak := h.peakMemory(t); !h.alive() || peak >= limit {
		t.Errorf("braidd runs: %t; it had %d MiB", h.alive(), peak>>20)
	} else {
		t.Logf("braidd had at most %d MiB (limited by a cgroup: %t)", peak>>20, group)
	}
	for _, s := range boxes {
		all.Go(func() {
			if err := s.del(t.Context()); err != nil {
				t.Errorf("DEL: %v", err)
			}
		})
	}
	all.Wait()
	h.nothingIsLeft(t)
}

// limitMemory puts braidd into a cgroup of its own, where the machine lets it.
func (h *host) limitMemory(t *testing.T, bytes int) bool {
	t.Helper()
	const root = "/sys/fs/cgroup"
	dir, file := filepath.Join(root, "memory"), "memory.limit_in_bytes" // version 1
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		dir, file = root, "memory.max"
	}
	dir = filepath.Join(dir, "braid-e2e-"+h.node)
	err := os.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) { // left by a run that was cut off
		t.Cleanup(func() {
			h.mustKill(t) // the group is empty then, and can go
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		err = os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(bytes)), 0)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(h.braidd.Process.Pid)), 0)
	}
	if err != nil {
		t.Logf("no cgroup can be had here: %v", err)
	}
	return err == nil
}

// peakMemory is the largest resident size that braidd has had, in bytes.
func (h *host) peakMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.braidd.Process.Pid))
	must(t, err)
	match := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kilobytes, err := strconv.Atoi(string(match[1]))
	must(t, err)
	return kilobytes << 10
}

// mostAtOnce is how many ADDs of the recorder ran at once.
func (h *host) mostAtOnce(t *testing.T) int {
	t.Helper()
	calls, err := note.Read(h.path("recorder"))
	must(t, err)
	running := map[string]bool{}
	most := 0
	for _, c := range calls {
		if c.Command != "ADD" {
			continue
		}
		if id := strings.Join([]string{c.ContainerID, strconv.Itoa(c.PID)}, "/"); c.Done {
			delete(running, id)
		} else {
			running[id] = true
		}
		most = max(most, len(running))
	}
	return most
}
