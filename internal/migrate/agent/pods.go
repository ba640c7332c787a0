package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/probe"
	"braid.dev/braid/internal/netns"
)

// parallel bounds how many sandboxes are restarted at once.
const parallel = 8

// comesBack is how long a pod may take to have a sandbox again before it is
// taken for one that shall not: ended, or deleted meanwhile.
const comesBack = 2 * time.Minute

// sideOf is the side that a sandbox is on by its first address.
func (r *round) sideOf(s cri.Sandbox) v1alpha1.Side {
	if len(s.IPs) == 0 {
		return ""
	}
	return migrate.SideOf(v1alpha1.MigrationSpec{From: r.spec.From, To: r.spec.To}, s.IPs[0])
}

// lives are the sandboxes that have a network of their own.
func (r *round) lives() []cri.Sandbox {
	return slices.DeleteFunc(slices.Clone(r.sandboxes), func(s cri.Sandbox) bool { return !s.Ready || s.HostNetwork })
}

// move restarts the sandboxes that are not on the side where they shall be. The
// kubelet makes others for the same pods: same pod, same node, one more restart.
func (r *round) move(ctx context.Context) {
	if r.spec.Move == "" {
		clear(r.restarted)
		return
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, parallel)
	for _, s := range r.lives() {
		if s.Namespace == migrate.ProbeNamespace || r.sideOf(s) != r.spec.Move.Other() {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := r.Runtime.Restart(ctx, s.ID, grace)
			mu.Lock()
			defer mu.Unlock()
			r.trouble(err)
			if err == nil {
				r.restarted[s.UID] = time.Now()
				r.Log.Info("restarted the sandbox of a pod", "pod", s.String(), "had", s.IPs)
			}
		})
	}
	wg.Wait()
	sandboxes, err := r.Runtime.ListSandboxes(ctx)
	r.trouble(err)
	if err == nil {
		r.sandboxes = sandboxes
	}
}

// count says how many sandboxes are on which side, and what still has to move.
func (r *round) count() {
	r.st.OnSource, r.st.OnTarget, r.st.OnNeither, r.st.Left = 0, 0, 0, nil
	for _, s := range r.lives() {
		if s.Namespace == migrate.ProbeNamespace {
			continue
		}
		side := r.sideOf(s)
		switch side {
		case v1alpha1.Source:
			r.st.OnSource++
		case v1alpha1.Target:
			r.st.OnTarget++
		default:
			r.st.OnNeither++
		}
		if r.spec.Move != "" && side == r.spec.Move.Other() {
			r.st.Left = append(r.st.Left, s.String())
		}
		if side == r.spec.Move {
			delete(r.restarted, s.UID)
		}
	}
	r.st.Left = append(r.st.Left, r.missing()...)
	slices.Sort(r.st.Left)
}

// missing are pods whose sandbox was stopped and that have none again yet.
func (r *round) missing() []string {
	var list []string
	for uid, when := range r.restarted {
		i := slices.IndexFunc(r.sandboxes, func(s cri.Sandbox) bool { return s.UID == uid })
		if i < 0 || time.Since(when) > comesBack {
			delete(r.restarted, uid)
			continue
		}
		list = append(list, r.sandboxes[i].String())
	}
	return list
}

// probe answers a round of probes that was not answered yet: from the node
// itself and from inside the namespace of every probe.
func (r *round) probe(ctx context.Context) {
	want := r.spec.Probe
	if want == nil || r.st.Probe != nil && r.st.Probe.Round == want.Round {
		return
	}
	owners, err := probe.Owners(nil)
	r.trouble(err)
	askers := []probe.Asker{{}}
	for _, s := range r.lives() {
		side := r.sideOf(s)
		if s.Namespace != migrate.ProbeNamespace || side == "" || s.NetNS == "" {
			continue
		}
		ns, err := netns.Open(r.Root.Path(s.NetNS))
		if err != nil {
			r.trouble(err)
			continue
		}
		defer ns.Close()
		source, _ := netip.ParseAddr(s.IPs[0])
		askers = append(askers, probe.Asker{Side: side, NS: ns, Source: source})
	}
	report := probe.Report(ctx, r.Node, *want, askers, probe.Options{Owners: owners})
	r.st.Probe = &report
}

// known are the sandboxes as facts.
func (r *round) known() []facts.Sandbox {
	var list []facts.Sandbox
	for _, s := range r.sandboxes {
		list = append(list, facts.Sandbox{
			ID: s.ID, Namespace: s.Namespace, Pod: s.Pod, UID: s.UID, Ready: s.Ready,
			HostNetwork: s.HostNetwork, IPs: s.IPs, NetNS: s.NetNS,
		})
	}
	return list
}

// maxFacts is how large the facts of a node may be in the API, in bytes: objects
// are limited to a little more.
const maxFacts = 1 << 20

// factsOf are facts as the API takes them.
func factsOf(n facts.Node) (*runtime.RawExtension, error) {
	for {
		raw, err := json.Marshal(n)
		switch {
		case err != nil:
			return nil, err
		case len(raw) <= maxFacts:
			return &runtime.RawExtension{Raw: raw}, nil
		case len(n.Firewall) > 0:
			largest := slices.IndexFunc(n.Firewall, func(r facts.Ruleset) bool {
				return !slices.ContainsFunc(n.Firewall, func(other facts.Ruleset) bool { return len(other.Text) > len(r.Text) })
			})
			n.Problems = append(n.Problems, "the rules of "+n.Firewall[largest].Backend+" are too many to be reported")
			n.Firewall = slices.Delete(slices.Clone(n.Firewall), largest, largest+1)
		default:
			return nil, errors.New("the facts of the node are too large to be reported")
		}
	}
}
