// Package status reports what a pod got, in the words of the NPWG
// multi-network specification 1.3: the network-status annotation, and the
// sentences of the pod's events.
//
// It is pure. Package kube carries the text to the cluster.
package status

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/plan"
)

// Annotation is the key of the pod annotation that holds the entries
// (specification 1.3, section 5).
const Annotation = "k8s.v1.cni.cncf.io/network-status"

// Outcome is one finished attachment.
type Outcome struct {
	Attachment plan.Attachment
	// Result is what the attachment's chain returned. It may be nil, because
	// CNI lets a plugin return nothing.
	Result *current.Result
	// Notes say what became of its routes, for the event.
	Notes []string
	// DeviceInfo is what is known of the attachment's device, nil if nothing is:
	// an object as in the Device Information specification 1.1.
	DeviceInfo json.RawMessage
}

// Entry is one element of the annotation (specification 1.3, section 5.3).
type Entry struct {
	// Name is namespace/name of a NetworkAttachmentDefinition, or the CNI name
	// of a network that comes from the conf dir.
	Name string `json:"name"`
	// Interface is the interface in the pod, empty when the result names none.
	Interface string `json:"interface,omitempty"`
	// IPs are addresses without a prefix length, as people and programs have
	// always found them there. The specification's text leaves the form open.
	IPs []string `json:"ips,omitempty"`
	MAC string   `json:"mac,omitempty"`
	MTU int      `json:"mtu,omitempty"`
	// Default is a required key. One entry of a pod has it true.
	Default bool `json:"default"`
	DNS     DNS  `json:"dns"`
	// Gateway holds the gateways of the default routes that the network brought.
	Gateway []string `json:"gateway,omitempty"`
	// DefaultRoute holds the gateways that the pod asked for with default-route
	// (specification 1.3, section 5.3).
	DefaultRoute []string `json:"default-route,omitempty"`
	// DeviceInfo tells of the device behind the interface, as its plugin or the
	// device plugin wrote it down (specification 1.3, section 5.3).
	DeviceInfo json.RawMessage `json:"device-info,omitempty"`
}

// DNS is what the network says about name resolution.
type DNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Text is the annotation's value for the outcomes of one pod.
func Text(outcomes []Outcome) (string, error) {
	text, err := json.MarshalIndent(Entries(outcomes), "", "    ")
	return string(text), err
}

// Entries lists the outcomes, in their order. An outcome whose result has
// several interfaces in the pod makes one entry each; one whose result has none
// makes a minimal entry, so that no attachment goes unmentioned.
func Entries(outcomes []Outcome) []Entry {
	entries := make([]Entry, 0, len(outcomes))
	for _, o := range outcomes {
		entries = append(entries, o.entries()...)
	}
	return entries
}

func (o Outcome) entries() []Entry {
	r := o.Result
	if r == nil {
		r = &current.Result{}
	}
	all, byIndex := o.interfaces(r)
	for _, ip := range r.IPs {
		if i := owner(ip, len(r.Interfaces), byIndex); i >= 0 {
			addr, _ := netip.AddrFromSlice(ip.Address.IP)
			all[i].IPs = append(all[i].IPs, addr.Unmap().String())
		}
	}
	for _, gw := range gateways(r) {
		i := reaches(gw, r, byIndex)
		all[i].Gateway = append(all[i].Gateway, gw.String())
	}
	if c := o.Attachment.Claim; c != nil {
		for _, gw := range c.Gateways {
			i := reaches(gw, r, byIndex)
			all[i].DefaultRoute = append(all[i].DefaultRoute, gw.String())
		}
	}
	all[0].DeviceInfo = o.DeviceInfo
	if o.Attachment.Default {
		all[defaultEntry(r, byIndex)].Default = true
	}
	return all
}

