package daemon

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

const (
	// reconcileEvery is how often records are compared with the node.
	reconcileEvery = time.Minute
	// rebuildLook is how often it is looked whether lost records can be made
	// again, while that has to wait for the cluster.
	rebuildLook = time.Second
	// reconcileSoon is the pause when the kernel may be about to end a namespace.
	reconcileSoon = 3 * time.Second
	// reconcileAtOnce bounds how many sandboxes are worked on in one round.
	reconcileAtOnce = 4
	// releaseFirst and releaseLast bound the pause before a sandbox is tried
	// again that could not be released.
	releaseFirst, releaseLast = 30 * time.Second, 8 * time.Minute
	// interruptedAfter is how long after an ADD that did not finish the runtime
	// may still repeat it. The shim gives up after two minutes unless its
	// configuration says more, and the kubelet after four.
	interruptedAfter = 10 * time.Minute
)

// reconcileLoop serves notes, makes lost records again, and releases what the
// runtime has forgotten: at once, every minute, when a note appears, and when
// there is a hand on the host that something waits for.
func (d *Daemon) reconcileLoop(ctx context.Context) error {
	notes := d.watchNotes()
	defer notes.close()
	for ctx.Err() == nil {
		var hand <-chan struct{}
		if d.reconcile(ctx) {
			hand = d.wantHand()
		}
		d.awaitRound(ctx, notes.appeared(), hand)
	}
	return nil
}

// awaitRound waits until a round is due: after a minute, or for one of the
// reasons why it may be sooner.
func (d *Daemon) awaitRound(ctx context.Context, note <-chan fsnotify.Event, hand <-chan struct{}) {
	pause := reconcileEvery
	select {
	case <-d.soon:
		pause = reconcileSoon
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	var look <-chan time.Time
	if d.rebuildWaits() {
		ticker := time.NewTicker(rebuildLook)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-note:
			return
		case <-hand:
			return
		case <-ctx.Done():
			return
		case <-look:
			if !d.rebuildWaits() {
				return
			}
		}
	}
}

// rebuildWaits reports whether lost records are to be made again as soon as it
// is known what pods ask for.
func (d *Daemon) rebuildWaits() bool {
	missing, err := d.Records.Missing()
	return err == nil && missing && d.Cluster != nil && d.Cluster.Synced() != nil
}

// reconcile is one round. It reports whether something waits for a hand on the
// host. What fails is tried again in a later round.
func (d *Daemon) reconcile(ctx context.Context) (waits bool) {
	d.pace.forget(time.Now())
	for _, step := range []func(context.Context) bool{d.serveNotes, d.mendAll, d.rebuildAll, d.releaseOrphans} {
		if ctx.Err() != nil {
			return false
		}
		waits = step(ctx) || waits
	}
	return waits
}

// each works on many sandboxes, a few at once, each when its time has come. It
// reports whether one waits for a hand on the host.
func each[T any](ctx context.Context, d *Daemon, what string, list []T, key func(T) string, work func(context.Context, T) error) (waits bool) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(reconcileAtOnce)
	for _, item := range list {
		name := what + " " + key(item)
		if !d.pace.due(name, time.Now()) {
			continue
		}
		group.Go(func() error {
			err := safely(func() error { return work(ctx, item) })
			switch {
			case err == nil:
				d.pace.done(name)
			case errors.Is(err, errNoHand):
				mu.Lock()
				waits = true
				mu.Unlock()
			case ctx.Err() == nil:
				d.reportStuck(what, key(item), d.pace.failed(name, time.Now()), err)
			}
			return nil
		})
	}
	_ = group.Wait() // every error has been dealt with
	return waits
}

// reportStuck tells of a sandbox that could not be worked on for so many times.
func (d *Daemon) reportStuck(what, key string, times int, err error) {
	d.Log.Error("could not "+what+"; it is tried again", "container", key, "times", times, "err", err)
	if times > 1 && d.Cluster != nil {
		d.Cluster.Stuck(fmt.Sprintf("could not %s %s, %d times by now: %v", what, key, times, err))
	}
}

func (d *Daemon) serveNotes(ctx context.Context) (waits bool) {
	return each(ctx, d, "serve the noted DEL of", d.noted(), func(n wire.Note) string { return n.File }, d.serveNote)
}

// mendAll makes damaged records again before somebody asks for them.
func (d *Daemon) mendAll(ctx context.Context) (waits bool) {
	_, err := d.Records.All()
	var damaged *store.DamagedError
	if !errors.As(err, &damaged) {
		return false
	}
	var list []wire.Request
	seen := map[string]bool{}
	for _, k := range damaged.Keys {
		r := wire.Request{Command: "DEL", ContainerID: k.ContainerID, IfName: k.IfName}
		if key := k.ContainerID + "/" + k.IfName; !seen[key] {
			list, seen[key] = append(list, r), true
		}
	}
	key := func(r wire.Request) string { return r.ContainerID + "/" + r.IfName }
	return each(ctx, d, "mend the records of", list, key, d.mendOne)
}

