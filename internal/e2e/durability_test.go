package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"go.etcd.io/bbolt"

	"braid.dev/braid/internal/e2e/recorder/note"
)

// Of the cases A1 to A22, those about what must not be forgotten.

// A DEL that nobody serves is noted and made up for. In the meantime the runtime
// removes the namespace, and may be rebooted.
func TestA05DelWhileTheDaemonIsDown(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) { h.prepareCrash(t) })
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	h.network(t, "theirs", `{"cniVersion":"1.0.0","type":"theirs","bridge":"braidtheirs0","ipam":{"type":"static","addresses":[{"address":"10.74.0.9/24"}]}}`)
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra,theirs,extra"})
	settle := p.newSandbox(t)
	settle.mustAdd(t)
	settle.mustDel(t)
	before := h.lasting(t)
	var boxes []*sandbox
	for range 3 {
		s := p.newSandbox(t)
		s.mustAdd(t)
		boxes = append(boxes, s)
	}
	running := p.newSandbox(t)
	running.mustAdd(t)
	must(t, boxes[1].remove()) // its namespace goes before DEL
	h.mustKill(t)
	must(t, h.way.set(refused)) // and what makes up for it needs no API server
	var deletions sync.WaitGroup
	for _, s := range boxes {
		deletions.Go(func() {
			if err := s.del(t.Context()); err != nil {
				t.Errorf("DEL: %v", err)
			}
		})
	}
	deletions.Wait()
	must(t, boxes[0].remove()) // its namespace goes after it
	if notes := h.notes(t); len(notes) != len(boxes) {
		t.Errorf("the notes are %v", notes)
	}
	must(t, h.launch())
	h.soon(t, "nothing is left but what runs", func() error {
		if notes := h.notes(t); len(notes) > 0 {
			return fmt.Errorf("the notes are %v", notes)
		}
		for _, held := range h.held(t) {
			if !strings.Contains(held, running.id) {
				return fmt.Errorf("the recorder holds %s", held)
			}
		}
		return nil
	})
	must(t, h.way.set(open))
	running.mustCheck(t)
	running.mustDel(t)
	if left := h.lasting(t); left != before {
		t.Errorf("the host is not what it was before:\n%s\nbefore:\n%s", left, before)
	}
	h.nothingIsLeft(t)
}

func (h *host) notes(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(h.path("state/notes/*"))
	must(t, err)
	return list
}

// soon waits for what braidd does by itself. Meanwhile the runtime asks for its
// status every now and then, as runtimes do, and is its hand on the host.
func (h *host) soon(t *testing.T, what string, check func() error) {
	t.Helper()
	err := within(t.Context(), 60*time.Second, what, func() error {
		_ = h.status(t.Context()) // whatever the answer is
		return check()
	})
	if err != nil {
		t.Error(err)
	}
}

// What a plugin fails to take down stays known, the rest goes, and the runtime
// is told.
func TestA05DelWithAPluginThatFails(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra,extra"})
	s := p.newSandbox(t)
	s.mustAdd(t)
	h.behave(t, "DEL-net1", note.Fail)
	for range 2 {
		err := s.del(t.Context())
		if err == nil || !strings.Contains(err.Error(), "net1") || !strings.Contains(err.Error(), "told to fail") {
			t.Errorf("DEL: %v", err)
		}
		if held := h.held(t); len(held) != 1 || !strings.HasSuffix(held[0], "net1") {
			t.Errorf("the recorder holds %v", held)
		}
		s.isEmpty(t)
	}
	h.behave(t, "DEL-net1", "")
	s.mustDel(t)
	h.nothingIsLeft(t)
}

// damages are what may become of a record on a disk.
var damages = map[string]func(value []byte) []byte{
	"truncated":    func(v []byte) []byte { return v[:len(v)/2] },
	"emptied":      func([]byte) []byte { return nil },
	"a list":       func([]byte) []byte { return []byte("[]") },
	"of tomorrow":  func(v []byte) []byte { return append([]byte{v[0] + 1}, v[1:]...) },
	"one bit":      func(v []byte) []byte { v[len(v)/2] ^= 4; return v },
	"another name": func(v []byte) []byte { v[bytes.LastIndex(v, []byte(`"ifName":"`))+10] ^= 4; return v },
	"something":    func([]byte) []byte { return []byte("\x01\x02\x03 nonsense") },
	"another type": func(v []byte) []byte { return append(v[:8:8], []byte(`{"sandbox":7,"attachment":"x"}`)...) },
}

func TestA07DamagedRecordsAreMadeUpFor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	for name, damage := range damages {
		for which, harmed := range map[string]func(i int) bool{"all": func(int) bool { return true }, "one": func(i int) bool { return i == 1 }} {
			t.Run(name+" "+which, func(t *testing.T) {
				p := h.createPod(t, testName(t), map[string]string{networksKey: "extra,extra"})
				checked, deleted := p.newSandbox(t), p.newSandbox(t)
				checked.mustAdd(t)
				deleted.mustAdd(t)
				h.mustKill(t)
				h.damage(t, harmed, damage)
				h.mustStart(t)
				deleted.mustDel(t)
				deleted.isEmpty(t)
				for _, held := range h.held(t) {
					if strings.Contains(held, deleted.id) {
						t.Errorf("the recorder holds %s", held)
					}
				}
				h.soon(t, "CHECK works again", func() error { return checked.check(t.Context()) })
				p.eventSays(t, "record")
				checked.mustDel(t)
				checked.isEmpty(t)
				h.nothingIsLeft(t)
			})
		}
	}
	h.mustKill(t)
	if left := h.records(t); len(left) > 0 {
		t.Errorf("%d records are left, the first: %+v", len(left), left[0])
	}
}

