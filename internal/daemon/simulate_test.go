package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// The simulation: a runtime that adds, repeats, checks, deletes, forgets and
// reboots at random, and a daemon that is killed and whose records are damaged
// meanwhile. Whatever the history, once the dust has settled every pod that runs
// has all of its networks and passes CHECK, and nothing else is left: no link,
// no address, no record, no note.

// simulations and simulationSteps are how much is tried in each run of the test.
const simulations, simulationSteps = 6, 40

func TestNothingIsLostAndNothingLeaksInAnyHistory(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Veth)
	seeds, first := simulations, rand.Uint64()
	if text := os.Getenv("BRAID_SEED"); text != "" {
		var err error
		if first, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
		seeds = 1
	}
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := newSimulation(t, seed)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("BRAID_SEED=%d replays it:\n%s", seed, strings.Join(s.history, "\n"))
				}
			})
			for range simulationSteps {
				s.step()
				if t.Failed() {
					return
				}
			}
			s.settle()
		})
	}
}

type simulation struct {
	*node
	rand    *rand.Rand
	pool    *pool
	number  int
	boots   int
	running map[string]*simulated
	history []string
}

// simulated is a container that the runtime runs.
type simulated struct {
	id, networks, netns string
	result              []byte
	// doubtful says that its records were damaged. What the cluster no longer
	// knows of it then, nobody does.
	doubtful bool
	// lost says that it has no records at all, for the moment.
	lost bool
}

func newSimulation(t testing.TB, seed uint64) *simulation {
	s := &simulation{
		node: newNode(t, func(c *Config) {
			c.Networks = networks{[]plan.Network{conflist(t, `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"link","ipam":{"type":"pool"}}]}`)}}
		}),
		rand: rand.New(rand.NewPCG(seed, seed)), pool: &pool{held: map[string]string{}}, running: map[string]*simulated{},
	}
	s.config.BootID = "boot 0"
	s.adapt = func(a *attach.Attacher) {
		a.Drivers["link"] = linked{s.kernel}
		a.IPAM = map[string]ipam.Plugin{"pool": s.pool}
	}
	s.define("vlan", `{"cniVersion":"1.0.0","type":"link","ipam":{"type":"pool"}}`)
	s.define("data", `{"cniVersion":"1.0.0","name":"data","plugins":[{"type":"link","ipam":{"type":"pool"}},{"type":"fake2"}]}`)
	s.restart()
	t.Cleanup(func() {
		for _, c := range s.running {
			_ = netns.Delete(c.netns) // those that a failed step left
		}
	})
	return s
}

func (s *simulation) tell(format string, args ...any) {
	s.history = append(s.history, fmt.Sprintf(format, args...))
}

// step does one random thing.
func (s *simulation) step() {
	s.t.Helper()
	steps := []func(){
		s.addNew, s.addNew, s.addNew, s.addAgain, s.checkOne, s.delOne, s.delOne, s.delGone, s.collect,
		s.restart, s.addCutOff, s.delFails, s.damageOne, s.damageOne, s.spoilStore, s.delWhileAway, s.forgetOne, s.delUnknownToTheCluster, s.reconcileNow,
	}
	if len(s.running) > 3 {
		steps = append(steps, s.delOne, s.delWhileAway, s.forgetOne)
	}
	if s.rand.IntN(20) == 0 {
		steps = []func(){s.reboot}
	}
	steps[s.rand.IntN(len(steps))]()
}

