// Package store remembers every attachment of this node durably.
//
// A record is written before the first kernel call of an attachment and
// completed with its result afterwards. Everything that ends or verifies an
// attachment works from its record, never from today's manifests.
package store

import (
	"encoding/json"
	"time"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
)

// Sandbox is the request of the runtime that a record belongs to.
type Sandbox struct {
	ContainerID string `json:"containerID"`
	// IfName is the CNI_IFNAME of the request. ContainerID and IfName
	// together identify what the runtime will DEL.
	IfName string   `json:"ifName"`
	NetNS  string   `json:"netns"`
	NSID   netns.ID `json:"nsID"`
	// Boot is the kernel's boot ID at ADD. No namespace outlives its boot.
	Boot string `json:"boot,omitempty"`
	Args string `json:"args,omitempty"`
	// Path is the CNI_PATH of the request.
	Path string `json:"path,omitempty"`
	// Network is the name of the configuration that the runtime sent. Its GC
	// speaks only of the attachments that were made through it.
	Network string   `json:"network,omitempty"`
	Pod     plan.Pod `json:"pod"`
	// Added is when the ADD came, by the node's clock. Records of earlier
	// versions have none.
	Added time.Time `json:"added,omitzero"`
}

// Rebooted reports whether the node was started anew since the sandbox's ADD,
// which its namespace did not outlive. boot is the boot ID of now.
func (s Sandbox) Rebooted(boot string) bool { return s.Boot != "" && boot != "" && s.Boot != boot }

// Record is one attachment of one sandbox.
type Record struct {
	Sandbox Sandbox `json:"sandbox"`
	// Index is the attachment's place in the plan. ADD goes up, DEL down.
	Index      int             `json:"index"`
	Attachment plan.Attachment `json:"attachment"`
	// Result is the CNI result in the format of the latest specification.
	// Empty means intent: ADD began and may have done any part of it.
	Result json.RawMessage `json:"result,omitempty"`
	// DeviceInfo is what is known of the attachment's device, in the format of
	// the NPWG Device Information Specification 1.1.0, section 3. Empty without
	// a device.
	DeviceInfo json.RawMessage `json:"deviceInfo,omitempty"`
	// Rebuilt says that the record was lost, and made again from what the node
	// and the cluster knew later. Its result is what the kernel showed then.
	Rebuilt bool `json:"rebuilt,omitempty"`
	// Guessed says that the attachment is what could be read of a damaged
	// record. Any part of it may be wrong, or all of it never have been.
	Guessed bool `json:"guessed,omitempty"`
	// FailedDels is how many attempts to take the attachment down have failed
	// while it was an intent, or guessed.
	FailedDels int `json:"failedDels,omitempty"`
	// Plugged says that the attachment was added to a pod that ran. When it is
	// an intent, the daemon finishes or undoes it, not the runtime.
	Plugged bool `json:"plugged,omitempty"`
	// Leaving says that the attachment is being taken away from a pod that
	// runs. Some of it may be gone already.
	Leaving bool `json:"leaving,omitempty"`
}

// Key is the key that the record is stored under.
func (r Record) Key() Key {
	return Key{ContainerID: r.Sandbox.ContainerID, IfName: r.Sandbox.IfName, Index: r.Index}
}

// Complete reports whether ADD finished this attachment.
func (r Record) Complete() bool { return len(r.Result) > 0 }

// Certain reports whether the attachment was there as the record has it, so
// that whatever fails to take it down has left something of it.
func (r Record) Certain() bool { return r.Complete() && !r.Guessed }

// InUse reports whether the pod has this attachment: all of it was made, and
// nobody began to take it away. The network status is made of these.
func (r Record) InUse() bool { return r.Complete() && !r.Leaving }
