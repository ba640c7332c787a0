package differential

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

const networkName = "testnet"

// testCase is one network configuration, and where to try it.
type testCase struct {
	title string
	// plugins are the chain's configurations, JSON objects.
	plugins []string
	// cni is the version of the specification, 1.0.0 when empty.
	cni string
	// ifName is net1 when empty.
	ifName string
	// args are the CNI_ARGS; capabilities the capability arguments, a JSON
	// object.
	args, capabilities string
	// guest is set when the machine's own kernel may lack what it needs.
	guest bool
	needs []kerneltest.Feature
	// netfilter has the rules of nftables and iptables compared.
	netfilter bool
	// refused: neither side attaches. Of generated ones both sides must say
	// the same.
	refused, generated bool
	// node and pod prepare the namespaces.
	node, pod func(*testing.T, *rtnl.Handle)
}

func (c testCase) version() string {
	if c.cni == "" {
		return "1.0.0"
	}
	return c.cni
}

func (c testCase) name() string {
	if c.ifName == "" {
		return "net1"
	}
	return c.ifName
}

func (c testCase) list() string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, c.version(), networkName, strings.Join(c.plugins, ","))
}

func (c testCase) runtime() map[string]json.RawMessage {
	if c.capabilities == "" {
		return nil
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(c.capabilities), &m); err != nil {
		panic(err)
	}
	return m
}

// types are the plugin types of the chain.
func (c testCase) types() []string {
	var types []string
	for _, p := range c.plugins {
		types = append(types, head(p).Type)
	}
	return types
}

func (c testCase) has(typ string) bool { return slices.Contains(c.types(), typ) }

// programs are the reference's programs that the case needs.
func (c testCase) programs() []string {
	names := c.types()
	for _, p := range c.plugins {
		if ipam := head(p).IPAM.Type; ipam != "" {
			names = append(names, ipam)
		}
	}
	return names
}

type confHead struct {
	Type string
	IPAM struct{ Type string }
}

func head(plugin string) (h confHead) {
	if err := json.Unmarshal([]byte(plugin), &h); err != nil {
		panic(fmt.Sprintf("%v: %s", err, plugin))
	}
	return h
}

// Address delegates.
const (
	oneIPv4     = `{"type":"static","addresses":[{"address":"10.1.0.5/24"}]}`
	oneIPv6     = `{"type":"static","addresses":[{"address":"fd00:1::5/64"}]}`
	withGateway = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"}],"routes":[{"dst":"10.99.0.0/16"},{"dst":"10.98.0.0/16","gw":"10.1.0.77"}]}`
	defaultVia  = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}`
	dualStack   = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"address":"fd00:1::5/64","gateway":"fd00:1::1"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dns":{"nameservers":["10.1.0.53"],"domain":"ipam.test","search":["a.test"],"options":["ndots:2"]}}`
	two         = `{"type":"static","addresses":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"},{"address":"10.2.0.5/24","gateway":"10.2.0.1"}]}`
	tables      = `{"type":"static","addresses":[{"address":"10.1.0.5/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1","table":100},{"dst":"10.97.0.0/16","scope":253,"table":100},{"dst":"10.96.0.0/16","priority":77}]}`
	hostLocal   = `{"type":"host-local","dataDir":"@DIR@","ranges":[[{"subnet":"10.3.0.0/24","rangeStart":"10.3.0.10"}]],"routes":[{"dst":"0.0.0.0/0"}]}`
	hostLocal6  = `{"type":"host-local","dataDir":"@DIR@","ranges":[[{"subnet":"10.3.0.0/24"}],[{"subnet":"fd00:3::/64","gateway":"fd00:3::99"}]]}`
)

// Links that configurations name.

// up0 is a link with a carrier, one end of a veth, and the node's way out.
func up0(t *testing.T, h *rtnl.Handle) {
	up := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "up0", MTU: 1400, Up: true}, Peer: rtnl.New{Name: "up0-far", MTU: 1400}}))(t)
	far := must(h.Link("up0-far"))(t)
	try(t, h.SetUp(far.Index))
	try(t, h.AddAddr(up.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("192.0.2.1/24")}))
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.254"), Link: up.Index}))
}

