package preflight

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/confdir/explain"
	"braid.dev/braid/internal/migrate/facts"
)

// braidConf is Braid's own file, which stands before every other and takes part
// in no migration.
const braidConf = "00-braid.conflist"

// checkRuntime is B3.25.
func (k *checker) checkRuntime() {
	for _, n := range k.nodes {
		if !n.known || isWindows(n.Node) {
			continue
		}
		cni := n.facts.CNI
		if !cni.NetworkReady {
			k.find(finding{code: RuntimeNotReady, on: onNode(n.Name), evidence: line("%s: %s", n.Name, cni.Message)}, "the runtime says that its network is not ready")
		}
		if cni.LoadStatus != "" && cni.LoadStatus != "OK" {
			k.find(finding{code: RuntimeLoad, on: onNode(n.Name), evidence: line("%s: %s", n.Name, cni.LoadStatus)}, "the runtime could not load its conf dir")
		}
		if cni.MaxConfNum > 1 {
			k.find(finding{code: MaxConfNum, on: onNode(n.Name), evidence: line("%s: max_conf_num %d", n.Name, cni.MaxConfNum)}, "the runtime attaches pods to several networks of its conf dir: with two sides in it, to both")
		}
		if cni.DefaultNetwork != "" {
			k.find(finding{code: RuntimePinned, on: onNode(n.Name), evidence: line("%s: cni_default_network %q", n.Name, cni.DefaultNetwork), fix: "remove cni_default_network from CRI-O's configuration and restart it, before the migration"},
				"CRI-O is told the name of its network, and ignores the files of others")
		}
		k.checkConfDir(n)
		k.checkPrograms(n)
	}
	k.checkConfDirs()
}

// checkConfDir asks what the runtime makes of its directory.
func (k *checker) checkConfDir(n node) {
	cni := n.facts.CNI
	if len(cni.Files) == 0 {
		return
	}
	e := explain.Explain(explainInput(cni))
	switch {
	case len(e.Networks) > 0:
		k.checkServed(n, e.Networks[0])
	case e.Error != "":
		k.find(finding{code: RuntimeLoad, on: onNode(n.Name), evidence: line("%s: %s", n.Name, e.Error)}, "the runtime could not load its conf dir")
	}
	k.checkOrder(n)
	k.checkMultus(n)
	for _, f := range e.Findings {
		if f.Code == explain.ConfTemplate {
			k.find(finding{code: ConfTemplate, on: onNode(n.Name), evidence: line("%s: %s", n.Name, f.Message)}, "the runtime writes a configuration of its own when it finds none")
		}
		if f.Code == explain.GCHazard {
			k.find(finding{code: GCHazard, on: onNode(n.Name), evidence: line("%s: %s", n.Name, f.Message)}, "CRI-O detaches pods of every network but the default when it starts")
		}
	}
	if strings.EqualFold(cni.Runtime, "cri-o") && !slices.ContainsFunc(e.Findings, func(f explain.Finding) bool { return f.Code == explain.GCHazard }) && crioCollects(cni.Version) {
		k.find(finding{code: GCHazard, on: onNode(n.Name), evidence: line("%s: CRI-O %s", n.Name, cni.Version)}, "CRI-O detaches pods of every network but the default when it starts")
	}
}

// checkServed: what the runtime gives to pods now has to be the source. Multus
// in front of it is a finding of its own.
func (k *checker) checkServed(n node, first explain.Network) {
	// On the way back, what is the source then is not served yet.
	if k.opts.Rollback || strings.Contains(first.File, "multus") || k.from.ConfFile == "" || k.from.ConfFile == first.File {
		return
	}
	k.find(finding{code: SourceNotServed, on: onNode(n.Name), evidence: line("%s: %s, network %s", n.Name, first.File, first.Name)},
		"the runtime gives pods another network than that of %s", k.from.Profile)
}

// crioCollects tells of a version of CRI-O whether it collects garbage.
func crioCollects(version string) bool {
	return !older(strings.TrimPrefix(version, "v"), "1.32")
}

func explainInput(cni facts.CNI) explain.Input {
	in := explain.Input{MaxConfNum: max(1, cni.MaxConfNum), DefaultNetwork: cni.DefaultNetwork}
	name := "containerd"
	if strings.EqualFold(cni.Runtime, "cri-o") {
		name = "cri-o"
	}
	in.Runtime, _ = explain.RuntimeNamed(name)
	for _, f := range cni.Files {
		if f.Name == braidConf {
			continue
		}
		in.Files = append(in.Files, explain.File{Path: f.Name, Data: []byte(f.Text)})
	}
	return in
}

