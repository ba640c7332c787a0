package demo_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/demo"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/lab"
)

// Scenarios of people who have more than one network today, beside real
// default networks.

// TestClusterCiliumAndAnExtraNetwork has Cilium in its exclusive mode, as it is
// installed by default: it renames the configurations of others, Braid's too.
// This machine's kernel has what Cilium needs and no ipvlan, so the extra
// network is macvlan; TestClusterIPVlan has the other half.
func TestClusterCiliumAndAnExtraNetwork(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-cilium", CNI: "cilium", NodeKernel: "host"})
	s.install(t)
	for _, node := range s.lab.Nodes() {
		files := s.on(t, node, "ls /etc/cni/net.d")
		if files != "00-braid.conflist\n00-braid.conflist.cilium_bak\n05-cilium.conflist" {
			t.Errorf("%s: conf dir: %s", node, files)
		}
	}
	log := s.kubectl(t, "-n", "braid-system", "logs", "--prefix", "-l", "app.kubernetes.io/name=braid", "--tail=-1", "-c", "braidd")
	if !strings.Contains(log, "Cilium renames the configurations of others") {
		t.Errorf("braidd does not say what Cilium does:\n%s", log)
	}
	s.apply(t, networkOf("extra", `{"cniVersion":"0.3.0","type":"macvlan","master":"trunk0","ipam":{"type":"host-local",
      "subnet":"192.168.1.0/24","rangeStart":"192.168.1.13","rangeEnd":"192.168.1.17","gateway":"192.168.1.1"}}`))
	s.twoPods(t, "node1", "node1", "extra")
	s.statusIsAsInTheSeed(t, "cilium", "default/extra")
	for _, want := range []string{"default via 172.20.", "192.168.1.0/24 dev net1"} {
		if routes := s.kubectl(t, "exec", "one", "--", "ip", "route"); !strings.Contains(routes, want) || strings.Count(routes, "default") != 1 {
			t.Errorf("no %q, or not one default route, in\n%s", want, routes)
		}
	}
	s.pings(t, "net1", s.address(t, "two", "net1"))
	s.pings(t, "eth0", s.address(t, "two", "eth0"))
}

// TestClusterIPVlan is the network of the same page as it stands there, in each
// mode of ipvlan, on nodes whose kernel has it.
func TestClusterIPVlan(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-ipvlan", CNI: "flannel"})
	s.install(t)
	for i, node := range s.lab.Nodes() {
		s.on(t, node, fmt.Sprintf("ip addr add 192.168.1.%d/24 dev trunk0 && ip link set trunk0 up", 101+i))
	}
	for _, mode := range []string{"l3", "l2", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			// host-local hands out addresses per node: each node has a range.
			for i, node := range s.lab.Nodes() {
				s.apply(t, networkOf("ipvlan-"+node, fmt.Sprintf(`{"cniVersion":"0.3.0","type":"ipvlan","master":"trunk0","mode":"%s","ipam":{"type":"host-local",
      "subnet":"192.168.1.0/24","rangeStart":"192.168.1.%d","rangeEnd":"192.168.1.%d","gateway":"192.168.1.1"}}`, mode, 13+20*i, 17+20*i)))
			}
			s.pod(t, "three", "node2", "ipvlan-node2")
			s.twoPods(t, "node1", "node1", "ipvlan-node1")
			s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=240s", "pod/three")
			s.statusIsAsInTheSeed(t, "cbr0", "default/ipvlan-node1")
			routes := s.kubectl(t, "exec", "one", "--", "ip", "route")
			if !strings.Contains(routes, "192.168.1.0/24 dev net1") || strings.Count(routes, "default") != 1 || !strings.Contains(routes, "dev eth0") {
				t.Errorf("routes:\n%s", routes)
			}
			there := s.address(t, "three", "net1")
			if mode != "l2" {
				// Nobody answers for such a pod on the wire: the nodes route.
				s.on(t, "node1", "ip route replace "+there+" via 192.168.1.102 dev trunk0")
				s.on(t, "node2", "ip route replace "+s.address(t, "one", "net1")+" via 192.168.1.101 dev trunk0")
			}
			s.pings(t, "net1", s.address(t, "two", "net1"))
			s.pings(t, "net1", there)
			s.kubectl(t, "delete", "pod", "one", "two", "three", "--wait")
		})
	}
}

// TestClusterFlannelAndCilium gives pods Flannel (host-gw) as eth0 and Cilium
// as eth1, in two ways that are Braid's: by annotation and for every pod.
func TestClusterFlannelAndCilium(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-two", CNI: "flannel-host-gw+cilium", NodeKernel: "host"})
	s.install(t)
	t.Run("by annotation", func(t *testing.T) {
		// A network without a configuration is the one of that name in the conf dir.
		s.apply(t, networkOf("cilium", ""))
		s.twoPods(t, "node1", "node2", "cilium@eth1")
		s.oneDefaultRoute(t)
		s.bothNetworks(t)
	})
	t.Run("confDirNetworks", func(t *testing.T) {
		s.kubectl(t, "-n", "braid-system", "patch", "configmap", "braidd", "--type=merge", "-p", `{"data":{"braidd.yaml":"confDirNetworks: 2\n"}}`)
		s.kubectl(t, "-n", "braid-system", "rollout", "restart", "daemonset/braidd")
		s.kubectl(t, "-n", "braid-system", "rollout", "status", "daemonset/braidd", "--timeout=180s")
		s.twoPods(t, "node1", "node2", "")
		s.oneDefaultRoute(t)
		s.bothNetworks(t)
	})
}