// pick is one of the containers that run, nil when there is none.
func (s *simulation) pick() *simulated {
	var ids []string
	for id := range s.running {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	return s.running[ids[s.rand.IntN(len(ids))]]
}

// newContainer is one that the runtime has made and not asked networks for.
func (s *simulation) newContainer() *simulated {
	s.t.Helper()
	s.number++
	c := &simulated{
		id:       fmt.Sprintf("c%d", s.number),
		networks: []string{"", "vlan", "vlan,data", "data@d0,vlan,vlan"}[s.rand.IntN(4)],
		netns:    fmt.Sprintf("braid-sim-%d-%08x", s.number, s.rand.Uint32()),
	}
	ns, err := netns.New(c.netns)
	if err == nil {
		err = ns.Close()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.spaces[c.id] = netns.Path(c.netns)
	s.pod(c.id, c.networks)
	return c
}

func (s *simulation) addNew() {
	c := s.newContainer()
	s.tell("ADD %s (%s)", c.id, c.networks)
	s.added(c, s.ok("ADD", c.id))
}

// added is what the runtime does when it has an answer.
func (s *simulation) added(c *simulated, result []byte) {
	s.running[c.id], c.result = c, result
	s.remember(c.id, result)
}

func (s *simulation) addAgain() {
	// Without records it cannot be told from somebody else's container.
	if c := s.pick(); c != nil && !c.lost {
		s.tell("ADD %s again", c.id)
		s.added(c, s.ok("ADD", c.id))
		c.doubtful = false
	}
}

func (s *simulation) checkOne() {
	if c := s.pick(); c != nil {
		s.tell("CHECK %s", c.id)
		s.withMemory("CHECK", c)
	}
}

// withMemory asks as libcni does, with what it remembers of the ADD.
func (s *simulation) withMemory(verb string, c *simulated) {
	s.t.Helper()
	if reply := s.ask(s.fromMemory(verb, c)); reply.Error != nil {
		s.t.Errorf("%s %s: %v", verb, c.id, reply.Error)
	}
}

// fromMemory is a request with what libcni remembers of the ADD.
func (s *simulation) fromMemory(verb string, c *simulated) wire.Request {
	r := s.request(verb, c.id)
	r.Stdin = []byte(`{"cniVersion":"1.0.0","name":"braid","type":"braid-cni","prevResult":` + string(c.result) + `}`)
	return r
}

func (s *simulation) delOne() {
	if c := s.pick(); c != nil {
		s.tell("DEL %s", c.id)
		s.withMemory("DEL", c)
		s.deleted(c)
	}
}

// deleted is what the runtime does when a DEL has succeeded.
func (s *simulation) deleted(c *simulated) {
	s.t.Helper()
	s.vanish(c)
	if err := os.Remove(s.memory(c.id)); err != nil {
		s.t.Error(err)
	}
	delete(s.running, c.id)
}

func (s *simulation) memory(id string) string {
	return filepath.Join(s.dir, "results", "braid-"+id+"-eth0")
}

func (s *simulation) vanish(c *simulated) {
	s.t.Helper()
	if err := netns.Delete(c.netns); err != nil {
		s.t.Error(err)
	}
}

func (s *simulation) delGone() {
	if s.number > 0 {
		id := fmt.Sprintf("c%d", 1+s.rand.IntN(s.number))
		if s.running[id] == nil {
			s.tell("DEL %s, which is gone", id)
			s.ok("DEL", id)
			s.forgotten(id)
		}
	}
}

// forgotten has the runtime lose its memory of a container, if it has one.
func (s *simulation) forgotten(id string) {
	if err := os.Remove(s.memory(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Error(err)
	}
}

func (s *simulation) collect() {
	var list []string
	for id := range s.running {
		list = append(list, `{"containerID":"`+id+`","ifname":"eth0"}`)
	}
	s.tell("GC, %d are valid", len(list))
	if reply := s.ask(gcRequest(`,"cni.dev/valid-attachments":[` + strings.Join(list, ",") + `]`)); reply.Error != nil {
		s.t.Error(reply.Error)
	}
}

func (s *simulation) restart() {
	s.tell("restart")
	s.kill()
	s.start()
}

// addCutOff kills the daemon in the middle of an ADD.
func (s *simulation) addCutOff() {
	c := s.newContainer()
	arrived := make(chan string, 8)
	s.set(func(_ *cluster, k *kernel) { k.hold[c.id], k.arrived = make(chan struct{}), arrived })
	cut, ended := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := s.call(cut, s.request("ADD", c.id))
		done <- err
	}()
	<-arrived
	s.kill()
	ended()
	if err := <-done; err == nil {
		s.t.Errorf("the ADD of %s has an answer", c.id)
	}
	s.set(func(_ *cluster, k *kernel) { delete(k.hold, c.id); k.arrived = nil })
	s.start()
	switch s.rand.IntN(3) {
	case 0:
		s.tell("ADD %s (%s), cut off and repeated", c.id, c.networks)
		s.added(c, s.ok("ADD", c.id))
	case 1:
		s.tell("ADD %s (%s), cut off and deleted", c.id, c.networks)
		s.ok("DEL", c.id)
		s.vanish(c)
	default:
		s.tell("ADD %s (%s), cut off and forgotten", c.id, c.networks)
		s.vanish(c)
	}
}

// delFails has a DEL fail in the middle, perhaps kills the daemon, and repeats
// it.
func (s *simulation) delFails() {
	c := s.pick()
	if c == nil {
		return
	}
	s.tell("DEL %s, which fails", c.id)
	s.pool.fail(1 + s.rand.IntN(2))
	_ = s.ask(s.fromMemory("DEL", c))
	s.pool.fail(0)
	if s.rand.IntN(2) == 0 {
		s.restart()
	}
	s.withMemory("DEL", c)
	s.deleted(c)
}

func (s *simulation) damageOne() {
	c := s.pick()
	if c == nil {
		return
	}
	records, err := s.store.Sandbox(c.id, "eth0")
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		s.t.Error(err)
	}
	if len(records) == 0 {
		return
	}
	var kinds []string
	for kind := range damages() {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	kind, r := kinds[s.rand.IntN(len(kinds))], records[s.rand.IntN(len(records))]
	s.tell("damage record %d of %s: %s", r.Index, c.id, kind)
	s.damage(c.id, r.Index, damages()[kind])
	c.doubtful = true
}

// spoilStore takes all records away. Who ended without a DEL has been seen to.
func (s *simulation) spoilStore() {
	s.reconcileNow()
	s.tell("spoil the store")
	s.loseStore([]byte("no database"))
	for _, c := range s.running {
		c.doubtful, c.lost = true, true
	}
}

// delWhileAway is a DEL that the shim can only note.
func (s *simulation) delWhileAway() {
	c := s.pick()
	if c == nil {
		return
	}
	s.tell("DEL %s while the daemon is away", c.id)
	s.kill()
	f, err := os.Open(s.spaces[c.id])
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = wire.WriteNote(filepath.Join(s.dir, "notes"), s.fromMemory("DEL", c), f)
	if err = errors.Join(err, f.Close()); err != nil {
		s.t.Fatal(err)
	}
	if s.rand.IntN(2) == 0 {
		s.deleted(c)
		s.start()
	} else {
		s.start()
		s.deleted(c)
	}
}

// forgetOne has a container end and nobody tell.
func (s *simulation) forgetOne() {
	if c := s.pick(); c != nil {
		s.tell("forget %s", c.id)
		s.vanish(c)
		delete(s.running, c.id)
	}
}

// delUnknownToTheCluster is a DEL when the pod and its networks are gone.
func (s *simulation) delUnknownToTheCluster() {
	c := s.pick()
	if c == nil || c.doubtful {
		return
	}
	s.tell("DEL %s, unknown to the cluster", c.id)
	var pods = s.cluster.pods
	var definitions = s.cluster.definitions
	s.set(func(cl *cluster, _ *kernel) { cl.pods, cl.definitions = nil, nil })
	s.withMemory("DEL", c)
	s.set(func(cl *cluster, _ *kernel) { cl.pods, cl.definitions = pods, definitions })
	s.deleted(c)
}

// reboot ends every container and the kernel with it, and nothing else.
func (s *simulation) reboot() {
	s.tell("reboot")
	s.kill()
	s.boots++
	s.config.BootID = fmt.Sprint("boot ", s.boots)
	for id, c := range s.running {
		s.vanish(c)
		delete(s.running, id)
	}
	s.set(func(_ *cluster, k *kernel) { k.links = map[string]bool{} })
	s.start()
}

// reconcileNow lets some minutes pass.
func (s *simulation) reconcileNow() {
	s.tell("some minutes pass")
	h := s.leaveHandIfNone()
	for range 3 {
		s.daemon.pace.advance(time.Hour)
		s.daemon.reconcile(context.Background())
	}
	if h != nil {
		h.lose()
		<-h.ended
	}
	for _, c := range s.running {
		c.lost = false
	}
}

func (s *simulation) leaveHandIfNone() *host {
	if _, done, err := s.daemon.standingHost(); err == nil {
		done()
		return nil
	}
	return s.leaveHand()
}

// settle ends the history, and looks at what is left.
func (s *simulation) settle() {
	s.t.Helper()
	s.restart()
	s.reconcileNow()
	var want []string
	for id, c := range s.running {
		s.checkRunning(c)
		for _, name := range c.interfaces() {
			want = append(want, id+"/"+name)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, s.kernel.left()); diff != "" {
		s.t.Errorf("links (-want +have):\n%s", diff)
	}
	if diff := cmp.Diff(want, s.pool.holders()); diff != "" {
		s.t.Errorf("addresses (-want +have):\n%s", diff)
	}
	records, err := s.store.All()
	if err != nil {
		s.t.Error(err)
	}
	var have []string
	for _, r := range records {
		have = append(have, r.Sandbox.ContainerID+"/"+r.Attachment.IfName)
		if !r.Complete() {
			s.t.Errorf("%s/%s is an intent", r.Sandbox.ContainerID, r.Attachment.IfName)
		}
	}
	slices.Sort(have)
	if diff := cmp.Diff(want, have); diff != "" {
		s.t.Errorf("records (-want +have):\n%s", diff)
	}
	if notes := s.notes(); len(notes) > 0 {
		s.t.Errorf("notes: %v", notes)
	}
	for _, c := range s.running {
		s.withMemory("DEL", c)
		s.deleted(c)
	}
	s.nothingLeft()
	if left := s.pool.holders(); len(left) > 0 {
		s.t.Errorf("addresses left: %v", left)
	}
}

func (s *simulation) checkRunning(c *simulated) {
	s.t.Helper()
	if reply := s.do("CHECK", c.id); reply.Error != nil {
		s.t.Errorf("CHECK %s at the end: %v", c.id, reply.Error)
	}
}

// interfaces are those that the container is to have.
func (c *simulated) interfaces() []string {
	return map[string][]string{
		"": {"eth0"}, "vlan": {"eth0", "net1"}, "vlan,data": {"eth0", "net1", "net2"}, "data@d0,vlan,vlan": {"eth0", "d0", "net2", "net3"},
	}[c.networks]
}

// linked is a driver with an address and a link that can be seen in the
// namespace.
type linked struct{ *kernel }

func (l linked) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	got, err := s.IPAM.Add(ctx)
	if err != nil {
		return nil, err
	}
	result, err := l.kernel.Attach(ctx, s)
	if err == nil {
		err = l.show(s)
	}
	if err != nil {
		return nil, errors.Join(err, l.Detach(context.WithoutCancel(ctx), s))
	}
	result.Interfaces[0].Sandbox = s.NetNSPath
	result.IPs = got.IPs
	return result, nil
}

// show makes a link in the namespace. One that is there already is replaced.
func (l linked) show(s driver.Spec) error {
	h, err := rtnl.Open(s.NetNS)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := hide(h, s.IfName); err != nil {
		return err
	}
	_, err = h.AddVeth(rtnl.Veth{New: rtnl.New{Name: s.IfName}, Peer: rtnl.New{Name: "peer-" + s.IfName}})
	return err
}

func hide(h *rtnl.Handle, name string) error {
	link, err := h.Link(name)
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.Del(link.Index)
}

func (l linked) Detach(ctx context.Context, s driver.Spec) error {
	err := l.kernel.Detach(ctx, s)
	if s.NetNS != nil {
		h, openErr := rtnl.Open(s.NetNS)
		if openErr != nil {
			return openErr
		}
		defer h.Close()
		err = errors.Join(err, hide(h, s.IfName))
	}
	return errors.Join(err, s.IPAM.Del(ctx))
}

func (l linked) Check(ctx context.Context, s driver.Spec) error {
	return errors.Join(l.kernel.Check(ctx, s), s.IPAM.Check(ctx))
}

// pool hands out addresses that outlive every daemon.
type pool struct {
	mu    sync.Mutex
	held  map[string]string // by container/interface
	next  int
	fails int
}

func (p *pool) fail(times int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails = times
}

func (p *pool) Add(_ context.Context, r ipam.Request) (*current.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	ip := net.IPv4(10, 9, byte(p.next>>8), byte(p.next))
	p.held[r.ContainerID+"/"+r.IfName] = ip.String()
	return &current.Result{CNIVersion: "1.1.0", IPs: []*current.IPConfig{{Address: net.IPNet{IP: ip, Mask: net.CIDRMask(16, 32)}}}}, nil
}

func (p *pool) Del(_ context.Context, r ipam.Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails > 0 {
		p.fails--
		return errBusy
	}
	delete(p.held, r.ContainerID+"/"+r.IfName)
	return nil
}

func (p *pool) Check(_ context.Context, r ipam.Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.held[r.ContainerID+"/"+r.IfName]; !ok {
		return errors.New("the address is not held")
	}
	return nil
}

func (p *pool) holders() (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for holder := range p.held {
		list = append(list, holder)
	}
	slices.Sort(list)
	return list
}
