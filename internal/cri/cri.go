// Package cri asks a container runtime about itself through the Container
// Runtime Interface; the only door to a runtime's socket.
package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Status is what a runtime says of itself.
type Status struct {
	// Name and Version are those of the runtime, such as "containerd" and
	// "v2.4.2".
	Name, Version string
	// NetworkReady tells whether pods can be started; Message says why not.
	NetworkReady bool
	Message      string
	// Info is the verbose part, whose keys differ between runtimes.
	Info map[string]string
}

// GetStatus asks the runtime at an endpoint, such as
// unix:///run/containerd/containerd.sock. Nothing is changed.
func GetStatus(ctx context.Context, endpoint string) (s Status, err error) {
	target, err := target(endpoint)
	if err != nil {
		return Status{}, err
	}
	// A unix socket is protected by its mode; there is nothing to encrypt.
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return Status{}, fmt.Errorf("connect to runtime %s: %w", endpoint, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := runtime.NewRuntimeServiceClient(conn)
	version, err := client.Version(ctx, &runtime.VersionRequest{})
	if err != nil {
		return Status{}, fmt.Errorf("ask runtime %s for its version: %w", endpoint, err)
	}
	answer, err := client.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		return Status{}, fmt.Errorf("ask runtime %s for its status: %w", endpoint, err)
	}
	s = Status{Name: version.GetRuntimeName(), Version: version.GetRuntimeVersion(), Info: answer.GetInfo()}
	for _, c := range answer.GetStatus().GetConditions() {
		if c.GetType() == runtime.NetworkReady {
			s.NetworkReady, s.Message = c.GetStatus(), c.GetMessage()
		}
	}
	return s, nil
}

// target is an endpoint in the form that gRPC takes. A path alone counts as a
// socket, as with crictl.
func target(endpoint string) (string, error) {
	switch {
	case strings.HasPrefix(endpoint, "unix:///"):
		return endpoint, nil
	case strings.HasPrefix(endpoint, "/"):
		return "unix://" + endpoint, nil
	}
	return "", fmt.Errorf("endpoint %q: it has the form unix:///run/containerd/containerd.sock", endpoint)
}
