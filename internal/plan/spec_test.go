package plan_test

// The tests TestSpecNN hold the numbered requirements of the NPWG multi-network
// specification 1.3 that are decided here; docs/multus.md lists them all.

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/plan"
)

// nads are the spec.config of NetworkAttachmentDefinitions, by name.
type nads map[string]string

// asking is a pod that asks for networks in a cluster with these definitions,
// whose names are namespace/name, or name in namespace default.
func asking(networks string, definitions nads) plan.Input {
	in := input(networks)
	in.Definition = func(namespace, name string) (plan.Definition, bool) {
		config, ok := definitions[namespace+"/"+name]
		if !ok && namespace == "default" {
			config, ok = definitions[name]
		}
		return plan.Definition{Namespace: namespace, Name: name, Config: config}, ok
	}
	return in
}

func built(t *testing.T, in plan.Input) []plan.Attachment {
	t.Helper()
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return p.Attachments
}

// refused requires that the whole pod is refused, for good, with a message that
// has want in it.
func refused(t *testing.T, in plan.Input, want string) {
	t.Helper()
	p, err := plan.Build(in)
	var e *plan.Error
	if !errors.As(err, &e) || e.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), want) || len(p.Attachments) != 0 {
		t.Errorf("%s: plan %v, error %v; want none and code 7 with %q", in.Pod.Annotations, p.Attachments, err, want)
	}
}

// names are the attachments behind the default network, as network@interface.
func names(list []plan.Attachment) string {
	var out []string
	for _, a := range list[1:] {
		out = append(out, a.Network+"@"+a.IfName)
	}
	return strings.Join(out, " ")
}

func TestSpec02NamesAreDNSLabelsJoinedByASlash(t *testing.T) {
	bridge := nads{"net-1": bridgeStatic, "other/net-1": bridgeStatic, "a.b": bridgeStatic}
	if have := names(built(t, asking("net-1, other/net-1", bridge))); have != "default/net-1@net1 other/net-1@net2" {
		t.Error(have)
	}
	for _, name := range []string{"Net", "-net", "net-", "net_1", "a/b/c", "../x", "net 1", "/x", "x/", strings.Repeat("x", 254)} {
		refused(t, asking(name, bridge), "element 1")
	}
}

func TestSpec03SpecConfigComesBeforeTheConfDir(t *testing.T) {
	in := asking("a,b", nads{"a": `{"type": "bridge"}`, "b": ""})
	onDisk := network(t, []byte(`{"name": "b", "type": "macvlan"}`), "")
	in.OnDisk = func(name string) (plan.Network, bool) {
		return onDisk, true // also for a, whose spec.config goes first
	}
	list := built(t, in)
	if have := list[1].Config.Plugins[0].Type + " " + list[2].Config.Plugins[0].Type; have != "bridge macvlan" {
		t.Errorf("a and b are made by %s", have)
	}
	in.OnDisk = func(string) (plan.Network, bool) { return plan.Network{}, false }
	if _, err := plan.Build(in); err == nil || !strings.Contains(err.Error(), `no spec.config, and the node's conf dir has no network named "b"`) {
		t.Errorf("without any configuration: %v", err)
	}
}

func TestSpec04ConfigWithoutANameGetsThatOfTheDefinition(t *testing.T) {
	list := built(t, asking("a,b", nads{"a": `{"type": "bridge"}`, "b": `{"plugins": [{"type": "bridge"}]}`}))
	for i, want := range []string{"a", "b"} {
		if have := list[i+1].Config.Name; have != want {
			t.Errorf("CNI name %q, want %q", have, want)
		}
	}
}

func TestSpec05TheNameInTheConfigMayBeAnother(t *testing.T) {
	a := built(t, asking("a", nads{"a": `{"name": "lab", "type": "bridge"}`}))[1]
	if a.Network != "default/a" || a.Config.Name != "lab" {
		t.Errorf("network %s, CNI name %s", a.Network, a.Config.Name)
	}
}

// TestSpec06: the requirement is one for plugins. What Braid owes them is that
// spec.config arrives as it was written, and nothing of Braid's is in it.
func TestSpec06ConfigurationsPassAsTheyWereWritten(t *testing.T) {
	const config = `{ "type": "vendor", "vendor.example/x": {"y": [1.10, null]}, "runtimeConfig": {"own": 1} }`
	a := built(t, asking(`[{"name": "a", "interface": "x0"}]`, nads{"a": config}))[1]
	if have := string(a.Config.Plugins[0].Conf); have != config {
		t.Errorf("have %s\nwant %s", have, config)
	}
}

