package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/plan"
)

var update = flag.Bool("update", false, "write the plans of testdata/*.txtar anew")

// TestPlans plans every pod of each world in testdata and compares the plans,
// as text, with those written there. A world holds manifests (*.yaml), the
// default network (default.conflist), the conf dir (conf/*), how many of its
// networks every pod gets (conf-dir-networks), what the runtime passes
// (runtime.json), the global namespaces of an isolated cluster (isolation), the
// devices that the kubelet gave to each pod by resource (devices.json), and
// files of the node that can be read (root/*).
func TestPlans(t *testing.T) {
	worlds, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(worlds) == 0 {
		t.Fatalf("no worlds: %v", err)
	}
	for _, path := range worlds {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var want string
			var rest []txtar.File
			for _, f := range archive.Files {
				if f.Name == "plan" {
					want = string(f.Data)
				} else {
					rest = append(rest, f)
				}
			}
			have := plans(t, rest)
			if *update {
				archive.Files = append(rest, txtar.File{Name: "plan", Data: []byte(have)})
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, have); diff != "" {
				t.Errorf("plans differ (-want +have):\n%s", diff)
			}
		})
	}
}

type manifest struct {
	Kind     string
	Metadata struct {
		Namespace, Name string
		Annotations     map[string]string
	}
	Spec struct{ Config string }
}

// deviceList holds the devices of one resource that the kubelet gave to a pod.
func deviceList(resource string, ids []string) []plan.Device {
	var list []plan.Device
	for _, id := range ids {
		list = append(list, plan.Device{Resource: resource, ID: id})
	}
	return list
}

func plans(t *testing.T, files []txtar.File) string {
	t.Helper()
	in := plan.Input{IfName: "eth0"}
	var err error
	definitions := map[string]plan.Definition{}
	conf := map[string]plan.Network{}
	var pods []plan.Pod
	read := map[string][]byte{}
	var devices map[string]map[string][]string // by pod and resource
	for _, f := range files {
		switch {
		case f.Name == "default.conflist":
			in.Default = network(t, f.Data, "")
		case f.Name == "runtime.json":
			if err := json.Unmarshal(f.Data, &in.RuntimeConfig); err != nil {
				t.Fatal(err)
			}
		case f.Name == "isolation":
			in.Isolation = plan.Isolation{On: true, Global: strings.Fields(string(f.Data))}
		case f.Name == "devices.json":
			if err := json.Unmarshal(f.Data, &devices); err != nil {
				t.Fatal(err)
			}
			in.ContainerID, in.DeviceInfoDir = "c1", "/devinfo"
		case strings.HasPrefix(f.Name, "root/"):
			read[strings.TrimPrefix(f.Name, "root")] = f.Data
			in.SubnetFile = func(path string) ([]byte, error) {
				if data, ok := read[path]; ok {
					return data, nil
				}
				return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
			}
		case strings.HasPrefix(f.Name, "conf/"):
			n := network(t, f.Data, "")
			conf[n.Name] = n
			in.Beside = append(in.Beside, n)
		case f.Name == "conf-dir-networks":
			if in.ConfDirNetworks, err = strconv.Atoi(strings.TrimSpace(string(f.Data))); err != nil {
				t.Fatal(err)
			}
		case strings.HasSuffix(f.Name, ".yaml"):
			for _, doc := range strings.Split(string(f.Data), "\n---\n") {
				var m manifest
				if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
					t.Fatalf("%s: %v", f.Name, err)
				}
				if m.Metadata.Namespace == "" {
					m.Metadata.Namespace = "default"
				}
				if m.Kind == "Pod" {
					pods = append(pods, plan.Pod{Namespace: m.Metadata.Namespace, Name: m.Metadata.Name, Annotations: m.Metadata.Annotations})
				} else {
					definitions[m.Metadata.Namespace+"/"+m.Metadata.Name] = plan.Definition{
						Namespace: m.Metadata.Namespace, Name: m.Metadata.Name, Config: m.Spec.Config,
						ResourceName: m.Metadata.Annotations[plan.ResourceAnnotation],
					}
				}
			}
		default:
			t.Fatalf("what is %s?", f.Name)
		}
	}
	in.Definition = func(namespace, name string) (plan.Definition, bool) {
		d, ok := definitions[namespace+"/"+name]
		return d, ok
	}
	in.OnDisk = func(name string) (plan.Network, bool) {
		n, ok := conf[name]
		return n, ok
	}
	var b strings.Builder
	for _, pod := range pods {
		in.Pod = pod
		if devices != nil {
			in.Devices = func(resource string) ([]plan.Device, error) {
				return deviceList(resource, devices[pod.Name][resource]), nil
			}
		}
		fmt.Fprintf(&b, "pod %s/%s\n", pod.Namespace, pod.Name)
		p, err := plan.Build(in)
		if err != nil {
			var cni *types.Error
			if !errors.As(err, &cni) || cni.Msg != err.Error() {
				t.Errorf("no CNI error with the same message: %v", err)
				continue
			}
			fmt.Fprintf(&b, "  refused, code %d: %v\n", cni.Code, err)
			continue
		}
		for _, a := range p.Attachments {
			writeAttachment(t, &b, a)
		}
	}
	return b.String()
}

