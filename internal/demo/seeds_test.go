package demo_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/demo"
	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/lab"
)

// Scenarios of people who have more than one network today, beside real
// default networks.

// TestClusterCiliumAndAnExtraNetwork has Cilium in its exclusive mode, as it is
// installed by default: it renames the configurations of others, Braid's too.
// This machine's kernel has what Cilium needs and no ipvlan, so the extra
// network is macvlan; TestEmulatedCiliumAndIPVlan has ipvlan, on one node.
func TestClusterCiliumAndAnExtraNetwork(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-cilium", CNI: "cilium", NodeKernel: guest.Host})
	s.install(t)
	s.survivesCilium(t)
	s.apply(t, networkOf("extra", `{"cniVersion":"0.3.0","type":"macvlan","master":"trunk0","ipam":{"type":"host-local",
      "subnet":"192.168.1.0/24","rangeStart":"192.168.1.13","rangeEnd":"192.168.1.17","gateway":"192.168.1.1"}}`))
	one, two := s.twoPods(t, "node1", "node1", "extra")
	s.isAsInTheSeed(t, one, "cilium", "default/extra")
	s.isAsInTheSeed(t, two, "cilium", "default/extra")
	s.pings(t, "net1", two.address["net1"])
	s.pings(t, "eth0", two.address["eth0"])
}

// TestEmulatedCiliumAndIPVlan is that page as it stands there: Cilium and ipvlan
// on one node, whose kernel, Debian's under QEMU, is the one here that has what
// both need. Cilium compiles its programs there at an emulator's speed: the five
// minutes are make test-emulated's.
func TestEmulatedCiliumAndIPVlan(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-qemu", CNI: "cilium", NodeKernel: guest.QEMU, Nodes: 1})
	s.on(t, "node1", "ip link set trunk0 down && ip link set trunk0 name eth1 && ip addr add 192.168.0.12/24 dev eth1 && ip link set eth1 up")
	// For a node's first pod Cilium compiles its programs, which under QEMU may
	// take longer than braidd lets a plugin run.
	s.pod(t, "first", "node1", "")
	s.install(t)
	s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=240s", "pod/first")
	s.survivesCilium(t)
	for _, mode := range ipvlanModes {
		t.Run(mode, func(t *testing.T) {
			s.apply(t, networkOf("ipvlan-conf-1", fmt.Sprintf(`{"cniVersion":"0.3.0","type":"ipvlan","master":"eth1","mode":"%s","ipam":{"type":"host-local",
      "subnet":"192.168.1.0/24","rangeStart":"192.168.1.13","rangeEnd":"192.168.1.17","gateway":"192.168.1.1"}}`, mode)))
			one, two := s.twoPods(t, "node1", "node1", "ipvlan-conf-1")
			s.isAsInTheSeed(t, one, "cilium", "default/ipvlan-conf-1")
			s.isAsInTheSeed(t, two, "cilium", "default/ipvlan-conf-1")
			s.pings(t, "net1", two.address["net1"])
			s.pings(t, "eth0", two.address["eth0"])
			s.kubectl(t, "delete", "pod", "one", "two", "--wait")
		})
	}
}

// ipvlanModes are those of the ipvlan plugin.
var ipvlanModes = []string{"l3", "l2", "l3s"}

// ipvlanAcrossNodes has a pod on each of two nodes, with such a network in each
// mode. The scenario's pods are gone: a port of a bridge can be no master.
func (s *scenario) ipvlanAcrossNodes(t *testing.T) {
	onOne, onTwo := s.ipvlanNetworks(t, "node1", 1), s.ipvlanNetworks(t, "node2", 2)
	s.pod(t, "one", "node1", strings.Join(onOne, ","))
	s.pod(t, "two", "node2", strings.Join(onTwo, ","))
	s.running(t)
	one, two := s.look(t, "one"), s.look(t, "two")
	s.isAsInTheSeed(t, one, append([]string{"default"}, onOne...)...)
	s.isAsInTheSeed(t, two, append([]string{"default"}, onTwo...)...)
	for i, mode := range ipvlanModes {
		n := i + 1
		link := fmt.Sprintf("net%d", n)
		if mode != "l2" {
			// Nobody answers for such a pod on the wire: the nodes route.
			s.on(t, "node1", fmt.Sprintf("ip route replace %s via 192.168.%d.102 dev trunk0.%d", two.address[link], n, n))
			s.on(t, "node2", fmt.Sprintf("ip route replace %s via 192.168.%d.101 dev trunk0.%d", one.address[link], n, n))
		}
		s.pings(t, link, two.address[link])
	}
	s.pings(t, "eth0", two.address["eth0"])
}

