package preflight

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// checkIPAM is P1: two sides that take their ranges from node.spec.podCIDR give
// the same addresses to different pods.
func (k *checker) checkIPAM() {
	if k.from.IPAM.Source != "node" || k.to.IPAM.Source != "node" {
		return
	}
	evidence := []string{
		fmt.Sprintf("%s: %s", k.from.Profile, orUnknown(k.from.IPAM.Mode)),
		fmt.Sprintf("%s: %s", k.to.Profile, orUnknown(k.to.IPAM.Mode)),
	}
	if setting := k.to.ownRanges(); setting != "" {
		k.find(finding{code: SameIPAM, evidence: evidence, fix: fmt.Sprintf("set %s, and %s to %s, which nothing here uses",
			setting, k.to.Setting("pod-cidr"), k.free(k.family(false), 16))},
			"%s and %s both give pods addresses from node.spec.podCIDR", k.from.Profile, k.to.Profile)
		return
	}
	hop := fmt.Sprintf("to a CNI with ranges of its own first, such as cilium with ipam.mode=cluster-pool and %s", k.free(k.family(false), 16))
	if setting := k.from.ownRanges(); setting != "" {
		hop = fmt.Sprintf("to ranges of its own first (%s with %s and %s=%s on new nodes, or another CNI)", k.from.Profile, setting, k.from.Setting("pod-cidr"), k.free(k.family(false), 16))
	}
	fix := fmt.Sprintf("go in two hops: %s, and from there to %s, which then has node.spec.podCIDR to itself", hop, k.to.Profile)
	k.find(finding{code: NoOtherIPAM, evidence: evidence, fix: fix},
		"%s has no other source of addresses than node.spec.podCIDR, and %s has given those to its pods", k.to.Profile, k.from.Profile)
}

func orUnknown(s string) string {
	if s == "" {
		return "mode unknown"
	}
	return s
}

// family tells whether to speak of IPv6 when one family has to be chosen.
func (k *checker) family(want6 bool) bool {
	return want6 || len(k.from.PodCIDRs) > 0 && !slices.ContainsFunc(k.from.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

// checkPodCIDRs is P2.
func (k *checker) checkPodCIDRs() {
	if len(k.to.PodCIDRs) == 0 {
		k.find(finding{code: PodCIDRUnknown, evidence: k.to.Evidence}, "where %s takes the pods' addresses from is not known", k.to.Profile)
	}
	if len(k.from.PodCIDRs) == 0 {
		k.find(finding{code: PodCIDRUnknown, evidence: k.from.Evidence}, "where %s takes the pods' addresses from is not known", k.from.Profile)
	}
	for _, a := range k.from.PodCIDRs {
		for _, b := range k.to.PodCIDRs {
			if a.Overlaps(b) {
				fix := k.otherCIDR(b)
				if k.from.IPAM.Source == "node" && k.to.IPAM.Source == "node" {
					fix = "it follows from where both take their ranges from: see P1"
				}
				k.find(finding{code: PodCIDROverlap, fix: fix}, "the pods' range %s of %s overlaps %s of %s", b, k.to.Profile, a, k.from.Profile)
			}
		}
	}
	outside := map[string][]string{}
	for _, p := range k.moving {
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && len(k.from.PodCIDRs) > 0 && !contains(k.from.PodCIDRs, a) && !contains(k.to.PodCIDRs, a) {
				outside[p.Spec.NodeName] = append(outside[p.Spec.NodeName], fmt.Sprintf("%s has %s", nameOf(p), a))
			}
		}
	}
	for _, n := range sortedKeys(outside) {
		k.find(finding{code: PodsOfNeither, on: onNode(n), evidence: outside[n]}, "pods have addresses outside of %s and of %s", join(k.from.PodCIDRs), join(k.to.PodCIDRs))
	}
}

func (k *checker) otherCIDR(taken netip.Prefix) string {
	return fmt.Sprintf("set %s to %s, which nothing here uses", k.to.Setting("pod-cidr"), k.free(taken.Addr().Is6(), taken.Bits()))
}

// used is a range that somebody has.
type used struct {
	prefix netip.Prefix
	code   Code
	by     string
	on     []string
}

// checkOtherCIDRs is B3.1: the new range must be nobody's.
func (k *checker) checkOtherCIDRs() {
	for _, b := range k.to.PodCIDRs {
		for _, u := range k.used() {
			if b.Overlaps(u.prefix) {
				k.find(finding{code: u.code, on: u.on, evidence: []string{u.by}, fix: k.otherCIDR(b)}, "the pods' range %s of %s overlaps %s", b, k.to.Profile, Rules[u.code].what)
			}
		}
		k.checkReserved(b)
	}
}

var reserved = []struct {
	prefix netip.Prefix
	whose  string
	// never says that pods cannot have such addresses at all.
	never bool
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses", true},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses", true},
	{netip.MustParsePrefix("224.0.0.0/3"), "multicast and reserved addresses", true},
	{netip.MustParsePrefix("0.0.0.0/8"), "addresses of this network", true},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses", true},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses", true},
	{netip.MustParsePrefix("100.64.0.0/10"), "addresses shared by carriers (RFC 6598), which OVN-Kubernetes (100.64.0.0/16, 100.88.0.0/16), Tailscale and clouds use", false},
}

