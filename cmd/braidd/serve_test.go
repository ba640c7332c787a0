package main

import (
	"strings"
	"testing"

	"braid.dev/braid/internal/kube"
)

func TestKubeletIsAskedOnlyWhereThereIsOne(t *testing.T) {
	for endpoint, want := range map[string]string{
		"": "",
		"/var/lib/kubelet/pod-resources/kubelet.sock": "",
		"tcp://127.0.0.1:10250":                       "--pod-resources",
	} {
		k, err := kubeletFor(flags{podResources: endpoint}, &kube.Cluster{})
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("--pod-resources=%s: %v", endpoint, err)
		}
		if (k != nil) != strings.HasPrefix(endpoint, "/") {
			t.Errorf("--pod-resources=%s: %v", endpoint, k)
		}
	}
	if k, err := kubeletFor(flags{podResources: "/x"}, nil); k != nil || err != nil {
		t.Errorf("without a cluster: %v, %v", k, err)
	}
}