func TestSpec07BothFormsOfTheAnnotation(t *testing.T) {
	definitions := nads{"net1": bridgeStatic, "net2": bridgeStatic, "other-ns/net3": bridgeStatic}
	const want = "default/net1@net1 default/net2@net2 other-ns/net3@x3"
	for _, annotation := range []string{
		"net1,net2,other-ns/net3@x3",
		`[{"name": "net1"}, {"name": "net2", "namespace": "default"}, {"name": "net3", "namespace": "other-ns", "interface": "x3"}]`,
	} {
		if have := names(built(t, asking(annotation, definitions))); have != want {
			t.Errorf("%s: have %s, want %s", annotation, have, want)
		}
	}
}

func TestSpec08ShortForm(t *testing.T) {
	definitions := nads{"a": bridgeStatic, "other/a": bridgeStatic}
	for annotation, want := range map[string]string{
		"a":                     "default/a@net1",
		"other/a":               "other/a@net1",
		" a ,\n other/a ":       "default/a@net1 other/a@net2",
		"a@x0, other / a @ x.1": "default/a@x0 other/a@x.1", // Multus' extension
	} {
		if have := names(built(t, asking(annotation, definitions))); have != want {
			t.Errorf("%q: have %s, want %s", annotation, have, want)
		}
	}
}

func TestSpec09KeysWithoutAPeriodAreReserved(t *testing.T) {
	definitions := nads{"a": bridgeStatic}
	built(t, asking(`[{"name": "a", "vendor.example/anything": {"at": "all"}, "x.y": null}]`, definitions))
	refused(t, asking(`[{"name": "a", "colour": "red"}]`, definitions), `key "colour": unknown`)
	refused(t, asking(`[{"name": "a", "Interface": "x"}]`, definitions), `did you mean "interface"?`)
}

func TestSpec10NameIsRequiredAndNamespaceIsThePods(t *testing.T) {
	in := asking(`[{"name": "a"}]`, nads{"blue/a": bridgeStatic})
	in.Pod.Namespace = "blue"
	if have := names(built(t, in)); have != "blue/a@net1" {
		t.Error(have)
	}
	for _, annotation := range []string{"[{}]", `[{"name": ""}]`, `[{"name": null}]`, `[{"namespace": "blue"}]`, "[null]", "a,", "blue/"} {
		refused(t, asking(annotation, nads{"a": bridgeStatic}), "annotation k8s.v1.cni.cncf.io/networks: element ")
	}
}

const capableOf = `{"type": "vendor", "capabilities": {%q: true}}`

func TestSpec11IPsAreValidAndNotEmpty(t *testing.T) {
	definitions := nads{"a": fmt.Sprintf(capableOf, "ips")}
	list := built(t, asking(`[{"name": "a", "ips": ["10.1.1.1/24", "10.1.1.2", "2001:db8::1/64", "2001:db8::2"]}]`, definitions))
	if have := strings.Join(list[1].IPs, " "); have != "10.1.1.1/24 10.1.1.2 2001:db8::1/64 2001:db8::2" {
		t.Error(have)
	}
	for _, ips := range []string{`[]`, `["10.0.0.256"]`, `["10.0.0.1/33"]`, `["x"]`, `[""]`, `[null]`, `"10.0.0.1"`, `["2001:db8::1/129"]`} {
		refused(t, asking(`[{"name": "a", "ips": `+ips+`}]`, definitions), "ips: ")
	}
}

// passes requires that a request becomes an argument of the runtime where the
// capability is declared, and is refused where it is not.
func passes(t *testing.T, key, value, capability, want string) {
	t.Helper()
	annotation := fmt.Sprintf(`[{"name": "a", %q: %s}]`, key, value)
	for _, config := range []string{
		fmt.Sprintf(capableOf, capability),
		`{"plugins": [{"type": "first"}, ` + fmt.Sprintf(capableOf, capability) + `]}`,
	} {
		a := built(t, asking(annotation, nads{"a": config}))[1]
		if have := string(a.RuntimeConfig[capability]); have != want || len(a.RuntimeConfig) != 1 {
			t.Errorf("%s: runtimeConfig %s, want %s: %s", annotation, a.RuntimeConfig, capability, want)
		}
	}
	for _, config := range []string{
		`{"type": "vendor"}`,
		`{"type": "vendor", "capabilities": {"other": true}}`,
		`{"type": "vendor", "capabilities": {"` + capability + `": false}}`,
	} {
		refused(t, asking(annotation, nads{"a": config}), key+": no plugin of the network declares the capability")
	}
}