// damage changes values of the records, by their place, behind braidd's back.
func (h *host) damage(t *testing.T, harmed func(i int) bool, damage func([]byte) []byte) {
	t.Helper()
	db, err := bbolt.Open(h.path("state/braid.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	must(t, err)
	defer db.Close()
	must(t, db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte("attachments"))
		values := map[string][]byte{}
		i := 0
		err := bucket.ForEach(func(k, v []byte) error {
			if harmed(i % 3) { // default network, net1, net2 of each sandbox
				values[string(k)] = damage(append([]byte(nil), v...))
			}
			i++
			return nil
		})
		if len(values) == 0 {
			return errors.New("there are no records to damage")
		}
		for k, v := range values {
			err = errors.Join(err, bucket.Put([]byte(k), v))
		}
		return err
	}))
}

func TestA07ADamagedFileIsMadeUpFor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24", h.recording("")))
	for name, damage := range map[string]func(path string) error{
		"removed":   os.Remove,
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"truncated": func(path string) error { return os.Truncate(path, 5000) },
		"nonsense":  func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("nonsense ", 20000)), 0o600) },
		"zeroes":    func(path string) error { return os.WriteFile(path, make([]byte, 64<<10), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			p := h.createPod(t, testName(t), map[string]string{networksKey: "extra,extra"})
			checked, deleted, gone := p.newSandbox(t), p.newSandbox(t), p.newSandbox(t)
			for _, s := range []*sandbox{checked, deleted, gone} {
				s.mustAdd(t)
			}
			h.mustKill(t)
			must(t, damage(h.path("state/braid.db")))
			must(t, gone.remove())
			h.mustStart(t)
			deleted.mustDel(t)
			deleted.isEmpty(t)
			h.soon(t, "what runs is known and what is gone is released", func() error {
				for _, held := range h.held(t) {
					if !strings.Contains(held, checked.id) {
						return fmt.Errorf("the recorder holds %s", held)
					}
				}
				return checked.check(t.Context())
			})
			gone.mustDel(t)
			checked.mustDel(t)
			checked.isEmpty(t)
			h.nothingIsLeft(t)
		})
	}
}

func TestA22UninstallLeavesANodeThatStartsPlainPods(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		must(t, os.Symlink(h.lab.Program("bridge"), h.path("bin/bridge")))
	})
	h.extraNetwork(t)
	uninstall := func() (string, error) {
		out, err := exec.CommandContext(t.Context(), filepath.Join(h.root, "bin/braidd"), "uninstall",
			"--run-dir="+h.path("run"), "--state-dir="+h.path("state"), "--cni-conf-dir="+h.path("conf"),
			"--cni-bin-dir="+h.path("bin"), "--shim-dir="+h.path("bin"), "--host-dirs="+h.path("addresses")).CombinedOutput()
		return string(out), err
	}
	plain := h.createPod(t, "plain", nil).newSandbox(t)
	rich := h.createPod(t, "rich", map[string]string{networksKey: "extra"})
	s := rich.newSandbox(t)
	plain.mustAdd(t)
	s.mustAdd(t)
	if out, err := uninstall(); err == nil || !strings.Contains(out, "braidd") {
		t.Errorf("uninstall while the daemon runs: %v: %s", err, out)
	}
	h.mustKill(t)
	if out, err := uninstall(); err == nil || !strings.Contains(out, "rich") || strings.Contains(out, "plain") {
		t.Errorf("uninstall while a pod has networks that only Braid knows: %v: %s", err, out)
	}
	h.mustStart(t)
	plain.mustCheck(t)
	s.mustDel(t)
	h.mustKill(t)
	if out, err := uninstall(); err != nil {
		t.Fatalf("uninstall: %v: %s", err, out)
	}
	for _, dir := range []string{"run", "state"} {
		if entries, err := os.ReadDir(h.path(dir)); err == nil && len(entries) > 0 {
			t.Errorf("left in %s: %v", dir, entries)
		}
	}
	for _, dir := range []string{"conf", "bin"} {
		if left, err := filepath.Glob(h.path(dir + "/*braid*")); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	if out, err := uninstall(); err != nil {
		t.Errorf("uninstall again: %v: %s", err, out)
	}
	// What the runtime does now is all its own.
	list, err := libcni.ConfListFromFile(h.path("conf/10-default.conflist"))
	must(t, err)
	after := h.createPod(t, "after", nil).newSandbox(t)
	cni := libcni.NewCNIConfigWithCacheDir([]string{h.path("bin")}, h.path("cni"), &starter{host: h})
	_, err = cni.AddNetworkList(t.Context(), list, after.config())
	must(t, err)
	after.has(t, "eth0")
	for _, s := range []*sandbox{after, plain} {
		if err := cni.DelNetworkList(context.WithoutCancel(t.Context()), list, s.config()); err != nil {
			t.Errorf("DEL by the default network itself: %v", err)
		}
		s.isEmpty(t)
	}
	h.nothingIsLeft(t)
}
