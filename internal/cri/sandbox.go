package cri

import (
	"context"
	"encoding/json"
	"fmt"

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

// SandboxIDs names the sandboxes of all pods, those that have ended among them.
func (c *Client) SandboxIDs(ctx context.Context) ([]string, error) {
	answer, err := c.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the sandboxes of runtime %s: %w", c.endpoint, err)
	}
	var ids []string
	for _, item := range answer.GetItems() {
		ids = append(ids, item.GetId())
	}
	return ids, nil
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
