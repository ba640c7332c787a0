package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/api/v1alpha1"
)

// kubeProxy is what decides which sources kube-proxy takes for pods.
type kubeProxy struct {
	found       bool
	where       string
	ClusterCIDR string `json:"clusterCIDR"`
	LocalMode   string `json:"detectLocalMode"`
	DetectLocal struct {
		BridgeInterface     string `json:"bridgeInterface"`
		InterfaceNamePrefix string `json:"interfaceNamePrefix"`
	} `json:"detectLocal"`
}

// kubeProxy reads kube-proxy's settings from its ConfigMap, and from its flags,
// which count more.
func (k *checker) kubeProxy() kubeProxy {
	var kp kubeProxy
	if cm, ok := k.configMap("kube-system", "kube-proxy"); ok {
		for _, key := range []string{"config.conf", "config.yaml"} {
			if text, ok := cm.Data[key]; ok && yaml.Unmarshal([]byte(text), &kp) == nil {
				kp.found, kp.where = true, "ConfigMap kube-system/kube-proxy"
			}
		}
	}
	for i := range k.Pods {
		p := &k.Pods[i]
		if p.Labels["k8s-app"] != "kube-proxy" && p.Labels["component"] != "kube-proxy" && !strings.HasPrefix(p.Name, "kube-proxy") {
			continue
		}
		if !kp.found {
			kp.found, kp.where = true, "flags of pod "+nameOf(p)
		}
		if v, ok := argument(p.Spec, "cluster-cidr"); ok {
			kp.ClusterCIDR, kp.where = v, "flags of pod "+nameOf(p)
		}
		if v, ok := argument(p.Spec, "detect-local-mode"); ok {
			kp.LocalMode = v
		}
	}
	return kp
}

// checkKubeProxy is B3.10.
func (k *checker) checkKubeProxy() {
	if k.from.KubeProxyReplacement != k.to.KubeProxyReplacement {
		who := map[bool]string{false: "kube-proxy", true: "the CNI"}
		k.find(finding{code: KubeProxyReplaced, evidence: []string{
			fmt.Sprintf("%s: Services by %s", k.from.Profile, who[k.from.KubeProxyReplacement]),
			fmt.Sprintf("%s: Services by %s", k.to.Profile, who[k.to.KubeProxyReplacement]),
		}}, "who serves Services would change in the same window")
	}
	kp := k.kubeProxy()
	if !kp.found {
		if !k.from.KubeProxyReplacement {
			k.find(finding{code: KubeProxyUnseen}, "kube-proxy's settings are in no ConfigMap and in no pod")
		}
		return
	}
	evidence := line("%s: clusterCIDR %q, detectLocalMode %q", kp.where, kp.ClusterCIDR, kp.LocalMode)
	switch kp.LocalMode {
	case "NodeCIDR":
		if k.to.IPAM.Source != "node" {
			k.find(finding{code: KubeProxyLocalMode, evidence: evidence, fix: `set detectLocalMode: ClusterCIDR and clusterCIDR: ""`},
				"kube-proxy knows a node's pods by node.spec.podCIDR, where those of %s are not", k.to.Profile)
		}
	case "BridgeInterface", "InterfaceNamePrefix":
		link := kp.DetectLocal.BridgeInterface + kp.DetectLocal.InterfaceNamePrefix
		k.find(finding{code: KubeProxyLocalMode, evidence: append(evidence, "link "+link), fix: `set detectLocalMode: ClusterCIDR and clusterCIDR: ""`},
			"kube-proxy knows a node's pods by the link %s, which those of one of the two sides do not have", link)
	default:
		k.checkClusterCIDR(kp, evidence)
	}
}

