package daemon

import (
	"context"
	"errors"
	"slices"
	"time"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// interruptedAfter is how long after an ADD that did not finish the runtime may
// still repeat it. The shim gives up after two minutes unless its configuration
// says more, and the kubelet after four.
const interruptedAfter = 10 * time.Minute

// sandboxState is a sandbox as its records show it.
type sandboxState struct {
	store.Sandbox
	// interrupted says that its ADD did not finish.
	interrupted bool
	// marks are those that links of its attachments have on the node.
	marks []string
}

func (s sandboxState) key() string { return sandboxKey(s.ContainerID, s.IfName) }

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
	if err := store.ExceptDamaged(err); err != nil {
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
	if err := store.ExceptDamaged(err); err != nil {
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
