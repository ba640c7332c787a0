// Package attach makes a plan true in a container's namespace, and takes it
// down again.
//
// It decides nothing: which networks, in which order and with what
// configuration comes from the plan, and later from the records that ADD left.
// What it guarantees is the order of things. A record exists before the first
// plugin is called and until the last one has cleaned up, so at every moment,
// whatever crashes, the store knows at least what the kernel knows.
package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// Store is what attach needs of package store.
type Store interface {
	Begin(ctx context.Context, records []store.Record) error
	Attached(ctx context.Context, records ...store.Record) error
	Remove(ctx context.Context, keys ...store.Key) error
	Rebuild(ctx context.Context, records []store.Record, damaged []store.Key) error
	Sandbox(containerID, ifName string) ([]store.Record, error)
}

// Attacher attaches and detaches sandboxes. Its methods may be called for
// several containers at once, but not for one container in parallel.
type Attacher struct {
	// Drivers serve plugin types in process. Every other type is a program.
	Drivers map[string]driver.Driver
	// IPAM serves address delegates in process.
	IPAM  map[string]ipam.Plugin
	Store Store
	// DeviceInfo may be nil if no plan has a device information file.
	DeviceInfo DeviceInfo
	// BinDirs are searched for programs after the CNI_PATH of the request.
	BinDirs []string
	// PluginTimeout bounds each run of a program, 0 means only the request's
	// deadline does.
	PluginTimeout time.Duration
	// CleanupTimeout bounds the rollback of an ADD that failed, which goes on
	// when the request's own time is over. The default is 30 seconds.
	CleanupTimeout time.Duration
}

// Attached is one attachment that is true, with its result in the format of
// the latest CNI specification.
type Attached struct {
	plan.Attachment
	Result *current.Result
	// DeviceInfo is what is known of its device, nil if nothing is.
	DeviceInfo json.RawMessage
	// Notes say what became of its routes, where that was not its own choice,
	// and what else did not go as expected. An Add that answers with stored
	// results has none.
	Notes []string
}

// Add makes every attachment of p true in the namespace, in order. On error
// everything this call made is gone again, as far as it could be: what could
// not be removed keeps its record, and the error says so.
//
// When the same sandbox was attached before by the same request, Add returns
// the results of that time. Anything else that is recorded for the sandbox is
// taken down first.
func (a *Attacher) Add(ctx context.Context, sb store.Sandbox, p plan.Plan, reach Reach) ([]Attached, error) {
	done, err := a.replay(ctx, sb, p, reach)
	if done != nil || err != nil {
		return done, err
	}
	pod, err := openPod(reach.NS)
	if err != nil {
		return nil, err
	}
	if pod != nil {
		defer pod.Close()
	}
	if err := namesAreFree(pod, p.Attachments); err != nil {
		return nil, err
	}
	pr := progress{records: intents(sb, p)}
	if err := a.attachAll(ctx, &pr, reach, pod); err != nil {
		// Intents that could not be stored may be there nevertheless.
		return nil, errors.Join(err, a.rollback(ctx, pr, reach))
	}
	return pr.done, nil
}

// openPod opens a handle in a container, nil without a namespace.
func openPod(ns *netns.NS) (*rtnl.Handle, error) {
	if ns == nil {
		return nil, nil
	}
	return rtnl.Open(ns)
}

var errNotRecorded = types.NewError(types.ErrTryAgainLater,
	"nothing was attached, because it could not be recorded; look at the disk of braidd's state directory", "")

// replay answers a repeated request, or clears the way for a new one.
func (a *Attacher) replay(ctx context.Context, sb store.Sandbox, p plan.Plan, reach Reach) ([]Attached, error) {
	records, err := a.Store.Sandbox(sb.ContainerID, sb.IfName)
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return nil, err
	}
	if len(records) == 0 && damaged == nil {
		return nil, nil
	}
	if damaged == nil && sameRequest(records, sb, p) {
		if done, err := a.stillThere(ctx, records, reach); done != nil || err != nil {
			return done, err
		}
	}
	deleted, err := a.Del(ctx, sb.ContainerID, sb.IfName, reach)
	if err = errors.Join(err, deleted.Kept); err != nil {
		return nil, fmt.Errorf("take down what an earlier ADD left: %w", err)
	}
	return nil, nil
}

