package daemon

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// damage restarts the daemon, and meanwhile changes what the store holds of one
// attachment. Nil removes it.
func (n *node) damage(id string, index int, change func(value []byte) []byte) {
	n.t.Helper()
	n.kill()
	db, err := bbolt.Open(filepath.Join(n.dir, store.FileName), 0o600, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	key := append([]byte(id+"\x00eth0\x00"), 0, byte(index))
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("attachments"))
		value := b.Get(key)
		if value == nil {
			n.t.Fatalf("no record %d of %s", index, id)
		}
		return b.Put(key, change(append([]byte(nil), value...)))
	})
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.start()
}

func flipped(value []byte) []byte {
	value[len(value)/2] ^= 1
	return value
}

// damages are those of A7 in the list of regressions, and more.
func damages() map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"truncated":     func(v []byte) []byte { return v[:len(v)/2] },
		"emptied":       func([]byte) []byte { return nil },
		"a list":        func([]byte) []byte { return []byte("[]") },
		"wrong version": func(v []byte) []byte { v[0] = 200; return v },
		"a bit flipped": flipped,
		"checksum":      func(v []byte) []byte { v[1] ^= 1; return v },
	}
}

// remember writes what libcni remembers of an ADD.
func (n *node) remember(id string, result []byte) {
	n.t.Helper()
	r := n.request("ADD", id)
	var args [][2]string
	for _, pair := range strings.Split(r.Args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		args = append(args, [2]string{key, value})
	}
	text, err := json.Marshal(cached{
		Kind: cacheKind, ContainerID: id, IfName: "eth0", NetworkName: "braid", NetNS: r.NetNS, CNIArgs: args,
		Config: []byte(`{"cniVersion":"1.0.0","name":"braid","plugins":[{"type":"braid-cni","socket":"/run/braid/braid.sock"}]}`), Result: result,
	})
	if err == nil {
		err = os.MkdirAll(filepath.Join(n.dir, "results"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "results", "braid-"+id+"-eth0"), text, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func TestDamagedRecordIsMadeAgainAndReported(t *testing.T) {
	for name, change := range damages() {
		t.Run(name, func(t *testing.T) {
			for _, index := range []int{0, 1} {
				n := newNode(t)
				n.podWithVLAN("p")
				n.cluster.takeEvents()
				n.damage("p", index, change)
				n.ok("CHECK", "p")
				events := n.cluster.takeEvents()
				if len(events) != 1 || !strings.Contains(events[0], "p: DAMAGED") || !strings.Contains(events[0], "made again") {
					t.Errorf("events %q", events)
				}
				records, err := n.store.Sandbox("p", "eth0")
				if err != nil || len(records) != 2 || !records[index].Rebuilt || records[1-index].Rebuilt {
					t.Fatalf("records %+v, %v", records, err)
				}
				n.set(func(_ *cluster, k *kernel) { delete(k.links, "p/net1") })
				n.refused(n.do("CHECK", "p"), 999, "net1", "default/vlan")
				n.ok("DEL", "p")
				n.nothingLeft()
			}
		})
	}
}

func TestDelOfADamagedRecordReleasesEverything(t *testing.T) {
	for name, change := range damages() {
		t.Run(name, func(t *testing.T) {
			for _, index := range []int{0, 1} {
				n := newNode(t)
				n.podWithVLAN("p")
				n.damage("p", index, change)
				n.ok("DEL", "p")
				n.nothingLeft()
			}
		})
	}
}

// The pod and its network are gone from the cluster: a record that can be read
// in spite of its damage is better than nothing.
func TestDelOfADamagedRecordOfANetworkThatIsGone(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.damage("p", 1, func(v []byte) []byte { v[1] ^= 1; return v })
	n.set(func(c *cluster, _ *kernel) { c.pods, c.definitions = nil, nil })
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestDamagedRecordsAreMadeAgainWithoutARequest(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.damage("p", 1, flipped)
	n.run()
	n.leaveHand()
	eventually(t, "the record to be made again", func() bool {
		records, err := n.store.Sandbox("p", "eth0")
		return err == nil && len(records) == 2
	})
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestRepeatedAddOfADamagedSandboxBeginsAnew(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.kernel.takeDetached()
	n.damage("p", 1, flipped)
	n.ok("ADD", "p")
	if diff := cmp.Diff([]string{"p/net1", "p/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Error(diff)
	}
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

// loseStore restarts the daemon without any record. The file is spoilt.
func (n *node) loseStore(content []byte) {
	n.t.Helper()
	n.kill()
	if err := os.WriteFile(filepath.Join(n.dir, store.FileName), content, 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.start()
}

// appear makes a link in the namespace, for those who look there.
func (n *node) appear(name string) {
	n.t.Helper()
	kerneltest.Need(n.t, kerneltest.Veth)
	ns, err := netns.Open(n.netns)
	if err != nil {
		n.t.Fatal(err)
	}
	defer ns.Close()
	h, err := rtnl.Open(ns)
	if err != nil {
		n.t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: name}, Peer: rtnl.New{Name: "peer-" + name}}); err != nil {
		n.t.Fatal(err)
	}
}

func TestLostStoreIsRebuiltFromWhatTheRuntimeRemembers(t *testing.T) {
	for name, content := range map[string][]byte{"spoilt": []byte("no database at all"), "emptied": nil} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.define("vlan", fakeVLAN)
			for _, id := range []string{"alive", "dead", "plain"} {
				n.space(id)
			}
			n.pod("alive", "vlan")
			n.pod("dead", "vlan")
			n.pod("plain", "")
			for _, id := range []string{"alive", "dead", "plain"} {
				n.remember(id, n.ok("ADD", id))
			}
			n.unspace("dead")
			n.appear("net1")
			n.cluster.takeEvents()
			n.loseStore(content)
			n.run()
			n.leaveHand()
			n.mustGo("alive/eth0", "alive/net1", "plain/eth0")
			eventually(t, "the records to be there again", func() bool {
				missing, err := n.store.Missing()
				return err == nil && !missing
			})
			for _, id := range []string{"alive", "plain"} {
				n.ok("CHECK", id)
				n.ok("DEL", id)
			}
			n.nothingLeft()
			told := strings.Join(n.cluster.takeEvents(), "\n")
			if name == "spoilt" && !strings.Contains(told, ": DAMAGED the records of this node could not be read") {
				t.Errorf("events:\n%s", told)
			}
			if !strings.Contains(told, "alive: DAMAGED") {
				t.Errorf("events:\n%s", told)
			}
		})
	}
}

// DEL and CHECK do not wait for that: the runtime brings its memory along.
func TestDelAndCheckOfALostStore(t *testing.T) {
	for _, verb := range []string{"DEL", "CHECK"} {
		n := newNode(t)
		n.define("vlan", fakeVLAN)
		n.pod("p", "vlan")
		result := n.ok("ADD", "p")
		n.appear("net1")
		n.loseStore([]byte("no database at all"))
		for _, v := range []string{verb, "DEL"} {
			r := n.request(v, "p")
			r.Stdin = []byte(`{"cniVersion":"1.0.0","name":"braid","prevResult":` + string(result) + `}`)
			if reply := n.ask(r); reply.Error != nil {
				t.Errorf("%s: %v", v, reply.Error)
			}
		}
		n.nothingLeft()
	}
}

func TestDelOfALostStoreByARuntimeThatBringsNothingAlong(t *testing.T) {
	n := newNode(t)
	n.define("vlan", fakeVLAN)
	n.pod("p", "vlan")
	n.remember("p", n.ok("ADD", "p"))
	n.loseStore(nil)
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestFirstStartOnANodeMissesNothing(t *testing.T) {
	n := newNode(t)
	n.remember("other", []byte(`{}`))
	// What another network's configuration left there is none of ours.
	path := filepath.Join(n.dir, "results", "braid-other-eth0")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c cached
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	c.Config = []byte(`{"name":"braid","plugins":[{"type":"bridge"}]}`)
	if text, err = json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"braid-other-eth0": text, "half": text[:len(text)/2], "list": []byte("[]"), "null": []byte("null")} {
		if err := os.WriteFile(filepath.Join(n.dir, "results", name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.daemon.reconcile(t.Context())
	if missing, err := n.store.Missing(); err != nil || missing {
		t.Errorf("missing: %t, %v", missing, err)
	}
	n.nothingLeft()
}

func TestNothingIsRebuiltBeforePodsAreKnown(t *testing.T) {
	n := newNode(t)
	n.define("vlan", fakeVLAN)
	n.pod("p", "vlan")
	n.remember("p", n.ok("ADD", "p"))
	n.appear("net1")
	n.loseStore(nil)
	n.set(func(c *cluster, _ *kernel) { c.unsynced = errBusy })
	n.leaveHand()
	n.daemon.reconcile(t.Context())
	if missing, err := n.store.Missing(); err != nil || !missing {
		t.Errorf("missing: %t, %v", missing, err)
	}
	n.set(func(c *cluster, _ *kernel) { c.unsynced = nil })
	n.daemon.reconcile(t.Context())
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestRecordsAreMadeAgainOncePodsAreKnown(t *testing.T) {
	n := newNode(t)
	n.define("vlan", fakeVLAN)
	n.pod("p", "vlan")
	n.remember("p", n.ok("ADD", "p"))
	n.appear("net1")
	n.loseStore(nil)
	n.set(func(c *cluster, _ *kernel) { c.unsynced = errBusy })
	n.leaveHand()
	if !n.daemon.rebuildWaits() {
		t.Error("it does not wait for the cluster")
	}
	n.run()
	n.set(func(c *cluster, _ *kernel) { c.unsynced = nil })
	// Well before the next round of every minute.
	eventually(t, "the records are there again", func() bool {
		missing, err := n.store.Missing()
		return err == nil && !missing
	})
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

// The conf dir has no network yet, so it cannot be said what the pod has.
func TestRebuildGoesOnUntilEverySandboxHasItsRecords(t *testing.T) {
	n := newNode(t)
	n.pod("p", "")
	n.remember("p", n.ok("ADD", "p"))
	had := n.config.Networks
	n.config.Networks = networks{}
	n.loseStore(nil)
	n.leaveHand()
	n.daemon.reconcile(t.Context())
	if missing, err := n.store.Missing(); err != nil || !missing {
		t.Errorf("missing: %t, %v", missing, err)
	}
	n.daemon.Networks = had
	n.daemon.pace.advance(time.Hour)
	n.daemon.reconcile(t.Context())
	if missing, err := n.store.Missing(); err != nil || missing {
		t.Errorf("missing: %t, %v", missing, err)
	}
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

// Whoever looked may see other mounts than the runtime: a pod whose veth is on
// the node lives.
func TestLostContainerWhoseVethIsThereIsNotTakenForGone(t *testing.T) {
	n := newNode(t)
	n.space("braid-lives")
	n.pod("braid-lives", "")
	n.remember("braid-lives", n.ok("ADD", "braid-lives"))
	n.unspace("braid-lives")
	n.vethOnTheNode(driver.Spec{ContainerID: "braid-lives", IfName: "eth0"}.Mark())
	n.loseStore(nil)
	n.leaveHand()
	n.daemon.reconcile(t.Context())
	if left := n.kernel.left(); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

// vethOnTheNode makes a veth with this mark where the test runs.
func (n *node) vethOnTheNode(mark string) {
	n.t.Helper()
	kerneltest.Need(n.t, kerneltest.Veth)
	h, err := rtnl.Open(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(h.Close)
	name := fmt.Sprintf("braid%08x", rand.Uint32())
	l, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: name}, Peer: rtnl.New{Name: name + "p"}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := h.Del(l.Index); err != nil {
			n.t.Error(err)
		}
	})
	if err := h.SetAlias(l.Index, mark); err != nil {
		n.t.Fatal(err)
	}
}

func FuzzCached(f *testing.F) {
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"c","config":"e30=","ifName":"eth0","networkName":"braid","cniArgs":[["K8S_POD_NAME","p"]],"result":{"interfaces":[{"sandbox":"/x"}]}}`))
	f.Add([]byte(`{"kind":"cniCacheV1","result":[null],"cniArgs":[[]]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c cached
		if json.Unmarshal(text, &c) != nil {
			return
		}
		c.callsBraid()
		if r, err := c.request(); err == nil && (r.ContainerID == "" || strings.Contains(r.IfName, "/")) {
			t.Errorf("a request for %q, %q", r.ContainerID, r.IfName)
		}
	})
}
