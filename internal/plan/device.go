package plan

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	// deviceCapability and deviceInfoCapability are the runtimeConfig keys for
	// the device and for the file with what is known of it.
	deviceCapability     = "deviceID"
	deviceInfoCapability = "CNIDeviceInfoFile"
	// maxFileName is what Linux allows, in bytes, less what who writes a file
	// may append to its name meanwhile.
	maxFileName = 240
)

// assignDevices gives each attachment of fresh that is made of a device one of
// the pod's that no other attachment has, kept ones included: those that the
// pod names first, then the others in order, each the first that is left. The
// same devices are given out the same way each time.
func assignDevices(in Input, kept, fresh []Attachment) error {
	d := devices{in: in, lists: map[string][]Device{}}
	for _, a := range kept {
		d.used = append(d.used, a.Device)
	}
	for _, named := range []bool{true, false} {
		for i := range fresh {
			a := &fresh[i]
			if a.Device == (Device{}) || (a.Device.ID != "") != named {
				continue
			}
			if err := d.assign(a); err != nil {
				return about(a.Network, fmt.Errorf("device of %s: %w", a.IfName, err))
			}
		}
	}
	for i := range fresh {
		if err := fresh[i].passDevice(in); err != nil {
			return about(fresh[i].Network, fmt.Errorf("device of %s: %w", fresh[i].IfName, err))
		}
	}
	return nil
}

// devices are those of one pod while they are given out.
type devices struct {
	in    Input
	lists map[string][]Device
	used  []Device
}

// list asks for the pod's devices of a resource once.
func (d *devices) list(resource string) ([]Device, error) {
	if list, ok := d.lists[resource]; ok {
		return list, nil
	}
	list, err := d.in.Devices(resource)
	if err != nil {
		return nil, later("resource %s: %w", quote(resource), err)
	}
	d.lists[resource] = list
	return list, nil
}

// taken tells whether an attachment has the device already. A device that a
// pod names without a resource may be of any.
func (d *devices) taken(id, resource string) bool {
	return slices.ContainsFunc(d.used, func(u Device) bool {
		return u.ID == id && (u.Resource == resource || u.Resource == "" || resource == "")
	})
}

func (d *devices) assign(a *Attachment) error {
	named, resource := a.Device.ID, a.Device.Resource
	if named != "" && d.taken(named, resource) {
		return invalid("%s belongs to another network of the pod already", quote(named))
	}
	if resource == "" { // the capability that passes it is verified in ask
		d.used = append(d.used, a.Device)
		return nil
	}
	if d.in.Devices == nil {
		a.because("device: one of resource %s, the node knows which", resource)
		return nil
	}
	list, err := d.list(resource)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(have Device) bool {
		return (named == "" || have.ID == named) && !d.taken(have.ID, resource)
	})
	switch {
	case i >= 0:
		a.Device.ID = list[i].ID
	case len(list) == 0:
		// A kubelet that has just started may report it a moment later.
		return later("the kubelet knows of no device of resource %s for this pod; "+
			"request one for each such network in resources.limits of a container", quote(resource))
	case named != "":
		return invalid("%s is none of the devices of resource %s that the pod has", quote(named), quote(resource))
	default:
		// What a pod has is settled before its sandbox is made: no later try
		// finds more.
		return invalid("the pod has more networks than devices (%d) of resource %s; "+
			"request one for each in resources.limits of a container", len(list), quote(resource))
	}
	d.used = append(d.used, a.Device)
	a.because("device %s: of resource %s, as the kubelet gave it to the pod", a.Device.ID, resource)
	return nil
}

// passDevice tells the plugins of the device: as Multus does, by the keys
// deviceID and pciBusID of every plugin's configuration for one of a resource,
// and by the capabilities of those that declare them.
func (a *Attachment) passDevice(in Input) error {
	if a.Device.ID != "" && a.Device.Resource != "" {
		id, err := json.Marshal(a.Device.ID)
		if err != nil {
			return err
		}
		err = a.rewrite(func(p Plugin) (json.RawMessage, error) {
			return setMembers(p.Conf, []member{{key: "deviceID", value: id}, {key: "pciBusID", value: id}})
		})
		if err != nil {
			return err
		}
		if a.declares(deviceCapability) {
			if err := a.setRuntimeConfig(deviceCapability, a.Device.ID); err != nil {
				return err
			}
		}
	}
	if a.Device.ID == "" && !a.declares(deviceInfoCapability) || in.ContainerID == "" || in.DeviceInfoDir == "" {
		return nil
	}
	a.DeviceInfoFile = deviceInfoFile(in.DeviceInfoDir, a.Network, in.ContainerID, a.IfName)
	if !a.declares(deviceInfoCapability) {
		return nil
	}
	return a.setRuntimeConfig(deviceInfoCapability, a.DeviceInfoFile)
}

// deviceInfoFile is where an attachment's plugins write and find what is to be
// known of its device. The name is the one that Multus gives it, as monitoring
// looks for it; where that is longer than a file's name can be, as names in
// Kubernetes can, it is a sum of it.
func deviceInfoFile(dir, network, containerID, ifName string) string {
	name := network + "-" + containerID + "_" + ifName
	if len(name) > maxFileName {
		name = fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	}
	return path.Join(dir, "cni", strings.ReplaceAll(name, "/", "-"))
}
