package devices

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"braid.dev/braid/internal/plan"
)

// kubelet serves the podresources API as the kubelet does.
type kubelet struct {
	api.UnimplementedPodResourcesListerServer
	t    *testing.T
	path string

	mu   sync.Mutex
	pods []*api.PodResources
	// getErr, if not nil, is the answer to Get; refuse is how many questions
	// are still refused by its rate limit.
	getErr error
	refuse int
	// hang, if not nil, holds every answer until it is closed.
	hang  chan struct{}
	asked []string
	bell  chan struct{} // rings with each question
}

func newKubelet(t *testing.T) *kubelet {
	dir, err := os.MkdirTemp("", "braid-kubelet-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &kubelet{t: t, path: filepath.Join(dir, "kubelet.sock"), bell: make(chan struct{}, 1000)}
}

func (k *kubelet) start() {
	l, err := net.Listen("unix", k.path)
	if err != nil {
		k.t.Error(err)
		return
	}
	s := grpc.NewServer()
	api.RegisterPodResourcesListerServer(s, k)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	k.t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			k.t.Error(err)
		}
	})
}

func (k *kubelet) question(ctx context.Context, q string) error {
	k.mu.Lock()
	k.asked = append(k.asked, q)
	k.bell <- struct{}{}
	hang, refuse := k.hang, k.refuse > 0
	if refuse {
		k.refuse--
	}
	k.mu.Unlock()
	if refuse {
		return status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (k *kubelet) Get(ctx context.Context, r *api.GetPodResourcesRequest) (*api.GetPodResourcesResponse, error) {
	if err := k.question(ctx, "Get "+r.PodNamespace+"/"+r.PodName); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.getErr != nil {
		return nil, k.getErr
	}
	for _, p := range k.pods {
		if p.Namespace == r.PodNamespace && p.Name == r.PodName {
			return &api.GetPodResourcesResponse{PodResources: p}, nil
		}
	}
	return nil, fmt.Errorf("pod %s in namespace %s not found", r.PodName, r.PodNamespace)
}

func (k *kubelet) List(ctx context.Context, _ *api.ListPodResourcesRequest) (*api.ListPodResourcesResponse, error) {
	if err := k.question(ctx, "List"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return &api.ListPodResourcesResponse{PodResources: k.pods}, nil
}

func (k *kubelet) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *kubelet) questions() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

// client asks this kubelet, in a hurry.
func (k *kubelet) client(s Slices) *Kubelet {
	k.t.Helper()
	c, err := New("unix://"+k.path, s)
	if err != nil {
		k.t.Fatal(err)
	}
	c.patience, c.between = time.Minute, time.Millisecond
	return c
}

func container(resource string, ids ...string) *api.ContainerResources {
	return &api.ContainerResources{Devices: []*api.ContainerDevices{{ResourceName: resource, DeviceIds: ids}}}
}

func pod(name string, containers ...*api.ContainerResources) *api.PodResources {
	return &api.PodResources{Namespace: "default", Name: name, Containers: containers}
}

func planPod(name string) plan.Pod {
	return plan.Pod{Namespace: "default", Name: name, UID: "uid-" + name}
}

func ids(t *testing.T, c *Kubelet, name, resource string) string {
	t.Helper()
	list, err := c.Of(t.Context(), planPod(name), resource)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, d := range list {
		if d.Resource != resource {
			t.Errorf("%+v is of another resource", d)
		}
		text = append(text, d.ID)
	}
	return strings.Join(text, " ")
}

func TestDevicesOfAllContainersAreListedInOneOrder(t *testing.T) {
	k := newKubelet(t)
	k.pods = []*api.PodResources{
		pod("other", container("intel.com/vf", "0000:01:00.7")),
		{Namespace: "elsewhere", Name: "p", Containers: []*api.ContainerResources{container("intel.com/vf", "0000:01:00.6")}},
		pod("p",
			container("intel.com/vf", "0000:01:00.5", "0000:01:00.2"),
			container("nvidia.com/gpu", "GPU-1"),
			// The kubelet lists devices of one NUMA node after the other.
			&api.ContainerResources{Devices: []*api.ContainerDevices{
				{ResourceName: "intel.com/vf", DeviceIds: []string{"0000:01:00.1"}},
				{ResourceName: "intel.com/vf", DeviceIds: []string{"0000:01:00.3"}},
			}}),
	}
	k.start()
	c := k.client(nil)
	if got, want := ids(t, c, "p", "intel.com/vf"), "0000:01:00.1 0000:01:00.2 0000:01:00.3 0000:01:00.5"; got != want {
		t.Errorf("devices %q, want %q", got, want)
	}
	if got := ids(t, c, "p", "intel.com/other"); got != "" {
		t.Errorf("devices of a resource that the pod does not have: %q", got)
	}
}

func TestKubeletIsAskedOnceForEachPod(t *testing.T) {
	k := newKubelet(t)
	k.pods = []*api.PodResources{pod("p", container("a/b", "1")), pod("q", container("a/b", "2"))}
	k.start()
	c := k.client(nil)
	for range 3 {
		ids(t, c, "p", "a/b")
		ids(t, c, "p", "a/c")
		ids(t, c, "q", "a/b")
	}
	if asked := k.questions(); !slices.Equal(asked, []string{"Get default/p", "Get default/q"}) {
		t.Errorf("asked %v", asked)
	}
	// Its successor of the same name is another pod.
	k.set(func() { k.pods[0] = pod("p", container("a/b", "3")) })
	next := planPod("p")
	next.UID = "uid-of-the-next"
	if list, err := c.Of(t.Context(), next, "a/b"); err != nil || len(list) != 1 || list[0].ID != "3" {
		t.Errorf("the next pod has %v, %v", list, err)
	}
	if got := ids(t, c, "p", "a/b"); got != "1" {
		t.Errorf("the first pod now has %q", got)
	}
	c.Forget(planPod("p"))
	if got := ids(t, c, "p", "a/b"); got != "3" {
		t.Errorf("after Forget: %q", got)
	}
}

func TestNoMorePodsAreRememberedThanANodeRuns(t *testing.T) {
	k := newKubelet(t)
	k.start()
	c := k.client(nil)
	for i := range maxKnown + 10 {
		name := fmt.Sprint("p", i)
		k.set(func() { k.pods = []*api.PodResources{pod(name, container("a/b", "1"))} })
		ids(t, c, name, "a/b")
	}
	if len(c.known) != maxKnown || len(c.order) != maxKnown {
		t.Errorf("%d and %d are remembered", len(c.known), len(c.order))
	}
	if _, ok := c.known["uid-p9"]; ok {
		t.Error("one of the first is still remembered")
	}
}

func TestKubeletWithoutGetIsAskedForItsList(t *testing.T) {
	for _, without := range []error{
		status.Error(codes.Unimplemented, "unknown method Get"),
		errors.New("PodResources API Get method disabled"),
	} {
		k := newKubelet(t)
		k.getErr = without
		k.pods = []*api.PodResources{pod("other", container("a/b", "1")), pod("p", container("a/b", "2"))}
		k.start()
		if got := ids(t, k.client(nil), "p", "a/b"); got != "2" {
			t.Errorf("%v: %q", without, got)
		}
		if asked := k.questions(); !slices.Equal(asked, []string{"Get default/p", "List"}) {
			t.Errorf("%v: asked %v", without, asked)
		}
	}
}

// A pod of a StatefulSet may come while the one before it still ends.
func TestTwoPodsOfOneNameAreNotMixedUp(t *testing.T) {
	k := newKubelet(t)
	k.getErr = status.Error(codes.Unimplemented, "")
	k.pods = []*api.PodResources{pod("p", container("a/b", "1")), pod("p", container("a/b", "2"))}
	k.start()
	c := k.client(nil)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 1)
	go func() {
		_, err := c.Of(ctx, planPod("p"), "a/b")
		answers <- err
	}()
	k.wait(4) // it is asked again and again
	select {
	case err := <-answers:
		t.Fatalf("an answer while there are two: %v", err)
	default:
	}
	cancel()
	if err := <-answers; err == nil || !strings.Contains(err.Error(), "two pods of this name") {
		t.Errorf("error %v", err)
	}
	k.set(func() { k.pods = k.pods[1:] })
	if got := ids(t, c, "p", "a/b"); got != "2" {
		t.Errorf("devices %q", got)
	}
}

// wait waits until the kubelet was asked n times more.
func (k *kubelet) wait(n int) {
	for range n {
		<-k.bell
	}
}

func TestKubeletThatRestartsIsWaitedFor(t *testing.T) {
	k := newKubelet(t)
	k.pods = []*api.PodResources{pod("p", container("a/b", "1"))}
	k.refuse = 3 // others ask it too
	// One that is about to end still has its socket, and answers nobody.
	dying, err := net.Listen("unix", k.path)
	if err != nil {
		t.Fatal(err)
	}
	defer dying.Close()
	answers := make(chan string, 1)
	c := k.client(nil)
	go func() { answers <- ids(t, c, "p", "a/b") }()
	conn, err := dying.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	dying.Close()
	k.start()
	if got := <-answers; got != "1" {
		t.Errorf("devices %q", got)
	}
}

func TestPodThatTheKubeletLearnsOfLateIsFound(t *testing.T) {
	k := newKubelet(t)
	k.start()
	answers := make(chan string, 1)
	c := k.client(nil)
	go func() { answers <- ids(t, c, "p", "a/b") }()
	k.wait(2)
	k.set(func() { k.pods = []*api.PodResources{pod("p", container("a/b", "1"))} })
	if got := <-answers; got != "1" {
		t.Errorf("devices %q", got)
	}
}

func TestKubeletThatDoesNotAnswerEndsWithTheRequest(t *testing.T) {
	k := newKubelet(t)
	k.hang = make(chan struct{})
	defer close(k.hang)
	k.start()
	c := k.client(nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		k.wait(1)
		cancel(errors.New("the request is over"))
	}()
	_, err := c.Of(ctx, planPod("p"), "a/b")
	if err == nil || !strings.Contains(err.Error(), "the request is over") || !strings.Contains(err.Error(), "devices of resource a/b") {
		t.Errorf("error %v", err)
	}
}

// One pod must not hold its place for as long as a request may take when the
// kubelet listens elsewhere.
func TestMissingKubeletIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, err := New("/nowhere", nil)
		if err != nil {
			t.Fatal(err)
		}
		start, tries := time.Now(), 0
		err = k.insist(t.Context(), func(context.Context) error {
			tries++
			return errors.New("no such file")
		})
		if took := time.Since(start); took != 20*time.Second {
			t.Errorf("given up after %v", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || err.Error() != "no such file (no answer within 20s: context deadline exceeded)" {
			t.Errorf("error %v", err)
		}
		// 100, 200, 400, 800 ms, then one a second.
		if tries != 23 {
			t.Errorf("%d tries", tries)
		}
	})
}

