package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Stacked is the driver of a type that gives the container one link on top of
// another one, its parent. Macvlan, ipvlan and vlan are that, and differ in
// what Parse reads from a configuration.
//
// The link is a PodLink: it is made in the container's namespace, and whatever a
// killed Attach left of it is found there.
type Stacked struct {
	// Kind is the kernel's name for the type of link.
	Kind string
	// HostNS is the node's namespace. Nil is the current one.
	HostNS *netns.NS
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
	// Remover removes the links.
	Remover *rtnl.Remover
	// Parse decides what a configuration asks for. Its errors are CNI errors.
	Parse func(Spec) (Stack, error)
}

// Stack is what one attachment asks for.
type Stack struct {
	// Link is the new link. The driver fills in the rest of it.
	Link rtnl.Stacked
	// Parent is the name of the link below. Empty means the link of the default
	// route.
	Parent string
	// InContainer looks for the parent in the container, not on the node.
	InContainer bool
	// WithinParentMTU refuses an MTU that is greater than the parent's.
	WithinParentMTU bool
	// IPAM is the type of the address delegate, empty for none.
	IPAM string
	// Given is used in the place of a delegate's answer, when there is none.
	Given *current.Result
	DNS   types.DNS
}

// StackConf is the part of the configuration that all stacked types have.
type StackConf struct {
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS         types.DNS `json:"dns"`
	Name        string    `json:"name"`
	Master      string    `json:"master"`
	MTU         int       `json:"mtu"`
	InContainer bool      `json:"linkInContainer"`
}

// ParseStack reads the configuration into conf, a pointer to a struct that
// embeds base, checks what all stacked types have, and returns what that says.
func ParseStack(s Spec, conf any, base *StackConf) (Stack, error) {
	if err := json.Unmarshal(s.Conf, conf); err != nil {
		return Stack{}, types.NewError(types.ErrDecodingFailure, "read configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return Stack{}, err
	}
	if base.MTU < 0 {
		return Stack{}, Invalid("mtu %d is negative", base.MTU)
	}
	if base.Master != "" && utils.ValidateInterfaceName(base.Master) != nil {
		return Stack{}, Invalid("master %q is no name of a link", base.Master)
	}
	return Stack{
		Link:        rtnl.Stacked{New: rtnl.New{MTU: base.MTU}},
		Parent:      base.Master,
		InContainer: base.InContainer,
		IPAM:        base.IPAM.Type,
		DNS:         base.DNS,
	}, nil
}

// Invalid is the error for a configuration that cannot be meant.
func Invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// Attach implements Driver.
func (d *Stacked) Attach(ctx context.Context, s Spec) (*current.Result, error) {
	want, err := d.Parse(s)
	if err != nil {
		return nil, err
	}
	if s.NetNS == nil {
		return nil, s.NoNamespace()
	}
	chain := s
	chain.Prev = nil // what others made before is not this attachment's
	a, err := d.open(want, chain)
	if err != nil {
		return nil, err
	}
	defer a.close()
	if err := a.podLink().Free(ctx, func(context.Context) error { return a.podLink().Remove() }); err != nil {
		return nil, err
	}
	res, err := a.build(ctx)
	if err != nil {
		return nil, Undo(ctx, err, a.remove)
	}
	return res, nil
}

// Foretell implements Foreteller. The link has the MAC that it is given, or
// that of its parent.
func (d *Stacked) Foretell(ctx context.Context, s Spec) (*current.Result, error) {
	want, err := d.Parse(s)
	if err != nil {
		return nil, err
	}
	mac := want.Link.MAC
	if mac == nil {
		if mac, err = d.parentMAC(want); err != nil {
			return nil, err
		}
	}
	res, got := want.result(s, mac), want.Given
	if want.IPAM != "" {
		if got, err = s.IPAM.Add(ctx); err != nil {
			return nil, err
		}
	}
	if got == nil {
		return res, nil
	}
	return res, want.take(res, got)
}

func (d *Stacked) parentMAC(want Stack) (net.HardwareAddr, error) {
	if want.InContainer {
		return nil, ErrUnforeseen // it may be one that is still to be made
	}
	a := &stacking{Stacked: d, Stack: want}
	defer a.close()
	l, err := a.parent()
	return l.MAC, err
}

// Detach implements Driver.
func (d *Stacked) Detach(ctx context.Context, s Spec) error {
	want, err := d.Parse(s)
	if err != nil {
		// Attach refused this before it made anything. What another program made
		// of it is found without it.
		want = Stack{}
	}
	a, err := d.open(want, s)
	if err != nil {
		return err
	}
	defer a.close()
	return a.remove(ctx)
}

// Check implements Driver.
func (d *Stacked) Check(ctx context.Context, s Spec) error {
	want, err := d.Parse(s)
	if err != nil {
		return err
	}
	if s.NetNS == nil {
		return s.NoNamespace()
	}
	if s.Prev == nil {
		return Invalid("there is no result to compare with")
	}
	a, err := d.open(want, s)
	if err != nil {
		return err
	}
	defer a.close()
	return a.check(ctx)
}

// stacking is one attachment with what is open while it is worked on.
type stacking struct {
	*Stacked
	Stack
	spec Spec
	host *rtnl.Handle // nil until below opens it
	pod  *rtnl.Handle // nil when the namespace is gone
}

func (d *Stacked) open(want Stack, s Spec) (*stacking, error) {
	if want.IPAM != "" && s.IPAM == nil {
		return nil, types.NewError(types.ErrInternal, fmt.Sprintf("no address delegate for ipam type %q", want.IPAM), "")
	}
	a := &stacking{Stacked: d, Stack: want, spec: s}
	if s.NetNS == nil {
		return a, nil
	}
	var err error
	a.pod, err = OpenPod(s)
	return a, err
}

func (a *stacking) close() {
	if a.host != nil {
		a.host.Close()
	}
	if a.pod != nil {
		a.pod.Close()
	}
}

func (a *stacking) podLink() PodLink {
	return PodLink{Spec: a.spec, Kind: a.Kind, Pod: a.pod, Remover: a.Remover}
}

// build makes the attachment. What it made before an error is for remove.
func (a *stacking) build(ctx context.Context) (*current.Result, error) {
	parent, err := a.parent()
	if err != nil {
		return nil, err
	}
	l, err := a.addLink(parent)
	if err != nil {
		return nil, err
	}
	res := a.result(a.spec, l.MAC)
	if a.IPAM == "" && a.Given == nil {
		return res, a.pod.SetUp(l.Index)
	}
	got := a.Given
	if a.IPAM != "" {
		if got, err = a.spec.IPAM.Add(ctx); err != nil {
			return nil, err
		}
	}
	if err := a.take(res, got); err != nil {
		return nil, err
	}
	iface := a.iface()
	iface.Index = l.Index
	return res, iface.Configure(ctx, res)
}

// result has the link of an attachment.
func (st Stack) result(s Spec, mac net.HardwareAddr) *current.Result {
	return &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: s.IfName, Mac: mac.String(), Sandbox: s.NetNSPath}},
		DNS:        st.DNS,
	}
}