// filtering is a bridge with VLANs, and a port that carries all of them.
func filtering(t *testing.T, h *rtnl.Handle) {
	br := must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0", Up: true}, VLANFiltering: true}))(t)
	up := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "trunk0"}, Peer: rtnl.New{Name: "trunk0-far"}}))(t)
	try(t, h.SetMaster(up.Index, br.Index))
	try(t, h.SetUp(up.Index))
	try(t, h.AddVLANs(up.Index, rtnl.OfPort, rtnl.VLANs{From: 2, To: 4094}))
}

// used is a bridge that has an address of another network already.
func used(t *testing.T, h *rtnl.Handle) {
	br := must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0"}}))(t)
	try(t, h.AddAddr(br.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.7.0.1/24")}))
}

// device is a link to give away, with an address and a route of its own.
func device(t *testing.T, h *rtnl.Handle) {
	l := must(h.AddVeth(rtnl.Veth{
		New: rtnl.New{Name: "dev0", MTU: 1444, MAC: []byte{2, 0, 0, 0, 0, 0x77}, Up: true}, Peer: rtnl.New{Name: "dev0-far"},
	}))(t)
	far := must(h.Link("dev0-far"))(t)
	try(t, h.SetUp(far.Index))
	try(t, h.AddAddr(l.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.8.0.1/24")}))
}

// taken is a link in the container that has the interface's name.
func taken(t *testing.T, h *rtnl.Handle) {
	must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "net1"}}))(t)
}