// mendOne makes the damaged records of one sandbox again.
func (d *Daemon) mendOne(ctx context.Context, asked wire.Request) error {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	leave, err := d.enter(ctx, asked.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	r, err := d.recall(asked)
	if err != nil {
		return err
	}
	if r.NetNS != "" {
		sb, err := d.sandbox(r)
		if err != nil {
			return err
		}
		reach, release, err := d.reachSandbox(ctx, sb)
		if err != nil {
			return err
		}
		defer release()
		r.Command, r.reach = "CHECK", reach
		d.mend(ctx, r)
	}
	_, err = d.Records.Sandbox(r.ContainerID, r.IfName)
	return err
}

// recall is the request that made a sandbox, as far as a record that is left or
// the runtime's memory tells of it.
func (d *Daemon) recall(asked wire.Request) (request, error) {
	suffix := "-" + asked.ContainerID + "-" + asked.IfName
	list, err := remembered(d.CacheDir, func(file string) bool { return !strings.HasSuffix(file, suffix) })
	for _, r := range list {
		if r.ContainerID == asked.ContainerID && r.IfName == asked.IfName {
			return r, nil
		}
	}
	if err != nil {
		return request{}, err
	}
	records, err := d.Records.Sandbox(asked.ContainerID, asked.IfName)
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return request{}, err
	}
	if len(records) > 0 {
		return requestOf(records[0].Sandbox), nil
	}
	if damaged != nil && len(damaged.Guesses) > 0 {
		return requestOf(damaged.Guesses[0].Sandbox), nil
	}
	return request{Request: asked}, nil
}

// rebuildAll makes the records of all sandboxes again, after the store was
// lost. Until everything has been looked for, later rounds go on.
func (d *Daemon) rebuildAll(ctx context.Context) (waits bool) {
	missing, err := d.Records.Missing()
	if err != nil || !missing || d.rebuildWaits() {
		return false
	}
	known, err := d.sandboxes()
	if err != nil {
		return false
	}
	have := map[string]bool{}
	for _, s := range known {
		have[s.key()] = true
	}
	list, err := remembered(d.CacheDir, func(string) bool { return false })
	if err != nil {
		d.Log.Error("records may be missing, and the runtime's memory cannot be read", "err", err)
		return false
	}
	var lost []request
	for _, r := range list {
		if !have[r.key()] && !d.takenDown.has(r.key()) {
			lost = append(lost, r)
		}
	}
	rebuilt := 0
	var mu sync.Mutex
	waits = each(ctx, d, "rebuild the records of", lost, request.key, func(ctx context.Context, r request) error {
		err := d.rebuildOne(ctx, r)
		if err == nil {
			mu.Lock()
			rebuilt++
			mu.Unlock()
		}
		return err
	})
	if rebuilt < len(lost) {
		return waits
	}
	if err := d.Records.Rebuilt(ctx); err != nil {
		d.Log.Error("note that all records are there again", "err", err)
	} else if len(lost) > 0 {
		d.Log.Warn("the records of this node were made again", "sandboxes", rebuilt)
	}
	return waits
}

