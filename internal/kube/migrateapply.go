package kube

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// Object names an object of any kind.
type Object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Namespace is empty for what is in none.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String is such as "DaemonSet kube-system/cilium".
func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

func objectOf(u *unstructured.Unstructured) Object {
	return Object{u.GetAPIVersion(), u.GetKind(), u.GetNamespace(), u.GetName()}
}

// Change is what Apply did, or would do, to an object.
type Change string

const (
	Created   Change = "created"
	Changed   Change = "changed"
	Unchanged Change = "unchanged"
)

// Applied is an object as Apply has left it.
type Applied struct {
	Object
	Change Change
	// Live is the object as the API server has it; nil when a dry run could not
	// ask, because what it depends on is not there yet.
	Live *unstructured.Unstructured
}

// ApplyOptions are the zero value or say otherwise.
type ApplyOptions struct {
	// DryRun has the API server judge the objects and change nothing.
	DryRun bool
	// Force takes over fields that somebody else manages; without it they are an
	// error that names who does.
	Force bool
	// Namespace is that of objects that say none; empty means "default".
	Namespace string
}

// ParseManifests reads the objects of a YAML stream or of JSON; the items of
// lists are objects of their own, and documents without content are none.
func ParseManifests(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	r := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for n := 1; ; n++ {
		u := &unstructured.Unstructured{}
		err := r.Decode(&u.Object)
		switch {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, fmt.Errorf("document %d: %w", n, err)
		case len(u.Object) == 0:
			continue
		}
		found, err := flatten(u)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		objects = append(objects, found...)
	}
}

// flatten takes a list apart and refuses what cannot be applied.
func flatten(u *unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	switch {
	case u.GetKind() == "" || u.GetAPIVersion() == "":
		return nil, errors.New("an object without kind or apiVersion")
	case !u.IsList():
		if u.GetName() == "" {
			return nil, fmt.Errorf("a %s without a name", u.GetKind())
		}
		// YAML has a boolean for n and no: the object would end up elsewhere.
		if _, _, err := unstructured.NestedString(u.Object, "metadata", "namespace"); err != nil {
			return nil, fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
		}
		return []*unstructured.Unstructured{u}, nil
	}
	var objects []*unstructured.Unstructured
	list, err := u.ToList()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.GetKind(), err)
	}
	for i := range list.Items {
		found, err := flatten(&list.Items[i])
		if err != nil {
			return nil, fmt.Errorf("%s, item %d: %w", u.GetKind(), i+1, err)
		}
		objects = append(objects, found...)
	}
	return objects, nil
}

// rank is the order in which kinds are applied: what others need comes first,
// and what stands in the way of others, when it does not work yet, last.
func rank(kind string) int {
	switch kind {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return 1
	case "Pod", "Deployment", "DaemonSet", "StatefulSet", "ReplicaSet", "Job", "CronJob":
		return 3
	case "APIService", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration":
		return 4
	}
	return 2
}

// Apply makes objects so, by server-side apply: those of the manifests that are
// not there are made, and those that are get what the manifests say and keep
// everything else. It returns what it did also with an error.
func (m *Migrations) Apply(ctx context.Context, objects []*unstructured.Unstructured, o ApplyOptions) ([]Applied, error) {
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		return cmp.Compare(rank(a.GetKind()), rank(b.GetKind()))
	})
	a := applier{m: m, o: o, kinds: kinds{m: m}, batch: objects}
	var done []Applied
	for _, u := range objects {
		applied, err := a.apply(ctx, u.DeepCopy())
		if err != nil {
			return done, fmt.Errorf("apply %s: %w", objectOf(u), err)
		}
		done = append(done, applied)
	}
	return done, nil
}

// applier applies one batch of objects.
type applier struct {
	m     *Migrations
	o     ApplyOptions
	kinds kinds
	batch []*unstructured.Unstructured
}

