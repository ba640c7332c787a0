package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"braid.dev/braid/internal/plan"
)

// definitionResource is the NetworkAttachmentDefinition (NPWG specification
// 1.3, section 3).
var definitionResource = schema.GroupVersionResource{
	Group:    "k8s.cni.cncf.io",
	Version:  "v1",
	Resource: "network-attachment-definitions",
}

// Definitions are the NetworkAttachmentDefinitions of all namespaces.
type Definitions struct {
	client dynamic.NamespaceableResourceInterface
	table  *table[plan.Definition]
	api    *reach
	copy   copyOnDisk
}

func newDefinitions(client dynamic.Interface, api *reach, log *slog.Logger) *Definitions {
	resource := client.Resource(definitionResource)
	source := source{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return resource.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return resource.Watch(ctx, o)
		},
		client: client,
	}
	d := &Definitions{client: resource, table: newTable("network attachment definitions", source, reduceDefinition, log), api: api}
	d.table.api = api
	return d
}

func reduceDefinition(obj any) (key, plan.Definition) {
	o := obj.(*unstructured.Unstructured) // the client decodes nothing else
	// The schema of the CRD leaves nothing but a string or nothing.
	config, _, _ := unstructured.NestedString(o.Object, "spec", "config")
	return key{o.GetNamespace(), o.GetName()}, plan.Definition{
		Namespace: o.GetNamespace(),
		Name:      o.GetName(),
		Config:    config,
		// The devices of the network come from this resource of the kubelet.
		ResourceName: o.GetAnnotations()[plan.ResourceAnnotation],
	}
}

// Get returns a definition from memory.
func (d *Definitions) Get(namespace, name string) (plan.Definition, bool) {
	return d.table.get(key{namespace, name})
}

// Lookup returns a definition, and asks the API for one that memory does not
// have: it may be newer than the watch. As long as the API has not been reached
// since the start, and cannot be asked, the copy on disk answers. The error is
// ErrNotFound when there is none.
func (d *Definitions) Lookup(ctx context.Context, namespace, name string) (plan.Definition, error) {
	k := key{namespace, name}
	if def, ok := d.table.get(k); ok {
		return def, nil
	}
	copied, isCopied := d.copy.get(k)
	if isCopied && d.api.away() {
		return copied, nil
	}
	var def plan.Definition
	err := d.api.ask(ctx, func(ctx context.Context) error {
		obj, err := d.client.Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			_, def = reduceDefinition(obj)
		}
		return err
	})
	switch {
	case apierrors.IsNotFound(err):
		return plan.Definition{}, fmt.Errorf("NetworkAttachmentDefinition %s: %w", k, ErrNotFound)
	case isCopied && errors.Is(err, ErrAway):
		return copied, nil
	case err != nil:
		return plan.Definition{}, fmt.Errorf("NetworkAttachmentDefinition %s: ask the API server: %w", k, err)
	}
	return def, nil
}