// TestClusterFlannelAndCiliumByContainerd is what people do without Braid.
// containerd attaches both networks at the same time, so it is a race whether
// a pod has one default route or two; the page that this follows saw two.
func TestClusterFlannelAndCiliumByContainerd(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-max", CNI: "flannel-host-gw+cilium", NodeKernel: "host", MaxConfNum: 2})
	s.twoPods(t, "node1", "node2", "")
	for _, pod := range []string{"one", "two"} {
		routes := s.kubectl(t, "exec", pod, "--", "ip", "route")
		t.Logf("%s has %d default routes", pod, strings.Count(routes, "default"))
		if !strings.Contains(routes, "default via 10.244.") {
			t.Errorf("%s: no default route through Flannel:\n%s", pod, routes)
		}
	}
	s.bothNetworks(t)
}

// TestClusterFlannelAndABridge has eth1 on the network of the nodes, by a bridge
// that the trunk is a port of. A client of another subnet, behind a router
// there, reaches eth1; the answer takes the same way only with source routing.
func TestClusterFlannelAndABridge(t *testing.T) {
	s := upWith(t, lab.Config{Name: "seed-bridge", CNI: "flannel-host-gw", NodeKernel: "host"})
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
		routes := s.kubectl(t, "exec", pod, "--", "ip", "route")
		if strings.Count(routes, "default") != 1 || !strings.Contains(routes, "default via 10.244.") {
			t.Errorf("%s: not one default route, through Flannel:\n%s", pod, routes)
		}
		eth1 := s.address(t, pod, "eth1")
		s.on(t, "node2", "busybox ping -c 1 -w 20 "+eth1)
		limit := map[bool]string{true: "20", false: "3"}[answers]
		out, err := s.lab.NodeRun(t.Context(), "node2", "busybox", "ping", "-c", "1", "-w", limit, "-I", client, eth1)
		if (err == nil) != answers {
			t.Errorf("%s at %s answers %s: %v, want %v (%v, %s)", pod, eth1, client, err == nil, answers, err, out)
		}
	}
	s.pings(t, "eth1", s.address(t, "two", "eth1"))
}

// oneDefaultRoute expects of the pods one and two exactly one default route,
// through Flannel.
func (s *scenario) oneDefaultRoute(t *testing.T) {
	t.Helper()
	for _, pod := range []string{"one", "two"} {
		routes := s.kubectl(t, "exec", pod, "--", "ip", "route")
		if strings.Count(routes, "default") != 1 || !strings.Contains(routes, "default via 10.244.") {
			t.Errorf("%s: not one default route, through Flannel:\n%s", pod, routes)
		}
	}
}

// bothNetworks expects of the pods one and two that Flannel is eth0 and Cilium
// eth1, and that each network's traffic uses its own interface. It deletes the
// pods.
func (s *scenario) bothNetworks(t *testing.T) {
	t.Helper()
	for _, pod := range []string{"one", "two"} {
		if eth0, eth1 := s.address(t, pod, "eth0"), s.address(t, pod, "eth1"); !strings.HasPrefix(eth0, "10.244.") || !strings.HasPrefix(eth1, "172.20.") {
			t.Errorf("%s: eth0 %s, eth1 %s", pod, eth0, eth1)
		}
	}
	for _, link := range []string{"eth0", "eth1"} {
		before := s.sent(t, link)
		s.pings(t, link, s.address(t, "two", link))
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
func (s *scenario) twoPods(t *testing.T, nodeOne, nodeTwo, networks string) {
	t.Helper()
	s.pod(t, "one", nodeOne, networks)
	s.pod(t, "two", nodeTwo, networks)
	s.running(t)
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

// statusIsAsInTheSeed looks at the networks, links and flags of the
// network-status, which the page shows.
func (s *scenario) statusIsAsInTheSeed(t *testing.T, names ...string) {
	t.Helper()
	for _, pod := range []string{"one", "two"} {
		path := `jsonpath={range .metadata.annotations}{.k8s\.v1\.cni\.cncf\.io/network-status}{end}`
		status := unspaced(s.kubectl(t, "get", "pod", pod, "-o", path))
		for i, link := range []string{"eth0", "net1"} {
			want := fmt.Sprintf(`"name":%q,"interface":%q,"ips":[%q]`, names[i], link, s.address(t, pod, link))
			if !strings.Contains(strings.ReplaceAll(status, "\n", ""), want) {
				t.Errorf("%s: no %s in the network-status %s", pod, want, status)
			}
		}
	}
}

// address is the IPv4 address of a pod's link.
func (s *scenario) address(t *testing.T, pod, link string) string {
	t.Helper()
	out := s.kubectl(t, "exec", pod, "--", "ip", "-o", "-4", "address", "show", "dev", link)
	fields := strings.Fields(out)
	i := slices.Index(fields, "inet")
	if i < 0 || i+1 >= len(fields) {
		t.Fatalf("%s has no address on %s: %s", pod, link, out)
	}
	address, _, _ := strings.Cut(fields[i+1], "/")
	return address
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
