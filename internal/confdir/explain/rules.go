package explain

import (
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/plan"
)

func (e *explainer) checkNone() {
	if len(e.loaded) > 0 || e.out.Error != "" {
		return
	}
	if e.Runtime.crio && e.DefaultNetwork != "" {
		e.out.Error = "no file defines the default network " + strconv.Quote(e.DefaultNetwork)
		e.find(PinnedMissing, "cni_default_network is %q, and no usable file defines it", e.DefaultNetwork)
		return
	}
	e.out.Error = "no network: the directory has no usable configuration"
	e.find(NoNetwork, "%s finds no usable configuration", e.Runtime.Name)
}

// checkNames looks at what the networks are called.
func (e *explainer) checkNames() {
	for i, n := range e.loaded {
		if err := utils.ValidateNetworkName(n.name); err != nil {
			e.find(BadName, "%s loads, but the name %q of its network is refused for every pod", n.file, n.name)
		}
		for _, before := range e.loaded[:i] {
			if before.name == n.name {
				e.find(SameName, "%s and %s both define the network %q", before.file, n.file, n.name)
				break
			}
		}
		if !slices.Contains(e.Runtime.versions(), n.version) {
			e.find(UnknownVersion, "%s asks for CNI %s, which %s does not know", n.file, n.version, e.Runtime.Name)
		}
	}
}

// checkFiles looks at the files as such, as far as a runtime reads them.
func (e *explainer) checkFiles() {
	for _, f := range e.candidates() {
		if strings.HasPrefix(f.Path, ".") {
			e.find(HiddenFile, "%s is a configuration like any other", f.Path)
		}
		if f.Link && f.Kind == Regular && slices.ContainsFunc(e.loaded, func(n network) bool { return n.file == f.Path }) {
			e.find(LinkedFile, "%s is a symbolic link", f.Path)
		}
		_, isList := field[[]any](f.Data, "plugins")
		_, isPlugin := field[string](f.Data, "type")
		switch list := path.Ext(f.Path) == ".conflist"; {
		case list && isPlugin && !isList:
			e.find(WrongExtension, "%s holds a single plugin, not a list", f.Path)
		case !list && isList && !isPlugin:
			e.find(WrongExtension, "%s holds a list", f.Path)
		}
		if f.Path == "10-containerd-net.conflist" && !e.Runtime.crio {
			e.find(ConfTemplate, "%s may come from containerd's conf_template", f.Path)
		}
	}
	e.checkOrder()
}

var leadingNumber = regexp.MustCompile(`^\d+`)

// checkOrder finds a pair that a person would expect the other way round.
func (e *explainer) checkOrder() {
	files := e.candidates()
	for i, f := range files {
		for _, later := range files[i+1:] {
			a, b := leadingNumber.FindString(f.Path), leadingNumber.FindString(later.Path)
			x, errX := strconv.ParseUint(a, 10, 64)
			y, errY := strconv.ParseUint(b, 10, 64)
			if errX == nil && errY == nil && x > y {
				e.find(ByteOrder, "%s comes before %s", f.Path, later.Path)
				return
			}
		}
	}
}

// checkCounts compares the number of networks with the limit.
func (e *explainer) checkCounts() {
	if e.Runtime.crio || e.out.Error != "" {
		return
	}
	switch {
	case e.MaxConfNum <= 0:
		e.find(AllFiles, "max_conf_num is %d, and %d files are loaded", e.MaxConfNum, len(e.loaded))
	case len(e.loaded) < e.MaxConfNum:
		e.find(FewerFiles, "max_conf_num is %d, and the directory has %d", e.MaxConfNum, len(e.loaded))
	}
	if len(e.loaded) < 2 {
		return
	}
	e.find(PositionalNames, "%d networks are named eth0 to eth%d in the order of their files", len(e.loaded), len(e.loaded)-1)
	if e.Runtime.serial {
		e.find(ParallelSetup, "%d networks are set up at the same time unless setup_serially is set", len(e.loaded))
	} else {
		e.find(ParallelSetup, "%d networks are set up at the same time; %s has no setup_serially", len(e.loaded), e.Runtime.Name)
	}
}

// checkRoutes looks for owners of the default route, and for a gateway that
// will not answer.
func (e *explainer) checkRoutes() {
	var owners []string
	for i, n := range e.loaded {
		if n.bringsDefault() {
			owners = append(owners, n.file+" (eth"+strconv.Itoa(i)+")")
		}
		for _, p := range n.plugins {
			delegate, _ := field[map[string]any](p.Bytes, "delegate")
			if p.Network.Type == "flannel" && delegate["isGateway"] == false {
				e.find(DeadGateway, "%s: isGateway is false in Flannel's delegate", n.file)
			}
		}
	}
	if len(owners) > 1 {
		e.find(TwoDefaultRoutes, "%s each bring a default route", strings.Join(owners, " and "))
	}
}

// owners are the plugins that make themselves the default route whatever their
// configuration says.
var owners = []string{"cilium-cni", "calico", "antrea", "kube-ovn", "aws-cni", "ovn-k8s-cni-overlay", plan.OwnType}

