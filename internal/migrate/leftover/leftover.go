// Package leftover finds what a CNI has left on a node, and removes that and
// nothing else.
//
// What is a CNI's own is told by patterns (spec.Spec). What somebody
// still lives on stays, with the reason. Everything can be repeated: each call
// looks at the kernel and the files anew, so that one that was killed anywhere
// is finished by the next. Before and after a cleaning all that is not the
// CNI's own is written down, and the difference is reported.
package leftover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/netns"
)

// Host runs programs of the host, such as iptables-nft-save. A program that is
// not there is exec.ErrNotFound or fs.ErrNotExist, or ends with the exit code
// 127, as it does for a shell or chroot(1).
type Host interface {
	Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error)
}

// Node is the node that is looked at.
type Node struct {
	// NS is the host's network namespace; nil is the current one.
	NS *netns.NS
	// Root is where the host's files are; empty is /.
	Root string
	Host Host
}

// InUse is what must not be harmed.
type InUse struct {
	// Sandboxes are all pods' sandboxes that the runtime has.
	Sandboxes []facts.Sandbox
	// Agents are what still runs on the node of the CNI that is to be cleaned up,
	// such as "pod kube-flannel/kube-flannel-ds-x2x4". It would make again what is
	// removed, so nothing is.
	Agents []string
	// Other is what the network that stays would leave. What is its own too stays,
	// and what changes of it meanwhile is not reported.
	Other spec.Spec
}

// tries is how often Clean looks again, because somebody else changed what it
// was about to, or because a thing can go only when another is gone.
const tries = 3

// Audit lists what is left. It changes nothing. With an error the list may lack
// what could not be read. The report's Side is the caller's to set.
func Audit(ctx context.Context, n Node, l spec.Spec, use InUse) (v1alpha1.LeftoverReport, error) {
	h, err := n.hands()
	if err != nil {
		return v1alpha1.LeftoverReport{}, fmt.Errorf("audit what %s left: %w", l.Profile, err)
	}
	defer h.close()
	found, others, err := h.look(ctx, l, use)
	if err != nil {
		err = fmt.Errorf("audit what %s left: %w", l.Profile, err)
	}
	return report(found, others), err
}

// Clean removes what is left and not in use, and reports what is left then,
// with the number of things that it removed. An error says what could not be
// read or removed; everything else is done all the same. The runtime must not
// give that network to new pods any more: one that is being made is not known
// yet.
func Clean(ctx context.Context, n Node, l spec.Spec, use InUse) (v1alpha1.LeftoverReport, error) {
	h, err := n.hands()
	if err != nil {
		return v1alpha1.LeftoverReport{}, fmt.Errorf("clean up what %s left: %w", l.Profile, err)
	}
	defer h.close()
	r, err := h.clean(ctx, l, use)
	if err != nil {
		err = fmt.Errorf("clean up what %s left: %w", l.Profile, err)
	}
	return r, err
}

func (h *hands) clean(ctx context.Context, l spec.Spec, use InUse) (v1alpha1.LeftoverReport, error) {
	found, before, problems := h.look(ctx, l, use)
	after, removed := before, 0
	for range tries {
		if !slices.ContainsFunc(found, finding.removable) || ctx.Err() != nil {
			break
		}
		failed := h.remove(ctx, found)
		was := found
		found, after, problems = h.look(ctx, l, use)
		problems = errors.Join(failed, problems)
		removed += gone(was, found)
	}
	r := report(found, after)
	r.Cleaned, r.Changed = removed, before.changes(after)
	if problems == nil && slices.ContainsFunc(found, finding.removable) {
		problems = errors.New("some of it comes back as soon as it is removed: somebody still makes it")
	}
	return r, errors.Join(problems, ctx.Err())
}

// A finding is one thing that is the CNI's own.
type finding struct {
	kind, name string
	inUse      string
	stage      stage
	// remove removes it alone. Rules and chains of one table of iptables go
	// together instead: batch is what they have in common.
	remove func(context.Context, *hands) error
	batch  *transaction
}

func (f finding) removable() bool { return f.inUse == "" }

func (f finding) key() string { return f.kind + " " + f.name }

// stage orders removals: first what leads to others, last what they stand on.
// The files are last, so that what has to be known is known until the end.
type stage int

const (
	inFirewall stage = iota
	inTables
	inSets
	inPrograms
	inPins
	inRules
	inRoutes
	inLinks
	inFiles
)

// remove removes what can go, in the order of the stages. What fails does not
// keep the rest from being tried: the kernel knows best what needs what.
func (h *hands) remove(ctx context.Context, found []finding) error {
	found = slices.Clone(found)
	slices.SortStableFunc(found, func(a, b finding) int { return cmp.Compare(a.stage, b.stage) })
	var errs []error
	done := map[*transaction]bool{}
	for _, f := range found {
		switch {
		case !f.removable() || ctx.Err() != nil:
		case f.batch == nil:
			errs = append(errs, f.remove(ctx, h))
		case !done[f.batch]:
			done[f.batch] = true
			errs = append(errs, f.batch.run(ctx, h.host))
		}
	}
	return errors.Join(errs...)
}

// gone counts the things that could be removed and are not there any more.
func gone(was, is []finding) int {
	left := map[string]int{}
	for _, f := range is {
		left[f.key()]++
	}
	n := 0
	for _, f := range was {
		if !f.removable() {
			continue
		}
		if left[f.key()] > 0 {
			left[f.key()]--
			continue
		}
		n++
	}
	return n
}

func report(found []finding, others *snapshot) v1alpha1.LeftoverReport {
	r := v1alpha1.LeftoverReport{Kept: others.count()}
	for _, f := range found {
		r.Items = append(r.Items, v1alpha1.Leftover{Kind: f.kind, Name: f.name, InUse: f.inUse})
	}
	slices.SortStableFunc(r.Items, func(a, b v1alpha1.Leftover) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return r
}
