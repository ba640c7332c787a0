package cri_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"braid.dev/braid/internal/cri"
)

// serve serves a fake runtime until the test ends and returns its socket.
func serve(t *testing.T, r runtime.RuntimeServiceServer) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		killer, ok := r.(interface {
			kill(method string, m metadata.MD, request []byte) error
		})
		if !ok {
			return status.Error(codes.Unimplemented, method)
		}
		m, _ := metadata.FromIncomingContext(stream.Context())
		var request emptypb.Empty // whose fields are all unknown
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		if err := killer.kill(method, m, request.ProtoReflect().GetUnknown()); err != nil {
			return err
		}
		return stream.SendMsg(&emptypb.Empty{})
	}))
	runtime.RegisterRuntimeServiceServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func dial(t *testing.T, r runtime.RuntimeServiceServer) *cri.Client {
	t.Helper()
	c, err := cri.Dial(serve(t, r))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// pods is a runtime with sandboxes and containers. It writes down what it was
// asked to do.
type pods struct {
	fake
	mu         sync.Mutex
	sandboxes  []*runtime.PodSandboxStatus
	info       map[string]string // verbose, by sandbox
	containers []*runtime.Container
	asked      []string
	// onStop is called before a container is stopped, without the lock.
	onStop func(id string)
	// fails are errors by what is asked.
	fails map[string]error
}

func (p *pods) note(format string, args ...any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	p.asked = append(p.asked, what)
	return p.fails[what]
}

func (p *pods) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := &runtime.ListPodSandboxResponse{}
	for _, s := range p.sandboxes {
		answer.Items = append(answer.Items, &runtime.PodSandbox{Id: s.Id, Metadata: s.Metadata, State: s.State, Labels: s.Labels})
	}
	return answer, p.fails["list"]
}

func (p *pods) PodSandboxStatus(_ context.Context, r *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fails["status "+r.PodSandboxId]; err != nil {
		return nil, err
	}
	for _, s := range p.sandboxes {
		if s.Id == r.PodSandboxId {
			return &runtime.PodSandboxStatusResponse{Status: s, Info: map[string]string{"info": p.info[s.Id]}}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no such sandbox")
}

func (p *pods) ListContainers(_ context.Context, r *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := &runtime.ListContainersResponse{}
	for _, c := range p.containers {
		if c.PodSandboxId == r.Filter.PodSandboxId {
			// The server encodes it later.
			answer.Containers = append(answer.Containers, &runtime.Container{Id: c.Id, Metadata: c.Metadata, State: c.State, Annotations: c.Annotations})
		}
	}
	return answer, p.fails["containers"]
}

func (p *pods) StopContainer(_ context.Context, r *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	if p.onStop != nil {
		p.onStop(r.ContainerId)
	}
	err := p.note("stop %s in %ds", r.ContainerId, r.Timeout)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		if c.Id == r.ContainerId && err == nil {
			c.State = runtime.ContainerState_CONTAINER_EXITED
		}
	}
	return &runtime.StopContainerResponse{}, err
}

func (p *pods) StopPodSandbox(_ context.Context, r *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	return &runtime.StopPodSandboxResponse{}, p.note("end %s", r.PodSandboxId)
}

func sandbox(id, name string, state runtime.PodSandboxState) *runtime.PodSandboxStatus {
	return &runtime.PodSandboxStatus{
		Id: id, State: state, Labels: map[string]string{"app": name},
		Metadata: &runtime.PodSandboxMetadata{Namespace: "default", Name: name, Uid: "uid-" + name, Attempt: 3},
	}
}

func container(id, sandboxID string, state runtime.ContainerState) *runtime.Container {
	return &runtime.Container{Id: id, PodSandboxId: sandboxID, State: state, Metadata: &runtime.ContainerMetadata{Name: "name-" + id}}
}

const (
	ready    = runtime.PodSandboxState_SANDBOX_READY
	notReady = runtime.PodSandboxState_SANDBOX_NOTREADY
	running  = runtime.ContainerState_CONTAINER_RUNNING
	created  = runtime.ContainerState_CONTAINER_CREATED
	exited   = runtime.ContainerState_CONTAINER_EXITED
)

func TestSandboxesAreListedWithTheirNetworks(t *testing.T) {
	withIPs := sandbox("s1", "a", ready)
	withIPs.Network = &runtime.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*runtime.PodIP{{Ip: "fd00::2"}}}
	host := sandbox("s2", "b", ready)
	host.Linux = &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}}}
	r := &pods{
		sandboxes: []*runtime.PodSandboxStatus{
			withIPs, host, sandbox("s3", "c", notReady), sandbox("s4", "d", ready), sandbox("s5", "e", ready),
			sandbox("s6", "f", notReady), sandbox("s7", "g", ready),
		},
		info: map[string]string{
			"s1": `{"pid":7,"netNamespaceClosed":false,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/cni-1"}]}}}`,
			"s2": `{"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/proc/1/ns/net"}]}}}`,
			"s3": `{"netNamespaceClosed":true,"sandboxMetadata":{"NetNSPath":"/run/netns/cni-3"}}`,
			"s4": `{"netNamespaceClosed":false,"runtimeSpec":null,"sandboxMetadata":{"NetNSPath":"/run/netns/cni-4"}}`,
		},
		fails: map[string]error{
			"status s5": status.Error(codes.NotFound, "removed meanwhile"),
			"status s6": errors.New("what has ended may be in disorder"),
		},
	}
	have, err := dial(t, r).ListSandboxes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pod := func(id, name string) cri.Sandbox {
		return cri.Sandbox{ID: id, Namespace: "default", Pod: name, UID: "uid-" + name, Attempt: 3, Ready: true, Labels: map[string]string{"app": name}}
	}
	want := []cri.Sandbox{pod("s1", "a"), pod("s2", "b"), pod("s3", "c"), pod("s4", "d"), pod("s6", "f"), pod("s7", "g")}
	want[0].IPs, want[0].NetNS = []string{"10.0.0.2", "fd00::2"}, "/run/netns/cni-1"
	want[1].HostNetwork = true
	want[2].Ready, want[4].Ready = false, false
	want[3].NetNS = "/run/netns/cni-4"
	if !reflect.DeepEqual(have, want) {
		t.Errorf("have %+v\nwant %+v", have, want)
	}
}