func (k *checker) checkClusterCIDR(kp kubeProxy, evidence []string) {
	var have []netip.Prefix
	for _, s := range strings.Split(kp.ClusterCIDR, ",") {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
			have = append(have, p)
		}
	}
	for _, six := range []bool{false, true} {
		mine := family(have, six)
		if len(mine) == 0 {
			continue
		}
		missing := slices.DeleteFunc(family(k.to.PodCIDRs, six), func(p netip.Prefix) bool { return within(p, mine) })
		if len(missing) == 0 {
			continue
		}
		k.find(finding{code: KubeProxyCIDR, evidence: evidence, fix: k.clusterCIDR(have, six)},
			"pods of %s (%s) are outsiders to kube-proxy: it rewrites the source of what they send to Services", k.to.Profile, join(missing))
	}
}

// clusterCIDR is the setting that has both sides' pods: kube-proxy takes one
// range of each family, so it is one around both where nothing else is in it,
// and none otherwise.
func (k *checker) clusterCIDR(have []netip.Prefix, six bool) string {
	both := slices.Concat(family(k.from.PodCIDRs, six), family(k.to.PodCIDRs, six))
	after := fmt.Sprintf("; when all pods have moved, %q", join(k.to.PodCIDRs))
	around := both[0]
	for _, p := range both[1:] {
		for around.Bits() > 0 && !within(p, []netip.Prefix{around}) {
			around = netip.PrefixFrom(around.Addr(), around.Bits()-1).Masked()
		}
	}
	strange := slices.ContainsFunc(k.used(), func(u used) bool { return u.prefix.Overlaps(around) })
	if least := map[bool]int{false: 8, true: 32}[six]; around.Bits() < least || strange {
		return `set clusterCIDR: "" in kube-proxy's configuration and restart it: then nobody is an outsider` + after
	}
	list := []string{around.String()}
	for _, p := range have {
		if p.Addr().Is6() != six {
			list = append(list, p.String())
		}
	}
	return fmt.Sprintf("set clusterCIDR: %q in kube-proxy's configuration and restart it", strings.Join(list, ",")) + after
}

// rewriters are the rules of both sides that rewrite what pods of a send to
// pods of b.
func rewriters(a, b Side) []string {
	var names []string
	for _, m := range a.Masquerades {
		if m.Out && !exempt(m, b.PodCIDRs) {
			names = append(names, fmt.Sprintf("%s (%s, %s)", m.Name, a.Profile, m.Backend))
		}
	}
	for _, m := range b.Masquerades {
		if m.In && !exempt(m, a.PodCIDRs) {
			names = append(names, fmt.Sprintf("%s (%s, %s)", m.Name, b.Profile, m.Backend))
		}
	}
	return names
}

// exempt tells whether a rule leaves all of the ranges alone.
func exempt(m Masquerade, cidrs []netip.Prefix) bool {
	return len(cidrs) > 0 && !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return !within(p, m.Except) })
}

// Clients is what servers in pods are going to see of clients in pods while
// there are pods of both sides.
func Clients(from, to Side, preserve bool) []v1alpha1.ClientRow {
	rows := []v1alpha1.ClientRow{}
	add := func(a, b string, client, server Side) {
		for _, where := range []string{"same node", "other node"} {
			saw := "own"
			if a != b && !preserve && len(rewriters(client, server)) > 0 {
				saw = server.Seen.Other
				if where == "same node" {
					saw = server.Seen.Same
				}
				if saw == "" {
					saw = "node"
				}
			}
			rows = append(rows, v1alpha1.ClientRow{From: a, To: b, Where: where, By: "direct", Saw: saw})
		}
	}
	add("old", "old", from, from)
	add("old", "new", from, to)
	add("new", "old", to, from)
	add("new", "new", to, to)
	return rows
}

// masqueraders are chains and tables by which CNIs rewrite sources.
var masqueraders = []struct {
	mark     string
	profiles []string
}{
	{"FLANNEL-POSTRTG", []string{"flannel", "canal", "k3s"}},
	{"cali-nat-outgoing", []string{"calico", "canal"}},
	{"CILIUM_POST_nat", []string{"cilium"}},
	{"WEAVE", []string{"weave"}},
	{"KIND-MASQ-AGENT", []string{"kindnet"}},
	{"ANTREA-POSTROUTING", []string{"antrea"}},
	{"KUBE-ROUTER-POSTROUTING", []string{"kube-router"}},
}

