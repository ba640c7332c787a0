package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	policyv1client "k8s.io/client-go/kubernetes/typed/policy/v1"
	"k8s.io/client-go/rest"

	"braid.dev/braid/api/v1alpha1"
)

const (
	// MigrateNamespace is where the probes' pods of a migration are.
	MigrateNamespace = v1alpha1.ProbeNamespace
	// migrateManager owns what a migration writes, in managed fields.
	migrateManager = "braid-migrate"
	// requestTimeout bounds one request, so that a connection that died without
	// a word does not hold up a migration.
	requestTimeout = 10 * time.Second
)

var (
	// ErrConflict says that the object is not the one that was seen, or that
	// somebody has changed it since: look again, and decide again.
	ErrConflict = errors.New("changed meanwhile")
	// ErrExists says that there is an object of that name already.
	ErrExists = errors.New("exists already")
)

var (
	migrationResource     = schema.GroupVersionResource{Group: "braid.dev", Version: "v1alpha1", Resource: "migrations"}
	nodeMigrationResource = schema.GroupVersionResource{Group: "braid.dev", Version: "v1alpha1", Resource: "nodemigrations"}
)

// Migrations is the connection to a cluster whose CNI is migrated, for the one
// daemon that leads, for the agents of the nodes, and for the command line.
//
// Every write says of which object it is, by UID, and what it was decided on:
// an object that has changed since is left alone, and the error is ErrConflict.
// Writes are tried once. Who follows a View finds out what is still to do.
type Migrations struct {
	Events *MigrationEvents

	node   string
	log    *slog.Logger
	dyn    dynamic.Interface
	core   corev1client.CoreV1Interface
	policy policyv1client.PolicyV1Interface
	leases coordinationv1client.CoordinationV1Interface
}

// ConnectMigrations prepares the connection and sends no request. NodeName is
// that of the daemon, and empty for the command line. Close ends it.
func ConnectMigrations(c Config) (*Migrations, error) {
	conf, err := restConfig(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	m, err := connectMigrations(conf, c)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return m, nil
}

func connectMigrations(conf *rest.Config, c Config) (*Migrations, error) {
	m := &Migrations{node: c.NodeName, log: c.Log}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	conf = rest.CopyConfig(conf)
	conf.UserAgent = c.UserAgent
	conf.QPS, conf.Burst = qps, burst
	// What is known of Kubernetes itself travels as protobuf.
	compact := rest.CopyConfig(conf)
	compact.ContentType = "application/vnd.kubernetes.protobuf"
	compact.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	// The lease and events have limits of their own: neither waits for, nor
	// delays, what a migration does.
	lease := rest.CopyConfig(compact)
	lease.Timeout = renewDeadline / 2
	events := rest.CopyConfig(compact)
	events.QPS, events.Burst = eventQPS, eventBurst

	var err error
	if m.dyn, err = dynamic.NewForConfig(conf); err != nil {
		return nil, err
	}
	if m.core, err = corev1client.NewForConfig(compact); err != nil {
		return nil, err
	}
	if m.policy, err = policyv1client.NewForConfig(compact); err != nil {
		return nil, err
	}
	if m.leases, err = coordinationv1client.NewForConfig(lease); err != nil {
		return nil, err
	}
	sink, err := corev1client.NewForConfig(events)
	if err != nil {
		return nil, err
	}
	m.Events = newMigrationEvents(sink, c.NodeName)
	return m, nil
}

// Close sends no more events.
func (m *Migrations) Close() { m.Events.broadcaster.Shutdown() }

// GetMigration returns the Migration of that name, or ErrNotFound.
func (m *Migrations) GetMigration(ctx context.Context, name string) (*v1alpha1.Migration, error) {
	return get[v1alpha1.Migration](ctx, m.dyn.Resource(migrationResource), name)
}

// GetNodeMigration returns the NodeMigration of that node, or ErrNotFound.
func (m *Migrations) GetNodeMigration(ctx context.Context, node string) (*v1alpha1.NodeMigration, error) {
	return get[v1alpha1.NodeMigration](ctx, m.dyn.Resource(nodeMigrationResource), node)
}

// ListMigrations returns all Migrations; none, also when their CRD is not there.
func (m *Migrations) ListMigrations(ctx context.Context) ([]v1alpha1.Migration, error) {
	return list[v1alpha1.Migration](ctx, m, migrationResource)
}

// ListNodeMigrations returns all NodeMigrations; none, also when their CRD is not
// there.
func (m *Migrations) ListNodeMigrations(ctx context.Context) ([]v1alpha1.NodeMigration, error) {
	return list[v1alpha1.NodeMigration](ctx, m, nodeMigrationResource)
}

// CreateMigration makes a Migration; ErrExists when there is one of the name.
func (m *Migrations) CreateMigration(ctx context.Context, o *v1alpha1.Migration) (*v1alpha1.Migration, error) {
	o = o.DeepCopy()
	o.APIVersion, o.Kind = v1alpha1.GroupVersion, "Migration"
	return create(ctx, m.dyn.Resource(migrationResource), o.Name, o)
}

// ChangeMigration has change edit the spec of the newest version of a Migration,
// and writes it. When somebody else writes at the same time, change is called
// again on what that one wrote.
func (m *Migrations) ChangeMigration(ctx context.Context, name string, change func(*v1alpha1.MigrationSpec) error) (*v1alpha1.Migration, error) {
	for {
		seen, err := m.GetMigration(ctx, name)
		if err != nil {
			return nil, err
		}
		spec := seen.Spec.DeepCopy()
		if err := change(spec); err != nil {
			return nil, err
		}
		changed, err := replace[v1alpha1.Migration](ctx, m.dyn.Resource(migrationResource), seen, "spec", "", spec, sameGeneration)
		if !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return changed, err
		}
	}
}