func TestASandboxThatCannotBeReadIsNamed(t *testing.T) {
	r := &pods{sandboxes: []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)}, info: map[string]string{"s1": "{"}}
	if _, err := dial(t, r).ListSandboxes(t.Context()); err == nil || !strings.Contains(err.Error(), "default/a") {
		t.Error(err)
	}
	r.fails = map[string]error{"list": errors.New("no")}
	if _, err := dial(t, r).ListSandboxes(t.Context()); err == nil || !strings.Contains(err.Error(), "list the sandboxes") {
		t.Error(err)
	}
}

func TestAPodRestartsWithItsGrace(t *testing.T) {
	r := &pods{
		sandboxes: []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)},
		containers: []*runtime.Container{
			container("c1", "s1", running), container("c2", "s1", created), container("c3", "s1", exited), container("c4", "other", running),
		},
	}
	if err := dial(t, r).Restart(t.Context(), "s1", 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	slices.Sort(r.asked[:2]) // at once
	if want := []string{"stop c1 in 2s", "stop c2 in 2s", "end s1"}; !slices.Equal(r.asked, want) {
		t.Errorf("%q, want %q", r.asked, want)
	}
}

func TestAContainerGetsTheGraceOfItsPod(t *testing.T) {
	r := &pods{sandboxes: []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)}}
	for id, note := range map[string]string{"c1": "90", "c2": "0", "c3": "", "c4": "-1", "c5": "long"} {
		c := container(id, "s1", running)
		c.Annotations = map[string]string{"io.kubernetes.pod.terminationGracePeriod": note}
		r.containers = append(r.containers, c)
	}
	if err := dial(t, r).Restart(t.Context(), "s1", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	slices.Sort(r.asked[:5])
	want := []string{"stop c1 in 90s", "stop c2 in 0s", "stop c3 in 30s", "stop c4 in 30s", "stop c5 in 30s", "end s1"}
	if !slices.Equal(r.asked, want) {
		t.Errorf("%q, want %q", r.asked, want)
	}
}

