// Package v1alpha1 is Braid's API, group braid.dev.
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// GroupVersion names the API, as in apiVersion.
const GroupVersion = "braid.dev/v1alpha1"

const (
	// CordonedBy is the annotation on a node that a migration has cordoned: the
	// migration's name. A cordon without it is a person's, and stays.
	CordonedBy = "braid.dev/cordoned-by"
	// ProbeNamespace is the namespace of the probes' pods of a migration.
	ProbeNamespace = "braid-migrate"
)

// Migration moves a cluster's pods from one CNI to another, node by node. One
// daemon of the cluster drives it; everything it needs to go on after a loss is
// in this object and in the NodeMigrations.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=cnimig
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="From",type=string,JSONPath=`.spec.from.profile`
// +kubebuilder:printcolumn:name="To",type=string,JSONPath=`.spec.to.profile`
// +kubebuilder:printcolumn:name="Goal",type=string,JSONPath=`.spec.goal`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Moved",type=string,JSONPath=`.status.moved`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
type Migration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   MigrationSpec   `json:"spec"`
	Status MigrationStatus `json:"status,omitempty,omitzero"`
}

// MigrationSpec is what a person wants.
type MigrationSpec struct {
	// From is the network that the cluster's pods are on at the beginning.
	From Network `json:"from"`
	// To is the network that they move to. Its datapath is on every node before
	// the first pod moves, without a configuration that the runtime would load.
	To Network `json:"to"`
	// Goal is where all nodes shall be: Target migrates, Source rolls back. With
	// Stay nodes in the middle of their way go back to where they come from, and
	// the others stay where they are.
	// +kubebuilder:validation:Enum=Target;Source;Stay
	// +kubebuilder:default=Target
	Goal Side `json:"goal,omitempty"`
	// Hold are nodes that stay on, or go back to, the source whatever the goal.
	Hold []string `json:"hold,omitempty"`
	// Paused stops before the next step. A node in the middle of its own stays
	// there: pods run on, and none that is new to it starts.
	Paused bool `json:"paused,omitempty"`
	// Resumes counts how often a person had a migration go on that had stopped.
	Resumes int64 `json:"resumes,omitempty"`
	// PreserveSource exempts traffic between old and new pods from every NAT.
	PreserveSource bool `json:"preserveSource,omitempty"`
	// Strategy is how nodes are chosen and pods are moved.
	// +kubebuilder:default={}
	Strategy Strategy `json:"strategy,omitempty"`
	// Probes are what is asked between steps.
	Probes Probes `json:"probes,omitempty"`
	// Clean removes from the nodes what the network that is left behind there
	// leaves: the source's at the goal Target, the target's at the goal Source.
	Clean bool `json:"clean,omitempty"`
	// Audits counts how often a person wanted to see what is left.
	Audits int64 `json:"audits,omitempty"`
}

// Side is one of the two networks of a migration.
type Side string

const (
	Source Side = "Source"
	Target Side = "Target"
	// Stay is neither: where each node is. It is a goal only.
	Stay Side = "Stay"
)

// Other is the opposite side.
func (s Side) Other() Side {
	if s == Target {
		return Source
	}
	return Target
}

// Network is one of the two CNIs.
type Network struct {
	// Profile is the name of the CNI's profile, such as "flannel".
	Profile string `json:"profile"`
	// ConfFile is the name of its configuration in the conf dir, such as
	// 10-flannel.conflist.
	ConfFile string `json:"confFile"`
	// Conf is the text of that configuration; empty when every node has its own
	// already, as at the source.
	Conf string `json:"conf,omitempty"`
	// PodCIDRs are where its pods' addresses are from.
	PodCIDRs []string `json:"podCIDRs"`
	// Devices are the links of its own on a node, as patterns of path.Match.
	Devices []string `json:"devices,omitempty"`
	// Detected is what else is known of it, as its profile reads it (Side of
	// package preflight).
	// +kubebuilder:pruning:PreserveUnknownFields
	Detected *runtime.RawExtension `json:"detected,omitempty"`
}

// Strategy is how nodes are chosen and pods are moved.
type Strategy struct {
	// Canary nodes move first, one after the other, before any batch.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:default=1
	// +optional
	Canary int `json:"canary"` // none is a wish too
	// Batch is how many nodes move at once after that; never two of two zones.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:default=1
	Batch int `json:"batch,omitempty"`
	// Pods is how pods move: Evict has their controllers make new ones on other
	// nodes, as permitted by PodDisruptionBudgets, and restarts the sandboxes of
	// those that cannot be evicted; Restart restarts the sandboxes of all in
	// place: same pod, same node, one more restart. Auto evicts where there is
	// another node to go to.
	// +kubebuilder:validation:Enum=Auto;Evict;Restart
	// +kubebuilder:default=Auto
	Pods PodMove `json:"pods,omitempty"`
	// EvictTimeout is how long a node's evictions may take, disruption budgets
	// included, before the node goes back and the migration stops.
	// +kubebuilder:default="10m"
	EvictTimeout metav1.Duration `json:"evictTimeout,omitempty,omitzero"`
	// StepTimeout bounds every other step of a node.
	// +kubebuilder:default="5m"
	StepTimeout metav1.Duration `json:"stepTimeout,omitempty,omitzero"`
}

// PodMove is a way to move a pod.
type PodMove string

