package driver

import (
	"context"
	"errors"
	"slices"

	"braid.dev/braid/internal/rtnl"
)

// Veth is the veth pair of an attachment: one end in the container, with the
// interface name, the other on the node, with one of Spec.VethNames and the
// attachment's mark.
type Veth struct {
	Spec Spec
	Host *rtnl.Handle
	Pod  *rtnl.Handle // nil when the namespace is gone
	// Remover removes the pair; nil waits until the kernel has freed it.
	Remover *rtnl.Remover
}

// Free makes sure that the interface name is free in the container. What an
// interrupted Attach of this attachment left is removed by remove; every other
// link of that name stays as it is, and is the reason to refuse.
func (v Veth) Free(ctx context.Context, remove func(context.Context) error) error {
	l, err := v.Pod.Link(v.Spec.IfName)
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, ours := v.HostEnd(l); ours {
		return remove(ctx)
	}
	return v.Spec.NameTaken(l)
}

// Make makes the pair, both ends down, and returns them. The names and the
// namespace of n are filled in.
func (v Veth) Make(n rtnl.Veth) (host, pod rtnl.Link, err error) {
	n.Peer.Name, n.PeerNS = v.Spec.IfName, v.Spec.NetNS
	if host, err = v.create(n); err != nil {
		return host, pod, err
	}
	if pod, err = v.Pod.Link(v.Spec.IfName); err != nil {
		return host, pod, err
	}
	return host, pod, v.Host.SetAlias(host.Index, v.Spec.Mark())
}

func (v Veth) create(n rtnl.Veth) (rtnl.Link, error) {
	var err error
	for _, n.Name = range v.Spec.VethNames() {
		var host rtnl.Link
		if host, err = v.Host.AddVeth(n); !errors.Is(err, rtnl.ErrExists) {
			return host, err
		}
		// One of the two names is taken. In the container it was free just now.
		if l, err := v.Pod.Link(v.Spec.IfName); err == nil {
			return rtnl.Link{}, v.Spec.NameTaken(l)
		}
		if left, err := v.Host.Link(n.Name); err == nil && left.Alias == v.Spec.Mark() {
			// Ours, and its other end was moved or renamed.
			if err := v.Remover.Del(v.Host, left.Index); err != nil {
				return rtnl.Link{}, err
			}
			if host, err = v.Host.AddVeth(n); err == nil {
				return host, nil
			}
		}
	}
	return rtnl.Link{}, err
}

// Remove removes the pair from whichever end is found. A link in the container
// that has the right name and another origin is left alone.
func (v Veth) Remove() error {
	if v.Pod != nil {
		l, err := v.Pod.Link(v.Spec.IfName)
		if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return err
		}
		if err == nil {
			if host, ours := v.HostEnd(l); ours {
				return gone(v.Remover.Del(v.Host, host.Index))
			}
		}
	}
	// The container's end is gone or has another name now.
	for _, name := range v.Spec.VethNames() {
		l, err := v.Host.Link(name)
		if errors.Is(err, rtnl.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if l.Alias == v.Spec.Mark() {
			return gone(v.Remover.Del(v.Host, l.Index))
		}
	}
	return nil
}

// gone forgives that the kernel, which removes the links of a namespace that
// ends, was faster.
func gone(err error) error {
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	return err
}

// HostEnd returns the other end of the link l of the container, when it is one
// that this attachment made: its name is one of Spec.VethNames, or one that the
// result of the attachment tells, which is how attachments that the reference
// plugins made are found.
func (v Veth) HostEnd(l rtnl.Link) (rtnl.Link, bool) {
	if l.Kind != "veth" {
		return rtnl.Link{}, false
	}
	host, err := v.Host.LinkByIndex(l.Parent)
	if err != nil || host.Kind != "veth" || host.Parent != l.Index {
		return rtnl.Link{}, false
	}
	// Indexes repeat in every namespace: is it this one that host leads to?
	if id, err := v.Host.NSID(v.Spec.NetNS); err != nil || id != host.ParentNSID {
		return rtnl.Link{}, false
	}
	names := v.Spec.VethNames()
	if v.Spec.Prev != nil {
		for _, i := range v.Spec.Prev.Interfaces {
			if i.Sandbox == "" {
				names = append(names, i.Name)
			}
		}
	}
	return host, slices.Contains(names, host.Name)
}
