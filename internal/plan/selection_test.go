package plan_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
)

type annotationCase struct {
	annotation string
	// want is the selections in Go's notation, or a part of the error.
	want string
}

var goodAnnotations = []annotationCase{
	{"", ""},
	{"[]", ""},
	{"net1", "{Name: net1}"},
	{"default/net1", "{Namespace: default, Name: net1}"},
	{"net1@my_interface", "{Name: net1, IfName: my_interface}"},
	{"default/net1@my_interface", "{Namespace: default, Name: net1, IfName: my_interface}"},
	{"net1@eth0.100", "{Name: net1, IfName: eth0.100}"},
	{"net1,net2 , other-ns/net3", "{Name: net1} {Name: net2} {Namespace: other-ns, Name: net3}"},
	{"\n  net1,\n  other / net2 @ if2\n", "{Name: net1} {Namespace: other, Name: net2, IfName: if2}"},
	{"net1@exactly15bytes1", "{Name: net1, IfName: exactly15bytes1}"},
	{`[{"name": "a"}, {"name": "a"}]`, "{Name: a} {Name: a}"},
	{`[{"name": "dotted.name", "namespace": "other", "interface": "My_If"}]`, "{Namespace: other, Name: dotted.name, IfName: My_If}"},
	{`[{"name": "a", "interfaceRequest": "x0"}]`, "{Name: a, IfName: x0}"},
	{`[{"name": "a", "interface": "x0", "interfaceRequest": "x0"}]`, "{Name: a, IfName: x0}"},
	{`[{"name": "a", "namespace": "", "interface": "", "mac": "", "ips": null, "default-route": null, "deviceID": ""}]`, "{Name: a}"},
	{`[{"name": "a", "example.com/colour": {"any": ["thing"]}}]`, "{Name: a}"},
	{`[{"name": "a", "ips": ["10.20.1.11/24"]}]`, "{Name: a, IPs: [10.20.1.11/24]}"},
	{`[{"name": "a", "ips": ["10.20.1.11", "2001:DB8:0::5/64"]}]`, "{Name: a, IPs: [10.20.1.11 2001:db8::5/64]}"},
	{`[{"name": "a", "mac": "02-00-00-00-00-AB"}]`, "{Name: a, MAC: 02:00:00:00:00:ab}"},
	{`[{"name": "a", "infiniband-guid": "c2:b0:57:49:47:f1:00:06"}]`, "{Name: a, InfinibandGUID: c2:b0:57:49:47:f1:00:06}"},
	{`[{"name": "a", "cni-args": {"x": 1.000, "y": {"z": null}}}]`, `{Name: a, CNIArgs: {"x":1.000,"y":{"z":null}}}`},
	{`[{"name": "a", "cni-args": {}}]`, "{Name: a}"},
	{`[{"name": "a", "default-route": []}]`, "{Name: a, DefaultRoute: {}}"},
	{`[{"name": "a", "default-route": ["10.0.0.1", "fd00::1"]}]`, `{Name: a, DefaultRoute: {"gateways":["10.0.0.1","fd00::1"]}}`},
	{`[{"name": "a", "ipam-claim-reference": "vm1.randomnet"}]`, "{Name: a, IPAMClaim: vm1.randomnet}"},
	{`[{"name": "a", "ipam-claim-reference": "", "ips": ["10.0.0.1"]}]`, "{Name: a, IPs: [10.0.0.1]}"},
	{`[{"name": "a", "deviceID": "0000:03:02.3"}]`, "{Name: a, DeviceID: 0000:03:02.3}"},
	{`[{"name": "a", "portMappings": [{"hostPort": 8080, "containerPort": 80}]}]`,
		`{Name: a, PortMappings: [{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`},
	{`[{"name": "a", "portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "10.0.0.1"}, {"hostPort": 53, "containerPort": 53, "protocol": "Tcp"}]}]`,
		`{Name: a, PortMappings: [{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"10.0.0.1"},{"hostPort":53,"containerPort":53,"protocol":"tcp"}]}`},
	{`[{"name": "a", "bandwidth": {"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096}}]`,
		`{Name: a, Bandwidth: {"ingressRate":2048,"ingressBurst":1600,"egressRate":4096,"egressBurst":2147483647}}`},
}

