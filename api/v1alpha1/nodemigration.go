package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// NodeMigration is one node's part in a migration, of the node's name. The
// leader writes what shall be (spec), the node's own daemon makes it so and
// writes what is (status), as the kernel and the runtime tell it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=nodemig
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Migration",type=string,JSONPath=`.spec.migration`
// +kubebuilder:printcolumn:name="Runtime",type=string,JSONPath=`.status.runtime`
// +kubebuilder:printcolumn:name="Source",type=integer,JSONPath=`.status.onSource`
// +kubebuilder:printcolumn:name="Target",type=integer,JSONPath=`.status.onTarget`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
type NodeMigration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   NodeMigrationSpec   `json:"spec,omitempty"`
	Status NodeMigrationStatus `json:"status,omitempty,omitzero"`
}

// RuntimeState is which network the runtime gives to new pods of a node.
type RuntimeState string

const (
	// RuntimeSource and RuntimeTarget: that network's own configuration.
	RuntimeSource RuntimeState = "Source"
	RuntimeTarget RuntimeState = "Target"
	// RuntimeClosedToTarget: pods are refused for now, except the probes', which
	// get the target. A sandbox that ends is taken down by the network that made
	// it. RuntimeClosedToSource is the way back.
	RuntimeClosedToTarget RuntimeState = "ClosedToTarget"
	RuntimeClosedToSource RuntimeState = "ClosedToSource"
	// RuntimeOpenToTarget: new sandboxes get the target; one that ends is taken
	// down by the network that made it.
	RuntimeOpenToTarget RuntimeState = "OpenToTarget"
	RuntimeOpenToSource RuntimeState = "OpenToSource"
)

// NodeMigrationSpec is what shall be on the node.
type NodeMigrationSpec struct {
	// Migration is the name of the Migration; without one the daemon only
	// reports.
	Migration string `json:"migration,omitempty"`
	// From and To are copies of the Migration's.
	From Network `json:"from,omitempty,omitzero"`
	To   Network `json:"to,omitempty,omitzero"`
	// Runtime is what new pods shall get.
	// +kubebuilder:validation:Enum=Source;Target;ClosedToTarget;ClosedToSource;OpenToTarget;OpenToSource
	Runtime RuntimeState `json:"runtime,omitempty"`
	// Move restarts, in place, the sandboxes that are not on that side.
	// +kubebuilder:validation:Enum=Source;Target
	Move Side `json:"move,omitempty"`
	// PreserveSource keeps the exemption from NAT on the node.
	PreserveSource bool `json:"preserveSource,omitempty"`
	// Probe asks for a round of probes.
	Probe *ProbeRequest `json:"probe,omitempty"`
	// Clean removes what that side's network leaves; Audit lists it, anew whenever
	// Audits changes.
	// +kubebuilder:validation:Enum=Source;Target
	Clean Side `json:"clean,omitempty"`
	// +kubebuilder:validation:Enum=Source;Target
	Audit  Side  `json:"audit,omitempty"`
	Audits int64 `json:"audits,omitempty"`
	// Facts asks for the node's facts; they are reported when it changes.
	Facts int64 `json:"facts,omitempty"`
	// FactsTaken says which facts have been read: they are dropped, as they are
	// large and the status is written often.
	FactsTaken int64 `json:"factsTaken,omitempty"`
	// Paths has the daemon answer other nodes at UDP ports, for as long as it is
	// there, and ask them when it collects facts.
	Paths *PathRequest `json:"paths,omitempty"`
}

// PathRequest is about the ways between nodes, which a tunnel is going to need.
type PathRequest struct {
	// Ports are UDP ports. A tunnel cannot be set up on one of them meanwhile.
	Ports []int32 `json:"ports"`
	// Peers are the other nodes.
	Peers []PathPeer `json:"peers,omitempty"`
}

// PathPeer is another node at its address.
type PathPeer struct {
	Node    string `json:"node"`
	Address string `json:"address"`
}

// ProbeRequest is one round of probes.
type ProbeRequest struct {
	Round   int64         `json:"round"`
	Targets []ProbeTarget `json:"targets,omitempty"`
}

