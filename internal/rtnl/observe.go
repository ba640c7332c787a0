package rtnl

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"braid.dev/braid/internal/netns"
)

// Observe describes the links of ns (nil: the current namespace) in a text that
// is equal for equal worlds: for every link its kind, state, MTU, master, bridge
// port flags, addresses and bridge VLANs, then the routes. Indexes, MACs,
// aliases, link-local addresses and what the kernel derives from them are left
// out, and links with a random name are called veth#1, veth#2, … in the order
// in which they were made. Tests compare it with golden files.
func Observe(ns *netns.NS) (string, error) {
	h, err := Open(ns)
	if err != nil {
		return "", err
	}
	defer h.Close()
	links, err := h.Links()
	if err != nil {
		return "", err
	}
	vlans, err := h.AllVLANs()
	if err != nil {
		return "", err
	}
	routes, err := h.Routes()
	if err != nil {
		return "", err
	}
	o := observer{h: h, vlans: vlans, names: stableNames(links)}
	for _, l := range links {
		if l.VLANFiltering {
			o.filtering = append(o.filtering, l.Index)
		}
	}
	for _, l := range inOrder(links, o.names) {
		if err := o.link(l); err != nil {
			return "", err
		}
	}
	o.routes(routes)
	return o.out.String(), nil
}

type observer struct {
	h     *Handle
	vlans map[int][]VLANs
	names map[int]string
	// filtering are the bridges whose VLANs mean something: a kernel that can
	// filter keeps them for every bridge.
	filtering []int
	out       strings.Builder
}

// randomName is what CNI plugins, and Braid, call the host's end of a veth.
var randomName = regexp.MustCompile(`^veth[0-9a-f]{8}$`)

func stableNames(links []Link) map[int]string {
	names := make(map[int]string, len(links))
	n := 0
	for _, l := range links {
		names[l.Index] = l.Name
		if randomName.MatchString(l.Name) {
			n++
			names[l.Index] = fmt.Sprintf("veth#%d", n)
		}
	}
	return names
}

// inOrder sorts by name, random names last and by index.
func inOrder(links []Link, names map[int]string) []Link {
	slices.SortFunc(links, func(a, b Link) int {
		ra, rb := names[a.Index] != a.Name, names[b.Index] != b.Name
		switch {
		case ra && rb:
			return cmp.Compare(a.Index, b.Index)
		case ra != rb:
			return map[bool]int{false: -1, true: 1}[ra]
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return links
}

func (o *observer) link(l Link) error {
	words := []string{o.names[l.Index], l.Kind, map[bool]string{true: "up", false: "down"}[l.Up], fmt.Sprintf("mtu %d", l.MTU)}
	if l.VLAN != 0 {
		words = append(words, fmt.Sprintf("vlan %d", l.VLAN))
	}
	switch {
	case l.Kind == "veth" || l.Parent == 0:
	case l.ParentNSID >= 0: // where indexes mean other links
		words = append(words, "on elsewhere")
	default:
		words = append(words, "on "+o.name(l.Parent))
	}
	if l.Promisc {
		words = append(words, "promisc")
	}
	if l.VLANFiltering {
		words = append(words, "vlan_filtering")
	}
	if l.Master != 0 {
		words = append(words, "master "+o.name(l.Master))
		port, err := o.h.Port(l.Index)
		if err == nil && port.Hairpin {
			words = append(words, "hairpin")
		}
		if err == nil && port.Isolated {
			words = append(words, "isolated")
		}
	}
	fmt.Fprintln(&o.out, strings.Join(words, " "))
	addrs, err := o.h.Addrs(l.Index)
	if err != nil {
		return err
	}
	o.addrs(addrs)
	if !slices.Contains(o.filtering, l.Index) && !slices.Contains(o.filtering, l.Master) {
		return nil
	}
	for _, v := range o.vlans[l.Index] {
		fmt.Fprintln(&o.out, "  "+v.String())
	}
	return nil
}

// name names a link, or its index when it lives in another namespace.
func (o *observer) name(index int) string {
	if name, ok := o.names[index]; ok {
		return name
	}
	return "elsewhere"
}

func (o *observer) addrs(addrs []Addr) {
	var lines []string
	for _, a := range addrs {
		if a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
			continue
		}
		line := "  addr " + a.Prefix.String()
		if a.Peer.IsValid() {
			line += " peer " + a.Peer.String()
		}
		if a.DADFailed {
			line += " dadfailed"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(&o.out, line)
	}
}

// String prints the range as "vlan 1-4094" or "vlan 7 pvid untagged".
func (v VLANs) String() string {
	s := fmt.Sprintf("vlan %d", v.From)
	if v.To > v.From {
		s += fmt.Sprintf("-%d", v.To)
	}
	if v.PVID {
		s += " pvid"
	}
	if v.Untagged {
		s += " untagged"
	}
	return s
}

func (o *observer) routes(routes []Route) {
	var lines []string
	for _, r := range routes {
		derived := r.Dst.Addr().Is6() && (r.Dst.Addr().IsLinkLocalUnicast() || r.Dst.Addr().IsMulticast())
		if derived {
			continue
		}
		line := "route " + r.Dst.String()
		if r.Via.IsValid() {
			line += " via " + r.Via.String()
		}
		lines = append(lines, line+" dev "+o.name(r.Link)+r.suffix())
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(&o.out, line)
	}
}
