package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
)

// pageSize is how many objects one answer has.
const pageSize = 500

// List returns all objects of a resource, of all namespaces, without their
// managed fields. The error is ErrNotFound when the cluster has no such resource.
func (m *Migrations) List(ctx context.Context, resource schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	for range maxExpired {
		objects, err := m.listOnce(ctx, resource)
		switch {
		case apierrors.IsResourceExpired(err): // so slow that the pages do not fit together any more
			continue
		case apierrors.IsNotFound(err):
			return nil, fmt.Errorf("list %s: %w", resource.GroupResource(), ErrNotFound)
		case err != nil:
			return nil, fmt.Errorf("list %s: %w", resource.GroupResource(), err)
		}
		return objects, nil
	}
	return nil, fmt.Errorf("list %s: the list changes faster than it can be read", resource.GroupResource())
}

// maxExpired is how often a list is begun anew.
const maxExpired = 3

func (m *Migrations) listOnce(ctx context.Context, resource schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	var objects []unstructured.Unstructured
	o := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := m.dyn.Resource(resource).List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			page.Items[i].SetManagedFields(nil)
		}
		objects = append(objects, page.Items...)
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return objects, nil
		}
	}
}

// ServerVersion is the API server's version, such as v1.36.3.
func (m *Migrations) ServerVersion(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	text, err := m.core.RESTClient().Get().AbsPath("/version").Do(ctx).Raw()
	if err != nil {
		return "", fmt.Errorf("ask for the API server's version: %w", err)
	}
	var v version.Info
	if err := json.Unmarshal(text, &v); err != nil {
		return "", fmt.Errorf("ask for the API server's version: %w", err)
	}
	return v.GitVersion, nil
}

// Service returns a service, or ErrNotFound.
func (m *Migrations) Service(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	service, err := m.core.Services(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("service %s/%s: %w", namespace, name, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	return service, nil
}
