package attach

import (
	"encoding/json"
	"fmt"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/plan"
)

// DeviceInfo keeps the device information files of attachments that have one
// (Device Information Specification 1.1.0).
type DeviceInfo interface {
	// Prepare has the file ready for the plugins' ADD.
	Prepare(plan.Attachment) error
	// Read returns what is known of the device after it, nil if nothing is.
	Read(plan.Attachment) (json.RawMessage, error)
	// Remove removes the file after their DEL.
	Remove(plan.Attachment) error
}

// info is nil for an attachment without a file.
func (c chain) info() DeviceInfo {
	if c.record.Attachment.DeviceInfoFile == "" {
		return nil
	}
	return c.attacher.DeviceInfo
}

func (c chain) prepareInfo() error {
	info, a := c.info(), c.record.Attachment
	if info == nil {
		return nil
	}
	if err := info.Prepare(a); err != nil {
		return fmt.Errorf("attach %s (%s): %w", a.IfName, a.Network, err)
	}
	return nil
}

// attached is the attachment after its plugins have run. What they or a device
// plugin wrote of the device is for people and programs outside: the pod has
// the device all the same when it cannot be read.
func (c chain) attached(result *current.Result) Attached {
	done := Attached{Attachment: c.record.Attachment, Result: result}
	if info := c.info(); info != nil {
		var err error
		if done.DeviceInfo, err = info.Read(done.Attachment); err != nil {
			done.Notes = append(done.Notes, err.Error())
		}
	}
	return done
}

// removeInfo comes after a DEL that succeeded or that is given up: plugins that
// are asked to DEL again may want to read the file again.
func (c chain) removeInfo() error {
	info, a := c.info(), c.record.Attachment
	if info == nil {
		return nil
	}
	if err := info.Remove(a); err != nil {
		return fmt.Errorf("detach %s (%s): %w", a.IfName, a.Network, err)
	}
	return nil
}
