package daemon

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// add gives a container its networks.
func (d *Daemon) add(ctx context.Context, r request) ([]byte, error) {
	if r.reach.NS == nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "ADD needs a network namespace", "CNI_NETNS is "+r.NetNS)
	}
	if err := d.settleNote(ctx, r); err != nil {
		return nil, err
	}
	pod, err := d.pod(ctx, r)
	if err != nil {
		return nil, err
	}
	tell := teller{daemon: d, pod: pod}
	tell.follow(ctx, &r.reach)
	done, err := d.attach(ctx, r, pod)
	if err != nil {
		tell.abandon(ctx)
		d.forgetDevices(pod)
		d.reportFailure(ctx, pod, err)
		return nil, err
	}
	d.takenDown.forget(r.key())
	stdout, err := encodeResult(done[0].Result, r.conf.CNIVersion)
	if err == nil {
		err = tell.end(ctx, r, done)
	} else {
		tell.abandon(ctx)
	}
	if err != nil {
		err = errors.Join(err, d.Attacher.Undo(ctx, r.ContainerID, r.IfName, r.reach))
		d.reportFailure(ctx, pod, err)
		return nil, err
	}
	return stdout, nil
}

// pod is the pod of the request, empty for a container that is none.
func (d *Daemon) pod(ctx context.Context, r request) (plan.Pod, error) {
	if !r.pod.isPod() {
		return plan.Pod{}, nil
	}
	if d.Cluster == nil {
		return plan.Pod{}, types.NewError(types.ErrTryAgainLater,
			"this is a pod, but braidd runs without a cluster and cannot know its networks", "start braidd with --kubeconfig")
	}
	pod, err := d.Cluster.Pod(ctx, plan.Pod{
		Namespace: r.pod.namespace, Name: r.pod.name, UID: r.pod.uid, Annotations: r.conf.podAnnotations(),
	})
	if err != nil {
		// Never a pod without its networks: whether there are any is unknown.
		return plan.Pod{}, tryLater(err)
	}
	return pod, nil
}

// attach plans the pod's networks and makes them true.
func (d *Daemon) attach(ctx context.Context, r request, pod plan.Pod) ([]attach.Attached, error) {
	sb, err := d.sandbox(r)
	if err != nil {
		return nil, err
	}
	sb.Pod = pod
	d.mend(ctx, r)
	done, err := d.again(ctx, sb, r.reach)
	if done == nil && err == nil {
		done, err = d.attachNew(ctx, r, sb)
	}
	if err == nil && d.Cluster != nil {
		d.plugs.served(sb)
	}
	return done, err
}

func (d *Daemon) attachNew(ctx context.Context, r request, sb store.Sandbox) ([]attach.Attached, error) {
	p, err := d.plan(ctx, r, sb.Pod)
	if err != nil {
		return nil, err
	}
	done, err := d.Attacher.Add(ctx, sb, p, r.reach)
	if err == nil && len(done) == 0 {
		err = errors.New("the plan is empty")
	}
	return done, err
}

// again answers an ADD that the runtime repeats: when the sandbox has what its
// pod asks for, this is what it has, however it came to that. It may have been
// changed while it ran. Otherwise done is nil, and Add knows what to do.
func (d *Daemon) again(ctx context.Context, sb store.Sandbox, reach attach.Reach) (done []attach.Attached, err error) {
	done, err = d.Attacher.Again(ctx, sb, reach)
	if err != nil || done == nil {
		return nil, err
	}
	if c, err := d.changeOf(ctx, sb, sb.Pod, attachmentsOf(done)); err != nil || !c.Nothing() {
		return nil, nil
	}
	return done, nil
}

func (d *Daemon) plan(ctx context.Context, r request, pod plan.Pod) (plan.Plan, error) {
	networks := d.Networks.First(d.ConfDirNetworks)
	if len(networks) == 0 {
		return plan.Plan{}, errNoDefault
	}
	in, unknown := d.input(ctx, pod, r.ContainerID, r.IfName)
	in.Default, in.Beside, in.RuntimeConfig = networks[0], networks[1:], r.conf.RuntimeConfig
	p, err := plan.Build(in)
	if err := unknown(); err != nil {
		return plan.Plan{}, tryLater(err)
	}
	if err == nil {
		dropAnnotations(&p.Attachments[0])
	}
	return p, err
}

// changeOf is what the annotation of a pod asks to be changed of what it has.
func (d *Daemon) changeOf(ctx context.Context, sb store.Sandbox, pod plan.Pod, has []plan.Attachment) (plan.Change, error) {
	in, unknown := d.input(ctx, pod, sb.ContainerID, sb.IfName)
	c, err := plan.ChangeOf(in, has)
	if err := unknown(); err != nil {
		return plan.Change{}, tryLater(err)
	}
	return c, err
}

// input is what planning looks at, but for the networks that every pod gets.
// Planning asks no questions that wait; what a lookup could not find out, which
// unknown tells afterwards, makes its verdict void.
func (d *Daemon) input(ctx context.Context, pod plan.Pod, containerID, ifName string) (in plan.Input, unknown func() error) {
	var failed error
	return plan.Input{
		Pod: pod, IfName: ifName,
		ConfDirNetworks: d.ConfDirNetworks,
		Isolation:       d.Isolation,
		ContainerID:     containerID, DeviceInfoDir: d.DeviceInfoDir,
		Devices: d.devices(ctx, pod),
		Definition: func(namespace, name string) (plan.Definition, bool) {
			if d.Cluster == nil {
				return plan.Definition{}, false
			}
			def, ok, err := d.Cluster.Definition(ctx, namespace, name)
			failed = errors.Join(failed, err)
			return def, ok
		},
		OnDisk:     d.Networks.OnDisk,
		SubnetFile: d.SubnetFile,
	}, func() error { return failed }
}

// dropAnnotations takes the pod's annotations, which the runtime passes because
// Braid asks for them, out of what the default network's plugins would find,
// unless one of them asks for them itself. They may be long, and every record
// would hold them.
func dropAnnotations(a *plan.Attachment) {
	for _, p := range a.Config.Plugins {
		if p.Capabilities[plan.PodAnnotations] {
			return
		}
	}
	delete(a.RuntimeConfig, plan.PodAnnotations) // Build made the map
}

var errNoDefault = types.NewError(types.ErrTryAgainLater, "there is no default network yet",
	"braidd takes the first configuration of the CNI conf dir that is not its own; install the cluster's network")

func (d *Daemon) reportFailure(ctx context.Context, pod plan.Pod, err error) {
	leaving := errors.Is(context.Cause(ctx), wire.ErrShutdown) // the next daemon tries again
	if d.Cluster != nil && pod.Name != "" && !leaving {
		d.Cluster.Failed(pod, err.Error())
	}
}