// take adds addresses to res that were asked for, or given.
func (st Stack) take(res, got *current.Result) error {
	if len(got.IPs) == 0 {
		return Invalid("ipam type %s returned no address", st.IPAM)
	}
	for _, ip := range got.IPs {
		own := *ip
		own.Interface = current.Int(0)
		res.IPs = append(res.IPs, &own)
	}
	res.Routes = got.Routes
	return nil
}

func (a *stacking) iface() Interface {
	return Interface{NS: a.spec.NetNS, Handle: a.pod, Name: a.spec.IfName, KernelDAD: true, Sysctl: a.Sysctl}
}

// below is a handle in the namespace that the parent is in.
func (a *stacking) below() (_ *rtnl.Handle, err error) {
	if a.InContainer {
		return a.pod, nil
	}
	if a.host == nil {
		a.host, err = rtnl.Open(a.HostNS)
	}
	return a.host, err
}

// parent finds the link below.
func (a *stacking) parent() (rtnl.Link, error) {
	l, err := a.findParent()
	if err != nil {
		return l, err
	}
	if a.WithinParentMTU && a.Link.MTU > l.MTU {
		return l, Invalid("mtu %d is greater than %d, that of master %s", a.Link.MTU, l.MTU, l.Name)
	}
	return l, nil
}

