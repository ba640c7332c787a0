package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"braid.dev/braid/internal/plan"
)

const (
	uidA = "11111111-1111-4111-8111-111111111111"
	uidB = "22222222-2222-4222-8222-222222222222"
	hash = "0f3c1d9d2f0b4a6e8c7d5b3a19283746"
)

// podsWith are Pods whose API answers a GET with obj and err, and whose watch
// is the test itself: see appear.
func podsWith(t *testing.T, get func() (*metav1.PartialObjectMetadata, error)) *Pods {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	client := fake.NewSimpleMetadataClient(scheme)
	client.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		obj, err := get()
		return true, obj, err
	})
	return newPods(client, dynamicfake.NewSimpleDynamicClient(scheme), "node", &reach{}, nil)
}

func object(uid string, annotations map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: types.UID(uid), Annotations: annotations},
	}
}

func (p *Pods) appear(obj *metav1.PartialObjectMetadata) { _ = rowStore[plan.Pod]{p.table}.Add(obj) }

func gone() (*metav1.PartialObjectMetadata, error) {
	return nil, apierrors.NewNotFound(podResource.GroupResource(), "p")
}

func down() (*metav1.PartialObjectMetadata, error) {
	return nil, errors.New("connection refused")
}

func TestAPodInMemoryCostsNoRequest(t *testing.T) {
	pods := podsWith(t, func() (*metav1.PartialObjectMetadata, error) {
		t.Error("the API was asked")
		return down()
	})
	pods.appear(object(uidA, nil))
	for _, uid := range []string{uidA, ""} {
		if pod, err := pods.Get(t.Context(), plan.Pod{Namespace: "ns", Name: "p", UID: uid}); err != nil || pod.UID != uidA {
			t.Errorf("UID %q: got %+v, %v", uid, pod, err)
		}
	}
}

func TestAPodThatTheWatchDoesNotHaveIsAskedFor(t *testing.T) {
	pods := podsWith(t, func() (*metav1.PartialObjectMetadata, error) { return object(uidB, nil), nil })
	pods.appear(object(uidA, nil)) // the one of the same name before it
	pod, err := pods.Get(t.Context(), plan.Pod{Namespace: "ns", Name: "p", UID: uidB})
	if err != nil || pod.UID != uidB {
		t.Errorf("got %+v, %v, want the pod of the API", pod, err)
	}
}

func TestAPodIsWaitedForWhileTheAPIIsAway(t *testing.T) {
	asked := make(chan struct{})
	pods := podsWith(t, func() (*metav1.PartialObjectMetadata, error) {
		defer close(asked)
		return down()
	})
	go func() {
		<-asked
		pods.appear(object(uidB, nil)) // another pod: no answer
		pods.appear(object(uidA, nil))
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	pod, err := pods.Get(ctx, plan.Pod{Namespace: "ns", Name: "p", UID: uidA})
	if err != nil || pod.UID != uidA {
		t.Errorf("got %+v, %v", pod, err)
	}
}

func TestWaitingForAPodEndsWithTheRequest(t *testing.T) {
	pods := podsWith(t, down)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := pods.Get(ctx, plan.Pod{Namespace: "ns", Name: "p", UID: uidA})
	if err == nil || errors.Is(err, ErrNotFound) || !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "pod ns/p (UID "+uidA+")") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v, want the pod, why it is unknown, and the deadline", err)
	}
}

