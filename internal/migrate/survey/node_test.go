package survey

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/hostexec"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

// runtime answers as containerd does on a node of Flannel.
type runtime struct {
	status    cri.Status
	sandboxes []cri.Sandbox
	err       error
}

func (r runtime) Status(context.Context) (cri.Status, error)           { return r.status, r.err }
func (r runtime) ListSandboxes(context.Context) ([]cri.Sandbox, error) { return r.sandboxes, r.err }

const containerdCNI = `{"PluginDirs":["/opt/cni/bin"],"PluginConfDir":"/etc/cni/net.d","PluginMaxConfNum":1,"Prefix":"eth","Networks":[` +
	`{"Config":{"Name":"cni-loopback","Plugins":[{"Source":"{\"type\":\"loopback\"}"}]},"IFName":"lo"},` +
	`{"Config":{"Name":"cbr0","Plugins":[{"Source":"{\"type\":\"flannel\"}"}]},"IFName":"eth0"}]}`

// tree makes a host's files: text by path, " -> TARGET" for links, and programs
// below bin directories.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		file := filepath.Join(root, path)
		try(t, os.MkdirAll(filepath.Dir(file), 0o755))
		if target, ok := strings.CutPrefix(text, " -> "); ok {
			try(t, os.Symlink(target, file))
			continue
		}
		mode := os.FileMode(0o644)
		if strings.Contains(path, "bin/") {
			mode = 0o755
		}
		try(t, os.WriteFile(file, []byte(text), mode))
	}
	return root
}

// flannelNode are the files of a node, with a shell that runs its programs.
func flannelNode(t *testing.T) map[string]string {
	const flannel = `{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap","capabilities":{"portMappings":true}}]}`
	return map[string]string{
		"bin/busybox":                                  string(must(os.ReadFile("/bin/busybox"))(t)),
		"bin/sh":                                       " -> busybox",
		"bin/cat":                                      " -> /bin/busybox",
		"usr/sbin/iptables-nft-save":                   "#!/bin/sh\ncat <<'.'\n" + saved + ".\n",
		"usr/sbin/nft":                                 "#!/bin/sh\necho netlink: out of memory >&2\nexit 1\n",
		"etc/os-release":                               " -> /usr/lib/os-release",
		"usr/lib/os-release":                           "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"proc/sys/kernel/osrelease":                    "6.1.0-38-amd64\n",
		"proc/sys/kernel/random/boot_id":               "00000000-0000-4000-8000-000000000001\n",
		"proc/filesystems":                             "nodev\tsysfs\nnodev\tbpf\n\text4\n",
		"etc/cni/net.d/10-flannel.conflist":            flannel,
		"etc/cni/net.d/05-old.conflist.cilium_bak":     `{"name":"old","token":"hush"}`,
		"etc/cni/net.d/calico-kubeconfig":              "users: [{user: {token: hush}}]",
		"etc/cni/net.d/multus.d/multus.kubeconfig":     "users: [{user: {token: hush}}]",
		"etc/cni/net.d/zz.conf":                        " -> /nowhere",
		"opt/cni/bin/flannel":                          "",
		"opt/cni/bin/portmap":                          " -> /usr/lib/cni/bin/portmap",
		"usr/lib/cni/bin/portmap":                      "",
		"opt/cni/bin/gone":                             " -> /usr/lib/cni/bin/gone",
		"opt/cni/README":                               "",
		"run/flannel/subnet.env":                       "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
		"var/run":                                      " -> /run",
		"var/lib/cni/networks/cbr0/10.244.1.5":         "sandbox1\r\neth0",
		"var/lib/cni/networks/cbr0/lock":               "",
		"var/lib/cni/networks/cbr0/last_reserved_ip.0": "10.244.1.5",
		"var/lib/cni/results/cbr0-sandbox1-eth0":       "{}",
		"var/lib/cni/flannel/sandbox1":                 "{}",
	}
}

func TestAWholeNode(t *testing.T) {
	kerneltest.Need(t, kerneltest.VXLAN, kerneltest.Bridge)
	ns, pod := kerneltest.NewNS(t), kerneltest.NewNS(t)
	h := handle(t, ns)
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }
	cni0 := must(h.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "cni0", MTU: 1450, MAC: mac(1), Up: true}}))(t)
	try(t, h.AddAddr(cni0.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.244.1.1/24")}))
	overlay := must(h.AddTunnel(rtnl.New{Name: "flannel.1", MTU: 1450, MAC: mac(2), Up: true}, rtnl.Tunnel{Kind: "vxlan", ID: 1, Port: 8472}))(t)
	try(t, h.AddAddr(overlay.Index, rtnl.Addr{Prefix: netip.MustParsePrefix("10.244.1.0/32")}))
	try(t, h.AddRoute(rtnl.Route{Dst: netip.MustParsePrefix("10.244.2.0/24"), Via: netip.MustParseAddr("10.244.2.0"), Link: overlay.Index, OnLink: true, Protocol: unix.RTPROT_BOOT}))
	port, _ := connect(t, end{ns, h, "veth1", 1450, nil}, end{pod, handle(t, pod), "eth0", 1450, []string{"10.244.1.5/24"}})
	try(t, h.SetMaster(port, cni0.Index))
	try(t, rtnl.Sysctl{}.Set(ns,
		rtnl.Setting{Path: "ipv4/ip_forward", Value: "1"}, rtnl.Setting{Path: "ipv4/conf/all/rp_filter", Value: "0"},
		rtnl.Setting{Path: "ipv4/conf/flannel.1/rp_filter", Value: "2"}))

	n := Collect(t.Context(), Config{Name: "n1", Root: hostexec.Root(tree(t, flannelNode(t))), NS: ns, Runtime: runtime{
		status: cri.Status{
			Name: "containerd", Version: "v2.4.2", NetworkReady: true,
			Info: map[string]string{"cniconfig": containerdCNI, "config": "{}", "lastCNILoadStatus": "OK"},
		},
		sandboxes: []cri.Sandbox{
			{ID: "sandbox2", Namespace: "kube-system", Pod: "proxy", UID: "u2", Ready: true, HostNetwork: true},
			{ID: "sandbox1", Namespace: "default", Pod: "web", UID: "u1", Ready: true, IPs: []string{"10.244.1.5"}, NetNS: "/run/netns/web"},
		},
	}})
	// Other kernels have other settings and other kinds of links.
	maps.DeleteFunc(n.Sysctls, func(name, _ string) bool {
		return !slices.Contains([]string{"net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.flannel.1.rp_filter"}, name)
	})
	maps.DeleteFunc(n.Features, func(name string, _ bool) bool { return name == "geneve" || name == "ipvlan" })
	golden(t, "flannel", string(must(json.MarshalIndent(n, "", "  "))(t))+"\n")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		try(t, os.WriteFile(path, []byte(got), 0o644))
	}
	if want := must(os.ReadFile(path))(t); got != string(want) {
		t.Errorf("%s differs (UPDATE_GOLDEN=1 writes it anew)\n--- got\n%s--- want\n%s", path, got, want)
	}
}

