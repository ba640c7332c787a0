package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

const fakeVLAN = `{"cniVersion":"1.0.0","type":"fake"}`

// podWithVLAN is a pod with one network beside its default one, attached.
func (n *node) podWithVLAN(ids ...string) {
	n.t.Helper()
	n.define("vlan", fakeVLAN)
	for _, id := range ids {
		n.pod(id, "vlan")
		n.ok("ADD", id)
	}
}

func TestDelWithoutTheAPIServer(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.set(func(c *cluster, _ *kernel) {
		c.pods, c.definitions = nil, nil
		c.away = errors.New("connection refused")
		c.apiErr, c.unsynced = c.away, c.away
	})
	n.kill()
	n.start()
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestDelWithoutTheDefinition(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.set(func(c *cluster, _ *kernel) { c.definitions = nil })
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestDelWithAChangedDefinition(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	n.define("vlan", `{"cniVersion":"1.0.0","type":"another","ipam":{"type":"unheard-of"}}`)
	n.pod("p", "vlan@data,vlan@more")
	n.ok("DEL", "p")
	n.nothingLeft()
}

func TestDelTwice(t *testing.T) {
	n := newNode(t)
	n.podWithVLAN("p")
	for range 2 {
		n.ok("DEL", "p")
		n.nothingLeft()
	}
	if again := n.kernel.takeDetached(); len(again) != 2 {
		t.Errorf("detached: %v, want each once", again)
	}
}

func TestDelBeforeAdd(t *testing.T) {
	n := newNode(t)
	n.define("vlan", fakeVLAN)
	n.pod("p", "vlan")
	n.ok("DEL", "p")
	n.nothingLeft()
	n.ok("ADD", "p")
	n.ok("CHECK", "p")
	n.ok("DEL", "p")
	n.nothingLeft()
}

// The runtime gave the ADD up and asks for a DEL at once: it is served when the
// ADD has ended, at the ADD's deadline, and finds nothing or everything.
func TestDelDuringAddThatIsCancelledAtItsDeadline(t *testing.T) {
	n := newNode(t, func(c *Config) { c.RequestTimeout = 500 * time.Millisecond })
	n.set(func(_ *cluster, k *kernel) { k.arrived = make(chan string) })
	n.define("vlan", fakeVLAN)
	n.pod("p", "vlan")
	n.set(func(_ *cluster, k *kernel) { k.hold["p"] = make(chan struct{}) }) // for ever
	added := n.begin("ADD", "p")
	<-n.kernel.arrived
	// Had the DEL the same deadline it might end with the ADD.
	deleted := n.begin("DEL", "p")
	n.inLine("p", 1)
	reply := <-added
	n.refused(reply, 11, "did not finish within")
	if reply := <-deleted; reply.Error != nil && reply.Error.Code != 11 {
		t.Errorf("DEL: %v", reply.Error)
	}
	n.ok("DEL", "p") // as the runtime does after code 11
	n.nothingLeft()
}

func TestDelAfterAReboot(t *testing.T) {
	n := newNode(t, func(c *Config) { c.BootID = "before" })
	n.space("p")
	n.podWithVLAN("p")
	n.kill()
	n.unspace("p")
	n.set(func(_ *cluster, k *kernel) { k.links = map[string]bool{} }) // the kernel is another one
	n.config.BootID = "after"
	n.start()
	n.ok("DEL", "p")
	n.nothingLeft()
	if detached := n.kernel.takeDetached(); len(detached) != 2 {
		t.Errorf("detached: %v; what is outside the kernel must go too", detached)
	}
}

func TestGarbageCollectionFreesNothingOnAnEmptyListButWhatIsGone(t *testing.T) {
	n := newNode(t)
	n.space("dead", "alive")
	n.podWithVLAN("dead", "alive")
	n.unspace("dead")
	if reply := n.ask(gcRequest(`,"cni.dev/valid-attachments":[]`)); reply.Error != nil {
		t.Fatal(reply.Error)
	}
	if diff := cmp.Diff([]string{"alive/eth0", "alive/net1"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
}

func TestGarbageCollectionFreesNothingOnAnEmptyListWhenNobodyCanLook(t *testing.T) {
	n := newNode(t)
	n.space("dead")
	n.podWithVLAN("dead")
	n.unspace("dead")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reply, err := wire.Do(ctx, wire.Call{
		Socket: n.socket(), Request: gcRequest(`,"cni.dev/valid-attachments":[]`),
		Run: func(context.Context, wire.Exec) wire.ExecResult { return wire.ExecResult{Failure: wire.NotFound} },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.refused(reply, 999, "empty")
	if left := n.kernel.left(); len(left) != 2 {
		t.Errorf("left %v", left)
	}
}

func TestGarbageCollectionReleasesAllNetworksOfAContainer(t *testing.T) {
	n := newNode(t)
	n.leaveHand()
	n.podWithVLAN("p", "q")
	if reply := n.ask(gcRequest(`,"cni.dev/valid-attachments":[{"containerID":"q","ifname":"eth0"}]`)); reply.Error != nil {
		t.Fatal(reply.Error)
	}
	if diff := cmp.Diff([]string{"q/eth0", "q/net1"}, n.kernel.left()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"p/net1", "p/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Error(diff)
	}
}

// full is a store on a disk that is full.
type full struct {
	*store.Store
	on atomic.Bool
}

var errDiskFull = errors.New("no space left on device")

func (f *full) Begin(ctx context.Context, rs []store.Record) error {
	if f.on.Load() {
		return errDiskFull
	}
	return f.Store.Begin(ctx, rs)
}

func (f *full) Remove(ctx context.Context, keys ...store.Key) error {
	if f.on.Load() {
		return errDiskFull
	}
	return f.Store.Remove(ctx, keys...)
}

func TestFullDiskFailsAddAndNotDel(t *testing.T) {
	n := newNode(t)
	n.space("p", "q")
	n.podWithVLAN("p")
	n.pod("q", "vlan")
	disk := &full{Store: n.store}
	disk.on.Store(true)
	n.daemon.Attacher.Store = disk
	n.refused(n.do("ADD", "q"), 11, "could not be recorded", "no space left")
	n.ok("DEL", "p")
	if left := n.kernel.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// The records go when there is space again, without a request.
	disk.on.Store(false)
	n.unspace("p")
	n.leaveHand()
	n.daemon.reconcile(t.Context())
	n.nothingLeft()
	if !strings.Contains(n.log.String(), "the records stay for now") {
		t.Error("it was not said that records stay")
	}
}

// fullDir is what an address directory says on a disk without space.
type fullDir struct{ *kernel }

func (fullDir) Attach(context.Context, driver.Spec) (*current.Result, error) {
	return nil, fmt.Errorf("write address record: %w", syscall.ENOSPC)
}

func TestFullDiskOfAddressesIsTriedAgainLater(t *testing.T) {
	n := newNode(t)
	n.define("vlan", fakeVLAN)
	n.pod("p", "vlan")
	n.kill()
	n.adapt = func(a *attach.Attacher) { a.Drivers["fake"] = fullDir{n.kernel} }
	n.start()
	n.refused(n.do("ADD", "p"), 11, "no space left on device")
	n.nothingLeft()
}
