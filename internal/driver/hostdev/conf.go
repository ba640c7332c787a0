package hostdev

import (
	"encoding/json"
	"fmt"
	"net"
	"path"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
)

// conf is the configuration. The README says what each key means.
type conf struct {
	Name string `json:"name"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS types.DNS `json:"dns"`

	Device        string `json:"device"`
	HWAddr        string `json:"hwaddr"`
	KernelPath    string `json:"kernelpath"`
	PCIAddr       string `json:"pciBusID"`
	RuntimeConfig struct {
		DeviceID string `json:"deviceID"`
	} `json:"runtimeConfig"`
	mac net.HardwareAddr
}

// parse reads and validates everything that can be judged without looking at
// the node.
func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read host-device configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	if err := c.validate(); err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	if c.IPAM.Type != "" && s.IPAM == nil {
		return c, types.NewError(types.ErrInternal, fmt.Sprintf("no address delegate for ipam type %q", c.IPAM.Type), "")
	}
	return c, nil
}

func (c *conf) validate() error {
	for key, id := range map[string]string{"pciBusID": c.PCIAddr, "deviceID": c.RuntimeConfig.DeviceID} {
		// Such an id becomes a part of a path.
		if strings.Contains(id, "/") || strings.HasPrefix(id, ".") {
			return fmt.Errorf("%s %q is no id of a device", key, id)
		}
	}
	switch {
	case c.Device == "" && c.HWAddr == "" && c.KernelPath == "" && c.PCIAddr == "" && c.RuntimeConfig.DeviceID == "":
		return fmt.Errorf("no device is named: give device, hwaddr, kernelpath, pciBusID or the runtime's deviceID")
	case c.KernelPath != "" && !strings.HasPrefix(path.Clean(c.KernelPath), "/sys/devices/"):
		return fmt.Errorf("kernelpath %q is not below /sys/devices", c.KernelPath)
	case c.HWAddr != "":
		mac, err := net.ParseMAC(c.HWAddr)
		if err != nil {
			return fmt.Errorf("hwaddr %q is no hardware address", c.HWAddr)
		}
		c.mac = mac
	}
	return nil
}

// wanted names the device for people.
func (c conf) wanted() string {
	switch {
	case c.Device != "":
		return "device " + c.Device
	case c.HWAddr != "":
		return "device with hwaddr " + c.HWAddr
	case c.KernelPath != "":
		return "device at " + c.KernelPath
	case c.RuntimeConfig.DeviceID != "":
		return "device " + c.RuntimeConfig.DeviceID
	}
	return "PCI device " + c.PCIAddr
}
