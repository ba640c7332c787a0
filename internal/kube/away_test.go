package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/snapshot"
	"braid.dev/braid/internal/status"
)

// told is a pod as a runtime tells of it that passes annotations on.
func told(uid string) plan.Pod {
	return plan.Pod{Namespace: "ns", Name: "p", UID: uid, Annotations: map[string]string{
		plan.NetworksAnnotation: "vlan", "kubernetes.io/config.source": "api",
	}}
}

func TestWhichErrorsSayThatTheAPIIsAway(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	answer := func(code int) error { return apierrors.NewGenericServerResponse(code, "get", pods, "p", "", 0, true) }
	for name, tc := range map[string]struct {
		err  error
		away bool
	}{
		"none":                 {nil, false},
		"refused":              {errors.New("dial tcp: connection refused"), true},
		"no answer in time":    {context.DeadlineExceeded, true},
		"not found":            {apierrors.NewNotFound(pods, "p"), false},
		"forbidden":            {answer(http.StatusForbidden), false},
		"another UID":          {apierrors.NewConflict(pods, "p", errors.New("uid")), false},
		"invalid":              {answer(http.StatusUnprocessableEntity), false},
		"tokens not checked":   {answer(http.StatusUnauthorized), true},
		"too busy":             {apierrors.NewTooManyRequests("later", 1), true},
		"etcd is away":         {answer(http.StatusInternalServerError), true},
		"load balancer":        {answer(http.StatusBadGateway), true},
		"starting":             {apierrors.NewServiceUnavailable("starting"), true},
		"its own time was out": {apierrors.NewTimeoutError("later", 1), true},
	} {
		if got := isAway(tc.err); got != tc.away {
			t.Errorf("%s: away %v", name, got)
		}
	}
}

// TestAnOutageCostsOneRequestItsPatience: an API server that takes connections
// and says nothing costs the first request 5 s, the others half a second, and
// one now and then the whole patience, as it may be only slow.
func TestAnOutageCostsOneRequestItsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reach{}
		silent := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		try := func(request func(context.Context) error) time.Duration {
			start := time.Now()
			err := r.ask(t.Context(), request)
			if errors.Is(err, ErrAway) != (err != nil) {
				t.Errorf("got %v", err)
			}
			return time.Since(start)
		}
		var took []time.Duration
		for range 13 {
			took = append(took, try(silent))
		}
		want := "[5s 500ms 500ms 500ms 500ms 500ms 500ms 500ms 500ms 500ms 500ms 5s 500ms]"
		if fmt.Sprint(took) != want {
			t.Errorf("tries took %v, want %s", took, want)
		}
		slow := func(ctx context.Context) error { sleepOr(ctx, time.Second); return ctx.Err() }
		for range 100 {
			if try(slow); !r.away() {
				break
			}
		}
		if r.away() {
			t.Error("an API server that takes a second was never found")
		}
		if d := try(slow); d != time.Second || r.away() {
			t.Errorf("then it took %v", d)
		}
		// The asker's own end says nothing.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.ask(ctx, silent); !errors.Is(err, context.DeadlineExceeded) || r.away() {
			t.Errorf("got %v, away %v", err, r.away())
		}
	})
}

func sleepOr(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func TestAPodIsAsToldWhileTheAPIIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		pods := podsWith(t, func() (*metav1.PartialObjectMetadata, error) { asked++; return down() })
		for range 3 {
			pod, err := pods.Get(t.Context(), told(uidA))
			if err != nil || pod.UID != uidA || len(pod.Annotations) != 1 || pod.Annotations[plan.NetworksAnnotation] != "vlan" {
				t.Errorf("got %+v, %v", pod, err)
			}
		}
		if asked != 1 {
			t.Errorf("the API was asked %d times", asked)
		}
		// No annotations are some as well.
		plain := plan.Pod{Namespace: "ns", Name: "p", UID: uidA, Annotations: map[string]string{}}
		if _, err := pods.Get(t.Context(), plain); err != nil {
			t.Error(err)
		}
		// What memory has is newer.
		pods.appear(object(uidA, map[string]string{plan.NetworksAnnotation: "other"}))
		if pod, err := pods.Get(t.Context(), told(uidA)); err != nil || pod.Annotations[plan.NetworksAnnotation] != "other" {
			t.Errorf("got %+v, %v", pod, err)
		}
	})
}

func TestTheAPIKnowsAPodBetterThanTheRuntime(t *testing.T) {
	pods := podsWith(t, func() (*metav1.PartialObjectMetadata, error) {
		return object(uidB, map[string]string{plan.NetworksAnnotation: "other"}), nil
	})
	pod, err := pods.Get(t.Context(), told(uidB))
	if err != nil || pod.Annotations[plan.NetworksAnnotation] != "other" {
		t.Errorf("got %+v, %v", pod, err)
	}
	if _, err := pods.Get(t.Context(), told(uidA)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod that was replaced: got %v", err)
	}
	pods = podsWith(t, gone)
	if _, err := pods.Get(t.Context(), told(uidA)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod that is gone: got %v", err)
	}
}

