package vrf

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// conf is the configuration. The README says what each key means.
type conf struct {
	Name  string `json:"name"`
	VRF   string `json:"vrfname"`
	Table uint32 `json:"table"`
}

func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read vrf configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	if err := utils.ValidateInterfaceName(c.VRF); err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("vrfname %q: %s", c.VRF, strings.TrimSpace(err.Msg+" "+err.Details)), "")
	}
	if c.VRF == s.IfName {
		return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("vrfname %s is the name of the interface itself", c.VRF), "")
	}
	return c, nil
}

// freeTable is the lowest table that is not used.
func freeTable(vrfs []uint32, routes []rtnl.Route) uint32 {
	for table := uint32(1); ; table++ {
		reserved := table >= unix.RT_TABLE_DEFAULT && table <= unix.RT_TABLE_LOCAL
		used := func(r rtnl.Route) bool { return r.Table == int(table) }
		if !reserved && !slices.Contains(vrfs, table) && !slices.ContainsFunc(routes, used) {
			return table
		}
	}
}

// kept is what a link loses when it changes its master, because the kernel
// takes it down and up again: the IPv6 addresses, unless a sysctl says
// otherwise, and all routes but those that come with an address.
type kept struct {
	addrs  []rtnl.Addr
	routes []rtnl.Route
}

// keep decides what is to be there afterwards.
func keep(link int, addrs []rtnl.Addr, routes []rtnl.Route) kept {
	var k kept
	for _, a := range addrs {
		if a.Addr().Is6() && a.Scope == unix.RT_SCOPE_UNIVERSE {
			k.addrs = append(k.addrs, rtnl.Addr{Prefix: a.Prefix, Peer: a.Peer, NoDAD: a.NoDAD})
		}
	}
	for _, r := range routes {
		if r.Link == link && r.Protocol != unix.RTPROT_KERNEL {
			k.routes = append(k.routes, r)
		}
	}
	return k
}

// in moves the routes of one table to another, and orders them so that the way
// to a gateway is there before the routes through it.
func (k kept) in(from, to int) kept {
	k.routes = slices.Clone(k.routes)
	for i, r := range k.routes {
		if r.Table == from {
			k.routes[i].Table = to
		}
	}
	slices.SortStableFunc(k.routes, func(a, b rtnl.Route) int {
		switch {
		case !a.Via.IsValid() && b.Via.IsValid():
			return -1
		case a.Via.IsValid() && !b.Via.IsValid():
			return 1
		}
		return 0
	})
	return k
}
