package tap

import (
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
)

func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{"name":"n","multiQueue":true,"owner":0,"group":4294967295}`, `{"mtu":1400,"mac":"02:00:00:00:00:05"}`, `{"owner":-1}`,
		`{"selinuxContext":"system_u:object_r:t:s0","bridge":"br0"}`, `{"mac":"01:00:5e:00:00:01"}`, `null`, `[]`,
	} {
		f.Add([]byte(seed), "MAC=02:00:00:00:00:02")
	}
	f.Fuzz(func(t *testing.T, data []byte, args string) {
		c, err := parse(driver.Spec{IfName: "net1", Args: args, Conf: data})
		if err != nil {
			return
		}
		if c.mac != nil && (len(c.mac) != 6 || c.mac[0]&1 != 0) || c.MTU < 0 {
			t.Errorf("accepted: %+v", c)
		}
		// Words of the configuration stay arguments of their own.
		p := attachment{conf: c, spec: driver.Spec{NetNSPath: "/run/netns/x"}}.program("braid0")
		if p.Name != "nsenter" || strings.Join(p.Args[:2], " ") != "--net=/run/netns/x --" {
			t.Errorf("program: %+v", p)
		}
	})
}