// TestAStaticPodWithoutAMirrorIsAsTold: where the API refuses mirrors, or knows
// no node yet, the kubelet runs the pod all the same.
func TestAStaticPodWithoutAMirrorIsAsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := podsWith(t, gone)
		start := time.Now()
		pod, err := pods.Get(t.Context(), told(hash))
		if err != nil || pod.UID != hash || pod.Annotations[plan.NetworksAnnotation] != "vlan" || time.Since(start) != mirrorPatience {
			t.Errorf("got %+v, %v after %v", pod, err, time.Since(start))
		}
		// Its status waits for the mirror, and is then written to that.
		if err := pods.SetNetworkStatus(t.Context(), pod, "[]"); !errors.Is(err, ErrAway) {
			t.Errorf("status without a mirror: %v", err)
		}
		pods.appear(object(uidA, map[string]string{mirrorAnnotation: hash, hashAnnotation: hash}))
		if inAPI, err := pods.inAPI(pod); err != nil || inAPI.UID != uidA {
			t.Errorf("got %+v, %v", inAPI, err)
		}
		if known, ok := pods.Known("ns", "p", hash); !ok || known.UID != uidA {
			t.Errorf("known: %+v, %v", known, ok)
		}
	})
}

func TestOnlyWhatBraidLooksAtIsKept(t *testing.T) {
	_, pod := reducePod(object(uidA, map[string]string{
		plan.NetworksAnnotation: "n", plan.DefaultNetworkAnnotation: "d", status.Annotation: "[]",
		mirrorAnnotation: hash, hashAnnotation: hash, appliedAnnotation: "{}", "example.test/large": string(make([]byte, 1<<18)),
	}))
	if len(pod.Annotations) != 5 {
		t.Errorf("kept %d annotations", len(pod.Annotations))
	}
	if _, pod := reducePod(object(uidA, map[string]string{"a": "b"})); pod.Annotations != nil {
		t.Errorf("kept %v", pod.Annotations)
	}
}

// definitionsWith are Definitions whose API answers a GET with get.
func definitionsWith(t *testing.T, file string, get func() (runtime.Object, error)) *Definitions {
	t.Helper()
	client := dynamicfake.NewSimpleDynamicClient(runtime.NewScheme())
	client.PrependReactor("get", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		obj, err := get()
		return true, obj, err
	})
	d := newDefinitions(client, &reach{}, nil)
	d.copy.load(file, nil)
	return d
}

