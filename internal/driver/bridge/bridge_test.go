package bridge_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

// scenario is a configuration and, for the golden and the differential tests,
// all that is needed to run it.
type scenario struct {
	name string
	keys string // of the configuration
	ipam string
	vlan bool // needs bridge VLAN filtering
	// prepare makes the node's bridge beforehand.
	prepare func(t testing.TB, h *rtnl.Handle)
	// differs says why the reference plugin builds something else.
	differs string
	// otherTables: has routes in other tables than the main one, where the
	// reference plugin's CHECK does not find even its own. The same CHECK
	// fails without ipam, because it asks the plugin named "" then.
	otherTables bool
}

const (
	oneIPv4  = `{"type":"static","addresses":[{"address":"10.1.0.5/24"}]}`
	withGW   = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.254"}],"routes":[{"dst":"10.99.0.0/16"},{"dst":"10.98.0.0/16","gw":"10.1.0.77","priority":7}]}`
	dual     = `{"type":"static","addresses":[{"address":"10.1.0.5/24"},{"address":"fd00:1::5/64"}],"dns":{"nameservers":["10.1.0.53"],"domain":"ipam.test"}}`
	tableFor = `{"type":"static","addresses":[{"address":"10.1.0.5/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1","table":100},{"dst":"10.97.0.0/16","scope":253,"table":100}]}`
)

var scenarios = []scenario{
	{name: "l2only", keys: `"bridge":"braidbr0"`},
	{name: "default-name", keys: `"isGateway":false`, ipam: oneIPv4},
	{name: "address", keys: `"bridge":"braidbr0"`, ipam: oneIPv4},
	{name: "routes", keys: `"bridge":"braidbr0"`, ipam: withGW},
	{name: "route-tables", keys: `"bridge":"braidbr0"`, ipam: tableFor, otherTables: true},
	{name: "gateway", keys: `"bridge":"braidbr0","isGateway":true`, ipam: oneIPv4},
	{name: "default-gateway-dual", keys: `"bridge":"braidbr0","isDefaultGateway":true,"dns":{"nameservers":["192.0.2.53"]}`, ipam: dual},
	{name: "dual", keys: `"bridge":"braidbr0"`, ipam: dual},
	{name: "enabledad", keys: `"bridge":"braidbr0","enabledad":true`, ipam: dual},
	{name: "hairpin", keys: `"bridge":"braidbr0","hairpinMode":true`, ipam: oneIPv4},
	{name: "promisc", keys: `"bridge":"braidbr0","promiscMode":true`, ipam: oneIPv4},
	{name: "isolation", keys: `"bridge":"braidbr0","portIsolation":true`, ipam: oneIPv4},
	{name: "mtu", keys: `"bridge":"braidbr0","mtu":1400,"isGateway":true`, ipam: oneIPv4},
	{name: "mac", keys: `"bridge":"braidbr0","runtimeConfig":{"mac":"02:00:00:00:00:07"}`, ipam: oneIPv4},
	{name: "disable-container-interface", keys: `"bridge":"braidbr0","disableContainerInterface":true`},
	{name: "force-address", keys: `"bridge":"braidbr0","isGateway":true,"forceAddress":true`, ipam: oneIPv4,
		prepare: func(t testing.TB, h *rtnl.Handle) {
			br := must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0"}}))(t)
			try(t, h.AddAddr(br.Index, rtnl.Addr{Prefix: prefix("10.7.0.1/24")}))
		}},
	{name: "vlan-access", keys: `"bridge":"braidbr0","vlan":2001`, vlan: true},
	{name: "vlan-access-address", keys: `"bridge":"braidbr0","vlan":2001`, ipam: oneIPv4, vlan: true},
	{name: "vlan-preserve-default", keys: `"bridge":"braidbr0","vlan":2001,"preserveDefaultVlan":true`, vlan: true},
	{name: "vlan-gateway", keys: `"bridge":"braidbr0","vlan":2001,"isGateway":true`, ipam: oneIPv4, vlan: true},
	{name: "vlan-trunk", keys: `"bridge":"braidbr0","vlanTrunk":[{"minID":100,"maxID":103},{"id":200}]`, vlan: true},
	{name: "vlan-trunk-access", keys: `"bridge":"braidbr0","vlan":5,"vlanTrunk":[{"id":200},{"id":201}]`, vlan: true},
	{name: "vlan-trunk-around-access", keys: `"bridge":"braidbr0","vlan":5,"vlanTrunk":[{"minID":4,"maxID":6}]`, vlan: true,
		differs: "the reference plugin makes VLAN 5 tagged again, so that the port has no untagged VLAN"},
	{name: "vlan-trunk-preserve", keys: `"bridge":"braidbr0","preserveDefaultVlan":true,"vlanTrunk":[{"id":200}]`, vlan: true},
	{name: "vlan-trunk-empty", keys: `"bridge":"braidbr0","vlanTrunk":[]`, vlan: true},
	{name: "vlan-uplink", keys: `"bridge":"vlanbr0","vlan":2001`, vlan: true, prepare: vlanbr0},
}