func writeAttachment(t *testing.T, b *strings.Builder, a plan.Attachment) {
	fmt.Fprintf(b, "  %s on %s", a.IfName, a.Network)
	if a.Default {
		b.WriteString(" (default)")
	}
	fmt.Fprintf(b, ", CNI network %s %s\n", a.Config.Name, a.Config.CNIVersion)
	if len(a.IPs) > 0 || a.MAC != "" {
		fmt.Fprintf(b, "    known: %s\n", strings.TrimSpace(strings.Join(a.IPs, " ")+" "+a.MAC))
	}
	if a.DefaultRoute != a.Default || a.Claim != nil {
		fmt.Fprintf(b, "    default route: %v", a.DefaultRoute)
		if a.Claim != nil {
			fmt.Fprintf(b, ", asked for by %v", a.Claim.Gateways)
		}
		b.WriteString("\n")
	}
	for _, p := range a.Config.Plugins {
		var conf bytes.Buffer
		if err := json.Compact(&conf, p.Conf); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(b, "    %s %s\n", p.Type, &conf)
	}
	for _, key := range slices.Sorted(maps.Keys(a.RuntimeConfig)) {
		fmt.Fprintf(b, "    runtimeConfig %s %s\n", key, a.RuntimeConfig[key])
	}
	if a.CNIArgs != "" {
		fmt.Fprintf(b, "    CNI_ARGS %s\n", a.CNIArgs)
	}
	if a.IPAMClaim != "" {
		fmt.Fprintf(b, "    claim %s\n", a.IPAMClaim)
	}
	if a.Device != (plan.Device{}) {
		fmt.Fprintf(b, "    device %q of %q\n", a.Device.ID, a.Device.Resource)
	}
	if a.DeviceInfoFile != "" {
		fmt.Fprintf(b, "    device information %s\n", a.DeviceInfoFile)
	}
	for _, r := range a.Reasons {
		fmt.Fprintf(b, "    - %s\n", r)
	}
}