// interfaces begins one entry for each interface in the pod, or one without an
// interface, and tells which interface of the result has which entry.
func (o Outcome) interfaces(r *current.Result) (all []Entry, byIndex map[int]int) {
	blank := Entry{Name: o.Attachment.Network, DNS: DNS{
		Nameservers: r.DNS.Nameservers,
		Domain:      r.DNS.Domain,
		Search:      r.DNS.Search,
		Options:     r.DNS.Options,
	}}
	byIndex = map[int]int{}
	for i, link := range r.Interfaces {
		if link == nil || link.Sandbox == "" {
			continue // an interface of the host, such as the bridge
		}
		e := blank
		e.Interface, e.MAC, e.MTU = link.Name, link.Mac, link.Mtu
		byIndex[i] = len(all)
		all = append(all, e)
	}
	if len(all) == 0 {
		all = []Entry{blank}
	}
	return all, byIndex
}

// owner is the entry that an address belongs to: that of its interface; the
// first one when it names no interface; none, -1, when the interface is one of
// the host's (specification 1.3, section 5.3.3.1).
func owner(ip *current.IPConfig, interfaces int, byIndex map[int]int) int {
	if ip == nil {
		return -1
	}
	if _, ok := netip.AddrFromSlice(ip.Address.IP); !ok {
		return -1
	}
	if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= interfaces {
		return 0
	}
	if i, inPod := byIndex[*ip.Interface]; inPod {
		return i
	}
	return -1
}

// gateways are those of the result's default routes. A default route without a
// gateway of its own uses the one of the first address of its family, as it
// does in the kernel.
func gateways(r *current.Result) []netip.Addr {
	var gws []netip.Addr
	for _, route := range r.Routes {
		if route == nil || !isDefault(route.Dst) {
			continue
		}
		gw, ok := netip.AddrFromSlice(route.GW)
		if !ok {
			gw, ok = gatewayOfFamily(r, route.Dst.IP.To4() != nil)
		}
		if gw = gw.Unmap(); ok && !slices.Contains(gws, gw) {
			gws = append(gws, gw)
		}
	}
	return gws
}

// isDefault reports whether dst is all of its family's addresses. A half of
// them, such as 0.0.0.0/1, is not.
func isDefault(dst net.IPNet) bool {
	ones, bits := dst.Mask.Size()
	return ones == 0 && bits > 0 && dst.IP.IsUnspecified()
}

func gatewayOfFamily(r *current.Result, v4 bool) (netip.Addr, bool) {
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && gw.Unmap().Is4() == v4 {
			return gw, true
		}
	}
	return netip.Addr{}, false
}

// reaches is the entry whose subnet the gateway is in, or the first.
func reaches(gw netip.Addr, r *current.Result, byIndex map[int]int) int {
	for _, ip := range r.IPs {
		if i := owner(ip, len(r.Interfaces), byIndex); i >= 0 && ip.Address.Contains(gw.AsSlice()) {
			return i
		}
	}
	return 0
}

// defaultEntry is the entry of the default network that is its default one:
// the first whose address comes with a gateway, or the first of all.
func defaultEntry(r *current.Result, byIndex map[int]int) int {
	for _, ip := range r.IPs {
		if ip == nil || len(ip.Gateway) == 0 || ip.Interface == nil {
			continue
		}
		if i, inPod := byIndex[*ip.Interface]; inPod {
			return i
		}
	}
	return 0
}

// Added is the sentence of the event that tells of one attachment, such as
// "Add net1 [10.20.1.11/24] from default/vlan-2001", with notes behind it.
func Added(o Outcome) string {
	var addrs []string
	if o.Result != nil {
		for _, ip := range o.Result.IPs {
			if ip != nil {
				addrs = append(addrs, ip.Address.String())
			}
		}
	}
	added := fmt.Sprintf("Add %s [%s] from %s", o.Attachment.IfName, strings.Join(addrs, " "), o.Attachment.Network)
	return strings.Join(append([]string{added}, o.Notes...), "; ")
}

// Removed is the sentence of the event that tells of one attachment that was
// taken away from a pod that runs, with the last of its reasons, such as
// "Remove net1 from default/vlan-2001; no longer asked for".
func Removed(a plan.Attachment) string {
	text := fmt.Sprintf("Remove %s from %s", a.IfName, a.Network)
	if n := len(a.Reasons); n > 0 {
		text += "; " + a.Reasons[n-1]
	}
	return text
}