// vlanbr0 prepares the node as for the VLAN example: a filtering bridge whose
// port trunk0 carries all VLANs.
func vlanbr0(t testing.TB, h *rtnl.Handle) {
	br := must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "vlanbr0", Up: true}, VLANFiltering: true}))(t)
	up := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "trunk0"}, Peer: rtnl.New{Name: "trunk0-far"}}))(t)
	try(t, h.SetMaster(up.Index, br.Index))
	try(t, h.SetUp(up.Index))
	try(t, h.AddVLANs(up.Index, rtnl.OfPort, rtnl.VLANs{From: 2, To: 4094}))
}

func (s scenario) conf() string {
	conf := `{"cniVersion":"1.0.0","name":"testnet","type":"bridge",` + s.keys
	if s.ipam != "" {
		conf += `,"ipam":` + s.ipam
	}
	return conf + "}"
}

func (s scenario) world(t testing.TB) *world {
	if s.vlan {
		kerneltest.Need(t, kerneltest.BridgeVLAN)
	}
	w := newWorld(t)
	if s.prepare != nil {
		s.prepare(t, w.node(t))
	}
	return w
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			w := sc.world(t)
			s := w.spec(sc.conf())
			res := w.attach(t, s)
			text := sc.conf() + "\n" + w.text(t) + "-- result\n" + plain(t, res)
			s.Prev = res
			if err := w.d.Check(t.Context(), s); err != nil {
				t.Errorf("Check of what was just built: %v", err)
			}
			if err := w.d.Detach(t.Context(), s); err != nil {
				t.Error(err)
			}
			golden(t, sc.name, text+"== after Detach\n"+w.text(t))
			if err := w.d.Detach(t.Context(), s); err != nil {
				t.Errorf("second Detach: %v", err)
			}
		})
	}
}

func TestRequestedMACIsUsed(t *testing.T) {
	w := newWorld(t)
	s := w.spec(scenarios[0].conf())
	s.Args = "IgnoreUnknown=1;K8S_POD_NAME=a;MAC=02:00:00:00:00:09"
	res := w.attach(t, s)
	if mac := res.Interfaces[2].Mac; mac != "02:00:00:00:00:09" {
		t.Errorf("mac of the result: %s", mac)
	}
	l := must(handle(t, w.pod).Link("net1"))(t)
	if l.MAC.String() != "02:00:00:00:00:09" {
		t.Errorf("mac of the link: %s", l.MAC)
	}
}

