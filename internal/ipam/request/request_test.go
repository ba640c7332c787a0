package request

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/ipam"
)

func code(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func TestArgs(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"": {},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod1a;IP=10.20.1.11/24": {
			"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "pod1a", "IP": "10.20.1.11/24"},
		"K8S_POD_NAME=x;IP=10.0.0.1": {"K8S_POD_NAME": "x", "IP": "10.0.0.1"},
		"IP=":                        {"IP": ""},
		"IP=10.0.0.1;IP=10.0.0.2":    {"IP": "10.0.0.2"},
		";IP=10.0.0.1;;novalue;":     {"IP": "10.0.0.1"},
		"TOKEN=a=b==;IP=10.0.0.1":    {"TOKEN": "a=b==", "IP": "10.0.0.1"},
		"IgnoreUnknown=maybe":        {"IgnoreUnknown": "maybe"},
	} {
		if got := Args(in); !cmp.Equal(got, want) {
			t.Errorf("Args(%q) = %v; want %v", in, got, want)
		}
	}
}

// FuzzArgs compares with the reader of the CNI library, which the reference
// plugins use, in the mode that ignores unknown keys: what that one accepts
// means the same here.
func FuzzArgs(f *testing.F) {
	for _, s := range []string{"", "IP=10.0.0.1", "IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.0.0.1/8;GATEWAY=10.0.0.9", "a=b=c", ";;", "=", "IP=1;IP=2", "IgnoreUnknown=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var ref struct {
			types.CommonArgs
			IP      types.UnmarshallableString
			GATEWAY types.UnmarshallableString
		}
		if strings.Contains(s, "CommonArgs") || strings.HasPrefix(s, "IgnoreUnknown=") || strings.Contains(s, ";IgnoreUnknown=") {
			return // the name of a field of the reference, or another mode
		}
		refErr := types.LoadArgs(strings.TrimSuffix("IgnoreUnknown=1;"+s, ";"), &ref)
		got := Args("IgnoreUnknown=1;" + s)
		if refErr == nil && (got["IP"] != string(ref.IP) || got["GATEWAY"] != string(ref.GATEWAY)) {
			t.Fatalf("Args(%q) = %v, reference: %+v", s, got, ref)
		}
	})
}

func TestPrefix(t *testing.T) {
	for in, want := range map[string]string{
		"10.20.1.11/24":        "10.20.1.11/24",
		"10.0.0.1/024":         "10.0.0.1/24",
		"0.0.0.0/0":            "0.0.0.0/0",
		"FD00:0::5/64":         "fd00::5/64",
		"::ffff:10.0.0.1/120":  "10.0.0.1/24",
		"::ffff:10.0.0.1/128":  "10.0.0.1/32",
		"::/0":                 "::/0",
		"ffff:ffff::ffff/0128": "ffff:ffff::ffff/128",
	} {
		got, err := Prefix(in)
		if err != nil || got.String() != want {
			t.Errorf("Prefix(%q) = %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "10.0.0.1", "10.0.0.1/33", "10.0.0.01/8", "fe80::1%eth0/64", "::ffff:10.0.0.1/95", "10.0.0.1/-1", "10.0.0.1/ 8", "10.0.0/8"} {
		if got, err := Prefix(in); err == nil {
			t.Errorf("Prefix(%q) = %v, want an error", in, got)
		}
	}
}

func FuzzAddresses(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.1/8", "::1", "::ffff:1.2.3.4", "::ffff:1.2.3.4/97", "fe80::1%e", "1.2.3.4/", "/", "1.2.3.4/00000008"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Addr(s)
		ref := net.ParseIP(s)
		if (err == nil) != (ref != nil) || err == nil && !ref.Equal(a.AsSlice()) {
			t.Errorf("Addr(%q) = %v, %v; reference %v", s, a, err, ref)
		}
		if err == nil && (a.Is4In6() || a.Zone() != "") {
			t.Errorf("Addr(%q) = %v", s, a)
		}
		ip, n, refErr := net.ParseCIDR(s)
		p, err := Prefix(s)
		if err == nil && (refErr != nil || !ip.Equal(p.Addr().AsSlice()) || !p.IsValid()) {
			t.Errorf("Prefix(%q) = %v; reference %v, %v", s, p, n, refErr)
		}
		if refErr == nil && err != nil && ip.To4() == nil {
			t.Errorf("Prefix(%q): %v; reference %v", s, err, n)
		}
		if err == nil {
			if back, ok := PrefixOf(IPConfig(p, netip.Addr{})); !ok || back != p {
				t.Errorf("PrefixOf(IPConfig(%v)) = %v, %v", p, back, ok)
			}
		}
	})
}

func TestDecodeChecksTheEnvelope(t *testing.T) {
	for conf, want := range map[string]uint{
		`{"name":"vlan2001","cniVersion":"1.0.0"}`: 0,
		`{"name":"vlan2001"}`:                      0,
		`{"name":"n","cniVersion":"9.0.0"}`:        types.ErrIncompatibleCNIVersion,
		`{"cniVersion":"1.0.0"}`:                   types.ErrInvalidNetworkConfig,
		`{"name":"../etc"}`:                        types.ErrInvalidNetworkConfig,
		`{"name":".."}`:                            types.ErrInvalidNetworkConfig,
		`{"name":5}`:                               types.ErrDecodingFailure,
		`{"name":"n"`:                              types.ErrDecodingFailure,
		``:                                         types.ErrDecodingFailure,
		`null`:                                     types.ErrInvalidNetworkConfig,
		`[]`:                                       types.ErrDecodingFailure,
		`{"name":"n"} {}`:                          types.ErrDecodingFailure,
	} {
		var v struct{}
		if err := Decode([]byte(conf), &v); code(err) != want || (want == 0) != (err == nil) {
			t.Errorf("Decode(%s) = %v, want code %d", conf, err, want)
		}
	}
}

func TestIdentity(t *testing.T) {
	good := ipam.Request{ContainerID: "abc", IfName: "net1"}
	if err := Identity(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []ipam.Request{{IfName: "net1"}, {ContainerID: "a/b", IfName: "net1"}, {ContainerID: "a"}, {ContainerID: "a", IfName: "a-name-too-long-"}, {ContainerID: "a", IfName: "a b"}} {
		if err := Identity(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
