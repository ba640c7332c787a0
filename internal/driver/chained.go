package driver

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/rtnl"
)

// Chained says whether the attachment has the result that a plugin needs which
// stands behind others in its chain.
func (s Spec) Chained() error {
	if s.Prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: the plugin works on the interface of one before it in the chain", "")
	}
	return nil
}

// PodLink returns the container's interface, which a plugin before this one in
// the chain has made.
func (s Spec) PodLink(pod *rtnl.Handle) (rtnl.Link, error) {
	if err := s.ValidIfName(); err != nil {
		return rtnl.Link{}, err
	}
	l, err := pod.Link(s.IfName)
	if err != nil {
		return l, fmt.Errorf("container: %w", err)
	}
	return l, nil
}

// Carried is what of the attachment's result belongs to the container's
// interface: its addresses, and its routes as Interface.Configure makes them,
// without a link index.
func (s Spec) Carried() ([]netip.Prefix, []rtnl.Route, error) {
	if s.Prev == nil {
		return nil, nil, nil
	}
	c, err := wanted(s.IfName, s.Prev)
	return c.addrs, c.routes, err
}

// WithInterfaces is the result res with interfaces of its own, so that they can
// be changed.
func WithInterfaces(res *current.Result) *current.Result {
	out := *res
	out.Interfaces = slices.Clone(res.Interfaces)
	for i, l := range out.Interfaces {
		one := *l
		out.Interfaces[i] = &one
	}
	return &out
}