func (k *checker) checkReserved(b netip.Prefix) {
	for _, r := range reserved {
		if !b.Overlaps(r.prefix) {
			continue
		}
		severity := Warning
		if r.never || k.from.Profile == "ovn-kubernetes" || k.to.Profile == "ovn-kubernetes" {
			severity = Blocker
		}
		k.find(finding{code: ReservedOverlap, severity: severity, fix: k.otherCIDR(b)}, "the pods' range %s of %s overlaps %s: %s", b, k.to.Profile, r.prefix, r.whose)
	}
}

// used is every range that is known to be somebody's, the sides' own excepted.
func (k *checker) used() []used {
	if k.ranges == nil {
		k.ranges = k.findUsed()
	}
	return k.ranges
}

func (k *checker) findUsed() []used {
	list := []used{}
	for _, p := range k.serviceCIDRs() {
		list = append(list, used{p.prefix, ServiceOverlap, p.by, nil})
	}
	for _, n := range k.nodes {
		for _, a := range n.Status.Addresses {
			if p, ok := hostPrefix(a.Address); ok {
				list = append(list, used{p, NodeOverlap, fmt.Sprintf("%s %s", a.Type, a.Address), onNode(n.Name)})
			}
		}
		list = append(list, k.hostUses(n)...)
	}
	for _, nad := range k.nads() {
		for _, p := range nad.subnets {
			list = append(list, used{p, NADOverlap, fmt.Sprintf("subnet %s", p), onObject("NetworkAttachmentDefinition", nad.obj)})
		}
	}
	for _, s := range k.Services {
		for _, a := range externalOf(s) {
			if p, ok := hostPrefix(a); ok {
				list = append(list, used{p, OutsideOverlap, "external address " + a, onObject("service", &s)})
			}
		}
	}
	for _, p := range k.opts.Uses {
		list = append(list, used{p, OutsideOverlap, "pods use " + p.String(), nil})
	}
	return list
}

func externalOf(s corev1.Service) []string {
	list := slices.Clone(s.Spec.ExternalIPs)
	for _, i := range s.Status.LoadBalancer.Ingress {
		list = append(list, i.IP)
	}
	return list
}

// hostUses are the routes and addresses of a node that are not those of the two
// sides.
func (k *checker) hostUses(n node) []used {
	own := func(dev string) bool {
		return dev == "kube-ipvs0" || dev == "lo" || matchesAny(k.from.Links, dev) || matchesAny(k.to.Links, dev)
	}
	var list []used
	for _, r := range n.facts.Routes {
		p, err := netip.ParsePrefix(r.Dst)
		// A default route, or a pair of halves of one, is everybody's. Routes
		// between the nodes lead to the source's own blocks.
		if err != nil || p.Bits() <= 1 || r.Table == 255 || own(r.Dev) || within(p, k.from.PodCIDRs) || k.opts.Rollback && within(p, k.to.PodCIDRs) || k.routesTarget(p, n) {
			continue
		}
		if p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			continue
		}
		list = append(list, used{p.Masked(), RouteOverlap, fmt.Sprintf("%s: route to %s by %s", n.Name, p, r.Dev), onNode(n.Name)})
	}
	for _, l := range n.facts.Links {
		for _, a := range l.Addrs {
			p, err := netip.ParsePrefix(a)
			if err != nil || own(l.Name) || p.Addr().IsLinkLocalUnicast() {
				continue
			}
			list = append(list, used{p.Masked(), RouteOverlap, fmt.Sprintf("%s: %s has %s", n.Name, l.Name, p), onNode(n.Name)})
		}
	}
	return list
}