func TestDefinitionsOfTheCopyServeUntilTheAPIHasAnswered(t *testing.T) {
	file := filepath.Join(t.TempDir(), "definitions")
	want := plan.Definition{Namespace: "ns", Name: "vlan", Config: `{"type":"bridge"}`, ResourceName: "example.test/vf"}
	first := definitionsWith(t, file, nil)
	if first.copy.loaded() {
		t.Error("a copy out of nothing")
	}
	first.copy.write(map[key]plan.Definition{{"ns", "vlan"}: want, {"ns", "other"}: {Namespace: "ns", Name: "other"}})

	asked := 0
	var answer error = errors.New("connection refused")
	d := definitionsWith(t, file, func() (runtime.Object, error) { asked++; return &unstructured.Unstructured{}, answer })
	for range 3 {
		if got, err := d.Lookup(t.Context(), "ns", "vlan"); err != nil || got != want {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if asked != 1 {
		t.Errorf("the API was asked %d times", asked)
	}
	// One that the copy does not have may exist.
	if _, err := d.Lookup(t.Context(), "ns", "new"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("unknown definition: %v", err)
	}
	// An answer is better than the copy.
	answer = apierrors.NewNotFound(definitionResource.GroupResource(), "vlan")
	d.api.note(nil)
	if _, err := d.Lookup(t.Context(), "ns", "vlan"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a definition that was deleted meanwhile: %v", err)
	}
}

// TestDefinitionsThatWereReadMakeTheCopyUseless: what is deleted while the API
// is there stays deleted when it goes.
func TestDefinitionsThatWereReadMakeTheCopyUseless(t *testing.T) {
	file := filepath.Join(t.TempDir(), "definitions")
	definitionsWith(t, file, nil).copy.write(map[key]plan.Definition{{"ns", "vlan"}: {Namespace: "ns", Name: "vlan"}})
	d := definitionsWith(t, file, func() (runtime.Object, error) { return nil, errors.New("connection refused") })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.keepCopy(ctx) }()
	d.table.replace(nil)
	eventually(t, "the copy is given up", 10*time.Second, func() error {
		if d.copy.loaded() {
			return errors.New("it is there")
		}
		return nil
	})
	d.api.note(errors.New("connection refused"))
	if _, err := d.Lookup(t.Context(), "ns", "vlan"); !errors.Is(err, ErrAway) {
		t.Errorf("got %v", err)
	}
	cancel()
	<-done
}

func TestTheCopyIsWrittenWhenItChangesAndNotTooOften(t *testing.T) {
	file := filepath.Join(t.TempDir(), "definitions")
	written := func() int {
		other := &copyOnDisk{}
		other.load(file, nil)
		if rows := other.rows.Load(); rows != nil {
			return len(*rows)
		}
		return 0
	}
	synctest.Test(t, func(t *testing.T) {
		d := definitionsWith(t, file, nil)
		ctx, cancel := context.WithCancel(t.Context())
		go d.keepCopy(ctx)
		add := func(i int) {
			def := plan.Definition{Namespace: "ns", Name: fmt.Sprint("n", i)}
			d.table.change(func(rows map[key]plan.Definition) { rows[key{def.Namespace, def.Name}] = def })
		}
		add(0)
		synctest.Wait()
		if n := written(); n != 0 {
			t.Error("written before all was read")
		}
		d.table.replace(map[key]plan.Definition{{"ns", "n0"}: {Namespace: "ns", Name: "n0"}})
		synctest.Wait()
		if n := written(); n != 1 {
			t.Errorf("%d definitions after the first read", n)
		}
		for i := range 100 {
			add(i)
		}
		synctest.Wait()
		if n := written(); n != 1 {
			t.Errorf("%d definitions at once, though a copy was just written", n)
		}
		time.Sleep(2 * copyPause)
		synctest.Wait()
		if n := written(); n != 100 {
			t.Errorf("%d definitions in the end", n)
		}
		// What comes later may be needed soon.
		time.Sleep(copyPause)
		add(100)
		time.Sleep(2 * copySettle)
		synctest.Wait()
		if n := written(); n != 101 {
			t.Errorf("%d definitions a moment after the last", n)
		}
		// The same again is not written again.
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		add(0)
		time.Sleep(2 * copyPause)
		synctest.Wait()
		if _, err := os.Stat(file); err == nil {
			t.Error("the same was written again")
		}
		cancel()
		synctest.Wait()
	})
}

func TestADamagedCopyIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "definitions")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := definitionsWith(t, file, nil)
	if d.copy.loaded() {
		t.Error("it is used")
	}
	d.copy.write(nil)
	if _, err := snapshot.Read(file, func(*json.Decoder) error { return nil }); err != nil {
		t.Errorf("it is not replaced: %v", err)
	}
}

// TestReadyWithoutTheAPI: a node that restarts in an outage goes on, if it was
// ready before.
func TestReadyWithoutTheAPI(t *testing.T) {
	file := filepath.Join(t.TempDir(), "definitions")
	start := func() *Cluster {
		c, err := connect(&rest.Config{Host: "https://127.0.0.1:1"}, Config{NodeName: "n", DefinitionsFile: file})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := start()
	c.api.note(errors.New("connection refused"))
	if c.Synced() == nil {
		t.Error("ready, although nothing is known")
	}
	c.Definitions.copy.write(nil)
	c = start()
	if c.Synced() == nil {
		t.Error("ready before the API was tried")
	}
	c.api.note(errors.New("connection refused"))
	if err := c.Synced(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if c.Following() == nil {
		t.Error("memory follows nothing")
	}
	// An API server that says nothing at all is as good as away.
	c = start()
	c.began = c.began.Add(-patience - time.Second)
	if err := c.Synced(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// TestEventsFillNoMemoryWhileTheAPIIsAway: what cannot be told in the end is not
// kept.
func TestEventsFillNoMemoryWhileTheAPIIsAway(t *testing.T) {
	c, err := connect(&rest.Config{Host: "https://127.0.0.1:1"}, Config{NodeName: "n"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Events.run(ctx) }()
	heap := func() int64 {
		var m goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, goroutines := heap(), goruntime.NumGoroutine()
	const events, size = 50_000, 1000
	for i := range events {
		c.Events.Failed(plan.Pod{Namespace: "ns", Name: fmt.Sprint("p", i)}, fmt.Sprint(i, strings.Repeat("x", size)))
	}
	if grown := heap() - before; grown > events*size/4 {
		t.Errorf("%d events of %d bytes grew the heap by %d bytes", events, size, grown)
	}
	if now := goruntime.NumGoroutine(); now > goroutines+10 {
		t.Errorf("%d goroutines, %d before", now, goroutines)
	}
	cancel()
	<-done
}
