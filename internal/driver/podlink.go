package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/rtnl"
)

// undoTime bounds the clean-up of an Attach that did not succeed, which
// goes on when the request's own time is over.
const undoTime = 10 * time.Second

// PodLink is a link that lives and ends in the container's namespace, made
// there for one attachment: a dummy, a tap. The attachment's mark is its alias.
type PodLink struct {
	Spec Spec
	// Kind is the kernel's, as in rtnl.Link.
	Kind string
	Pod  *rtnl.Handle
	// Remover removes the link; nil waits until the kernel has freed it.
	Remover *rtnl.Remover
}

// OpenPod returns a handle in the container's namespace, which must be there.
// Close it.
func OpenPod(s Spec) (*rtnl.Handle, error) {
	switch {
	case s.NetNS == nil:
		return nil, s.NoNamespace()
	case s.Pod != nil:
		return s.Pod.Lend(), nil
	}
	return rtnl.Open(s.NetNS)
}

// NoNamespace is the refusal to do anything without the container's namespace.
func (s Spec) NoNamespace() error {
	return types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
}

// ValidIfName refuses an interface name that the kernel or CNI does not allow.
func (s Spec) ValidIfName() error {
	if err := utils.ValidateInterfaceName(s.IfName); err != nil {
		return types.NewError(err.Code, fmt.Sprintf("interface name %q: %s", s.IfName, err.Msg), err.Details)
	}
	return nil
}

// NameTaken is the refusal of an interface name that the link l of the
// container has.
func (s Spec) NameTaken(l rtnl.Link) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables,
		fmt.Sprintf("interface name %s is taken in the container by a link of kind %s", s.IfName, l.Kind),
		"choose another name for this attachment")
}

// Undo joins the error of an Attach with that of removing what it made, for
// which there is time of its own.
func Undo(ctx context.Context, err error, remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return errors.Join(err, remove(ctx))
}

// Free makes sure that the interface name is free. What an interrupted Attach
// of this attachment left is removed by remove; every other link of that name
// stays as it is, and is the reason to refuse.
func (p PodLink) Free(ctx context.Context, remove func(context.Context) error) error {
	links, err := p.Pod.Links()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(links, p.marked) {
		if err := remove(ctx); err != nil {
			return err
		}
		if links, err = p.Pod.Links(); err != nil {
			return err
		}
	}
	called := func(l rtnl.Link) bool { return l.Name == p.Spec.IfName || slices.Contains(l.AltNames, p.Spec.IfName) }
	if i := slices.IndexFunc(links, called); i >= 0 {
		return p.Spec.NameTaken(links[i])
	}
	return nil
}

// Make makes the link, down, by create. A link cannot be made with its mark. So
// it is made in a group that only this attachment uses, and leaves that once it
// is marked: a crash leaves nothing whose origin is in doubt.
//
// When create says that the name is taken, which it is not in the container,
// Make does as MakeAndRename: older kernels want a name to be free in the
// namespace of the request as well.
func (p PodLink) Make(create func(rtnl.New) (rtnl.Link, error)) (rtnl.Link, error) {
	l, err := create(rtnl.New{Name: p.Spec.IfName, LinkGroup: p.Spec.passingGroup()})
	if errors.Is(err, rtnl.ErrExists) {
		return p.MakeAndRename(func(name string) (rtnl.Link, error) { return create(rtnl.New{Name: name}) })
	}
	if err != nil {
		return l, err
	}
	if err := p.Pod.SetAlias(l.Index, p.Spec.Mark()); err != nil {
		return l, err
	}
	l.Alias, l.LinkGroup = p.Spec.Mark(), 0
	return l, p.Pod.SetLinkGroup(l.Index, 0)
}

// MakeAndRename is Make for a link that cannot be made in a group: it is made
// under a name that only this attachment uses, and gets its own name once it is
// marked. Debian's kernel 6.1 waits for all readers of the old name then, for
// about 15 ms.
func (p PodLink) MakeAndRename(create func(name string) (rtnl.Link, error)) (rtnl.Link, error) {
	l, err := create(p.Spec.passingName())
	if err != nil {
		return l, err
	}
	if err := p.Pod.SetAlias(l.Index, p.Spec.Mark()); err != nil {
		return l, err
	}
	l.Name, l.Alias = p.Spec.IfName, p.Spec.Mark()
	return l, p.Pod.SetName(l.Index, l.Name)
}

// Remove removes the link, whatever it is called by now. A link that has its
// name and another origin is left alone.
func (p PodLink) Remove() error {
	// Nearly always it is there, complete. To list all links takes longer.
	if l, err := p.Pod.Link(p.Spec.IfName); err == nil && p.marked(l) {
		return gone(p.Remover.Del(p.Pod, l.Index))
	}
	links, err := p.Pod.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if !p.marked(l) && !p.unmarkedButOurs(l) {
			continue
		}
		if err := gone(p.Remover.Del(p.Pod, l.Index)); err != nil {
			return err
		}
	}
	return nil
}

func (p PodLink) marked(l rtnl.Link) bool {
	return l.Kind == p.Kind &&
		(l.Alias == p.Spec.Mark() || l.Name == p.Spec.passingName() || l.LinkGroup == p.Spec.passingGroup())
}

// unmarkedButOurs says that the reference plugin made the link l: it does not
// mark links, but the attachment's result tells of this one.
func (p PodLink) unmarkedButOurs(l rtnl.Link) bool {
	told, ok := p.Spec.Told()
	return ok && l.Kind == p.Kind && l.Alias == "" && l.Name == p.Spec.IfName && told.Mac == l.MAC.String()
}

// Check compares the link with what the result says of it.
func (p PodLink) Check() (rtnl.Link, error) {
	told, ok := p.Spec.Told()
	if !ok {
		return rtnl.Link{}, fmt.Errorf("the result has no interface %s in namespace %s", p.Spec.IfName, p.Spec.NetNSPath)
	}
	l, err := p.Pod.Link(p.Spec.IfName)
	if err != nil {
		return l, err
	}
	if p.Kind != "" && l.Kind != p.Kind {
		return l, fmt.Errorf("interface %s is of kind %s, not a %s", l.Name, l.Kind, p.Kind)
	}
	if told.Mac != "" && told.Mac != l.MAC.String() {
		return l, fmt.Errorf("interface %s has mac %s, not %s", l.Name, l.MAC, told.Mac)
	}
	return l, nil
}

// Told returns what the attachment's result says of the container's interface.
func (s Spec) Told() (current.Interface, bool) {
	if s.Prev == nil {
		return current.Interface{}, false
	}
	i := slices.IndexFunc(s.Prev.Interfaces, func(i *current.Interface) bool {
		return i.Name == s.IfName && i.Sandbox == s.NetNSPath
	})
	if i < 0 {
		return current.Interface{}, false
	}
	return *s.Prev.Interfaces[i], true
}

// Addresses asks the delegate for addresses, which are all the interface's
// that is the n-th of res, and adds them to res with their routes and DNS.
func (s Spec) Addresses(ctx context.Context, res *current.Result, n int) error {
	got, err := s.IPAM.Add(ctx)
	if err != nil {
		return err
	}
	if len(got.IPs) == 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "ipam returned no address", "")
	}
	for _, ip := range got.IPs {
		ip.Interface = current.Int(n)
	}
	res.IPs, res.Routes, res.DNS = got.IPs, got.Routes, got.DNS
	return nil
}