// checkMasquerades is B3.11.
func (k *checker) checkMasquerades() {
	forth, back := rewriters(k.from, k.to), rewriters(k.to, k.from)
	switch {
	case len(forth)+len(back) == 0:
	case k.opts.PreserveSource:
		k.find(finding{code: SourceKept, evidence: directions(forth, back)}, "the two sides' own rules rewrite sources between old and new pods; --preserve-source exempts these")
	default:
		k.find(finding{code: SourceRewritten, evidence: directions(forth, back)}, "while pods of both sides are there, servers see another client address than the pod's own: the table below")
	}
	for _, n := range k.nodes {
		chains := n.chainsWithRules()
		for _, m := range masqueraders {
			k.checkMasquerader(n, m.mark, m.profiles, chains)
		}
	}
	k.checkMasqAgent()
}

func directions(forth, back []string) []string {
	var list []string
	if len(forth) > 0 {
		list = append(list, "old → new: "+strings.Join(forth, ", "))
	}
	if len(back) > 0 {
		list = append(list, "new → old: "+strings.Join(back, ", "))
	}
	return list
}

func (k *checker) checkMasquerader(n node, mark string, profiles, chains []string) {
	var in []string
	for _, c := range chains {
		if strings.HasSuffix(c, " nat "+mark) {
			in = append(in, c)
		}
	}
	if len(in) == 0 {
		return
	}
	mine := slices.Contains(profiles, k.from.Profile) || slices.Contains(profiles, k.to.Profile)
	if !mine {
		k.find(finding{code: StaleMasquerade, on: onNode(n.Name), evidence: prefixed(n.Name+": ", in)},
			"rules of %s still rewrite sources, and it is neither of the two sides", profiles[0])
		return
	}
	v4 := slices.ContainsFunc(in, func(s string) bool { return strings.HasPrefix(s, "iptables-nft") })
	legacy := slices.ContainsFunc(in, func(s string) bool { return strings.HasPrefix(s, "iptables-legacy") })
	if v4 && legacy {
		k.find(finding{code: TwoBackends, on: onNode(n.Name), evidence: prefixed(n.Name+": ", in)},
			"rules of %s are in both backends of iptables: one of them is from an earlier time, and both count", profiles[0])
	}
}

func prefixed(prefix string, list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, prefix+s)
	}
	return out
}

// checkMasqAgent looks at ip-masq-agent, which rewrites what goes anywhere but
// to the ranges that it was told.
func (k *checker) checkMasqAgent() {
	running := slices.ContainsFunc(k.DaemonSets, func(d daemonSet) bool { return strings.Contains(d.Name, "ip-masq-agent") })
	for _, cm := range k.ConfigMaps {
		if !running || !strings.Contains(cm.Name, "ip-masq-agent") {
			continue
		}
		var conf struct {
			NonMasqueradeCIDRs []string `json:"nonMasqueradeCIDRs"`
		}
		for _, text := range cm.Data {
			_ = yaml.Unmarshal([]byte(text), &conf) // what cannot be read names no ranges
		}
		var not []netip.Prefix
		for _, s := range conf.NonMasqueradeCIDRs {
			if p, err := netip.ParsePrefix(s); err == nil {
				not = append(not, p)
			}
		}
		missing := slices.DeleteFunc(slices.Clone(k.to.PodCIDRs), func(p netip.Prefix) bool { return within(p, not) })
		if len(missing) > 0 {
			k.find(finding{code: MasqAgent, on: onObject("ConfigMap", &cm), evidence: line("nonMasqueradeCIDRs: %s", strings.Join(conf.NonMasqueradeCIDRs, ", ")), fix: fmt.Sprintf("add %s to nonMasqueradeCIDRs", join(missing))},
				"ip-masq-agent rewrites the source of what goes to pods of %s", k.to.Profile)
		}
	}
}