// TestAMirrorPodMayComeLater: the kubelet starts a static pod before the API
// has its mirror.
func TestAMirrorPodMayComeLater(t *testing.T) {
	asked := make(chan struct{})
	pods := podsWith(t, func() (*metav1.PartialObjectMetadata, error) {
		defer close(asked)
		return gone()
	})
	go func() {
		<-asked
		pods.appear(object(uidA, map[string]string{mirrorAnnotation: hash, hashAnnotation: hash}))
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	pod, err := pods.Get(ctx, plan.Pod{Namespace: "ns", Name: "p", UID: hash})
	if err != nil || pod.UID != uidA {
		t.Errorf("got %+v, %v, want the mirror with the API's UID", pod, err)
	}
}

func TestWhichPodTheRuntimeMeans(t *testing.T) {
	mirror := map[string]string{mirrorAnnotation: hash, hashAnnotation: hash}
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		uid         string
		want        bool
	}{
		{"its UID", nil, uidA, true},
		{"another UID", nil, uidB, false},
		{"no UID, from an old runtime", nil, "", true},
		{"a mirror by its hash", mirror, hash, true},
		{"a mirror by its own UID", mirror, uidA, true},
		{"a mirror of another manifest", mirror, strings.Repeat("0", 32), false},
		{"an ordinary pod that claims a hash", map[string]string{hashAnnotation: hash}, hash, false},
	} {
		_, pod := reducePod(object(uidA, tc.annotations))
		if got := isPod(pod, tc.uid); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestWhenWaitingForAPodIsUseless(t *testing.T) {
	_, notFound := gone()
	_, refused := down()
	for _, tc := range []struct {
		name  string
		a     answer
		uid   string
		final bool
		away  bool // the error is not ErrNotFound
	}{
		{"an ordinary pod is gone", answer{err: notFound}, uidA, true, false},
		{"a static pod's mirror is not there yet", answer{err: notFound}, hash, false, false},
		{"an ordinary pod was replaced", answer{pod: plan.Pod{UID: uidB}}, uidA, true, false},
		{"a static pod's older mirror", answer{pod: plan.Pod{UID: uidB}}, hash, false, false},
		{"the API is away", answer{err: refused}, uidA, false, true},
	} {
		reason, final := judge(tc.a, tc.uid)
		if final != tc.final || errors.Is(reason, ErrNotFound) == tc.away {
			t.Errorf("%s: got %v, final %v", tc.name, reason, final)
		}
	}
}

func TestSyncedNamesWhatIsMissing(t *testing.T) {
	pods := podsWith(t, down)
	definitions := &Definitions{table: newTable[plan.Definition]("network attachment definitions", source{}, reduceDefinition, nil)}
	c := &Cluster{Pods: pods, Definitions: definitions, api: &reach{}}
	pods.table.note(t.Context(), errors.New("connection refused"))
	err := c.Synced()
	if err == nil || !strings.Contains(err.Error(), "pods of node node have not been read yet: connection refused") ||
		!strings.Contains(err.Error(), "network attachment definitions have not been read yet") {
		t.Errorf("got %v", err)
	}
	pods.table.replace(nil)
	definitions.table.replace(nil)
	if err := c.Synced(); err != nil {
		t.Errorf("all is read: got %v", err)
	}
	pods.table.note(t.Context(), errors.New("connection refused"))
	if err := c.Synced(); err != nil {
		t.Errorf("an outage after the first read: got %v, want memory to serve", err)
	}
}

func TestANodeNameIsRequired(t *testing.T) {
	// Without it, the watch would be of all pods of the cluster.
	_, err := connect(&rest.Config{Host: "https://127.0.0.1:1"}, Config{})
	if err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("got %v, want it to ask for --node-name", err)
	}
}

func TestAKubeconfigThatCannotBeReadIsNamed(t *testing.T) {
	_, err := Connect(Config{NodeName: "n", Kubeconfig: "/nonexistent/config"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/config") {
		t.Errorf("got %v, want the file's name", err)
	}
}

// TestEventsDoNotWaitForTheAPI: whoever records one, as the one who keeps
// Braid's configuration in the conf dir, goes on at once.
func TestEventsDoNotWaitForTheAPI(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := connect(&rest.Config{Host: "http://" + l.Addr().String()}, Config{NodeName: "n"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Events.run(ctx) }()
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		for i := range 5000 {
			c.Events.Renamed(fmt.Sprint("Cilium has renamed ", i))
			c.Events.Failed(plan.Pod{Namespace: "ns", Name: "p"}, fmt.Sprint("why ", i))
		}
	}()
	ends := func(what string, ended <-chan struct{}) {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s waits for the API", what)
		}
	}
	ends("recording", recorded)
	cancel()
	ends("ending", done)
}

func TestPatchChangesOneAnnotationOfOnePod(t *testing.T) {
	patch, err := annotationPatch(uidA, "a/b", `[{"x":"<&>"}]`)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]map[string]any
	if err := json.Unmarshal(patch, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{"metadata": {"uid": uidA, "annotations": map[string]any{"a/b": `[{"x":"<&>"}]`}}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	var got []time.Duration
	for n := range 6 {
		got = append(got, backoff(n, 2*time.Second))
	}
	want := "[250ms 500ms 1s 2s 2s 2s]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if d := backoff(1<<20, 5*time.Second); d != 5*time.Second {
		t.Errorf("after many failures: got %v", d)
	}
}

func TestPauseEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	go func() {
		pause(ctx, time.Hour)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

func FuzzClip(f *testing.F) {
	f.Add("short", 10)
	f.Add(strings.Repeat("é", 600), maxMessage)
	f.Add(strings.Repeat("x", 1025), maxMessage)
	f.Fuzz(func(t *testing.T, s string, n int) {
		if n < len("…") || n > 4096 {
			n = maxMessage
		}
		got := clip(s, n)
		if len(got) > n {
			t.Errorf("%d bytes, want at most %d", len(got), n)
		}
		if len(s) <= n && got != s {
			t.Errorf("%q was changed to %q", s, got)
		}
		if utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Errorf("%q is not valid UTF-8", got)
		}
	})
}

func TestWhoFollowsAllPodsLearnsOfEveryChange(t *testing.T) {
	p := podsWith(t, down)
	none, changed := p.All()
	if len(none) != 0 {
		t.Errorf("pods %v", none)
	}
	for _, step := range []struct {
		what   string
		change func()
		want   []string
	}{
		{"came", func() { p.appear(object("u1", map[string]string{plan.NetworksAnnotation: "a"})) }, []string{"u1 a"}},
		{"changed", func() { p.appear(object("u1", map[string]string{plan.NetworksAnnotation: "a,b"})) }, []string{"u1 a,b"}},
		{"went", func() { _ = rowStore[plan.Pod]{p.table}.Delete(object("u1", nil)) }, nil},
	} {
		select {
		case <-changed:
			t.Fatalf("told of a change before the pod %s", step.what)
		default:
		}
		step.change()
		select {
		case <-changed:
		default:
			t.Fatalf("not told that the pod %s", step.what)
		}
		var have []string
		var pods []plan.Pod
		pods, changed = p.All()
		for _, pod := range pods {
			have = append(have, pod.UID+" "+pod.Annotations[plan.NetworksAnnotation])
		}
		if !slices.Equal(have, step.want) {
			t.Errorf("after it %s there are %q, want %q", step.what, have, step.want)
		}
	}
}
