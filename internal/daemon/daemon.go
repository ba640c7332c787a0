// Package daemon serves the requests of the container runtime: it knows the
// whole story of a pod from CNI_ARGS to the network-status annotation, and
// leaves each step of it to the package that knows that step.
//
// Requests for one container are served one at a time in the order they came,
// those of different containers in parallel up to a limit, and each has a
// deadline.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// Networks are the networks of the conf dir.
type Networks interface {
	// First are the default network and those behind it, in order, n at most.
	// It is empty as long as there is no default network.
	First(n int) []plan.Network
	OnDisk(name string) (plan.Network, bool)
}

// Errors of a Cluster that say what to do next.
var (
	// ErrAway means that the API could not be asked. It will be.
	ErrAway = errors.New("the API server cannot be asked now")
	// ErrGone means that the API knows no such pod, or not any more.
	ErrGone = errors.New("the pod is gone")
)

// Cluster is what serving a pod needs of Kubernetes.
type Cluster interface {
	// Pod returns the pod that the runtime tells of, as the API has it, and
	// waits for it until ctx ends. When the API cannot be asked it is the pod as
	// told, unless the annotations are nil: then the runtime tells nothing of
	// them.
	Pod(ctx context.Context, told plan.Pod) (plan.Pod, error)
	// Known returns the pod if it is in memory.
	Known(namespace, name, uid string) (plan.Pod, bool)
	// All returns the pods in memory, and a channel that is closed when any of
	// them changes, comes or goes after that.
	All() (pods []plan.Pod, changed <-chan struct{})
	// Life asks how a pod lives. The error is ErrAway or ErrGone.
	Life(ctx context.Context, pod plan.Pod) (Life, error)
	// Following says why what is in memory may be behind the API, nil while it
	// is not.
	Following() error
	// Definition returns ok false when there is no such definition, and an
	// error when that could not be found out.
	Definition(ctx context.Context, namespace, name string) (d plan.Definition, ok bool, err error)
	// SetNetworkStatus writes the annotation, or removes it when the text is
	// empty, trying again until ctx ends when that may help. The error is
	// ErrAway, soon, or ErrGone.
	SetNetworkStatus(ctx context.Context, pod plan.Pod, text string) error
	// Added, Removed and Failed record events and do not wait for them.
	Added(pod plan.Pod, message string)
	Removed(pod plan.Pod, message string)
	Failed(pod plan.Pod, message string)
	// Damaged records an event about records that were lost: on the pod, or on
	// the node when the pod has no name. Stuck records one on the node, about
	// what could not be cleaned up several times.
	Damaged(pod plan.Pod, message string)
	Stuck(message string)
	// Synced says why pods and definitions are not known yet.
	Synced() error
}

// Life is how a pod lives: in the network of its node, and whether its sandbox
// is there.
type Life struct{ HostNetwork, Running bool }

// Records is what the daemon itself needs of the store.
type Records interface {
	All() ([]store.Record, error)
	Sandbox(containerID, ifName string) ([]store.Record, error)
	Healthy(ctx context.Context) error
	// Aside lists files of records that could not be read, Missing whether
	// records may be missing, until Rebuilt.
	Aside() []store.Aside
	Missing() (bool, error)
	Rebuilt(ctx context.Context) error
}