// ipvlanNetworks makes the networks of one node and returns their names. All
// links of one master have one mode, so each has a VLAN of the trunk as its
// master; and host-local hands out addresses per node, so each node has ranges
// of its own.
func (s *scenario) ipvlanNetworks(t *testing.T, node string, number int) (names []string) {
	t.Helper()
	script, manifests := "ip link set trunk0 nomaster up", ""
	for i, mode := range ipvlanModes {
		n := i + 1
		script += fmt.Sprintf(" && ip link add link trunk0 name trunk0.%[1]d type vlan id %[1]d && ip addr add 192.168.%[1]d.%[2]d/24 dev trunk0.%[1]d && ip link set trunk0.%[1]d up", n, 100+number)
		manifests += "---\n" + networkOf(mode+"-"+node, fmt.Sprintf(`{"cniVersion":"0.3.0","type":"ipvlan","master":"trunk0.%[1]d","mode":%[2]q,"ipam":{"type":"host-local",
      "subnet":"192.168.%[1]d.0/24","rangeStart":"192.168.%[1]d.%[3]d","rangeEnd":"192.168.%[1]d.%[4]d","gateway":"192.168.%[1]d.1"}}`,
			n, mode, 10*number, 10*number+5))
		names = append(names, "default/"+mode+"-"+node)
	}
	s.on(t, node, script)
	s.apply(t, manifests)
	return names
}

// TestClusterFlannelAndCilium gives pods Flannel (host-gw) as eth0 and Cilium
// as eth1, in two ways that are Braid's: by annotation and for every pod.
func TestClusterFlannelAndCilium(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-two", CNI: "flannel-host-gw+cilium", NodeKernel: guest.Host})
	s.install(t)
	t.Run("by annotation", func(t *testing.T) {
		// A network without a configuration is the one of that name in the conf dir.
		s.apply(t, networkOf("cilium", ""))
		one, two := s.twoPods(t, "node1", "node2", "cilium@eth1")
		one.oneDefaultRoute(t)
		two.oneDefaultRoute(t)
		s.bothNetworks(t, one, two)
	})
	t.Run("confDirNetworks", func(t *testing.T) {
		s.kubectl(t, "-n", "braid-system", "patch", "configmap", "braidd", "--type=merge", "-p", `{"data":{"braidd.yaml":"confDirNetworks: 2\n"}}`)
		s.kubectl(t, "-n", "braid-system", "rollout", "restart", "daemonset/braidd")
		s.kubectl(t, "-n", "braid-system", "rollout", "status", "daemonset/braidd", "--timeout=180s")
		one, two := s.twoPods(t, "node1", "node2", "")
		one.oneDefaultRoute(t)
		two.oneDefaultRoute(t)
		s.bothNetworks(t, one, two)
	})
}

// TestClusterFlannelAndCiliumByContainerd is what people do without Braid.
// containerd attaches both networks at the same time, so it is a race whether
// a pod has one default route or two; the page that this follows saw two.
func TestClusterFlannelAndCiliumByContainerd(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-max", CNI: "flannel-host-gw+cilium", NodeKernel: guest.Host, MaxConfNum: 2})
	one, two := s.twoPods(t, "node1", "node2", "")
	for _, pod := range []podView{one, two} {
		t.Logf("%s has %d default routes", pod.name, strings.Count(pod.routes, "default"))
		if !strings.Contains(pod.routes, "default via 10.244.") {
			t.Errorf("%s: no default route through Flannel:\n%s", pod.name, pod.routes)
		}
	}
	s.bothNetworks(t, one, two)
}