var badAnnotations = []annotationCase{
	{" ", "nothing but white space"},
	{"sec,", "element 2: empty"},
	{",sec", "element 1: empty"},
	{"a,,b", "element 2: empty"},
	{"[null]", "element 1: want an object { }, have null"},
	{"{}", "want a list [ ], have an object"},
	{`{"name": "a"}`, "want a list [ ], have an object"},
	{"[{}]", "element 1: name: missing"},
	{`[{"name": ""}]`, "element 1: name: the name of the network is missing"},
	{`[{"name": null}]`, "element 1: name: missing"},
	{`[{"name": 7}]`, "element 1: name: want a string, have a number"},
	{`[{"name": "a/b"}]`, `element 1: name: "a/b" is no name of a network`},
	{`[{"name": "A"}]`, `"A" is no name of a network`},
	{`[{"name": "../etc"}]`, "is no name of a network"},
	{`"net1"`, "want a list [ ], have a string"},
	{"[", "broken JSON at 1:2"},
	{"[\n {\"name\": \"a\",}]", "broken JSON at 2:15"},
	{`[{"name": "a"}] x`, "broken JSON at 1:17"},
	{"[7]", "element 1: want an object { }, have a number"},
	{"root@someIP/root@someOtherIP/root@thirdIP", "element 1"},
	{"root@someIP/root@someOtherIP@garbagevalue", "element 1"},
	{"root@someIP/root@someOtherIP", "element 1"},
	{"default/net1@myIfc Name", "element 1"},
	{"default/net1@very_long_interface_name", "has 24 bytes; Linux allows 15"},
	{"net1@sixteen-bytes-16", "Linux allows 15"},
	{"a/b/c", "is no name of a network"},
	{"/net1", "is no name of a namespace"},
	{"ns/", "name of the network is missing"},
	{"@if0", "name of the network is missing"},
	{"net1@", "interface name is empty"},
	{"net1@.", "is reserved"},
	{"net1@..", "is reserved"},
	{"net1@lo", "is reserved"},
	{"net1@all", "is reserved"},
	{"net1@net%d", "not allowed"},
	{"net1@a:1", "not allowed"},
	{`[{"name": "a", "interface": "a/b"}]`, "element 1: interface: "},
	{`[{"name": "a", "interface": "a\tb"}]`, "not allowed"},
	{`[{"name": "a", "interface": "a\u0000b"}]`, "not allowed"},
	{`[{"name": "a", "interface": "x0", "interfaceRequest": "x1"}]`, `interfaceRequest: "x1", but also "x0"`},
	{`[{"name": "a", "namespace": "Other"}]`, "is no name of a namespace"},
	{`[{"name": "a"}, {"name": "b", "ips": []}]`, "element 2: ips: the list is empty"},
	{`[{"name": "a", "ips": "10.0.0.1"}]`, "ips: want a list [ ], have a string"},
	{`[{"name": "a", "ips": ["10.0.0.1", "10.0.0.300"]}]`, `ips: element 2, "10.0.0.300": no IP address`},
	{`[{"name": "a", "ips": ["10.0.0.1/33"]}]`, `ips: element 1, "10.0.0.1/33": no address with prefix length`},
	{`[{"name": "a", "ips": ["010.0.0.1"]}]`, "no IP address"},
	{`[{"name": "a", "ips": [7]}]`, "ips: element 1: want a string, have a number"},
	{`[{"name": "a", "ips": ["10.0.0.1/24", "10.0.0.1/16"]}]`, "asked for twice"},
	{`[{"name": "a", "ips": ["::ffff:10.0.0.1"]}]`, "write 10.0.0.1"},
	{`[{"name": "a", "ips": ["fe80::1%eth0"]}]`, "zone"},
	{`[{"name": "a", "ips": ["0.0.0.0/0"]}]`, "no address of a pod"},
	{`[{"name": "a", "ips": ["127.0.0.1"]}]`, "no address of a pod"},
	{`[{"name": "a", "ips": ["ff02::1"]}]`, "no address of a pod"},
	{`[{"name": "a", "mac": "02:00:00:00:00"}]`, "no address of 6 bytes"},
	{`[{"name": "a", "mac": "c2:b0:57:49:47:f1:00:06"}]`, "no address of 6 bytes"},
	{`[{"name": "a", "infiniband-guid": "02:00:00:00:00:01"}]`, "no address of 8 bytes"},
	{`[{"name": "a", "cni-args": ["x"]}]`, "cni-args: want an object { }, have a list"},
	{`[{"name": "a", "default-route": "10.0.0.1"}]`, "default-route: want a list [ ], have a string"},
	{`[{"name": "a", "default-route": [7]}]`, "default-route: element 1: want a string, have a number"},
	{`[{"name": "a", "default-route": ["gw"]}]`, `default-route: element 1, "gw": no IP address`},
	{`[{"name": "a", "default-route": ["10.0.0.1/24"]}]`, "a gateway has no prefix length"},
	{`[{"name": "a", "default-route": ["10.0.0.1", "fd00::1", "10.0.0.2"]}]`, "element 3, \"10.0.0.2\": a second gateway of the same family"},
	{`[{"name": "a", "default-route": ["0.0.0.0"]}]`, "no address of a pod"},
	{`[{"name": "a", "ipam-claim-reference": "c", "ips": ["10.0.0.1"]}]`, "element 1: ipam-claim-reference and ips exclude each other"},
	{`[{"name": "a", "ipam-claim-reference": "My_Claim"}]`, `ipam-claim-reference: "My_Claim" is no name of an IPAMClaim`},
	{`[{"name": "a", "ipam-claim-reference": ["c"]}]`, "ipam-claim-reference: want a string, have a list"},
	{`[{"name": "a", "deviceID": "0000:03:02.3\n"}]`, "is no name of a device"},
	{`[{"name": "a", "deviceID": 3}]`, "deviceID: want a string, have a number"},
	{`[{"name": "a", "IPs": ["10.0.0.1"]}]`, `key "IPs": unknown (did you mean "ips"?)`},
	{`[{"name": "a", "colour": "red"}]`, `key "colour": unknown;`},
	{`[{"name": "a", "name": "b"}]`, "name: written twice"},
	{`[{"name": "a", "portMappings": [{"containerPort": 80}]}]`, "portMappings: element 1: hostPort 0: not in 1–65535"},
	{`[{"name": "a", "portMappings": [{"hostPort": 80, "containerPort": 65536}]}]`, "containerPort 65536"},
	{`[{"name": "a", "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}]`, `protocol "icmp"`},
	{`[{"name": "a", "portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "x"}]}]`, `hostIP "x"`},
	{`[{"name": "a", "portMappings": [{"hostPort": 80, "containerPort": 80}, {"hostPort": 80, "containerPort": 81}]}]`, "element 2: hostPort 80/tcp is mapped twice"},
	{`[{"name": "a", "portMappings": [{"hostPort": "80", "containerPort": 80}]}]`, "portMappings: element 1: want numbers"},
	{`[{"name": "a", "portMappings": [{"hostPort": 80, "containerPort": 80, "hostip": "10.0.0.1", "port": 1}]}]`, `unknown field "port"`},
	{`[{"name": "a", "portMappings": [null]}]`, "have null"},
	{`[{"name": "a", "bandwidth": {}}]`, "bandwidth: no rate is given"},
	{`[{"name": "a", "bandwidth": {"ingressBurst": 1}}]`, "ingressBurst needs ingressRate"},
	{`[{"name": "a", "bandwidth": {"egressRate": -1}}]`, "below zero"},
	{`[{"name": "a", "bandwidth": {"egressRate": 0.5}}]`, "want whole numbers"},
	{strings.Repeat("a,", 300) + "a", "301 elements are too many; 256 are allowed"},
	{strings.Repeat("x", 1<<20), "1048576 bytes are too long"},
	{strings.Repeat("[", 100_000), "nested more than 64 levels deep"},
	{`[{"name": "a", "cni-args": {"x": ` + strings.Repeat(`{"a":`, 63) + "1" + strings.Repeat("}", 63) + `}}]`, "nested more than 64 levels deep"},
	{`[{"name": "a", "ips": [` + strings.Repeat(`"10.0.0.1",`, 64) + `"10.0.0.2"]}]`, "ips: 65 elements are too many; 64 are allowed"},
	{`[{"name": "a", "cni-args": {"x": "` + strings.Repeat("x", 32<<10) + `"}}]`, "cni-args: 32777 bytes are too long; 32768 are allowed"},
	{`[{"name": "a", "x": "` + strings.Repeat("x", 256<<10) + `"}]`, "bytes are too long; 262144 are allowed"},
}

