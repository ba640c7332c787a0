// Package kubelettest is a kubelet for tests: its podresources API, answering
// on a real socket what the test gave to pods.
package kubelettest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// Kubelet answers on Socket once it is started. The fields may be set before.
type Kubelet struct {
	api.UnimplementedPodResourcesListerServer
	Socket string
	// GetError, if not nil, is the answer to each Get.
	GetError error
	// Refuse is how many questions are refused at first, as by the rate limit.
	Refuse int
	// Hang, if not nil, holds every answer until it is closed.
	Hang chan struct{}
	// Asked receives each question, such as "Get default/pod".
	Asked chan string

	t    testing.TB
	mu   sync.Mutex
	pods map[string][]*api.ContainerResources
	// twice is a pod that the list has twice.
	twice string
}

// New makes a kubelet that does not listen yet.
func New(t testing.TB) *Kubelet {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid-kubelet-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &Kubelet{
		t: t, Socket: filepath.Join(dir, "kubelet.sock"),
		Asked: make(chan string, 10000), pods: map[string][]*api.ContainerResources{},
	}
}

// Start has the kubelet listen until the test ends. It returns the kubelet.
func (k *Kubelet) Start() *Kubelet {
	k.t.Helper()
	l, err := net.Listen("unix", k.Socket)
	if err != nil {
		k.t.Fatal(err)
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
	return k
}

// Containers says what the containers of a pod, such as default/pod, have: from
// now on that, and nothing else.
func (k *Kubelet) Containers(pod string, containers ...*api.ContainerResources) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods[pod] = containers
}

// Devices gives a pod of one container these devices of a device plugin.
func (k *Kubelet) Devices(pod, resource string, ids ...string) {
	k.Containers(pod, Container(resource, ids...))
}

// Twice has the list name a pod twice, as while a new one follows another.
func (k *Kubelet) Twice(pod string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.twice = pod
}

// Container is a container with devices of one resource.
func Container(resource string, ids ...string) *api.ContainerResources {
	return &api.ContainerResources{Devices: []*api.ContainerDevices{{ResourceName: resource, DeviceIds: ids}}}
}

// Claim is a container with devices, each driver, pool and name, of one claim.
func Claim(claim string, devices ...[3]string) *api.ContainerResources {
	d := &api.DynamicResource{ClaimName: claim, ClaimNamespace: "default"}
	for _, c := range devices {
		d.ClaimResources = append(d.ClaimResources, &api.ClaimResource{DriverName: c[0], PoolName: c[1], DeviceName: c[2]})
	}
	return &api.ContainerResources{DynamicResources: []*api.DynamicResource{d}}
}

// question is what comes before every answer.
func (k *Kubelet) question(ctx context.Context, q string) error {
	k.Asked <- q
	k.mu.Lock()
	refuse := k.Refuse > 0
	if refuse {
		k.Refuse--
	}
	k.mu.Unlock()
	if refuse {
		return status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	if k.Hang == nil {
		return nil
	}
	select {
	case <-k.Hang:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Get answers for one pod.
func (k *Kubelet) Get(ctx context.Context, r *api.GetPodResourcesRequest) (*api.GetPodResourcesResponse, error) {
	if err := k.question(ctx, "Get "+r.GetPodNamespace()+"/"+r.GetPodName()); err != nil {
		return nil, err
	}
	if k.GetError != nil {
		return nil, k.GetError
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	containers, ok := k.pods[r.GetPodNamespace()+"/"+r.GetPodName()]
	if !ok {
		return nil, fmt.Errorf("pod %s in namespace %s not found", r.GetPodName(), r.GetPodNamespace())
	}
	return &api.GetPodResourcesResponse{PodResources: resources(r.GetPodNamespace(), r.GetPodName(), containers)}, nil
}

// List answers for all.
func (k *Kubelet) List(ctx context.Context, _ *api.ListPodResourcesRequest) (*api.ListPodResourcesResponse, error) {
	if err := k.question(ctx, "List"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	list := &api.ListPodResourcesResponse{}
	for _, pod := range slices.Sorted(maps.Keys(k.pods)) {
		namespace, name, _ := strings.Cut(pod, "/")
		r := resources(namespace, name, k.pods[pod])
		list.PodResources = append(list.PodResources, r)
		if pod == k.twice {
			list.PodResources = append(list.PodResources, r)
		}
	}
	return list, nil
}

func resources(namespace, name string, containers []*api.ContainerResources) *api.PodResources {
	return &api.PodResources{Namespace: namespace, Name: name, Containers: containers}
}