func TestSpec12IPsNeedTheCapability(t *testing.T) {
	passes(t, "ips", `["10.1.1.1/24"]`, "ips", `["10.1.1.1/24"]`)
	// The deliberate exception: delegates that are known to read CNI_ARGS.
	a := built(t, asking(`[{"name": "a", "ips": ["10.1.1.1/24"]}]`, nads{"a": bridgeStatic}))[1]
	if a.CNIArgs != "IP=10.1.1.1/24" || len(a.RuntimeConfig) != 0 {
		t.Errorf("CNI_ARGS %q, runtimeConfig %s", a.CNIArgs, a.RuntimeConfig)
	}
}

func TestSpec13MACHasSixBytesAndNeedsTheCapability(t *testing.T) {
	passes(t, "mac", `"02:00:00:00:00:0A"`, "mac", `"02:00:00:00:00:0a"`)
	a := built(t, asking(`[{"name": "a", "mac": "02:00:00:00:00:01"}]`, nads{"a": bridgeStatic}))[1]
	if a.CNIArgs != "MAC=02:00:00:00:00:01" {
		t.Errorf("CNI_ARGS %q", a.CNIArgs)
	}
	for _, mac := range []string{`"02:00:00:00:00"`, `"02:00:00:00:00:00:00:01"`, `"x"`, `7`} {
		refused(t, asking(`[{"name": "a", "mac": `+mac+`}]`, nads{"a": fmt.Sprintf(capableOf, "mac")}), "mac: ")
	}
}

func TestSpec14InterfaceIsALinuxNameThatNobodyHas(t *testing.T) {
	definitions := nads{"a": bridgeStatic}
	if have := names(built(t, asking(`[{"name": "a", "interface": "My_If.100"}, {"name": "a"}]`, definitions))); have != "default/a@My_If.100 default/a@net2" {
		t.Error(have)
	}
	for _, name := range []string{"sixteen-bytes-16", "a b", "a/b", "..", "a:1", "lo"} {
		refused(t, asking(`[{"name": "a", "interface": "`+name+`"}]`, definitions), "interface: ")
	}
	for annotation, owner := range map[string]string{
		"a@eth0":    "the default network",
		"a@x,a@x":   "element 1",
		"a@net2, a": "element 1",
		"a, a@net1": "element 1",
	} {
		refused(t, asking(annotation, definitions), "already belongs to "+owner)
	}
}

func TestSpec15CNIArgsGoBeforeThoseOfTheDefinition(t *testing.T) {
	config := `{"plugins": [{"type": "a", "args": {"other": 1, "cni": {"kept": 1, "changed": 1}}}, {"type": "b"}]}`
	list := built(t, asking(`[{"name": "a", "cni-args": {"changed": {"deep": [2]}, "new": 2.50}}]`, nads{"a": config}))
	for i, want := range []string{`{"other": 1, "cni": {"kept": 1, "changed": {"deep": [2]},"new":2.50}}`, `{"cni":{"changed":{"deep": [2]},"new":2.50}}`} {
		var conf struct{ Args json.RawMessage }
		if err := json.Unmarshal(list[1].Config.Plugins[i].Conf, &conf); err != nil || string(conf.Args) != want {
			t.Errorf("plugin %d: args %s, want %s (%v)", i+1, conf.Args, want, err)
		}
	}
	refused(t, asking(`[{"name": "a", "cni-args": {"x": 1}}]`, nads{"a": `{"type": "a", "args": "text"}`}), "args: want an object")
}

func TestSpec16PortMappingsAreValidAndNeedTheCapability(t *testing.T) {
	passes(t, "portMappings", `[{"hostPort": 8080, "containerPort": 80}, {"hostPort": 53, "containerPort": 53, "protocol": "Udp"}, {"hostPort": 1, "containerPort": 65535, "protocol": "SCTP", "hostIP": "10.0.0.1"}]`,
		"portMappings", `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp"},{"hostPort":1,"containerPort":65535,"protocol":"sctp","hostIP":"10.0.0.1"}]`)
	for _, mapping := range []string{`{"hostPort": 80}`, `{"containerPort": 80}`, `{"hostPort": 0, "containerPort": 80}`, `{"hostPort": 80, "containerPort": 65536}`, `{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}`} {
		refused(t, asking(`[{"name": "a", "portMappings": [`+mapping+`]}]`, nads{"a": fmt.Sprintf(capableOf, "portMappings")}), "portMappings: element 1")
	}
}

