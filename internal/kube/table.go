package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// retryLimit is the longest pause between two tries to follow a resource.
const retryLimit = 5 * time.Second

// table is one resource of the API in memory, reduced to what Braid needs of
// it. A Reflector of client-go keeps it current; there is no second queue and
// no second copy between the watch and the reader.
type table[T any] struct {
	// what names the resource in messages.
	what   string
	source source
	// reduce keeps what is needed of an object of the watch.
	reduce func(obj any) (key, T)
	// api is told how the table's requests ended. It may be nil.
	api *reach
	log *slog.Logger

	// synced is closed when the resource has been read once.
	synced chan struct{}

	mu   sync.Mutex
	rows map[key]T
	// next is closed at the next change. It exists only while someone waits.
	next chan struct{}
	// trouble is why the resource cannot be followed now.
	trouble error
}

// key names an object.
type key struct{ namespace, name string }

func (k key) String() string { return k.namespace + "/" + k.name }

// source is how a resource is read. client is only asked what it can do.
type source struct {
	list   cache.ListWithContextFunc
	watch  cache.WatchFuncWithContext
	client any
}

func newTable[T any](what string, source source, reduce func(any) (key, T), log *slog.Logger) *table[T] {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &table[T]{
		what: what, source: source, reduce: reduce, log: log,
		synced: make(chan struct{}),
		rows:   map[key]T{},
	}
}

// run keeps the table current until ctx ends.
func (t *table[T]) run(ctx context.Context) {
	reflector := cache.NewReflectorWithOptions(t.noting(), nil, rowStore[T]{t}, cache.ReflectorOptions{
		Name:            t.what,
		TypeDescription: t.what,
		// The default grows to 30 s, a long time for a pod to wait after an
		// API server came back.
		Backoff: &wait.Backoff{Duration: 250 * time.Millisecond, Cap: retryLimit, Steps: 10, Factor: 2, Jitter: 0.5},
	})
	for failures := 0; ; failures++ {
		err := reflector.ListAndWatchWithContext(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case apierrors.IsNotFound(err):
			// The resource is not installed, or not any more: there are none.
			t.replace(nil)
		case err == nil:
			failures = 0 // the watch ended as watches do
		default:
			t.note(ctx, err)
		}
		pause(ctx, backoff(failures, retryLimit))
	}
}

// noting is the source with every failure of a request noted. The Reflector
// goes on by itself after many of them and tells nobody.
func (t *table[T]) noting() cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := t.source.list(ctx, o)
			t.note(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := t.source.watch(ctx, o)
			t.note(ctx, err)
			return w, err
		},
	}, t.source.client)
}

// note remembers why following the resource does not work, nil when it does.
// Only what is new is logged.
func (t *table[T]) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // the end
	}
	if t.api != nil {
		t.api.note(err)
	}
	if apierrors.IsNotFound(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // nothing that is wrong
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil && (t.trouble == nil || t.trouble.Error() != err.Error()):
		t.log.Warn("cannot follow the API; serving what is known", "resource", t.what, "err", err)
	case err == nil && t.trouble != nil:
		t.log.Info("following the API again", "resource", t.what)
	}
	t.trouble = err
}

// pending is nil when the resource has been read.
func (t *table[T]) pending() error {
	select {
	case <-t.synced:
		return nil
	default:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trouble != nil {
		return fmt.Errorf("the %s have not been read yet: %w", t.what, t.trouble)
	}
	return fmt.Errorf("the %s have not been read yet", t.what)
}

// lagging says why the rows may be behind the API, nil while they follow it.
func (t *table[T]) lagging() error {
	if err := t.pending(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trouble != nil {
		return fmt.Errorf("the %s cannot be followed: %w", t.what, t.trouble)
	}
	return nil
}

func (t *table[T]) get(k key) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row, ok := t.rows[k]
	return row, ok
}

// all returns a copy of the rows.
func (t *table[T]) all() map[key]T {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.rows)
}

// followAll is all, and a channel that is closed when any row changes after
// that.
func (t *table[T]) followAll() (rows map[key]T, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.rows), t.changedLocked()
}

// follow returns the row and a channel that is closed when any row changes
// after that.
func (t *table[T]) follow(k key) (row T, ok bool, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row, ok = t.rows[k]
	return row, ok, t.changedLocked()
}

// changedLocked is a channel that is closed when any row changes.
func (t *table[T]) changedLocked() <-chan struct{} {
	if t.next == nil {
		t.next = make(chan struct{})
	}
	return t.next
}

// change runs f on the rows and wakes those who wait.
func (t *table[T]) change(f func(rows map[key]T)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t.rows)
	if t.next != nil {
		close(t.next)
		t.next = nil
	}
}

func (t *table[T]) replace(rows map[key]T) {
	t.change(func(old map[key]T) {
		clear(old)
		maps.Copy(old, rows)
		select {
		case <-t.synced:
		default:
			close(t.synced)
		}
	})
}

// rowStore is the table as its Reflector writes it.
type rowStore[T any] struct{ t *table[T] }

var _ cache.ReflectorStore = rowStore[struct{}]{}

func (s rowStore[T]) Add(obj any) error { return s.Update(obj) }

func (s rowStore[T]) Update(obj any) error {
	k, row := s.t.reduce(obj)
	s.t.change(func(rows map[key]T) { rows[k] = row })
	return nil
}

func (s rowStore[T]) Delete(obj any) error {
	k, _ := s.t.reduce(obj)
	s.t.change(func(rows map[key]T) { delete(rows, k) })
	return nil
}

func (s rowStore[T]) Replace(objs []any, _ string) error {
	rows := make(map[key]T, len(objs))
	for _, obj := range objs {
		k, row := s.t.reduce(obj)
		rows[k] = row
	}
	s.t.replace(rows)
	return nil
}

func (s rowStore[T]) Resync() error { return nil }

// jitter spreads d by up to half of it.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/2+1))
}