// Config is what a Daemon is made of.
type Config struct {
	Attacher *attach.Attacher
	Records  Records
	Networks Networks
	// ConfDirNetworks is how many networks of the conf dir every pod gets. The
	// default is 1, the default network alone.
	ConfDirNetworks int
	// Isolation says which NetworkAttachmentDefinitions a pod may use.
	Isolation plan.Isolation
	// WaitForStatus has an ADD end when the pod's network status is written.
	// Without it that is done when the burst of ADDs that it belongs to is over.
	WaitForStatus bool
	// Cluster is nil on a machine without Kubernetes, where every container
	// gets the default network.
	Cluster Cluster
	// Devices is nil where the kubelet is not asked, and networks that are made
	// of devices cannot be had.
	Devices Devices
	// DeviceInfoDir is the directory of device information files, empty for
	// none.
	DeviceInfoDir string
	// SubnetFile reads the file that Flannel's agent writes for its plugin. Nil
	// leaves that plugin to its program.
	SubnetFile func(path string) ([]byte, error)
	// Installed, if not nil, says why the runtime would not call Braid.
	Installed func() error
	// StatusFile is where the last answer of the default network's programs to
	// STATUS is kept for the next daemon, in a directory that a reboot empties.
	// Empty keeps none.
	StatusFile string
	Log        *slog.Logger
	// Socket is where the daemon listens, as the host sees it. The default is
	// wire.DefaultSocket.
	Socket string
	// Notes is the directory of the notes of DEL, empty for none.
	Notes string
	// CacheDir is where libcni, of the runtime, keeps the results of its ADDs,
	// empty when that cannot be read.
	CacheDir string
	// MultusCacheDir is where libcni, of Multus, kept the results of its ADDs. It
	// is read when a container of before Braid is deleted.
	MultusCacheDir string
	// BootID is the kernel's boot ID.
	BootID string
	// Containers, if not nil, names the sandboxes that the runtime has.
	Containers func(ctx context.Context) ([]string, error)
	// Served, if not nil, is told of every request: its CNI command, the code of
	// the error that it was answered with, 0 for none, and how long it took.
	Served func(command string, code uint, took time.Duration)
	// RequestTimeout bounds each request. The default is 60 seconds.
	RequestTimeout time.Duration
	// Parallel bounds how many ADDs, and besides them how many DELs, are
	// worked on at once. The default is 16.
	Parallel int
}

// Daemon serves requests. Make one with New.
type Daemon struct {
	Config
	queue      queue
	hands      hands
	adds, dels lane
	takenDown  recent
	health     health
	programs   programs
	statusWait time.Duration
	pace       pace
	// suspects belongs to releaseOrphans, and soon is rung by it when a round
	// should come early.
	suspects map[string]bool
	soon     bell
	// late is rung when a network status could not be written.
	late bell
	// untold are the sandboxes whose network status is to be written, nil with
	// WaitForStatus.
	untold  chan untold
	telling atomic.Int64 // how many of them wait
	// plugs knows which pods were served.
	plugs plugger
}

// New makes a Daemon and fills in defaults.
func New(c Config) *Daemon {
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = 60 * time.Second
	}
	if c.Parallel <= 0 {
		c.Parallel = 16
	}
	c.ConfDirNetworks = max(c.ConfDirNetworks, 1)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	d := &Daemon{
		Config: c,
		hands:  hands{idle: handIdle},
		adds:   make(lane, c.Parallel), dels: make(lane, c.Parallel),
		plugs:      newPlugger(),
		programs:   programs{file: c.StatusFile, due: newBell()},
		late:       newBell(),
		soon:       newBell(),
		statusWait: statusWait,
	}
	if !c.WaitForStatus {
		d.untold = make(chan untold, tellQueue)
	}
	return d
}

// Recover reports what an earlier daemon left unfinished, and serves the notes
// of DEL that it can without a hand on the host. Call it before requests are
// served. An ADD that was interrupted is not touched: the runtime repeats it or
// gives it up with a DEL, and only it knows which.
func (d *Daemon) Recover(ctx context.Context) error {
	for _, aside := range d.Records.Aside() {
		d.reportDamage(plan.Pod{}, "the records of this node could not be read: "+aside.String())
	}
	records, err := d.Records.All()
	var damaged *store.DamagedError
	if errors.As(err, &damaged) {
		d.Log.Error("records cannot be read and were set aside", "err", damaged)
	} else if err != nil {
		return err
	}
	for _, r := range records {
		if !r.Complete() {
			d.Log.Warn("attachment was interrupted; it is finished or removed by the runtime's next request for it",
				"container", r.Sandbox.ContainerID, "pod", podName(r.Sandbox.Pod), "ifname", r.Attachment.IfName, "network", r.Attachment.Network)
		}
	}
	d.Log.Info("attachments known", "count", len(records))
	if err := d.programs.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.Log.Warn("the default network's last answer to STATUS cannot be used", "err", err)
	}
	// The others are served as soon as that is possible, beside the requests.
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	d.serveNotes(ctx)
	return nil
}

