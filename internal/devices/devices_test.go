package devices

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"braid.dev/braid/internal/devices/kubelettest"
	"braid.dev/braid/internal/plan"
)

// client asks this kubelet, in a hurry.
func client(t *testing.T, k *kubelettest.Kubelet, s Slices) *Kubelet {
	t.Helper()
	c, err := New("unix://"+k.Socket, s)
	if err != nil {
		t.Fatal(err)
	}
	c.patience, c.between = time.Minute, time.Millisecond
	return c
}

// questions are those that the kubelet was asked until now.
func questions(k *kubelettest.Kubelet) []string {
	var asked []string
	for {
		select {
		case q := <-k.Asked:
			asked = append(asked, q)
		default:
			return asked
		}
	}
}

func pod(name string) plan.Pod { return plan.Pod{Namespace: "default", Name: name, UID: "uid-" + name} }

func ids(t *testing.T, c *Kubelet, name, resource string) string {
	t.Helper()
	list, err := c.Of(t.Context(), pod(name), resource)
	if err != nil {
		t.Error(err)
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
	k := kubelettest.New(t).Start()
	k.Devices("default/other", "intel.com/vf", "0000:01:00.7")
	k.Devices("elsewhere/p", "intel.com/vf", "0000:01:00.6")
	k.Containers("default/p",
		kubelettest.Container("intel.com/vf", "0000:01:00.5", "0000:01:00.2"),
		kubelettest.Container("nvidia.com/gpu", "GPU-1"),
		// The kubelet lists the devices of one NUMA node after those of another.
		&api.ContainerResources{Devices: []*api.ContainerDevices{
			{ResourceName: "intel.com/vf", DeviceIds: []string{"0000:01:00.1"}},
			{ResourceName: "intel.com/vf", DeviceIds: []string{"0000:01:00.3"}},
		}})
	c := client(t, k, nil)
	if got, want := ids(t, c, "p", "intel.com/vf"), "0000:01:00.1 0000:01:00.2 0000:01:00.3 0000:01:00.5"; got != want {
		t.Errorf("devices %q, want %q", got, want)
	}
	if got := ids(t, c, "p", "intel.com/other"); got != "" {
		t.Errorf("devices of a resource that the pod does not have: %q", got)
	}
}

func TestKubeletIsAskedOnceForEachPod(t *testing.T) {
	k := kubelettest.New(t).Start()
	k.Devices("default/p", "a/b", "1")
	k.Devices("default/q", "a/b", "2")
	c := client(t, k, nil)
	for range 3 {
		ids(t, c, "p", "a/b")
		ids(t, c, "p", "a/c")
		ids(t, c, "q", "a/b")
	}
	if asked := questions(k); !slices.Equal(asked, []string{"Get default/p", "Get default/q"}) {
		t.Errorf("asked %v", asked)
	}
	// Its successor of the same name is another pod.
	k.Devices("default/p", "a/b", "3")
	next := pod("p")
	next.UID = "uid-of-the-next"
	if list, err := c.Of(t.Context(), next, "a/b"); err != nil || len(list) != 1 || list[0].ID != "3" {
		t.Errorf("the next pod has %v, %v", list, err)
	}
	if got := ids(t, c, "p", "a/b"); got != "1" {
		t.Errorf("the first pod now has %q", got)
	}
	c.Forget(pod("p"))
	if got := ids(t, c, "p", "a/b"); got != "3" {
		t.Errorf("after Forget: %q", got)
	}
}

func TestNoMorePodsAreRememberedThanANodeRuns(t *testing.T) {
	k := kubelettest.New(t).Start()
	c := client(t, k, nil)
	for i := range maxKnown + 10 {
		name := fmt.Sprint("p", i)
		k.Devices("default/"+name, "a/b", "1")
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
		k := kubelettest.New(t)
		k.GetError = without
		k.Start()
		k.Devices("default/other", "a/b", "1")
		k.Devices("default/p", "a/b", "2")
		if got := ids(t, client(t, k, nil), "p", "a/b"); got != "2" {
			t.Errorf("%v: %q", without, got)
		}
		if asked := questions(k); !slices.Equal(asked, []string{"Get default/p", "List"}) {
			t.Errorf("%v: asked %v", without, asked)
		}
	}
}

// A pod of a StatefulSet may come while the one before it still ends.
func TestTwoPodsOfOneNameAreNotMixedUp(t *testing.T) {
	k := kubelettest.New(t)
	k.GetError = status.Error(codes.Unimplemented, "")
	k.Start()
	k.Devices("default/p", "a/b", "1")
	k.Twice("default/p")
	c := client(t, k, nil)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 1)
	go func() {
		_, err := c.Of(ctx, pod("p"), "a/b")
		answers <- err
	}()
	for range 6 {
		<-k.Asked // again and again
	}
	select {
	case err := <-answers:
		t.Fatalf("an answer while there are two: %v", err)
	default:
	}
	cancel()
	if err := <-answers; err == nil || !strings.Contains(err.Error(), "two pods of this name") {
		t.Errorf("error %v", err)
	}
	k.Twice("")
	if got := ids(t, c, "p", "a/b"); got != "1" {
		t.Errorf("devices %q", got)
	}
}

func TestKubeletThatRestartsIsWaitedFor(t *testing.T) {
	k := kubelettest.New(t)
	k.Refuse = 3 // others ask it too
	k.Devices("default/p", "a/b", "1")
	// One that is about to end still has its socket, and answers nobody.
	dying, err := net.Listen("unix", k.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer dying.Close()
	answers := make(chan string, 1)
	c := client(t, k, nil)
	go func() { answers <- ids(t, c, "p", "a/b") }()
	conn, err := dying.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	dying.Close()
	k.Start()
	if got := <-answers; got != "1" {
		t.Errorf("devices %q", got)
	}
}

func TestPodThatTheKubeletLearnsOfLateIsFound(t *testing.T) {
	k := kubelettest.New(t).Start()
	answers := make(chan string, 1)
	c := client(t, k, nil)
	go func() { answers <- ids(t, c, "p", "a/b") }()
	<-k.Asked
	<-k.Asked
	k.Devices("default/p", "a/b", "1")
	if got := <-answers; got != "1" {
		t.Errorf("devices %q", got)
	}
}

func TestKubeletThatDoesNotAnswerEndsWithTheRequest(t *testing.T) {
	k := kubelettest.New(t)
	k.Hang = make(chan struct{})
	defer close(k.Hang)
	k.Start()
	c := client(t, k, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-k.Asked
		cancel(errors.New("the request is over"))
	}()
	_, err := c.Of(ctx, pod("p"), "a/b")
	if err == nil || !strings.Contains(err.Error(), "the request is over") || !strings.Contains(err.Error(), "devices of pod default/p") {
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
		// After 100, 200, 400 and 800 ms, and then each second.
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
	k := kubelettest.New(t)
	_, err := client(t, k, nil).once(t.Context(), "default", "p")
	if err == nil || !strings.Contains(err.Error(), k.Socket) || !strings.Contains(err.Error(), "no such file") {
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

// BenchmarkQuestion is what the first network of a pod with devices waits for,
// the connection included.
func BenchmarkQuestion(b *testing.B) {
	k := kubelettest.New(b).Start()
	k.Devices("default/p", "a/b", "1", "2", "3", "4")
	go func() {
		for range k.Asked { // nobody counts them
		}
	}()
	b.Cleanup(func() { close(k.Asked) })
	c, err := New(k.Socket, nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Of(b.Context(), pod("p"), "a/b"); err != nil {
			b.Fatal(err)
		}
		c.Forget(pod("p"))
	}
}
