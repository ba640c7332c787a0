package leftover

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// nsHost runs programs in a namespace. What it ran, and with what input, is kept.
type nsHost struct {
	ns  *netns.NS
	ran []string
	// refuse is a program that fails, and by how often it still does.
	refuse string
	times  int
}

func (h *nsHost) Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	h.ran = append(h.ran, strings.Join(args, " ")+"\n"+string(stdin))
	if h.times > 0 && args[0] == h.refuse {
		h.times--
		return nil, fmt.Errorf("%s: refused by the test", args[0])
	}
	var out, problem bytes.Buffer
	err := h.ns.Do(func() error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &problem
		return cmd.Run()
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(problem.String()))
	}
	return out.Bytes(), nil
}

// place is a node of the test's own.
type place struct {
	t    *testing.T
	ns   *netns.NS
	host *nsHost
	root string
	net  *rtnl.Handle
}

func newPlace(t *testing.T) *place {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge, kerneltest.NftInet)
	return newBarePlace(t)
}

// newBarePlace is a place on a kernel that may have no nftables.
func newBarePlace(t *testing.T) *place {
	t.Helper()
	ns := kerneltest.NewNS(t)
	net, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(net.Close)
	return &place{t: t, ns: ns, host: &nsHost{ns: ns}, root: t.TempDir(), net: net}
}

func (p *place) node() Node { return Node{NS: p.ns, Root: p.root, Host: p.host} }

func (p *place) run(args ...string) string {
	p.t.Helper()
	out, err := p.host.Run(p.t.Context(), nil, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(out)
}

// restore loads rules into one backend of iptables.
func (p *place) restore(program, rules string) {
	p.t.Helper()
	if _, err := p.host.Run(p.t.Context(), []byte(rules), program+"-restore", "-w", "--noflush"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) file(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// text is everything of the place, as its programs print it.
func (p *place) text() string {
	p.t.Helper()
	var b strings.Builder
	for _, program := range p.backends() {
		fmt.Fprintf(&b, "== %s\n%s", program, rulesOnly(p.run(program+"-save")))
	}
	fmt.Fprintf(&b, "== nft\n%s", p.run("nft", "-s", "list", "ruleset"))
	fmt.Fprintf(&b, "== ip rule\n%s== ip route\n%s", p.run("ip", "rule"), p.run("ip", "-4", "route", "show", "table", "all"))
	links, err := p.net.Links()
	if err != nil {
		p.t.Fatal(err)
	}
	b.WriteString("== links\n")
	for _, l := range links {
		fmt.Fprintf(&b, "%s %s\n", l.Name, l.Kind)
	}
	b.WriteString("== files\n")
	err = filepath.WalkDir(p.root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name, _ := filepath.Rel(p.root, path)
			text, _ := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %q\n", name, text)
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return b.String()
}

// backends are those that the kernel under the test has.
func (p *place) backends() []string {
	all := []string{"iptables-nft", "ip6tables-nft"}
	if legacy() {
		all = append(all, "iptables-legacy")
	}
	return all
}

func legacy() bool {
	return exec.Command("iptables-legacy", "-w", "-t", "nat", "-S").Run() == nil
}

// rulesOnly leaves out when the rules were printed, and their counters.
func rulesOnly(save string) string {
	var b strings.Builder
	for line := range strings.Lines(save) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, ":") {
			line = line[:strings.LastIndex(line, " [")] + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// flannel is what Flannel with the network cbr0 leaves.
func flannel() spec.Spec {
	return spec.Spec{
		Profile: "flannel", Network: "cbr0",
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.243.0.0/16")},
		Links:    []spec.LinkPattern{{Name: "flannel.*", Kinds: []string{"vxlan"}}, {Name: "cni0", Kinds: []string{"bridge"}}},
		Routes:   []spec.RoutePattern{{Within: true, Gateway: true}},
		Chains:   []string{"FLANNEL-*"}, Comments: []string{"flanneld masq", "flanneld forward"},
		Portmap: true, Masquerade: true,
		Tables: []spec.Table{{Family: "ip", Name: "flannel-ipv4"}, {Family: "ip6", Name: "flannel-ipv6"}},
		Files: append([]spec.FilePattern{{Glob: "run/flannel"}, {Glob: "var/lib/cni/flannel/*", Kind: spec.Attachment}},
			spec.NetworkFiles("cbr0", "/etc/cni/net.d", "10-flannel.conflist")...),
	}
}

// strangersRules are rules of kube-proxy, Docker and a person.
const strangersRules = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.243.0.0/16 -d 192.0.2.0/24 -m comment --comment "ours: no \"flanneld masq\" here" -j ACCEPT
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "ssh" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A DOCKER-USER -j RETURN
COMMIT
`

// flannelRules are those that flanneld --ip-masq adds, behind the others' as it
// does, with one hostPort by portmap.
const flannelRules = `*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.243.0.0/24 -d 10.243.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.243.0.0/16 -d 10.243.0.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.243.0.0/16 -d 10.243.0.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.243.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.243.0.0/16 -d 10.243.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.243.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.243.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
`

// hostPortRules are those that portmap adds for one container.
func hostPortRules(network, id, chain, addr, port string) string {
	comment := fmt.Sprintf(`-m comment --comment "dnat name: \"%s\" id: \"%s\""`, network, id)
	return `*nat
:` + chain + ` - [0:0]
-A CNI-HOSTPORT-DNAT -p tcp ` + comment + ` -m multiport --dports ` + port + ` -j ` + chain + `
-A ` + chain + ` -s ` + addr + `/32 -p tcp -m tcp --dport ` + port + ` -j CNI-HOSTPORT-SETMARK
-A ` + chain + ` -p tcp -m tcp --dport ` + port + ` -j DNAT --to-destination ` + addr + `:80
COMMIT
`
}

// hostPortTop is what portmap adds once for all.
const hostPortTop = `*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
COMMIT
`

func sandbox(id, name, ip string) facts.Sandbox {
	return facts.Sandbox{ID: id, Namespace: "default", Pod: name, Ready: true, IPs: []string{ip}}
}