func TestContainersStopAtTheSameTime(t *testing.T) {
	r := &pods{
		sandboxes:  []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)},
		containers: []*runtime.Container{container("c1", "s1", running), container("c2", "s1", running)},
	}
	var both sync.WaitGroup
	both.Add(2)
	r.onStop = func(string) { // returns when both have come
		both.Done()
		both.Wait()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := dial(t, r).Restart(ctx, "s1", time.Minute); err != nil {
		t.Error(err)
	}
}

// The kubelet starts a container anew that ended, while others still stop.
func TestAContainerThatWasStartedMeanwhileGetsAGraceToo(t *testing.T) {
	r := &pods{
		sandboxes:  []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)},
		containers: []*runtime.Container{container("c1", "s1", running), container("slow", "s1", running)},
	}
	r.onStop = func(id string) {
		if id == "slow" {
			r.mu.Lock()
			r.containers = append(r.containers, container("c1-again", "s1", running))
			r.mu.Unlock()
		}
	}
	if err := dial(t, r).Restart(t.Context(), "s1", time.Minute); err != nil {
		t.Fatal(err)
	}
	slices.Sort(r.asked[:2])
	if want := []string{"stop c1 in 60s", "stop slow in 60s", "stop c1-again in 2s", "end s1"}; !slices.Equal(r.asked, want) {
		t.Errorf("%q, want %q", r.asked, want)
	}
}

func TestRestartOfWhatIsGoneSucceeds(t *testing.T) {
	gone := status.Error(codes.NotFound, "gone")
	r := &pods{
		sandboxes:  []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)},
		containers: []*runtime.Container{container("c1", "s1", running)},
		fails:      map[string]error{"stop c1 in 5s": gone, "stop c1 in 2s": gone, "end s1": gone},
	}
	c := dial(t, r)
	for _, id := range []string{"s1", "never"} {
		if err := c.Restart(t.Context(), id, 5*time.Second); err != nil {
			t.Error(err)
		}
	}
}

func TestARestartThatFailsNamesThePod(t *testing.T) {
	broken := status.Error(codes.Unknown, "broken")
	for what, want := range map[string]string{
		"stop c1 in 5s": "restart pod default/a: stop container name-c1: ",
		"containers":    "restart pod default/a: list its containers: ",
		"end s1":        "restart pod default/a: stop sandbox s1: ",
	} {
		r := &pods{
			sandboxes:  []*runtime.PodSandboxStatus{sandbox("s1", "a", ready)},
			containers: []*runtime.Container{container("c1", "s1", running)},
			fails:      map[string]error{what: broken},
		}
		err := dial(t, r).Restart(t.Context(), "s1", 5*time.Second)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s: %v", what, err)
		}
		if ended := slices.Contains(r.asked, "end s1"); ended != (what == "end s1") {
			t.Errorf("%s: the sandbox was ended: %v", what, ended)
		}
	}
	err := dial(t, &pods{fails: map[string]error{"status s9": broken}}).Restart(t.Context(), "s9", 0)
	if err == nil || !strings.HasPrefix(err.Error(), "restart pod of sandbox s9: ") {
		t.Error(err)
	}
}

// cluster is containerd with a kubelet.
type cluster struct {
	pods
	// kubelet is called when the sandbox's process is ended.
	kubelet func()
}

func (c *cluster) kill(method string, m metadata.MD, request []byte) error {
	if method != "/containerd.services.tasks.v1.Tasks/Kill" || !slices.Equal(m.Get("containerd-namespace"), []string{"k8s.io"}) {
		return status.Errorf(codes.Unimplemented, "%s in %v", method, m)
	}
	fields := map[protowire.Number]any{}
	for len(request) > 0 {
		number, kind, n := protowire.ConsumeTag(request)
		request = request[n:]
		switch kind {
		case protowire.BytesType:
			fields[number], n = protowire.ConsumeString(request)
		case protowire.VarintType:
			fields[number], n = protowire.ConsumeVarint(request)
		}
		if n <= 0 {
			return status.Error(codes.InvalidArgument, "malformed")
		}
		request = request[n:]
	}
	err := c.note("kill %v", fields)
	if err == nil && c.kubelet != nil {
		go c.kubelet()
	}
	return err
}

