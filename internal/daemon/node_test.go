package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/devices"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// node is a daemon on a socket, with a cluster and a kernel that only remember.
type node struct {
	t       testing.TB
	dir     string
	netns   string
	spaces  map[string]string // paths of namespaces of their own, by container
	cluster *cluster
	kernel  *kernel
	config  Config
	log     *lockedBuffer
	// order is that of the test and its requests.
	order sync.Mutex
	// adapt, if not nil, changes each daemon's Attacher before it starts.
	adapt func(*attach.Attacher)
	// grace is what requests under way get when the daemon is killed.
	grace time.Duration
	// program is what the shim does when it is to run one.
	program func(context.Context, wire.Exec) wire.ExecResult

	daemon *Daemon
	store  *store.Store
	stop   func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newNode(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS)
	_, path := kerneltest.NewNamedNS(t)
	n := &node{
		t: t, dir: t.TempDir(), netns: path, spaces: map[string]string{}, log: &lockedBuffer{},
		cluster: &cluster{pods: map[string]plan.Pod{}, definitions: map[string]string{}, statuses: map[string]string{}},
		kernel:  &kernel{links: map[string]bool{}, hold: map[string]chan struct{}{}},
	}
	n.config = Config{
		Cluster:  n.cluster,
		Networks: networks{[]plan.Network{conflist(t, `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"fake"}]}`)}},
		Log:      slog.New(slog.NewTextHandler(n.log, nil)),

		WaitForStatus: true, // so that a test can look when an ADD has ended
	}
	for _, c := range change {
		c(&n.config)
	}
	n.start()
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			t.Log(n.log.String())
		}
	})
	return n
}

// set changes what the cluster and the kernel do from now on.
func (n *node) set(change func(*cluster, *kernel)) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	n.kernel.mu.Lock()
	defer n.kernel.mu.Unlock()
	change(n.cluster, n.kernel)
}

func (n *node) socket() string { return filepath.Join(n.dir, "s") }

// start starts the daemon, for the first time or after kill.
func (n *node) start() {
	n.t.Helper()
	var err error
	if n.store, err = store.Open(context.Background(), filepath.Join(n.dir, store.FileName)); err != nil {
		n.t.Fatal(err)
	}
	c := n.config
	c.Records = n.store
	c.Socket = n.socket()
	c.Notes, c.CacheDir = filepath.Join(n.dir, "notes"), filepath.Join(n.dir, "results")
	c.Attacher = &attach.Attacher{
		Drivers:       map[string]driver.Driver{"fake": n.kernel, "fake2": n.kernel, "crash": crash{n.kernel}},
		Store:         n.store,
		BinDirs:       []string{n.dir},
		PluginTimeout: 2 * time.Second,
		DeviceInfo:    devices.Files{Dir: c.DeviceInfoDir},
	}
	if n.adapt != nil {
		n.adapt(c.Attacher)
	}
	n.daemon = New(c)
	if err := n.daemon.Recover(context.Background()); err != nil {
		n.t.Fatal(err)
	}
	l, err := wire.Listen(n.socket())
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	d := n.daemon
	server := &wire.Server{Grace: n.grace, Handle: func(c *wire.Conn) {
		n.follows()
		d.Handle(c)
	}}
	go func() { served <- server.Serve(ctx, l) }()
	n.stop = func() {
		cancel()
		if err := <-served; err != nil {
			n.t.Error(err)
		}
	}
}

// follows has a request come after what the test did before it. So it does, but
// the race detector knows nothing of sockets.
func (n *node) follows() {
	n.order.Lock()
	defer n.order.Unlock()
}

// kill ends the daemon; requests under way are cut off.
func (n *node) kill() {
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	if err := n.store.Close(); err != nil {
		n.t.Error(err)
	}
}

// space gives a container a path of its own to the namespace, which unspace
// takes away.
func (n *node) space(ids ...string) {
	n.t.Helper()
	for _, id := range ids {
		path := filepath.Join(n.dir, "space-"+id)
		if err := os.Symlink(n.netns, path); err != nil {
			n.t.Fatal(err)
		}
		n.spaces[id] = path
	}
}

func (n *node) unspace(id string) {
	n.t.Helper()
	if err := os.Remove(n.spaces[id]); err != nil {
		n.t.Error(err)
	}
}

func (n *node) request(command, id string) wire.Request {
	path := cmp.Or(n.spaces[id], n.netns)
	r := wire.Request{
		Command: command, ContainerID: id, IfName: "eth0", NetNS: path, Path: n.dir,
		Stdin: []byte(`{"cniVersion":"1.0.0","name":"braid","type":"braid-cni"}`),
	}
	if n.config.Cluster != nil {
		r.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id + ";K8S_POD_UID=uid-" + id
	}
	return r
}

