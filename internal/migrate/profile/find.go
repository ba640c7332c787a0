package profile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
)

// Found is a configuration in a node's conf dir.
type Found struct {
	Node, File string
	List       List
	// Loaded says that the runtime takes it.
	Loaded bool
}

// Confs are the configurations in all conf dirs that can be read, by node. What
// is a migration's own, or Braid's, is none.
func Confs(c preflight.Cluster) []Found {
	var found []Found
	for _, node := range slices.Sorted(maps.Keys(c.Facts)) {
		files := slices.Clone(c.Facts[node].CNI.Files)
		slices.SortFunc(files, func(a, b facts.File) int { return cmp.Compare(a.Name, b.Name) })
		first := true
		for _, f := range files {
			if !slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(f.Name)) || strings.HasPrefix(f.Name, "00-braid") {
				continue
			}
			if l, err := ParseConf(f.Text); err == nil {
				found = append(found, Found{Node: node, File: f.Name, List: l, Loaded: first})
			}
			first = false
		}
	}
	return found
}

// ConfOf is the first configuration that is of the CNI, best one that a runtime
// takes, and how much that says.
func ConfOf(c preflight.Cluster, is func(List) bool) (best Found, score int) {
	for _, f := range Confs(c) {
		if !is(f.List) {
			continue
		}
		s := ScoreConf
		if f.Loaded {
			s = ScoreLoaded
		}
		if s > score {
			best, score = f, s
		}
	}
	return best, score
}

// ConfigMap is the first ConfigMap for which is says yes.
func ConfigMap(c preflight.Cluster, is func(corev1.ConfigMap) bool) *corev1.ConfigMap {
	for i := range c.ConfigMaps {
		if is(c.ConfigMaps[i]) {
			return &c.ConfigMaps[i]
		}
	}
	return nil
}

// DaemonSet is the first DaemonSet for which is says yes.
func DaemonSet(c preflight.Cluster, is func(appsv1.DaemonSet) bool) *appsv1.DaemonSet {
	for i := range c.DaemonSets {
		if is(c.DaemonSets[i]) {
			return &c.DaemonSets[i]
		}
	}
	return nil
}

// Workload names an object as preflight.Side.Workloads has it.
func Workload(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// Args are the words that a container is started with.
func Args(c corev1.Container) []string { return slices.Concat(c.Command, c.Args) }

// Flag is the value of --name or -name in a command line, "true" for a flag
// alone.
func Flag(args []string, name string) (string, bool) {
	for i, a := range args {
		a, dashes := strings.CutPrefix(a, "-")
		if !dashes {
			continue
		}
		key, value, has := strings.Cut(strings.TrimPrefix(a, "-"), "=")
		switch {
		case key != name:
		case has:
			return value, true
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "-"):
			return args[i+1], true
		default:
			return "true", true
		}
	}
	return "", false
}

// Env is a container's variable with a literal value.
func Env(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// Tag is the version in an image's name, without its v.
func Tag(image string) string {
	image, _, _ = strings.Cut(image, "@")
	_, tag, ok := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	if !ok || tag == "latest" {
		return ""
	}
	return strings.TrimPrefix(tag, "v")
}

// Prefixes reads prefixes that are separated by commas or spaces. What is none
// is left out.
func Prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
			if p, err := netip.ParsePrefix(strings.TrimSpace(word)); err == nil && !slices.Contains(out, p.Masked()) {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// NodeBlocks are the nodes' own podCIDRs.
func NodeBlocks(c preflight.Cluster) map[string][]netip.Prefix {
	blocks := map[string][]netip.Prefix{}
	for _, n := range c.Nodes {
		if got := Prefixes(append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR)...); len(got) > 0 {
			blocks[n.Name] = got
		}
	}
	return blocks
}

// Masks are the prefix lengths of blocks, where all are the same.
func Masks(blocks map[string][]netip.Prefix) (four, six int) {
	for _, node := range slices.Sorted(maps.Keys(blocks)) {
		for _, p := range blocks[node] {
			mask := &four
			if p.Addr().Is6() {
				mask = &six
			}
			if *mask == 0 {
				*mask = p.Bits()
			} else if *mask != p.Bits() {
				*mask = -1
			}
		}
	}
	return max(four, 0), max(six, 0)
}

// Cover is, per family, the smallest prefix that has all blocks of all nodes, or
// the blocks themselves when that would be mostly addresses of others.
func Cover(blocks map[string][]netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, is6 := range []bool{false, true} {
		var all []netip.Prefix
		for _, node := range slices.Sorted(maps.Keys(blocks)) {
			for _, p := range blocks[node] {
				if p.Addr().Is6() == is6 && !slices.Contains(all, p) {
					all = append(all, p)
				}
			}
		}
		if len(all) == 0 {
			continue
		}
		cover := all[0]
		for _, p := range all[1:] {
			for cover.Bits() > 0 && (!cover.Contains(p.Addr()) || p.Bits() < cover.Bits()) {
				cover = netip.PrefixFrom(cover.Addr(), cover.Bits()-1).Masked()
			}
		}
		const most = 8 // bits: a /16 for nodes with a /24 each
		if cover.Bits() < all[0].Bits()-most {
			out = append(out, all...)
			continue
		}
		out = append(out, cover)
	}
	return out
}

// LinksOf counts the nodes that have a link of that pattern and kind.
func LinksOf(c preflight.Cluster, pattern string, kinds ...string) int {
	n := 0
	for _, f := range c.Facts {
		if slices.ContainsFunc(f.Links, func(l facts.Link) bool {
			ok, _ := path.Match(pattern, l.Name)
			return ok && (len(kinds) == 0 || slices.Contains(kinds, l.Kind))
		}) {
			n++
		}
	}
	return n
}

// State is the text of a file of a CNI on the first node that has it.
func State(c preflight.Cluster, name string) (text string, ok bool) {
	for _, node := range slices.Sorted(maps.Keys(c.Facts)) {
		for _, f := range c.Facts[node].CNI.State {
			if f.Name == name {
				return f.Text, true
			}
		}
	}
	return "", false
}

// ConfDir is the nodes' conf dir, /etc/cni/net.d when it is not known.
func ConfDir(c preflight.Cluster) string {
	for _, node := range slices.Sorted(maps.Keys(c.Facts)) {
		if dir := c.Facts[node].CNI.ConfDir; dir != "" {
			return dir
		}
	}
	return DefaultConfDir
}

// DefaultConfDir is where runtimes look unless they are told.
const DefaultConfDir = spec.DefaultConfDir

// Name is a Kubernetes object as messages have it.
func Name(o unstructured.Unstructured) string {
	return Workload(o.GetKind(), o.GetNamespace(), o.GetName())
}

// Others are the objects of that kind and API group.
func Others(c preflight.Cluster, group, kind string) []unstructured.Unstructured {
	var out []unstructured.Unstructured
	for _, o := range c.Others {
		if o.GetKind() == kind && o.GroupVersionKind().Group == group {
			out = append(out, o)
		}
	}
	return out
}

// FirstOf is the first text that is not empty.
func FirstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// Number reads a number, or returns the other one.
func Number(text string, otherwise int) int {
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return otherwise
	}
	return n
}

