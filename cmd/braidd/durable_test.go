package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// remember writes what libcni remembers of the ADD of a container.
func (p pod) remember(result []byte) {
	p.t.Helper()
	text, err := json.Marshal(map[string]any{
		"kind": "cniCacheV1", "containerId": p.id, "ifName": "eth0", "networkName": "braid", "netns": p.at,
		"config": []byte(`{"cniVersion":"1.0.0","name":"braid","plugins":[{"type":"braid-cni"}]}`), "result": json.RawMessage(result),
	})
	if err == nil {
		err = os.MkdirAll(p.path("results"), 0o700)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.write("results/braid-"+p.id+"-eth0", string(text), 0o600)
}

// soon waits until text is, or is not, part of the node's world.
func (n *node) soon(what string, ok func(world string) bool) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if ok(n.world()) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s is awaited:\n%s", what, n.world())
		}
	}
}

// unlink removes an interface of the container.
func (p pod) unlink(name string) {
	p.t.Helper()
	h, err := rtnl.Open(p.ns)
	if err != nil {
		p.t.Fatal(err)
	}
	defer h.Close()
	l, err := h.Link(name)
	if err == nil {
		err = h.Del(l.Index)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func TestNodeComesUpWithASpoiltStoreAndKnowsItsPods(t *testing.T) {
	n := newNode(t)
	n.twoNetworks()
	n.start(true)
	warm := n.newPod("warm-up")
	warm.ok("ADD")
	warm.ok("DEL")
	before := n.world()
	p := n.newPod("c1")
	p.remember(p.ok("ADD"))
	n.kill()
	n.write("state/braid.db", "no database at all", 0o600)
	n.start(true)
	p.ok("CHECK")
	if kept, err := filepath.Glob(n.path("state/braid.db.damaged-*")); err != nil || len(kept) != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	// The drivers compare what was rebuilt with the kernel.
	p.unlink("eth1")
	if _, err := p.cni(t.Context(), "CHECK"); err == nil || !strings.Contains(err.Error(), "check eth1 (second") {
		t.Errorf("CHECK without eth1: %v", err)
	}
	p.ok("DEL")
	if after := n.world(); after != before {
		t.Errorf("before ADD:\n%s\nafter DEL:\n%s", before, after)
	}
}

func TestDamagedRecordsServeCheckAndDel(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"truncated": func(v []byte) []byte { return v[:len(v)/2] }, "emptied": func([]byte) []byte { return nil },
		"a list": func([]byte) []byte { return []byte("[]") }, "wrong version": func(v []byte) []byte { v[0] = 7; return v },
		"a bit flipped": func(v []byte) []byte { v[len(v)/3] ^= 4; return v },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.twoNetworks()
			n.start(true)
			warm := n.newPod("warm-up")
			warm.ok("ADD")
			warm.ok("DEL")
			before := n.world()
			p := n.newPod("c1")
			p.ok("ADD")
			n.kill()
			n.damageSecond(change)
			n.start(true)
			p.ok("CHECK")
			p.ok("DEL")
			if after := n.world(); after != before {
				t.Errorf("before ADD:\n%s\nafter DEL:\n%s", before, after)
			}
			n.kill()
			if left := n.records(); len(left) > 0 {
				t.Errorf("records: %+v", left)
			}
		})
	}
}

// damageSecond changes the record of eth1, behind braidd's back.
func (n *node) damageSecond(change func([]byte) []byte) {
	n.t.Helper()
	db, err := bbolt.Open(n.path("state/braid.db"), 0o600, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("attachments"))
		key := []byte("c1\x00eth0\x00\x00\x01")
		return b.Put(key, change(append([]byte(nil), b.Get(key)...)))
	})
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// A runtime that forgets a container asks for no DEL. Braid finds out through a
// hand on the host, which the next shim that comes by leaves.
func TestForgottenContainerIsReleasedWithoutARequest(t *testing.T) {
	n := newNode(t)
	n.twoNetworks()
	n.start(true)
	stays := n.newPod("stays")
	stays.ok("ADD")
	before := n.world()
	name := "braid-forgotten-" + filepath.Base(n.dir)
	ns, err := netns.New(name)
	if err != nil {
		t.Fatal(err)
	}
	p := pod{n, "c1", ns, netns.Path(name)}
	p.ok("ADD")
	if err := ns.Close(); err != nil {
		t.Error(err)
	}
	if err := netns.Delete(name); err != nil {
		t.Fatal(err)
	}
	n.kill()
	n.start(true)
	stays.ok("CHECK")
	n.soon("the end of what c1 had", func(world string) bool { return world == before })
	stays.ok("CHECK")
	stays.ok("DEL")
}
