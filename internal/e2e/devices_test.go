package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/devices/kubelettest"
)

const vf = "intel.com/vf"

// newDeviceHost is a host with a kubelet that gives devices to pods, and with a
// network "fast" that is made of them.
func newDeviceHost(t *testing.T) (*host, *kubelettest.Kubelet) {
	t.Helper()
	k := kubelettest.New(t).Start()
	h := newHost(t, func(h *host) {
		h.flags = []string{"--pod-resources=" + k.Socket, "--device-info-dir=" + h.path("devinfo")}
	})
	h.networkIn(t, h.namespace, "fast", h.recordedNetwork(`"capabilities":{"CNIDeviceInfoFile":true}`), map[string]string{resourceKey: vf})
	h.networkIn(t, h.namespace, "first", h.bridged("braidfast0", "10.78.0.0/24", h.recording("")), map[string]string{resourceKey: vf})
	return h, k
}

// given are the devices that the recorder was given, by interface and verb, as
// plugins look for them.
func (s *sandbox) given(t *testing.T) []string {
	t.Helper()
	var given []string
	for _, c := range s.calls(t, s.id) {
		var conf struct{ DeviceID, PCIBusID string }
		if err := json.Unmarshal(c.Stdin, &conf); err != nil {
			t.Fatal(err)
		}
		if conf.DeviceID != conf.PCIBusID {
			t.Errorf("%s of %s: deviceID %q, pciBusID %q", c.Command, c.IfName, conf.DeviceID, conf.PCIBusID)
		}
		given = append(given, c.Command+" "+c.IfName+" "+conf.DeviceID)
	}
	return given
}

func TestA14NetworksOfOneResourceHaveDistinctDevices(t *testing.T) {
	t.Parallel()
	h, k := newDeviceHost(t)
	p := h.createPod(t, "pod", map[string]string{defaultKey: h.namespace + "/first", networksKey: "fast,fast"})
	k.Devices(h.namespace+"/pod", vf, "0000:01:00.4", "0000:01:00.2", "0000:01:00.3")
	info := `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:00.3"}}`
	must(t, os.MkdirAll(h.path("devinfo/dp"), 0o755))
	must(t, os.WriteFile(h.path("devinfo/dp/intel.com-vf-0000:01:00.3-device.json"), []byte(info), 0o444))
	s := p.newSandbox(t)
	s.mustAdd(t)
	p.awaitStatus(t, func(text string) error {
		text = strings.Join(strings.Fields(text), "")
		if strings.Count(text, "device-info") != 1 || !strings.Contains(text, `"device-info":`+info) {
			return fmt.Errorf("not %s alone", info)
		}
		return nil
	})
	// DEL knows them from the records: a daemon that was started again, and a
	// kubelet that does not know the pod any more.
	h.restart(t)
	k.Containers(h.namespace + "/pod")
	s.mustCheck(t)
	s.mustDel(t)
	want := []string{
		"ADD eth0 0000:01:00.2", "ADD net1 0000:01:00.3", "ADD net2 0000:01:00.4",
		"CHECK eth0 0000:01:00.2", "CHECK net1 0000:01:00.3", "CHECK net2 0000:01:00.4",
		"DEL net2 0000:01:00.4", "DEL net1 0000:01:00.3", "DEL eth0 0000:01:00.2",
	}
	if given := s.given(t); !slices.Equal(given, want) {
		t.Errorf("the plugins were given\n%s", strings.Join(given, "\n"))
	}
	if files, err := filepath.Glob(h.path("devinfo/cni/*")); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
	h.nothingIsLeft(t)
}

func TestA14FewerDevicesThanNetworksIsAnError(t *testing.T) {
	t.Parallel()
	h, k := newDeviceHost(t)
	p := h.createPod(t, "pod", map[string]string{defaultKey: h.namespace + "/first", networksKey: "fast,fast"})
	k.Devices(h.namespace+"/pod", vf, "0000:01:00.2", "0000:01:00.3")
	s := p.newSandbox(t)
	_, err := s.add(t.Context())
	if err == nil || codeOf(err) != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), vf) {
		t.Errorf("ADD: %v", err)
	}
	if calls := h.calls(t, s.id); len(calls) > 0 {
		t.Errorf("plugins were called: %+v", calls)
	}
	s.isEmpty(t)
	p.eventSays(t, vf)
	s.mustDel(t)
	h.nothingIsLeft(t)
}

// Devices that are claimed (Dynamic Resource Allocation) are called as the
// driver publishes it, with the rights of deploy/.
func TestClusterClaimedDevicesAreThoseOfTheDriversSlices(t *testing.T) {
	t.Parallel()
	h, k := newDeviceHost(t)
	attribute := func(text string) object { return object{"string": text} }
	device := func(name, id string) object {
		return object{"name": name, "attributes": object{
			"k8s.cni.cncf.io/resourceName": attribute(vf), "k8s.cni.cncf.io/deviceID": attribute(id),
		}}
	}
	const slices = "/apis/resource.k8s.io/v1/resourceslices"
	must(t, h.api.create(t.Context(), slices, object{
		"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": object{"name": h.node},
		"spec": object{
			"driver": "sriov.example", "nodeName": h.node, "pool": object{"name": h.node, "generation": 1, "resourceSliceCount": 1},
			"devices": []object{device("vf-a", "0000:01:00.9"), device("vf-b", "0000:01:00.8"), {"name": "gpu"}},
		},
	}))
	t.Cleanup(func() {
		if err := h.api.remove(context.Background(), slices+"/"+h.node); err != nil {
			t.Error(err)
		}
	})
	p := h.createPod(t, "pod", map[string]string{networksKey: "fast"})
	k.Containers(h.namespace+"/pod", kubelettest.Claim("net", [3]string{"sriov.example", h.node, "gpu"}, [3]string{"sriov.example", h.node, "vf-a"}))
	s := p.newSandbox(t)
	s.mustAdd(t)
	s.mustDel(t)
	if given := strings.Join(s.given(t), ", "); given != "ADD net1 0000:01:00.9, DEL net1 0000:01:00.9" {
		t.Errorf("the plugin was given %s", given)
	}
	h.nothingIsLeft(t)
}