// rebuildOne makes the records again of a sandbox that the runtime remembers.
// Of one that is gone it releases what it may have held.
func (d *Daemon) rebuildOne(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	leave, err := d.enter(ctx, r.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	sb, err := d.sandbox(r)
	if err != nil {
		return err
	}
	reach, release, err := d.reachSandbox(ctx, sb)
	if err != nil {
		return err
	}
	defer release()
	r.reach = reach
	if reach.NS == nil {
		d.Log.Info("a container that the runtime remembers is gone; what it may have held is released", "container", r.ContainerID)
		return d.takeDown(ctx, r)
	}
	r.Command = "CHECK"
	d.mend(ctx, r)
	return nil
}

// sandboxState is a sandbox as its records show it.
type sandboxState struct {
	store.Sandbox
	// interrupted says that its ADD did not finish.
	interrupted bool
	// marks are those that links of its attachments have on the node.
	marks []string
}

func (s sandboxState) key() string { return s.ContainerID + "/" + s.IfName }

// sight is what can be seen of namespaces from outside.
type sight struct {
	boot string
	// spaces are the namespaces that were found, nil when nobody could look.
	spaces map[string]netns.ID
	// ends are the marks of veths on the node. The kernel removes one as soon as
	// the namespace that the other end is in is gone.
	ends map[string]bool
}

// gone reports whether the sandbox's namespace is proven to be gone, or to be
// another one by now. When a path leads nowhere and the pod's veth is there all
// the same, doubt says so: whoever looked at the path may see other mounts than
// the runtime does, or the kernel is not yet through with it.
func (s sandboxState) gone(see sight) (gone, doubt bool) {
	if s.Rebooted(see.boot) {
		return true, false
	}
	if see.spaces == nil || s.NetNS == "" {
		return false, false
	}
	id, there := see.spaces[s.NetNS]
	if there && (id.IsZero() || s.NSID.IsZero() || id == s.NSID) {
		return false, false
	}
	doubt = slices.ContainsFunc(s.marks, func(mark string) bool { return see.ends[mark] })
	return !doubt, doubt
}

// look looks for the namespaces of sandboxes from outside, by a program on the
// host.
func (d *Daemon) look(ctx context.Context, list []sandboxState, host func(context.Context, []string) (map[string]netns.ID, error)) (sight, error) {
	see := sight{boot: d.BootID}
	spaces, err := host(ctx, pathsOf(list))
	if err != nil {
		return see, err
	}
	// In this order: an end that is there now was there when the paths were
	// looked at.
	if see.ends, err = vethMarks(); err != nil {
		return see, err
	}
	see.spaces = spaces
	return see, nil
}

// vethMarks are the marks of the veths on the node.
func vethMarks() (map[string]bool, error) {
	h, err := rtnl.Open(nil)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	marks := map[string]bool{}
	for _, l := range links {
		if l.Kind == "veth" && l.Alias != "" {
			marks[l.Alias] = true
		}
	}
	return marks, nil
}

// sandboxes lists those that have records, in the order of the store.
func (d *Daemon) sandboxes() (list []sandboxState, err error) {
	records, err := d.Records.All()
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return nil, err
	}
	for _, r := range records {
		s := sandboxState{Sandbox: r.Sandbox}
		if n := len(list); n == 0 || list[n-1].key() != s.key() {
			list = append(list, s)
		}
		last := &list[len(list)-1]
		last.interrupted = last.interrupted || !r.Complete() && !attach.Unfinished(r)
		last.marks = append(last.marks, driver.Spec{ContainerID: s.ContainerID, IfName: r.Attachment.IfName}.Mark())
	}
	return list, nil
}

func pathsOf(list []sandboxState) (paths []string) {
	for _, s := range list {
		if s.NetNS != "" {
			paths = append(paths, s.NetNS)
		}
	}
	return paths
}

// orphan is a sandbox that nobody will DEL any more.
type orphan struct {
	sandboxState
	why string
	// dead says that its namespace was found to be gone.
	dead bool
}

// evidence is what is known of the node's sandboxes beside their records.
type evidence struct {
	sight
	now time.Time
	// running names the containers that the runtime has, nil when it was not
	// asked or names none.
	running map[string]bool
	// suspects are sandboxes that the runtime did not name last time either: it
	// names a new one only once its network is there.
	suspects map[string]bool
}

// orphans finds those that are proven to be one. doubt says that there are some
// which may soon be.
func orphans(list []sandboxState, e evidence) (found []orphan, doubt bool) {
	for _, s := range list {
		gone, unsure := s.gone(e.sight)
		doubt = doubt || unsure
		switch {
		case gone:
			found = append(found, orphan{s, "its network namespace is gone", true})
		case e.running != nil && !e.running[s.ContainerID] && e.suspects[s.key()]:
			found = append(found, orphan{s, "the runtime does not know its container", false})
		case s.interrupted && e.now.Sub(s.Added) > interruptedAfter:
			found = append(found, orphan{s, "its ADD was interrupted and nobody came back for it", false})
		}
	}
	return found, doubt
}

// releaseOrphans takes down what nobody will ask for.
func (d *Daemon) releaseOrphans(ctx context.Context) (waits bool) {
	all, err := d.sandboxes()
	if err != nil {
		d.Log.Error("compare records with the node", "err", err)
		return false
	}
	var idle []sandboxState
	for _, s := range all {
		if !d.queue.busy(s.ContainerID) {
			idle = append(idle, s)
		}
	}
	if len(idle) == 0 {
		return false
	}
	e := evidence{now: time.Now(), running: d.runningContainers(ctx), suspects: d.suspects}
	if e.sight, err = d.look(ctx, idle, d.lookAt); errors.Is(err, errNoHand) {
		waits = true
	} else if err != nil {
		d.Log.Warn("compare records with namespaces", "err", err)
	}
	found, doubt := orphans(idle, e)
	if doubt {
		d.soon.poke()
	}
	d.suspects = suspectsAmong(idle, e.running)
	return each(ctx, d, "release", found, func(o orphan) string { return o.key() }, func(ctx context.Context, o orphan) error {
		return d.release(ctx, o, nil)
	}) || waits
}