// A runtime that is killed asks again. Whatever the first call left must
// neither be in the way nor stay.
func TestRepeatedAttachReplacesWhatAnInterruptedOneLeft(t *testing.T) {
	w := newWorld(t)
	s := w.spec(scenarios[2].conf())
	w.attach(t, s)
	res := w.attach(t, s)
	once := newWorld(t)
	once.attach(t, once.spec(scenarios[2].conf()))
	if got, want := w.text(t), once.text(t); got != want {
		t.Errorf("after two calls:\n%safter one:\n%s", got, want)
	}
	s.Prev = res
	if err := w.d.Check(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// The container's link may have been renamed or moved by what runs in it.
func TestDetachFindsAnAttachmentWhoseLinkWasRenamed(t *testing.T) {
	w := newWorld(t)
	s := w.spec(scenarios[0].conf())
	w.attach(t, s)
	h := handle(t, w.pod)
	l := must(h.Link("net1"))(t)
	try(t, h.SetDown(l.Index))
	try(t, h.SetName(l.Index, "other"))
	for range 2 { // with the namespace, and once it is gone
		try(t, w.d.Detach(t.Context(), s))
		if text := w.text(t); strings.Contains(text, "veth") {
			t.Errorf("left:\n%s", text)
		}
		s.NetNS = nil
	}
}

func TestDetachWithoutNamespaceRemovesThePort(t *testing.T) {
	w := newWorld(t)
	s := w.spec(scenarios[0].conf())
	w.attach(t, s)
	s.NetNS = nil
	try(t, w.d.Detach(t.Context(), s))
	if text := w.text(t); strings.Contains(text, "veth") {
		t.Errorf("left:\n%s", text)
	}
}

// Two attachments may by chance derive the same name for the node's end.
func TestNameOfTheNodesEndThatIsTakenIsNotUsed(t *testing.T) {
	w := newWorld(t)
	s := w.spec(scenarios[0].conf())
	first := w.attach(t, s).Interfaces[1].Name
	try(t, w.d.Detach(t.Context(), s))
	h := w.node(t)
	must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: first}, Peer: rtnl.New{Name: "far"}}))(t)
	s.Prev = w.attach(t, s)
	if got := s.Prev.Interfaces[1].Name; got == first {
		t.Errorf("name %s is that of another link", got)
	}
	try(t, w.d.Check(t.Context(), s))
	try(t, w.d.Detach(t.Context(), s))
	must(h.Link(first))(t)
}

// On a node the driver runs where the bridges are.
func TestCurrentNamespaceIsTheNodeByDefault(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftBridge)
	w := newWorld(t)
	s := w.spec(scenario{keys: `"bridge":"braidbr0","isGateway":true,"macspoofchk":true`, ipam: dual}.conf())
	try(t, w.host.Do(func() error {
		d := bridge.New(bridge.Config{})
		res, err := d.Attach(t.Context(), s)
		if err != nil {
			return err
		}
		s.Prev = res
		return d.Check(t.Context(), s)
	}))
	if text := w.text(t); !strings.Contains(text, "master braidbr0") {
		t.Errorf("node and container:\n%s", text)
	}
	try(t, w.d.Check(t.Context(), s))
}

func TestTakenInterfaceNameIsRefusedAndLeftAlone(t *testing.T) {
	w := newWorld(t)
	h := handle(t, w.pod)
	must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "net1"}, Peer: rtnl.New{Name: "net1-far"}}))(t)
	before := w.text(t)
	s := w.spec(scenarios[2].conf())
	_, err := w.d.Attach(t.Context(), s)
	wantError(t, err, types.ErrInvalidEnvironmentVariables, "net1 is taken")
	if after := w.text(t); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	// The runtime calls DEL after an ADD that failed.
	try(t, w.d.Detach(t.Context(), s))
	if after := w.text(t); after != before {
		t.Errorf("after Detach:\n%swant\n%s", after, before)
	}
	if ipam := s.IPAM.(*staticIPAM); ipam.adds != 0 {
		t.Error("addresses were reserved")
	}
}