// plugin writes a configuration: its type, its keys and its ipam.
func plugin(typ, keys, ipam string) string {
	parts := []string{fmt.Sprintf(`"type":%q`, typ)}
	if keys != "" {
		parts = append(parts, keys)
	}
	if ipam != "" {
		parts = append(parts, `"ipam":`+ipam)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// bridged and ptp are what chained plugins stand behind.
var (
	bridged = plugin("bridge", `"bridge":"braidbr0","isGateway":true`, defaultVia)
	direct  = plugin("ptp", "", dualStack)
)

var cases = slices.Concat(
	bridgeCases, masqueradeCases, macvlanCases, ptpCases, hostDeviceCases, tapCases, loopbackCases,
	tuningCases, sbrCases, bandwidthCases, portmapCases, firewallCases,
	vlanCases, ipvlanCases, dummyCases, vrfCases, bridgeVLANCases,
	bridgeFamily.generate(), macvlanFamily.generate(), ptpFamily.generate(), tapFamily.generate(),
	ipvlanFamily.generate(), vlanFamily.generate(), dummyFamily.generate(), bridgeVLANFamily.generate(),
	tuningFamily.generate(), portmapFamily.generate(),
)

var bridgeCases = []testCase{
	{title: "bridge/l2", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, "")}},
	{title: "bridge/default-name", plugins: []string{plugin("bridge", "", oneIPv4)}},
	{title: "bridge/routes", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, withGateway)}},
	{title: "bridge/tables", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, tables)}},
	{title: "bridge/two-subnets", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, two)}},
	{title: "bridge/refused-two-gateways", refused: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, two)}},
	{title: "bridge/default-gateway", plugins: []string{plugin("bridge", `"bridge":"braidbr0","isDefaultGateway":true`, oneIPv4)}},
	{title: "bridge/dual-default", plugins: []string{plugin("bridge", `"bridge":"braidbr0","isDefaultGateway":true`, dualStack)}},
	{title: "bridge/ipv6", plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, oneIPv6)}},
	{title: "bridge/dns", plugins: []string{plugin("bridge", `"bridge":"braidbr0","dns":{"nameservers":["192.0.2.53"],"domain":"own.test"}`, dualStack)}},
	{title: "bridge/enabledad", plugins: []string{plugin("bridge", `"bridge":"braidbr0","enabledad":true`, oneIPv6)}},
	{title: "bridge/host-local", plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, hostLocal)}},
	{title: "bridge/host-local-dual", plugins: []string{plugin("bridge", `"bridge":"braidbr0","isDefaultGateway":true`, hostLocal6)}},
	{title: "bridge/version-0.3.1", cni: "0.3.1", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, withGateway)}},
	{title: "bridge/version-0.4.0", cni: "0.4.0", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, withGateway)}},
	{title: "bridge/version-1.1.0", cni: "1.1.0", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, withGateway)}},
	{title: "bridge/mac-args", args: "IgnoreUnknown=1;MAC=02:00:00:00:00:09", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, oneIPv4)}},
	{title: "bridge/mac-capability", capabilities: `{"mac":"02:00:00:00:00:08"}`,
		plugins: []string{plugin("bridge", `"bridge":"braidbr0","capabilities":{"mac":true}`, oneIPv4)}},
	{title: "bridge/ips-capability", capabilities: `{"ips":["10.1.0.77/24"]}`,
		plugins: []string{plugin("bridge", `"bridge":"braidbr0","capabilities":{"ips":true}`, `{"type":"static"}`)}},
	{title: "bridge/ip-args", args: "IgnoreUnknown=1;IP=10.1.0.66/24;GATEWAY=10.1.0.1",
		plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, `{"type":"static"}`)}},
	{title: "bridge/disabled-interface", plugins: []string{plugin("bridge", `"bridge":"braidbr0","disableContainerInterface":true`, "")}},
	{title: "bridge/force-address", node: used, plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true,"forceAddress":true`, oneIPv4)}},
	{title: "bridge/other-ifname", ifName: "eth0", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, oneIPv4)}},
	{title: "bridge/refused-address", node: used, refused: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, `{"type":"static","addresses":[{"address":"10.7.0.5/16"}]}`)}},
	{title: "bridge/refused-hairpin-promisc", refused: true, plugins: []string{plugin("bridge", `"hairpinMode":true,"promiscMode":true`, "")}},
	{title: "bridge/refused-no-bridge", refused: true, plugins: []string{plugin("bridge", `"bridge":"lo"`, "")}},
	{title: "bridge/refused-name", pod: taken, refused: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, oneIPv4)}},
	{title: "bridge/refused-no-address", refused: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, `{"type":"static"}`)}},
}

var masqueradeCases = []testCase{
	{title: "masquerade/bridge", netfilter: true, node: up0, needs: nft, plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true,"ipMasq":true`, dualStack)}},
	{title: "masquerade/bridge-nftables", netfilter: true, node: up0, needs: nft, plugins: []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables"`, dualStack)}},
	{title: "masquerade/ptp", netfilter: true, needs: nft, plugins: []string{plugin("ptp", `"ipMasq":true`, dualStack)}},
	{title: "masquerade/ptp-nftables", netfilter: true, needs: nft, plugins: []string{plugin("ptp", `"ipMasq":true,"ipMasqBackend":"nftables"`, withGateway)}},
	{title: "macspoofchk/bridge", netfilter: true, needs: nft, plugins: []string{plugin("bridge", `"bridge":"braidbr0","macspoofchk":true,"runtimeConfig":{}`, "")}, capabilities: `{"mac":"02:00:00:00:00:08"}`},
}

var nft = []kerneltest.Feature{kerneltest.NftInet}