// TestClusterFlannelAndABridge has eth1 on the network of the nodes, by a bridge
// that the trunk is a port of. A client of another subnet, behind a router
// there, reaches eth1; the answer takes the same way only with source routing.
func TestClusterFlannelAndABridge(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-bridge", CNI: "flannel-host-gw", NodeKernel: guest.Host})
	s.install(t)
	for _, node := range s.lab.Nodes() {
		s.on(t, node, "ip link add br0 type bridge && ip link set trunk0 up master br0 && ip link set br0 up")
	}
	const router, client = "192.168.0.102", "203.0.113.5"
	s.on(t, "node2", "ip addr add "+router+"/16 dev br0 && ip addr add "+client+"/32 dev lo")
	bridge := func(node int, more string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"br0","ipam":{"type":"host-local",
      "ranges":[[{"subnet":"192.168.0.0/16","rangeStart":"192.168.%[1]d.1","rangeEnd":"192.168.%[1]d.9","gateway":"%[2]s"}]]}}%[3]s]}`, node, router, more)
	}
	s.apply(t, networkOf("plain", bridge(1, "")))
	s.apply(t, networkOf("source-routed", bridge(2, `,{"type":"sbr"}`)))
	s.pod(t, "one", "node1", "source-routed@eth1")
	s.pod(t, "two", "node1", "plain@eth1")
	s.running(t)
	for pod, answers := range map[string]bool{"one": true, "two": false} {
		seen := s.look(t, pod)
		seen.oneDefaultRoute(t)
		eth1 := seen.address["eth1"]
		s.on(t, "node2", "busybox ping -c 1 -w 20 "+eth1)
		limit := map[bool]string{true: "20", false: "3"}[answers]
		out, err := s.lab.NodeRun(t.Context(), "node2", "busybox", "ping", "-c", "1", "-w", limit, "-I", client, eth1)
		if (err == nil) != answers {
			t.Errorf("%s at %s answers %s: %v, want %v (%v, %s)", pod, eth1, client, err == nil, answers, err, out)
		}
	}
	s.pings(t, "eth1", s.look(t, "two").address["eth1"])
}

// survivesCilium expects Braid's configuration where Cilium renames those of
// others, and events that say so: one at braidd's start, and one for a
// configuration that Cilium does rename.
func (s *scenario) survivesCilium(t *testing.T) {
	t.Helper()
	for _, node := range s.lab.Nodes() {
		s.on(t, node, `echo '{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge"}]}' > /etc/cni/net.d/99-other.conflist`)
	}
	err := s.Eventually(t.Context(), time.Minute, "events that tell what Cilium does", func(ctx context.Context) error {
		events, err := s.lab.Kubectl(ctx, "get", "events", "--field-selector", "involvedObject.kind=Node,source=braid", "--no-headers",
			"-o", "custom-columns=:.involvedObject.name,:.type,:.reason,:.message")
		if err != nil {
			return err
		}
		said := strings.Join(strings.Fields(events), " ")
		for _, node := range s.lab.Nodes() {
			for _, want := range []string{
				" Normal ConfigurationGuarded Cilium renames the configurations",
				" Warning ConfigurationRenamed Cilium has renamed 99-other.conflist",
			} {
				if !strings.Contains(said, node+want) {
					return fmt.Errorf("no event %q in %s", node+want, said)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, node := range s.lab.Nodes() {
		files := s.on(t, node, "ls /etc/cni/net.d")
		if files != "00-braid.conflist\n00-braid.conflist.cilium_bak\n05-cilium.conflist\n99-other.conflist.cilium_bak" {
			t.Errorf("%s: conf dir: %s", node, files)
		}
	}
}

// bothNetworks expects of the pods one and two that Flannel is eth0 and Cilium
// eth1, and that each network's traffic uses its own interface. It deletes the
// pods.
func (s *scenario) bothNetworks(t *testing.T, one, two podView) {
	t.Helper()
	for _, pod := range []podView{one, two} {
		if !strings.HasPrefix(pod.address["eth0"], "10.244.") || !strings.HasPrefix(pod.address["eth1"], "172.20.") {
			t.Errorf("%s: addresses %v", pod.name, pod.address)
		}
	}
	for _, link := range []string{"eth0", "eth1"} {
		before := s.sent(t, link)
		s.pings(t, link, two.address[link])
		if s.sent(t, link) == before {
			t.Errorf("the ping over %s did not leave by it", link)
		}
	}
	s.kubectl(t, "delete", "pod", "one", "two", "--wait")
}

// sent is how many packets pod one has sent on a link.
func (s *scenario) sent(t *testing.T, link string) string {
	t.Helper()
	return s.kubectl(t, "exec", "one", "--", "cat", "/sys/class/net/"+link+"/statistics/tx_packets")
}

// upWith brings up a lab of its own for one scenario.
func upWith(t *testing.T, cfg lab.Config) *scenario {
	t.Helper()
	if os.Getenv("BRAID_TIER") != "cluster" {
		t.Skip("needs a lab: make test-cluster")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	t.Parallel() // labs do not meet
	cfg.Source, cfg.Progress = root, os.Stderr
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), cfg.Name, os.Stderr); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &scenario{lab: l, Demo: demo.Demo{Cluster: l, Root: root, Out: os.Stdout}}
}

// install installs Braid from deploy/.
func (s *scenario) install(t *testing.T) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "braid.tar")
	if err := image.Write(archive, image.Braid(filepath.Join(s.Root, "bin"), image.Ref)); err != nil {
		t.Fatalf("%v (make build)", err)
	}
	if err := s.Install(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
}

// networkOf is the manifest of a network.
func networkOf(name, config string) string {
	manifest := "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n  name: " + name + "\n"
	if config != "" {
		manifest += "spec:\n  config: |\n    " + config + "\n"
	}
	return manifest
}

// twoPods starts the pods one and two, both with the networks.
func (s *scenario) twoPods(t *testing.T, nodeOne, nodeTwo, networks string) (one, two podView) {
	t.Helper()
	s.pod(t, "one", nodeOne, networks)
	s.pod(t, "two", nodeTwo, networks)
	s.running(t)
	return s.look(t, "one"), s.look(t, "two")
}

func (s *scenario) pod(t *testing.T, name, node, networks string) {
	t.Helper()
	s.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations: {k8s.v1.cni.cncf.io/networks: %q}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
    - {name: box, image: %s, command: [tail, -f, /dev/null]}
`, name, networks, node, lab.TestImage))
}