func TestRefusals(t *testing.T) {
	long := `{"name":"n","bridge":"braidbr0"}`
	for _, tc := range []struct {
		name, conf, ifName, args string
		code                     uint
		want                     string
	}{
		{name: "not JSON", conf: `{"bridge":`, code: types.ErrDecodingFailure, want: "read bridge configuration"},
		{name: "wrong type", conf: `{"vlan":"7"}`, code: types.ErrDecodingFailure, want: "read bridge configuration"},
		{name: "long interface name", conf: long, ifName: "sixteen-bytes-xx", code: types.ErrInvalidEnvironmentVariables, want: `"sixteen-bytes-xx"`},
		{name: "slash in interface name", conf: long, ifName: "a/b", code: types.ErrInvalidEnvironmentVariables, want: `"a/b"`},
		{name: "vlan too high", conf: `{"vlan":4095}`, code: types.ErrInvalidNetworkConfig, want: "4095"},
		{name: "vlan negative", conf: `{"vlan":-1}`, code: types.ErrInvalidNetworkConfig, want: "-1"},
		{name: "trunk without maxID", conf: `{"vlanTrunk":[{"minID":2}]}`, code: types.ErrInvalidNetworkConfig, want: "go together"},
		{name: "trunk backwards", conf: `{"vlanTrunk":[{"minID":3,"maxID":2}]}`, code: types.ErrInvalidNetworkConfig, want: "greater"},
		{name: "trunk too high", conf: `{"vlanTrunk":[{"id":5000}]}`, code: types.ErrInvalidNetworkConfig, want: "5000"},
		{name: "hairpin and promisc", conf: `{"hairpinMode":true,"promiscMode":true}`, code: types.ErrInvalidNetworkConfig, want: "exclude each other"},
		{name: "ipam on a disabled interface", conf: `{"disableContainerInterface":true,"ipam":{"type":"static"}}`, code: types.ErrInvalidNetworkConfig, want: "disableContainerInterface"},
		{name: "unknown backend", conf: `{"ipMasqBackend":"pf"}`, code: types.ErrInvalidNetworkConfig, want: `"pf"`},
		{name: "mac malformed", conf: `{"runtimeConfig":{"mac":"02:00"}}`, code: types.ErrInvalidNetworkConfig, want: "02:00"},
		{name: "mac of a group", conf: `{"args":{"cni":{"mac":"01:00:5e:00:00:01"}}}`, code: types.ErrInvalidNetworkConfig, want: "one interface"},
		{name: "bridge name too long", conf: `{"bridge":"a-bridge-name-too-long"}`, code: types.ErrInvalidNetworkConfig, want: "a-bridge-name-too-long"},
		{name: "gateway name too long", conf: `{"bridge":"braidbridge0","vlan":2001,"isGateway":true,"ipam":{"type":"static"}}`, code: types.ErrInvalidNetworkConfig, want: "braidbridge0.2001"},
		{name: "mtu", conf: `{"mtu":10}`, code: types.ErrInvalidNetworkConfig, want: "mtu 10"},
		{name: "uplink without bridge", conf: `{"bridge":"braidbr0","uplink":"trunk0"}`, code: types.ErrTryAgainLater, want: "no bridge braidbr0"},
		{name: "bridge of another kind", conf: `{"bridge":"lo"}`, code: types.ErrInvalidNetworkConfig, want: "not a bridge"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			before := w.text(t)
			s := w.spec(tc.conf)
			s.Args = tc.args
			if tc.ifName != "" {
				s.IfName = tc.ifName
			}
			_, err := w.d.Attach(t.Context(), s)
			wantError(t, err, tc.code, tc.want)
			try(t, w.d.Detach(t.Context(), s))
			if after := w.text(t); after != before {
				t.Errorf("left behind:\n%s", after)
			}
		})
	}
}

func TestMissingUplinkIsRefused(t *testing.T) {
	w := newWorld(t)
	h := w.node(t)
	br := must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0"}}))(t)
	s := w.spec(`{"name":"n","bridge":"braidbr0","uplink":"trunk0"}`)
	before := w.text(t)
	_, err := w.d.Attach(t.Context(), s)
	wantError(t, err, types.ErrTryAgainLater, "there is no link trunk0")
	up := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "trunk0"}, Peer: rtnl.New{Name: "far"}}))(t)
	_, err = w.d.Attach(t.Context(), s)
	wantError(t, err, types.ErrTryAgainLater, "trunk0 is no port of bridge braidbr0")
	try(t, h.Del(up.Index))
	if after := w.text(t); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	up = must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "trunk0"}, Peer: rtnl.New{Name: "far"}}))(t)
	try(t, h.SetMaster(up.Index, br.Index))
	w.attach(t, s)
}

