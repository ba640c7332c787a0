// Package agent does a node's part in a migration: it makes what the leader
// asks for in the node's NodeMigration true, and reports what kernel and runtime
// say. It can be killed between any two lines: each round begins with a look.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/hostexec"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/confswitch"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/keepsource"
	"braid.dev/braid/internal/rtnl"
)

const (
	// pace is how often the agent looks by itself: others change rules and files.
	pace = 2 * time.Second
	// heartbeat is how often it says that it lives.
	heartbeat = 10 * time.Second
	// exemptEvery is how often the exemption from NAT is looked after: whoever
	// loads rules anew may have flushed it.
	exemptEvery = 5 * time.Second
	// auditEvery is how often what is left is listed anew, cleanEvery how often it
	// is tried to remove what could not be removed before.
	auditEvery = time.Minute
	cleanEvery = 5 * time.Second
	// grace is how long containers have to end whose sandbox is restarted.
	grace = 30 * time.Second
)

// Config is a node as its agent sees it.
type Config struct {
	// Node is the name of the node.
	Node string
	// Root is where the host's file tree is.
	Root hostexec.Root
	// ConfDir and StateDir are paths of the host: of the runtime's configurations
	// and of what has to survive a restart.
	ConfDir  string
	StateDir string
	Runtime  *cri.Client
	Cluster  *kube.Migrations
	Log      *slog.Logger
	// CNI knows the two networks.
	CNI CNI
}

// CNI is what profiles know of the networks on a node.
type CNI interface {
	// Ready returns nil when the datapath of a network serves on this node.
	Ready(ctx context.Context, n v1alpha1.Network) error
	// Audit lists what a network has left; Clean removes that first. Other is
	// the network that stays, and sandboxes are all of the node's.
	Audit(ctx context.Context, n, other v1alpha1.Network, sandboxes []facts.Sandbox) (v1alpha1.LeftoverReport, error)
	Clean(ctx context.Context, n, other v1alpha1.Network, sandboxes []facts.Sandbox) (v1alpha1.LeftoverReport, error)
	// Facts are all that is known of the node, with the ways to the peers, who
	// answer at the ports.
	Facts(ctx context.Context, paths v1alpha1.PathRequest) facts.Node
	// Echo answers other nodes at a UDP port until ctx ends.
	Echo(ctx context.Context, port uint16) error
}

// Agent does a node's part.
type Agent struct {
	Config
	// restarted are the sandboxes that this agent has stopped, by the pod's UID:
	// until the kubelet has made others.
	restarted map[string]time.Time
	// free says that there was no exemption from NAT when it was last looked,
	// exempted when the exemption was last seen to be whole.
	free     bool
	exempted time.Time
	audited  time.Time
	// kept is the file that says what the node was before the migration.
	kept string
	echo echo
	said string
}

// New prepares an agent.
func New(c Config) *Agent { return &Agent{Config: c, restarted: map[string]time.Time{}} }

// Run works until ctx ends. While the API server is away it goes on with what it
// knows: an exemption from NAT, for instance, is kept in place.
func (a *Agent) Run(ctx context.Context) error {
	view := a.Cluster.NodeView(a.Node)
	defer view.Follow(ctx)()
	defer a.echo.end()
	for ctx.Err() == nil {
		if parts := view.Snapshot().NodeMigrations; len(parts) == 1 {
			a.once(ctx, view, parts[0])
		}
		beat := time.NewTimer(pace)
		select {
		case <-view.Changed():
		case <-beat.C:
		case <-ctx.Done():
		}
		beat.Stop()
	}
	return nil
}

// once makes the spec true as far as it can and reports.
func (a *Agent) once(ctx context.Context, view *kube.View, part v1alpha1.NodeMigration) {
	st := a.work(ctx, part)
	if ctx.Err() != nil {
		return // half a round says nothing
	}
	old := part.Status
	old.Heartbeat = st.Heartbeat
	if reflect.DeepEqual(old, st) && time.Since(part.Status.Heartbeat.Time) < heartbeat {
		return
	}
	written, err := a.Cluster.UpdateNodeMigrationStatus(ctx, &part, st)
	if err == nil {
		view.SawNodeMigration(written)
	} else if !errors.Is(err, kube.ErrConflict) && !errors.Is(err, kube.ErrNotFound) {
		a.say(err.Error())
		return
	}
	a.say(st.Message)
}

// say logs what is in the way, once.
func (a *Agent) say(text string) {
	if text != "" && text != a.said {
		a.Log.Warn("migration: "+text, "node", a.Node)
	}
	a.said = text
}

// A round is one look at the node with what is done about it.
type round struct {
	*Agent
	spec     v1alpha1.NodeMigrationSpec
	st       v1alpha1.NodeMigrationStatus
	problems []string
	// sandboxes are those of the runtime.
	sandboxes []cri.Sandbox
}

// work does one round and returns the status.
func (a *Agent) work(ctx context.Context, part v1alpha1.NodeMigration) v1alpha1.NodeMigrationStatus {
	r := &round{Agent: a, spec: part.Spec, st: part.Status}
	var err error
	r.sandboxes, err = a.Runtime.ListSandboxes(ctx)
	r.trouble(err)
	if r.spec.Migration != "" {
		r.keep(ctx)
		r.exempt(ctx)
		r.look(ctx)
		if r.setRuntime(ctx) {
			r.move(ctx)
		}
		r.count()
		r.probe(ctx)
		r.clean(ctx)
	}
	r.answer(ctx)
	r.facts(ctx)
	r.st.Message = strings.Join(r.problems, "; ")
	r.st.ObservedGeneration = part.Generation
	r.st.Heartbeat = metav1.Now()
	return r.st
}