// Nothing of the host is where it should be, and the runtime does not answer.
func TestWhatCannotBeReadIsSaid(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	root := filepath.Join(t.TempDir(), "nowhere")
	n := Collect(t.Context(), Config{Name: "n1", Root: hostexec.Root(root), NS: kerneltest.NewNS(t), Runtime: runtime{err: errors.New("connection refused")}})
	if n.Name != "n1" || n.Kernel == "" || len(n.Links) == 0 {
		t.Errorf("%+v", n)
	}
	all := strings.Join(n.Problems, "\n")
	for _, want := range []string{"the boot id", "file systems", "no nft", "sandboxes are not known: connection refused", "what the runtime says is not known: connection refused"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing of %q in\n%s", want, all)
		}
	}
	if n.CNI.ConfDir != "/etc/cni/net.d" || n.CNI.BinDir != "/opt/cni/bin" {
		t.Errorf("%+v", n.CNI)
	}
}

func TestACancelledSurveyEnds(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := Collect(ctx, Config{Name: "n1", NS: kerneltest.NewNS(t), Peers: []Peer{{Node: "n2", Addr: netip.MustParseAddr("192.0.2.1"), Ports: []uint16{1}}}})
	if len(n.Paths) != 1 || n.Paths[0].Error == "" {
		t.Errorf("%+v", n.Paths)
	}
}

func TestCRIODoesNotTellItsDefaultNetwork(t *testing.T) {
	root := tree(t, map[string]string{
		"etc/crio/crio.conf":                  "[crio.network]\n# cni_default_network = \"no\"\ncni_default_network = \"first\"\n",
		"etc/crio/crio.conf.d/10-braid.conf":  "[crio.network]\n  cni_default_network=\"cbr0\"\n",
		"etc/crio/crio.conf.d/20-nothing.txt": "",
	})
	s := survey{host: hostFiles{root: hostexec.Root(root)}, Config: Config{Runtime: runtime{status: cri.Status{Name: "cri-o", Version: "1.30.0"}}}}
	s.runtime(t.Context(), &s.node.CNI)
	if c := s.node.CNI; c.DefaultNetwork != "cbr0" || c.Runtime != "cri-o" || c.Loaded != nil {
		t.Errorf("%+v", c)
	}
}

func TestTheHostsFilesAreReadAsTheHostSeesThem(t *testing.T) {
	root := tree(t, map[string]string{
		"etc/inside":   "inside",
		"etc/absolute": " -> /etc/inside",
		"etc/outside":  " -> /../../../../../../../../etc/passwd",
		"etc/loop":     " -> loop",
		"dir/a":        "", "dir/b": "", "dir/c": "",
	})
	try(t, unix.Mkfifo(filepath.Join(root, "etc/pipe"), 0o644))
	h := hostFiles{root: hostexec.Root(root)}
	if text, more, err := h.read("/etc/absolute", 3); text != "ins" || !more || err != nil {
		t.Errorf("%q, %t, %v", text, more, err)
	}
	for _, path := range []string{"/etc/outside", "/etc/loop", "/etc/pipe", "/dir", "/none"} {
		if text, _, err := h.read(path, 10); err == nil {
			t.Errorf("%s: %q", path, text)
		}
	}
	if entries, more, err := h.list("/dir", 2); len(entries) != 2 || !more || err != nil {
		t.Errorf("%v, %t, %v", entries, more, err)
	}
}

func TestWhatIsTooMuchIsCut(t *testing.T) {
	s := survey{}
	if have := capped(&s, "routes", []int{1, 2, 3}, 2); len(have) != 2 || len(s.node.Problems) != 1 || !strings.Contains(s.node.Problems[0], "routes are 3") {
		t.Errorf("%v, %v", have, s.node.Problems)
	}
	s = survey{}
	s.ruleset("iptables-nft", strings.Repeat("-A FORWARD -j ACCEPT\n", maxRules/20))
	if text := s.node.Firewall[0].Text; len(text) > maxRules || !strings.HasSuffix(text, "ACCEPT\n") || len(s.node.Problems) != 1 {
		t.Errorf("%d bytes, %v", len(text), s.node.Problems)
	}
	s = survey{}
	s.ruleset("nftables", strings.Repeat("x", 2*maxRules)) // one endless line
	s.ruleset("ip6tables-nft", "\n")
	if len(s.node.Firewall) != 1 || len(s.node.Problems) != 1 {
		t.Errorf("%+v", s.node)
	}
}
