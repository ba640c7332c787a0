// Package facts is what a migration has to know of a node, as the kernel, the
// runtime and the conf dir tell it. Facts are data: they are collected on a
// node, kept in a file or an object, and judged by package preflight elsewhere.
package facts

// Node is everything that is known of one node.
type Node struct {
	Name string `json:"name"`
	// Kernel is its release, such as 6.1.0-38-amd64; OS that of os-release.
	Kernel string `json:"kernel,omitempty"`
	OS     string `json:"os,omitempty"`
	BootID string `json:"bootID,omitempty"`

	Links  []Link  `json:"links,omitempty"`
	Routes []Route `json:"routes,omitempty"`
	// UDP and TCP are the sockets of the host that wait for traffic.
	UDP []Listener `json:"udp,omitempty"`
	TCP []Listener `json:"tcp,omitempty"`
	// Sysctls are values below /proc/sys by their dotted names, such as
	// net.ipv4.ip_forward and net.ipv4.conf.all.rp_filter.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Firewall are the rules of every backend that the kernel has.
	Firewall []Ruleset `json:"firewall,omitempty"`
	// Features are what was tried of the kernel: vxlan, geneve, bpffs, cgroup2.
	Features map[string]bool `json:"features,omitempty"`

	CNI       CNI       `json:"cni"`
	Sandboxes []Sandbox `json:"sandboxes,omitempty"`
	// Reaches are questions that the node asked: pods of its own, without NAT.
	Reaches []Reach `json:"reaches,omitempty"`
	// Paths are questions that the node asked the daemons of the other nodes.
	Paths []Path `json:"paths,omitempty"`
	// Problems are what could not be read, as sentences.
	Problems []string `json:"problems,omitempty"`
}

// Link is a link of the host.
type Link struct {
	Name  string   `json:"name"`
	Kind  string   `json:"kind"` // as ip -d link shows it; empty for a device
	MTU   int      `json:"mtu"`
	Up    bool     `json:"up"`
	MAC   string   `json:"mac,omitempty"`
	Addrs []string `json:"addrs,omitempty"` // prefixes
	// Master and Parent are names of links.
	Master string `json:"master,omitempty"`
	Parent string `json:"parent,omitempty"`
	// Tunnel is set for vxlan and geneve.
	Tunnel *Tunnel `json:"tunnel,omitempty"`
}

// Tunnel is the identity of a vxlan or geneve link.
type Tunnel struct {
	Kind  string `json:"kind"` // vxlan or geneve
	ID    uint32 `json:"id"`
	Port  uint16 `json:"port"`
	Local string `json:"local,omitempty"`
	// External is collect-metadata mode, where the VNI is each packet's.
	External  bool `json:"external,omitempty"`
	VNIFilter bool `json:"vniFilter,omitempty"`
	GBP       bool `json:"gbp,omitempty"`
	GPE       bool `json:"gpe,omitempty"`
	// UDPZeroCsum6RX and RemCsumRX are receive flags of the socket.
	UDPZeroCsum6RX bool `json:"udpZeroCsum6RX,omitempty"`
	RemCsumRX      bool `json:"remCsumRX,omitempty"`
	// IPv6 says that its socket is an IPv6 one; L3MDev is its VRF's.
	IPv6   bool   `json:"ipv6,omitempty"`
	L3MDev string `json:"l3mdev,omitempty"`
}

// Route is a route of the host.
type Route struct {
	Dst   string `json:"dst"` // a prefix; 0.0.0.0/0 for the default
	Via   string `json:"via,omitempty"`
	Dev   string `json:"dev,omitempty"`
	Src   string `json:"src,omitempty"`
	Table int    `json:"table,omitempty"` // 0 for main
	// Protocol is a number as in rtnetlink(7), 2 for the kernel's own.
	Protocol int `json:"protocol,omitempty"`
}

// Listener is a socket that waits.
type Listener struct {
	Addr string `json:"addr"` // such as 0.0.0.0
	Port uint16 `json:"port"`
	// Kernel says that no process has it: a tunnel's.
	Kernel bool `json:"kernel,omitempty"`
}

// Ruleset is all rules of one backend.
type Ruleset struct {
	// Backend is iptables-nft, iptables-legacy, ip6tables-nft, ip6tables-legacy
	// or nftables (tables that are not iptables').
	Backend string `json:"backend"`
	// Text is what iptables-save or nft list ruleset prints, without counters.
	Text string `json:"text"`
}

// CNI is what the runtime and its directories say.
type CNI struct {
	ConfDir string `json:"confDir"`
	Files   []File `json:"files,omitempty"`
	BinDir  string `json:"binDir"`
	// Plugins are the programs in BinDir.
	Plugins []string `json:"plugins,omitempty"`
	// Runtime and Version are such as containerd and v2.4.2.
	Runtime string `json:"runtime,omitempty"`
	Version string `json:"version,omitempty"`
	// MaxConfNum is containerd's; 0 when unknown.
	MaxConfNum int `json:"maxConfNum,omitempty"`
	// NetworkReady and Message are the runtime's; Loaded are the names of the
	// networks that it says it has loaded, in its order.
	NetworkReady bool     `json:"networkReady"`
	Message      string   `json:"message,omitempty"`
	Loaded       []string `json:"loaded,omitempty"`
	// LoadStatus is containerd's lastCNILoadStatus, "OK" when all is well.
	LoadStatus string `json:"loadStatus,omitempty"`
	// DefaultNetwork is CRI-O's cni_default_network.
	DefaultNetwork string `json:"defaultNetwork,omitempty"`
	// State are files of CNIs outside the conf dir, such as
	// /run/flannel/subnet.env, with their text where it is short.
	State []File `json:"state,omitempty"`
}

// File is a file with its name, or its path, and its text.
type File struct {
	Name string `json:"name"`
	Text string `json:"text,omitempty"`
}

// Sandbox is a pod's sandbox as the runtime has it.
type Sandbox struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid"`
	Ready     bool   `json:"ready"`
	// HostNetwork says that it has the node's network namespace.
	HostNetwork bool     `json:"hostNetwork,omitempty"`
	IPs         []string `json:"ips,omitempty"`
	NetNS       string   `json:"netns,omitempty"`
}

// Reach is one question of the node to one of its own pods.
type Reach struct {
	Pod string `json:"pod"` // namespace/name
	IP  string `json:"ip"`
	// Dev is the link that the route to it leaves by.
	Dev string `json:"dev,omitempty"`
	// Error says why there was no answer to a ping.
	Error string `json:"error,omitempty"`
}

// Path is one question of the node to another: a UDP datagram that must not be
// fragmented, to the other node's address, and its echo.
type Path struct {
	Node string `json:"node"` // the other one
	// Port is the UDP port that was asked.
	Port uint16 `json:"port"`
	// MTU is the length of the largest IP packet that came back.
	MTU int `json:"mtu,omitempty"`
	// Error says why nothing came back.
	Error string `json:"error,omitempty"`
}