// call is one run of a shim in this process.
func (n *node) call(ctx context.Context, r wire.Request) (wire.Reply, error) {
	n.follows()
	call := wire.Call{Socket: n.socket(), Request: r, Run: func(ctx context.Context, e wire.Exec) wire.ExecResult {
		if e.Name == "braid-cni" && slices.Equal(e.Args, []string{"namespaces"}) {
			return (&host{n: n}).namespaces(e)
		}
		if n.program != nil {
			return n.program(ctx, e)
		}
		return wire.ExecResult{Failure: wire.NotFound, Detail: "there are no programs here"}
	}}
	if r.NetNS != "" {
		f, err := os.Open(r.NetNS)
		if err != nil && (r.Command != "DEL" || !errors.Is(err, fs.ErrNotExist)) {
			return wire.Reply{}, err
		}
		if err == nil {
			defer f.Close()
			call.NetNS = f
		}
	}
	return wire.Do(ctx, call)
}

func (n *node) do(command, id string) wire.Reply {
	n.t.Helper()
	return n.ask(n.request(command, id))
}

func (n *node) ask(r wire.Request) wire.Reply {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reply, err := n.call(ctx, r)
	if err != nil {
		n.t.Fatalf("%s: %v", r.Command, err)
	}
	return reply
}

// begin is do beside the test.
func (n *node) begin(command, id string) <-chan wire.Reply {
	replies := make(chan wire.Reply, 1)
	go func() {
		reply, err := n.call(n.t.Context(), n.request(command, id))
		if err != nil {
			n.t.Errorf("%s %s: %v", command, id, err)
		}
		replies <- reply
	}()
	return replies
}

func (n *node) ok(command, id string) []byte {
	n.t.Helper()
	reply := n.do(command, id)
	if reply.Error != nil {
		n.t.Fatalf("%s %s: %+v", command, id, reply.Error)
	}
	return reply.Stdout
}

// refused fails unless the reply is an error with this code and these words.
func (n *node) refused(reply wire.Reply, code uint, words ...string) {
	n.t.Helper()
	if reply.Error == nil || reply.Error.Code != code {
		n.t.Fatalf("reply %s, %+v; want code %d", reply.Stdout, reply.Error, code)
	}
	for _, w := range words {
		if !strings.Contains(reply.Error.Error(), w) {
			n.t.Errorf("%q lacks %q", reply.Error, w)
		}
	}
}

func (n *node) nothingLeft() {
	n.t.Helper()
	if left := n.kernel.left(); len(left) > 0 {
		n.t.Errorf("left in the kernel: %v", left)
	}
	all, err := n.store.All()
	if err != nil || len(all) > 0 {
		n.t.Errorf("left in the store: %+v, %v", all, err)
	}
}

// pod makes a pod of this name known to the cluster.
func (n *node) pod(id, networks string) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	n.cluster.pods["default/"+id] = plan.Pod{
		Namespace: "default", Name: id, UID: "uid-" + id,
		Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": networks},
	}
	n.cluster.changed()
}

func conflist(t testing.TB, text string) plan.Network {
	t.Helper()
	network, err := plan.ParseNetwork([]byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	return network
}

type networks struct{ list []plan.Network }

func (n networks) First(limit int) []plan.Network {
	return n.list[:min(limit, len(n.list))]
}
func (n networks) OnDisk(string) (plan.Network, bool) { return plan.Network{}, false }

// cluster is the Kubernetes of a node.
type cluster struct {
	mu          sync.Mutex
	pods        map[string]plan.Pod
	definitions map[string]string
	// resource, if not empty, is the one whose devices all networks are made of.
	resource  string
	statuses  map[string]string
	events    []string
	statusErr error
	apiErr    error
	unsynced  error
	away      error
	// tries counts writes of a status, written names the pods of those that
	// succeeded.
	tries   int
	written []string
	// wrote, if not nil, is called after each of those.
	wrote func()
	lives map[string]Life
	// writing, if not nil, makes a write of a status wait for the end of its
	// request, and is closed when one does.
	writing chan struct{}
	// next is closed when a pod changes, nil when nobody waits.
	next chan struct{}
}

// changed wakes who follows the pods. The caller holds mu.
func (c *cluster) changed() {
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}

func (c *cluster) All() ([]plan.Pod, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return slices.Collect(maps.Values(c.pods)), c.next
}

func (c *cluster) Life(_ context.Context, pod plan.Pod) (Life, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lives[pod.Name], nil
}

func (c *cluster) Pod(_ context.Context, told plan.Pod) (plan.Pod, error) {
	if pod, ok := c.Known(told.Namespace, told.Name, told.UID); ok {
		return pod, nil
	}
	if c.Following() != nil && told.Annotations != nil {
		return told, nil
	}
	return plan.Pod{}, fmt.Errorf("pod %s/%s (UID %s): not found", told.Namespace, told.Name, told.UID)
}

func (c *cluster) Known(namespace, name, uid string) (plan.Pod, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pod, ok := c.pods[namespace+"/"+name]
	return pod, ok && pod.UID == uid
}

func (c *cluster) Following() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away
}