func TestSpec17BandwidthIsValidAndNeedsTheCapability(t *testing.T) {
	passes(t, "bandwidth", `{"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096}`, "bandwidth",
		`{"ingressRate":2048,"ingressBurst":1600,"egressRate":4096,"egressBurst":2147483647}`)
	for _, b := range []string{`{}`, `{"ingressRate": 0}`, `{"ingressRate": -1}`, `{"egressRate": 0.5}`, `{"ingressBurst": 5}`, `{"egressRate": 5, "ingressBurst": 5}`} {
		refused(t, asking(`[{"name": "a", "bandwidth": `+b+`}]`, nads{"a": fmt.Sprintf(capableOf, "bandwidth")}), "bandwidth: ")
	}
}

func TestSpec18OneNetworkMayHaveTheDefaultRoute(t *testing.T) {
	definitions := nads{"a": bridgeStatic}
	owner := func(annotation string) string {
		var out []string
		for _, a := range built(t, asking(annotation, definitions)) {
			if a.DefaultRoute {
				out = append(out, a.IfName)
			}
		}
		return strings.Join(out, " ")
	}
	for annotation, want := range map[string]string{
		`[{"name": "a"}]`:                                                        "eth0",
		`[{"name": "a", "default-route": null}]`:                                 "eth0",
		`[{"name": "a", "default-route": []}]`:                                   "net1",
		`[{"name": "a"}, {"name": "a", "default-route": ["10.0.0.1"]}]`:          "net2",
		`[{"name": "a", "default-route": ["fd00::1", "10.0.0.1"]}]`:              "net1",
		`[{"name": "a", "ips": ["10.0.0.2/24"], "default-route": ["10.0.0.1"]}]`: "net1",
	} {
		if have := owner(annotation); have != want {
			t.Errorf("%s: the default route leads through %s, want %s", annotation, have, want)
		}
	}
	refused(t, asking(`[{"name": "a", "default-route": ["10.0.0.1"]}, {"name": "a", "default-route": ["fd00::1"]}]`, definitions), "a pod can ask for it on one network")
	refused(t, asking(`[{"name": "a", "default-route": "10.0.0.1"}]`, definitions), "want a list")
	refused(t, asking(`[{"name": "a", "default-route": ["x"]}]`, definitions), "no IP address")
}

func TestSpec19InfinibandGUIDHasEightBytesAndNeedsTheCapability(t *testing.T) {
	passes(t, "infiniband-guid", `"c2:b0:57:49:47:f1:00:06"`, "infinibandGUID", `"c2:b0:57:49:47:f1:00:06"`)
	for _, guid := range []string{`"c2:b0:57:49:47:f1"`, `"x"`, `"00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"`} {
		refused(t, asking(`[{"name": "a", "infiniband-guid": `+guid+`}]`, nads{"a": fmt.Sprintf(capableOf, "infinibandGUID")}), "infiniband-guid: ")
	}
}

func TestSpec20AClaimIsForThoseWhoKnowIt(t *testing.T) {
	a := built(t, asking(`[{"name": "a", "ipam-claim-reference": "vm1.lab.net1"}]`, nads{"a": bridgeStatic}))[1]
	if a.IPAMClaim != "vm1.lab.net1" {
		t.Errorf("the claim is recorded as %q", a.IPAMClaim)
	}
	// A plugin that does not know of claims is called as without one.
	if have := string(a.Config.Plugins[0].Conf); have != bridgeStatic || a.CNIArgs != "" || len(a.RuntimeConfig) != 0 {
		t.Errorf("conf %s, CNI_ARGS %q, runtimeConfig %s", have, a.CNIArgs, a.RuntimeConfig)
	}
	refused(t, asking(`[{"name": "a", "ipam-claim-reference": "c", "ips": ["10.0.0.1"]}]`, nads{"a": bridgeStatic}), "exclude each other")
}

