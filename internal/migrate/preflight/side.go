// Package preflight says, before anything is touched, what stands in the way of
// moving a cluster from one CNI to another, and which setting would remove it.
//
// It judges data: the cluster's objects and the nodes' facts, read live or from
// a directory of dumps. Check is a pure function over them.
package preflight

import (
	"fmt"
	"net/netip"
	"strings"

	"braid.dev/braid/internal/migrate/facts"
)

// Side is one of the two CNIs of a migration: as it was detected, or as it is
// going to be installed. A profile fills it; the zero value of a field means
// that the profile does not know, unless the field says otherwise.
type Side struct {
	// Profile is the name of the CNI's profile, such as "flannel".
	Profile string `json:"profile"`
	// Version is the CNI's own, such as "1.19.0".
	Version string `json:"version,omitempty"`

	// PodCIDRs are where its pods' addresses are from, at most a few per family.
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
	IPAM     IPAM           `json:"ipam"`

	// Tunnel is the identity of its vxlan or geneve link, the same on every node;
	// nil without one. Local, IPv6 and L3MDev are empty unless it pins them.
	Tunnel *facts.Tunnel `json:"tunnel,omitempty"`
	// Transport is how packets get to other nodes: vxlan, geneve, ipip, wireguard,
	// routes (the nodes route pods' addresses among each other) or bgp.
	Transport string `json:"transport,omitempty"`
	// Overhead is how many bytes of the underlay's MTU the transport takes.
	Overhead int `json:"overhead,omitempty"`
	// MTU is that of pods as configured; 0 when the CNI computes it.
	MTU int `json:"mtu,omitempty"`

	// Masquerades are the rules of its own that rewrite the source of what pods
	// send or receive.
	Masquerades []Masquerade `json:"masquerades,omitempty"`
	// Seen names the links whose addresses a server sees when the source of a
	// connection to a pod of this side was rewritten: from the server's own node,
	// and from another. Flannel: cni0, flannel.1. Cilium: cilium_host twice.
	Seen Seen `json:"seen"`

	// HostPort is how spec.containers[].ports[].hostPort is served: "portmap" (the
	// plugin of that name in its configuration), "native" (by its agent, as
	// Cilium's kube-proxy replacement does), or "none".
	HostPort string `json:"hostPort,omitempty"`
	// KubeProxyReplacement says that its agent serves Services in the place of
	// kube-proxy.
	KubeProxyReplacement bool `json:"kubeProxyReplacement,omitempty"`
	// SocketLB says that it rewrites Services' addresses at the sockets, for
	// processes of the host too.
	SocketLB bool `json:"socketLB,omitempty"`

	// Policies are the kinds of policies that it enforces when it is told to, such
	// as NetworkPolicy and CiliumNetworkPolicy.
	Policies []string `json:"policies,omitempty"`
	// Enforces says that it does enforce them, as it is configured.
	Enforces bool `json:"enforces,omitempty"`

	// Ports are what its agents listen on in the host's network.
	Ports []Port `json:"ports,omitempty"`

	// ConfFile is the name of its configuration in the conf dir, and Network the
	// name of the network in it, such as 10-flannel.conflist and cbr0.
	ConfFile string `json:"confFile,omitempty"`
	Network  string `json:"network,omitempty"`
	// WritesConf says that an agent of its own writes ConfFile, and would do so
	// before its turn: the installation is not latent.
	WritesConf bool `json:"writesConf,omitempty"`
	// Exclusive says that its agent renames the configurations of others.
	Exclusive bool `json:"exclusive,omitempty"`
	// RestartsPods says that a controller of its own deletes pods that another CNI
	// made, as Cilium's operator does.
	RestartsPods bool `json:"restartsPods,omitempty"`

	// Plugins are the programs in the runtime's bin dir that its configuration
	// executes; Chained are those of them that follow the first, such as portmap,
	// bandwidth, tuning, istio-cni.
	Plugins []string `json:"plugins,omitempty"`
	Chained []string `json:"chained,omitempty"`
	// Needs are features of the kernel that it does not work without: names of
	// facts.Node.Features (vxlan, geneve, bpffs, cgroup2).
	Needs []string `json:"needs,omitempty"`
	// MinKernel is the oldest kernel that it supports, such as "5.10".
	MinKernel string `json:"minKernel,omitempty"`

	// Links are the links of its own on a node, as patterns of path.Match.
	Links []string `json:"links,omitempty"`
	// Autodetect says that it chooses the node's links or address by looking at
	// all of them: "first-found" (Calico), "devices" (Cilium attaches to what looks
	// native), "default-route" (Flannel). Empty when they are pinned.
	Autodetect string `json:"autodetect,omitempty"`
	// Pinned are the links or addresses that it was told to use.
	Pinned []string `json:"pinned,omitempty"`
	// HostGateway says that the node is the gateway of its pods: the host's routing
	// reaches them, and they reach what the host routes to. Unknown is "".
	HostGateway Answer `json:"hostGateway,omitempty"`
	// Bypasses says that what its pods send and get goes around the host's
	// netfilter and routing, as Cilium's does unless bpf.hostLegacyRouting is set.
	Bypasses bool `json:"bypasses,omitempty"`

	// Workloads are its own DaemonSets and Deployments, as Kind/namespace/name.
	Workloads []string `json:"workloads,omitempty"`
	// Settings are names of its settings as its users write them, by what they
	// set, so that a fix can be told in their words; the values are preflight's.
	// Keys: tunnel-port, tunnel-protocol, tunnel-id, pod-cidr, pod-cidr6, ipam,
	// mtu, exclusive, masquerade, masquerade-except, devices, hostport, policy,
	// legacy-routing, restarts-pods, latent, ports.
	Settings map[string]string `json:"settings,omitempty"`
	// Evidence is where the profile read all this, as short lines.
	Evidence []string `json:"evidence,omitempty"`
}