func (s *scenario) running(t *testing.T) {
	t.Helper()
	if out, err := s.lab.Kubectl(t.Context(), "wait", "--for=condition=Ready", "--timeout=240s", "pod/one", "pod/two"); err != nil {
		events := s.kubectl(t, "get", "events", "--sort-by=.lastTimestamp")
		t.Fatalf("%v: %s\n%s", err, out, events)
	}
}

// podView is what a pod sees of its networks.
type podView struct {
	name    string
	address map[string]string // the IPv4 address of each link
	routes  string            // as "ip route" prints them
}

// look takes one command in the pod, as starting one is what takes time.
func (s *scenario) look(t *testing.T, pod string) podView {
	t.Helper()
	out := s.kubectl(t, "exec", pod, "--", "sh", "-c", "ip -o -4 address && echo routes: && ip route")
	addresses, routes, _ := strings.Cut(out, "routes:\n")
	view := podView{pod, map[string]string{}, routes}
	for line := range strings.Lines(addresses) {
		// 3: net1    inet 192.168.1.13/24 …
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[2] != "inet" {
			t.Fatalf("%s: address %q", pod, line)
		}
		view.address[fields[1]], _, _ = strings.Cut(fields[3], "/")
	}
	return view
}

// oneDefaultRoute expects exactly one default route, through Flannel.
func (v podView) oneDefaultRoute(t *testing.T) {
	t.Helper()
	if strings.Count(v.routes, "default") != 1 || !strings.Contains(v.routes, "default via 10.244.") {
		t.Errorf("%s: not one default route, through Flannel:\n%s", v.name, v.routes)
	}
}

// isAsInTheSeed looks at the networks, links and flags of the network-status,
// which the page shows, and at the routes: the default network's, with the
// default route among them, and that of each extra network, the n-th of which
// is 192.168.n.0/24.
func (s *scenario) isAsInTheSeed(t *testing.T, pod podView, networks ...string) {
	t.Helper()
	status := strings.ReplaceAll(unspaced(s.networkStatus(t, pod.name)), "\n", "")
	var routes []string
	for i, network := range networks {
		link := "eth0"
		if i > 0 {
			link = fmt.Sprintf("net%d", i)
			routes = append(routes, fmt.Sprintf("192.168.%d.0/24 dev %s", i, link))
		}
		want := fmt.Sprintf(`"name":%q,"interface":%q,"ips":[%q]`, network, link, pod.address[link])
		if !strings.Contains(status, want) {
			t.Errorf("%s: no %s in the network-status %s", pod.name, want, status)
		}
	}
	var extra []string
	for route := range strings.Lines(pod.routes) {
		if !strings.Contains(route, " dev eth0") {
			extra = append(extra, strings.TrimSpace(route))
		}
	}
	asWanted := slices.EqualFunc(extra, routes, strings.HasPrefix)
	if !asWanted || strings.Count(pod.routes, "default via ") != 1 {
		t.Errorf("%s: routes\n%s", pod.name, pod.routes)
	}
}

// pings expects an answer to pod one from address, over one of its links.
func (s *scenario) pings(t *testing.T, link, address string) {
	t.Helper()
	if out, err := s.lab.Kubectl(t.Context(), "exec", "one", "--", "ping", "-c", "1", "-w", "20", "-I", link, address); err != nil {
		t.Errorf("ping %s over %s: %v\n%s", address, link, err, out)
	}
}

func (s *scenario) on(t *testing.T, node, command string) string {
	t.Helper()
	out, err := s.lab.NodeRun(t.Context(), node, "sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