func newCluster() *cluster {
	s := sandbox("s1", "a", ready)
	s.Linux = &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}}}
	return &cluster{pods: pods{
		sandboxes:  []*runtime.PodSandboxStatus{s},
		info:       map[string]string{"s1": `{"sandboxMetadata":{"NetNSPath":"/run/netns/cni-1"}}`},
		containers: []*runtime.Container{container("c1", "s1", running), container("c2", "s1", created)},
	}}
}

const killed = "kill map[1:s1 3:9]"

func TestTheKubeletRestartsAPodWhoseSandboxHasEnded(t *testing.T) {
	c := newCluster()
	stopped, down := make(chan bool), make(chan bool)
	c.kubelet = func() {
		c.mu.Lock()
		c.sandboxes[0] = sandbox("s1", "a", notReady)
		c.mu.Unlock()
		<-stopped
		c.mu.Lock()
		c.containers[0].State = exited
		c.mu.Unlock()
		<-down
		c.mu.Lock()
		c.info["s1"] = `{"netNamespaceClosed":true,"sandboxMetadata":{"NetNSPath":"/run/netns/cni-1"}}`
		c.mu.Unlock()
	}
	client, done := dial(t, c), make(chan error, 1)
	go func() { done <- client.Restart(t.Context(), "s1", time.Minute) }()
	for _, next := range []chan bool{stopped, down} {
		select {
		case err := <-done:
			t.Fatalf("it is taken for done too early: %v", err)
		case next <- true:
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if want := []string{killed}; !slices.Equal(c.asked, want) {
		t.Errorf("%q, want %q", c.asked, want)
	}
	// Again, as after a restart of the daemon.
	if err := client.Restart(t.Context(), "s1", time.Minute); err != nil || len(c.asked) != 1 {
		t.Errorf("%v, %q", err, c.asked)
	}
}

func TestASandboxWhoseProcessMustNotBeEndedIsStopped(t *testing.T) {
	for name, change := range map[string]func(*cluster){
		"a virtual machine": func(c *cluster) { c.sandboxes[0].RuntimeHandler = "kata" },
		"one process namespace": func(c *cluster) {
			c.sandboxes[0].Linux.Namespaces.Options.Pid = runtime.NamespaceMode_POD
		},
		"containerd refuses": func(c *cluster) { c.fails = map[string]error{killed: status.Error(codes.PermissionDenied, "no")} },
	} {
		c := newCluster()
		change(c)
		if err := dial(t, c).Restart(t.Context(), "s1", time.Minute); err != nil {
			t.Error(err)
		}
		asked := slices.DeleteFunc(c.asked, func(what string) bool { return what == killed && c.fails != nil })
		if len(asked) > 1 {
			slices.Sort(asked[:2])
		}
		if want := []string{"stop c1 in 60s", "stop c2 in 60s", "end s1"}; !slices.Equal(asked, want) {
			t.Errorf("%s: %q, want %q", name, asked, want)
		}
	}
}

func TestARestartThatIsCutShortSaysSo(t *testing.T) {
	c := newCluster()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := dial(t, c).Restart(ctx, "s1", time.Minute)
	if !errors.Is(err, context.DeadlineExceeded) && status.Code(errors.Unwrap(err)) != codes.DeadlineExceeded || !strings.HasPrefix(err.Error(), "restart pod default/a: ") {
		t.Error(err)
	}
	if want := []string{killed}; !slices.Equal(c.asked, want) {
		t.Errorf("%q, want %q", c.asked, want)
	}
}

func TestDialRefusesWhatIsNoSocket(t *testing.T) {
	if c, err := cri.Dial("tcp://127.0.0.1:1"); err == nil {
		c.Close()
		t.Error("dialled")
	}
}