// loadable tells whether a runtime looks at a file of that name.
func loadable(name string) bool {
	switch filepath.Ext(name) {
	case ".conf", ".conflist", ".json":
		return true
	}
	return false
}

// checkOrder: at the end the target's file has to be the first, whatever third
// files there are.
func (k *checker) checkOrder(n node) {
	if k.to.ConfFile == "" {
		return
	}
	var before []string
	for _, f := range n.facts.CNI.Files {
		if loadable(f.Name) && f.Name < k.to.ConfFile && f.Name != k.from.ConfFile && f.Name != braidConf && !strings.Contains(f.Name, "multus") {
			before = append(before, fmt.Sprintf("%s: %s sorts before %s", n.Name, f.Name, k.to.ConfFile))
		}
	}
	if len(before) > 0 {
		k.find(finding{code: ConfOrder, on: onNode(n.Name), evidence: before, fix: fmt.Sprintf("move the files away, or name the target's file so that it sorts first (such as 01-%s.conflist)", k.to.Profile)},
			"the runtime would load another file than that of %s", k.to.Profile)
	}
}

// checkMultus: Multus delegates to one network, by file or by a copy of it.
func (k *checker) checkMultus(n node) {
	for _, f := range n.facts.CNI.Files {
		if !loadable(f.Name) || !strings.Contains(f.Name, "multus") {
			continue
		}
		k.find(finding{code: MultusMaster, on: onNode(n.Name), evidence: line("%s: %s: %s", n.Name, f.Name, multusMaster(f.Text))},
			"Multus attaches pods to the network that it found when it started, and goes on to")
	}
}

func multusMaster(text string) string {
	var conf struct {
		ClusterNetwork string `json:"clusterNetwork"`
		Delegates      []struct {
			Name string `json:"name"`
		} `json:"delegates"`
		Plugins []json.RawMessage `json:"plugins"`
	}
	if json.Unmarshal([]byte(text), &conf) != nil {
		return "cannot be read"
	}
	for _, p := range conf.Plugins {
		_ = json.Unmarshal(p, &conf) // what is no object says nothing
	}
	switch {
	case conf.ClusterNetwork != "":
		return "clusterNetwork " + conf.ClusterNetwork
	case len(conf.Delegates) > 0:
		return "delegates to " + conf.Delegates[0].Name
	}
	return "names no network"
}

func (k *checker) checkPrograms(n node) {
	if len(n.facts.CNI.Plugins) == 0 {
		return
	}
	sides := []Side{k.from, k.to}
	switch {
	case k.opts.Brings && k.opts.Rollback:
		sides = sides[1:]
	case k.opts.Brings:
		sides = sides[:1]
	}
	for _, s := range sides {
		var missing []string
		for _, p := range s.Plugins {
			if !slices.Contains(n.facts.CNI.Plugins, p) {
				missing = append(missing, fmt.Sprintf("%s: no %s in %s", n.Name, p, n.facts.CNI.BinDir))
			}
		}
		if len(missing) > 0 {
			k.find(finding{code: ProgramMissing, on: onNode(n.Name), evidence: missing}, "programs that the configuration of %s executes are missing", s.Profile)
		}
	}
}

// checkConfDirs: the migration's daemon has one mount for all nodes.
func (k *checker) checkConfDirs() {
	dirs := map[string][]string{}
	for _, n := range k.nodes {
		if n.known && n.facts.CNI.ConfDir != "" {
			dirs[n.facts.CNI.ConfDir] = append(dirs[n.facts.CNI.ConfDir], n.Name)
		}
	}
	if len(dirs) < 2 {
		return
	}
	var evidence []string
	for _, d := range sortedKeys(dirs) {
		evidence = append(evidence, fmt.Sprintf("%s: %s", d, strings.Join(dirs[d], ", ")))
	}
	k.find(finding{code: ConfDirsDiffer, evidence: evidence}, "the runtimes of the nodes have different conf dirs")
}