// DeleteMigration deletes exactly this Migration; one that is gone is fine.
func (m *Migrations) DeleteMigration(ctx context.Context, seen *v1alpha1.Migration) error {
	return remove(ctx, m.dyn.Resource(migrationResource), seen)
}

// UpdateMigrationStatus writes the status of a Migration that is as it was seen,
// in all respects: the status is a decision about the spec and about the status
// that was there.
func (m *Migrations) UpdateMigrationStatus(ctx context.Context, seen *v1alpha1.Migration, status v1alpha1.MigrationStatus) (*v1alpha1.Migration, error) {
	return replace[v1alpha1.Migration](ctx, m.dyn.Resource(migrationResource), seen, "status", "status", status, sameVersion)
}

// CreateNodeMigration makes a NodeMigration; ErrExists when the node has one.
func (m *Migrations) CreateNodeMigration(ctx context.Context, o *v1alpha1.NodeMigration) (*v1alpha1.NodeMigration, error) {
	o = o.DeepCopy()
	o.APIVersion, o.Kind = v1alpha1.GroupVersion, "NodeMigration"
	return create(ctx, m.dyn.Resource(nodeMigrationResource), o.Name, o)
}

// UpdateNodeMigrationSpec writes the spec of a NodeMigration whose spec is still
// the one that was seen. That its agent has reported since is no conflict.
func (m *Migrations) UpdateNodeMigrationSpec(ctx context.Context, seen *v1alpha1.NodeMigration, spec v1alpha1.NodeMigrationSpec) (*v1alpha1.NodeMigration, error) {
	return replace[v1alpha1.NodeMigration](ctx, m.dyn.Resource(nodeMigrationResource), seen, "spec", "", spec, sameGeneration)
}

// UpdateNodeMigrationStatus writes the status of a NodeMigration, whatever its
// spec is by now: the status says which one it is about.
func (m *Migrations) UpdateNodeMigrationStatus(ctx context.Context, seen *v1alpha1.NodeMigration, status v1alpha1.NodeMigrationStatus) (*v1alpha1.NodeMigration, error) {
	return replace[v1alpha1.NodeMigration](ctx, m.dyn.Resource(nodeMigrationResource), seen, "status", "status", status, sameObject)
}

