package preflight

import "slices"

// Rule is what all findings of one code have in common.
// docs/migrate-preflight.md holds the same table.
type Rule struct {
	// Severity is the usual one; Also is another that the code may have.
	Severity, Also Severity
	// Condition is that of the list in docs/migrate-preflight.md.
	Condition string
	Meaning   string
	// Fix is what to do where a finding has nothing more exact to say.
	Fix string
	// what is overlapped, for codes that are about that.
	what string
}

// The codes.
const (
	SameIPAM           Code = "same-ipam"
	NoOtherIPAM        Code = "no-other-ipam"
	PodCIDRUnknown     Code = "pod-cidr-unknown"
	PodCIDROverlap     Code = "pod-cidr-overlap"
	PodsOfNeither      Code = "pods-of-neither"
	ServiceOverlap     Code = "service-overlap"
	NodeOverlap        Code = "node-overlap"
	RouteOverlap       Code = "route-overlap"
	NADOverlap         Code = "nad-overlap"
	OutsideOverlap     Code = "outside-overlap"
	ReservedOverlap    Code = "reserved-overlap"
	TooFewBlocks       Code = "too-few-blocks"
	BlockTooSmall      Code = "block-too-small"
	NodeWithoutCIDR    Code = "node-without-cidr"
	FamilyMissing      Code = "family-missing"
	FamilyAdded        Code = "family-added"
	NodeNotGateway     Code = "node-not-gateway"
	GatewayUnproven    Code = "gateway-unproven"
	BypassesHost       Code = "bypasses-host"
	ForwardingOff      Code = "forwarding-off"
	ForwardDrop        Code = "forward-drop"
	ForwardUnclear     Code = "forward-unclear"
	RPFilterStrict     Code = "rp-filter-strict"
	TunnelClash        Code = "tunnel-clash"
	TunnelLeftover     Code = "tunnel-leftover"
	TunnelPortTaken    Code = "tunnel-port-taken"
	TunnelPortBlocked  Code = "tunnel-port-blocked"
	TunnelPortUnproven Code = "tunnel-port-unproven"
	FeatureMissing     Code = "feature-missing"
	FeatureUnknown     Code = "feature-unknown"
	KernelTooOld       Code = "kernel-too-old"
	AgentPortTaken     Code = "agent-port-taken"
	MTUTooLarge        Code = "mtu-too-large"
	MTUDiffers         Code = "mtu-differs"
	UnderlayUneven     Code = "underlay-uneven"
	UnderlayUnknown    Code = "underlay-unknown"
	AdoptsAddress      Code = "adopts-address"
	AdoptsLinks        Code = "adopts-links"
	KubeProxyCIDR      Code = "kube-proxy-cidr"
	KubeProxyLocalMode Code = "kube-proxy-local-mode"
	KubeProxyReplaced  Code = "kube-proxy-replaced"
	KubeProxyUnseen    Code = "kube-proxy-unseen"
	SourceRewritten    Code = "source-rewritten"
	SourceKept         Code = "source-kept"
	StaleMasquerade    Code = "stale-masquerade"
	TwoBackends        Code = "two-backends"
	MasqAgent          Code = "masq-agent"
	InvalidDrop        Code = "invalid-drop"
	PolicyLost         Code = "policy-lost"
	PolicyGap          Code = "policy-gap"
	PolicyNew          Code = "policy-new"
	PolicyPeers        Code = "policy-peers"
	PolicyOldCIDR      Code = "policy-old-cidr"
	PolicyKind         Code = "policy-kind"
	PolicyEnforced     Code = "policy-enforced"
	OldCIDRMentioned   Code = "old-cidr-mentioned"
	RoutersKnow        Code = "routers-know"
	HostPortLost       Code = "host-port-lost"
	HostPortUnknown    Code = "host-port-unknown"
	HostPortMoves      Code = "host-port-moves"
	HostPortStale      Code = "host-port-stale"
	CapabilityLost     Code = "capability-lost"
	ChainedLost        Code = "chained-lost"
	PodLost            Code = "pod-lost"
	BarePod            Code = "bare-pod"
	StaticPod          Code = "static-pod"
	PDBBlocks          Code = "pdb-blocks"
	SingleReplica      Code = "single-replica"
	VolumesMove        Code = "volumes-move"
	JobFails           Code = "job-fails"
	JobRestarts        Code = "job-restarts"
	LongGrace          Code = "long-grace"
	AddressAdvertised  Code = "address-advertised"
	NodeBound          Code = "node-bound"
	ToleratesCordon    Code = "tolerates-cordon"
	WebhookFailsClosed Code = "webhook-fails-closed"
	APIServerOutside   Code = "api-server-outside"
	Konnectivity       Code = "konnectivity"
	NotEverywhere      Code = "not-everywhere"
	DNSSingle          Code = "dns-single"
	DNSOneNode         Code = "dns-one-node"
	DNSBatch           Code = "dns-batch"
	NodeLocalDNS       Code = "node-local-dns"
	RegistryInside     Code = "registry-inside"
	OperatorOnPods     Code = "operator-on-pods"
	CSIOnPods          Code = "csi-on-pods"
	Reverted           Code = "reverted"
	BuiltIn            Code = "built-in"
	NodesComeNew       Code = "nodes-come-new"
	RuntimeNotReady    Code = "runtime-not-ready"
	RuntimeLoad        Code = "runtime-load"
	MaxConfNum         Code = "max-conf-num"
	RuntimePinned      Code = "runtime-pinned"
	GCHazard           Code = "gc-hazard"
	SourceNotServed    Code = "source-not-served"
	ConfOrder          Code = "conf-order"
	MultusMaster       Code = "multus-master"
	ConfTemplate       Code = "conf-template"
	ProgramMissing     Code = "program-missing"
	ConfDirsDiffer     Code = "conf-dirs-differ"
	NotLatent          Code = "not-latent"
	Exclusive          Code = "exclusive"
	RestartsPods       Code = "restarts-pods"
	TargetConfPresent  Code = "target-conf-present"
	NADMaster          Code = "nad-master"
	NADSubnet          Code = "nad-subnet"
	NodeNotReady       Code = "node-not-ready"
	NodeCordoned       Code = "node-cordoned"
	SingleNode         Code = "single-node"
	RolloutRunning     Code = "rollout-running"
	VersionSkew        Code = "version-skew"
	FactsMissing       Code = "facts-missing"
	Unread             Code = "unread"
	WindowsNode        Code = "windows-node"
	VirtualPods        Code = "virtual-pods"
	HostFirewall       Code = "host-firewall"
	BackupIncomplete   Code = "backup-incomplete"
	BackupNoManifests  Code = "backup-no-manifests"
)