func (n network) bringsDefault() bool {
	for _, p := range n.plugins {
		if slices.Contains(owners, p.Network.Type) {
			return true
		}
		gateway, set := field[bool](p.Bytes, "isDefaultGateway")
		if p.Network.Type == "flannel" {
			delegate, _ := field[map[string]any](p.Bytes, "delegate")
			if delegate["isDefaultGateway"] != false {
				return true
			}
		}
		if set && gateway {
			return true
		}
		type route struct {
			Dst string `json:"dst"`
		}
		ipam, _ := field[struct {
			Routes []route `json:"routes"`
		}](p.Bytes, "ipam")
		for _, r := range ipam.Routes {
			if dst, err := netip.ParsePrefix(r.Dst); err == nil && dst.Bits() == 0 {
				return true
			}
		}
	}
	return false
}

// checkSubnets looks for networks that are on-link to the same addresses.
func (e *explainer) checkSubnets() {
	for i, n := range e.loaded {
		for j, before := range e.loaded[:i] {
			if a, b, ok := overlap(before.subnets(), n.subnets()); ok {
				e.find(SameSubnet, "%s of %s (eth%d) and %s of %s (eth%d) overlap", a, before.file, j, b, n.file, i)
			}
		}
	}
}

func overlap(some, others []netip.Prefix) (a, b netip.Prefix, ok bool) {
	for _, a := range some {
		for _, b := range others {
			if a.Overlaps(b) {
				return a, b, true
			}
		}
	}
	return a, b, false
}

// subnets are those that the configuration of host-local and of dialects of it
// names.
func (n network) subnets() []netip.Prefix {
	type subnet struct {
		Subnet string `json:"subnet"`
	}
	var out []netip.Prefix
	add := func(s subnet) {
		if p, err := netip.ParsePrefix(s.Subnet); err == nil {
			out = append(out, p.Masked())
		}
	}
	for _, p := range n.plugins {
		single, _ := field[subnet](p.Bytes, "ipam")
		add(single)
		sets, _ := field[struct {
			Ranges [][]subnet `json:"ranges"`
		}](p.Bytes, "ipam")
		for _, s := range slices.Concat(sets.Ranges...) {
			add(s)
		}
	}
	return out
}

func (e *explainer) checkCapabilities() {
	in := map[string][]string{}
	var names []string
	for _, n := range e.loaded {
		own := map[string]bool{}
		for _, p := range n.plugins {
			for capability, declared := range p.Network.Capabilities {
				own[capability] = own[capability] || declared
			}
		}
		for capability, declared := range own {
			if !declared {
				continue
			}
			if in[capability] == nil {
				names = append(names, capability)
			}
			in[capability] = append(in[capability], n.file)
		}
	}
	slices.Sort(names)
	for _, capability := range names {
		if files := in[capability]; len(files) > 1 {
			e.find(SharedCapability, "%s is declared by %s", capability, strings.Join(files, " and "))
		}
	}
}

// checkAddresses looks for a first network that gives pods no address, among
// the plugins that give one only through IPAM.
func (e *explainer) checkAddresses() {
	if len(e.loaded) == 0 || e.Runtime.crio {
		return
	}
	first := e.loaded[0]
	withoutIPAM := []string{"bridge", "macvlan", "ipvlan", "vlan", "host-device", "ptp", "dummy", "tap"}
	if !slices.Contains(withoutIPAM, first.plugins[0].Network.Type) {
		return
	}
	for _, p := range first.plugins {
		ipam, _ := field[map[string]any](p.Bytes, "ipam")
		if kind, _ := ipam["type"].(string); kind != "" {
			return
		}
	}
	e.find(NoAddress, "%s is eth0 and has no ipam", first.file)
}

// checkVersions looks at what a version of the CNI specification brings about.
func (e *explainer) checkVersions() {
	if e.Runtime.crio || e.Runtime.lib < lib13 {
		return
	}
	for i, n := range e.loaded {
		newer, err := version.GreaterThanOrEqualTo(n.version, "1.1.0")
		if i > 0 && err == nil && newer && slices.Contains(e.Runtime.versions(), n.version) {
			e.find(StatusOfAll, "%s is for CNI %s, so its STATUS decides about the node as well", n.file, n.version)
		}
	}
}

// checkCRIO looks at what only CRI-O does.
func (e *explainer) checkCRIO() {
	if !e.Runtime.crio {
		return
	}
	if e.MaxConfNum != 1 {
		e.find(NoMaxConfNum, "max_conf_num %d means nothing to CRI-O", e.MaxConfNum)
	}
	if len(e.loaded) == 0 {
		return
	}
	used := e.loaded[0]
	for _, n := range e.dormant {
		if e.DefaultNetwork != "" && n.file < used.file {
			e.find(PinnedHides, "%s sorts before %s, and cni_default_network is %q", n.file, used.file, e.DefaultNetwork)
		}
		if !n.disableGC && e.unusable(n) == "" {
			e.find(GCHazard, "%s defines the network %q: running pods on it would lose it when CRI-O is restarted", n.file, n.name)
		}
	}
}