var macvlanCases = []testCase{
	{title: "macvlan/default-master", node: up0, plugins: []string{plugin("macvlan", "", oneIPv4)}},
	{title: "macvlan/l2", node: up0, plugins: []string{plugin("macvlan", `"master":"up0"`, "")}},
	{title: "macvlan/passthru", node: up0, plugins: []string{plugin("macvlan", `"master":"up0","mode":"passthru"`, oneIPv4)}},
	{title: "macvlan/host-local", node: up0, plugins: []string{plugin("macvlan", `"master":"up0"`, hostLocal)}},
	{title: "macvlan/mac-args", node: up0, args: "IgnoreUnknown=1;MAC=02:00:00:00:00:09", plugins: []string{plugin("macvlan", `"master":"up0"`, oneIPv4)}},
	{title: "macvlan/mac-capability", node: up0, capabilities: `{"mac":"02:00:00:00:00:08"}`,
		plugins: []string{plugin("macvlan", `"master":"up0","capabilities":{"mac":true}`, dualStack)}},
	{title: "macvlan/in-container", pod: up0, plugins: []string{plugin("macvlan", `"master":"up0","linkInContainer":true`, oneIPv4)}},
	{title: "macvlan/dns", node: up0, plugins: []string{plugin("macvlan", `"master":"up0","dns":{"nameservers":["192.0.2.53"]}`, dualStack)}},
	{title: "macvlan/refused-mode", node: up0, refused: true, plugins: []string{plugin("macvlan", `"master":"up0","mode":"other"`, oneIPv4)}},
	{title: "macvlan/refused-mtu", node: up0, refused: true, plugins: []string{plugin("macvlan", `"master":"up0","mtu":9000`, oneIPv4)}},
	{title: "macvlan/refused-master", refused: true, plugins: []string{plugin("macvlan", `"master":"nosuch0"`, oneIPv4)}},
	{title: "macvlan/refused-no-default", refused: true, plugins: []string{plugin("macvlan", "", oneIPv4)}},
	{title: "macvlan/refused-name", node: up0, pod: taken, refused: true, plugins: []string{plugin("macvlan", `"master":"up0"`, oneIPv4)}},
}

var ptpCases = []testCase{
	{title: "ptp/ipv4", plugins: []string{plugin("ptp", "", defaultVia)}},
	{title: "ptp/refused-no-gateway", refused: true, plugins: []string{plugin("ptp", "", oneIPv4)}},
	{title: "ptp/gateway", plugins: []string{plugin("ptp", "", withGateway)}},
	{title: "ptp/dual", plugins: []string{plugin("ptp", "", dualStack)}},
	{title: "ptp/host-local", plugins: []string{plugin("ptp", `"mtu":1380`, hostLocal)}},
	{title: "ptp/two-subnets", plugins: []string{plugin("ptp", "", two)}},
	{title: "ptp/dns", plugins: []string{plugin("ptp", `"dns":{"nameservers":["192.0.2.53"]}`, withGateway)}},
	{title: "ptp/refused-no-address", refused: true, plugins: []string{plugin("ptp", "", `{"type":"static"}`)}},
	{title: "ptp/refused-name", pod: taken, refused: true, plugins: []string{plugin("ptp", "", oneIPv4)}},
}

var hostDeviceCases = []testCase{
	{title: "host-device/device", node: device, plugins: []string{plugin("host-device", `"device":"dev0"`, "")}},
	{title: "host-device/address", node: device, plugins: []string{plugin("host-device", `"device":"dev0"`, dualStack)}},
	{title: "host-device/hwaddr", node: device, plugins: []string{plugin("host-device", `"hwaddr":"02:00:00:00:00:77"`, withGateway)}},
	{title: "host-device/same-name", ifName: "dev0", node: device, plugins: []string{plugin("host-device", `"device":"dev0"`, oneIPv4)}},
	{title: "host-device/host-local", node: device, plugins: []string{plugin("host-device", `"device":"dev0"`, hostLocal)}},
	{title: "host-device/refused-missing", node: device, refused: true, plugins: []string{plugin("host-device", `"device":"nosuch0"`, "")}},
	{title: "host-device/refused-nothing", node: device, refused: true, plugins: []string{plugin("host-device", "", "")}},
}