// What is said at the end is what was wrong, not that time ran out over it.
func TestReasonOfTheKubeletOutlivesTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, err := New("/nowhere", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		tries := 0
		err = k.insist(ctx, func(ctx context.Context) error {
			if tries++; tries == 1 {
				return errors.New("it does not know the pod yet")
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if err == nil || !strings.Contains(err.Error(), "it does not know the pod yet") {
			t.Errorf("error %v", err)
		}
	})
}

func TestMissingSocketIsNamed(t *testing.T) {
	k := newKubelet(t)
	_, err := k.client(nil).once(t.Context(), "default", "p")
	if err == nil || !strings.Contains(err.Error(), k.path) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
}

func TestEndpointIsASocket(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///var/lib/kubelet/pod-resources/kubelet.sock": "unix:///var/lib/kubelet/pod-resources/kubelet.sock",
		"/var/lib/kubelet/pod-resources/kubelet.sock":        "unix:///var/lib/kubelet/pod-resources/kubelet.sock",
		"tcp://127.0.0.1:1": "", "kubelet.sock": "", "": "",
	} {
		c, err := New(endpoint, nil)
		if (err == nil) != (want != "") || err == nil && c.target != want {
			t.Errorf("New(%q) = %+v, %v", endpoint, c, err)
		}
	}
}