func sameRequest(records []store.Record, sb store.Sandbox, p plan.Plan) bool {
	if len(records) != len(p.Attachments) {
		return false
	}
	for i, r := range records {
		if !r.Complete() || r.Rebuilt || r.Index != i || r.Sandbox.NSID != sb.NSID || r.Sandbox.Args != sb.Args ||
			!sameAttachment(r.Attachment, p.Attachments[i]) {
			return false
		}
	}
	return true
}

// stillThere is what complete records came to, nil when an interface of it is
// gone. What drivers leave to the end is done once more: the daemon may have
// been killed after the records were stored and before it was done.
func (a *Attacher) stillThere(ctx context.Context, records []store.Record, reach Reach) ([]Attached, error) {
	done, err := stored(records)
	if err != nil {
		return nil, err
	}
	if there, err := allThere(reach.NS, done); !there || err != nil {
		return nil, err
	}
	left, err := a.unfinished(records, reach)
	if err == nil {
		err = finish(ctx, left)
	}
	if err != nil {
		return nil, err
	}
	return done, nil
}

func stored(records []store.Record) ([]Attached, error) {
	done := make([]Attached, len(records))
	for i, r := range records {
		result, err := decodeResult(r.Result)
		if err != nil {
			return nil, fmt.Errorf("attachment %s: %w", r.Attachment.IfName, err)
		}
		done[i] = Attached{Attachment: r.Attachment, Result: result, DeviceInfo: r.DeviceInfo}
	}
	return done, nil
}

func intents(sb store.Sandbox, p plan.Plan) []store.Record {
	records := make([]store.Record, len(p.Attachments))
	for i, at := range p.Attachments {
		records[i] = store.Record{Sandbox: sb, Index: i, Attachment: at}
	}
	return records
}

