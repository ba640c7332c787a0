package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/devices"
	"braid.dev/braid/internal/devices/kubelettest"
)

const vf = "intel.com/vf"

// newDeviceNode is a node whose networks are all made of VFs, which the kubelet
// gives to pods.
func newDeviceNode(t testing.TB, change ...func(*Config)) (*node, *kubelettest.Kubelet) {
	t.Helper()
	k := kubelettest.New(t).Start()
	asked, err := devices.New(k.Socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, append([]func(*Config){func(c *Config) {
		c.Devices, c.DeviceInfoDir = asked, filepath.Join(t.TempDir(), "devinfo")
	}}, change...)...)
	n.set(func(c *cluster, _ *kernel) {
		c.resource = vf
		for _, name := range []string{"default/one", "default/two", "kube-system/first"} {
			c.definitions[name] = `{"cniVersion":"1.0.0","type":"fake"}`
		}
	})
	return n, k
}

// held are the devices of all attachments, such as "eth0=0000:01:00.1".
func (n *node) held() string {
	n.t.Helper()
	all, err := n.store.All()
	if err != nil {
		n.t.Fatal(err)
	}
	var held []string
	for _, r := range all {
		if !r.Complete() {
			n.t.Errorf("%s is not complete", r.Attachment.IfName)
		}
		held = append(held, r.Attachment.IfName+"="+r.Attachment.Device.ID)
	}
	return strings.Join(held, " ")
}

func (n *node) devicePod(id, first, networks string) {
	n.pod(id, networks)
	n.set(func(c *cluster, _ *kernel) {
		if first != "" {
			c.pods["default/"+id].Annotations["v1.multus-cni.io/default-network"] = first
		}
	})
}

// Appendix A14 of what Multus does: networks of one resource, the default
// network included, never share a device.
func TestA14EachNetworkOfAResourceHasADeviceOfItsOwn(t *testing.T) {
	n, k := newDeviceNode(t)
	n.devicePod("c", "first", "one,two,one")
	k.Containers("default/c", kubelettest.Container(vf, "v4", "v2"), kubelettest.Container(vf, "v1", "v3"))
	n.ok("ADD", "c")
	const want = "eth0=v1 net1=v2 net2=v3 net3=v4"
	if held := n.held(); held != want {
		t.Errorf("held: %s; want %s", held, want)
	}
	// The runtime repeats it, to a daemon that has been started again.
	n.kill()
	n.start()
	n.ok("ADD", "c")
	if held := n.held(); held != want {
		t.Errorf("repeated: %s; want %s", held, want)
	}
	n.ok("DEL", "c")
	n.nothingLeft()
}

func TestA14FewerDevicesThanNetworksIsAnErrorAndNothingIsLeft(t *testing.T) {
	n, k := newDeviceNode(t)
	n.devicePod("c", "first", "one,two")
	k.Devices("default/c", vf, "v1", "v2")
	n.refused(n.do("ADD", "c"), types.ErrInvalidNetworkConfig, "network default/two", "net2", "devices (2) of resource", vf)
	n.nothingLeft()
	if events := n.cluster.takeEvents(); len(events) != 1 || !strings.HasPrefix(events[0], "c: FAILED ") {
		t.Errorf("events %q", events)
	}
	// None at all: the kubelet may not know them yet.
	n.devicePod("d", "", "one")
	k.Containers("default/d")
	n.refused(n.do("ADD", "d"), types.ErrTryAgainLater, vf)
	n.nothingLeft()
	// What it said before is not held against the pod.
	k.Devices("default/d", vf, "v7")
	n.ok("ADD", "d")
	if held := n.held(); held != "eth0= net1=v7" {
		t.Errorf("held: %s", held)
	}
}

// A pod without devices does not depend on the kubelet's answers.
func TestKubeletIsAskedForPodsWithDevicesOnly(t *testing.T) {
	n, k := newDeviceNode(t)
	n.set(func(c *cluster, _ *kernel) { c.resource = "" })
	n.devicePod("c", "first", "one,two")
	n.ok("ADD", "c")
	n.ok("DEL", "c")
	n.set(func(c *cluster, _ *kernel) { c.resource = vf })
	n.devicePod("d", "", "")
	n.ok("ADD", "d")
	if len(k.Asked) > 0 {
		t.Errorf("asked: %s", <-k.Asked)
	}
}

