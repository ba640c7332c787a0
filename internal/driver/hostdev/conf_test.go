package hostdev

import (
	"path/filepath"
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
)

// Whatever the configuration says, only directories of devices are read.
func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{"device":"eth1"}`, `{"hwaddr":"02:00:00:00:00:01"}`, `{"kernelpath":"/sys/devices/../x"}`, `{"kernelpath":"/sys/devices/a/./b/"}`,
		`{"pciBusID":"0000:00:1f.6"}`, `{"runtimeConfig":{"deviceID":"mlx5_core.sf.4"}}`, `{"pciBusID":".."}`, `null`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(driver.Spec{IfName: "net1", Conf: data, IPAM: nil})
		if err != nil {
			return
		}
		if c.wanted() == "" {
			t.Error("a device without a name")
		}
		const root = "/none/sys"
		a := &attachment{hostDevice: &hostDevice{cfg: Config{Sysfs: root}}, conf: c}
		if at, err := a.place(); err == nil && at.dir != "" && !strings.HasPrefix(filepath.Clean(at.dir), root+"/") {
			t.Errorf("%s reads %s", data, at.dir)
		}
	})
}