func suspectsAmong(list []sandboxState, running map[string]bool) map[string]bool {
	suspects := map[string]bool{}
	for _, s := range list {
		if running != nil && !running[s.ContainerID] {
			suspects[s.key()] = true
		}
	}
	return suspects
}

// runningContainers asks the runtime, if there is a way to it. A list that names
// nothing is not trusted.
func (d *Daemon) runningContainers(ctx context.Context) map[string]bool {
	if d.Containers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ids, err := d.Containers(ctx)
	if err != nil {
		d.Log.Warn("compare records with the runtime's containers", "err", err)
		return nil
	}
	if len(ids) == 0 {
		return nil
	}
	running := map[string]bool{}
	for _, id := range ids {
		running[id] = true
	}
	return running
}

// release takes an orphan down. host, if not nil, runs programs when there is
// no standing hand. errNoHand means that it has to wait for one.
func (d *Daemon) release(ctx context.Context, o orphan, host driver.Host) error {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	leave, err := d.enter(ctx, o.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	records, err := d.Records.Sandbox(o.ContainerID, o.IfName)
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	if len(records) == 0 || records[0].Sandbox.NSID != o.NSID {
		return nil // somebody was faster
	}
	reach, done, err := d.reachSandbox(ctx, o.Sandbox)
	switch needsNS, needsHost := d.Attacher.Needs(records); {
	case err == nil:
		defer done()
		if o.dead && reach.NS != nil {
			return nil // it is there after all
		}
	case !errors.Is(err, errNoHand) || needsNS && !o.dead || needsHost && host == nil:
		return err
	default:
		reach = attach.Reach{Host: host, Path: o.Path}
	}
	r := requestOf(o.Sandbox)
	r.reach = reach
	if err := d.takeDown(ctx, r); err != nil {
		return err
	}
	d.Log.Info("released what nobody asks for any more", "container", o.ContainerID, "ifname", o.IfName, "pod", podName(o.Pod), "why", o.why)
	return nil
}

// enter waits for the container's turn and a place beside the DELs.
func (d *Daemon) enter(ctx context.Context, containerID string) (leave func(), err error) {
	next, err := d.queue.enter(ctx, containerID)
	if err != nil {
		return nil, err
	}
	done, err := d.dels.enter(ctx)
	if err != nil {
		next()
		return nil, err
	}
	return func() { done(); next() }, nil
}

// requestOf is the DEL of a sandbox as the runtime would ask for it.
func requestOf(sb store.Sandbox) request {
	r := request{Request: wire.Request{
		Command: "DEL", ContainerID: sb.ContainerID, IfName: sb.IfName, NetNS: sb.NetNS, Args: sb.Args, Path: sb.Path,
	}}
	r.conf.Name = sb.Network
	r.pod, _ = parseArgs(sb.Args) // it was accepted once
	return r
}

// sandboxOf is what a request says of its sandbox.
func sandboxOf(r wire.Request) store.Sandbox {
	sb := store.Sandbox{ContainerID: r.ContainerID, IfName: r.IfName, NetNS: r.NetNS, Args: r.Args, Path: r.Path}
	if pod, err := parseArgs(r.Args); err == nil {
		sb.Pod.Namespace, sb.Pod.Name, sb.Pod.UID = pod.namespace, pod.name, pod.uid
	}
	return sb
}

// pace decides when something that failed is tried again.
type pace struct {
	mu    sync.Mutex
	tries map[string]attempt
	told  map[string]bool
}

type attempt struct {
	times int
	next  time.Time
}

func (p *pace) due(name string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !now.Before(p.tries[name].next)
}

// failed returns how often it has failed by now.
func (p *pace) failed(name string, now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tries == nil {
		p.tries = map[string]attempt{}
	}
	a := p.tries[name]
	pause := min(releaseFirst<<min(a.times, 10), releaseLast)
	a = attempt{a.times + 1, now.Add(pause)}
	p.tries[name] = a
	return a.times
}

func (p *pace) done(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tries, name)
}

// first reports whether this is the first time that something is told of.
func (p *pace) first(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told == nil {
		p.told = map[string]bool{}
	}
	if p.told[what] {
		return false
	}
	p.told[what] = true
	return true
}

// forget drops what has not been tried for long: somebody else has seen to it.
func (p *pace) forget(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, a := range p.tries {
		if now.Sub(a.next) > time.Hour {
			delete(p.tries, name)
		}
	}
}

// safely turns a panic into an error.
func safely(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &attach.PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fn()
}