func TestDeletedPodNeedsNoKubelet(t *testing.T) {
	n, k := newDeviceNode(t)
	n.devicePod("c", "", "one")
	k.Devices("default/c", vf, "v1")
	n.ok("ADD", "c")
	<-k.Asked
	k.Containers("default/c")
	n.kill()
	n.start()
	n.ok("CHECK", "c")
	n.ok("DEL", "c")
	n.nothingLeft()
	if len(k.Asked) > 0 {
		t.Errorf("asked: %s", <-k.Asked)
	}
}

func TestNetworkOfDevicesWithoutAKubeletSaysWhatToDo(t *testing.T) {
	n, _ := newDeviceNode(t, func(c *Config) { c.Devices = nil })
	n.devicePod("c", "", "one")
	n.refused(n.do("ADD", "c"), types.ErrTryAgainLater, "default/one", "--pod-resources")
	n.nothingLeft()
}

func TestSpec31StatusTellsOfTheDevice(t *testing.T) {
	n, k := newDeviceNode(t)
	dir := n.config.DeviceInfoDir
	if err := os.MkdirAll(filepath.Join(dir, "dp"), 0o755); err != nil {
		t.Fatal(err)
	}
	info := `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:02.2"}}`
	for name, text := range map[string]string{"v1": info, "v2": "rubbish"} {
		if err := os.WriteFile(filepath.Join(dir, "dp", "intel.com-vf-"+name+"-device.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.devicePod("c", "", "one,two")
	k.Devices("default/c", vf, "v1", "v2")
	n.ok("ADD", "c")
	var text string
	n.set(func(c *cluster, _ *kernel) { text = strings.Join(strings.Fields(c.statuses["default/c"]), "") })
	if strings.Count(text, `"device-info":`) != 1 || !strings.Contains(text, `"device-info":`+info) {
		t.Errorf("status %s", text)
	}
	// What cannot be read is told; the pod has its device.
	events := n.cluster.takeEvents()
	if i := slices.IndexFunc(events, func(e string) bool { return strings.Contains(e, "intel.com-vf-v2-device.json") }); i < 0 || !strings.HasPrefix(events[i], "c: Add net2") {
		t.Errorf("events %q", events)
	}
	files, err := filepath.Glob(filepath.Join(dir, "cni", "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("files %v, %v", files, err)
	}
	n.ok("DEL", "c")
	if files, _ := filepath.Glob(filepath.Join(dir, "cni", "*")); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
	n.nothingLeft()
}

// A running pod keeps the devices it has, and a network that is added gets one of
// those that are left.
func TestEditedAnnotationGetsTheDevicesThatAreLeft(t *testing.T) {
	n, k := newDeviceNode(t)
	n.follow()
	n.leaveHand()
	n.devicePod("c", "", "one,one")
	k.Devices("default/c", vf, "v1", "v2", "v3")
	n.ok("ADD", "c")
	n.pod("c", "two@net2,one@net1")
	n.statusHas("c", "cbr0", "default/one", "default/two")
	if held := n.held(); held != "eth0= net1=v1 net2=v2" {
		t.Errorf("after one network took the place of another: %s", held)
	}
	n.pod("c", "one@net1,two@net2,one@net3")
	n.statusHas("c", "cbr0", "default/one", "default/two", "default/one")
	if held := n.held(); held != "eth0= net1=v1 net2=v2 net3=v3" {
		t.Errorf("after a third one: %s", held)
	}
	n.cluster.takeEvents()
	n.pod("c", "one@net1,two@net2,one@net3,two@net4")
	n.toldOf("c: FAILED", "default/two", "more networks than devices (3)")
	n.has("c/eth0", "c/net1", "c/net2", "c/net3")
	n.ok("DEL", "c")
	n.nothingLeft()
}