func network(t *testing.T, data []byte, name string) plan.Network {
	t.Helper()
	n, err := plan.ParseNetwork(data, name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const bridgeStatic = `{"cniVersion": "1.0.0", "type": "bridge", "ipam": {"type": "static"}}`

func input(networks string) plan.Input {
	def, err := plan.ParseNetwork([]byte(`{"cniVersion": "1.0.0", "name": "pods", "type": "ptp"}`), "")
	if err != nil {
		panic(err)
	}
	return plan.Input{
		IfName:  "eth0",
		Default: def,
		Pod:     plan.Pod{Namespace: "default", Name: "web", Annotations: map[string]string{plan.NetworksAnnotation: networks}},
		Definition: func(namespace, name string) (plan.Definition, bool) {
			return plan.Definition{Namespace: namespace, Name: name, Config: bridgeStatic}, true
		},
	}
}

func TestBuildDoesNotChangeASharedNetwork(t *testing.T) {
	shared := network(t, []byte(`{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "bridge", "args": {"cni": {"a": 1}}}]}`), "")
	before := string(shared.Plugins[0].Conf)
	in := input(`[{"name": "lab", "cni-args": {"a": 2}, "mac": "02:00:00:00:00:01"}]`)
	in.RuntimeConfig = map[string]json.RawMessage{"portMappings": json.RawMessage(`[]`)}
	in.Definition = func(namespace, name string) (plan.Definition, bool) {
		return plan.Definition{Namespace: namespace, Name: name}, true
	}
	in.OnDisk = func(string) (plan.Network, bool) { return shared, true }
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if have := string(p.Attachments[1].Config.Plugins[0].Conf); !strings.Contains(have, `{"a": 2}`) && !strings.Contains(have, `"a": 2`) {
		t.Errorf("cni-args did not reach the plan: %s", have)
	}
	if after := string(shared.Plugins[0].Conf); after != before {
		t.Errorf("the shared network became %s", after)
	}
	if len(in.RuntimeConfig) != 1 {
		t.Errorf("the runtime's arguments became %v", in.RuntimeConfig)
	}
}

func TestErrorsCarryTheirCode(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*plan.Input)
		code   uint
	}{
		"no default network": {func(in *plan.Input) { in.Default = plan.Network{} }, types.ErrTryAgainLater},
		"unknown network": {func(in *plan.Input) {
			in.Definition = func(string, string) (plan.Definition, bool) { return plan.Definition{}, false }
		}, types.ErrTryAgainLater},
		"no function to look up": {func(in *plan.Input) { in.Definition = nil }, types.ErrTryAgainLater},
		"nothing in the conf dir": {func(in *plan.Input) {
			in.Definition = func(string, string) (plan.Definition, bool) { return plan.Definition{Config: " \n"}, true }
		}, types.ErrTryAgainLater},
		"broken annotation": {func(in *plan.Input) { in.Pod.Annotations[plan.NetworksAnnotation] = "[" }, types.ErrInvalidNetworkConfig},
		"broken definition": {func(in *plan.Input) {
			in.Definition = func(string, string) (plan.Definition, bool) { return plan.Definition{Config: "{"}, true }
		}, types.ErrInvalidNetworkConfig},
		"future version": {func(in *plan.Input) {
			in.Definition = func(string, string) (plan.Definition, bool) {
				return plan.Definition{Config: `{"cniVersion": "2.0.0", "type": "bridge"}`}, true
			}
		}, types.ErrIncompatibleCNIVersion},
		"bad name of the default interface": {func(in *plan.Input) { in.IfName = "eth/0" }, types.ErrInvalidEnvironmentVariables},
	} {
		t.Run(name, func(t *testing.T) {
			in := input("lab")
			c.change(&in)
			p, err := plan.Build(in)
			var e *plan.Error
			if !errors.As(err, &e) || e.Code != c.code {
				t.Errorf("Build = %v, want code %d", err, c.code)
			}
			if len(p.Attachments) != 0 {
				t.Errorf("a refused pod has a plan: %v", p)
			}
		})
	}
}

