package cri_test

import (
	"context"
	"reflect"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"braid.dev/braid/internal/cri"
)

// fake answers as a runtime without a network does.
type fake struct {
	runtime.UnimplementedRuntimeServiceServer
}

func (fake) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "v2.4.2"}, nil
}

func (fake) Status(_ context.Context, r *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	answer := &runtime.StatusResponse{Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
		{Type: runtime.RuntimeReady, Status: true},
		{Type: runtime.NetworkReady, Message: "cni plugin not initialized"},
	}}}
	if r.Verbose {
		answer.Info = map[string]string{"lastCNILoadStatus": "OK"}
	}
	return answer, nil
}

func TestStatusIsWhatTheRuntimeSays(t *testing.T) {
	socket := serve(t, fake{})
	want := cri.Status{
		Name: "containerd", Version: "v2.4.2", Message: "cni plugin not initialized",
		Info: map[string]string{"lastCNILoadStatus": "OK"},
	}
	for _, endpoint := range []string{"unix://" + socket, socket} {
		if have, err := cri.GetStatus(t.Context(), endpoint); err != nil || !reflect.DeepEqual(have, want) {
			t.Errorf("%s: have %+v, %v", endpoint, have, err)
		}
	}
}

func TestStatusNamesTheEndpointThatDoesNotAnswer(t *testing.T) {
	for _, endpoint := range []string{"unix:///nonexistent/s", "/nonexistent/s", "tcp://127.0.0.1:1", "nonsense", ""} {
		if have, err := cri.GetStatus(t.Context(), endpoint); err == nil || !strings.Contains(err.Error(), endpoint) {
			t.Errorf("%q: have %+v, %v", endpoint, have, err)
		}
	}
}
