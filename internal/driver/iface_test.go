package driver_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair returns a namespace with link net1, whose other end is up in another.
func pair(t *testing.T) (pod, far *netns.NS) {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth)
	pod, far = kerneltest.NewNS(t), kerneltest.NewNS(t)
	h, err := rtnl.Open(far)
	try(t, err)
	defer h.Close()
	_, err = h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "far0", Up: true}, Peer: rtnl.New{Name: "net1"}, PeerNS: pod})
	try(t, err)
	return pod, far
}

func result(t *testing.T, text string) *current.Result {
	t.Helper()
	var res current.Result
	try(t, json.Unmarshal([]byte(text), &res))
	return &res
}

const full = `{"interfaces":[{"name":"br"},{"name":"net1"}],
	"ips":[{"interface":1,"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"interface":1,"address":"fd00::5/64","gateway":"fd00::1"},{"address":"10.9.0.1/24"}],
	"routes":[{"dst":"10.2.0.0/16"},{"dst":"10.2.0.0/16"},{"dst":"fd01::/64"},{"dst":"10.3.0.0/16","gw":"10.1.0.9","mtu":1400,"advmss":1300,"priority":3},{"dst":"10.4.0.0/16","table":77}]}`

func TestConfigureCarriesTheResult(t *testing.T) {
	pod, _ := pair(t)
	res := result(t, full)
	i := driver.Interface{NS: pod, Name: "net1"}
	try(t, i.Configure(t.Context(), res))
	got, err := rtnl.Observe(pod)
	try(t, err)
	const want = `lo device down mtu 65536
net1 veth up mtu 1500
  addr 10.1.0.5/24
  addr fd00::5/64
route 10.1.0.0/24 dev net1 src 10.1.0.5 scope link
route 10.2.0.0/16 via 10.1.0.1 dev net1
route 10.3.0.0/16 via 10.1.0.9 dev net1 metric 3 mtu 1400 advmss 1300
route 10.4.0.0/16 via 10.1.0.1 dev net1 table 77
route fd00::/64 dev net1 metric 256
route fd01::/64 via fd00::1 dev net1 metric 1024
`
	if got != want {
		t.Errorf("--- got\n%s--- want\n%s", got, want)
	}
	try(t, i.Check(res))
	try(t, i.Announce())
}

func TestResultThatCannotBeCarriedIsRefused(t *testing.T) {
	pod, _ := pair(t)
	for name, text := range map[string]string{
		"an interface that is not there": `{"interfaces":[{"name":"net1"}],"ips":[{"interface":4,"address":"10.1.0.5/24"}]}`,
		"another interface":              `{"interfaces":[{"name":"br"},{"name":"net1"}],"ips":[{"interface":0,"address":"10.1.0.5/24"}]}`,
		"a gateway that is out of reach": `{"interfaces":[{"name":"net1"}],"ips":[{"interface":0,"address":"10.1.0.5/24"}],"routes":[{"dst":"10.2.0.0/16","gw":"192.0.2.1"}]}`,
	} {
		i := driver.Interface{NS: pod, Name: "net1"}
		if err := i.Configure(t.Context(), result(t, text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// An address that another container on the link has is found before this one
// uses it, when the network asks for that.
func TestDuplicateIPv6AddressIsFound(t *testing.T) {
	pod, far := pair(t)
	h, err := rtnl.Open(far)
	try(t, err)
	defer h.Close()
	l, err := h.Link("far0")
	try(t, err)
	try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("fd00::5/64"), NoDAD: true}))
	i := driver.Interface{NS: pod, Name: "net1", DAD: true}
	err = i.Configure(t.Context(), result(t, `{"interfaces":[{"name":"net1"}],"ips":[{"interface":0,"address":"fd00::5/64"}]}`))
	if err == nil || !strings.Contains(err.Error(), "fd00::5 of net1 is in use") {
		t.Errorf("Configure: %v", err)
	}
}

func TestPrefix(t *testing.T) {
	for _, tc := range []struct {
		in   net.IPNet
		want string
	}{
		{net.IPNet{IP: net.IPv4(10, 1, 0, 5), Mask: net.CIDRMask(24, 32)}, "10.1.0.5/24"},
		{net.IPNet{IP: net.IPv4(10, 1, 0, 5).To4(), Mask: net.CIDRMask(120, 128)}, "10.1.0.5/24"},
		{net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, "0.0.0.0/0"},
		{net.IPNet{IP: net.ParseIP("fd00::5"), Mask: net.CIDRMask(64, 128)}, "fd00::5/64"},
		{net.IPNet{IP: net.ParseIP("fd00::5"), Mask: net.CIDRMask(24, 32)}, ""},
		{net.IPNet{IP: net.IPv4(10, 1, 0, 5), Mask: net.CIDRMask(64, 128)}, ""},
		{net.IPNet{IP: net.IPv4(10, 1, 0, 5), Mask: net.IPv4Mask(255, 0, 255, 0)}, ""},
		{net.IPNet{}, ""},
	} {
		got, err := driver.Prefix(tc.in)
		if (err != nil) != (tc.want == "") || err == nil && got.String() != tc.want {
			t.Errorf("Prefix(%v) = %v, %v, want %q", tc.in, got, err, tc.want)
		}
	}
}

func TestRequestedMACPrecedence(t *testing.T) {
	const (
		runtime = `"runtimeConfig":{"mac":"02:00:00:00:00:01"}`
		args    = `"args":{"cni":{"mac":"02:00:00:00:00:02"}}`
		env     = "IgnoreUnknown=true;X=y;MAC=02:00:00:00:00:03"
	)
	for _, tc := range []struct{ conf, env, want string }{
		{"{" + runtime + "," + args + "}", env, "02:00:00:00:00:01"},
		{"{" + args + "}", env, "02:00:00:00:00:02"},
		{"{}", env, "02:00:00:00:00:03"},
		{"{}", "", ""},
	} {
		mac, err := driver.RequestedMAC([]byte(tc.conf), tc.env)
		if err != nil || mac.String() != tc.want {
			t.Errorf("RequestedMAC(%s, %s) = %s, %v, want %s", tc.conf, tc.env, mac, err, tc.want)
		}
	}
}

func FuzzRequestedMAC(f *testing.F) {
	f.Add([]byte(`{"runtimeConfig":{"mac":"02:00:00:00:00:01"}}`), "IgnoreUnknown=1;MAC=02:00:00:00:00:03")
	f.Add([]byte(`{"args":{"cni":{"mac":"00:00:00:00:00:00"}}}`), "MAC=;=")
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		mac, err := driver.RequestedMAC(conf, args)
		var cni *types.Error
		switch {
		case err != nil && !errors.As(err, &cni):
			t.Errorf("error without a CNI code: %v", err)
		case err == nil && mac != nil && (len(mac) != 6 || mac[0]&1 != 0):
			t.Errorf("mac %s", mac)
		}
	})
}
