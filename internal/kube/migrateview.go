package kube

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"braid.dev/braid/api/v1alpha1"
)

// Snapshot is what was known of a cluster at one moment, each list in the order
// of namespaces and names. It shares memory with other snapshots: copy what is
// to be changed. Objects lack what a migration does not look at; of a pod there
// are neither volumes nor containers.
type Snapshot struct {
	Migrations     []v1alpha1.Migration
	NodeMigrations []v1alpha1.NodeMigration
	Nodes          []corev1.Node
	Pods           []corev1.Pod
	PDBs           []policyv1.PodDisruptionBudget
	Services       []corev1.Service
}

// View follows a part of a cluster in memory. While the API cannot be reached,
// what was known stays.
type View struct {
	migrations     *table[*v1alpha1.Migration]
	nodeMigrations *table[*v1alpha1.NodeMigration]
	nodes          *table[*corev1.Node]
	pods           *table[*corev1.Pod]
	pdbs           *table[*policyv1.PodDisruptionBudget]
	services       *table[*corev1.Service]

	tables  []viewTable
	changed chan struct{}
}

// viewTable is a table whatever its rows are.
type viewTable interface {
	run(context.Context)
	pending() error
	unwell() error
	done() <-chan struct{}
	nextChange() <-chan struct{}
}

func (t *table[T]) done() <-chan struct{} { return t.synced }

func (t *table[T]) nextChange() <-chan struct{} {
	_, _, changed := t.follow(key{})
	return changed
}

// unwell is why the resource cannot be followed now, nil when it can.
func (t *table[T]) unwell() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trouble
}

// LeaderView is what the leader decides on: everything in a Snapshot.
func (m *Migrations) LeaderView() *View {
	v := m.FollowerView()
	v.nodes = newTable("nodes", m.coreSource("nodes", &corev1.NodeList{}), reduceNode, m.log)
	v.pods = newTable("pods", m.coreSource("pods", &corev1.PodList{}), reduceMigratedPod, m.log)
	v.services = newTable("services", m.coreSource("services", &corev1.ServiceList{}), reduceService, m.log)
	v.pdbs = newTable("pod disruption budgets",
		restSource(m.policy.RESTClient(), "poddisruptionbudgets", &policyv1.PodDisruptionBudgetList{}), reducePDB, m.log)
	v.tables = append(v.tables, v.nodes, v.pods, v.services, v.pdbs)
	return v
}

// FollowerView is what a person follows: the Migrations and NodeMigrations.
func (m *Migrations) FollowerView() *View {
	v := &View{
		migrations:     newTable("migrations", m.dynSource(migrationResource, ""), reduceTyped[v1alpha1.Migration](m), m.log),
		nodeMigrations: newTable("node migrations", m.dynSource(nodeMigrationResource, ""), reduceTyped[v1alpha1.NodeMigration](m), m.log),
		changed:        make(chan struct{}, 1),
	}
	v.tables = []viewTable{v.migrations, v.nodeMigrations}
	return v
}

// NodeView is what the agent of a node acts on: its NodeMigration.
func (m *Migrations) NodeView(node string) *View {
	v := &View{
		nodeMigrations: newTable("node migration "+node, m.dynSource(nodeMigrationResource, node), reduceTyped[v1alpha1.NodeMigration](m), m.log),
		changed:        make(chan struct{}, 1),
	}
	v.tables = []viewTable{v.nodeMigrations}
	return v
}