var tapCases = []testCase{
	{title: "tap/l2", plugins: []string{plugin("tap", "", "")}, needs: tun},
	{title: "tap/address", plugins: []string{plugin("tap", `"mtu":1300`, dualStack)}, needs: tun},
	{title: "tap/owner", plugins: []string{plugin("tap", `"owner":1000,"group":1001,"multiQueue":true`, "")}, needs: tun},
	{title: "tap/mac", plugins: []string{plugin("tap", `"mac":"02:00:00:00:00:07"`, oneIPv4)}, needs: tun},
	{title: "tap/bridge", pod: used, plugins: []string{plugin("tap", `"bridge":"braidbr0"`, "")}, needs: tun},
	{title: "tap/refused-bridge", plugins: []string{plugin("tap", `"bridge":"nosuch0"`, "")}, refused: true, needs: tun},
}

var tun = []kerneltest.Feature{kerneltest.Tap}

var loopbackCases = []testCase{
	{title: "loopback/lo", ifName: "lo", plugins: []string{plugin("loopback", "", "")}},
	{title: "loopback/version-0.4.0", ifName: "lo", cni: "0.4.0", plugins: []string{plugin("loopback", "", "")}},
	{title: "loopback/version-1.1.0", ifName: "lo", cni: "1.1.0", plugins: []string{plugin("loopback", "", "")}},
}

// tuned has a data directory of the world's own.
func tuned(keys string) []string {
	return []string{bridged, plugin("tuning", `"dataDir":"@DIR@",`+keys, "")}
}

var tuningCases = []testCase{
	{title: "tuning/sysctl", plugins: tuned(`"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1","net.core.somaxconn":"512"}`)},
	{title: "tuning/sysctl-slashes", plugins: tuned(`"sysctl":{"net/ipv4/conf/IFNAME/rp_filter":"0"}`)},
	{title: "tuning/mac", plugins: tuned(`"mac":"02:00:00:00:00:07"`)},
	{title: "tuning/mac-capability", capabilities: `{"mac":"02:00:00:00:00:08"}`, plugins: tuned(`"capabilities":{"mac":true}`)},
	{title: "tuning/mac-args", args: "IgnoreUnknown=1;MAC=02:00:00:00:00:09", plugins: tuned(`"mtu":1300`)},
	{title: "tuning/promisc", plugins: tuned(`"promisc":true`)},
	{title: "tuning/mtu", plugins: tuned(`"mtu":1300`)},
	{title: "tuning/allmulti", plugins: tuned(`"allmulti":true`)},
	{title: "tuning/no-allmulti", plugins: tuned(`"allmulti":false`)},
	{title: "tuning/txqlen", plugins: tuned(`"txQLen":77`)},
	{title: "tuning/refused-sysctl", refused: true, plugins: tuned(`"sysctl":{"kernel.hostname":"x"}`)},
	{title: "tuning/refused-missing-sysctl", refused: true, plugins: tuned(`"sysctl":{"net.core.nosuch":"1"}`)},
}

var sbrCases = []testCase{
	{title: "sbr/bridge", plugins: []string{bridged, plugin("sbr", "", "")}},
	{title: "sbr/table", plugins: []string{bridged, plugin("sbr", `"table":4711`, "")}},
	{title: "sbr/dual", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, dualStack), plugin("sbr", "", "")}},
	{title: "sbr/two-subnets", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, two), plugin("sbr", "", "")}},
	{title: "sbr/routes", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, withGateway), plugin("sbr", "", "")}},
	{title: "sbr/macvlan", node: up0, plugins: []string{plugin("macvlan", `"master":"up0"`, defaultVia), plugin("sbr", "", "")}},
	{title: "sbr/host-local", plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, hostLocal), plugin("sbr", "", "")}},
}

