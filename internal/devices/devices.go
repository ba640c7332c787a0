// Package devices knows which devices of the node the kubelet gave to a pod,
// and keeps the files in which device plugins and CNI plugins tell what a
// device is.
//
// A pod asks the scheduler for devices, as an extended resource of a device
// plugin or by a claim (Dynamic Resource Allocation, DRA). Which ones it got is
// known to the kubelet alone, and it says so through its podresources API; what
// plugins call a device that was claimed is in the API's ResourceSlices.
package devices

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"braid.dev/braid/internal/plan"
)

// Attributes of a device in a ResourceSlice by which a DRA driver offers it to
// networks, as DRA drivers for Multus have them.
const (
	// DeviceIDAttribute is what plugins know the device by.
	DeviceIDAttribute = "k8s.cni.cncf.io/deviceID"
	// ResourceNameAttribute is what a NetworkAttachmentDefinition calls it in
	// its annotation k8s.v1.cni.cncf.io/resourceName.
	ResourceNameAttribute = "k8s.cni.cncf.io/resourceName"
)

// Slices are the ResourceSlices of the cluster.
type Slices interface {
	// Attributes returns the attributes that are text, by device and by
	// qualified name, of those of the named devices that the driver's pool has.
	Attributes(ctx context.Context, driver, pool string, devices []string) (map[string]map[string]string, error)
}

// Kubelet answers which devices a pod got. Its methods may be called
// concurrently.
type Kubelet struct {
	endpoint string
	target   string
	slices   Slices
	// patience bounds how long a kubelet that does not answer is asked again.
	patience time.Duration
	// between is the pause before the first repetition.
	between time.Duration

	mu    sync.Mutex
	known map[string]*holding
	order []string // keys of known, the oldest first
}

// New prepares for a kubelet whose podresources API is at an endpoint, such as
// unix:///var/lib/kubelet/pod-resources/kubelet.sock or its path alone. Nothing
// is connected before the first question. Without slices, devices that were
// claimed are not found.
func New(endpoint string, s Slices) (*Kubelet, error) {
	target, err := target(endpoint)
	if err != nil {
		return nil, err
	}
	return &Kubelet{
		endpoint: endpoint, target: target, slices: s,
		patience: 20 * time.Second, between: 100 * time.Millisecond,
		known: map[string]*holding{},
	}, nil
}

// target is an endpoint in the form that gRPC takes.
func target(endpoint string) (string, error) {
	switch {
	case strings.HasPrefix(endpoint, "unix:///"):
		return endpoint, nil
	case strings.HasPrefix(endpoint, "/"):
		return "unix://" + endpoint, nil
	}
	return "", fmt.Errorf("endpoint %q of the kubelet: it has the form unix:///var/lib/kubelet/pod-resources/kubelet.sock", endpoint)
}

// holding is what one pod holds.
type holding struct {
	// plugin are the devices of device plugins by resource, sorted.
	plugin map[string][]string
	// claimed are the devices that the pod got by claims, in the order of their
	// names.
	claimed []claimed

	// byClaim are the claimed ones by resource, sorted; nil until they are asked
	// for. Kubelet.mu is for it.
	byClaim map[string][]string
}

// claimed names one device that was allocated for a claim.
type claimed struct{ driver, pool, device string }

// maxKnown bounds how many pods are remembered. The kubelet runs 110 by default.
const maxKnown = 256

// Of lists the pod's devices of a resource, none if it has none. The order is
// that of their names, so that it is the same each time and the one that pods
// have under Multus.
//
// The devices of a running pod do not change, so the kubelet is asked once for
// each pod, until Forget. While it does not answer, it is asked again until ctx
// ends, for 20 seconds at most.
func (k *Kubelet) Of(ctx context.Context, pod plan.Pod, resource string) ([]plan.Device, error) {
	h, err := k.holding(ctx, pod)
	if err != nil {
		return nil, err
	}
	ids := h.plugin[resource]
	// A resource is a device plugin's or a driver's. So a pod with a device of
	// another kind, by a claim, does not depend on the API server here.
	if len(ids) == 0 && len(h.claimed) > 0 && k.slices != nil {
		byClaim, err := k.resolve(ctx, h)
		if err != nil {
			return nil, err
		}
		ids = byClaim[resource]
	}
	list := make([]plan.Device, 0, len(ids))
	for _, id := range ids {
		list = append(list, plan.Device{Resource: resource, ID: id})
	}
	return list, nil
}

// Forget has the kubelet asked again for the pod.
func (k *Kubelet) Forget(pod plan.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(pod.UID)
}

func (k *Kubelet) drop(uid string) {
	if _, ok := k.known[uid]; ok {
		delete(k.known, uid)
		k.order = slices.DeleteFunc(k.order, func(u string) bool { return u == uid })
	}
}

// holding is what is known of the pod, or what the kubelet says.
func (k *Kubelet) holding(ctx context.Context, pod plan.Pod) (*holding, error) {
	k.mu.Lock()
	h, ok := k.known[pod.UID]
	k.mu.Unlock()
	if ok {
		return h, nil
	}
	resources, err := k.ask(ctx, pod.Namespace, pod.Name)
	if err != nil {
		return nil, fmt.Errorf("ask the kubelet (%s) for the devices of pod %s/%s: %w", k.endpoint, pod.Namespace, pod.Name, err)
	}
	h = holdingOf(resources)
	if pod.UID == "" {
		return h, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(pod.UID)
	if len(k.order) >= maxKnown {
		k.drop(k.order[0])
	}
	k.known[pod.UID], k.order = h, append(k.order, pod.UID)
	return h, nil
}

// resolve finds out what the claimed devices are called, once.
func (k *Kubelet) resolve(ctx context.Context, h *holding) (map[string][]string, error) {
	k.mu.Lock()
	byClaim := h.byClaim
	k.mu.Unlock()
	if byClaim != nil {
		return byClaim, nil
	}
	byClaim, err := offered(ctx, k.slices, h.claimed)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	h.byClaim = byClaim
	return byClaim, nil
}

// offered are the devices in list that are offered to networks, by resource;
// others, such as a GPU, are left out. The list is sorted.
func offered(ctx context.Context, s Slices, list []claimed) (map[string][]string, error) {
	byResource := map[string][]string{}
	for len(list) > 0 {
		driver, pool := list[0].driver, list[0].pool
		var names []string
		for len(list) > 0 && list[0].driver == driver && list[0].pool == pool {
			names, list = append(names, list[0].device), list[1:]
		}
		attributes, err := s.Attributes(ctx, driver, pool, names)
		if err != nil {
			return nil, fmt.Errorf("what driver %s publishes of its pool %s: %w", driver, pool, err)
		}
		for _, name := range names {
			id, resource := attributes[name][DeviceIDAttribute], attributes[name][ResourceNameAttribute]
			if id != "" && resource != "" && !slices.Contains(byResource[resource], id) {
				byResource[resource] = append(byResource[resource], id)
			}
		}
	}
	for _, ids := range byResource {
		slices.Sort(ids)
	}
	return byResource, nil
}