// trouble remembers what could not be done.
func (r *round) trouble(err error) {
	if err != nil {
		r.problems = append(r.problems, err.Error())
	}
}

// network is that of a side.
func (r *round) network(s v1alpha1.Side) v1alpha1.Network {
	if s == v1alpha1.Target {
		return r.spec.To
	}
	return r.spec.From
}

// look asks whether both datapaths serve.
func (r *round) look(ctx context.Context) {
	ready := func(n v1alpha1.Network) string {
		if err := r.CNI.Ready(ctx, n); err != nil {
			return err.Error()
		}
		return "yes"
	}
	r.st.SourceReady, r.st.TargetReady = ready(r.spec.From), ready(r.spec.To)
}

// setRuntime has the runtime give pods what it shall, and reads that back from
// the runtime itself.
func (r *round) setRuntime(ctx context.Context) bool {
	c := confswitch.Config{
		Dir: r.Root.Path(r.ConfDir), StateDir: r.Root.Path(filepath.Join(r.StateDir, "migrate")),
		Migration: r.spec.Migration, From: r.spec.From, To: r.spec.To, Probes: migrate.ProbeNamespace,
		Message: "migration " + r.spec.Migration + ": the node is about to change its network",
	}
	if r.spec.Runtime == "" {
		return false
	}
	err := confswitch.Set(ctx, c, r.spec.Runtime)
	if err == nil {
		err = confswitch.Verify(ctx, c, r.Runtime, r.spec.Runtime)
	}
	r.trouble(err)
	r.st.Runtime = r.spec.Runtime
	if err != nil {
		// What it has instead, as far as that can be told.
		r.st.Runtime, _ = confswitch.Loaded(ctx, c, r.Runtime)
	}
	return err == nil
}

// exempt keeps the exemption from NAT, or sees to it that there is none.
func (r *round) exempt(ctx context.Context) {
	c := keepsource.Config{
		Old: prefixes(r.spec.From.PodCIDRs), New: prefixes(r.spec.To.PodCIDRs),
		OldDevices: r.spec.From.Devices, NewDevices: r.spec.To.Devices,
		Sysctl: rtnl.Sysctl{Root: r.Root.Path("/proc/sys/net")}, Host: r.Root,
		StateFile: r.Root.Path(filepath.Join(r.StateDir, "migrate", "preserve-source.json")),
	}
	if !r.spec.PreserveSource {
		if _, err := os.Stat(c.StateFile); err != nil && r.free {
			return // there is none, and this agent has looked
		}
		err := keepsource.Remove(ctx, c)
		r.trouble(err)
		r.free = err == nil
		r.st.PreserveSource = r.st.PreserveSource && err != nil
		return
	}
	if r.st.PreserveSource && time.Since(r.exempted) < exemptEvery {
		return
	}
	_, err := keepsource.Apply(ctx, c)
	if err == nil {
		err = keepsource.Verify(ctx, c)
	}
	r.trouble(err)
	r.st.PreserveSource = err == nil
	r.exempted, r.free = time.Now(), false
}

func prefixes(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range list {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// facts answers when the node's facts are asked for, and drops them once they
// have been read.
func (r *round) facts(ctx context.Context) {
	if r.st.FactsAsked <= r.spec.FactsTaken {
		r.st.Facts = nil
	}
	if r.spec.Facts == r.st.FactsAsked {
		return
	}
	var paths v1alpha1.PathRequest
	if r.spec.Paths != nil {
		paths = *r.spec.Paths
	}
	raw, err := factsOf(r.CNI.Facts(ctx, paths))
	r.trouble(err)
	if err == nil {
		r.st.Facts, r.st.FactsAsked = raw, r.spec.Facts
	}
}

// keep writes down, once per migration and before it changes anything, what the
// node was: its links, routes, rules, settings and conf dir, for a person who
// wants to compare, or to repair by hand what no program can.
func (r *round) keep(ctx context.Context) {
	dir := r.Root.Path(filepath.Join(r.StateDir, "migrate", r.spec.Migration))
	path := filepath.Join(dir, "before.json")
	if r.kept == path {
		return
	}
	if _, err := os.Stat(path); err == nil {
		r.kept = path
		return
	}
	text, err := json.MarshalIndent(r.CNI.Facts(ctx, v1alpha1.PathRequest{}), "", "  ")
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = confdir.Replace(dir, filepath.Base(path), text, 0o600)
	}
	r.trouble(err)
	if err == nil {
		r.kept = path
	}
}

// clean removes, or lists, what a network has left. A network whose pods are
// still there, or whose agent runs, stays.
func (r *round) clean(ctx context.Context) {
	side, do := r.spec.Audit, r.CNI.Audit
	if r.spec.Clean != "" {
		side, do = r.spec.Clean, r.CNI.Clean
	}
	if side == "" {
		r.st.Leftovers = nil
		return
	}
	have := r.st.Leftovers
	if have != nil && have.Side == side && have.Audits == r.spec.Audits {
		pause := auditEvery
		if r.spec.Clean != "" && len(have.Items) > 0 {
			pause = cleanEvery
		}
		if time.Since(r.audited) < pause {
			return
		}
	}
	report, err := do(ctx, r.network(side), r.network(side.Other()), r.known())
	r.trouble(err)
	report.Side, report.Audits = side, r.spec.Audits
	if have != nil && have.Side == side {
		report.Cleaned += have.Cleaned
		report.Changed = append(slices.Clone(have.Changed), report.Changed...)
	}
	r.st.Leftovers = &report
	r.audited = time.Now()
}