// DeleteNodeMigration deletes exactly this NodeMigration; one that is gone is fine.
func (m *Migrations) DeleteNodeMigration(ctx context.Context, seen *v1alpha1.NodeMigration) error {
	return remove(ctx, m.dyn.Resource(nodeMigrationResource), seen)
}

// same says what of an object must be as it was seen for a write to be made.
type same int

const (
	sameObject     same = iota // the object of this UID
	sameGeneration             // and its spec
	sameVersion                // and everything else of it
)

// operation is one of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// tests are the operations that refuse a patch unless the object is as it was
// seen.
func (s same) tests(seen metav1.Object) []operation {
	ops := []operation{{"test", "/metadata/uid", seen.GetUID()}}
	switch s {
	case sameGeneration:
		ops = append(ops, operation{"test", "/metadata/generation", seen.GetGeneration()})
	case sameVersion:
		ops = append(ops, operation{"test", "/metadata/resourceVersion", seen.GetResourceVersion()})
	}
	return ops
}

// holds reports whether a live object is as it was seen.
func (s same) holds(seen, live metav1.Object) bool {
	switch {
	case seen.GetUID() != live.GetUID():
		return false
	case s == sameGeneration:
		return seen.GetGeneration() == live.GetGeneration()
	case s == sameVersion:
		return seen.GetResourceVersion() == live.GetResourceVersion()
	}
	return true
}

// replace writes one member of an object, by one request that the API server
// carries out only if the object is as it was seen.
func replace[T any](ctx context.Context, client dynamic.ResourceInterface, seen metav1.Object, member, subresource string, value any, must same) (*T, error) {
	what := fmt.Sprintf("write the %s of %s", member, seen.GetName())
	patch, err := json.Marshal(append(must.tests(seen), operation{"add", "/" + member, value}))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var subresources []string
	if subresource != "" {
		subresources = append(subresources, subresource)
	}
	u, err := client.Patch(ctx, seen.GetName(), types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: migrateManager}, subresources...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, whyRefused(ctx, client, seen, must, err))
	}
	return typed[T](u)
}

// whyRefused tells a test that does not hold from a value that is not valid: the
// API server answers both in the same way.
func whyRefused(ctx context.Context, client dynamic.ResourceInterface, seen metav1.Object, must same, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return ErrNotFound
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case !apierrors.IsInvalid(err) && apierrors.ReasonForError(err) != metav1.StatusReasonUnknown:
		return err
	}
	live, getErr := client.Get(ctx, seen.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(getErr):
		return ErrNotFound
	case getErr == nil && !must.holds(seen, live):
		return ErrConflict
	}
	return err
}

func get[T any](ctx context.Context, client dynamic.ResourceInterface, name string) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	u, err := client.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return typed[T](u)
}

func list[T any](ctx context.Context, m *Migrations, resource schema.GroupVersionResource) ([]T, error) {
	objects, err := m.List(ctx, resource)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	rows := make([]T, 0, len(objects))
	for i := range objects {
		row, err := typed[T](&objects[i])
		if err != nil {
			return nil, err
		}
		rows = append(rows, *row)
	}
	return rows, nil
}

func create[T any](ctx context.Context, client dynamic.ResourceInterface, name string, o *T) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	u, err := untyped(o)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	u, err = client.Create(ctx, u, metav1.CreateOptions{FieldManager: migrateManager})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil, fmt.Errorf("make %s: %w", name, ErrExists)
	case err != nil:
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return typed[T](u)
}

func remove(ctx context.Context, client dynamic.ResourceInterface, seen metav1.Object) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := client.Delete(ctx, seen.GetName(), metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(seen.GetUID()))})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // conflict: of that name there is another by now
		return fmt.Errorf("delete %s: %w", seen.GetName(), err)
	}
	return nil
}

// untyped is an object as the dynamic client takes it.
func untyped(o any) (*unstructured.Unstructured, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{}
	return u, u.UnmarshalJSON(text)
}

// typed is an object of the dynamic client as its Go type.
func typed[T any](u *unstructured.Unstructured) (*T, error) {
	o := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
		return nil, fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return o, nil
}
