package devices

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// maxAnswer bounds the list of all pods, in bytes, as the kubelet's own client
// does.
const maxAnswer = 16 << 20

// maxPause is the longest pause between two questions.
const maxPause = time.Second

// ask asks until there is an answer, for a kubelet that restarts is away for
// some seconds, does not know its pods at first, and refuses when it is asked
// too much.
func (k *Kubelet) ask(ctx context.Context, namespace, name string) (resources *api.PodResources, err error) {
	err = k.insist(ctx, func(ctx context.Context) (err error) {
		resources, err = k.once(ctx, namespace, name)
		return err
	})
	return resources, err
}

// insist repeats try until it succeeds or time is over, and then says what was
// wrong before that.
func (k *Kubelet) insist(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, k.patience, fmt.Errorf("no answer within %v: %w", k.patience, context.DeadlineExceeded))
	defer cancel()
	var last error
	for wait := k.between; ; wait = min(2*wait, maxPause) {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("%w (%w)", last, context.Cause(ctx))
		}
	}
}

// once is one question on a connection of its own: they are few, and a
// connection that is kept would have to be watched.
func (k *Kubelet) once(ctx context.Context, namespace, name string) (_ *api.PodResources, err error) {
	// A unix socket is protected by its mode; there is nothing to encrypt.
	conn, err := grpc.NewClient(k.target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := api.NewPodResourcesListerClient(conn)
	answer, err := client.Get(ctx, &api.GetPodResourcesRequest{PodNamespace: namespace, PodName: name})
	switch {
	case err == nil && answer.GetPodResources() == nil:
		return nil, errors.New("the answer is empty")
	case err == nil:
		return answer.GetPodResources(), nil
	case !withoutGet(err):
		return nil, err
	}
	list, err := client.List(ctx, &api.ListPodResourcesRequest{})
	if err != nil {
		return nil, err
	}
	return find(list.GetPodResources(), namespace, name)
}

// withoutGet tells whether the kubelet has no Get: before 1.27, or up to 1.33
// when its feature KubeletPodResourcesGet is off, which it is by default and
// which it says in words only.
func withoutGet(err error) bool {
	switch s, _ := status.FromError(err); s.Code() {
	case codes.Unimplemented:
		return true
	case codes.Unknown:
		return s.Message() == "PodResources API Get method disabled"
	}
	return false
}

// find looks the pod up in the list of all. While a pod of a StatefulSet
// follows another one of the same name, both may be there, and the list says
// not which is which.
func find(list []*api.PodResources, namespace, name string) (*api.PodResources, error) {
	var found *api.PodResources
	for _, p := range list {
		if p.GetNamespace() != namespace || p.GetName() != name {
			continue
		}
		if found != nil {
			return nil, errors.New("it lists two pods of this name, one of which is about to end")
		}
		found = p
	}
	if found == nil {
		return nil, errors.New("it does not know the pod yet")
	}
	return found, nil
}

// holdingOf brings an answer in order. Containers that share a claim each list
// its devices.
func holdingOf(p *api.PodResources) *holding {
	h := &holding{plugin: map[string][]string{}}
	for _, c := range p.GetContainers() {
		for _, d := range c.GetDevices() {
			h.plugin[d.GetResourceName()] = append(h.plugin[d.GetResourceName()], d.GetDeviceIds()...)
		}
		for _, claim := range c.GetDynamicResources() {
			for _, r := range claim.GetClaimResources() {
				h.claimed = append(h.claimed, claimed{r.GetDriverName(), r.GetPoolName(), r.GetDeviceName()})
			}
		}
	}
	for resource, ids := range h.plugin {
		slices.Sort(ids)
		h.plugin[resource] = slices.Compact(ids)
	}
	slices.SortFunc(h.claimed, func(a, b claimed) int {
		return cmp.Or(cmp.Compare(a.driver, b.driver), cmp.Compare(a.pool, b.pool), cmp.Compare(a.device, b.device))
	})
	h.claimed = slices.Compact(h.claimed)
	return h
}
