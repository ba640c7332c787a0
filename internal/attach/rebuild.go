package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// Needs says what taking records down cannot do without: the sandbox's
// namespace, or the certainty that it is gone; and a hand on the host.
func (a *Attacher) Needs(records []store.Record) (namespace, host bool) {
	for _, r := range records {
		for _, p := range r.Attachment.Config.Plugins {
			d, ok := a.Drivers[p.Type]
			_, lends := d.(driver.Lender)
			namespace = namespace || lends
			_, known := a.IPAM[p.IPAM]
			host = host || !ok || p.IPAM != "" && !known
		}
	}
	return namespace, host
}

// Lost is what is known of a sandbox that has lost records.
type Lost struct {
	Sandbox store.Sandbox
	// Plan is what the pod would get today.
	Plan plan.Plan
	// Result is what the runtime remembers of the default network, nil if
	// nothing.
	Result *current.Result
	// Ending says that the sandbox is to be taken down. An attachment that is
	// not to be seen in the container may have left something elsewhere.
	Ending bool
}

// Rebuild makes records in place of those that are lost, and returns them:
// what the pod would get today, as far as no record that is left speaks of it
// and, in a sandbox that lives and can be seen, as far as it is there. Their results
// are what the runtime remembers and what the kernel shows. Nothing but the
// store is changed.
//
// A damaged record of a network that the pod would not get today is taken for
// what can be read of it, if the container shows that or the sandbox ends. Any
// other stays damaged, for another attempt when more is known.
func (a *Attacher) Rebuild(ctx context.Context, l Lost, reach Reach) ([]store.Record, error) {
	good, err := a.Store.Sandbox(l.Sandbox.ContainerID, l.Sandbox.IfName)
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return nil, err
	}
	if damaged == nil {
		damaged = &store.DamagedError{}
	}
	v, err := look(reach.NS, l.Sandbox)
	if err != nil {
		return nil, fmt.Errorf("rebuild records of container %s: %w", l.Sandbox.ContainerID, err)
	}
	records := substitutes(l, good, damaged, v)
	for i, r := range records {
		if records[i].Result, err = v.result(r, l.Result); err != nil {
			return nil, fmt.Errorf("rebuild record of %s: %w", r.Attachment.IfName, err)
		}
	}
	if len(records) == 0 {
		return nil, nil
	}
	var forget []store.Key
	if len(records) >= len(damaged.Keys) {
		forget = damaged.Keys
	}
	return records, a.Store.Rebuild(ctx, records, forget)
}

// substitutes chooses the attachments that the lost records most likely spoke
// of, in the order of the plan, and gives each a place that is free.
func substitutes(l Lost, good []store.Record, damaged *store.DamagedError, v *view) []store.Record {
	names, places := map[string]bool{}, map[int]bool{}
	for _, r := range good {
		names[r.Attachment.IfName], places[r.Index] = true, true
	}
	var records, unseen []store.Record
	for i, at := range l.Plan.Attachments {
		r := store.Record{Sandbox: l.Sandbox, Index: i, Attachment: at, Rebuilt: true}
		switch {
		case names[at.IfName]:
			continue
		case at.Default || l.Ending || v == nil || v.shows(at.IfName):
			records = append(records, r)
		default:
			unseen = append(unseen, r)
		}
		names[at.IfName] = true
	}
	for _, r := range damaged.Guesses {
		// What is damaged may be the name of an attachment that has its
		// substitute, or will have when its pod is known again. In a sandbox that
		// ends, taking down what never was harms nobody.
		likely := l.Ending || v.shows(r.Attachment.IfName) && len(records) < len(damaged.Keys)
		if !likely || names[r.Attachment.IfName] || utils.ValidateInterfaceName(r.Attachment.IfName) != nil {
			continue
		}
		r.Sandbox, r.Rebuilt, r.Guessed = l.Sandbox, true, true
		records = append(records, r)
		names[r.Attachment.IfName] = true
	}
	// An interface that is not there was removed in the container, or the pod
	// was never given it: which one, the number of damaged records says.
	for len(unseen) > 0 && len(records) < len(damaged.Keys) {
		records, unseen = append(records, unseen[0]), unseen[1:]
	}
	slices.SortStableFunc(records, func(a, b store.Record) int { return a.Index - b.Index })
	for i := range records {
		for places[records[i].Index] {
			records[i].Index++
		}
		places[records[i].Index] = true
	}
	return records
}

