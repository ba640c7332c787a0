// Package bandwidth limits what a container sends and receives through an
// interface that a plugin before it in the chain has made, in process, as the
// CNI reference plugin of that name does. Its README says what it builds and
// what it refuses.
package bandwidth

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace that the node's ends of veths are in. Nil is the
	// current one.
	HostNS *netns.NS
}

// New returns the driver for plugin type "bandwidth".
func New(cfg Config) driver.Driver { return &bandwidth{cfg, rtnl.NewRemover()} }

type bandwidth struct {
	Config
	remover *rtnl.Remover
}

// Attach implements driver.Driver.
func (b *bandwidth) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if err := s.Chained(); err != nil {
		return nil, err
	}
	if s.NetNS == nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	if c.unlimited() {
		return s.Prev, nil
	}
	a, err := b.open(c, s)
	if err != nil {
		return nil, err
	}
	defer a.close()
	port, err := a.port()
	if err != nil {
		return nil, err
	}
	res, err := a.build(port)
	if err != nil {
		return nil, driver.Undo(ctx, err, func(context.Context) error { return a.remove() })
	}
	return res, nil
}

// Foretell implements driver.Foreteller.
func (*bandwidth) Foretell(_ context.Context, s driver.Spec) (*current.Result, error) {
	return driver.ForetellPrev(s)
}

// Detach implements driver.Driver.
func (b *bandwidth) Detach(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil && s.ValidIfName() != nil {
		return nil
	}
	a, err := b.open(c, s)
	if err != nil {
		return err
	}
	defer a.close()
	return a.remove()
}

// attachment is one attachment with what is open while it is worked on.
type attachment struct {
	*bandwidth
	conf
	spec driver.Spec
	host *rtnl.Handle
	pod  *rtnl.Handle // nil when the namespace is gone
}

func (b *bandwidth) open(c conf, s driver.Spec) (*attachment, error) {
	host, err := rtnl.Open(b.HostNS)
	if err != nil {
		return nil, err
	}
	a := &attachment{bandwidth: b, conf: c, spec: s, host: host}
	if s.NetNS != nil {
		if a.pod, err = driver.OpenPod(s); err != nil {
			host.Close()
			return nil, err
		}
	}
	return a, nil
}

func (a *attachment) close() {
	a.host.Close()
	if a.pod != nil {
		a.pod.Close()
	}
}

// port is the node's end of the container's veth, where both directions can be
// seen. The result must tell of it: what else the container's interface may be
// connected to is not this attachment's.
func (a *attachment) port() (rtnl.Link, error) {
	l, err := a.spec.PodLink(a.pod)
	if err != nil {
		return l, err
	}
	port, ok := a.otherEnd(l)
	if !ok {
		return port, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("interface %s (%s) has no other end on the node: only a veth's bandwidth can be limited", l.Name, l.Kind), "")
	}
	if !slices.ContainsFunc(a.spec.Prev.Interfaces, func(i *current.Interface) bool {
		return i.Sandbox == "" && i.Name == port.Name
	}) {
		return port, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("%s, the other end of %s, is not in prevResult", port.Name, l.Name), "")
	}
	return port, nil
}

func (a *attachment) otherEnd(l rtnl.Link) (rtnl.Link, bool) {
	if l.Kind != "veth" {
		return rtnl.Link{}, false
	}
	port, err := a.host.LinkByIndex(l.Parent)
	if err != nil || port.Kind != "veth" || port.Parent != l.Index {
		return rtnl.Link{}, false
	}
	// Indexes repeat in every namespace: is it this one that port leads to?
	id, err := a.host.NSID(a.spec.NetNS)
	return port, err == nil && id == port.ParentNSID
}

// build shapes the port. What it made before an error is for remove.
func (a *attachment) build(port rtnl.Link) (*current.Result, error) {
	if err := a.clear(port); err != nil {
		return nil, err
	}
	if a.ingress != nil {
		if err := a.host.AddTBF(port.Index, *a.ingress); err != nil {
			return nil, err
		}
	}
	if a.egress == nil {
		return a.spec.Prev, nil
	}
	// What comes in can only be dropped. So it goes through a link of its own,
	// where it goes out.
	ifb, err := a.addIFB(port.MTU)
	if err != nil {
		return nil, err
	}
	if err := a.host.AddTBF(ifb.Index, *a.egress); err != nil {
		return nil, err
	}
	if err := a.host.Redirect(port.Index, ifb.Index); err != nil {
		return nil, err
	}
	res := driver.WithInterfaces(a.spec.Prev)
	res.Interfaces = append(res.Interfaces, &current.Interface{Name: ifb.Name, Mac: ifb.MAC.String()})
	return res, nil
}