func TestParseNetworks(t *testing.T) {
	for _, c := range goodAnnotations {
		have, err := plan.ParseNetworks(c.annotation)
		if err != nil {
			t.Errorf("%q: %v", c.annotation, err)
			continue
		}
		if diff := cmp.Diff(c.want, selectionsText(t, have)); diff != "" {
			t.Errorf("%q (-want +have):\n%s", c.annotation, diff)
		}
	}
}

func TestParseNetworksRefuses(t *testing.T) {
	for _, c := range badAnnotations {
		shown := c.annotation[:min(len(c.annotation), 100)]
		have, err := plan.ParseNetworks(c.annotation)
		if err == nil {
			t.Errorf("%q: accepted as %v", shown, have)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\nhave error %q\nwant       %q", shown, err, c.want)
		}
		if len(err.Error()) > 400 {
			t.Errorf("%q: an error of %d bytes floods the event", shown, len(err.Error()))
		}
	}
}

func selectionsText(t *testing.T, list []plan.Selection) string {
	t.Helper()
	js := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var out []string
	for _, s := range list {
		var f []string
		for _, kv := range []struct {
			key, value string
			set        bool
		}{
			{"Namespace", s.Namespace, s.Namespace != ""},
			{"Name", s.Name, s.Name != ""},
			{"IfName", s.IfName, s.IfName != ""},
			{"IPs", fmt.Sprint(s.IPs), len(s.IPs) > 0},
			{"MAC", s.MAC, s.MAC != ""},
			{"InfinibandGUID", s.InfinibandGUID, s.InfinibandGUID != ""},
			{"CNIArgs", js(s.CNIArgs), len(s.CNIArgs) > 0},
			{"PortMappings", js(s.PortMappings), len(s.PortMappings) > 0},
			{"Bandwidth", js(s.Bandwidth), s.Bandwidth != nil},
			{"DeviceID", s.DeviceID, s.DeviceID != ""},
			{"IPAMClaim", s.IPAMClaim, s.IPAMClaim != ""},
			{"DefaultRoute", js(s.DefaultRoute), s.DefaultRoute != nil},
		} {
			if kv.set {
				f = append(f, kv.key+": "+kv.value)
			}
		}
		out = append(out, "{"+strings.Join(f, ", ")+"}")
	}
	return strings.Join(out, " ")
}

// maxSeed keeps long inputs out of fuzzing, which spends its time on shortening
// them. They have tests of their own.
const maxSeed = 1 << 10

func annotationSeeds() []string {
	var seeds []string
	for _, c := range append(slices.Clone(goodAnnotations), badAnnotations...) {
		if len(c.annotation) <= maxSeed {
			seeds = append(seeds, c.annotation)
		}
	}
	return seeds
}

func FuzzParseNetworks(f *testing.F) {
	for _, annotation := range annotationSeeds() {
		f.Add(annotation)
	}
	f.Fuzz(func(t *testing.T, annotation string) {
		list, err := plan.ParseNetworks(annotation)
		if err != nil && list != nil {
			t.Fatal("an error and selections")
		}
		for _, s := range list {
			if s.Name == "" || len(s.IfName) > 15 || strings.ContainsAny(s.IfName, "/ \t\n") {
				t.Fatalf("%q gave %+v", annotation, s)
			}
		}
	})
}