// checkLatent: installed, the target must do nothing to pods or to the conf dir
// before its turn, and the source nothing afterwards.
func (k *checker) checkLatent() {
	if k.to.WritesConf && !k.opts.Rollback {
		k.find(finding{code: NotLatent, fix: k.to.set("latent", "true")}, "%s writes %s as soon as it runs: new pods get it on all nodes at once", k.to.Profile, k.to.ConfFile)
	}
	for _, s := range []Side{k.to, k.from} {
		if s.Exclusive {
			k.find(finding{code: Exclusive, on: []string{"profile " + s.Profile}, fix: restarted(s.set("exclusive", "false"))},
				"%s renames the configurations of others, those of the migration too", s.Profile)
		}
		if s.RestartsPods {
			k.find(finding{code: RestartsPods, on: []string{"profile " + s.Profile}, fix: s.set("restarts-pods", "false")},
				"a controller of %s deletes pods that another CNI made, without asking any budget", s.Profile)
		}
	}
	k.checkEarlyConf()
}

func restarted(fix string) string {
	if fix == "" {
		return ""
	}
	return fix + ", and restart its agents"
}

// checkEarlyConf finds a file of the target that is there already, and would
// be loaded when the source's goes away, or is loaded now.
func (k *checker) checkEarlyConf() {
	for _, n := range k.nodes {
		for _, f := range n.facts.CNI.Files {
			if f.Name == k.to.ConfFile && f.Name != k.from.ConfFile && loadable(f.Name) && !k.opts.Rollback {
				k.find(finding{code: TargetConfPresent, on: onNode(n.Name), evidence: line("%s: %s", n.Name, f.Name), fix: "remove it when no agent writes it any more; the migration brings it when it is time"},
					"the configuration of %s is in the conf dir before its turn", k.to.Profile)
			}
		}
	}
}

// nad is a NetworkAttachmentDefinition.
type nad struct {
	obj     *unstructured.Unstructured
	master  string
	subnets []netip.Prefix
}

// nads are the cluster's; what cannot be read of one says nothing.
func (k *checker) nads() []nad {
	var list []nad
	for i := range k.Others {
		u := &k.Others[i]
		if u.GetKind() != "NetworkAttachmentDefinition" {
			continue
		}
		text, _, _ := unstructured.NestedString(u.Object, "spec", "config")
		var conf any
		if json.Unmarshal([]byte(text), &conf) != nil {
			list = append(list, nad{obj: u})
			continue
		}
		n := nad{obj: u}
		n.read(conf, 0)
		list = append(list, n)
	}
	return list
}

// read looks for masters and subnets in a configuration of any plugin.
func (n *nad) read(v any, depth int) {
	if depth > 16 {
		return
	}
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			n.read(e, depth+1)
		}
	case map[string]any:
		for _, key := range sortedKeys(v) {
			s, ok := v[key].(string)
			switch {
			case !ok:
				n.read(v[key], depth+1)
			case key == "master" || key == "bridge":
				n.master = s
			case key == "subnet" || key == "range" || key == "cidr" || key == "address":
				if p, err := netip.ParsePrefix(s); err == nil {
					n.subnets = appendPrefix(n.subnets, p.Masked())
				}
			}
		}
	}
}

func appendPrefix(list []netip.Prefix, p netip.Prefix) []netip.Prefix {
	if slices.Contains(list, p) {
		return list
	}
	return append(list, p)
}

// checkNADs is B3.26.
func (k *checker) checkNADs() {
	for _, n := range k.nads() {
		if n.master != "" && matchesAny(k.from.Links, n.master) {
			k.find(finding{code: NADMaster, on: onObject("NetworkAttachmentDefinition", n.obj), evidence: line("%s: %s", nameOf(n.obj), n.master)},
				"a network stands on the link %s of %s, which goes away", n.master, k.from.Profile)
		}
		for _, host := range k.nodes {
			k.checkNADSubnets(n, host)
		}
	}
}

// checkNADSubnets: a network whose addresses are those of another link of the
// node than its master's is answered by that other link.
func (k *checker) checkNADSubnets(n nad, host node) {
	var with []string
	for _, l := range host.facts.Links {
		for _, a := range l.Addrs {
			p, err := netip.ParsePrefix(a)
			if err != nil || l.Name == n.master || n.master == "" || p.Addr().IsLinkLocalUnicast() || p.Addr().IsLoopback() {
				continue
			}
			if slices.ContainsFunc(n.subnets, p.Masked().Overlaps) {
				with = append(with, fmt.Sprintf("%s: %s has %s; %s stands on %s", host.Name, l.Name, p, nameOf(n.obj), n.master))
			}
		}
	}
	if len(with) > 0 {
		k.find(finding{code: NADSubnet, on: onObject("NetworkAttachmentDefinition", n.obj), evidence: with}, "a network (%s) has addresses of another link of the node than the one that it stands on", join(n.subnets))
	}
}