// FuzzBuild feeds annotations and definitions that nobody would write to a pod
// of an isolated cluster that has some devices.
func FuzzBuild(f *testing.F) {
	for _, annotation := range annotationSeeds() {
		f.Add(annotation, bridgeStatic, "", byte(0))
		f.Add("a", bridgeStatic, annotation, byte(1))
	}
	f.Add(`[{"name":"a","cni-args":{"x":{"y":[1,null]}}}]`, `{"type":"a","name":"b","args":{"cni":{"x":1e400,"x":2}}}`, "default/x", byte(0))
	f.Add(`[{"name":"a","ips":["10.0.0.1","10.0.0.2"]}]`, `{"cniVersion":"0.4.0","plugins":[{"type":"a","args":null,"ipam":{"type":"host-local"}}]}`, "", byte(0))
	f.Add(`[{"name":"a","default-route":[]},{"name":"b","default-route":["fd00::1"],"ips":["fd00::2/64"]}]`, `{"type":"bridge","ipam":{"type":"static","routes":[{"dst":"::/0"},{"dst":"x"}]}}`, "", byte(0))
	f.Add(`[{"name":"a"},{"name":"b","deviceID":"v1"},{"name":"a"}]`, `{"type":"sriov","capabilities":{"deviceID":true,"CNIDeviceInfoFile":true}}`, "default/c", byte(4))
	f.Fuzz(func(t *testing.T, annotation, config, defaultNetwork string, devices byte) {
		in := input(annotation)
		in.Pod.Annotations[plan.DefaultNetworkAnnotation] = defaultNetwork
		in.RuntimeConfig = map[string]json.RawMessage{"of the runtime": json.RawMessage(`1`)}
		in.Isolation = plan.Isolation{On: true}
		in.ContainerID, in.DeviceInfoDir = "c1", "/devinfo"
		var ids []string
		for i := range devices {
			ids = append(ids, fmt.Sprintf("v%d", i))
		}
		in.Devices = func(name string) ([]plan.Device, error) { return deviceList(name, ids), nil }
		in.Definition = func(namespace, name string) (plan.Definition, bool) {
			d := plan.Definition{Namespace: namespace, Name: name, Config: config}
			if devices > 0 {
				d.ResourceName = resource
			}
			return d, true
		}
		p, err := plan.Build(in)
		again, errAgain := plan.Build(in)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || !reflect.DeepEqual(p, again) {
			t.Fatalf("not deterministic: %v, %v\n%+v\n%+v", err, errAgain, p, again)
		}
		var e *plan.Error
		if err != nil {
			if !errors.As(err, &e) || e.Code == 0 || len(p.Attachments) != 0 {
				t.Fatalf("no code, or half a plan: %v, %+v", err, p)
			}
			return
		}
		checkPlan(t, p)
		if c, err := plan.ChangeOf(in, p.Attachments); err != nil || !c.Nothing() {
			t.Fatalf("the pod has what it asks for, and yet: %+v, %v", c, err)
		}
	})
}

// checkPlan holds what every plan of a pod in an isolated namespace must obey.
func checkPlan(t *testing.T, p plan.Plan) {
	t.Helper()
	if _, err := json.Marshal(p); err != nil {
		t.Fatalf("a plan without JSON form: %v", err)
	}
	seen, used, owners := map[string]bool{}, map[plan.Device]bool{}, 0
	for i, a := range p.Attachments {
		if a.DefaultRoute {
			owners++
		}
		if seen[a.IfName] || a.IfName == "" || len(a.IfName) > 15 || a.Default != (i == 0) || len(a.Reasons) == 0 {
			t.Fatalf("attachment %d: %+v", i, a)
		}
		if a.Device != (plan.Device{}) && used[a.Device] {
			t.Fatalf("device %v is given out twice", a.Device)
		}
		if _, leaked := a.RuntimeConfig["of the runtime"]; leaked != a.Default {
			t.Fatalf("attachment %d has the runtime's arguments: %v", i, leaked)
		}
		if namespace, _, ok := strings.Cut(a.Network, "/"); ok && namespace != p.Pod.Namespace {
			t.Fatalf("attachment %d is of a foreign namespace: %s", i, a.Network)
		}
		seen[a.IfName], used[a.Device] = true, true
	}
	if owners != 1 {
		t.Fatalf("%d attachments have the default route: %+v", owners, p.Attachments)
	}
}
