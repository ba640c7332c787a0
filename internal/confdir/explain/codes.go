package explain

// Code names a kind of finding. Codes are stable: scripts rely on them.
type Code string

// Severity says how bad a finding is.
type Severity string

// The severities, worst first.
const (
	// Error: pods do not start, or not as meant.
	Error Severity = "error"
	// Warning: it works today, and something ordinary breaks it.
	Warning Severity = "warning"
	// Info: good to know.
	Info Severity = "info"
)

func (s Severity) rank() int {
	switch s {
	case Error:
		return 0
	case Warning:
		return 1
	}
	return 2
}

// Rule is what all findings of one code have in common. docs/conf-explain.md
// holds the same table.
type Rule struct {
	Severity Severity
	Meaning  string
	Fix      string
}

// The codes.
const (
	NoNetwork       Code = "no-network"
	InvalidFile     Code = "invalid-file"
	SkippedFile     Code = "skipped-file"
	DormantFile     Code = "dormant-file"
	WrongExtension  Code = "wrong-extension"
	SpecialFile     Code = "special-file"
	HiddenFile      Code = "hidden-file"
	LinkedFile      Code = "linked-file"
	PluginDirectory Code = "plugin-directory"
	ByteOrder       Code = "byte-order"

	BadName        Code = "bad-name"
	SameName       Code = "same-name"
	UnknownVersion Code = "unknown-version"

	FewerFiles      Code = "fewer-files"
	AllFiles        Code = "all-files"
	PositionalNames Code = "positional-names"
	ParallelSetup   Code = "parallel-setup"
	StatusOfAll     Code = "status-of-all"

	TwoDefaultRoutes Code = "two-default-routes"
	SameSubnet       Code = "same-subnet"
	SharedCapability Code = "shared-capability"
	NoAddress        Code = "no-address"
	DeadGateway      Code = "dead-gateway"

	NoMaxConfNum  Code = "no-max-conf-num"
	PinnedMissing Code = "pinned-missing"
	PinnedHides   Code = "pinned-hides"
	GCHazard      Code = "gc-hazard"

	BraidSecond    Code = "braid-second"
	BraidNotAlone  Code = "braid-not-alone"
	BraidRenamed   Code = "braid-renamed"
	ExclusiveAgent Code = "exclusive-agent"
	MaybeExclusive Code = "maybe-exclusive"
	ConfTemplate   Code = "conf-template"

	MultusRenamed  Code = "multus-renamed"
	MultusDangling Code = "multus-dangling"
	MultusSelf     Code = "multus-self"

	ProgramMissing Code = "program-missing"
	ProgramTooOld  Code = "program-too-old"
	OrphanedPods   Code = "orphaned-pods"

	RuntimeDiffers  Code = "runtime-differs"
	RuntimeFailed   Code = "runtime-failed"
	RuntimeSettings Code = "runtime-settings"
	RuntimeNotReady Code = "runtime-not-ready"
	ClassNetworks   Code = "class-networks"
	ClassLimit      Code = "class-limit"
)