// Rules are those of all codes.
var Rules = map[Code]Rule{
	SameIPAM: {
		Severity: Blocker, Condition: "P1",
		Meaning: "Both sides give pods addresses from `node.spec.podCIDR`: two pods would get the same one.",
		Fix:     "Give the target ranges of its own.",
	},
	NoOtherIPAM: {
		Severity: Blocker, Condition: "P1",
		Meaning: "The same, and the target has no other source of addresses (Flannel, kindnet).",
		Fix:     "Go in two hops: to a CNI, or to a mode, with ranges of its own first, and from there to the target.",
	},
	PodCIDRUnknown: {
		Severity: Blocker, Condition: "P2",
		Meaning: "Where one of the sides takes the pods' addresses from is not known.",
		Fix:     "Name its ranges, or give the migration the right profile.",
	},
	PodCIDROverlap: {
		Severity: Blocker, Condition: "P2",
		Meaning: "The pods' ranges of the two sides overlap: nobody can tell by an address which side a pod is on.",
		Fix:     "Give the target another range.",
	},
	PodsOfNeither: {
		Severity: Warning, Condition: "P2",
		Meaning: "Pods have addresses that are of neither side, from an earlier CNI or another range of this one.",
		Fix:     "Restart these pods, or name their range too.",
	},
	ServiceOverlap: {
		Severity: Blocker, Condition: "B3.1", what: "the Services' range",
		Meaning: "The target's pod range overlaps the Services' range.",
		Fix:     "Give the target another range.",
	},
	NodeOverlap: {
		Severity: Blocker, Condition: "B3.1", what: "the nodes' addresses",
		Meaning: "The target's pod range holds addresses of nodes.",
		Fix:     "Give the target another range.",
	},
	RouteOverlap: {
		Severity: Blocker, Condition: "B3.1", what: "routes or links of nodes",
		Meaning: "The target's pod range overlaps a route or a link of a node, such as docker0 or a way to the premises.",
		Fix:     "Give the target another range.",
	},
	NADOverlap: {
		Severity: Blocker, Condition: "B3.1", what: "the subnet of another network of pods",
		Meaning: "The target's pod range overlaps a subnet of a NetworkAttachmentDefinition.",
		Fix:     "Give the target another range.",
	},
	OutsideOverlap: {
		Severity: Blocker, Condition: "B3.1", what: "addresses that are used outside of the cluster",
		Meaning: "The target's pod range holds addresses outside of the cluster that somebody uses: those of load balancers, external addresses of Services, networks that were named.",
		Fix:     "Give the target another range.",
	},
	ReservedOverlap: {
		Severity: Blocker, Also: Warning, Condition: "B3.1",
		Meaning: "The target's pod range is one that pods cannot have, or that others like to use (100.64.0.0/10).",
		Fix:     "Give the target another range.",
	},
	TooFewBlocks: {
		Severity: Blocker, Condition: "B3.2",
		Meaning: "The target's ranges have fewer blocks than there are nodes.",
		Fix:     "Add a range, or make blocks smaller.",
	},
	BlockTooSmall: {
		Severity: Blocker, Condition: "B3.2",
		Meaning: "A node's block of the target has fewer addresses than the node may have pods.",
		Fix:     "Make blocks larger, or lower `maxPods`.",
	},
	NodeWithoutCIDR: {
		Severity: Blocker, Condition: "B3.2",
		Meaning: "The target takes its ranges from `node.spec.podCIDR`, and a node has none.",
		Fix:     "Start kube-controller-manager with `--allocate-node-cidrs` and `--cluster-cidr`.",
	},
	FamilyMissing: {
		Severity: Blocker, Condition: "B3.3",
		Meaning: "Pods have addresses of a family of which the target has no range.",
		Fix:     "Give the target a range of that family.",
	},
	FamilyAdded: {
		Severity: Fact, Condition: "B3.3",
		Meaning: "Pods get addresses of a family that they did not have.",
	},
	NodeNotGateway: {
		Severity: Blocker, Condition: "P3, B3.4",
		Meaning: "The node does not reach its own pods by its own links, or not without NAT (an interface of the cloud per pod, macvlan, ipvlan): pods of the two sides cannot reach each other.",
		Fix:     "Choose a mode in which nodes route pods' packets, or move to a new node pool instead.",
	},
	GatewayUnproven: {
		Severity: Warning, Condition: "B3.4",
		Meaning: "Nobody asked a node whether it reaches its own pods.",
		Fix:     "Collect the nodes' facts again, with pods on every node.",
	},
	BypassesHost: {
		Severity: Blocker, Condition: "P3",
		Meaning: "A side carries packets around the nodes' routing and netfilter: pods of the other side, and host ports, are reached through these.",
		Fix:     "Have it use the host's routing for the time of the migration.",
	},
	ForwardingOff: {
		Severity: Blocker, Condition: "B3.5",
		Meaning: "The kernel of a node does not forward packets.",
		Fix:     "Set the sysctl on every node.",
	},
	ForwardDrop: {
		Severity: Blocker, Condition: "B3.5",
		Meaning: "The node's firewall drops what pods of one side send to those of the other.",
		Fix:     "Accept it before it is dropped.",
	},
	ForwardUnclear: {
		Severity: Warning, Condition: "B3.5",
		Meaning: "A rule that cannot be judged here decides whether pods of both sides reach each other.",
		Fix:     "Look at the chain; the probes will tell.",
	},
	RPFilterStrict: {
		Severity: Fact, Also: Warning, Condition: "B3.5",
		Meaning: "Links have `rp_filter` 1. With `--preserve-source` answers take another way than questions, so the migration sets it to 2 meanwhile.",
	},
	TunnelClash: {
		Severity: Blocker, Condition: "P4, B3.6",
		Meaning: "The kernel cannot have the target's tunnel beside that of the source, or of somebody else, on one UDP port. The one that is set up second fails, perhaps only after a reboot.",
		Fix:     "Give the target's tunnel another port.",
	},
	TunnelLeftover: {
		Severity: Blocker, Condition: "B3.6",
		Meaning: "The target's link is there with other settings than wanted, from an earlier attempt. Cilium goes on to fail on it, also when its port was corrected.",
		Fix:     "Remove the link.",
	},
	TunnelPortTaken: {
		Severity: Blocker, Condition: "B3.6",
		Meaning: "A process waits on the UDP port of the target's tunnel.",
		Fix:     "Give the target's tunnel another port, or stop the process.",
	},
	TunnelPortBlocked: {
		Severity: Blocker, Condition: "B3.6",
		Meaning: "The UDP port of the target's tunnel does not pass between two nodes.",
		Fix:     "Permit it in the nodes' firewalls, and in the network's.",
	},
	TunnelPortUnproven: {
		Severity: Warning, Condition: "B3.6",
		Meaning: "Nobody asked whether the UDP port of the target's tunnel passes between all nodes.",
		Fix:     "Let the migration's daemons ask: collect the nodes' facts while they run on all nodes.",
	},
	FeatureMissing: {
		Severity: Blocker, Condition: "B3.6",
		Meaning: "The kernel lacks something that the target needs: vxlan, geneve, bpffs, cgroup2.",
		Fix:     "Load the module, or mount what is missing, on every node.",
	},
	FeatureUnknown: {
		Severity: Warning, Condition: "B3.6",
		Meaning: "Nobody tried whether the kernel has what the target needs.",
		Fix:     "Collect the nodes' facts again.",
	},
	KernelTooOld: {
		Severity: Blocker, Condition: "B3.6",
		Meaning: "The kernel is older than the oldest that the target supports.",
		Fix:     "Boot a newer kernel.",
	},
	AgentPortTaken: {
		Severity: Blocker, Condition: "B3.7",
		Meaning: "Somebody listens on a port of the node that the target's agent needs.",
		Fix:     "Move the agent's port, or stop what listens there.",
	},
	MTUTooLarge: {
		Severity: Blocker, Condition: "B3.8",
		Meaning: "The target's pods would send larger packets than its transport can carry.",
		Fix:     "Lower the target's MTU, or raise that of the nodes' links.",
	},
	MTUDiffers: {
		Severity: Warning, Condition: "B3.8",
		Meaning: "Pods of the two sides have different MTUs. TCP adapts; large packets of other protocols may be lost between them.",
		Fix:     "Set the smaller one on both sides until all pods have moved.",
	},
	UnderlayUneven: {
		Severity: Warning, Condition: "B3.8",
		Meaning: "Not all nodes' links, or paths between nodes, take packets of the same size.",
		Fix:     "Raise the smaller ones, or set the target's MTU to what passes everywhere.",
	},
	UnderlayUnknown: {
		Severity: Warning, Condition: "B3.8",
		Meaning: "The link that has the node's address was not found, so no MTU can be computed.",
		Fix:     "Collect the node's facts again, or correct kubelet's `--node-ip`.",
	},
	AdoptsAddress: {
		Severity: Warning, Condition: "B3.9",
		Meaning: "One side takes the first address that it finds as the node's, and may take one of the other side's links (Calico and `cilium_host`).",
		Fix:     "Pin it to the node's link, or to Kubernetes' `NodeInternalIP`.",
	},
	AdoptsLinks: {
		Severity: Warning, Condition: "B3.9",
		Meaning: "One side attaches itself to all links that look like the node's own, the other side's among them (Cilium and `flannel.1`).",
		Fix:     "Pin its devices to the node's links.",
	},
	KubeProxyCIDR: {
		Severity: Warning, Condition: "B3.10",
		Meaning: "kube-proxy's `clusterCIDR` lacks the target's range: it takes its pods for outsiders, and Services see the node's address instead of theirs.",
		Fix:     "Unset it, or set one range around both.",
	},
	KubeProxyLocalMode: {
		Severity: Warning, Condition: "B3.10",
		Meaning: "kube-proxy knows a node's pods by `node.spec.podCIDR`, or by a link that only one side has.",
		Fix:     "Set `detectLocalMode: ClusterCIDR`.",
	},
	KubeProxyReplaced: {
		Severity: Blocker, Condition: "B3.10",
		Meaning: "One side serves Services in the place of kube-proxy, and the other does not: both would change in one window.",
		Fix:     "Keep kube-proxy for the time of the migration, and change it afterwards, or before.",
	},
	KubeProxyUnseen: {
		Severity: Warning, Condition: "B3.10",
		Meaning: "kube-proxy's settings were not found.",
		Fix:     "Look at them yourself: `clusterCIDR` and `detectLocalMode`.",
	},
	SourceRewritten: {
		Severity: Fact, Condition: "B3.11",
		Meaning: "Rules of the two sides rewrite the source of what old and new pods send each other.",
		Fix:     "Use `--preserve-source` where servers have to see the pods' own addresses.",
	},
	SourceKept: {
		Severity: Fact, Condition: "B3.11",
		Meaning: "The same, and `--preserve-source` exempts this traffic.",
	},
	StaleMasquerade: {
		Severity: Warning, Condition: "B3.11",
		Meaning: "Rules of a CNI that is neither of the two sides still rewrite sources.",
		Fix:     "Remove them: `braid migrate audit` lists what a CNI leaves.",
	},
	TwoBackends: {
		Severity: Warning, Condition: "B3.11",
		Meaning: "A side's rules are in iptables-nft and in iptables-legacy. One set is from an earlier time, and both count.",
		Fix:     "Remove the set that is not kept up to date.",
	},
	MasqAgent: {
		Severity: Warning, Condition: "B3.11",
		Meaning: "ip-masq-agent rewrites what goes to the target's pods.",
		Fix:     "Add the target's range to its `nonMasqueradeCIDRs`.",
	},
	InvalidDrop: {
		Severity: Fact, Also: Warning, Condition: "B3.12",
		Meaning: "kube-proxy drops what conntrack calls invalid. With `--preserve-source` answers may be that, so the migration accepts old ↔ new before it.",
	},
	PolicyLost: {
		Severity: Blocker, Condition: "B3.13",
		Meaning: "There are NetworkPolicies, and the target enforces none.",
		Fix:     "Choose a target that does, or accept that they end.",
	},
	PolicyGap: {
		Severity: Blocker, Condition: "B3.13",
		Meaning: "NetworkPolicies are not enforced as a whole while pods of both sides are there.",
		Fix:     "Accept it: `--accept policy-gap`.",
	},
	PolicyNew: {
		Severity: Warning, Condition: "B3.13",
		Meaning: "NetworkPolicies that nobody enforces today begin to count.",
		Fix:     "Read them before the target's enforcement is turned on.",
	},
	PolicyPeers: {
		Severity: Warning, Condition: "B3.13",
		Meaning: "Policies know their peers by labels, and the sources of these are rewritten between old and new pods.",
		Fix:     "Use `--preserve-source`, or expect that these peers are not recognised.",
	},
	PolicyOldCIDR: {
		Severity: Warning, Condition: "B3.13",
		Meaning: "Policies name the pods' old range in an `ipBlock`.",
		Fix:     "Add the same rule for the new range.",
	},
	PolicyKind: {
		Severity: Blocker, Condition: "B3.13",
		Meaning: "There are policies of a kind that the target does not know (of Calico, of Cilium). They are not converted.",
		Fix:     "Write them as a kind that the target knows, or accept that they end.",
	},
	PolicyEnforced: {
		Severity: Blocker, Condition: "B3.13",
		Meaning: "The target enforces policies while pods of the source are strangers to it.",
		Fix:     "Turn its enforcement off until all pods have moved (Cilium: `policyEnforcementMode=never`).",
	},
	OldCIDRMentioned: {
		Severity: Warning, Condition: "B3.14",
		Meaning: "A ConfigMap, an environment variable (such as `NO_PROXY`) or an argument holds the pods' old range or an address in it. Secrets, and what is outside of the cluster, are not read.",
		Fix:     "Add the new range.",
	},
	RoutersKnow: {
		Severity: Warning, Condition: "B3.14",
		Meaning: "Routers outside are told of pods' ranges by BGP.",
		Fix:     "Have them accept the new range, and see that allow-lists have it.",
	},
	HostPortLost: {
		Severity: Blocker, Condition: "B3.15",
		Meaning: "Pods have host ports, and the target serves none (Cilium without kube-proxy replacement and without portmap).",
		Fix:     "Chain portmap into the target's configuration.",
	},
	HostPortUnknown: {
		Severity: Warning, Condition: "B3.15",
		Meaning: "Pods have host ports, and whether the target serves them is not known.",
		Fix:     "Look at the target's configuration for `portMappings`.",
	},
	HostPortMoves: {
		Severity: Fact, Condition: "B3.15",
		Meaning: "Host ports are served in another way after the migration. Each pod's old rules go with its old sandbox.",
	},
	HostPortStale: {
		Severity: Warning, Condition: "B3.15",
		Meaning: "Rules of host ports lead to sandboxes that do not exist any more, and stand before new ones.",
		Fix:     "Remove the rules of `CNI-HOSTPORT-DNAT` that name these sandboxes.",
	},
	CapabilityLost: {
		Severity: Warning, Condition: "B3.16",
		Meaning: "Pods ask by annotations for something that the target does not give.",
		Fix:     "Turn it on in the target, or do without it.",
	},
	ChainedLost: {
		Severity: Warning, Condition: "B3.16",
		Meaning: "A plugin is chained into the source's configuration (istio-cni, linkerd-cni, tuning) and not into the target's.",
		Fix:     "Add it to the target's configuration.",
	},
	PodLost: {
		Severity: Blocker, Condition: "B3.17",
		Meaning: "Pods that nobody makes again have `restartPolicy: Never`: a new sandbox ends them.",
		Fix:     "Wait until they are done, or accept it.",
	},
	BarePod: {
		Severity: Fact, Condition: "B3.17",
		Meaning: "Pods that nobody makes again are restarted in place.",
	},
	StaticPod: {
		Severity: Fact, Condition: "B3.17",
		Meaning: "Static pods with a network of their own are restarted in place.",
	},
	PDBBlocks: {
		Severity: Blocker, Also: Warning, Condition: "B3.18",
		Meaning: "A PodDisruptionBudget permits no disruption now.",
		Fix:     "Add a replica, or let pods restart in place: `--pods Restart`.",
	},
	SingleReplica: {
		Severity: Warning, Condition: "B3.18",
		Meaning: "A workload has one replica.",
		Fix:     "Add one for the time of the migration.",
	},
	VolumesMove: {
		Severity: Warning, Condition: "B3.18",
		Meaning: "Pods with volumes are evicted.",
		Fix:     "Use `--pods Restart` to keep them where they are.",
	},
	JobFails: {
		Severity: Blocker, Condition: "B3.18",
		Meaning: "A Job that runs has no retry left.",
		Fix:     "Wait until it is done, raise its `backoffLimit`, or give it a `podFailurePolicy`.",
	},
	JobRestarts: {
		Severity: Warning, Condition: "B3.18",
		Meaning: "A Job that runs begins anew.",
		Fix:     "Wait until it is done.",
	},
	LongGrace: {
		Severity: Warning, Condition: "B3.18",
		Meaning: "Pods may take longer to end than a node waits for them.",
		Fix:     "Raise the time-out.",
	},
	AddressAdvertised: {
		Severity: Warning, Condition: "B3.19",
		Meaning: "Pods tell others the address that they have (Redis, Kafka, etcd; `status.podIP` in the environment).",
		Fix:     "Move one at a time, and see that members find each other by name.",
	},
	NodeBound: {
		Severity: Warning, Condition: "B3.20",
		Meaning: "Pods may only be on one node.",
		Fix:     "Use `--pods Restart`, or expect that they wait until the node is back.",
	},
	ToleratesCordon: {
		Severity: Warning, Condition: "B3.20",
		Meaning: "Pods tolerate a cordon and are put back on the node that they have just left.",
		Fix:     "Take the toleration of everything from them, or use `--pods Restart`.",
	},
	WebhookFailsClosed: {
		Severity: Blocker, Condition: "B3.21",
		Meaning: "All pods of a webhook with `failurePolicy: Fail` may move at once, and the API server refuses requests meanwhile, those for its own new pods too.",
		Fix:     "Run two on different nodes, or set `failurePolicy: Ignore` for the time of the migration.",
	},
	APIServerOutside: {
		Severity: Blocker, Condition: "B3.21",
		Meaning: "The API server is not on a node of the cluster, and calls pods (webhooks, APIServices): the new addresses have to be routed to where it is.",
		Fix:     "Route the target's range to it, or use konnectivity.",
	},
	Konnectivity: {
		Severity: Warning, Condition: "B3.21",
		Meaning: "The API server reaches pods through agents that are pods themselves.",
		Fix:     "Have several of them, on different nodes.",
	},
	NotEverywhere: {
		Severity: Blocker, Condition: "B3.21",
		Meaning: "The target's DaemonSet leaves out nodes, such as those of the control plane.",
		Fix:     "Let it tolerate every taint.",
	},
	DNSSingle: {
		Severity: Blocker, Also: Warning, Condition: "B3.22",
		Meaning: "One pod serves DNS.",
		Fix:     "Run two.",
	},
	DNSOneNode: {
		Severity: Blocker, Also: Warning, Condition: "B3.22",
		Meaning: "All pods that serve DNS are on one node.",
		Fix:     "Spread them: delete one of them, or set anti-affinity.",
	},
	DNSBatch: {
		Severity: Blocker, Condition: "B3.22",
		Meaning: "All nodes with DNS may move at once.",
		Fix:     "Lower the batch.",
	},
	NodeLocalDNS: {
		Severity: Warning, Condition: "B3.22",
		Meaning: "Pods ask a DNS cache of the node.",
		Fix:     "See that it works from pods of the target.",
	},
	RegistryInside: {
		Severity: Blocker, Condition: "B3.23",
		Meaning: "Images that the migration needs come from a registry in the cluster.",
		Fix:     "Pull them on all nodes before, or use another registry.",
	},
	OperatorOnPods: {
		Severity: Blocker, Condition: "B3.23",
		Meaning: "A part of a CNI is on the network that is moved.",
		Fix:     "Put it on the host's network.",
	},
	CSIOnPods: {
		Severity: Warning, Condition: "B3.23",
		Meaning: "Controllers of storage are on the network that is moved.",
		Fix:     "Have two of them, on different nodes.",
	},
	Reverted: {
		Severity: Blocker, Condition: "B3.24",
		Meaning: "Somebody keeps objects of the two sides as he knows them: GitOps, an addon manager, an operator.",
		Fix:     "Pause it, or make the change there.",
	},
	BuiltIn: {
		Severity: Blocker, Condition: "B3.24",
		Meaning: "The source is a part of the distribution (k3s, RKE2) and comes back with every restart.",
		Fix:     "Turn it off there, after the migration.",
	},
	NodesComeNew: {
		Severity: Warning, Condition: "B3.24",
		Meaning: "Nodes are made by an autoscaler or by Cluster API, with the CNI of their template.",
		Fix:     "Pause it, or put the target into the template. The migration holds what comes new on the source until it moves it.",
	},
	RuntimeNotReady: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "The runtime's network is not ready.",
		Fix:     "Follow the message.",
	},
	RuntimeLoad: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "The runtime could not load its conf dir.",
		Fix:     "`braid conf explain` says why.",
	},
	MaxConfNum: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "The runtime loads more than one file of the conf dir.",
		Fix:     "Set `max_conf_num = 1` and restart containerd.",
	},
	RuntimePinned: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "CRI-O is pinned to a network's name.",
		Fix:     "Remove `cni_default_network`.",
	},
	GCHazard: {
		Severity: Warning, Condition: "B3.25",
		Meaning: "CRI-O 1.32 and later detaches pods of every network but the default when it starts.",
		Fix:     "Do not restart CRI-O before the migration is done.",
	},
	SourceNotServed: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "The runtime gives pods another network than the source's.",
		Fix:     "Name the right source, or repair the conf dir: `braid conf explain`.",
	},
	ConfOrder: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "Third files in the conf dir sort before the target's.",
		Fix:     "Move them away, or rename the target's.",
	},
	MultusMaster: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "Multus attaches pods to the network that it found when it started.",
		Fix:     "Set its `clusterNetwork` to the target's when pods have moved, or let Braid attach the networks: `docs/multus.md`.",
	},
	ConfTemplate: {
		Severity: Warning, Condition: "B3.25",
		Meaning: "containerd writes a configuration of its own when the conf dir has none.",
		Fix:     "Remove `conf_template`.",
	},
	ProgramMissing: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "A plugin of one of the sides has no binary.",
		Fix:     "Install it on the node; those of the source are needed for the way back, and to take down its pods.",
	},
	ConfDirsDiffer: {
		Severity: Warning, Condition: "B3.25",
		Meaning: "Nodes have different conf dirs.",
		Fix:     "See that agents of both sides write where each runtime reads.",
	},
	NotLatent: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "The target's agent writes its configuration as soon as it runs.",
		Fix:     "Have it not write any (Cilium: `cni.customConf=true`; Flannel: without its init container `install-cni`).",
	},
	Exclusive: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "A side renames the configurations of others.",
		Fix:     "Turn its exclusive mode off (Cilium: `cni.exclusive=false`).",
	},
	RestartsPods: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "A controller of a side deletes pods of other CNIs.",
		Fix:     "Turn it off (Cilium: `operator.unmanagedPodWatcher.restart=false`).",
	},
	TargetConfPresent: {
		Severity: Blocker, Condition: "B3.25",
		Meaning: "The target's configuration is in the conf dir before its turn.",
		Fix:     "Remove it.",
	},
	NADMaster: {
		Severity: Warning, Condition: "B3.26",
		Meaning: "A NetworkAttachmentDefinition stands on a link of the source, which goes away.",
		Fix:     "Give it another master before the source is cleaned up.",
	},
	NADSubnet: {
		Severity: Warning, Condition: "B3.26",
		Meaning: "A NetworkAttachmentDefinition has addresses of another link of the node than its master.",
		Fix:     "Correct its subnet or its master.",
	},
	NodeNotReady: {
		Severity: Blocker, Condition: "B3.27",
		Meaning: "A node is not Ready.",
		Fix:     "Repair it, or remove it from the cluster.",
	},
	NodeCordoned: {
		Severity: Fact, Condition: "B3.27",
		Meaning: "A node is cordoned, and stays so.",
	},
	SingleNode: {
		Severity: Fact, Condition: "B3.27",
		Meaning: "The cluster has one node: pods are restarted in place.",
	},
	RolloutRunning: {
		Severity: Blocker, Condition: "B3.27",
		Meaning: "Workloads are not as they shall be, before anything was touched.",
		Fix:     "Wait for them, or repair them.",
	},
	VersionSkew: {
		Severity: Warning, Condition: "B3.27",
		Meaning: "Kubelets have different versions.",
		Fix:     "Finish the upgrade first.",
	},
	FactsMissing: {
		Severity: Blocker, Condition: "B3.27",
		Meaning: "Nothing is known of a node itself.",
		Fix:     "Run the migration's daemon there, or add its `facts/NODE.json` to the dump.",
	},
	Unread: {
		Severity: Warning, Condition: "B3.27",
		Meaning: "Something could not be read, and is not judged.",
		Fix:     "Follow the message.",
	},
	WindowsNode: {
		Severity: Warning, Condition: "B3.28",
		Meaning: "A node runs Windows and is not moved.",
		Fix:     "Move it by another way, or see that the source stays there.",
	},
	VirtualPods: {
		Severity: Warning, Condition: "B3.28",
		Meaning: "Pods are virtual machines (Kata).",
		Fix:     "Try one first.",
	},
	HostFirewall: {
		Severity: Warning, Condition: "B3.28",
		Meaning: "firewalld or ufw rules a node's firewall.",
		Fix:     "Do not reload it during the migration, and permit both sides' ranges in it.",
	},
	BackupIncomplete: {
		Severity: Blocker, Condition: "B3.29",
		Meaning: "What the way back may need could not be read on a node.",
		Fix:     "Collect the node's facts again, as root.",
	},
	BackupNoManifests: {
		Severity: Warning, Condition: "B3.29",
		Meaning: "Manifests of the source were not read.",
		Fix:     "Put them aside yourself.",
	},
}