const (
	MoveAuto    PodMove = "Auto"
	MoveEvict   PodMove = "Evict"
	MoveRestart PodMove = "Restart"
)

// Probes are what is asked from the probes' pods beside each other.
type Probes struct {
	// Outside are addresses host:port (TCP) that pods must reach.
	Outside []string `json:"outside,omitempty"`
	// Image is that of the probes' pods: Braid's own.
	Image string `json:"image,omitempty"`
}

// Phase is where a migration is.
type Phase string

const (
	// PhasePreparing waits for agents and for the datapath of the target.
	PhasePreparing Phase = "Preparing"
	// PhaseMoving moves nodes towards the goal.
	PhaseMoving Phase = "Moving"
	// PhasePaused waits for a person, as asked.
	PhasePaused Phase = "Paused"
	// PhaseStopped waits for a person: Message says what went wrong. No node is
	// half way, unless the message says which.
	PhaseStopped Phase = "Stopped"
	// PhaseDone has all nodes at the goal.
	PhaseDone Phase = "Done"
	// PhaseClean has, beyond that, nothing left of the other network.
	PhaseClean Phase = "Clean"
)

// MigrationStatus is what the leader knows.
type MigrationStatus struct {
	Phase Phase `json:"phase,omitempty"`
	// Message says what the phase waits for or why it stopped.
	Message string `json:"message,omitempty"`
	// Moved is "at the goal/all nodes".
	Moved string `json:"moved,omitempty"`
	// ObservedGeneration is the generation of the spec that the rest is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Leader is the node whose daemon drives.
	Leader string `json:"leader,omitempty"`
	// Stopped is the generation of the spec at which the migration stopped by
	// itself. It goes on when a person changes the spec or resumes.
	Stopped int64 `json:"stopped,omitempty"`
	// Goal is the goal that Before and After are about.
	Goal Side `json:"goal,omitempty"`
	// Nodes by name.
	Nodes []NodeProgress `json:"nodes,omitempty"`
	// Before is the probes' round that allowed the first node to move, After the
	// one that found the cluster well at the goal.
	Before int64 `json:"before,omitempty"`
	After  int64 `json:"after,omitempty"`
	// Tries counts the rounds of these that failed in a row; the next is not
	// before Again.
	Tries int         `json:"tries,omitempty"`
	Again metav1.Time `json:"again,omitempty,omitzero"`
	// Round counts the probes' rounds; Rounds has the latest results.
	Round  int64          `json:"round,omitempty"`
	Rounds []RoundSummary `json:"rounds,omitempty"`
}

// NodeStep is a step of a node on its way from one side to the other.
type NodeStep string

const (
	StepPending  NodeStep = "Pending"  // nothing has been touched
	StepCordon   NodeStep = "Cordon"   // no new pods from the scheduler
	StepClose    NodeStep = "Close"    // the runtime starts no pods but probes, which get the other network
	StepTry      NodeStep = "Try"      // probes on the other network, before any pod moves
	StepEvict    NodeStep = "Evict"    // pods leave
	StepMove     NodeStep = "Move"     // the sandboxes that are left are restarted on the other network
	StepSwap     NodeStep = "Swap"     // the runtime loads the other network's configuration
	StepVerify   NodeStep = "Verify"   // probes again
	StepUncordon NodeStep = "Uncordon" // pods come back
	StepDone     NodeStep = "Done"
)

// NodeProgress is where a node is.
type NodeProgress struct {
	Name string `json:"name"`
	// On is the side that the node left last, or is on.
	On Side `json:"on"`
	// Want is the side that it goes to.
	Want Side `json:"want"`
	// Step is the step of the way from On to Want.
	Step NodeStep `json:"step"`
	// Since is when the step began.
	Since metav1.Time `json:"since,omitempty,omitzero"`
	// Unschedulable says that the node was cordoned before, and stays so.
	Unschedulable bool `json:"unschedulable,omitempty"`
	// Back says that the node is on its way back, because something went wrong or
	// a person wanted it.
	Back bool `json:"back,omitempty"`
	// Round is the probes' round that this step waits for; Tries counts those
	// that failed before, and the next is not before Again.
	Round int64       `json:"round,omitempty"`
	Tries int         `json:"tries,omitempty"`
	Again metav1.Time `json:"again,omitempty,omitzero"`
	// Message says what the step waits for.
	Message string `json:"message,omitempty"`
}

// RoundSummary is the outcome of one round of probes.
type RoundSummary struct {
	Round int64 `json:"round"`
	// When is the moment of the round, such as "before", "node2 Try".
	When string `json:"when"`
	// Pending says that answers are still missing.
	Pending bool `json:"pending,omitempty"`
	Asked   int  `json:"asked"`
	Failed  int  `json:"failed"`
	// Failures are the first of them, as sentences.
	Failures []string `json:"failures,omitempty"`
	// Clients is the table of the client addresses that servers saw.
	Clients []ClientRow `json:"clients,omitempty"`
}

// ClientRow says what a server saw of a client.
type ClientRow struct {
	// From and To are "old", "new", "node".
	From string `json:"from"`
	To   string `json:"to"`
	// Where is "same node" or "other node".
	Where string `json:"where"`
	// By is "direct" or "service".
	By string `json:"by"`
	// Saw is whose address the server saw, such as "own", "flannel.1",
	// "cilium_host", "node"; several are joined by a comma.
	Saw string `json:"saw"`
	// Count is of how many requests.
	Count int `json:"count"`
}