func (c *cluster) Definition(_ context.Context, namespace, name string) (plan.Definition, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conf, ok := c.definitions[namespace+"/"+name]
	return plan.Definition{Namespace: namespace, Name: name, Config: conf, ResourceName: c.resource}, ok, c.apiErr
}

func (c *cluster) SetNetworkStatus(ctx context.Context, pod plan.Pod, text string) error {
	c.mu.Lock()
	writing := c.writing
	c.mu.Unlock()
	if writing != nil {
		close(writing)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tries++
	if c.statusErr == nil {
		c.statuses[pod.Namespace+"/"+pod.Name] = text
		c.written = append(c.written, pod.Namespace+"/"+pod.Name)
		if c.wrote != nil {
			c.wrote()
		}
	}
	return c.statusErr
}

func (c *cluster) Added(pod plan.Pod, message string)   { c.event(pod, message) }
func (c *cluster) Removed(pod plan.Pod, message string) { c.event(pod, message) }
func (c *cluster) Failed(pod plan.Pod, message string)  { c.event(pod, "FAILED "+message) }

func (c *cluster) Damaged(pod plan.Pod, message string) { c.event(pod, "DAMAGED "+message) }
func (c *cluster) Stuck(message string)                 { c.event(plan.Pod{}, "STUCK "+message) }

func (c *cluster) event(pod plan.Pod, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, pod.Name+": "+message)
}

func (c *cluster) Synced() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unsynced
}

func (c *cluster) takeEvents() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.events
	c.events = nil
	return e
}

// kernel is a driver whose links are names, and which can be held in the
// middle of an Attach.
type kernel struct {
	mu       sync.Mutex
	links    map[string]bool
	detached []string
	// hold makes Attach of this container wait until the channel is closed or
	// its context ends.
	hold map[string]chan struct{}
	// arrived, if not nil, receives the container of each Attach that waits.
	arrived chan string
	broken  error
	// attaches counts calls of Attach; at is how many are under way, and most
	// how many there were at once.
	attaches, at, most int
}

func (k *kernel) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	name := s.ContainerID + "/" + s.IfName
	k.mu.Lock()
	hold, broken, arrived := k.hold[s.ContainerID], k.broken, k.arrived
	k.links[name] = true
	k.attaches++
	k.at++
	k.most = max(k.most, k.at)
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.at--
	}()
	undo := func(err error) (*current.Result, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.links, name)
		return nil, err
	}
	if hold != nil {
		if arrived != nil {
			arrived <- s.ContainerID
		}
		select {
		case <-hold:
		case <-ctx.Done():
			return undo(context.Cause(ctx))
		}
	}
	if broken != nil {
		return undo(broken)
	}
	return kernelResult(s)
}

// kernelResult is what a kernel returns.
func kernelResult(s driver.Spec) (*current.Result, error) {
	result := &current.Result{CNIVersion: "1.1.0"}
	err := json.Unmarshal([]byte(`{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.7/24","interface":0}]}`), result)
	// No Sandbox: the link is in no real namespace.
	result.Interfaces = []*current.Interface{{Name: s.IfName}}
	return result, err
}

func (k *kernel) Detach(_ context.Context, s driver.Spec) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.links, s.ContainerID+"/"+s.IfName)
	k.detached = append(k.detached, s.ContainerID+"/"+s.IfName)
	return nil
}

func (k *kernel) Check(_ context.Context, s driver.Spec) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.links[s.ContainerID+"/"+s.IfName] {
		return errors.New("the link is gone")
	}
	return nil
}

func (k *kernel) left() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for name := range k.links {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (k *kernel) takeDetached() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.detached
	k.detached = nil
	return d
}

type crash struct{ *kernel }

func (crash) Attach(context.Context, driver.Spec) (*current.Result, error) { panic("driver bug") }

// panics panics when it is to take down.
type panics struct{ *kernel }

func (panics) Detach(context.Context, driver.Spec) error { panic("driver bug") }

func intent(sb store.Sandbox, a plan.Attachment) []store.Record {
	return []store.Record{{Sandbox: sb, Attachment: a}}
}