func TestFailureLeavesNothing(t *testing.T) {
	w := newWorld(t)
	before := w.text(t)
	s := w.spec(scenarios[2].conf())
	ipam := s.IPAM.(*staticIPAM)
	ipam.fail = errors.New("the pool is full")
	if _, err := w.d.Attach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "the pool is full") {
		t.Errorf("Attach: %v", err)
	}
	if after := w.text(t); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	// A gateway that is in the way is found late, with the address in place.
	s = w.spec(`{"name":"n","bridge":"braidbr0","isGateway":true,"ipam":` + oneIPv4 + `}`)
	br := must(w.node(t).AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0", Up: true}}))(t)
	try(t, w.node(t).AddAddr(br.Index, rtnl.Addr{Prefix: prefix("10.9.0.1/24")}))
	before = w.text(t)
	_, err := w.d.Attach(t.Context(), s)
	wantError(t, err, types.ErrInvalidNetworkConfig, "10.9.0.1/24")
	if after := w.text(t); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	if ipam := s.IPAM.(*staticIPAM); ipam.dels != 1 {
		t.Errorf("address released %d times, want once", ipam.dels)
	}
}

func TestVLANOnABridgeWithoutFilteringIsRefused(t *testing.T) {
	w := newWorld(t)
	must(w.node(t).AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0"}}))(t)
	_, err := w.d.Attach(t.Context(), w.spec(`{"name":"n","bridge":"braidbr0","vlan":7}`))
	wantError(t, err, types.ErrInvalidNetworkConfig, "does not filter VLANs")
}

// Many containers start at once on a node that has no bridge yet.
func TestManyAtOnceShareOneBridge(t *testing.T) {
	w := newWorld(t)
	const n = 16
	var specs [n]driver.Spec
	for i := range specs {
		ns, path := kerneltest.NewNamedNS(t)
		specs[i] = w.spec(scenario{keys: `"bridge":"braidbr0","isGateway":true`, ipam: fmt.Sprintf(`{"type":"static","addresses":[{"address":"10.1.0.%d/24"}]}`, i+10)}.conf())
		specs[i].ContainerID, specs[i].NetNS, specs[i].NetNSPath = fmt.Sprintf("c%d", i), ns, path
	}
	var results [n]*current.Result
	each := func(do func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range specs {
			wg.Go(func() {
				if err := do(i); err != nil {
					t.Errorf("container %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	}
	each(func(i int) (err error) { results[i], err = w.d.Attach(t.Context(), specs[i]); return err })
	if t.Failed() {
		return
	}
	each(func(i int) error { specs[i].Prev = results[i]; return w.d.Check(t.Context(), specs[i]) })
	each(func(i int) error { return w.d.Detach(t.Context(), specs[i]) })
	if text := w.text(t); strings.Contains(text, "veth") {
		t.Errorf("left:\n%s", text)
	}
}

func TestCheckNamesWhatChanged(t *testing.T) {
	conf := scenario{keys: `"bridge":"braidbr0","hairpinMode":true`, ipam: withGW}.conf()
	for _, tc := range []struct {
		name, want string
		change     func(t *testing.T, node, pod *rtnl.Handle, port, net1 rtnl.Link)
	}{
		{"link down", "is down", func(t *testing.T, _, pod *rtnl.Handle, _, net1 rtnl.Link) { try(t, pod.SetDown(net1.Index)) }},
		{"address", "10.1.0.5/24", func(t *testing.T, _, pod *rtnl.Handle, _, net1 rtnl.Link) {
			try(t, pod.DelAddr(net1.Index, rtnl.Addr{Prefix: prefix("10.1.0.5/24")}))
		}},
		{"route", "10.98.0.0/16", func(t *testing.T, _, pod *rtnl.Handle, _, net1 rtnl.Link) {
			try(t, pod.DelRoute(rtnl.Route{Dst: prefix("10.98.0.0/16"), Link: net1.Index, Via: prefix("10.1.0.77/32").Addr(), Metric: 7}))
		}},
		{"connected route", "10.1.0.0/24", func(t *testing.T, _, pod *rtnl.Handle, _, net1 rtnl.Link) {
			try(t, pod.DelRoute(rtnl.Route{Dst: prefix("10.1.0.0/24"), Link: net1.Index}))
		}},
		{"mac", "02:00:00:00:00:01", func(t *testing.T, _, pod *rtnl.Handle, _, net1 rtnl.Link) {
			try(t, pod.SetMAC(net1.Index, []byte{2, 0, 0, 0, 0, 1}))
		}},
		{"port taken off", "no port of bridge", func(t *testing.T, node, _ *rtnl.Handle, port, _ rtnl.Link) {
			try(t, node.SetMaster(port.Index, 0))
		}},
		{"port down", "is down", func(t *testing.T, node, _ *rtnl.Handle, port, _ rtnl.Link) { try(t, node.SetDown(port.Index)) }},
		{"hairpin", "hairpin", func(t *testing.T, node, _ *rtnl.Handle, port, _ rtnl.Link) {
			try(t, node.SetHairpin(port.Index, false))
		}},
		{"isolation", "isolation", func(t *testing.T, node, _ *rtnl.Handle, port, _ rtnl.Link) {
			try(t, node.SetIsolated(port.Index, true))
		}},
		{"bridge", "braidbr0", func(t *testing.T, node, _ *rtnl.Handle, _, _ rtnl.Link) {
			try(t, node.Del(must(node.Link("braidbr0"))(t).Index))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			s := w.spec(conf)
			s.Prev = w.attach(t, s)
			node, pod := w.node(t), handle(t, w.pod)
			tc.change(t, node, pod, must(node.Link(s.Prev.Interfaces[1].Name))(t), must(pod.Link("net1"))(t))
			if err := w.d.Check(t.Context(), s); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Check: %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestForwardingIsSwitchedOnWithAGateway(t *testing.T) {
	w := newWorld(t)
	sysctl := rtnl.Sysctl{}
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		try(t, sysctl.Set(w.host, rtnl.Setting{Path: path, Value: "0"}))
	}
	w.attach(t, w.spec(scenario{keys: `"bridge":"braidbr0","isGateway":true`, ipam: dual}.conf()))
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "!ipv6/conf/braidbr0/accept_ra"} {
		path, off := strings.CutPrefix(path, "!")
		got := must(sysctl.Get(w.host, path))(t)
		if want := map[bool]string{true: "0", false: "1"}[off]; got != want {
			t.Errorf("%s = %s, want %s", path, got, want)
		}
	}
	if got := must(sysctl.Get(w.pod, "ipv4/conf/net1/arp_notify"))(t); got != "1" {
		t.Errorf("arp_notify = %s", got)
	}
}

// A bridge that the node has is the node's: it may get its own address by
// router advertisement.
func TestBridgeOfTheNodeKeepsItsRouterAdvertisements(t *testing.T) {
	w := newWorld(t)
	must(w.node(t).AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0"}}))(t)
	sysctl := rtnl.Sysctl{}
	try(t, sysctl.Set(w.host, rtnl.Setting{Path: "ipv6/conf/braidbr0/accept_ra", Value: "2"}))
	w.attach(t, w.spec(scenarios[0].conf()))
	if got := must(sysctl.Get(w.host, "ipv6/conf/braidbr0/accept_ra"))(t); got != "2" {
		t.Errorf("accept_ra = %s", got)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func wantError(t *testing.T, err error, code uint, text string) {
	t.Helper()
	var cni *types.Error
	switch {
	case !errors.As(err, &cni):
		t.Errorf("error %v, want a CNI error of code %d", err, code)
	case cni.Code != code || !strings.Contains(err.Error(), text):
		t.Errorf("error %v (code %d), want code %d and %q", err, cni.Code, code, text)
	}
}

// must and try fail the test on an error of its preparation.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		try(t, err)
		return v
	}
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
