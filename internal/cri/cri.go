// Package cri asks a container runtime about itself and its pods, and restarts
// pods in place, through the Container Runtime Interface; the only door to a
// runtime's socket.
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

// maxAnswer is what the kubelet, too, takes from a runtime: its lists grow with
// what it runs.
const maxAnswer = 16 << 20

// Client is a connection to one runtime. Its methods may be called at any time
// from any goroutine.
type Client struct {
	endpoint string
	conn     *grpc.ClientConn
	runtime  runtime.RuntimeServiceClient
}

// Dial prepares a connection to an endpoint, such as
// unix:///run/containerd/containerd.sock or its path alone. A runtime that does
// not listen is an error of the calls that follow, and it may come back.
func Dial(endpoint string) (*Client, error) {
	target, err := target(endpoint)
	if err != nil {
		return nil, err
	}
	// A unix socket is protected by its mode; there is nothing to encrypt.
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("connect to runtime %s: %w", endpoint, err)
	}
	return &Client{endpoint: endpoint, conn: conn, runtime: runtime.NewRuntimeServiceClient(conn)}, nil
}

// Close ends the connection and the calls that are under way.
func (c *Client) Close() error { return c.conn.Close() }

// GetStatus asks the runtime at an endpoint, such as
// unix:///run/containerd/containerd.sock. Nothing is changed.
func GetStatus(ctx context.Context, endpoint string) (s Status, err error) {
	c, err := Dial(endpoint)
	if err != nil {
		return Status{}, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Status(ctx)
}

// Status asks the runtime about itself. Nothing is changed.
func (c *Client) Status(ctx context.Context) (Status, error) {
	version, err := c.runtime.Version(ctx, &runtime.VersionRequest{})
	if err != nil {
		return Status{}, fmt.Errorf("ask runtime %s for its version: %w", c.endpoint, err)
	}
	answer, err := c.runtime.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		return Status{}, fmt.Errorf("ask runtime %s for its status: %w", c.endpoint, err)
	}
	s := Status{Name: version.GetRuntimeName(), Version: version.GetRuntimeVersion(), Info: answer.GetInfo()}
	for _, condition := range answer.GetStatus().GetConditions() {
		if condition.GetType() == runtime.NetworkReady {
			s.NetworkReady, s.Message = condition.GetStatus(), condition.GetMessage()
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
