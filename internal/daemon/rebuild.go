package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types/create"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// askAgain is how long planning may ask others for a sandbox whose records are
// lost.
const askAgain = 3 * time.Second

// mend makes the records again that a sandbox has lost, as well as the request
// tells and the cluster and the kernel know. It is for whatever comes next to
// find them; what goes wrong with it is reported, and that goes on with what
// there is.
func (d *Daemon) mend(ctx context.Context, r request) {
	rebuilt, damaged, err := d.rebuild(ctx, r)
	if err != nil {
		d.Log.Error("lost records could not be made again", "container", r.ContainerID, "ifname", r.IfName, "err", err)
	}
	if len(rebuilt) == 0 && damaged == nil {
		return
	}
	text := fmt.Sprintf("the records of container %s were lost", r.ContainerID)
	if damaged != nil {
		text = fmt.Sprintf("records cannot be read and were set aside: %v", damaged)
	}
	for i, rec := range rebuilt {
		if i == 0 {
			text += "; made again:"
		}
		text += fmt.Sprintf(" %s (%s)", rec.Attachment.IfName, rec.Attachment.Network)
	}
	if len(rebuilt) > 0 || d.pace.first("damage "+r.key()) {
		d.reportDamage(sandboxOf(r.Request).Pod, text)
	}
}

// rebuild does the work of mend.
func (d *Daemon) rebuild(ctx context.Context, r request) (rebuilt []store.Record, damaged *store.DamagedError, err error) {
	records, err := d.Records.Sandbox(r.ContainerID, r.IfName)
	switch {
	case errors.As(err, &damaged):
	case err != nil || len(records) > 0:
		return nil, nil, err
	default:
		missing, err := d.Records.Missing()
		if err != nil || !missing || d.takenDown.has(r.key()) {
			return nil, nil, err
		}
		// Only what the runtime remembers of an ADD tells such a container from
		// one that Braid never had.
		if err := d.remind(&r); err != nil || len(r.conf.PrevResult) == 0 {
			return nil, nil, err
		}
	}
	sb, err := d.sandbox(r)
	if err != nil {
		return nil, damaged, err
	}
	if len(records) > 0 {
		sb = records[0].Sandbox
	}
	rebuilt, err = d.Attacher.Rebuild(ctx, attach.Lost{
		Sandbox: sb,
		Plan:    d.planAgain(ctx, r, sb),
		Result:  resultOf(r.conf.PrevResult, create.CreateFromBytes),
		Ending:  r.Command == "DEL",
	}, r.reach)
	return rebuilt, damaged, err
}

// remind adds to a request what the runtime remembers of the ADD, if it did not
// bring that along.
func (d *Daemon) remind(r *request) error {
	if len(r.conf.PrevResult) > 0 {
		return nil
	}
	memory, err := d.recall(r.Request)
	r.conf.PrevResult = memory.conf.PrevResult
	if len(r.conf.RuntimeConfig) == 0 {
		r.conf.RuntimeConfig = memory.conf.RuntimeConfig
	}
	return err
}

// planAgain is what a sandbox would get today. When its pod, or a network of
// its pod, cannot be found any more, it is what every pod gets.
func (d *Daemon) planAgain(ctx context.Context, r request, sb store.Sandbox) plan.Plan {
	ctx, cancel := context.WithTimeout(ctx, askAgain)
	defer cancel()
	pod, err := d.podAgain(ctx, r, sb.Pod)
	if err == nil {
		var p plan.Plan
		if p, err = d.plan(ctx, r, pod); err == nil {
			return p
		}
	}
	d.Log.Warn("lost records are made again without the networks that the pod asked for", "container", r.ContainerID, "pod", podName(sb.Pod), "err", err)
	pod = sb.Pod
	pod.Annotations = nil
	p, err := d.plan(ctx, r, pod)
	if err != nil {
		d.Log.Warn("lost records are made again without a network", "container", r.ContainerID, "err", err)
	}
	return p
}

func (d *Daemon) podAgain(ctx context.Context, r request, pod plan.Pod) (plan.Pod, error) {
	if pod.Name == "" || d.Cluster == nil {
		return plan.Pod{}, nil
	}
	if known, ok := d.Cluster.Known(pod.Namespace, pod.Name, pod.UID); ok {
		return known, nil
	}
	if pod.Annotations = r.conf.podAnnotations(); pod.Annotations != nil {
		return pod, nil
	}
	return d.Cluster.Pod(ctx, pod)
}

// reportDamage tells people: on the pod, or on the node when that is unknown.
func (d *Daemon) reportDamage(pod plan.Pod, text string) {
	d.Log.Error(text, "pod", podName(pod))
	if d.Cluster != nil {
		d.Cluster.Damaged(pod, text)
	}
}