// routesTarget tells whether a route is one between nodes to a block that the
// target, which is installed, has given to one of them.
func (k *checker) routesTarget(p netip.Prefix, n node) bool {
	if !n.installed {
		return false
	}
	for _, blocks := range k.to.IPAM.Blocks {
		if slices.Contains(blocks, p) {
			return true
		}
	}
	return false
}

// sourced is a range with where it was read.
type sourced struct {
	prefix netip.Prefix
	by     string
}

// serviceCIDRs are the ranges of Services: as the API server was told, as
// kubeadm was, and the addresses that Services have.
func (k *checker) serviceCIDRs() []sourced {
	var list []sourced
	add := func(text, by string) {
		for _, s := range strings.Split(text, ",") {
			if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
				list = append(list, sourced{p.Masked(), by})
			}
		}
	}
	for _, p := range k.Pods {
		if p.Labels["component"] == "kube-apiserver" || strings.HasPrefix(p.Name, "kube-apiserver-") {
			if v, ok := argument(p.Spec, "service-cluster-ip-range"); ok {
				add(v, fmt.Sprintf("pod %s: --service-cluster-ip-range=%s", nameOf(&p), v))
			}
		}
	}
	if cm, ok := k.configMap("kube-system", "kubeadm-config"); ok {
		var conf struct {
			Networking struct {
				ServiceSubnet string `json:"serviceSubnet"`
			} `json:"networking"`
		}
		if yaml.Unmarshal([]byte(cm.Data["ClusterConfiguration"]), &conf) == nil {
			add(conf.Networking.ServiceSubnet, "ConfigMap kube-system/kubeadm-config: serviceSubnet "+conf.Networking.ServiceSubnet)
		}
	}
	for _, s := range k.Services {
		for _, a := range clusterIPs(s) {
			p, ok := hostPrefix(a)
			if ok && !slices.ContainsFunc(list, func(l sourced) bool { return l.prefix.Contains(p.Addr()) }) {
				list = append(list, sourced{p, fmt.Sprintf("service %s has %s", nameOf(&s), a)})
			}
		}
	}
	return list
}

func clusterIPs(s corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	return []string{s.Spec.ClusterIP}
}

func (k *checker) configMap(namespace, name string) (corev1.ConfigMap, bool) {
	for _, cm := range k.ConfigMaps {
		if cm.Namespace == namespace && cm.Name == name {
			return cm, true
		}
	}
	return corev1.ConfigMap{}, false
}

// argument is the value of a flag of any container, as --name=value.
func argument(spec corev1.PodSpec, name string) (string, bool) {
	for _, c := range spec.Containers {
		for _, a := range slices.Concat(c.Command, c.Args) {
			if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
				return v, true
			}
		}
	}
	return "", false
}

// checkCapacity is B3.2.
func (k *checker) checkCapacity() {
	linux := 0
	for _, n := range k.nodes {
		if !isWindows(n.Node) {
			linux++
			k.checkBlock(n)
		}
	}
	for _, six := range []bool{false, true} {
		mask := k.to.IPAM.NodeMask4
		if six {
			mask = k.to.IPAM.NodeMask6
		}
		if mask == 0 || k.to.IPAM.Source == "node" {
			continue
		}
		if have, some := blocks(k.to.PodCIDRs, six, mask); some && have < linux {
			k.find(finding{code: TooFewBlocks, fix: fmt.Sprintf("add a range to %s, or make a node's block smaller than /%d", k.to.Setting("pod-cidr"), mask)},
				"%s have %d blocks of /%d, and there are %d nodes", join(family(k.to.PodCIDRs, six)), have, mask, linux)
		}
	}
}

// blocks is how many blocks of that length the ranges of one family have.
func blocks(cidrs []netip.Prefix, six bool, mask int) (count int, some bool) {
	for _, p := range family(cidrs, six) {
		some = true
		if d := mask - p.Bits(); d >= 0 && d < bits.UintSize-2 {
			count += 1 << d
		}
	}
	return count, some
}

