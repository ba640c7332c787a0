package lab

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/netns"
)

// Config describes a lab. The zero value is the lab of the demo.
type Config struct {
	// Name tells labs on one machine apart; "braid" when empty. Lower case
	// letters, digits and '-', at most 20.
	Name string
	// Nodes is how many nodes there are, 1 to 9; 2 when zero.
	Nodes int
	// ControlPlaneOnly makes a lab without nodes and without external host: an
	// API server to talk to, up within seconds.
	ControlPlaneOnly bool
	// NodeKernel is the kind of kernel that nodes run on; guest.UML when empty.
	NodeKernel guest.Kernel
	// CNI is the default network; "bridge" when empty. See CNIs.
	CNI string
	// PodNet is where the addresses of pods on the network "bridge" are from, of
	// which every node gets a /24; 10.244.0.0/16 when invalid. With one given,
	// nodes keep their podCIDR for another network, and the bridge is podbr0.
	PodNet netip.Prefix `json:",omitzero"`
	// ClusterCIDR is what kube-proxy takes for the addresses of all pods: the
	// default network's when empty, nothing when NoClusterCIDR.
	ClusterCIDR string `json:",omitempty"`
	// DNS makes CoreDNS the cluster's DNS service, at DNSService.
	DNS bool `json:",omitempty"`
	// Disk keeps what nodes with a kernel of their own write over their restarts,
	// which makes them slower; nodes on the machine's kernel always do.
	Disk bool `json:",omitempty"`
	// MaxConfNum is how many configurations of the conf dir containerd loads
	// for every pod; 1 when zero.
	MaxConfNum int
	// NodeMemoryMiB is the memory of each node; 3072 when zero. The machine
	// gives it page by page, as the node uses it.
	NodeMemoryMiB int
	// Keep leaves everything in place when Up does not succeed, to look at it.
	Keep bool `json:"-"`
	// Source and Cache are as in BuildConfig.
	Source, Cache string `json:"-"`
	// Progress receives one line per step; nil discards them.
	Progress io.Writer `json:"-"`
}

const (
	// DefaultName is the name of a lab that was given none.
	DefaultName = "braid"
	// TrunkNIC is the link of every node, and of the external host, that is on
	// the trunk.
	TrunkNIC = "trunk0"
	// External is the host on the trunk that is no node of the cluster.
	External = "ext"
	// NoClusterCIDR as Config.ClusterCIDR is none at all.
	NoClusterCIDR = "none"
	// TestImage is an image for pods that every node has: busybox with all
	// its applets, among them ip, ping, arping, httpd and nc.
	TestImage = "braid.dev/toolbox:dev"

	stateRoot  = "/run/braid-lab"
	mgmtBridge = "braidmgmt"
	mgmtNIC    = "eth0"
	trunk      = "braidtrunk"
	apiPort    = 6443
	// pauseImage is the image of every pod's sandbox.
	pauseImage = "braid.dev/pause:dev"
)

// The addresses of a lab. Each lab has them to itself, in its own network
// namespace, and none of them can be reached from outside of it.
var (
	mgmtNet    = netip.MustParsePrefix("172.30.0.0/24")
	podNet     = netip.MustParsePrefix("10.244.0.0/16")
	serviceNet = netip.MustParsePrefix("10.96.0.0/16")
	// mgmtHost is the address of the control plane on the management bridge.
	mgmtHost = addrAt(mgmtNet, 1)
	// apiService is the cluster address of the API server.
	apiService = addrAt(serviceNet, 1)
	// DNSService is the cluster address of the DNS service.
	DNSService = addrAt(serviceNet, 10)
)

// ExternalVLANs are the links of the external host: one address per VLAN id.
var ExternalVLANs = []VLAN{
	{ID: 2001, Addr: netip.MustParsePrefix("10.20.1.1/24")},
	{ID: 2002, Addr: netip.MustParsePrefix("10.20.2.1/24")},
}

// VLAN is an address of the external host and the VLAN it is in.
type VLAN struct {
	ID   int
	Addr netip.Prefix
}

// MAC is the link's MAC address: locally administered, with the IPv4 address
// in it.
func (v VLAN) MAC() net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x42}, v.Addr.Addr().AsSlice()...)
}

var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("lab name %q: a name is lower case letters, digits and '-', starts with a letter and has at most 20 of them", name)
	}
	return nil
}

