package daemon

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/wire"
)

func TestArgumentsOfTheRuntime(t *testing.T) {
	for args, want := range map[string]podArgs{
		"": {},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c": {"ns", "p", "u"},
		"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;":                                 {"ns", "p", ""},
		";;K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns;;":                              {"ns", "p", ""},
		"OTHER=a=b=c;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u=v;FLAG": {"ns", "p", "u=v"},
		"K8S_POD_NAMESPACE=;K8S_POD_NAME=":                                     {},
		"no pairs at all":                                                      {},
	} {
		got, err := parseArgs(args)
		if err != nil || got != want {
			t.Errorf("parseArgs(%q) = %+v, %v, want %+v", args, got, err, want)
		}
	}
	for _, args := range []string{"K8S_POD_NAME=p", "K8S_POD_NAMESPACE=ns", "K8S_POD_NAME=p;K8S_POD_NAMESPACE="} {
		if got, err := parseArgs(args); err == nil {
			t.Errorf("parseArgs(%q) = %+v, want an error", args, got)
		}
	}
}

func TestBadRequestsHaveTheirCode(t *testing.T) {
	good := wire.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Stdin: []byte(`{"cniVersion":"1.0.0","name":"n"}`)}
	if _, err := parseRequest(good); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*wire.Request)
		code   uint
	}{
		"broken JSON":     {func(r *wire.Request) { r.Stdin = []byte(`{"cniVersion":`) }, types.ErrDecodingFailure},
		"no container":    {func(r *wire.Request) { r.ContainerID = "" }, types.ErrInvalidEnvironmentVariables},
		"odd container":   {func(r *wire.Request) { r.ContainerID = "a\x00b" }, types.ErrInvalidEnvironmentVariables},
		"no interface":    {func(r *wire.Request) { r.IfName = "" }, types.ErrInvalidEnvironmentVariables},
		"half a pod":      {func(r *wire.Request) { r.Args = "K8S_POD_NAME=p" }, types.ErrInvalidEnvironmentVariables},
		"list of numbers": {func(r *wire.Request) { r.Stdin = []byte(`{"cni.dev/valid-attachments":[1]}`) }, types.ErrDecodingFailure},
	} {
		r := good
		c.change(&r)
		_, err := parseRequest(r)
		var coded *types.Error
		if !errors.As(err, &coded) || coded.Code != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("ADD", "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p", []byte(`{"cniVersion":"1.0.0","runtimeConfig":{"mac":"x"},"prevResult":{"cniVersion":"0.4.0"}}`))
	f.Add("GC", "", []byte(`{"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`))
	f.Add("DEL", ";=;", []byte(`{"prevResult":null,"runtimeConfig":[]}`))
	f.Fuzz(func(t *testing.T, command, args string, stdin []byte) {
		r, err := parseRequest(wire.Request{Command: command, ContainerID: "c", IfName: "eth0", Args: args, Stdin: stdin})
		if err == nil && r.conf.CNIVersion == "" {
			t.Fatal("a request without a version")
		}
	})
}