// Rules has an entry for every code. It never changes.
var Rules = map[Code]Rule{
	NoNetwork: {Error, "The directory gives the runtime no network; the node stays NotReady.",
		"Install a default network; its agent writes the file. If an agent should have, look at its log."},
	InvalidFile: {Error, "A file that containerd loads is broken. It then loads none at all and does not keep the last good ones; pods can neither start nor be removed.",
		"Repair the file, or move it out of the directory. Write files as `.name.tmp` in the directory itself and rename them."},
	SkippedFile: {Warning, "CRI-O skips a broken file, so that the next one counts.",
		"Repair the file, or move it out of the directory."},
	DormantFile: {Warning, "A file beyond `max_conf_num` is broken: the day the limit is raised, or a file before it goes away, containerd loads nothing.",
		"Repair the file, or move it out of the directory, before you change anything."},
	WrongExtension: {Warning, "A list of plugins is in a `.conf` or `.json` file, or a single plugin is in a `.conflist`.",
		"Rename the file: lists are `.conflist`, single plugins are `.conf`."},
	SpecialFile: {Error, "A pipe or a device has the name of a configuration: a runtime that reads it may hang.",
		"Remove it."},
	HiddenFile: {Warning, "A name that begins with a dot is loaded like any other, sorts first, and `ls` does not show it.",
		"Rename it, or move it out of the directory; write temporary files under another extension."},
	LinkedFile: {Info, "A symbolic link is followed, and containerd does not notice when its target changes.",
		"Put the file itself into the directory, or write any file there after a change of the target."},
	PluginDirectory: {Info, "From libcni 1.3 on (containerd 2.1), `.conf` files in a directory that has the network's name are plugins of the network.",
		"Set `loadOnlyInlinedPlugins` to true in the list unless this is meant."},
	ByteOrder: {Warning, "Names are ordered by bytes, not by the numbers in them: `10-` comes before `9-`, and capitals before small letters.",
		"Give all names numbers of the same length."},
	BadName: {Error, "The network has no name, or one with a character outside of letters, digits, `_`, `.` and `-`. The file loads, and every pod fails.",
		"Give the network a name that the CNI specification allows."},
	SameName: {Error, "Two files define networks of one name. Their addresses and port mappings are kept under that name and collide; CRI-O ignores the second.",
		"Give each network a name of its own."},
	UnknownVersion: {Error, "The configuration asks for a version of the CNI specification that the runtime does not know: it loads, and every pod fails.",
		"Lower `cniVersion`, or offer several by `cniVersions`."},
	FewerFiles: {Warning, "There are fewer files than `max_conf_num`: containerd says nothing, and pods started now miss interfaces.",
		"Wait until all networks are installed before pods start, or lower `max_conf_num`."},
	AllFiles: {Warning, "`max_conf_num` 0 means all: whatever anybody puts into the directory becomes an interface of every pod, and any broken file stops the node.",
		"Set `max_conf_num` to the number that you mean."},
	PositionalNames: {Info, "Interfaces are named by position: a file that sorts in front turns eth0 into eth1 for all pods started later.",
		"Use Braid's `confDirNetworks` or an annotation with interface names."},
	ParallelSetup: {Info, "containerd sets up the networks of a pod at the same time, in no order, unless `setup_serially` is set (containerd 1.7 and later).",
		"Set `setup_serially = true`, or use Braid's `confDirNetworks`, which keeps the order."},
	StatusOfAll: {Warning, "From containerd 2.1 on, the node is NotReady as soon as any of its networks with CNI 1.1 says so, also a secondary one.",
		"Set `cniVersion` 1.0.0 in secondary networks."},
	TwoDefaultRoutes: {Warning, "Two networks bring a default route. Which one wins, and whether both stay, depends on which plugin runs first.",
		"Take it from all but one: `isDefaultGateway` false and no default in `routes`. Braid's `confDirNetworks` decides it in its plan."},
	SameSubnet: {Warning, "Two networks have subnets that overlap: the route of one covers addresses of the other, and which one is used depends on which plugin runs first.",
		"Give each network a subnet of its own."},
	SharedCapability: {Warning, "Two networks declare the same capability and both get its arguments; host ports, for example, are then mapped twice.",
		"Leave the capability in the network that shall serve it."},
	NoAddress: {Error, "The first network gives no address, and containerd refuses a pod without one on eth0.",
		"Put a network with addresses first, and attach this one by annotation."},
	DeadGateway: {Warning, "`isGateway` is false for a network of Flannel: its bridge has no address, and the route to the cluster's other pods leads to nobody.",
		"Leave `isGateway` out and set only `isDefaultGateway` to false."},
	NoMaxConfNum: {Warning, "CRI-O has no `max_conf_num`: pods get one network of the directory.",
		"Use Braid's `confDirNetworks`, which works with every runtime."},
	PinnedMissing: {Error, "CRI-O's `cni_default_network` names a network that no file of the directory defines; no pod starts.",
		"Correct or remove `cni_default_network`, and restart CRI-O."},
	PinnedHides: {Warning, "CRI-O's `cni_default_network` keeps a file that sorts first from becoming the default.",
		"Remove `cni_default_network` when the first file shall count."},
	GCHazard: {Warning, "CRI-O 1.32 and later collects garbage at its start: of every network but the default it detaches all pods, also those that run.",
		"Set `disableGC` to true in the other files, or move them away, before CRI-O is restarted."},
	BraidSecond: {Error, "A file sorts before `00-braid.conflist`: the runtime calls its plugins instead of Braid.",
		"Rename that file so that it sorts later, or remove it."},
	BraidNotAlone: {Error, "The runtime attaches further files beside Braid's, and Braid attaches the default network too: pods would get it twice.",
		"Set `max_conf_num` to 1 and let Braid's `confDirNetworks` give pods several networks."},
	BraidRenamed: {Error, "Cilium has renamed `00-braid.conflist` (exclusive mode), and pods start without Braid. braidd, where it runs, puts it back within a second and keeps the name by a directory.",
		"See that braidd runs on the node. For other configurations, set `cni.exclusive=false` (Helm) or `cni-exclusive: \"false\"` in the ConfigMap `cilium-config`, and restart the agents."},
	ExclusiveAgent: {Warning, "Cilium has renamed other configurations (exclusive mode). While it watches, it does so to every file that appears, and it never renames them back.",
		"Set `cni.exclusive=false` (Helm) or `cni-exclusive: \"false\"` in the ConfigMap `cilium-config`; then remove the suffix `.cilium_bak` or the file."},
	MaybeExclusive: {Info, "Cilium's configuration lies beside others. With its default, exclusive mode, it would rename them.",
		"Make sure that `cni-exclusive` is \"false\" in the ConfigMap `cilium-config`."},
	ConfTemplate: {Info, "`10-containerd-net.conflist` is what containerd itself writes from its `conf_template` when it finds no network; it comes back when the directory is emptied.",
		"Remove `conf_template` from containerd's configuration if another agent writes the network."},
	MultusRenamed: {Warning, "Multus has renamed its master's configuration (`--rename-conf-file`); without Multus the node has no network.",
		"Rename the file back before Multus is removed."},
	MultusDangling: {Error, "Multus's `clusterNetwork` is a file that does not exist; no pod starts. Multus looks for it only when it starts.",
		"Restart Multus, or remove its file and let Braid attach the networks."},
	MultusSelf: {Error, "Multus's `clusterNetwork` leads back to Multus.",
		"Remove the copy of Multus's file, and restart Multus."},
	ProgramMissing: {Error, "A plugin has no binary in the CNI bin dir: every pod fails.",
		"Install the plugin; plugins of one's own belong to the agent that wrote the file."},
	ProgramTooOld: {Error, "A plugin's binary does not support the version of the CNI specification that the file asks for.",
		"Install a newer plugin, or lower `cniVersion`."},
	OrphanedPods: {Warning, "Pods hold attachments to a network that the runtime no longer loads. containerd would detach them with today's files, and addresses and port mappings of the old network stay behind.",
		"Delete these pods while the old file is the one that is loaded. The cache holds the configuration to detach them with afterwards."},
	RuntimeDiffers: {Error, "The running runtime uses other networks than the directory says. containerd overlooks files that are moved in from another directory or linked.",
		"Write any file in the directory (`touch` is not enough), and explain again."},
	RuntimeFailed: {Error, "The runtime's last attempt to load the directory failed.",
		"Repair the file that the message names."},
	RuntimeSettings: {Warning, "The running runtime has another conf dir or `max_conf_num` than this explanation assumes. It reads its settings only when it starts.",
		"Restart the runtime after a change; in containerd 2 the table is `plugins.'io.containerd.cri.v1.runtime'.cni`."},
	RuntimeNotReady: {Error, "The runtime says that its network is not ready.",
		"Follow the message; the other findings often explain it."},
	ClassNetworks: {Info, "A runtime class has a conf dir of its own: its pods get the networks of that directory.",
		"Explain that directory too, with `--dir`. Its state is not part of the node's readiness."},
	ClassLimit: {Warning, "A runtime class sets `cni_max_conf_num`, which counts only together with `cni_conf_dir`.",
		"Set `cni_conf_dir` in the same table."},
}