// allThere reports whether the interfaces of an earlier ADD still exist. The
// kernel gives the number of a namespace that is gone to the next one, so the
// same identity may be another, empty namespace.
func allThere(ns *netns.NS, done []Attached) (bool, error) {
	pod, err := openPod(ns)
	if pod == nil {
		return err == nil, err
	}
	defer pod.Close()
	for _, d := range done {
		for _, link := range d.Result.Interfaces {
			if link.Sandbox == "" {
				continue
			}
			if _, err := pod.Link(link.Name); errors.Is(err, rtnl.ErrNotFound) {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// namesAreFree refuses a plan whose interface names are taken before anything
// is made: a plugin that finds out by itself is asked to DEL afterwards, and
// might then remove somebody else's interface. (A loopback is nobody's to take:
// a network that is about lo is one.)
func namesAreFree(pod *rtnl.Handle, attachments []plan.Attachment) error {
	if pod == nil {
		return nil
	}
	for _, at := range attachments {
		switch link, err := pod.Link(at.IfName); {
		case errors.Is(err, rtnl.ErrNotFound):
		case err != nil:
			return err
		case link.Name != loopback:
			return fmt.Errorf("attach %s (%s): %w", at.IfName, at.Network, refuse(types.ErrInvalidNetworkConfig,
				"the container already has an interface of this name; ask for another one"))
		}
	}
	return nil
}

// loopback is what the kernel names it.
const loopback = "lo"

// progress is how far an ADD has come.
type progress struct {
	records []store.Record
	// done holds the attachments that are complete.
	done []Attached
	// touched is how many plugins of the next one may have left something.
	touched int
	// left is what is to be finished of those that are done.
	left []unfinished
	// ahead is for how many records, the last ones, addresses may have been
	// asked for ahead.
	ahead int
}

// attachAll attaches one after the other. The results are stored in one step,
// once the routes are settled: as long as they are missing, a repeated request
// begins anew, and DEL does without them.
func (a *Attacher) attachAll(ctx context.Context, pr *progress, reach Reach, pod *rtnl.Handle) error {
	todo, err := a.begin(ctx, pr.records, reach, pod)
	if err != nil {
		return err
	}
	brought, err := a.makeAll(ctx, pr, todo, reach, pod)
	if err == nil && pod != nil {
		err = pr.settle(brought, pod)
	}
	if err != nil {
		return err
	}
	if reach.Made != nil {
		reach.Made(pr.done)
	}
	// The kernel works while the disk does, which takes longer and so goes
	// first: a goroutine begins late.
	finished := make(chan error, 1)
	go func() { finished <- finish(ctx, pr.left) }()
	err = a.Store.Attached(ctx, pr.records...)
	return errors.Join(<-finished, err)
}

// work is what there is to make.
type work struct {
	chains []chain
	// foretold is the number of the first chain from which on each can be
	// foretold.
	foretold int
	// lift has default routes lifted out of the namespace.
	lift bool
}

// begin stores the intents, and prepares what they are about while the disk
// works.
func (a *Attacher) begin(ctx context.Context, records []store.Record, reach Reach, pod *rtnl.Handle) (work, error) {
	w := work{lift: pod != nil && contested(records)}
	prepared := make(chan error, 1)
	go func() {
		prepared <- Safely(func() error {
			w.chains, w.foretold = a.chains(records, reach, pod)
			return nil
		})
	}()
	err := a.Store.Begin(ctx, records)
	if err != nil {
		err = fmt.Errorf("%w: %w", errNotRecorded, err)
	}
	return w, errors.Join(err, <-prepared)
}

// makeAll makes the attachments, in the namespace that pod is in. Where the
// default route is contested it returns those that each brought, and that are
// lifted out of the namespace.
//
// A program's DEL may need the result of its ADD, which may have taken long. It
// is stored while the next attachment is being made.
func (a *Attacher) makeAll(ctx context.Context, pr *progress, todo work, reach Reach, pod *rtnl.Handle) (brought [][]rtnl.Route, err error) {
	var early errgroup.Group
	defer func() { err = errors.Join(err, early.Wait()) }()
	brought = make([][]rtnl.Route, len(todo.chains))
	for i, c := range todo.chains {
		if i == todo.foretold {
			pr.ahead = len(todo.chains) - i
			foretell(ctx, todo.chains[i:], pr.done, brought[:i], reach.Foretold)
		}
		result, left, touched, err := c.attach(ctx)
		if err == nil {
			pr.records[i].Result, err = json.Marshal(result)
		}
		if err != nil {
			pr.touched = touched
			return nil, err
		}
		pr.done, pr.left = append(pr.done, c.attached(result)), append(pr.left, left...)
		pr.records[i].DeviceInfo = pr.done[i].DeviceInfo
		if todo.lift {
			if brought[i], err = liftDefaults(pod); err != nil {
				return nil, c.aboutRoutes(err)
			}
		}
		if r := pr.records[i]; i+1 < len(todo.chains) && a.runsPrograms(r.Attachment.Config) {
			early.Go(func() error { return a.Store.Attached(ctx, r) })
		}
	}
	return brought, nil
}

// chains are those of the records, ready to begin. From the one with the number
// foretold on they are ready to tell what they come to.
func (a *Attacher) chains(records []store.Record, reach Reach, pod *rtnl.Handle) (list []chain, foretold int) {
	for _, r := range records {
		c := a.chain(r, reach)
		c.pod = pod
		c.prepare()
		list = append(list, c)
	}
	foretold = len(list)
	if reach.Foretold != nil {
		foretold = foreseeable(list)
	}
	return list, foretold
}

// settle decides on the default routes, puts them in, and changes the results
// of which they are a part.
func (pr *progress) settle(brought [][]rtnl.Route, pod *rtnl.Handle) error {
	s, err := settle(pr.done, brought)
	if err == nil {
		err = s.put(pod, pr.done)
	}
	if err != nil {
		return err
	}
	for i := range pr.done {
		pr.done[i].Notes = append(pr.done[i].Notes, s.notes[i]...)
		if pr.done[i].Result == s.results[i] {
			continue
		}
		pr.done[i].Result = s.results[i]
		if pr.records[i].Result, err = json.Marshal(s.results[i]); err != nil {
			return err
		}
	}
	return nil
}

// rollback undoes an ADD, last attachment first, and forgets what is gone.
func (a *Attacher) rollback(ctx context.Context, pr progress, reach Reach) error {
	ctx, cancel := a.cleanup(ctx)
	defer cancel()
	var gone []store.Key
	var errs []error
	for i := len(pr.records) - 1; i >= 0; i-- {
		c := a.chain(pr.records[i], reach)
		plugins := 0
		switch {
		case i < len(pr.done):
			plugins = len(c.plugins())
		case i == len(pr.done):
			plugins = pr.touched
		}
		if i >= len(pr.records)-pr.ahead {
			plugins = max(plugins, 1)
		}
		if err := c.detach(ctx, plugins); err != nil {
			errs = append(errs, fmt.Errorf("roll back: %w", err), a.noteFailure(ctx, pr.records[i], err))
			continue
		}
		gone = append(gone, pr.records[i].Key())
	}
	return errors.Join(append(errs, a.forget(ctx, gone))...)
}

// noteFailure remembers that an attachment could not be taken down because a
// program would not, or because of what was guessed of it, for takeDown to give
// it up one day. Whatever else was in the way may be gone next time.
func (a *Attacher) noteFailure(ctx context.Context, r store.Record, err error) error {
	if r.Certain() || !onlyStubborn(err) {
		return nil
	}
	r.FailedDels++
	return a.Store.Begin(ctx, []store.Record{r})
}

// cleanup is a context for taking down: it does not end with the request that
// failed, but with a time limit of its own.
func (a *Attacher) cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := a.CleanupTimeout
	if limit <= 0 {
		limit = 30 * time.Second
	}
	return context.WithTimeoutCause(context.WithoutCancel(ctx), limit,
		fmt.Errorf("clean-up did not end within %v: %w", limit, context.DeadlineExceeded))
}

func (a *Attacher) forget(ctx context.Context, keys []store.Key) error {
	if len(keys) == 0 {
		return nil
	}
	return a.Store.Remove(ctx, keys...)
}

// Undo takes down what a successful Add made, for a request that failed after
// it. Like the rollback of Add it does not end with ctx.
func (a *Attacher) Undo(ctx context.Context, containerID, ifName string, reach Reach) error {
	ctx, cancel := a.cleanup(ctx)
	defer cancel()
	deleted, err := a.Del(ctx, containerID, ifName, reach)
	if err = errors.Join(err, deleted.Kept); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// Deleted says what Del found.
type Deleted struct {
	// Records is how many attachments were recorded and readable.
	Records int
	// Damaged names records that could not be read, nil when all could.
	Damaged *store.DamagedError
	// GaveUp holds the errors of programs that Del will not ask again.
	GaveUp []error
	// Kept is why records of what is gone could not be removed, nil when they
	// were. Nothing but they themselves is left; a later Del removes them.
	Kept error
}

// Del takes a sandbox down by its records, last attachment first. Everything
// is attempted; what could not be removed keeps its record, so that the
// runtime's next DEL goes on from there. A sandbox without records is no error.
//
// What damaged records spoke of is unknown, or was guessed. Del releases the
// addresses that the container still holds where that can be found out without a
// configuration.
//
// One thing is given up: a program that never finished ADD, or any plugin of an
// attachment that was guessed, which then failed or hung when it was asked to
// DEL, is asked once more and no third time. A pod that names such a plugin could
// otherwise never be deleted.
func (a *Attacher) Del(ctx context.Context, containerID, ifName string, reach Reach) (Deleted, error) {
	var d Deleted
	records, err := a.Store.Sandbox(containerID, ifName)
	if err != nil && !errors.As(err, &d.Damaged) {
		return d, err
	}
	d.Records = len(records)
	err = a.takeDown(ctx, records, &d, reach)
	if d.Damaged != nil || slices.ContainsFunc(records, func(r store.Record) bool { return r.Guessed }) {
		err = errors.Join(err, a.Sweep(ctx, containerID))
	}
	if d.Damaged != nil && err == nil {
		d.Kept = errors.Join(d.Kept, a.forget(ctx, d.Damaged.Keys))
	}
	return d, err
}

// takeDown detaches what is recorded, last first, and forgets what is gone.
func (a *Attacher) takeDown(ctx context.Context, records []store.Record, d *Deleted, reach Reach) error {
	var gone []store.Key
	var errs []error
	for _, r := range slices.Backward(records) {
		err := a.delOne(ctx, r, reach)
		if onlyStubborn(err) && r.FailedDels > 0 {
			d.GaveUp, err = append(d.GaveUp, err), a.chain(r, reach).removeInfo()
		}
		if err != nil {
			errs = append(errs, err, a.noteFailure(ctx, r, err))
			continue
		}
		gone = append(gone, r.Key())
	}
	d.Kept = a.forget(ctx, gone)
	return errors.Join(errs...)
}

// Sweep releases the addresses that a container holds, of whatever attachment.
// It is for one that ended and whose records are lost.
func (a *Attacher) Sweep(ctx context.Context, containerID string) error {
	var errs []error
	for _, plugin := range a.IPAM {
		if s, ok := plugin.(ipam.Sweeper); ok {
			errs = append(errs, s.Sweep(ctx, containerID))
		}
	}
	return errors.Join(errs...)
}

func (a *Attacher) delOne(ctx context.Context, r store.Record, reach Reach) error {
	c := a.chain(r, reach.forRecord(r))
	return c.detach(ctx, len(c.plugins()))
}

// forRecord drops the namespace when it is not the one of the record: its path
// was reused, and what is in it belongs to somebody else.
func (r Reach) forRecord(rec store.Record) Reach {
	if r.NS == nil || rec.Sandbox.NSID.IsZero() {
		return r
	}
	if id, err := r.NS.ID(); err != nil || id != rec.Sandbox.NSID {
		r.NS = nil
	}
	return r
}

// DelUnrecorded takes down an attachment that no record speaks of, such as one
// that was made before Braid came to the node, by the configuration that its
// network has today.
func (a *Attacher) DelUnrecorded(ctx context.Context, r store.Record, reach Reach) error {
	return a.delOne(ctx, r, reach)
}

// ErrUnknown means that nothing is recorded for a sandbox.
var ErrUnknown = types.NewError(types.ErrUnknownContainer, "no attachment is recorded for this container and interface", "")

// Check compares every attachment of a sandbox with the world, in order, and
// returns the first difference.
func (a *Attacher) Check(ctx context.Context, containerID, ifName string, reach Reach) error {
	records, err := a.Store.Sandbox(containerID, ifName)
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return ErrUnknown
	}
	for _, r := range records {
		if Unfinished(r) {
			continue // the daemon is at it; the pod does not count on it
		}
		if err := a.chain(r, reach).check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// AsksPrograms reports whether Status would run a program for this network.
func (a *Attacher) AsksPrograms(n plan.Network) bool {
	return atLeast(n.CNIVersion, "1.1.0") && a.runsPrograms(n)
}

// runsPrograms reports whether a plugin of the network is a program.
func (a *Attacher) runsPrograms(n plan.Network) bool {
	return slices.ContainsFunc(n.Plugins, func(p plan.Plugin) bool {
		_, ok := a.Drivers[p.Type]
		return !ok
	})
}

// Status asks the programs of a network whether they are ready (CNI
// specification 1.1, STATUS). Drivers of Braid always are.
func (a *Attacher) Status(ctx context.Context, n plan.Network, reach Reach) error {
	if !a.AsksPrograms(n) {
		return nil
	}
	at := plan.Attachment{Network: n.Name, Config: n}
	c := a.chain(store.Record{Attachment: at}, reach)
	for _, p := range n.Plugins {
		if _, ok := a.Drivers[p.Type]; ok {
			continue
		}
		conf, err := complete(at, p, nil)
		if err == nil {
			err = c.program(p.Type).Status(ctx, reach.Host, conf)
		}
		if err != nil {
			return fmt.Errorf("status of %s (plugin %s): %w", n.Name, p.Type, err)
		}
	}
	return nil
}