func (a *applier) apply(ctx context.Context, u *unstructured.Unstructured) (Applied, error) {
	client, err := a.client(ctx, u)
	switch {
	case errors.Is(err, errNoKind) && a.o.DryRun && a.brings(u):
		return Applied{Object: objectOf(u), Change: Created}, nil
	case err != nil:
		return Applied{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	before, err := client.Get(ctx, u.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return Applied{}, err
	}
	options := metav1.ApplyOptions{FieldManager: migrateManager, Force: a.o.Force}
	if a.o.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	u.SetManagedFields(nil) // the API server refuses them
	u.SetResourceVersion("")
	live, err := client.Apply(ctx, u.GetName(), u, options)
	switch {
	case apierrors.IsNotFound(err) && a.o.DryRun && a.makes("Namespace", u.GetNamespace()):
		return Applied{Object: objectOf(u), Change: Created}, nil
	case err != nil:
		return Applied{}, err
	}
	if u.GetKind() == "CustomResourceDefinition" && !a.o.DryRun {
		if err := established(ctx, client, u.GetName()); err != nil {
			return Applied{}, err
		}
	}
	live.SetManagedFields(nil)
	return Applied{Object: objectOf(live), Change: changeOf(before, live), Live: live}, nil
}

// applyTimeout bounds the work on one object: webhooks may take half of it.
const applyTimeout = time.Minute

// changeOf compares what there is to say of an object. Its version says less: who
// manages what is noted anew now and then.
func changeOf(before, after *unstructured.Unstructured) Change {
	switch {
	case before == nil:
		return Created
	case reflect.DeepEqual(substance(before), substance(after)):
		return Unchanged
	}
	return Changed
}

func substance(u *unstructured.Unstructured) map[string]any {
	u = u.DeepCopy()
	u.SetManagedFields(nil)
	u.SetResourceVersion("")
	return u.Object
}

// client is the door to an object's resource; it fills in the namespace.
func (a *applier) client(ctx context.Context, u *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind, err := a.kinds.find(ctx, u.GroupVersionKind(), a.brings(u) && !a.o.DryRun)
	if err != nil {
		return nil, err
	}
	if !kind.namespaced {
		u.SetNamespace("")
		return a.m.dyn.Resource(kind.resource), nil
	}
	u.SetNamespace(cmp.Or(u.GetNamespace(), a.o.Namespace, metav1.NamespaceDefault))
	return a.m.dyn.Resource(kind.resource).Namespace(u.GetNamespace()), nil
}

// brings reports whether the kind of an object comes with the same batch.
func (a *applier) brings(u *unstructured.Unstructured) bool {
	return slices.ContainsFunc(a.batch, func(crd *unstructured.Unstructured) bool {
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		return crd.GetKind() == "CustomResourceDefinition" && kind == u.GetKind() && group == u.GroupVersionKind().Group
	})
}

func (a *applier) makes(kind, name string) bool {
	return slices.ContainsFunc(a.batch, func(u *unstructured.Unstructured) bool {
		return u.GetKind() == kind && u.GetName() == name
	})
}

// established waits until the API server serves the kind of a new CRD.
func established(ctx context.Context, client dynamic.ResourceInterface, name string) error {
	return poll(ctx, func() (bool, error) {
		crd, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return condition(crd, "Established") == "True", nil
	})
}

// poll asks again and again, until f says so, fails, or ctx ends. It is for what
// takes less than a second, where following an object would be more work.
func poll(ctx context.Context, f func() (bool, error)) error {
	for {
		if done, err := f(); done || err != nil {
			return err
		}
		pause(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// condition is the status of a condition of an object.
func condition(u *unstructured.Unstructured, name string) string {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == name {
			status, _ := c["status"].(string)
			return status
		}
	}
	return ""
}

// Get returns an object of any kind, or ErrNotFound, also when the cluster does
// not have the kind.
func (m *Migrations) Get(ctx context.Context, o Object) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client, err := m.resource(ctx, &kinds{m: m}, o)
	if errors.Is(err, errNoKind) {
		return nil, fmt.Errorf("%s: %w", o, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o, err)
	}
	u, err := client.Get(ctx, o.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%s: %w", o, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", o, err)
	}
	return u, nil
}

// Delete deletes objects, in the opposite order of Apply, and what belongs to
// them; what is gone is fine. It returns those that were there. They may take a
// while to end: see WaitGone. A namespace takes along everything in it.
func (m *Migrations) Delete(ctx context.Context, objects []Object) ([]Object, error) {
	objects = slices.Clone(objects)
	slices.Reverse(objects)
	slices.SortStableFunc(objects, func(a, b Object) int { return cmp.Compare(rank(b.Kind), rank(a.Kind)) })
	known := &kinds{m: m}
	var deleted []Object
	for _, o := range objects {
		client, err := m.resource(ctx, known, o)
		if errors.Is(err, errNoKind) {
			continue // and so there is none
		}
		if err == nil {
			policy := metav1.DeletePropagationBackground
			err = client.Delete(ctx, o.Name, metav1.DeleteOptions{PropagationPolicy: &policy})
		}
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return deleted, fmt.Errorf("delete %s: %w", o, err)
		default:
			deleted = append(deleted, o)
		}
	}
	return deleted, nil
}

// WaitGone waits until none of the objects is there any more, and otherwise says
// which one still is.
func (m *Migrations) WaitGone(ctx context.Context, objects []Object) error {
	for _, o := range objects {
		err := poll(ctx, func() (bool, error) {
			_, err := m.Get(ctx, o)
			if errors.Is(err, ErrNotFound) {
				return true, nil
			}
			return false, nil // also when the API server is away for a while
		})
		if err != nil {
			return fmt.Errorf("wait for the end of %s: %w", o, err)
		}
	}
	return nil
}

// Uninstall deletes the objects of the migration's daemons, waits until they are
// gone, and then deletes the leader's lease: a leader that still runs makes
// another one in the place of what it finds deleted. What was there is told.
func (m *Migrations) Uninstall(ctx context.Context, objects []Object, told func([]Object)) error {
	lease := Object{APIVersion: "coordination.k8s.io/v1", Kind: "Lease", Namespace: leaseNamespace, Name: leaseName}
	for _, step := range [][]Object{objects, {lease}} {
		gone, err := m.Delete(ctx, step)
		told(gone)
		if err != nil {
			return err
		}
		if err := m.WaitGone(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

func (m *Migrations) resource(ctx context.Context, known *kinds, o Object) (dynamic.ResourceInterface, error) {
	kind, err := known.find(ctx, schema.FromAPIVersionAndKind(o.APIVersion, o.Kind), false)
	if err != nil {
		return nil, err
	}
	if !kind.namespaced {
		return m.dyn.Resource(kind.resource), nil
	}
	return m.dyn.Resource(kind.resource).Namespace(cmp.Or(o.Namespace, metav1.NamespaceDefault)), nil
}

// errNoKind says that the cluster does not have a kind of objects.
var errNoKind = errors.New("the cluster has no such kind")

// kinds finds the resources of kinds. It asks for one group at a time, so that
// another group whose server is down does not matter.
type kinds struct {
	m     *Migrations
	known map[schema.GroupVersionKind]kindOf
}

type kindOf struct {
	resource   schema.GroupVersionResource
	namespaced bool
}

// find returns the resource of a kind, or errNoKind. It waits for one that is
// coming, until ctx ends.
func (k *kinds) find(ctx context.Context, gvk schema.GroupVersionKind, coming bool) (found kindOf, err error) {
	if found, ok := k.known[gvk]; ok {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		if err := k.read(ctx, gvk.GroupVersion()); err != nil {
			return false, err
		}
		ok := false
		if found, ok = k.known[gvk]; !ok && !coming {
			return false, fmt.Errorf("%s in %s: %w", gvk.Kind, gvk.GroupVersion(), errNoKind)
		}
		return ok, nil
	})
	return found, err
}

func (k *kinds) read(ctx context.Context, gv schema.GroupVersion) error {
	path := "/apis/" + gv.String()
	if gv.Group == "" {
		path = "/api/" + gv.Version
	}
	resources := &metav1.APIResourceList{}
	err := k.m.core.RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").Do(ctx).Into(resources)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("ask for the kinds of %s: %w", gv, err)
	}
	if k.known == nil {
		k.known = map[schema.GroupVersionKind]kindOf{}
	}
	for _, r := range resources.APIResources {
		if strings.Contains(r.Name, "/") { // a subresource
			continue
		}
		k.known[gv.WithKind(r.Kind)] = kindOf{gv.WithResource(r.Name), r.Namespaced}
	}
	return nil
}
