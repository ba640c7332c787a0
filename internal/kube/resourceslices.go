package kube

import (
	"context"
	"fmt"
	"slices"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
)

// slicePage is how many ResourceSlices are asked for at once. One has up to 128
// devices.
const slicePage = 50

// ResourceSlices are what DRA drivers publish of devices. Nothing of it is kept
// in memory: only a pod with claimed devices of a network has questions, and
// who asks remembers the answer.
type ResourceSlices struct {
	client dynamic.ResourceInterface
	node   string
}

func newResourceSlices(client dynamic.Interface, node string) *ResourceSlices {
	return &ResourceSlices{client: client.Resource(resourcev1.SchemeGroupVersion.WithResource("resourceslices")), node: node}
}

// Attributes returns the attributes that are text, by device and by qualified
// name, of those of the named devices that the driver's pool has.
func (s *ResourceSlices) Attributes(ctx context.Context, driver, pool string, devices []string) (map[string]map[string]string, error) {
	here := fields.Set{resourcev1.ResourceSliceSelectorDriver: driver, resourcev1.ResourceSliceSelectorNodeName: s.node}
	found, err := s.list(ctx, here, pool)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(devices, func(d string) bool { return found[d] == nil }) {
		// The devices of a pool may be reached from several nodes.
		if found, err = s.list(ctx, fields.Set{resourcev1.ResourceSliceSelectorDriver: driver}, pool); err != nil {
			return nil, err
		}
	}
	asked := map[string]map[string]string{}
	for _, d := range devices {
		if attributes, ok := found[d]; ok {
			asked[d] = attributes
		}
	}
	return asked, nil
}

// list reads one pool. A pool that was published anew counts with its latest
// generation only.
func (s *ResourceSlices) list(ctx context.Context, selector fields.Set, pool string) (map[string]map[string]string, error) {
	found := map[string]map[string]string{}
	var generation int64
	options := metav1.ListOptions{FieldSelector: selector.String(), Limit: slicePage}
	for {
		page, err := s.client.List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("ResourceSlices with %s: ask the API server: %w", options.FieldSelector, err)
		}
		for _, item := range page.Items {
			var slice resourcev1.ResourceSlice
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, &slice); err != nil {
				return nil, fmt.Errorf("ResourceSlice %s: %w", item.GetName(), err)
			}
			at := slice.Spec.Pool
			if at.Name != pool || at.Generation < generation {
				continue
			}
			if at.Generation > generation {
				generation = at.Generation
				clear(found)
			}
			for _, device := range slice.Spec.Devices {
				found[device.Name] = texts(device.Attributes)
			}
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return found, nil
		}
	}
}

// texts are the attributes that are text.
func texts(attributes map[resourcev1.QualifiedName]resourcev1.DeviceAttribute) map[string]string {
	texts := map[string]string{}
	for name, a := range attributes {
		if a.StringValue != nil {
			texts[string(name)] = *a.StringValue
		}
	}
	return texts
}