func (a *stacking) findParent() (rtnl.Link, error) {
	where := map[bool]string{false: "on the node", true: "in the container"}[a.InContainer]
	h, err := a.below()
	if err != nil {
		return rtnl.Link{}, err
	}
	if a.Parent == "" {
		routes, err := h.Routes()
		if err != nil {
			return rtnl.Link{}, err
		}
		i := slices.IndexFunc(routes, func(r rtnl.Route) bool { return r.Dst.Bits() == 0 && r.Table == rtnl.MainTable })
		if i < 0 {
			return rtnl.Link{}, types.NewError(types.ErrTryAgainLater,
				"there is no default route "+where+" whose link could be the master", "name one: master")
		}
		return h.LinkByIndex(routes[i].Link)
	}
	l, err := h.Link(a.Parent)
	if errors.Is(err, rtnl.ErrNotFound) {
		// Worth another try: nodes are prepared while pods already come.
		return l, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("master %s: there is no such link %s", a.Parent, where), "")
	}
	return l, err
}

// addLink makes the link, which is down.
func (a *stacking) addLink(parent rtnl.Link) (rtnl.Link, error) {
	h, err := a.below()
	if err != nil {
		return rtnl.Link{}, err
	}
	link := a.Link
	link.Kind, link.Parent, link.NS = a.Kind, parent.Index, a.spec.NetNS
	l, err := a.podLink().Make(func(as rtnl.New) (rtnl.Link, error) {
		link.Name, link.LinkGroup = as.Name, as.LinkGroup
		if err := h.AddStacked(link); err != nil {
			return rtnl.Link{}, fmt.Errorf("on master %s: %w", parent.Name, err)
		}
		return a.pod.Link(as.Name)
	})
	if a.Kind == "vlan" && errors.Is(err, rtnl.ErrExists) {
		// Or its last one has not quite ended yet.
		return l, types.NewError(types.ErrTryAgainLater,
			fmt.Sprintf("vlan %d of master %s is in use: one container, or the node itself, can have it", link.ID, parent.Name),
			"for several containers in one VLAN use type bridge with vlan, or macvlan on a vlan link")
	}
	return l, err
}

// remove makes everything gone that Attach makes, whether it finished or not.
// The address is released after the link that had it is gone.
func (a *stacking) remove(ctx context.Context) error {
	var errs []error
	if a.pod != nil {
		errs = append(errs, a.podLink().Remove())
	}
	if a.spec.IPAM != nil {
		errs = append(errs, a.spec.IPAM.Del(ctx))
	}
	return errors.Join(errs...)
}

// check names the first difference between the world and the configuration
// with its result.
func (a *stacking) check(ctx context.Context) error {
	if a.IPAM != "" {
		if err := a.spec.IPAM.Check(ctx); err != nil {
			return err
		}
	}
	l, err := a.podLink().Check()
	if err != nil {
		return err
	}
	if err := a.checkLink(l); err != nil {
		return fmt.Errorf("interface %s %w", l.Name, err)
	}
	return a.iface().Check(a.spec.Prev)
}

func (a *stacking) checkLink(l rtnl.Link) error {
	if a.Link.MTU != 0 && a.Link.MTU != l.MTU {
		return fmt.Errorf("has mtu %d, not %d", l.MTU, a.Link.MTU)
	}
	if a.Kind == "vlan" && l.VLAN != a.Link.ID {
		return fmt.Errorf("is in vlan %d, not %d", l.VLAN, a.Link.ID)
	}
	if a.Link.Mode != "" {
		mode, err := a.pod.Mode(l.Index)
		if err != nil {
			return err
		}
		if mode != a.Link.Mode {
			return fmt.Errorf("is in mode %s, not %s", mode, a.Link.Mode)
		}
	}
	return a.checkParent(l)
}

// checkParent compares the link below with the one that the configuration
// names. Where it names none, the default route may have moved since.
func (a *stacking) checkParent(l rtnl.Link) error {
	if a.Parent == "" {
		return nil
	}
	parent, err := a.findParent()
	if err != nil {
		return err
	}
	nsid := -1
	if !a.InContainer {
		if nsid, err = a.hostID(); err != nil {
			return err
		}
	}
	// Indexes repeat in every namespace.
	if l.Parent != parent.Index || l.ParentNSID != nsid {
		return fmt.Errorf("is not on master %s", a.Parent)
	}
	return nil
}

// hostID is the number of the node's namespace in the container.
func (a *stacking) hostID() (int, error) {
	if a.HostNS != nil {
		return a.pod.NSID(a.HostNS)
	}
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	return a.pod.NSID(ns)
}