var bandwidthCases = []testCase{
	{title: "bandwidth/both", plugins: []string{bridged, plugin("bandwidth", `"ingressRate":1000000,"ingressBurst":2000000,"egressRate":3000000,"egressBurst":4000000`, "")}},
	{title: "bandwidth/ingress", plugins: []string{bridged, plugin("bandwidth", `"ingressRate":800000,"ingressBurst":80000`, "")}},
	{title: "bandwidth/egress", plugins: []string{bridged, plugin("bandwidth", `"egressRate":800000,"egressBurst":80000`, "")}},
	{title: "bandwidth/nothing", plugins: []string{bridged, plugin("bandwidth", "", "")}},
	{title: "bandwidth/ptp", plugins: []string{direct, plugin("bandwidth", `"ingressRate":9000000000,"ingressBurst":90000000,"egressRate":8000,"egressBurst":16000`, "")}},
	{title: "bandwidth/capability", capabilities: `{"bandwidth":{"ingressRate":123456,"ingressBurst":654321,"egressRate":7654321,"egressBurst":1234567}}`,
		plugins: []string{bridged, plugin("bandwidth", `"capabilities":{"bandwidth":true}`, "")}},
	{title: "bandwidth/refused-no-burst", refused: true, plugins: []string{bridged, plugin("bandwidth", `"ingressRate":800000`, "")}},
}

func mapped(backend, keys string) []string {
	return []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, dualStack),
		plugin("portmap", strings.TrimSuffix(`"capabilities":{"portMappings":true},"backend":"`+backend+`",`+keys, ","), "")}
}

const ports = `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":5353,"containerPort":53,"protocol":"udp"},{"hostPort":8081,"containerPort":81,"protocol":"tcp","hostIP":"192.0.2.1"}]}`

var portmapCases = []testCase{
	{title: "portmap/iptables", netfilter: true, needs: nft, node: up0, capabilities: ports, plugins: mapped("iptables", "")},
	{title: "portmap/iptables-no-snat", netfilter: true, needs: nft, node: up0, capabilities: ports, plugins: mapped("iptables", `"snat":false`)},
	{title: "portmap/nftables", netfilter: true, needs: nft, node: up0, capabilities: ports, plugins: mapped("nftables", "")},
	{title: "portmap/nftables-no-snat", netfilter: true, needs: nft, node: up0, capabilities: ports, plugins: mapped("nftables", `"snat":false`)},
	{title: "portmap/nothing", netfilter: true, needs: nft, node: up0, plugins: mapped("nftables", "")},
	{title: "portmap/refused-protocol", netfilter: true, needs: nft, refused: true, capabilities: `{"portMappings":[{"hostPort":0,"containerPort":80,"protocol":"tcp"}]}`, plugins: mapped("iptables", "")},
}

func guarded(keys string) []string {
	return []string{plugin("bridge", `"bridge":"braidbr0","isGateway":true`, dualStack), plugin("firewall", keys, "")}
}

var firewallCases = []testCase{
	{title: "firewall/iptables", netfilter: true, needs: nft, plugins: guarded(`"backend":"iptables"`)},
	{title: "firewall/admin-chain", netfilter: true, needs: nft, plugins: guarded(`"backend":"iptables","iptablesAdminChainName":"MY-ADMIN"`)},
	{title: "firewall/same-bridge", netfilter: true, needs: nft, plugins: guarded(`"backend":"iptables","ingressPolicy":"same-bridge"`)},
	{title: "firewall/isolated", netfilter: true, needs: nft, plugins: guarded(`"backend":"iptables","ingressPolicy":"isolated"`)},
	{title: "firewall/nftables", netfilter: true, needs: nft, plugins: guarded(`"backend":"nftables"`)},
	{title: "firewall/refused-policy", netfilter: true, needs: nft, refused: true, plugins: guarded(`"backend":"iptables","ingressPolicy":"other"`)},
}

