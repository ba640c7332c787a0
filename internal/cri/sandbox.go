package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sandbox is what holds a pod's containers: among other things, its network.
type Sandbox struct {
	ID             string
	Namespace, Pod string
	UID            string
	// Attempt counts the sandboxes that the pod had before this one.
	Attempt uint32
	// Ready is false for a sandbox that has ended; its network is taken down or
	// about to be.
	Ready bool
	// HostNetwork says that it has the node's network namespace. It has neither
	// IPs nor a NetNS then.
	HostNetwork bool
	// IPs are the pod's addresses, the first one first.
	IPs []string
	// NetNS is the path of its network namespace as the runtime knows it, empty
	// when there is none any more.
	NetNS  string
	Labels map[string]string
}

func (s Sandbox) String() string { return s.Namespace + "/" + s.Pod }

// ListSandboxes returns the sandboxes of all pods, those that have ended among
// them. One that is removed meanwhile is left out.
func (c *Client) ListSandboxes(ctx context.Context) ([]Sandbox, error) {
	answer, err := c.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the sandboxes of runtime %s: %w", c.endpoint, err)
	}
	var all []Sandbox
	for _, item := range answer.GetItems() {
		s, err := c.sandbox(ctx, item)
		if isGone(err) {
			continue
		}
		if err != nil && s.Ready {
			return nil, fmt.Errorf("sandbox of pod %s: %w", s, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// isGone reports that the runtime does not know, or no longer knows, what it
// was asked for. Containerd passes the code on inside of other errors.
func isGone(err error) bool { return err != nil && status.Code(err) == codes.NotFound }

func (c *Client) sandbox(ctx context.Context, item *runtime.PodSandbox) (Sandbox, error) {
	m := item.GetMetadata()
	s := Sandbox{
		ID: item.GetId(), Namespace: m.GetNamespace(), Pod: m.GetName(), UID: m.GetUid(), Attempt: m.GetAttempt(),
		Ready: item.GetState() == runtime.PodSandboxState_SANDBOX_READY, Labels: item.GetLabels(),
	}
	answer, err := c.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: s.ID, Verbose: true})
	if err != nil {
		return s, err
	}
	have := answer.GetStatus()
	s.Ready = have.GetState() == runtime.PodSandboxState_SANDBOX_READY
	s.HostNetwork = have.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtime.NamespaceMode_NODE
	if s.HostNetwork {
		return s, nil
	}
	if ip := have.GetNetwork().GetIp(); ip != "" {
		s.IPs = append(s.IPs, ip)
	}
	for _, ip := range have.GetNetwork().GetAdditionalIps() {
		s.IPs = append(s.IPs, ip.GetIp())
	}
	s.NetNS, err = netNS(answer.GetInfo()["info"])
	return s, err
}

// netNS reads the path of the network namespace from the verbose part, which is
// JSON with much in common between containerd and CRI-O: the OCI runtime's
// configuration of the sandbox. No text means no namespace.
func netNS(info string) (string, error) {
	if info == "" {
		return "", nil
	}
	var verbose struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct {
					Type string `json:"type"`
					Path string `json:"path"`
				} `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
		// Metadata is containerd's own, for sandboxes without that.
		Metadata struct{ NetNSPath string } `json:"sandboxMetadata"`
		Closed   bool                       `json:"netNamespaceClosed"`
	}
	if err := json.Unmarshal([]byte(info), &verbose); err != nil {
		return "", fmt.Errorf("decode the verbose status: %w", err)
	}
	if verbose.Closed {
		return "", nil
	}
	for _, ns := range verbose.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && ns.Path != "" {
			return ns.Path, nil
		}
	}
	return verbose.Metadata.NetNSPath, nil
}

// again is what a container gets that the kubelet started anew while others of
// its pod took their time to stop.
const again = 2 * time.Second

// graceNote is where the kubelet notes the grace of a pod on its containers, in
// seconds.
const graceNote = "io.kubernetes.pod.terminationGracePeriod"

// Restart ends a pod's sandbox, its containers first, each with the grace of its
// pod: as long as it may take from the signal that asks it to end to the one that
// kills it. Grace is for containers of which the kubelet has not noted it. The
// call takes as long as that; cut short by its context, it has ended no sandbox.
//
// The kubelet then makes a new sandbox for the same pod, on the network that
// the runtime has loaded by then. A pod whose restartPolicy is Never ends
// instead; preStop hooks are not run.
//
// Restart is safe to repeat. A sandbox that has ended, or is gone, is fine. When
// the network could not be taken down the sandbox has ended nevertheless, and
// the error says why it will be tried again.
func (c *Client) Restart(ctx context.Context, sandboxID string, grace time.Duration) error {
	name := c.describe(ctx, sandboxID)
	// The kubelet starts a container that ended anew, in the same sandbox, as
	// long as others of it are still stopping. A second look catches those.
	first := func(container *runtime.Container) time.Duration { return graceOf(container, grace) }
	second := func(container *runtime.Container) time.Duration { return min(first(container), again) }
	for _, grace := range []func(*runtime.Container) time.Duration{first, second} {
		if err := c.stopContainers(ctx, sandboxID, grace); err != nil {
			return fmt.Errorf("restart pod %s: %w", name, err)
		}
	}
	_, err := c.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: sandboxID})
	if err != nil && !isGone(err) {
		return fmt.Errorf("restart pod %s: stop sandbox %s: %w", name, sandboxID, err)
	}
	return nil
}

// describe names the pod of a sandbox for a message.
func (c *Client) describe(ctx context.Context, sandboxID string) string {
	answer, err := c.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: sandboxID})
	m := answer.GetStatus().GetMetadata()
	if err != nil || m == nil {
		return "of sandbox " + sandboxID
	}
	return m.GetNamespace() + "/" + m.GetName()
}

func graceOf(c *runtime.Container, otherwise time.Duration) time.Duration {
	seconds, err := strconv.ParseInt(c.GetAnnotations()[graceNote], 10, 32)
	if err != nil || seconds < 0 {
		return otherwise
	}
	return time.Duration(seconds) * time.Second
}

// stopContainers stops the containers of a sandbox that run, all at once.
func (c *Client) stopContainers(ctx context.Context, sandboxID string, grace func(*runtime.Container) time.Duration) error {
	answer, err := c.runtime.ListContainers(ctx, &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{PodSandboxId: sandboxID},
	})
	if err != nil {
		return fmt.Errorf("list its containers: %w", err)
	}
	var (
		stops sync.WaitGroup
		mu    sync.Mutex
		errs  []error
	)
	for _, container := range answer.GetContainers() {
		if container.GetState() == runtime.ContainerState_CONTAINER_EXITED {
			continue
		}
		stops.Go(func() {
			if err := c.stopContainer(ctx, container.GetId(), grace(container)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("stop container %s: %w", container.GetMetadata().GetName(), err))
			}
		})
	}
	stops.Wait()
	return errors.Join(errs...)
}

func (c *Client) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	// The runtime counts in seconds, and 0 kills at once.
	seconds := int64((grace + time.Second - 1) / time.Second)
	_, err := c.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: seconds})
	if isGone(err) {
		return nil
	}
	return err
}
