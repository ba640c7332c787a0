package ptp

import (
	"encoding/json"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

type someIPAM struct{ driver.IPAM }

func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{"name":"n","ipam":{"type":"static"}}`, `{"ipMasq":true,"ipMasqBackend":"nftables","mtu":1400,"ipam":{"type":"x"}}`,
		`{"mtu":-1,"ipam":{"type":"x"}}`, `{"dns":{"nameservers":["::1"]},"ipam":{"type":"x"}}`, `null`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(driver.Spec{IfName: "net1", Conf: data, IPAM: someIPAM{}})
		if err == nil && (c.IPAM.Type == "" || c.MTU < 0 || c.MTU > 65535) {
			t.Errorf("accepted: %+v", c)
		}
	})
}

// Whatever a delegate answers, the routes that come of it are valid.
func FuzzHops(f *testing.F) {
	for _, seed := range []string{
		`{"ips":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"}]}`, `{"ips":[{"address":"fd00::5/64","gateway":"fd00::1"}]}`,
		`{"ips":[{"address":"10.1.0.5/32","gateway":"169.254.1.1"}]}`, `{"ips":[{"address":"10.1.0.5/0","gateway":"::ffff:10.1.0.1"}]}`, `{"ips":[{}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		res := &current.Result{}
		if json.Unmarshal(data, res) != nil || len(res.IPs) == 0 {
			return
		}
		for _, ip := range res.IPs {
			if ip == nil {
				return // the delegates' own code makes none
			}
		}
		hops, err := hops(res)
		if err != nil {
			return
		}
		for _, h := range hops {
			for _, r := range append(h.routes(1), rtnl.Route{Dst: h.gateway()}, rtnl.Route{Dst: h.container()}) {
				if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() || r.Via.IsValid() && r.Via.Is6() != r.Dst.Addr().Is6() {
					t.Errorf("%s: route %s", data, r)
				}
			}
		}
	})
}