// recoverTime bounds what is done before requests are served.
const recoverTime = 5 * time.Second

func podName(p plan.Pod) string {
	if p.Name == "" {
		return ""
	}
	return p.Namespace + "/" + p.Name
}

// Handle serves one connection of a shim: a request of the runtime, or the hand
// on the host and what it brings.
func (d *Daemon) Handle(c *wire.Conn) {
	switch c.Request().Command {
	case wire.CommandStay:
		d.stand(c)
		return
	case wire.CommandReach:
		d.reached(c)
		return
	}
	start := time.Now()
	raw := c.Request()
	ctx, cancel := context.WithTimeoutCause(c.Context(), d.RequestTimeout,
		fmt.Errorf("the request did not finish within %v: %w", d.RequestTimeout, context.DeadlineExceeded))
	defer cancel()
	var stdout []byte
	err := attach.Safely(func() (err error) { // a panic is an error reply, and the other requests go on
		stdout, err = d.serve(ctx, c)
		return err
	})
	if err != nil && errors.Is(context.Cause(c.Context()), wire.ErrShutdown) {
		d.logRequest(raw, start, fmt.Errorf("left to the next daemon: %w", err))
		return // without a reply the shim asks again
	}
	reply := replyWith(stdout, err)
	reply.Stay = !raw.NoStay && d.hands.ask(time.Now())
	if replyErr := c.Reply(reply); replyErr != nil {
		err = errors.Join(err, replyErr)
	}
	d.logRequest(raw, start, err)
	if d.Served != nil {
		d.Served(raw.Command, codeIn(reply), time.Since(start))
	}
}

func (d *Daemon) logRequest(r wire.Request, start time.Time, err error) {
	pod, _ := parseArgs(r.Args)
	attrs := []any{"command", r.Command, "duration", time.Since(start).Round(10 * time.Microsecond)}
	if r.ContainerID != "" {
		attrs = append(attrs, "container", r.ContainerID, "ifname", r.IfName)
	}
	if pod.isPod() {
		attrs = append(attrs, "pod", pod.namespace+"/"+pod.name)
	}
	if err != nil {
		attrs = append(attrs, "code", codeOf(err), "err", err)
	}
	if r.Command == "STATUS" && err == nil {
		d.Log.Debug("request served", attrs...) // every few seconds
		return
	}
	d.Log.Info("request served", attrs...)
	var crash *attach.PanicError
	if errors.As(err, &crash) {
		d.Log.Error("panic while serving a request; please report this", "panic", crash.Value, "stack", string(crash.Stack))
	}
}

func (d *Daemon) serve(ctx context.Context, c *wire.Conn) ([]byte, error) {
	r, err := parseRequest(c.Request())
	if err != nil {
		return nil, err
	}
	ns, err := openNS(c)
	if err != nil {
		return nil, err
	}
	if ns != nil {
		defer ns.Close()
	}
	r.reach = attach.Reach{NS: ns, Host: hand{c}, Path: r.Path}
	return d.dispatch(ctx, r)
}

func (d *Daemon) dispatch(ctx context.Context, r request) ([]byte, error) {
	switch r.Command {
	case "STATUS":
		return nil, d.status(ctx, r)
	case "GC":
		return nil, d.gc(ctx, r)
	case "ADD", "CHECK", "DEL":
	default:
		return nil, fmt.Errorf("command %q is none of CNI", r.Command)
	}
	// First the container's turn, then a place to work: those who wait for
	// their turn take no place away from others.
	leave, err := d.queue.enter(ctx, r.ContainerID)
	if err != nil {
		return nil, fmt.Errorf("wait for the earlier request of this container: %w", err)
	}
	defer leave()
	places := d.adds
	if r.Command == "DEL" {
		places = d.dels
	}
	done, err := places.enter(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for other containers, %d at once (parallel): %w", d.Parallel, err)
	}
	defer done()
	switch r.Command {
	case "ADD":
		return d.add(ctx, r)
	case "CHECK":
		return nil, d.check(ctx, r)
	default:
		return nil, d.del(ctx, r)
	}
}
