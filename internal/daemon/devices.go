package daemon

import (
	"context"
	"errors"

	"braid.dev/braid/internal/plan"
)

// Devices are the devices of the node that the kubelet gave to pods.
type Devices interface {
	// Of lists the pod's devices of a resource, the same ones in the same order
	// each time, and waits for the kubelet until ctx ends.
	Of(ctx context.Context, pod plan.Pod, resource string) ([]plan.Device, error)
	// Forget has the kubelet asked again for the pod.
	Forget(pod plan.Pod)
}

// devices is how a plan asks for the devices of its pod. Nothing is asked
// unless a network of the pod is made of devices.
func (d *Daemon) devices(ctx context.Context, pod plan.Pod) func(resource string) ([]plan.Device, error) {
	return func(resource string) ([]plan.Device, error) {
		switch {
		case pod.Name == "":
			return nil, errors.New("the kubelet gives devices to pods, and this container is none")
		case d.Devices == nil:
			return nil, errors.New("braidd does not ask the kubelet for devices; start it with --pod-resources")
		}
		return d.Devices.Of(ctx, pod, resource)
	}
}

// forgetDevices is for a pod whose networks could not be planned or made: the
// kubelet may know more the next time.
func (d *Daemon) forgetDevices(pod plan.Pod) {
	if d.Devices != nil {
		d.Devices.Forget(pod)
	}
}