// Codes are all of them, in the order of the conditions that they are about.
func Codes() []Code {
	return slices.Clone(order)
}

var order = []Code{
	SameIPAM,
	NoOtherIPAM,
	PodCIDRUnknown,
	PodCIDROverlap,
	PodsOfNeither,
	ServiceOverlap,
	NodeOverlap,
	RouteOverlap,
	NADOverlap,
	OutsideOverlap,
	ReservedOverlap,
	TooFewBlocks,
	BlockTooSmall,
	NodeWithoutCIDR,
	FamilyMissing,
	FamilyAdded,
	NodeNotGateway,
	GatewayUnproven,
	BypassesHost,
	ForwardingOff,
	ForwardDrop,
	ForwardUnclear,
	RPFilterStrict,
	TunnelClash,
	TunnelLeftover,
	TunnelPortTaken,
	TunnelPortBlocked,
	TunnelPortUnproven,
	FeatureMissing,
	FeatureUnknown,
	KernelTooOld,
	AgentPortTaken,
	MTUTooLarge,
	MTUDiffers,
	UnderlayUneven,
	UnderlayUnknown,
	AdoptsAddress,
	AdoptsLinks,
	KubeProxyCIDR,
	KubeProxyLocalMode,
	KubeProxyReplaced,
	KubeProxyUnseen,
	SourceRewritten,
	SourceKept,
	StaleMasquerade,
	TwoBackends,
	MasqAgent,
	InvalidDrop,
	PolicyLost,
	PolicyGap,
	PolicyNew,
	PolicyPeers,
	PolicyOldCIDR,
	PolicyKind,
	PolicyEnforced,
	OldCIDRMentioned,
	RoutersKnow,
	HostPortLost,
	HostPortUnknown,
	HostPortMoves,
	HostPortStale,
	CapabilityLost,
	ChainedLost,
	PodLost,
	BarePod,
	StaticPod,
	PDBBlocks,
	SingleReplica,
	VolumesMove,
	JobFails,
	JobRestarts,
	LongGrace,
	AddressAdvertised,
	NodeBound,
	ToleratesCordon,
	WebhookFailsClosed,
	APIServerOutside,
	Konnectivity,
	NotEverywhere,
	DNSSingle,
	DNSOneNode,
	DNSBatch,
	NodeLocalDNS,
	RegistryInside,
	OperatorOnPods,
	CSIOnPods,
	Reverted,
	BuiltIn,
	NodesComeNew,
	RuntimeNotReady,
	RuntimeLoad,
	MaxConfNum,
	RuntimePinned,
	GCHazard,
	SourceNotServed,
	ConfOrder,
	MultusMaster,
	ConfTemplate,
	ProgramMissing,
	ConfDirsDiffer,
	NotLatent,
	Exclusive,
	RestartsPods,
	TargetConfPresent,
	NADMaster,
	NADSubnet,
	NodeNotReady,
	NodeCordoned,
	SingleNode,
	RolloutRunning,
	VersionSkew,
	FactsMissing,
	Unread,
	WindowsNode,
	VirtualPods,
	HostFirewall,
	BackupIncomplete,
	BackupNoManifests,
}