// Answer is yes, no or, empty, unknown.
type Answer string

// Answers.
const (
	Yes Answer = "yes"
	No  Answer = "no"
)

// IPAM is where the addresses of a side's pods are from.
type IPAM struct {
	// Source is "node" (node.spec.podCIDR), "pool" (ranges that the CNI itself
	// divides among nodes) or "conf" (ranges in every node's configuration).
	Source string `json:"source,omitempty"`
	// Mode is the CNI's own word for it, such as cluster-pool.
	Mode string `json:"mode,omitempty"`
	// NodeMask4 and NodeMask6 are the prefix lengths of a node's block; 0 when
	// blocks are not per node or not known.
	NodeMask4 int `json:"nodeMask4,omitempty"`
	NodeMask6 int `json:"nodeMask6,omitempty"`
	// MoreBlocks says that a node gets another block when its first is used up.
	MoreBlocks bool `json:"moreBlocks,omitempty"`
	// Blocks are the nodes' blocks where they are known, by node.
	Blocks map[string][]netip.Prefix `json:"blocks,omitempty"`
}

// Masquerade is one rule, or a group of them, that rewrites sources.
type Masquerade struct {
	// Name is where it is, such as "FLANNEL-POSTRTG" or "CILIUM_POST_nat".
	Name string `json:"name"`
	// Backend is iptables, nftables or bpf.
	Backend string `json:"backend"`
	// Out says that it rewrites what pods of its side send to others, In that it
	// rewrites what others send to pods of its side.
	Out bool `json:"out,omitempty"`
	In  bool `json:"in,omitempty"`
	// Except are destinations of Out, and sources of In, that it leaves alone,
	// besides its own pods.
	Except []netip.Prefix `json:"except,omitempty"`
}

// Seen are names of links.
type Seen struct {
	Same  string `json:"same,omitempty"`
	Other string `json:"other,omitempty"`
}

// Port is one that an agent listens on.
type Port struct {
	Port uint16 `json:"port"`
	// Protocol is tcp or udp.
	Protocol string `json:"protocol"`
	// Name says what for, such as "agent health".
	Name string `json:"name,omitempty"`
	// Local says that it is on a loopback address only.
	Local bool `json:"local,omitempty"`
	// Setting is what moves it, such as "healthPort" of the chart.
	Setting string `json:"setting,omitempty"`
}

// Has says whether the side enforces policies of that kind.
func (s Side) Has(kind string) bool {
	for _, k := range s.Policies {
		if k == kind {
			return true
		}
	}
	return false
}

// Setting is the user's name of a setting, or the key itself.
func (s Side) Setting(key string) string {
	if name := s.Settings[key]; name != "" {
		return name
	}
	return key
}

// set says how to give a setting a value, in the user's words; nothing when
// the side has no such setting. A name may hold its value, or be the part of a
// manifest that does the wrong thing.
func (s Side) set(key, value string) string {
	name := s.Settings[key]
	switch {
	case name == "":
		return ""
	case strings.Contains(name, "="):
		return "set " + name
	case strings.HasPrefix(name, "the init container "):
		return "install it without " + name
	case strings.HasPrefix(name, "the plugin "):
		return "add " + name
	case strings.Contains(name, " ") && !strings.Contains(name, " in "):
		return ""
	}
	return fmt.Sprintf("set %s to %s", name, value)
}

// ownRanges says how a CNI that takes its ranges from the nodes has its own
// instead; nothing when it cannot.
func (s Side) ownRanges() string {
	return map[string]string{
		"cilium": "ipam.mode=cluster-pool",
		"calico": "ipam.type=calico-ipam in cni_network_config",
	}[s.Profile]
}
