package plan_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/plan"
)

const resource = "vendor.example/nic"

// onDevices is a pod whose networks are all made of devices of one resource, of
// which it has those of ids.
func onDevices(networks string, ids ...string) plan.Input {
	in := input(networks)
	in.Definition = func(namespace, name string) (plan.Definition, bool) {
		return plan.Definition{Namespace: namespace, Name: name, Config: `{"cniVersion": "1.0.0", "type": "sriov"}`, ResourceName: resource}, true
	}
	in.Devices = func(name string) ([]plan.Device, error) { return deviceList(name, ids), nil }
	return in
}

func devicesOf(list []plan.Attachment) string {
	var out []string
	for _, a := range list {
		out = append(out, a.IfName+"="+a.Device.ID)
	}
	return strings.Join(out, " ")
}

func TestDevicesAreGivenOutTheSameWayAgain(t *testing.T) {
	in := onDevices(`[{"name": "a"}, {"name": "b", "deviceID": "v1"}, {"name": "a"}]`, "v1", "v2", "v3", "v4")
	for range 3 {
		p, err := plan.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		if have, want := devicesOf(p.Attachments[1:]), "net1=v2 net2=v1 net3=v3"; have != want {
			t.Errorf("have %s, want %s", have, want)
		}
	}
}

func TestAKubeletThatDoesNotAnswerIsAskedAgainLater(t *testing.T) {
	in := onDevices("a")
	broken := errors.New("connection refused")
	in.Devices = func(string) ([]plan.Device, error) { return nil, broken }
	_, err := plan.Build(in)
	var e *plan.Error
	if !errors.As(err, &e) || e.Code != types.ErrTryAgainLater || !errors.Is(err, broken) || e.Network != "default/a" {
		t.Errorf("got %v, want code 11 and the cause", err)
	}
}

func TestDeviceInformationFileHasANameThatAFileCanHave(t *testing.T) {
	long := strings.Repeat("n", 253)
	in := onDevices("a,"+long+","+long, "v1", "v2", "v3")
	in.ContainerID, in.DeviceInfoDir = strings.Repeat("c", 64), "/devinfo"
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if have, want := p.Attachments[1].DeviceInfoFile, "/devinfo/cni/default-a-"+in.ContainerID+"_net1"; have != want {
		t.Errorf("%s, want %s", have, want)
	}
	one, two := p.Attachments[2].DeviceInfoFile, p.Attachments[3].DeviceInfoFile
	if len(path.Base(one)) > 250 || one == two {
		t.Errorf("%s and %s", one, two)
	}
}

func TestTheKubeletIsAskedOncePerResourceAndNotWithoutOne(t *testing.T) {
	asked := 0
	in := onDevices("a,b,c")
	in.Devices = func(name string) ([]plan.Device, error) {
		asked++
		return deviceList(name, []string{"v1", "v2", "v3"}), nil
	}
	if _, err := plan.Build(in); err != nil || asked != 1 {
		t.Errorf("asked %d times for three networks, %v", asked, err)
	}
	in = input("a")
	in.Devices = func(string) ([]plan.Device, error) { return nil, errors.New("must not be asked") }
	if _, err := plan.Build(in); err != nil {
		t.Error(err)
	}
}

func TestAPreviewLeavesTheDeviceOpen(t *testing.T) {
	in := onDevices("a,b")
	in.Devices = nil
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range p.Attachments[1:] {
		if a.Device != (plan.Device{Resource: resource}) || !strings.Contains(strings.Join(a.Reasons, "\n"), "the node knows which") ||
			strings.Contains(string(a.Config.Plugins[0].Conf), "deviceID") {
			t.Errorf("%+v", a)
		}
	}
}