func TestSpec21TheSameNetworkTwiceIsTwoAttachments(t *testing.T) {
	list := built(t, asking("a,a", nads{"a": bridgeStatic}))
	if have := names(list); have != "default/a@net1 default/a@net2" {
		t.Error(have)
	}
}

func TestSpec22GeneratedInterfaceNamesAreUnique(t *testing.T) {
	list := built(t, asking("a, a@x0, a, a", nads{"a": bridgeStatic}))
	if have := names(list); have != "default/a@net1 default/a@x0 default/a@net3 default/a@net4" {
		t.Error(have)
	}
	if again := names(built(t, asking("a, a@x0, a, a", nads{"a": bridgeStatic}))); again != names(list) {
		t.Errorf("another time %s", again)
	}
}

func TestSpec33TheDefaultNetworkIsFirstAndEverybodys(t *testing.T) {
	for _, annotation := range []string{"", "[]", "a", "a,a"} {
		list := built(t, asking(annotation, nads{"a": bridgeStatic}))
		if first := list[0]; !first.Default || first.IfName != "eth0" || first.Network != "pods" {
			t.Errorf("%q: first is %+v", annotation, first)
		}
		if slices.ContainsFunc(list[1:], func(a plan.Attachment) bool { return a.Default }) {
			t.Errorf("%q: a second default network", annotation)
		}
	}
}

func TestSpec40AForeignNamespaceIsRefusedWherePodsAreIsolated(t *testing.T) {
	definitions := nads{"a": bridgeStatic, "red/a": bridgeStatic, "shared/a": bridgeStatic, "kube-system/a": bridgeStatic}
	isolated := func(networks, defaultNetwork string) plan.Input {
		in := asking(networks, definitions)
		in.Isolation = plan.Isolation{On: true, Global: []string{"shared"}}
		in.Pod.Annotations[plan.DefaultNetworkAnnotation] = defaultNetwork
		return in
	}
	built(t, isolated("a, shared/a", "shared/a"))
	refused(t, isolated("red/a", ""), `may not use the networks of namespace "red"`)
	refused(t, isolated("", "red/a"), `may not use the networks of namespace "red"`)
	refused(t, isolated("", "a"), `may not use the networks of namespace "kube-system"`)
	in := isolated("red/a", "red/a")
	in.Isolation.On = false
	built(t, in)
}

func TestSpec40HotPlugIsIsolatedToo(t *testing.T) {
	in := asking("", nads{"red/a": bridgeStatic})
	has := built(t, in)
	in.Isolation = plan.Isolation{On: true}
	in.Pod.Annotations[plan.NetworksAnnotation] = "red/a"
	if c, err := plan.ChangeOf(in, has); err == nil || !strings.Contains(err.Error(), "namespaceIsolation") || len(c.Add) != 0 {
		t.Errorf("change %+v, %v", c, err)
	}
}

func TestSpec41RuntimeConfigReachesTheDefaultNetworkOnly(t *testing.T) {
	in := asking("a", nads{"a": `{"type": "bridge", "capabilities": {"portMappings": true, "bandwidth": true}}`})
	in.RuntimeConfig = map[string]json.RawMessage{
		"portMappings": json.RawMessage(`[{"hostPort":80,"containerPort":80}]`), "bandwidth": json.RawMessage(`{"ingressRate":1}`),
	}
	list := built(t, in)
	if !maps.EqualFunc(list[0].RuntimeConfig, in.RuntimeConfig, func(a, b json.RawMessage) bool { return string(a) == string(b) }) {
		t.Errorf("default network: %s", list[0].RuntimeConfig)
	}
	if len(list[1].RuntimeConfig) != 0 {
		t.Errorf("net1: %s", list[1].RuntimeConfig)
	}
}

// TestSpec47AClaimMayHaveAnyName: the specification recommends owner, network
// and interface, with periods between them.
func TestSpec47AClaimMayHaveAnyName(t *testing.T) {
	for _, name := range []string{"c", "vm1.net.net1", "0-0"} {
		if a := built(t, asking(`[{"name": "a", "ipam-claim-reference": "`+name+`"}]`, nads{"a": bridgeStatic}))[1]; a.IPAMClaim != name {
			t.Errorf("claim %q became %q", name, a.IPAMClaim)
		}
	}
	refused(t, asking(`[{"name": "a", "ipam-claim-reference": "../c"}]`, nads{"a": bridgeStatic}), "is no name of an IPAMClaim")
}