// view is what the kernel shows of a container's namespace.
type view struct {
	links []rtnl.Link
	addrs map[int][]rtnl.Addr
	// routes are those that somebody made, and not the kernel by itself.
	routes []rtnl.Route
	// ends are the node's ends of veths, by the index of the container's.
	ends map[int]rtnl.Link
}

// look views the namespace of a sandbox. It returns nil when there is none, or
// when it is another one by now.
func look(ns *netns.NS, sb store.Sandbox) (*view, error) {
	if ns == nil {
		return nil, nil
	}
	if id, err := ns.ID(); err != nil || !sb.NSID.IsZero() && id != sb.NSID {
		return nil, err
	}
	pod, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	host, err := rtnl.Open(nil)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	v := &view{ends: map[int]rtnl.Link{}}
	if v.links, err = pod.Links(); err != nil {
		return nil, err
	}
	if v.addrs, err = pod.AllAddrs(); err != nil {
		return nil, err
	}
	routes, err := pod.Routes()
	if err != nil {
		return nil, err
	}
	v.routes = slices.DeleteFunc(routes, func(r rtnl.Route) bool { return r.Protocol == byKernel || r.Dst.Addr().IsMulticast() })
	for _, l := range v.links {
		spec := driver.Spec{ContainerID: sb.ContainerID, IfName: l.Name, NetNS: ns}
		if end, ours := (driver.Veth{Spec: spec, Host: host, Pod: pod}).HostEnd(l); ours {
			v.ends[l.Index] = end
		}
	}
	return v, nil
}

// byKernel is the protocol of routes that the kernel made (RTPROT_KERNEL).
const byKernel = 2

func (v *view) shows(name string) bool {
	_, ok := v.link(name)
	return ok
}

func (v *view) link(name string) (rtnl.Link, bool) {
	if v == nil {
		return rtnl.Link{}, false
	}
	i := slices.IndexFunc(v.links, func(l rtnl.Link) bool { return l.Name == name })
	if i < 0 {
		return rtnl.Link{}, false
	}
	return v.links[i], true
}

// result is what the attachment most likely came to: for the default network
// what the runtime remembers, for the others what the kernel shows.
func (v *view) result(r store.Record, remembered *current.Result) (json.RawMessage, error) {
	if r.Attachment.Default && remembered != nil {
		return json.Marshal(remembered)
	}
	l, there := v.link(r.Attachment.IfName)
	if !there && r.Complete() {
		return r.Result, nil
	}
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	inside := &current.Interface{Name: r.Attachment.IfName, Sandbox: r.Sandbox.NetNS}
	if there {
		if end, ok := v.ends[l.Index]; ok {
			result.Interfaces = append(result.Interfaces, &current.Interface{Name: end.Name, Mac: end.MAC.String()})
		}
		inside.Mac, inside.Mtu = l.MAC.String(), l.MTU
	}
	result.Interfaces = append(result.Interfaces, inside)
	if there {
		v.addressed(result, l.Index)
	}
	return json.Marshal(result)
}

// addressed adds the addresses and routes of the link, the last interface of
// the result.
func (v *view) addressed(result *current.Result, link int) {
	own := slices.DeleteFunc(slices.Clone(v.routes), func(r rtnl.Route) bool { return r.Link != link })
	for _, a := range v.addrs[link] {
		if a.Addr().IsLinkLocalUnicast() {
			continue
		}
		ip := &current.IPConfig{Address: ipNet(a.Prefix), Interface: current.Int(len(result.Interfaces) - 1)}
		for _, r := range own {
			if r.Via.IsValid() && a.Masked().Contains(r.Via) {
				ip.Gateway = r.Via.AsSlice()
				break
			}
		}
		result.IPs = append(result.IPs, ip)
	}
	for _, r := range own {
		if r.Via.IsValid() {
			result.Routes = append(result.Routes, &types.Route{Dst: ipNet(r.Dst), GW: r.Via.AsSlice()})
		}
	}
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