func (n network) calls(types ...string) bool {
	for _, p := range n.plugins {
		if slices.Contains(types, p.Network.Type) {
			return true
		}
	}
	return false
}

// checkBraid looks at Braid's own file among the others.
func (e *explainer) checkBraid() {
	own := func(n network) bool { return n.file == confdir.OwnFile && n.calls(plan.OwnType) }
	if !slices.ContainsFunc(slices.Concat(e.loaded, e.dormant), own) {
		return
	}
	if f := e.candidates()[0]; f.Path < confdir.OwnFile {
		e.find(BraidSecond, "%s sorts before %s", f.Path, confdir.OwnFile)
	}
	if len(e.loaded) > 1 && slices.ContainsFunc(e.loaded, own) {
		e.find(BraidNotAlone, "beside %s the runtime attaches %d more", confdir.OwnFile, len(e.loaded)-1)
	}
}

const ciliumSuffix = confdir.CiliumSuffix

// checkAgents looks for agents that rename other configurations.
func (e *explainer) checkAgents() {
	var renamed []string
	cilium, others := "", 0
	for _, f := range e.Files {
		switch {
		case !e.top(f):
		case f.Kind == Directory && !f.Link, f.Path == confdir.OwnFile:
			// Cilium leaves directories alone, and Braid keeps it from its own file.
		case f.Path == confdir.OwnFile+ciliumSuffix:
			e.find(BraidRenamed, "Cilium has renamed %s to %s", confdir.OwnFile, f.Path)
		case strings.HasSuffix(f.Path, ciliumSuffix):
			renamed = append(renamed, strings.TrimSuffix(f.Path, ciliumSuffix))
		case isConf(f.Path) && strings.HasPrefix(f.Path, "05-cilium.conf"):
			cilium = f.Path
		case isConf(f.Path):
			others++
		}
	}
	if len(renamed) > 0 {
		e.find(ExclusiveAgent, "Cilium has renamed %s", strings.Join(renamed, ", "))
	}
	if cilium != "" && others > 0 {
		e.find(MaybeExclusive, "%s is not alone; other configurations: %d", cilium, others)
	}
}

// checkMultus follows Multus to the network that it wraps.
func (e *explainer) checkMultus() {
	for _, f := range e.candidates() {
		kind, _ := field[string](f.Data, "type")
		if kind != "multus" && kind != "multus-shim" {
			continue
		}
		for _, old := range e.Files {
			if base, ok := strings.CutSuffix(old.Path, confdir.MultusSuffix); ok && e.top(old) && isConf(base) {
				e.find(MultusRenamed, "%s was %s before Multus", old.Path, base)
			}
		}
		if master, _ := field[string](f.Data, "clusterNetwork"); master != "" {
			e.checkMaster(f, master)
		}
	}
}

// checkMaster judges a clusterNetwork that is a path. One in another directory
// counts as one of this, as the explanation may look at a copy.
func (e *explainer) checkMaster(multus File, master string) {
	if !strings.HasPrefix(master, "/") {
		return // the name of a NetworkAttachmentDefinition or network
	}
	for _, f := range e.Files {
		if f.Path != path.Base(master) {
			continue
		}
		if strings.Contains(string(f.Data), `"multus`) {
			e.find(MultusSelf, "%s wraps %s, which calls Multus", multus.Path, master)
		}
		return
	}
	e.find(MultusDangling, "%s wraps %s, which does not exist", multus.Path, master)
}

// checkPrograms compares the plugins with their binaries.
func (e *explainer) checkPrograms() {
	if e.Programs == nil {
		return
	}
	networks := e.loaded
	if e.Runtime.crio {
		networks = slices.Concat(e.loaded, e.dormant)
	}
	for _, n := range networks {
		if missing := e.missingProgram(n); missing != "" {
			e.find(ProgramMissing, "%s needs the plugin %q", n.file, missing)
		}
		for _, p := range n.plugins {
			program := e.Programs[p.Network.Type]
			if len(program.Versions) > 0 && n.version != "" && !slices.Contains(program.Versions, n.version) {
				e.find(ProgramTooOld, "%s asks for CNI %s, and %q supports %s", n.file, n.version, p.Network.Type, strings.Join(program.Versions, ", "))
			}
		}
	}
}

// checkAttached looks for attachments whose network is not loaded any more.
// CRI-O detaches with what its cache holds, so none is lost to it.
func (e *explainer) checkAttached() {
	if e.Runtime.crio {
		return
	}
	lost := map[string]int{}
	for _, a := range e.Attached {
		loaded := func(n network) bool { return n.name == a.Network }
		if a.IfName != "lo" && !slices.ContainsFunc(e.loaded, loaded) {
			lost[a.Network]++
		}
	}
	names := make([]string, 0, len(lost))
	for name := range lost {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		e.find(OrphanedPods, "the network %q is not loaded; attachments to it: %d", name, lost[name])
	}
}