// ProbeTarget is something that every probe on the node shall ask.
type ProbeTarget struct {
	// Name is for people, such as "old pod on node2".
	Name string `json:"name"`
	// Kind is pod, service, dns, node, apiserver or outside.
	Kind string `json:"kind"`
	// Side is that of a probe's pod; empty for others.
	Side Side `json:"side,omitempty"`
	// Node is the target's node, when it has one.
	Node string `json:"node,omitempty"`
	// Address is host:port; for dns the server's.
	Address string `json:"address"`
}

// NodeMigrationStatus is what is on the node.
type NodeMigrationStatus struct {
	// ObservedGeneration is the generation of the spec that was worked on.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Heartbeat is when the daemon last looked.
	Heartbeat metav1.Time `json:"heartbeat,omitempty,omitzero"`
	// Message says what is in the way of the spec; empty when nothing is.
	Message string `json:"message,omitempty"`
	// Runtime is what the runtime itself says it gives to new pods; empty when
	// it is none of the known.
	Runtime RuntimeState `json:"runtime,omitempty"`
	// SourceReady and TargetReady say of each side whether its datapath serves on
	// this node: "yes", or the reason why not.
	SourceReady string `json:"sourceReady,omitempty"`
	TargetReady string `json:"targetReady,omitempty"`
	// OnSource, OnTarget and OnNeither count the sandboxes with a network
	// namespace of their own by the network that their address is from. Probes
	// are not among them.
	OnSource  int `json:"onSource"`
	OnTarget  int `json:"onTarget"`
	OnNeither int `json:"onNeither,omitempty"`
	// Left are the sandboxes that still have to move, as namespace/name.
	Left []string `json:"left,omitempty"`
	// PreserveSource says that the exemption was read back from the kernel.
	PreserveSource bool `json:"preserveSource,omitempty"`
	// Probe is the result of the round that was asked for last.
	Probe *ProbeReport `json:"probe,omitempty"`
	// Leftovers is what the network of the side that was audited has left.
	Leftovers *LeftoverReport `json:"leftovers,omitempty"`
	// Facts are the node's facts (package facts).
	// +kubebuilder:pruning:PreserveUnknownFields
	Facts *runtime.RawExtension `json:"facts,omitempty"`
	// FactsAsked is the Facts of the spec that they answer.
	FactsAsked int64 `json:"factsAsked,omitempty"`
}

// ProbeReport is one round as this node's probes saw it.
type ProbeReport struct {
	Round   int64         `json:"round"`
	Results []ProbeResult `json:"results,omitempty"`
}

// ProbeResult is one question of one probe.
type ProbeResult struct {
	// From is the side that the asking probe is on.
	From Side `json:"from"`
	// To is the target's name.
	To string `json:"to"`
	// Error says why there was no answer; empty when there was.
	Error string `json:"error,omitempty"`
	// Source is the address that the probe has; Client is the one that the
	// server saw, when it told.
	Source string `json:"source,omitempty"`
	Client string `json:"client,omitempty"`
	// Saw names the owner of Client on this node: "own", a link, or empty.
	Saw string `json:"saw,omitempty"`
	// Server is the address of its own that the server told: behind a service,
	// which of its pods answered.
	Server string `json:"server,omitempty"`
	// Micros is how long the answer took.
	Micros int64 `json:"micros,omitempty"`
}

// LeftoverReport is an audit of a node.
type LeftoverReport struct {
	Side Side `json:"side"`
	// Audits is that of the spec which it answers.
	Audits int64      `json:"audits,omitempty"`
	Items  []Leftover `json:"items,omitempty"`
	// Kept is how many rules, links, routes and files were looked at and left,
	// because they are not the network's own; their fingerprint before and
	// after a cleaning is the same.
	Kept int `json:"kept,omitempty"`
	// Changed names what else changed while cleaning; always empty unless
	// somebody else changed it.
	Changed []string `json:"changed,omitempty"`
	// Cleaned counts what this daemon has removed.
	Cleaned int `json:"cleaned,omitempty"`
}

// Leftover is one thing that a network has left on a node.
type Leftover struct {
	// Kind is link, route, neighbour, fdb, chain, rule, table, file, ipset, sysctl.
	Kind string `json:"kind"`
	// Name is the thing, such as "flannel.1" or "iptables-nft nat FLANNEL-POSTRTG".
	Name string `json:"name"`
	// InUse says why it must stay for now; empty when it can go.
	InUse string `json:"inUse,omitempty"`
}
