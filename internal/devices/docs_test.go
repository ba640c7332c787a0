package devices_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"braid.dev/braid/internal/devices"
	"braid.dev/braid/internal/devices/kubelettest"
	"braid.dev/braid/internal/manifest"
	"braid.dev/braid/internal/plan"
)

// The example of docs/devices.md gives the pod two devices.
func TestExampleOfThePageGetsItsDevices(t *testing.T) {
	page, err := os.ReadFile("../../docs/devices.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	var set manifest.Set
	if err := set.Read([]byte(example)); err != nil || !ok || len(set.Workloads) != 1 {
		t.Fatalf("%+v, %v", set, err)
	}
	pod := set.Workloads[0].Pod
	k := kubelettest.New(t).Start()
	k.Devices(pod.Namespace+"/"+pod.Name, "intel.com/vf", "0000:01:02.3", "0000:01:02.1")
	kubelet, err := devices.New(k.Socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.Build(plan.Input{
		Pod: pod, IfName: "eth0",
		Default:    plan.Network{Name: "pods", CNIVersion: "1.0.0", Plugins: []plan.Plugin{{Type: "ptp", Conf: json.RawMessage(`{"type":"ptp"}`)}}},
		Definition: set.Definition,
		Devices:    func(resource string) ([]plan.Device, error) { return kubelet.Of(t.Context(), pod, resource) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range []string{"", "0000:01:02.1", "0000:01:02.3"} {
		a := p.Attachments[i]
		if conf := string(a.Config.Plugins[0].Conf); a.Device.ID != id || id != "" && !strings.Contains(conf, `"deviceID":"`+id+`"`) {
			t.Errorf("%s has %+v, its plugin %s", a.IfName, a.Device, conf)
		}
	}
}
