package cri

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// graceNote is where the kubelet notes the grace of a pod on its containers,
	// in seconds.
	graceNote = "io.kubernetes.pod.terminationGracePeriod"
	// again is what a container gets that the kubelet started anew while others
	// of its pod took their time to stop.
	again = 2 * time.Second
	// notice is how long the kubelet may take to notice that a sandbox has ended,
	// and to take down its network after the last container. It looks every
	// second.
	notice = 15 * time.Second
	// lookEvery is how often a runtime is asked how far the kubelet is: not all
	// of them have events.
	lookEvery = 200 * time.Millisecond
)

// Restart ends a pod's sandbox and its containers. The kubelet makes another
// sandbox for the same pod, on the network that the runtime has loaded by then;
// that a pod whose restartPolicy is Never ends instead is the kubelet's rule.
// Restart returns when the containers have ended and the network was taken down.
// That takes as long as the pod's own grace, as noted by the kubelet; grace is
// for containers of which it is not noted. Cut short by its context, Restart can
// be repeated.
//
// Where the runtime is containerd, only the sandbox's own process is ended: the
// kubelet notices, runs preStop hooks and stops the containers as it does when a
// pod is deleted. It would otherwise start those that stop first once more in the
// old sandbox, and put the pod off as one that crashes. Elsewhere, and when the
// kubelet does not notice, the containers are stopped, without their hooks, and
// then the sandbox.
//
// A sandbox that has ended, or is gone, is fine. An error names the pod.
func (c *Client) Restart(ctx context.Context, sandboxID string, grace time.Duration) error {
	answer, err := c.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: sandboxID})
	if isGone(err) {
		return nil
	}
	name := "of sandbox " + sandboxID
	if m := answer.GetStatus().GetMetadata(); m != nil {
		name = m.GetNamespace() + "/" + m.GetName()
	}
	if err == nil {
		err = c.restart(ctx, answer.GetStatus(), grace)
	}
	if err != nil {
		return fmt.Errorf("restart pod %s: %w", name, err)
	}
	return nil
}

func (c *Client) restart(ctx context.Context, s *runtime.PodSandboxStatus, grace time.Duration) error {
	if s.GetState() != runtime.PodSandboxState_SANDBOX_READY || c.endPause(ctx, s) {
		down, err := c.awaitKubelet(ctx, s.GetId(), grace)
		if down || err != nil {
			return err
		}
	}
	// The kubelet starts a container that ended anew, in the same sandbox, as
	// long as others of it are still stopping. A second look catches those.
	first := func(container *runtime.Container) time.Duration { return graceOf(container, grace) }
	second := func(container *runtime.Container) time.Duration { return min(first(container), again) }
	for _, grace := range []func(*runtime.Container) time.Duration{first, second} {
		if err := c.stopContainers(ctx, s.GetId(), grace); err != nil {
			return err
		}
	}
	_, err := c.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: s.GetId()})
	if err != nil && !isGone(err) {
		return fmt.Errorf("stop sandbox %s: %w", s.GetId(), err)
	}
	return nil
}

// endPause ends the process that holds a sandbox, and nothing else, through
// containerd's own API on the same socket. It returns false where that is not
// possible: another runtime, a sandbox that is a virtual machine, or one whose
// containers are in the process namespace of that process and would end with it.
func (c *Client) endPause(ctx context.Context, s *runtime.PodSandboxStatus) bool {
	if s.GetRuntimeHandler() != "" || s.GetLinux().GetNamespaces().GetOptions().GetPid() == runtime.NamespaceMode_POD {
		return false
	}
	version, err := c.runtime.Version(ctx, &runtime.VersionRequest{})
	if err != nil || version.GetRuntimeName() != "containerd" {
		return false
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
	request := killRequest(s.GetId())
	return c.conn.Invoke(ctx, "/containerd.services.tasks.v1.Tasks/Kill", &request, new(message), grpc.ForceCodec(codec{})) == nil
}

// killRequest is a KillRequest of containerd's tasks service: the container in
// field 1, the signal in field 3.
func killRequest(id string) message {
	m := binary.AppendUvarint(message{1<<3 | 2}, uint64(len(id)))
	return append(append(m, id...), 3<<3, byte(syscall.SIGKILL))
}

// message is an encoded one. The package of containerd's API is worth more than
// the one message that is needed of it.
type message []byte

// codec passes messages through.
type codec struct{}

func (codec) Marshal(v any) ([]byte, error) { return *v.(*message), nil }

func (codec) Unmarshal(data []byte, v any) error {
	*v.(*message) = data
	return nil
}

func (codec) Name() string { return "proto" }

// awaitKubelet waits until a sandbox that has ended has no container that runs
// and no network. It gives up, with false, when the kubelet takes longer than it
// should.
func (c *Client) awaitKubelet(ctx context.Context, sandboxID string, grace time.Duration) (bool, error) {
	containers, err := c.containers(ctx, sandboxID)
	if err != nil {
		return false, err
	}
	patience := notice
	for _, container := range containers {
		patience = max(patience, graceOf(container, grace)+notice)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		if down, err := c.isDown(ctx, sandboxID); down || err != nil {
			return down, err
		}
		select {
		case <-look.C:
		case <-timer.C:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

func (c *Client) isDown(ctx context.Context, sandboxID string) (bool, error) {
	containers, err := c.containers(ctx, sandboxID)
	if err != nil {
		return false, err
	}
	for _, container := range containers {
		if s := container.GetState(); s == runtime.ContainerState_CONTAINER_RUNNING || s == runtime.ContainerState_CONTAINER_UNKNOWN {
			return false, nil
		}
	}
	answer, err := c.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: sandboxID, Verbose: true})
	if isGone(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at sandbox %s: %w", sandboxID, err)
	}
	ns, err := netNS(answer.GetInfo()["info"])
	return ns == "", err
}

func (c *Client) containers(ctx context.Context, sandboxID string) ([]*runtime.Container, error) {
	answer, err := c.runtime.ListContainers(ctx, &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{PodSandboxId: sandboxID},
	})
	if err != nil {
		return nil, fmt.Errorf("list its containers: %w", err)
	}
	return answer.GetContainers(), nil
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
	containers, err := c.containers(ctx, sandboxID)
	if err != nil {
		return err
	}
	var (
		stops sync.WaitGroup
		mu    sync.Mutex
		errs  []error
	)
	for _, container := range containers {
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