// Up says what is wrong with a link that must be up; empty if nothing is.
func Up(links []facts.Link, name string) string {
	for _, l := range links {
		if l.Name == name {
			if !l.Up {
				return fmt.Sprintf("link %s is down", name)
			}
			return ""
		}
	}
	return fmt.Sprintf("there is no link %s", name)
}

// MissingPlugins says which programs the runtime's bin dir lacks; empty if none.
func MissingPlugins(n NodeView, names ...string) string {
	var missing []string
	for _, name := range names {
		if !n.Plugin(name) && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "the runtime's bin dir has no " + strings.Join(missing, ", ")
}

// FromConf fills what a side's configuration says.
func FromConf(s *preflight.Side, f Found) {
	s.ConfFile, s.Network = f.File, f.List.Name
	s.Plugins = f.List.Types()
	s.Chained, s.HostPort = nil, "none"
	for _, p := range f.List.Plugins[1:] {
		s.Chained = append(s.Chained, p.Type)
	}
	if f.List.Has("portmap") {
		s.HostPort = "portmap"
	}
	s.Evidence = append(s.Evidence, fmt.Sprintf("%s on %s", f.File, f.Node))
}

// Bridges are the bridges that a list plugs pods into.
func (l List) Bridges() []string {
	var names []string
	for _, p := range l.Plugins {
		for _, q := range []*Plugin{&p, p.Delegate} {
			if q != nil && (q.Type == "bridge" || p.Type == "flannel" && q == p.Delegate) {
				names = append(names, FirstOf(q.Bridge, DefaultBridge))
			}
		}
	}
	return slices.Compact(names)
}

// DefaultBridge is that of the plugin bridge.
const DefaultBridge = "cni0"

// MissingRoutes says which other nodes' blocks the node has no route to; empty
// if none. To its own a node has one through a link, or, as long as it has no
// pods, none: where that is not told, one block may lack a route.
func MissingRoutes(n NodeView, blocks map[string][]netip.Prefix) string {
	routes, err := n.Routes()
	if err != nil {
		return err.Error()
	}
	own := ""
	var missing []string
	for _, node := range slices.Sorted(maps.Keys(blocks)) {
		for _, block := range blocks[node] {
			switch there, local := routeTo(routes, block); {
			case local:
				own = node
			case !there:
				missing = append(missing, fmt.Sprintf("%s, the block of node %s", block, node))
			}
		}
	}
	if len(missing) == 0 || len(missing) == 1 && own == "" {
		return ""
	}
	return "there is no route to " + strings.Join(missing, "; ")
}

// routeTo looks for a route to a block, or, to one's own pods, into it.
func routeTo(routes []facts.Route, block netip.Prefix) (there, local bool) {
	for _, r := range routes {
		p, err := netip.ParsePrefix(r.Dst)
		if err != nil || p.Bits() == 0 || !p.Overlaps(block) {
			continue
		}
		there = there || p.Bits() <= block.Bits()
		local = local || r.Via == "" && p.Bits() >= block.Bits()
	}
	return there, local
}
