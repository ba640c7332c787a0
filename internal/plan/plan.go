// Package plan decides which networks a pod gets, and why.
//
// Build is a pure function: it reads no file, no clock and no cluster, so the
// same call serves the daemon, an offline preview and a golden test. What it
// returns, an ordered list of Attachments, is the one currency that the rest
// of Braid works in: package attach makes them true, package store remembers
// them, package status reports them.
package plan

import "encoding/json"

// Pod is what planning needs to know of a pod.
type Pod struct {
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	UID         string            `json:"uid,omitempty"`
	Annotations map[string]string `json:"-"`
}

// Definition is a NetworkAttachmentDefinition (NPWG specification 1.3,
// section 3).
type Definition struct {
	Namespace string
	Name      string
	// Config is spec.config: a CNI configuration or configuration list in
	// JSON, or empty when the configuration lies in the conf dir under the
	// definition's name.
	Config string
	// ResourceName is the extended resource whose devices the network is made
	// of, such as intel.com/sriov_netdevice, empty without one (annotation
	// k8s.v1.cni.cncf.io/resourceName).
	ResourceName string
}

// Device is one device of the node that the kubelet gave to the pod.
type Device struct {
	// Resource is the name of the extended resource, as in
	// Definition.ResourceName; empty for a device that the pod names itself.
	Resource string `json:"resource,omitempty"`
	// ID is what plugins know the device by, for most a PCI address.
	ID string `json:"id"`
}

// Network is one network configuration: a CNI configuration list, or a single
// configuration as a list of one (CNI specification 1.1, section 1).
type Network struct {
	CNIVersion   string   `json:"cniVersion"`
	Name         string   `json:"name"`
	DisableCheck bool     `json:"disableCheck,omitempty"`
	DisableGC    bool     `json:"disableGC,omitempty"`
	Plugins      []Plugin `json:"plugins"`
}

// Plugin is one element of a Network's chain.
type Plugin struct {
	// Type is the plugin's name: a driver of Braid or a binary of the host.
	Type string `json:"type"`
	// IPAM is the type of the plugin's address delegate, empty without one.
	IPAM string `json:"ipam,omitempty"`
	// Capabilities are the runtimeConfig keys that the plugin asks for.
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	// Conf holds the bytes the author wrote, keys that Braid does not know
	// included. The name, cniVersion, runtimeConfig and prevResult that CNI
	// injects are not part of it, unless the author wrote them, as for the name
	// and version of a single configuration; injection overwrites them.
	Conf json.RawMessage `json:"conf"`
}

// Attachment is one interface that a pod will get.
type Attachment struct {
	// Network names the network as the status annotation does: namespace/name
	// of the NetworkAttachmentDefinition, or the CNI name of a network that
	// comes from the conf dir.
	Network string `json:"network"`
	IfName  string `json:"ifName"`
	// Default is true for the pod's default network, which is always first.
	Default bool `json:"default,omitempty"`
	// Config is the configuration to attach with.
	Config Network `json:"config"`
	// RuntimeConfig holds the capability arguments by key. Each plugin of the
	// chain receives those that it declares.
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig,omitempty"`
	// IPs are the addresses that are known before the network hands any out, in
	// CIDR notation where the prefix length is known too: those that the pod
	// asks for, or else those of a static address delegate.
	IPs []string `json:"ips,omitempty"`
	// MAC is the hardware address that the pod asks for.
	MAC string `json:"mac,omitempty"`
	// DefaultRoute says that the pod's default route is to lead through this
	// attachment, as far as that is known before it is attached. One attachment
	// of a plan has it.
	DefaultRoute bool `json:"defaultRoute,omitempty"`
	// Claim is what the pod asks for with default-route, nil without it.
	Claim *RouteClaim `json:"claim,omitempty"`
	// IPAMClaim is the IPAMClaim, in the pod's namespace, that holds the
	// addresses of this attachment, empty without one (NPWG specification 1.3,
	// "ipam-claim-reference").
	IPAMClaim string `json:"ipamClaim,omitempty"`
	// Device is the device that the attachment is made of, zero without one.
	Device Device `json:"device,omitzero"`
	// DeviceInfoFile is the path of the file in which the plugins tell and find
	// what is to be known of the device (Device Information specification 1.1),
	// empty when nobody will.
	DeviceInfoFile string `json:"deviceInfoFile,omitempty"`
	// Asked is the element of the networks annotation that asks for this
	// attachment, nil for the networks that every pod gets. An edit of the
	// annotation is compared with it.
	Asked *Selection `json:"asked,omitempty"`
	// CNIArgs is appended to the CNI_ARGS of the request, such as
	// "IP=10.20.1.11/24;MAC=02:00:00:00:00:01", for plugins that know only
	// this older way of asking.
	CNIArgs string `json:"cniArgs,omitempty"`
	// Reasons says for a person why the pod gets this attachment and where
	// each of its properties comes from, one sentence each.
	Reasons []string `json:"reasons,omitempty"`
}

// Input is all that Build looks at.
type Input struct {
	Pod Pod
	// IfName is the CNI_IFNAME of the request, the name of the default
	// network's interface.
	IfName string
	// Default is the default network.
	Default Network
	// ConfDirNetworks is how many networks of the conf dir every pod gets: 0
	// and 1 are the default network alone, 2 is it and the first of Beside, and
	// so on, as a runtime does by its setting max_conf_num.
	ConfDirNetworks int
	// Beside are the networks of the conf dir behind the default network, in
	// the order in which a runtime reads them.
	Beside []Network
	// RuntimeConfig is what the runtime passed for the default network. It
	// reaches no other one (NPWG specification 1.3, section 7.5).
	RuntimeConfig map[string]json.RawMessage
	// Isolation says which definitions the pod may use.
	Isolation Isolation
	// Definition looks a NetworkAttachmentDefinition up.
	Definition func(namespace, name string) (Definition, bool)
	// OnDisk looks a network of the conf dir up by its CNI name, for
	// definitions without a configuration of their own.
	OnDisk func(name string) (Network, bool)
	// SubnetFile reads the file that Flannel's agent writes. Nil leaves
	// plugins of type flannel as they are, which is for a preview that is not
	// on the node.
	SubnetFile func(path string) ([]byte, error)
	// Devices lists the pod's devices of an extended resource, the same ones in
	// the same order each time. Nil leaves open which device a network gets,
	// which is for a preview that is not on the node.
	Devices func(resource string) ([]Device, error)
	// ContainerID is the CNI_CONTAINERID of the request, and DeviceInfoDir the
	// directory of device information files. Without either there are none.
	ContainerID, DeviceInfoDir string
}
