// Package spec is how a profile says what its CNI leaves on a node.
package spec

import (
	"net/netip"
	"strings"
)

// Spec is what a CNI leaves on a node, in patterns of path.Match. What no
// pattern matches is somebody else's. Package leftover finds it, and removes it.
type Spec struct {
	// Profile is whose it is, Network the name of the network in its
	// configuration: plugins keep their records by that name.
	Profile, Network string
	// PodCIDRs are where its pods' addresses are from.
	PodCIDRs []netip.Prefix

	Links  []LinkPattern
	Routes []RoutePattern
	Rules  []RulePattern
	// LocalRule is the priority that the CNI moved the rule of the local table
	// to, which is 0 otherwise; 0 when it does not.
	LocalRule int

	// Chains are names of its chains in iptables, in either backend, either family
	// and any table. The rules that lead to them are its own too, in whatever chain.
	Chains []string
	// Comments are those of rules of its own in the chains of others.
	Comments []string
	// Portmap, Masquerade and Firewall say that the reference plugins of these
	// functions are in its configuration. Their rules say which network and which
	// container, or which address, they are for.
	Portmap, Masquerade, Firewall bool
	// Tables are its tables of nftables, by family and name.
	Tables []Table
	// IPSets are names of its sets of ipset.
	IPSets []string
	// Programs are names of its eBPF programs on links that are not its own.
	Programs []string

	Files []FilePattern

	// Stays tells, in sentences, what it has changed that cannot be told from what
	// others need, and therefore stays.
	Stays []string
}

// LinkPattern says which links are a CNI's own: of that name, and of one of
// these kinds if there are any.
type LinkPattern struct {
	Name  string
	Kinds []string
}

// RoutePattern says which routes are a CNI's own, besides those through its own
// links. All that is set must hold; one with nothing set matches nothing.
type RoutePattern struct {
	// Within says that the destination is a part of the CNI's addresses, and not
	// all of them, which may be somebody's route to the whole network.
	Within bool
	// Gateway says that it has a gateway.
	Gateway bool
	// Type is unicast, blackhole and so on.
	Type string
	// Table and Protocol are numbers as in rtnetlink(7).
	Table, Protocol int
}

// RulePattern says which routing rules are a CNI's own: those into that table,
// with that priority unless it is 0.
type RulePattern struct {
	Table, Priority int
}

// Table is a table of nftables.
type Table struct {
	// Family is ip, ip6, inet, arp, bridge or netdev.
	Family string
	Name   string
}

// FilePattern says which files are a CNI's own.
type FilePattern struct {
	// Glob is relative to the host's root, such as run/flannel.
	Glob string
	Kind FileKind
}

// FileKind is what is known about a file, and so when it may go.
type FileKind string

// Kinds of files.
const (
	// Plain is a file, or a directory with all that is in it: the CNI's state.
	Plain FileKind = ""
	// Ranges is a directory of the plugin host-local for one network, with one
	// file per address that says whose it is.
	Ranges FileKind = "host-local"
	// Cache is a file of libcni for one attachment.
	Cache FileKind = "cache"
	// Attachment is a file named by a container.
	Attachment FileKind = "attachment"
	// Conf is a configuration that the runtime might load. It goes only when there
	// is another that it prefers.
	Conf FileKind = "conf"
	// Aside is a configuration that was put aside.
	Aside FileKind = "aside"
	// Foreign is somebody's configuration that the CNI put aside. It stays: it may
	// be the only copy.
	Foreign FileKind = "foreign"
	// Pin is a file of the bpf file system, which keeps a program or a map alive.
	Pin FileKind = "bpf"
	// Mount is a directory that the CNI mounted something on.
	Mount FileKind = "mount"
)

// Literal is a file's name as a pattern of path.Match that matches only it.
func Literal(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// HostPath makes an absolute path of the host one that is relative to its root.
func HostPath(path string) string { return strings.Trim(path, "/") }

// NetworkFiles are the records that libcni and the reference plugins keep of a
// network of that name, and its configuration put aside in the conf dir.
func NetworkFiles(network, confDir, confFile string) []FilePattern {
	files := []FilePattern{
		{"var/lib/cni/networks/" + Literal(network), Ranges},
		{"var/lib/cni/results/" + Literal(network) + "-*", Cache},
		{"var/lib/cni/cache/results/" + Literal(network) + "-*", Cache},
	}
	if confFile != "" {
		files = append(files, ConfFiles(confDir, confFile)...)
	}
	return files
}

// ConfFiles are the configuration of that name and what it is called when a
// migration, or Cilium, has put it aside.
func ConfFiles(confDir, confFile string) []FilePattern {
	path := HostPath(confDir) + "/" + Literal(confFile)
	return []FilePattern{{path, Conf}, {path + ".braid-migrate", Aside}, {path + ".cilium_bak", Aside}}
}

// DefaultConfDir is where runtimes look for configurations unless they are told.
const DefaultConfDir = "/etc/cni/net.d"

// In is the same for a node whose runtime has another conf dir.
func (s Spec) In(confDir string) Spec {
	if confDir == "" {
		return s
	}
	files := make([]FilePattern, len(s.Files))
	for i, f := range s.Files {
		if rest, ok := strings.CutPrefix(f.Glob, HostPath(DefaultConfDir)+"/"); ok {
			f.Glob = HostPath(confDir) + "/" + rest
		}
		files[i] = f
	}
	s.Files = files
	return s
}