// complete fills in what was left empty and refuses what cannot work.
func (c Config) complete() (Config, error) {
	c.Name = cmp.Or(c.Name, DefaultName)
	if c.ControlPlaneOnly {
		c.Nodes = 0
	} else {
		c.Nodes = cmp.Or(c.Nodes, 2)
	}
	c.NodeKernel = cmp.Or(c.NodeKernel, guest.UML)
	c.Disk = c.Disk || c.NodeKernel == guest.Host
	c.CNI = cmp.Or(c.CNI, "bridge")
	c.MaxConfNum = cmp.Or(c.MaxConfNum, 1)
	c.NodeMemoryMiB = cmp.Or(c.NodeMemoryMiB, 3072)
	switch {
	case checkName(c.Name) != nil:
		return c, checkName(c.Name)
	case c.Nodes < 0 || c.Nodes > 9:
		return c, fmt.Errorf("%d nodes: a lab has 1 to 9", c.Nodes)
	case !slices.Contains(guest.Kernels, c.NodeKernel):
		return c, fmt.Errorf("node kernel %q: there are %v", c.NodeKernel, guest.Kernels)
	case !slices.Contains(CNIs, c.CNI):
		return c, fmt.Errorf("default network %q: there are %s", c.CNI, strings.Join(CNIs, ", "))
	case c.cilium() && c.NodeKernel == guest.UML:
		// Its agent ends with "can't create perf event: function not implemented".
		return c, fmt.Errorf("default network %s: Cilium needs perf events, which user-mode-linux lacks: --node-kernel=host or qemu", c.CNI)
	case c.PodNet.IsValid() && c.CNI != "bridge":
		return c, fmt.Errorf("pod network %s: only that of the default network bridge can be chosen", c.PodNet)
	case c.PodNet.IsValid() && (!c.PodNet.Addr().Is4() || c.PodNet.Bits() > 20 || c.PodNet != c.PodNet.Masked()):
		return c, fmt.Errorf("pod network %s: an IPv4 range of /20 or more", c.PodNet)
	case c.ClusterCIDR != "" && c.ClusterCIDR != NoClusterCIDR && !isPrefix(c.ClusterCIDR):
		return c, fmt.Errorf("cluster CIDR %q: a range of addresses, or %q", c.ClusterCIDR, NoClusterCIDR)
	case c.MaxConfNum < 0:
		return c, fmt.Errorf("max_conf_num %d: 1 or more", c.MaxConfNum)
	case c.NodeMemoryMiB < 512:
		return c, fmt.Errorf("%d MiB for a node: kubelet and containerd need 512", c.NodeMemoryMiB)
	}
	return c, nil
}

// setUp is what two labs have in common if one can be taken for the other.
func (c Config) setUp() Config {
	c.Name, c.NodeMemoryMiB, c.Keep, c.Source, c.Cache, c.Progress = "", 0, false, "", "", nil
	return c
}

// describe is the configuration as flags of `lab up`.
func (c Config) describe() string {
	s := fmt.Sprintf("--cni=%s --node-kernel=%s --max-conf-num=%d", c.CNI, c.NodeKernel, c.MaxConfNum)
	if c.PodNet.IsValid() {
		s += " --pod-net=" + c.PodNet.String()
	}
	if c.ClusterCIDR != "" {
		s += " --cluster-cidr=" + c.ClusterCIDR
	}
	if c.DNS {
		s += " --dns"
	}
	if c.Disk && c.NodeKernel != guest.Host {
		s += " --disk"
	}
	return s
}

func isPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// addrAt returns the nth address of p.
func addrAt(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// guests are all that run under a kernel of their own.
func (c Config) guests() []node {
	if c.ControlPlaneOnly {
		return nil
	}
	return append(c.nodes(), externalNode())
}

// node is what is decided about a node before anything exists.
type node struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
	// Tap is the beginning of the names of the node's taps.
	Tap string `json:"tap"`
}

func (c Config) nodes() []node {
	list := make([]node, c.Nodes)
	for i := range list {
		list[i] = node{
			Name: fmt.Sprintf("node%d", i+1),
			Addr: addrAt(mgmtNet, 11+i),
			Tap:  fmt.Sprintf("braidn%d", i+1),
		}
	}
	return list
}

func externalNode() node {
	return node{Name: External, Addr: addrAt(mgmtNet, 250), Tap: "braidx"}
}

// paths are the places of a lab on the host. They follow from its name alone,
// so that a lab can be removed when nothing else is known of it.
type paths struct{ Name string }

func (p paths) dir() string                { return filepath.Join(stateRoot, p.Name) }
func (p paths) lock() string               { return p.dir() + ".lock" }
func (p paths) state() string              { return filepath.Join(p.dir(), "lab.json") }
func (p paths) pki(file string) string     { return filepath.Join(p.dir(), "pki", file) }
func (p paths) kubeconfig(u string) string { return filepath.Join(p.dir(), u+".kubeconfig") }
func (p paths) log(name string) string     { return filepath.Join(p.dir(), "log", name+".log") }
func (p paths) guest(name string) string   { return filepath.Join(p.dir(), "guest", name) }
func (p paths) disks() string              { return filepath.Join(p.dir(), "disk") }
func (p paths) disk(name string) string    { return filepath.Join(p.disks(), name) }
func (p paths) boot(name string) string    { return filepath.Join(p.dir(), "boot", name+".json") }
func (p paths) netnsName() string          { return "braid-" + p.Name }
func (p paths) netns() string              { return netns.Path(p.netnsName()) }
func (p paths) cgroupName() string         { return "braid-lab-" + p.Name }
