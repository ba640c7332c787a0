package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// A sandbox that runs is changed by the same steps as ADD and DEL take, and by
// the same records. Two marks in them tell afterwards who has to finish what a
// crash cut off: an intent that is Plugged is not the runtime's to repeat, and
// an attachment that is Leaving is the pod's no longer.

// Plug gives a sandbox that runs one attachment more, behind those it has. On
// error everything this call made is gone again, as far as it could be: what
// could not be removed keeps its record, and the error says so.
//
// The pod has its default routes already, and they stay. A network that brings
// one gets it only in a family in which the pod has none.
func (a *Attacher) Plug(ctx context.Context, containerID, ifName string, at plan.Attachment, reach Reach) (Attached, error) {
	records, err := a.Store.Sandbox(containerID, ifName)
	if err == nil && len(records) == 0 {
		err = ErrUnknown
	}
	if err != nil {
		return Attached{}, err
	}
	pod, err := openPod(reach.NS)
	if err != nil {
		return Attached{}, err
	}
	if pod != nil {
		defer pod.Close()
	}
	if err := namesAreFree(pod, []plan.Attachment{at}); err != nil {
		return Attached{}, err
	}
	last := records[len(records)-1]
	pr := progress{records: []store.Record{{Sandbox: last.Sandbox, Index: last.Index + 1, Attachment: at, Plugged: true}}}
	err = a.Store.Begin(ctx, pr.records)
	if err == nil {
		err = a.plug(ctx, &pr, reach, pod)
	}
	if err == nil {
		err = pr.overlaps(records)
	}
	if err != nil {
		return Attached{}, errors.Join(err, a.rollback(ctx, pr, reach))
	}
	return pr.done[0], nil
}

// plug attaches the one attachment of pr and stores its result.
func (a *Attacher) plug(ctx context.Context, pr *progress, reach Reach, pod *rtnl.Handle) error {
	c := a.chain(pr.records[0], reach)
	c.pod = pod
	before, err := defaults(pod)
	if err != nil {
		return c.aboutRoutes(err)
	}
	result, left, touched, err := c.attach(ctx)
	if err == nil {
		err = finish(ctx, left)
	}
	if err != nil {
		pr.touched = touched
		return err
	}
	pr.done = []Attached{c.attached(result)}
	dropped, err := keepDefaults(pod, before)
	if err != nil {
		return c.aboutRoutes(err)
	}
	pr.done[0].without(before, dropped)
	raw, err := json.Marshal(pr.done[0].Result)
	if err != nil {
		return err
	}
	pr.records[0].Result, pr.records[0].DeviceInfo = raw, pr.done[0].DeviceInfo
	return a.Store.Attached(ctx, pr.records...)
}

func (c chain) aboutRoutes(err error) error {
	return fmt.Errorf("attach %s (%s): default routes: %w", c.record.Attachment.IfName, c.record.Attachment.Network, err)
}

// overlaps notes which way packets go to where others lead too.
func (pr *progress) overlaps(records []store.Record) error {
	if pr.done[0].HasOwnTable() {
		return nil
	}
	var before []plan.Destinations
	for _, r := range records {
		result, err := decodeResult(r.Result)
		if err != nil {
			return fmt.Errorf("attachment %s: %w", r.Attachment.IfName, err)
		}
		if result != nil && r.InUse() && !r.Attachment.HasOwnTable() {
			before = append(before, destinations(Attached{Attachment: r.Attachment, Result: result}))
		}
	}
	pr.done[0].Notes = append(pr.done[0].Notes, destinations(pr.done[0]).Overlaps(before)...)
	return nil
}

// keepDefaults makes the default routes of a pod that runs what they were
// before a network was attached to it. In a family in which there were none,
// those that came stay.
func keepDefaults(h *rtnl.Handle, before []rtnl.Route) (dropped []rtnl.Route, err error) {
	after, err := defaults(h)
	if err != nil {
		return nil, err
	}
	for _, r := range before {
		if slices.Contains(after, r) {
			continue
		}
		if err := h.AppendRoute(r); err != nil && !errors.Is(err, rtnl.ErrExists) {
			return nil, err
		}
	}
	for _, r := range after {
		if slices.Contains(before, r) || len(ofFamily(before, r.Dst.Addr().Is6())) == 0 {
			continue
		}
		if err := h.DelRoute(r); err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return nil, err
		}
		dropped = append(dropped, r)
	}
	return dropped, nil
}

// without takes the default routes that the pod did not get out of the result.
// A plugin that found the place taken may speak of one that it never made.
func (d *Attached) without(before, dropped []rtnl.Route) {
	for _, is6 := range []bool{false, true} {
		gone := ofFamily(dropped, is6)
		silent := len(ofFamily(before, is6)) > 0 && !d.HasOwnTable()
		if len(gone) == 0 && !silent {
			continue
		}
		stripped := withoutDefault(d.Result, is6)
		if len(gone) == 0 && len(stripped.Routes) == len(d.Result.Routes) {
			continue
		}
		d.Result = stripped
		note := "its default route"
		if len(gone) > 0 && gone[0].Via.IsValid() {
			note += " by " + gone[0].Via.String()
		}
		d.Notes = append(d.Notes, note+" is not kept, as the pod has one and runs")
	}
}

// Unplug takes those attachments of a sandbox that runs that which picks, last one
// first. Everything is attempted; what could not be removed keeps its record
// and is the pod's no longer, so that a later Unplug goes on from there.
func (a *Attacher) Unplug(ctx context.Context, containerID, ifName string, which func(store.Record) bool, reach Reach) (Deleted, error) {
	var d Deleted
	records, err := a.Store.Sandbox(containerID, ifName)
	if err != nil {
		return d, err
	}
	var going, marks []store.Record
	for _, r := range records {
		if !which(r) {
			continue
		}
		if r.InUse() {
			r.Leaving = true
			marks = append(marks, r)
		}
		going = append(going, r)
	}
	if len(marks) > 0 {
		if err := a.Store.Begin(ctx, marks); err != nil {
			return d, err
		}
	}
	err = a.takeDown(ctx, going, &d, reach)
	return d, errors.Join(err, d.Kept)
}

// Unfinished tells of a record that a change of a sandbox that ran left behind:
// what was not attached completely, or not taken away.
func Unfinished(r store.Record) bool { return r.Leaving || r.Plugged && !r.Complete() }

// Again answers a request that is repeated: when the same request attached the
// sandbox before, and whatever was changed since is complete, it returns what
// the sandbox has, nil otherwise.
func (a *Attacher) Again(ctx context.Context, sb store.Sandbox, reach Reach) ([]Attached, error) {
	records, err := a.Store.Sandbox(sb.ContainerID, sb.IfName)
	var damaged *store.DamagedError
	if errors.As(err, &damaged) {
		return nil, nil
	}
	if err != nil || len(records) == 0 {
		return nil, err
	}
	for _, r := range records {
		if !r.InUse() || r.Rebuilt || r.Sandbox.NSID != sb.NSID || r.Sandbox.Args != sb.Args {
			return nil, nil
		}
	}
	return a.stillThere(ctx, records, reach)
}