// clear removes what an interrupted call left, and refuses a port that somebody
// else shapes.
func (a *attachment) clear(port rtnl.Link) error {
	have, err := a.host.Shaping(port.Index)
	if err != nil {
		return err
	}
	foreign := func(what, kind string) error {
		return types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("%s has %s of kind %s already, which is another program's", port.Name, what, kind), "")
	}
	switch {
	case a.ingress != nil && have.Root != "" && have.Root != "tbf":
		return foreign("a queueing discipline", have.Root)
	case a.egress != nil && have.Ingress != "" && have.Ingress != "ingress":
		return foreign("an ingress hook", have.Ingress)
	}
	if have.Root == "" && have.Ingress == "" {
		return a.removeIFB()
	}
	return a.remove()
}

// addIFB makes the link that the container's frames pass through. It is marked
// in a step of its own, so that one without a mark may be ours too; clear has
// removed that.
func (a *attachment) addIFB(mtu int) (l rtnl.Link, err error) {
	for _, name := range a.names() {
		l, err = a.host.AddIFB(rtnl.New{Name: name, MTU: mtu, Up: true})
		if errors.Is(err, rtnl.ErrExists) {
			continue // another interface of the same container in the same network
		}
		if err != nil {
			return l, err
		}
		return l, a.host.SetAlias(l.Index, a.spec.Mark())
	}
	return l, err
}

// names are those that the link may have: the reference plugin's, which is the
// same for all interfaces of a container in one network, and one for the case
// that it is taken by another of them.
func (a *attachment) names() []string {
	name := func(key string) string {
		sum := sha512.Sum512([]byte(key))
		return ("bwp" + hex.EncodeToString(sum[:]))[:rtnl.MaxName]
	}
	return []string{name(a.conf.Name + a.spec.ContainerID), name(a.conf.Name + a.spec.ContainerID + "/" + a.spec.IfName)}
}

// remove takes all limits away.
func (a *attachment) remove() error {
	var errs []error
	if a.pod != nil {
		if l, err := a.pod.Link(a.spec.IfName); err == nil {
			if port, ok := a.otherEnd(l); ok {
				errs = append(errs, gone(a.host.Unshape(port.Index)))
			}
		}
	}
	return errors.Join(append(errs, a.removeIFB())...)
}

func (a *attachment) removeIFB() error {
	var errs []error
	for _, name := range a.names() {
		l, err := a.host.Link(name)
		if errors.Is(err, rtnl.ErrNotFound) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// One without a mark is the reference plugin's, or an interrupted call's.
		if l.Kind == "ifb" && (l.Alias == a.spec.Mark() || l.Alias == "") {
			errs = append(errs, gone(a.remover.Del(a.host, l.Index)))
		}
	}
	return errors.Join(errs...)
}

// gone forgives that the kernel, which removes the links of a namespace that
// ends, was faster.
func gone(err error) error {
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil
	}
	return err
}

// Check implements driver.Driver.
func (b *bandwidth) Check(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if err := s.Chained(); err != nil {
		return err
	}
	if s.NetNS == nil {
		return types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	if c.unlimited() {
		return nil
	}
	a, err := b.open(c, s)
	if err != nil {
		return err
	}
	defer a.close()
	return a.check()
}

func (a *attachment) check() error {
	port, err := a.port()
	if err != nil {
		return err
	}
	have, err := a.host.Shaping(port.Index)
	if err != nil {
		return err
	}
	if a.ingress != nil {
		if err := have.Does(*a.ingress); err != nil {
			return fmt.Errorf("%s, where the container's ingress is limited: %w", port.Name, err)
		}
	}
	if a.egress == nil {
		return nil
	}
	ifb, err := a.host.LinkByIndex(have.Redirect)
	if have.Redirect == 0 || err != nil || ifb.Kind != "ifb" || !slices.Contains(a.names(), ifb.Name) {
		return fmt.Errorf("what the container sends to %s is not redirected to %s", port.Name, a.names()[0])
	}
	if !ifb.Up {
		return fmt.Errorf("link %s, where the container's egress is limited, is down", ifb.Name)
	}
	if have, err = a.host.Shaping(ifb.Index); err == nil {
		err = have.Does(*a.egress)
	}
	if err != nil {
		return fmt.Errorf("%s, where the container's egress is limited: %w", ifb.Name, err)
	}
	return nil
}