func (k *checker) checkBlock(n node) {
	if k.to.IPAM.Source == "node" && n.Spec.PodCIDR == "" && len(n.Spec.PodCIDRs) == 0 {
		k.find(finding{code: NodeWithoutCIDR, on: onNode(n.Name)}, "%s takes its pods' range from node.spec.podCIDR, and there is none", k.to.Profile)
		return
	}
	mask := k.to.IPAM.NodeMask4
	if k.to.IPAM.Source == "node" {
		if p, err := netip.ParsePrefix(n.Spec.PodCIDR); err == nil && p.Addr().Is4() {
			mask = p.Bits()
		}
	}
	if mask == 0 || mask > 32 || k.to.IPAM.MoreBlocks {
		return
	}
	// The network's address, its broadcast address and the gateway are no pod's.
	usable := max(0, 1<<(32-mask)-3)
	pods := len(n.pods)
	most, unit := int(n.Status.Capacity.Pods().Value()), "that kubelet permits"
	if pods > most {
		most, unit = pods, "that it has"
	}
	if most > usable {
		k.find(finding{code: BlockTooSmall, on: onNode(n.Name), fix: fmt.Sprintf("make a node's block /%d or larger, or lower maxPods of kubelet to %d", 32-bits.Len(uint(most+3-1)), usable)},
			"a node's block of %s is /%d: %d addresses for the %d pods %s", k.to.Profile, mask, usable, most, unit)
	}
}

// checkFamilies is B3.3.
func (k *checker) checkFamilies() {
	for _, six := range []bool{false, true} {
		name := familyName(six)
		had, gets := len(family(k.from.PodCIDRs, six)) > 0, len(family(k.to.PodCIDRs, six)) > 0
		switch {
		case gets == had || len(k.to.PodCIDRs) == 0:
		case gets:
			k.find(finding{code: FamilyAdded}, "pods get %s addresses that they did not have", name)
		default:
			k.find(finding{code: FamilyMissing, evidence: k.wanting(six), fix: k.rangeOf(six)},
				"pods have %s addresses today, and %s has no range of that family", name, k.to.Profile)
		}
	}
}

// rangeOf says how the target gets a range of a family.
func (k *checker) rangeOf(six bool) string {
	key, length := "pod-cidr", 16
	if six {
		key, length = "pod-cidr6", 56
	}
	setting := ""
	if name := k.to.Settings[key]; name != "" {
		setting = " (" + name + ")"
	}
	return fmt.Sprintf("give %s a range of %s%s, such as %s", k.to.Profile, familyName(six), setting, k.free(six, length))
}

// wanting are Services of one family, of which the API server takes care.
func (k *checker) wanting(six bool) []string {
	var list []string
	for _, s := range k.Services {
		for _, a := range clusterIPs(s) {
			if p, ok := hostPrefix(a); ok && p.Addr().Is6() == six {
				list = append(list, fmt.Sprintf("service %s has %s", nameOf(&s), a))
			}
		}
	}
	return list
}

func familyName(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

func family(list []netip.Prefix, six bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if p.Addr().Is6() == six {
			out = append(out, p)
		}
	}
	return out
}

// free is a range of that length that nobody here has, as far as is known.
func (k *checker) free(six bool, length int) string {
	if k.taken == nil {
		k.taken = k.findTaken()
	}
	for p := range candidates(six, length) {
		if !slices.ContainsFunc(k.taken, p.Overlaps) {
			return p.String()
		}
	}
	return "another range"
}

// findTaken are the ranges of everybody, and the addresses that pods have.
func (k *checker) findTaken() []netip.Prefix {
	taken := slices.Concat(k.from.PodCIDRs, k.to.PodCIDRs, []netip.Prefix{})
	for _, u := range k.used() {
		taken = append(taken, u.prefix)
	}
	for _, p := range k.moving {
		for _, ip := range p.Status.PodIPs {
			a, ok := hostPrefix(ip.IP)
			if ok && !within(a, k.from.PodCIDRs) && !within(a, k.to.PodCIDRs) {
				taken = append(taken, a)
			}
		}
	}
	return taken
}

// candidates are private ranges of that length, rarely used ones first.
func candidates(six bool, length int) func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		if six {
			for i := range 256 {
				if a := netip.AddrFrom16([16]byte{0xfd, 0xb7, 0x1d, byte(i)}); !yield(netip.PrefixFrom(a, max(length, 48)).Masked()) {
					return
				}
			}
			return
		}
		seen := map[netip.Prefix]bool{}
		try := func(a, b byte) bool {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b}), max(length, 9)).Masked()
			if seen[p] {
				return true
			}
			seen[p] = true
			return yield(p)
		}
		for b := range 12 {
			if !try(172, byte(20+b)) {
				return
			}
		}
		for b := range 256 {
			if !try(10, byte(b)) {
				return
			}
		}
	}
}

// hostPrefix is an address as the range of it alone.
func hostPrefix(s string) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen()), true
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// within tells whether a range is inside of one of the list.
func within(p netip.Prefix, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(l netip.Prefix) bool { return l.Bits() <= p.Bits() && l.Contains(p.Addr()) })
}

func join[T fmt.Stringer](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, v.String())
	}
	return strings.Join(s, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
