package firewall

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

func TestRefusals(t *testing.T) {
	empty := &current.Result{}
	named := func(name string) *current.Result {
		return &current.Result{Interfaces: []*current.Interface{{Name: name}}}
	}
	for _, tc := range []struct {
		conf string
		prev *current.Result
		want string
	}{
		{`{"backend":"ipchains"}`, empty, `backend "ipchains"`},
		{`{"ingressPolicy":"closed"}`, empty, `ingressPolicy "closed"`},
		{`{"iptablesAdminChainName":"-j ACCEPT"}`, empty, "no name of a chain"},
		{`{"iptablesAdminChainName":"A\n-A INPUT"}`, empty, "no name of a chain"},
		{`{"iptablesAdminChainName":"ABCDEFGHIJKLMNOPQRSTUVWXYZ123"}`, empty, "at most 28"},
		{`{"firewalldZone":"a b"}`, empty, "no name of a zone"},
		{`{}`, nil, "prevResult is missing"},
		{`{"ingressPolicy":"isolated"}`, empty, "chain firewall behind bridge"},
		{`{"ingressPolicy":"same-bridge"}`, named("br0 -j ACCEPT"), "first interface of the result, not"},
		{`{"ingressPolicy":"same-bridge"}`, named(""), "first interface of the result, not"},
	} {
		_, err := parse(driver.Spec{Conf: []byte(tc.conf), Prev: tc.prev})
		var coded *types.Error
		if !errors.As(err, &coded) || coded.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.conf, err, tc.want)
		}
	}
}

func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{}`, `[`, `{"backend":"iptables","iptablesAdminChainName":"X Y"}`, `{"ingressPolicy":"isolated"}`, `{"firewalldZone":"\u0000"}`,
	} {
		f.Add([]byte(seed), "br0")
	}
	f.Fuzz(func(t *testing.T, data []byte, bridge string) {
		prev := &current.Result{
			Interfaces: []*current.Interface{{Name: bridge}},
			IPs:        []*current.IPConfig{{Address: net.IPNet{IP: net.IP{10, 1, 1, 2}, Mask: net.CIDRMask(24, 32)}}},
		}
		s := driver.Spec{Conf: data, Prev: prev, ContainerID: "c"}
		c, err := parse(s)
		if err != nil {
			return
		}
		a, err := (&firewall{}).open(c, s)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range a.additions(nil, a.shared(true), own(a.addrs)) {
			if strings.ContainsAny(line, "\n\r") || strings.Count(line, `"`)%2 != 0 {
				t.Errorf("%q: line %q", data, line)
			}
		}
	})
}
