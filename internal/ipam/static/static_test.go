package static_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/static"
	"braid.dev/braid/internal/refplugin"
)

// vectors are requests that both Braid and the reference accept, with the
// addresses that result, each followed by its gateway.
var vectors = []struct {
	name, conf, args string
	want             string
}{
	{"the seed: ips of the annotation arrive as CNI_ARGS",
		`{"type":"bridge","bridge":"vlanbr0","vlan":2001,"ipam":{"type":"static"}}`,
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod1a;IP=10.20.1.11/24", "10.20.1.11/24"},
	{"addresses, routes and dns",
		`{"ipam":{"type":"static","addresses":[{"address":"10.10.0.1/24","gateway":"10.10.0.254"},{"address":"3ffe:ffff:0:01ff::1/64","gateway":"3ffe:ffff:0::1"}],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"192.168.0.0/16","gw":"10.10.5.1","mtu":1400,"advmss":1360,"priority":5,"table":7,"scope":0},{"dst":"3ffe:ffff:0:01ff::1/64"}],
		"dns":{"nameservers":["8.8.8.8"],"domain":"example.com","search":["example.com"],"options":["ndots:2"]}}}`,
		"", "10.10.0.1/24 10.10.0.254 3ffe:ffff:0:1ff::1/64 3ffe:ffff::1"},
	{"several routes to one destination",
		`{"ipam":{"addresses":[{"address":"10.10.0.1/24"}],"routes":[{"dst":"10.2.0.0/16","gw":"10.10.0.2"},{"dst":"10.2.0.0/16","gw":"10.10.0.3"}]}}`,
		"", "10.10.0.1/24"},
	{"CNI_ARGS with gateways",
		`{"ipam":{"type":"static"}}`,
		"IgnoreUnknown=1;IP= 10.10.0.1/24 , 11.11.0.1/24,2001:db8::1/64;GATEWAY=10.10.0.254, 2001:db8::ff ,9.9.9.9", "10.10.0.1/24 10.10.0.254 11.11.0.1/24 2001:db8::1/64 2001:db8::ff"},
	{"CNI_ARGS add to addresses and GATEWAY leaves those alone",
		`{"ipam":{"addresses":[{"address":"10.10.0.5/24"}]}}`,
		"IP=10.10.0.1/24;GATEWAY=10.10.0.254", "10.10.0.5/24 10.10.0.1/24 10.10.0.254"},
	{"args.cni.ips replace addresses and CNI_ARGS",
		`{"args":{"cni":{"ips":["10.10.0.1/24"]}},"ipam":{"addresses":[{"address":"10.10.0.5/24","gateway":"10.10.0.254"}]}}`,
		"IP=10.11.0.1/24", "10.10.0.1/24"},
	{"runtimeConfig.ips replace everything",
		`{"runtimeConfig":{"ips":["10.10.0.2/24","2001:db8::2/64"]},"args":{"cni":{"ips":["10.10.0.1/24"]}},"ipam":{"addresses":[{"address":"nonsense"}]}}`,
		"IP=10.11.0.1/24", "10.10.0.2/24 2001:db8::2/64"},
	{"empty lists replace nothing",
		`{"runtimeConfig":{"ips":[]},"args":{"cni":{"ips":[]}},"ipam":{"addresses":[{"address":"10.0.0.1/8"}]}}`,
		"IP=", "10.0.0.1/8"},
	{"no address at all",
		`{"ipam":{"type":"static"}}`, "", ""},
	{"host, whole and mapped prefixes",
		`{"ipam":{"addresses":[{"address":"10.0.0.1/32"},{"address":"0.0.0.0/0"},{"address":"::1/128"},{"address":"::ffff:10.0.0.9/120","gateway":"::ffff:10.0.0.1"}]}}`,
		"", "10.0.0.1/32 0.0.0.0/0 ::1/128 10.0.0.9/24 10.0.0.1"},
}

// bad are requests that both refuse.
var bad = []struct{ name, conf, args string }{
	{"no ipam", `{}`, ""},
	{"address without length", `{"ipam":{"addresses":[{"address":"10.10.0.1"}]}}`, ""},
	{"empty address", `{"ipam":{"addresses":[{}]}}`, ""},
	{"null address", `{"ipam":{"addresses":[null]}}`, ""},
	{"malformed gateway", `{"ipam":{"addresses":[{"address":"10.10.0.1/24","gateway":"10.10.0"}]}}`, ""},
	{"malformed gateway of a replaced address", `{"runtimeConfig":{"ips":["10.0.0.1/8"]},"ipam":{"addresses":[{"address":"10.10.0.1/24","gateway":"x"}]}}`, ""},
	{"malformed octet", `{"ipam":{"addresses":[{"address":"10.10.0.256/24"}]}}`, ""},
	{"CNI_ARGS without length", `{"ipam":{}}`, "IP=10.0.0.1"},
	{"CNI_ARGS with an empty item", `{"ipam":{}}`, "IP=10.0.0.1/8,"},
	{"CNI_ARGS that others replace", `{"runtimeConfig":{"ips":["10.0.0.1/8"]},"ipam":{}}`, "IP=nonsense"},
	{"CNI_ARGS gateway", `{"ipam":{}}`, "IP=10.0.0.1/8;GATEWAY=10.0.0.1/8"},
	{"args without length", `{"args":{"cni":{"ips":["10.0.0.1"]}},"ipam":{}}`, ""},
	{"args that runtimeConfig replaces", `{"runtimeConfig":{"ips":["10.0.0.1/8"]},"args":{"cni":{"ips":["x"]}},"ipam":{}}`, ""},
	{"runtimeConfig null", `{"runtimeConfig":{"ips":[null]},"ipam":{}}`, ""},
	{"malformed route", `{"ipam":{"routes":[{"dst":"10.0.0.0"}]}}`, ""},
	{"addresses no list", `{"ipam":{"addresses":"10.0.0.1/8"}}`, ""},
	{"bad network name", `{"name":"a/b","ipam":{}}`, ""},
	{"unknown version", `{"cniVersion":"7.0.0","ipam":{}}`, ""},
	{"two addresses of a family in an old version", `{"cniVersion":"0.2.0","ipam":{"addresses":[{"address":"10.0.0.1/8"},{"address":"10.0.0.2/8"}]}}`, ""},
}

// complete gives conf a name and a version where it has none.
func complete(t rapid.TB, conf, version string) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(conf), &m); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"name": "vlan2001", "cniVersion": version, "type": "bridge"} {
		if _, ok := m[k]; !ok {
			m[k] = v
		}
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func add(conf []byte, args string) (types.Result, error) {
	return static.New().Add(context.Background(), ipam.Request{ContainerID: "c1", IfName: "net1", Args: args, Conf: conf})
}

func TestAdd(t *testing.T) {
	for _, v := range vectors {
		res, err := static.New().Add(t.Context(), ipam.Request{ContainerID: "c1", IfName: "net1", Args: v.args, Conf: complete(t, v.conf, "1.0.0")})
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		var got []string
		for _, ip := range res.IPs {
			got = append(got, ip.Address.String())
			if ip.Gateway != nil {
				got = append(got, ip.Gateway.String())
			}
			if ip.Interface != nil {
				t.Errorf("%s: an address delegate names interface %d", v.name, *ip.Interface)
			}
		}
		if s := strings.Join(got, " "); s != v.want {
			t.Errorf("%s: %s, want %s", v.name, s, v.want)
		}
	}
}

func TestAddRefuses(t *testing.T) {
	for _, v := range bad {
		_, err := add(complete(t, v.conf, "1.0.0"), v.args)
		var cniErr *types.Error
		if !errors.As(err, &cniErr) {
			t.Errorf("%s: %v, want an error with a CNI code", v.name, err)
		}
	}
	// What the reference lets through and no driver can use.
	for _, conf := range []string{`{"ipam":{"routes":[null]}}`, `{"ipam":{"routes":[{}]}}`, `{"ipam":{"addresses":[{"address":"::ffff:10.0.0.1/64"}]}}`} {
		if _, err := add(complete(t, conf, "1.0.0"), ""); err == nil {
			t.Errorf("%s is accepted", conf)
		}
	}
}

func TestUnknownArgsAreIgnoredWithoutBeingTold(t *testing.T) {
	if _, err := add(complete(t, `{"ipam":{}}`, "1.0.0"), "IP=10.0.0.1/8;MAC=02:00:00:00:00:01"); err != nil {
		t.Error(err)
	}
}

func TestDelSucceedsAlways(t *testing.T) {
	if err := static.New().Del(t.Context(), ipam.Request{}); err != nil {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	const prev = `"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/8","gateway":"10.0.0.254"},{"address":"2001:db8::1/64"}]}`
	for addresses, want := range map[string]string{
		`{"address":"10.0.0.1/8","gateway":"10.0.0.254"}`:       "",
		`{"address":"10.0.0.1/8"},{"address":"2001:db8::1/64"}`: "",
		`{"address":"10.0.0.1/8","gateway":"10.0.0.253"}`:       "gateway",
		`{"address":"2001:db8::1/64","gateway":"2001:db8::2"}`:  "gateway",
		`{"address":"10.0.0.2/8"}`:                              "10.0.0.2/8 of net1 is not in prevResult",
	} {
		conf := `{"ipam":{"addresses":[` + addresses + `]},` + prev + `}`
		err := static.New().Check(t.Context(), ipam.Request{ContainerID: "c1", IfName: "net1", Conf: complete(t, conf, "1.0.0")})
		if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) {
			t.Errorf("%s: %v, want %q", addresses, err, want)
		}
	}
	err := static.New().Check(t.Context(), ipam.Request{ContainerID: "c1", IfName: "net1", Conf: complete(t, `{"ipam":{}}`, "1.0.0")})
	if err == nil || !strings.Contains(err.Error(), "prevResult") {
		t.Errorf("without prevResult: %v", err)
	}
}

var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// compare asks Braid and the reference the same, and reports whether both
// refuse. Otherwise their results must be the same JSON.
func compare(t rapid.TB, dir, version, conf, args string) (refused bool, diff string) {
	t.Helper()
	full := complete(t, conf, version)
	out, refErr := refplugin.Run(context.Background(), dir, "static", refplugin.Call{Command: "ADD", ContainerID: "c1", IfName: "net1", Args: args, Conf: full})
	res, err := add(full, args)
	var ours []byte
	if err == nil {
		// A plugin's result leaves it in the configuration's version.
		if res, err = res.GetAsVersion(version); err == nil {
			ours, err = json.Marshal(res)
		}
	}
	if err != nil || refErr != nil {
		if (err == nil) != (refErr == nil) {
			return false, fmt.Sprintf("braid: %v\nreference: %v", err, refErr)
		}
		return true, ""
	}
	return false, cmp.Diff(decoded(t, out), decoded(t, ours))
}

func decoded(t rapid.TB, data []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

func TestSameAsReference(t *testing.T) {
	dir := refplugin.Dir(t, "static")
	for _, v := range vectors {
		for _, version := range versions {
			if _, diff := compare(t, dir, version, v.conf, ignoreUnknown(v.args)); diff != "" {
				t.Errorf("%s, cniVersion %s (-reference +braid):\n%s", v.name, version, diff)
			}
		}
	}
	for _, v := range bad {
		refused, diff := compare(t, dir, "1.0.0", v.conf, ignoreUnknown(v.args))
		if !refused {
			t.Errorf("%s: not refused by both: %s", v.name, diff)
		}
	}
}

// ignoreUnknown asks the reference for what Braid always does.
func ignoreUnknown(args string) string {
	if args == "" || strings.Contains(args, "IgnoreUnknown") {
		return args
	}
	return "IgnoreUnknown=1;" + args
}

func TestRandomRequestsSameAsReference(t *testing.T) {
	dir := refplugin.Dir(t, "static")
	good := rapid.SampledFrom([]string{"10.0.0.1/24", "10.0.0.7/24", "10.1.0.1/16", "192.0.2.1/32", "2001:db8::1/64", "2001:DB8:0::2/128", "::/0", "::ffff:10.0.0.5/126"})
	bad := rapid.SampledFrom([]string{"10.0.0.1", "fe80::1%eth0/64", "", "10.0.0.1/33", " 10.0.0.1/8"})
	address := rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 14).Draw(t, "kind") == 0 {
			return bad.Draw(t, "bad")
		}
		return good.Draw(t, "good")
	})
	gateway := rapid.SampledFrom([]string{"", "", "10.0.0.254", "10.1.255.254", "2001:db8::ffff", "10.0.0.1", "::ffff:10.0.0.9", "10.0.0.0.1"})
	addressList := rapid.SliceOfN(address, 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		type obj = map[string]any
		ipamConf := obj{"type": "static"}
		var addresses []obj
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			a := obj{"address": address.Draw(t, "address")}
			if gw := gateway.Draw(t, "gateway"); gw != "" {
				a["gateway"] = gw
			}
			addresses = append(addresses, a)
		}
		ipamConf["addresses"] = addresses
		conf := obj{"name": "n", "type": "bridge", "ipam": ipamConf}
		if rapid.IntRange(0, 3).Draw(t, "args") == 0 {
			conf["args"] = obj{"cni": obj{"ips": addressList.Draw(t, "args.ips")}}
		}
		if rapid.IntRange(0, 3).Draw(t, "runtimeConfig") == 0 {
			conf["runtimeConfig"] = obj{"ips": addressList.Draw(t, "runtimeConfig.ips")}
		}
		args := "IgnoreUnknown=1"
		if ips := addressList.Draw(t, "IP"); len(ips) > 0 {
			args += ";IP=" + strings.Join(ips, ",")
		}
		if gw := gateway.Draw(t, "GATEWAY"); gw != "" {
			args += ";GATEWAY=" + gw
		}
		data, err := json.Marshal(conf)
		if err != nil {
			t.Fatal(err)
		}
		version := rapid.SampledFrom(versions).Draw(t, "version")
		if _, diff := compare(t, dir, version, string(data), args); diff != "" {
			t.Fatalf("cniVersion %s, CNI_ARGS %s, %s (-reference +braid):\n%s", version, args, data, diff)
		}
	})
}

func FuzzAdd(f *testing.F) {
	for _, v := range vectors {
		f.Add(complete(f, v.conf, "1.0.0"), v.args)
	}
	for _, v := range bad {
		f.Add(complete(f, v.conf, "1.0.0"), v.args)
	}
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		res, err := static.New().Add(t.Context(), ipam.Request{ContainerID: "c1", IfName: "net1", Args: args, Conf: conf})
		if (res == nil) == (err == nil) {
			t.Fatalf("result %v and error %v", res, err)
		}
		if err != nil {
			return
		}
		// Every result must survive the way to the runtime and back.
		data, err := json.Marshal(res)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "nil>") {
			t.Fatalf("result with an address that is none: %s", data)
		}
	})
}