var vlanCases = []testCase{
	{title: "vlan/refused-no-ipam", refused: true, guest: true, node: up0, plugins: []string{plugin("vlan", `"master":"up0","vlanId":2001`, "")}},
	{title: "vlan/refused-no-master", refused: true, guest: true, node: up0, plugins: []string{plugin("vlan", `"vlanId":5`, oneIPv4)}},
	{title: "vlan/in-container", guest: true, pod: up0, plugins: []string{plugin("vlan", `"master":"up0","vlanId":5,"linkInContainer":true`, oneIPv4)}},
	{title: "vlan/refused-id", guest: true, node: up0, refused: true, plugins: []string{plugin("vlan", `"master":"up0","vlanId":4095`, oneIPv4)}},
	{title: "vlan/refused-mtu", guest: true, node: up0, refused: true, plugins: []string{plugin("vlan", `"master":"up0","vlanId":5,"mtu":9000`, oneIPv4)}},
	{title: "vlan/refused-master", guest: true, refused: true, plugins: []string{plugin("vlan", `"master":"nosuch0","vlanId":5`, oneIPv4)}},
}

var ipvlanCases = []testCase{
	{title: "ipvlan/default-master", guest: true, node: up0, plugins: []string{plugin("ipvlan", "", oneIPv4)}},
	{title: "ipvlan/l3-host-local", guest: true, node: up0, plugins: []string{plugin("ipvlan", `"master":"up0","mode":"l3"`, hostLocal)}},
	{title: "ipvlan/in-container", guest: true, pod: up0, plugins: []string{plugin("ipvlan", `"master":"up0","linkInContainer":true`, oneIPv4)}},
	{title: "ipvlan/on-bridge", guest: true, plugins: []string{bridged, plugin("ipvlan", `"mode":"l2"`, "")}, refused: true},
	{title: "ipvlan/refused-mode", guest: true, node: up0, refused: true, plugins: []string{plugin("ipvlan", `"master":"up0","mode":"l4"`, oneIPv4)}},
	{title: "ipvlan/refused-no-address", guest: true, node: up0, refused: true, plugins: []string{plugin("ipvlan", `"master":"up0"`, "")}},
	{title: "ipvlan/refused-name", guest: true, node: up0, pod: taken, refused: true, plugins: []string{plugin("ipvlan", `"master":"up0"`, oneIPv4)}},
}

var dummyCases = []testCase{
	{title: "dummy/address", guest: true, plugins: []string{plugin("dummy", "", oneIPv4)}},
	{title: "dummy/refused-no-ipam", guest: true, refused: true, plugins: []string{plugin("dummy", "", "")}},
	{title: "dummy/refused-name", guest: true, pod: taken, refused: true, plugins: []string{plugin("dummy", "", oneIPv4)}},
}

var vrfCases = []testCase{
	{title: "vrf/bridge", guest: true, plugins: []string{bridged, plugin("vrf", `"vrfname":"blue"`, "")}},
	{title: "vrf/table", guest: true, plugins: []string{bridged, plugin("vrf", `"vrfname":"blue","table":77`, "")}},
	{title: "vrf/dual", guest: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0"`, dualStack), plugin("vrf", `"vrfname":"blue"`, "")}},
	{title: "vrf/macvlan", guest: true, node: up0, plugins: []string{plugin("macvlan", `"master":"up0"`, withGateway), plugin("vrf", `"vrfname":"red"`, "")}},
	{title: "vrf/refused-no-name", guest: true, refused: true, plugins: []string{bridged, plugin("vrf", "", "")}},
}

var bridgeVLANCases = []testCase{
	{title: "bridge-vlan/uplink", guest: true, node: filtering, plugins: []string{plugin("bridge", `"bridge":"braidbr0","vlan":2001`, oneIPv4)}},
	{title: "bridge-vlan/gateway", guest: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0","vlan":2001,"isGateway":true`, oneIPv4)}},
	{title: "bridge-vlan/trunk", guest: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0","vlanTrunk":[{"minID":100,"maxID":103},{"id":200}]`, "")}},
	{title: "bridge-vlan/refused-trunk", guest: true, refused: true, plugins: []string{plugin("bridge", `"bridge":"braidbr0","vlanTrunk":[{"minID":103,"maxID":100}]`, "")}},
}