// Run follows the cluster until ctx ends.
func (v *View) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, t := range v.tables {
		wg.Go(func() { t.run(ctx) })
		wg.Go(func() {
			for {
				// First the next change, then word of those before it: so none is missed.
				next := t.nextChange()
				v.tell()
				select {
				case <-next:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// Follow runs the view in the background until ctx ends or stop is called, which
// returns when it has ended.
func (v *View) Follow(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		v.Run(ctx) // it ends with ctx, without another reason
	}()
	return func() { cancel(); <-ended }
}

func (v *View) tell() {
	select {
	case v.changed <- struct{}{}:
	default: // whoever reads it next will see this change too
	}
}

// Changed gets a value when a new Snapshot may be another than the one before;
// many changes are one value. It is for one receiver.
func (v *View) Changed() <-chan struct{} { return v.changed }

// Synced returns nil once everything has been read for the first time, and
// otherwise says what is missing and why.
func (v *View) Synced() error {
	var errs []error
	for _, t := range v.tables {
		errs = append(errs, t.pending())
	}
	return errors.Join(errs...)
}

// WaitSynced waits until Synced returns nil or ctx ends.
func (v *View) WaitSynced(ctx context.Context) error {
	for _, t := range v.tables {
		select {
		case <-t.done():
		case <-ctx.Done():
			return errors.Join(ctx.Err(), v.Synced())
		}
	}
	return nil
}

// Trouble says why the cluster cannot be followed at the moment, so that the
// Snapshot may be old; nil when it can.
func (v *View) Trouble() error {
	for _, t := range v.tables {
		if err := t.unwell(); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot is what is known now.
func (v *View) Snapshot() Snapshot {
	return Snapshot{
		Migrations:     sorted(v.migrations),
		NodeMigrations: sorted(v.nodeMigrations),
		Nodes:          sorted(v.nodes),
		Pods:           sorted(v.pods),
		PDBs:           sorted(v.pdbs),
		Services:       sorted(v.services),
	}
}

// SawMigration puts what a write returned into the view, so that the next
// Snapshot is not older than it.
func (v *View) SawMigration(o *v1alpha1.Migration) { saw(v.migrations, o) }

// SawNodeMigration does so with a NodeMigration.
func (v *View) SawNodeMigration(o *v1alpha1.NodeMigration) { saw(v.nodeMigrations, o) }

// saw replaces the row of the same object if it is older. An object that is not
// there is left to the watch: it may have been deleted meanwhile.
func saw[T any, P interface {
	*T
	metav1.Object
}](t *table[P], o P) {
	if t == nil || o == nil {
		return
	}
	k := key{o.GetNamespace(), o.GetName()}
	t.change(func(rows map[key]P) {
		row := rows[k]
		if row == nil || row.GetUID() != o.GetUID() {
			return
		}
		if order, err := resourceversion.CompareResourceVersion(row.GetResourceVersion(), o.GetResourceVersion()); err == nil && order < 0 {
			rows[k] = o
		}
	})
}

// sorted are the rows of a table; none when the view has no such table.
func sorted[T any, P interface {
	*T
	metav1.Object
}](t *table[P]) []T {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	rows := make([]P, 0, len(t.rows))
	for _, row := range t.rows {
		if row != nil { // nil is an object that could not be read
			rows = append(rows, row)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(rows, func(a, b P) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	list := make([]T, len(rows))
	for i, row := range rows {
		list[i] = *row
	}
	return list
}

// dynSource reads one resource, or the one object of it that has that name.
func (m *Migrations) dynSource(resource schema.GroupVersionResource, name string) source {
	client := m.dyn.Resource(resource)
	only := func(o *metav1.ListOptions) {
		if name != "" {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		}
	}
	return source{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			only(&o)
			return client.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			only(&o)
			return client.Watch(ctx, o)
		},
		client: m.dyn,
	}
}

func (m *Migrations) coreSource(resource string, into runtime.Object) source {
	return restSource(m.core.RESTClient(), resource, into)
}

// restSource reads a resource of all namespaces; into is an empty list of it.
func restSource(client rest.Interface, resource string, into runtime.Object) source {
	return source{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := into.DeepCopyObject()
			return list, client.Get().Resource(resource).VersionedParams(&o, scheme.ParameterCodec).Do(ctx).Into(list)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return client.Get().Resource(resource).VersionedParams(&o, scheme.ParameterCodec).Watch(ctx)
		},
		client: client,
	}
}

// reduceTyped reads an object of Braid's own. One that cannot be read, which its
// CRD does not let happen, counts as not there.
func reduceTyped[T any](m *Migrations) func(any) (key, *T) {
	return func(obj any) (key, *T) {
		u := obj.(*unstructured.Unstructured) // the client decodes nothing else
		k := key{u.GetNamespace(), u.GetName()}
		u.SetManagedFields(nil)
		o, err := typed[T](u)
		if err != nil {
			m.log.Warn("an object cannot be read", "err", err)
			return k, nil
		}
		return k, o
	}
}

func reduceNode(obj any) (key, *corev1.Node) {
	o := obj.(*corev1.Node)
	return key{"", o.Name}, &corev1.Node{
		ObjectMeta: reduceMeta(&o.ObjectMeta),
		Spec:       o.Spec,
		Status: corev1.NodeStatus{
			Allocatable: o.Status.Allocatable,
			Conditions:  o.Status.Conditions,
			Addresses:   o.Status.Addresses,
			NodeInfo:    o.Status.NodeInfo,
		},
	}
}

func reduceMigratedPod(obj any) (key, *corev1.Pod) {
	o := obj.(*corev1.Pod)
	pod := &corev1.Pod{
		ObjectMeta: reduceMeta(&o.ObjectMeta),
		Spec: corev1.PodSpec{
			NodeName:                      o.Spec.NodeName,
			HostNetwork:                   o.Spec.HostNetwork,
			RestartPolicy:                 o.Spec.RestartPolicy,
			TerminationGracePeriodSeconds: o.Spec.TerminationGracePeriodSeconds,
			PriorityClassName:             o.Spec.PriorityClassName,
			Priority:                      o.Spec.Priority,
		},
		Status: corev1.PodStatus{
			Phase:             o.Status.Phase,
			Reason:            o.Status.Reason,
			Message:           o.Status.Message,
			Conditions:        o.Status.Conditions,
			HostIP:            o.Status.HostIP,
			PodIP:             o.Status.PodIP,
			PodIPs:            o.Status.PodIPs,
			StartTime:         o.Status.StartTime,
			ContainerStatuses: o.Status.ContainerStatuses,
		},
	}
	return key{o.Namespace, o.Name}, pod
}

func reduceService(obj any) (key, *corev1.Service) {
	o := obj.(*corev1.Service)
	return key{o.Namespace, o.Name}, &corev1.Service{ObjectMeta: reduceMeta(&o.ObjectMeta), Spec: o.Spec}
}

func reducePDB(obj any) (key, *policyv1.PodDisruptionBudget) {
	o := obj.(*policyv1.PodDisruptionBudget)
	return key{o.Namespace, o.Name}, &policyv1.PodDisruptionBudget{ObjectMeta: reduceMeta(&o.ObjectMeta), Spec: o.Spec, Status: o.Status}
}

// appliedAnnotation is a second copy of the whole manifest, not worth keeping.
const appliedAnnotation = "kubectl.kubernetes.io/last-applied-configuration"

// reduceMeta is the metadata without the two large things in it.
func reduceMeta(o *metav1.ObjectMeta) metav1.ObjectMeta {
	reduced := *o
	reduced.ManagedFields = nil
	delete(reduced.Annotations, appliedAnnotation) // the map is this object's alone
	return reduced
}
