package main

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/lab"
)

func TestLabStatusIsATable(t *testing.T) {
	var out strings.Builder
	err := printStatus(&out, lab.Status{
		Name: "braid", Running: true,
		Components: []lab.ComponentStatus{{Name: "etcd", PID: 7, Running: true}},
		Nodes: []lab.NodeStatus{
			{Name: "node1", Addr: netip.MustParseAddr("172.30.0.11"), Running: true, Ready: true, PodCIDR: "10.244.0.0/24"},
			{Name: "node2", Addr: netip.MustParseAddr("172.30.0.12"), Message: "not Ready: no network"},
			{Name: "ext", Addr: netip.MustParseAddr("172.30.0.250"), Running: true},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `lab    braid         running
etcd   pid 7         running
node1  172.30.0.11   running, Ready, pods in 10.244.0.0/24
node2  172.30.0.12   not running, not Ready: no network
ext    172.30.0.250  running
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLabLogsPrintsOneOrListsAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etcd.log")
	if err := os.WriteFile(path, []byte("elected\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	logs := map[string]string{"node1/kubelet": "/somewhere", "etcd": path}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"etcd"}, "elected\n"},
		{nil, "etcd           " + path + "\nnode1/kubelet  /somewhere\n"},
	} {
		var out strings.Builder
		if err := printLogs(&out, logs, tc.args); err != nil || out.String() != tc.want {
			t.Errorf("%v: %q, %v", tc.args, out.String(), err)
		}
	}
	err := printLogs(io.Discard, logs, []string{"scheduler"})
	if err == nil || !strings.Contains(err.Error(), "etcd, node1/kubelet") {
		t.Errorf("error %v does not say what there is", err)
	}
}

func TestLabRefusesWhatItCannotDo(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"lab up --node-kernel=xen --name nosuchlab", "uml qemu host"},
		{"lab up --nodes 10 --name nosuchlab", "1 to 9"},
		{"lab up --name ../etc", "lab name"},
		{"lab status --name nosuchlab", "there is no such lab"},
		{"lab kubectl --name nosuchlab -- get pods", "braid lab up --name nosuchlab"},
		{"lab exec --name nosuchlab node1 -- true", "there is no such lab"},
		{"lab logs --name nosuchlab", "there is no such lab"},
		{"lab up --pod-net 10.200.0.0/30 --name nosuchlab", "/20 or more"},
		{"lab node reboot node1 --name nosuchlab", "there is no such lab"},
		{"lab api stop --name nosuchlab", "there is no such lab"},
		{"lab load flannel --name nosuchlab", "there is no such lab"},
		{"lab build --only kubeadm", "kube-apiserver"},
		{"lab build --only pause --all", "none of the others"},
	} {
		cmd := root()
		cmd.SetArgs(strings.Fields(tc.args))
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("braid %s: error %v, want one about %q", tc.args, err, tc.want)
		}
	}
}

func TestLabHelpNamesEveryVerb(t *testing.T) {
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs([]string{"lab", "--help"})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"build", "up", "down", "status", "kubectl", "exec", "kubeconfig", "logs", "node", "api", "load"} {
		if !strings.Contains(out.String(), "\n  "+verb+" ") {
			t.Errorf("no %q in:\n%s", verb, out.String())
		}
	}
}

func TestExitCodeOfARunProgramIsPassedOn(t *testing.T) {
	var code exitCode
	if !errors.As(exit(7, nil), &code) || code != 7 {
		t.Errorf("exit status 7 became %v", exit(7, nil))
	}
	if exit(0, nil) != nil || exit(0, io.EOF) != io.EOF {
		t.Error("success or error was changed")
	}
}
