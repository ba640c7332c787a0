package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
)

const (
	goodSubnet = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	dualSubnet = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=8951\nFLANNEL_IPMASQ=false\n"
	ipv6Subnet = "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
)

// TestFlannelDelegateIsThatOfTheRealPlugin runs the program, with another one
// in the place of bridge that writes down what it is asked to do.
func TestFlannelDelegateIsThatOfTheRealPlugin(t *testing.T) {
	program := flannelProgram(t)
	for _, subnet := range []string{goodSubnet, dualSubnet, ipv6Subnet} {
		for _, conf := range []string{
			`{"cniVersion":"0.3.1","name":"cbr0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}`,
			`{"cniVersion":"0.3.1","name":"cbr0","type":"flannel"}`,
			`{"cniVersion":"0.4.0","name":"cbr0","type":"flannel","delegate":null,"ipam":{"dataDir":"/tmp/x","routes":[{"dst":"0.0.0.0/0"},{"dst":"10.1.0.0/16","gw":"10.244.1.9"}]}}`,
			`{"cniVersion":"0.3.1","name":"cbr0","type":"flannel","delegate":{"type":"ipvlan","master":"eth0","mtu":1200,"ipMasq":true,"isGateway":false}}`,
			`{"cniVersion":"0.3.1","name":"cbr0","type":"flannel","delegate":{"isGateway":false,"mtu":0},"ipam":{"type":"static","ranges":[]}}`,
			`{"cniVersion":"0.3.1","name":"cbr0","type":"flannel","runtimeConfig":{"mac":"02:00:00:00:00:01"},"delegate":{"runtimeConfig":{"x":1}}}`,
		} {
			want := realDelegate(t, program, conf, subnet)
			in := plan.Input{IfName: "eth0", Default: network(t, []byte(conf), ""), SubnetFile: func(string) ([]byte, error) { return []byte(subnet), nil }}
			p, err := plan.Build(in)
			if err != nil {
				t.Fatalf("%s: %v", conf, err)
			}
			have := map[string]any{"name": "cbr0", "cniVersion": p.Attachments[0].Config.CNIVersion} // injected by attach
			if err := json.Unmarshal(p.Attachments[0].Config.Plugins[0].Conf, &have); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, have); diff != "" {
				t.Errorf("%s\nwith\n%s(-real plugin +Braid):\n%s", conf, subnet, diff)
			}
		}
	}
}

// realDelegate is what the program asks its delegate for.
func realDelegate(t *testing.T, program, conf, subnet string) map[string]any {
	t.Helper()
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := "#!/bin/sh\ncat >" + asked + "\necho '{\"cniVersion\":\"0.3.1\"}'\n"
	for name, text := range map[string]string{"bridge": script, "ipvlan": script, "subnet.env": subnet} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(conf), &m); err != nil {
		t.Fatal(err)
	}
	m["subnetFile"], m["dataDir"] = filepath.Join(dir, "subnet.env"), dir
	stdin, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0", "CNI_PATH=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	var delegate map[string]any
	if err := json.Unmarshal(text, &delegate); err != nil {
		t.Fatal(err)
	}
	return delegate
}

// flannelProgram builds the last flannel plugin whose module is offered, once
// per machine.
func flannelProgram(t *testing.T) string {
	t.Helper()
	const version = "v0.9.1"
	cache := os.Getenv("BRAID_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, ".cache", "braid")
	}
	program := filepath.Join(cache, "flannel-plugin-"+version, "flannel")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	bin := t.TempDir()
	cmd := exec.Command("go", "install", "github.com/containernetworking/plugins/plugins/meta/flannel@"+version)
	cmd.Env = append(os.Environ(), "GOBIN="+bin, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build flannel: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(bin, "flannel"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	// Test programs that do the same at the same time do not disturb each other.
	temp, err := os.CreateTemp(filepath.Dir(program), "flannel-")
	if err != nil {
		t.Fatal(err)
	}
	_, err = temp.Write(text)
	if err := errors.Join(err, temp.Chmod(0o755), temp.Close(), os.Rename(temp.Name(), program)); err != nil {
		t.Fatal(err)
	}
	return program
}

// FuzzFlannel feeds subnet files and configurations that nobody would write.
func FuzzFlannel(f *testing.F) {
	for _, subnet := range []string{goodSubnet, dualSubnet, ipv6Subnet, "", "=\n=", "FLANNEL_MTU=-1", "FLANNEL_NETWORK=,"} {
		f.Add(subnet, `{"cniVersion":"1.0.0","name":"a","type":"flannel","delegate":{"type":"bridge"},"ipam":{"routes":[null]}}`)
	}
	f.Fuzz(func(t *testing.T, subnet, conf string) {
		n, err := plan.ParseNetwork([]byte(conf), "a")
		if err != nil {
			return
		}
		before, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		p, err := plan.Build(plan.Input{IfName: "eth0", Default: n, SubnetFile: func(string) ([]byte, error) { return []byte(subnet), nil }})
		var e *plan.Error
		if err != nil && (!errors.As(err, &e) || e.Code == 0) {
			t.Fatalf("no code: %v", err)
		}
		if after, _ := json.Marshal(n); !bytes.Equal(before, after) {
			t.Fatalf("the shared network %s became %s", before, after)
		}
		for _, a := range p.Attachments {
			for _, plugin := range a.Config.Plugins {
				if !json.Valid(plugin.Conf) {
					t.Fatalf("broken configuration %s", plugin.Conf)
				}
			}
		}
	})
}
