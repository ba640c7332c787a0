package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/guest"
)

func TestConfigIsCompletedOrRefused(t *testing.T) {
	zero, err := Config{}.complete()
	if err != nil || zero.Name != "braid" || zero.Nodes != 2 || zero.NodeKernel != "uml" || zero.NodeMemoryMiB != 3072 || zero.CNI != "bridge" || zero.MaxConfNum != 1 {
		t.Errorf("the zero value became %+v, %v", zero, err)
	}
	alone, err := Config{ControlPlaneOnly: true, Nodes: 3}.complete()
	if err != nil || len(alone.nodes()) != 0 || len(alone.guests()) != 0 {
		t.Errorf("a control plane alone has guests %v, %v", alone.guests(), err)
	}
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{Name: "../x"}, "lab name"},
		{Config{Name: strings.Repeat("a", 21)}, "lab name"},
		{Config{Nodes: 10}, "10 nodes"},
		{Config{Nodes: -1}, "-1 nodes"},
		{Config{NodeKernel: "xen"}, "uml qemu host"},
		{Config{CNI: "calico"}, "flannel-host-gw, cilium"},
		{Config{CNI: "cilium"}, "--node-kernel=host"},
		{Config{CNI: "flannel-host-gw+cilium", NodeKernel: "uml"}, "--node-kernel=host or qemu"},
		{Config{CNI: "flannel+cilium-latent", NodeKernel: "uml"}, "--node-kernel=host or qemu"},
		{Config{CNI: "flannel", PodNet: netip.MustParsePrefix("10.200.0.0/16")}, "only that of the default network bridge"},
		{Config{PodNet: netip.MustParsePrefix("10.200.0.0/24")}, "/20 or more"},
		{Config{PodNet: netip.MustParsePrefix("10.200.0.1/16")}, "/20 or more"},
		{Config{ClusterCIDR: "all"}, `"none"`},
		{Config{MaxConfNum: -1}, "max_conf_num -1"},
		{Config{NodeMemoryMiB: 100}, "100 MiB"},
	} {
		if _, err := tc.cfg.complete(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want one about %q", tc.cfg, err, tc.want)
		}
	}
}

func TestAddressesAndLinkNamesOfNodesDiffer(t *testing.T) {
	cfg, err := Config{Nodes: 9}.complete()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{mgmtHost.String(): true}
	for _, n := range cfg.guests() {
		for _, s := range []string{n.Name, n.Addr.String(), n.Tap + "m", n.Tap + "t"} {
			if seen[s] {
				t.Errorf("%q is used twice", s)
			}
			seen[s] = true
		}
		if !mgmtNet.Contains(n.Addr) {
			t.Errorf("%s: %s is outside of %s", n.Name, n.Addr, mgmtNet)
		}
		if len(n.Tap)+1 > 15 {
			t.Errorf("%s: link name %qm is longer than 15 characters", n.Name, n.Tap)
		}
	}
	if got := addrAt(netip.MustParsePrefix("10.0.0.255/24"), 11); got != netip.MustParseAddr("10.0.0.11") {
		t.Errorf("the 11th address is %s", got)
	}
}

// The golden texts are what a person would write by hand for such a node.
func TestNodeFilesAreWhatTheProgramsExpect(t *testing.T) {
	n := node{Name: "node1", Addr: netip.MustParseAddr("172.30.0.11")}
	subnet := netip.MustParsePrefix("10.244.3.0/24")
	others := []nodeSubnet{
		{n, subnet},
		{node{Name: "node2", Addr: netip.MustParseAddr("172.30.0.12")}, netip.MustParsePrefix("10.244.0.0/24")},
	}
	for name, tc := range map[string]struct{ got, want string }{
		"default network": {string(Config{}.defaultNetwork(subnet)),
			`{"cniVersion":"1.0.0","name":"default","plugins":[` +
				`{"bridge":"cni0","hairpinMode":true,"ipam":{"ranges":[[{"subnet":"10.244.3.0/24"}]],"type":"host-local"},"isDefaultGateway":true,"type":"bridge"},` +
				`{"capabilities":{"portMappings":true},"type":"portmap"}]}`},
		"routes": {routeScript(n, others), "ip route replace 10.244.0.0/24 via 172.30.0.12\n"},
		"kube-proxy": {string(Config{CNI: "bridge"}.proxyConfig(n)), `apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 172.30.0.11
clientConnection:
  kubeconfig: /etc/kubernetes/proxy.kubeconfig
clusterCIDR: 10.244.0.0/16
conntrack:
  maxPerCore: 0
  min: 0
  tcpCloseWaitTimeout: 0s
  tcpEstablishedTimeout: 0s
detectLocalMode: ClusterCIDR
hostnameOverride: node1
kind: KubeProxyConfiguration
mode: iptables
oomScoreAdj: 0
`},
		"flannel": {string(flannelConfig("host-gw")) + string(flannelNetwork()),
			`{"Backend":{"Type":"host-gw"},"EnableNFTables":false,"Network":"10.244.0.0/16"}` +
				`{"cniVersion":"0.3.1","name":"cbr0","plugins":[` +
				`{"delegate":{"hairpinMode":true,"isDefaultGateway":true},"type":"flannel"},` +
				`{"capabilities":{"portMappings":true},"type":"portmap"}]}`},
		"links of the host": {hostLinks(), `link set lo up
link add braidmgmt type bridge
addr add 172.30.0.1/24 dev braidmgmt
link set braidmgmt up
link add braidtrunk type bridge mcast_snooping 0
link set braidtrunk addrgenmode none
link set braidtrunk up
`},
		"links of the external host": {externalLinks(), `ip -batch - <<EOF
link set trunk0 up
link add link trunk0 name vlan2001 address 02:42:0a:14:01:01 type vlan id 2001
addr add 10.20.1.1/24 dev vlan2001
link set vlan2001 up
link add link trunk0 name vlan2002 address 02:42:0a:14:02:01 type vlan id 2002
addr add 10.20.2.1/24 dev vlan2002
link set vlan2002 up
EOF
`},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestCertificatesProveWhoTheyAreFor(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ca, err := newAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.pem)
	nodes := Config{Nodes: 2}.nodes()
	for name, id := range identities(nodes) {
		pair, err := ca.issue(id, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		block, _ := pem.Decode(pair.Cert)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if cert.Subject.CommonName != id.User || !slices.Equal(cert.Subject.Organization, id.Groups) {
			t.Errorf("%s is for %s", name, cert.Subject)
		}
		usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if len(id.Addrs) > 0 {
			usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: usage}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, a := range id.Addrs {
			if err := cert.VerifyHostname(a.String()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestNodesAreNodesAndNobodyElseIs(t *testing.T) {
	for name, id := range identities(Config{Nodes: 2}.nodes()) {
		isNode := name == "node1" || name == "node2"
		if slices.Contains(id.Groups, "system:nodes") != isNode || (id.User == "system:node:"+name) != isNode {
			t.Errorf("%s is %s of %v", name, id.User, id.Groups)
		}
	}
}

func TestEveryKubeconfigNamesTheServerAndItsUser(t *testing.T) {
	p := paths{"unit"}
	text, err := kubeconfig("node1", "https://172.30.0.1:6443", []byte("CA"), keyPair{Cert: []byte("C"), Key: []byte("K")})
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://172.30.0.1:6443
  name: lab
contexts:
- context:
    cluster: lab
    user: node1
  name: lab
current-context: lab
kind: Config
users:
- name: node1
  user:
    client-certificate-data: Qw==
    client-key-data: Sw==
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, user := range kubeconfigUsers(Config{Nodes: 2}.nodes()) {
		if _, ok := identities(Config{Nodes: 2}.nodes())[user]; !ok {
			t.Errorf("%s has no certificate for %s", p.kubeconfig(user), user)
		}
	}
}

func TestKubeletConfigIsValidYAMLOfItsKind(t *testing.T) {
	for kernel, root := range map[guest.Kernel]any{guest.UML: nil, guest.QEMU: nil, guest.Host: "/braid-lab-x/node1"} {
		var config map[string]any
		if err := yaml.Unmarshal(Config{NodeKernel: kernel}.kubeletConfig("/braid-lab-x/node1"), &config); err != nil {
			t.Fatal(err)
		}
		if config["kind"] != "KubeletConfiguration" || config["cgroupDriver"] != "cgroupfs" || config["cgroupRoot"] != root {
			t.Errorf("%s: %v", kernel, config)
		}
	}
}

func TestToolBlocksAndProgramTableAgree(t *testing.T) {
	root, err := sourceRoot("")
	if err != nil {
		t.Fatal(err)
	}
	inTable := map[string][]string{}
	for _, p := range programs() {
		if !strings.HasPrefix(p.Package, modulePath+"/") {
			inTable[p.Module] = append(inTable[p.Module], p.Package)
		}
	}
	for module, want := range inTable {
		cmd := exec.Command("go", "mod", "edit", "-json")
		cmd.Dir = filepath.Join(root, module)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", module, err)
		}
		var mod struct{ Tool []struct{ Path string } }
		if err := json.Unmarshal(out, &mod); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, tool := range mod.Tool {
			got = append(got, tool.Path)
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: table and go.mod differ (-table +go.mod):\n%s", module, diff)
		}
	}
}

func TestFingerprintFollowsEveryInput(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := writeFiles(map[string][]byte{filepath.Join(root, path): []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	write("m/go.mod", "module m")
	write("m/go.sum", "sum")
	base := program{Name: "x", Module: "m", Package: "m/x"}
	fingerprint := func(p program, version string) string {
		t.Helper()
		id, err := p.fingerprint(root, version)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first := fingerprint(base, "go1")
	if first != fingerprint(base, "go1") {
		t.Error("the same inputs gave two fingerprints")
	}
	flags, tags := base, base
	flags.LDFlags, tags.Tags = "-s", "t"
	ids := []string{first, fingerprint(base, "go2"), fingerprint(flags, "go1"), fingerprint(tags, "go1")}
	write("m/go.sum", "other")
	ids = append(ids, fingerprint(base, "go1"))
	write("m/go.sum", "sum")
	write("m/go.mod", "module m // changed")
	ids = append(ids, fingerprint(base, "go1"))
	own := program{Name: "y", Module: "m", Package: modulePath + "/m"}
	write("m/go.mod", "module m")
	write("m/main.go", "package main")
	ids = append(ids, fingerprint(own, "go1"))
	write("m/main.go", "package main // changed")
	ids = append(ids, fingerprint(own, "go1"))
	slices.Sort(ids)
	if distinct := slices.Compact(slices.Clone(ids)); len(distinct) != len(ids) {
		t.Errorf("an input does not count: %v", ids)
	}
}

func TestUnknownProgramIsRefusedWithTheKnownOnes(t *testing.T) {
	_, err := Build(t.Context(), BuildConfig{Only: []string{"kubeadm"}})
	if err == nil || !strings.Contains(err.Error(), `"kubeadm"`) || !strings.Contains(err.Error(), "kubelet") {
		t.Errorf("error %v", err)
	}
}

func TestBuiltProgramIsFoundWithoutBuilding(t *testing.T) {
	cache := t.TempDir()
	var out strings.Builder
	cfg := BuildConfig{Cache: cache, Only: []string{"pause"}, Progress: NewProgress(&out)}
	first, err := Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(first["pause"])
	if err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Fatalf("pause is not an executable: %v, %v", info, err)
	}
	said := out.String()
	if !strings.Contains(said, "build pause (1 of 1)") {
		t.Errorf("progress was %q", said)
	}
	if _, err := Build(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if out.String() != said {
		t.Errorf("the second build did something: %q", out.String()[len(said):])
	}
}

func TestWaitSaysWhatItWaitedForAndWhatWasMissing(t *testing.T) {
	var p *Progress
	err := p.Wait(t.Context(), Wait{What: "godot", Limit: 30 * time.Millisecond, Every: time.Millisecond},
		func(context.Context) error { return errors.New("not on the road") })
	if err == nil || !strings.Contains(err.Error(), "for godot") || !strings.Contains(err.Error(), "not on the road") {
		t.Errorf("error %v", err)
	}
}

func TestWaitTellsWhatWasMissingAlsoWhenTheLimitInterruptsTheCheck(t *testing.T) {
	var p *Progress
	calls := 0
	err := p.Wait(t.Context(), Wait{What: "godot", Limit: 30 * time.Millisecond, Every: time.Millisecond},
		func(ctx context.Context) error {
			if calls++; calls == 1 {
				return errors.New("not on the road")
			}
			<-ctx.Done()
			return ctx.Err()
		})
	if err == nil || !strings.Contains(err.Error(), "not on the road") {
		t.Errorf("error %v", err)
	}
}

func TestWaitEndsAtOnceWhenItIsHopeless(t *testing.T) {
	var p *Progress
	calls := 0
	err := p.Wait(t.Context(), Wait{What: "godot", Limit: time.Hour}, func(context.Context) error {
		calls++
		return errors.Join(errors.New("dead"), errGiveUp)
	})
	if !errors.Is(err, errGiveUp) || calls != 1 {
		t.Errorf("%d calls, error %v", calls, err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	var p *Progress
	ctx, cancel := context.WithCancel(t.Context())
	err := p.Wait(ctx, Wait{What: "godot", Limit: time.Hour}, func(context.Context) error {
		cancel()
		return errors.New("later")
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "godot") {
		t.Errorf("error %v", err)
	}
}

func TestProgressShowsSeconds(t *testing.T) {
	var out strings.Builder
	p := NewProgress(&out)
	p.now = func() time.Time { return p.start.Add(12340 * time.Millisecond) }
	p.Printf("node %s is up", "a")
	if want := "  12.3s  node a is up\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestErrorsInProgressTakeOneLine(t *testing.T) {
	got := oneLine(errors.New("one\n  two\n" + strings.Repeat("ü", 300)))
	if !strings.HasPrefix(got, "one two ü") || len([]rune(got)) != 160 {
		t.Errorf("%q", got)
	}
}

func TestStartTimeIsFoundBehindAnyName(t *testing.T) {
	rest := strings.Repeat("0 ", 18) + "4711 0"
	for _, name := range []string{"etcd", "a b", ") R 1 2 3", "(x)"} {
		got, dead, err := parseStat("12 (" + name + ") S " + rest)
		if err != nil || got != 4711 || dead {
			t.Errorf("%q: %d, %v, %v", name, got, dead, err)
		}
		if _, dead, err := parseStat("12 (" + name + ") Z " + rest); err != nil || !dead {
			t.Errorf("%q: a zombie counts as running (%v)", name, err)
		}
	}
	for _, bad := range []string{"", "12 (x) S 1", "12 x S " + rest} {
		if got, _, err := parseStat(bad); err == nil {
			t.Errorf("%q gave %d", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("12 (etcd) S " + strings.Repeat("0 ", 18) + "4711 0")
	f.Add("))")
	f.Fuzz(func(_ *testing.T, stat string) { _, _, _ = parseStat(stat) })
}

func TestOnlyMountsBelowTheDirectoryAreListed(t *testing.T) {
	const info = `22 1 0:20 / /run rw shared:5 - tmpfs tmpfs rw
30 22 0:40 / /run/braid-lab/a rw - tmpfs braid-lab rw
31 22 0:41 / /run/braid-lab/ab rw - tmpfs braid-lab rw
32 30 0:42 / /run/braid-lab/a/with\040space rw - tmpfs x rw
short line
`
	want := []string{"/run/braid-lab/a", "/run/braid-lab/a/with space"}
	if diff := cmp.Diff(want, parseMounts(info, "/run/braid-lab/a")); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add(`32 30 0:42 / /a/with\040space rw - tmpfs x rw`, "/a")
	f.Add(`1 2 3 4 /a\04`, "/a")
	f.Fuzz(func(t *testing.T, info, dir string) {
		for _, m := range parseMounts(info, dir) {
			if !strings.HasPrefix(m, dir) {
				t.Errorf("%q is not below %q", m, dir)
			}
		}
	})
}

func TestExchangeGivesEveryNodeAllRanges(t *testing.T) {
	e := newExchange(3)
	results := make(chan int, 3)
	for i := range 3 {
		go func() {
			all, err := e.exchange(t.Context(), node{Name: string(rune('a' + i))}, podNet)
			if err != nil {
				t.Error(err)
			}
			results <- len(all)
		}()
	}
	for range 3 {
		if got := <-results; got != 3 {
			t.Errorf("a node learned of %d ranges", got)
		}
	}
}

func TestExchangeEndsWhenAnotherNodeCannotCome(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newExchange(2).exchange(ctx, node{}, podNet); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestMissingPackagesAreNamedOnceInOrder(t *testing.T) {
	got := Config{}.missingPackages(func(program string) bool { return program != "ip" && program != "linux.uml" && program != "clang-19" })
	if diff := cmp.Diff([]string{"user-mode-linux", "iproute2"}, got); diff != "" {
		t.Error(diff)
	}
	got = Config{CNI: "cilium"}.missingPackages(func(program string) bool { return program != "ip" && program != "clang-19" })
	if diff := cmp.Diff([]string{"iproute2", "clang-19"}, got); diff != "" {
		t.Error(diff)
	}
	for program, pkg := range hostPrograms {
		if !slices.Contains(Packages, pkg) {
			t.Errorf("%s comes with %s, which is not in Packages", program, pkg)
		}
	}
}

func TestNodeIsReadyOnlyWhenItsKubeletSaysSo(t *testing.T) {
	with := func(status corev1.ConditionStatus) corev1.Node {
		return corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue},
			{Type: corev1.NodeReady, Status: status, Message: "no network"},
		}}}
	}
	if err := nodeReady(with(corev1.ConditionTrue), time.Time{}); err != nil {
		t.Error(err)
	}
	for _, n := range []corev1.Node{{}, with(corev1.ConditionFalse), with(corev1.ConditionUnknown)} {
		if nodeReady(n, time.Time{}) == nil {
			t.Errorf("%v counts as Ready", n.Status.Conditions)
		}
	}
}

func TestQuotedLogIsTheEndOfTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	if err := os.WriteFile(path, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := quote(io.ErrUnexpectedEOF, path)
	if !errors.Is(got, io.ErrUnexpectedEOF) || !strings.HasSuffix(got.Error(), path+":\none\ntwo\nthree") {
		t.Errorf("%v", got)
	}
	if tail([]byte("one\ntwo\nthree\n"), 2) != "two\nthree" {
		t.Error("tail is not the tail")
	}
	if quote(nil, path) != nil {
		t.Error("a success was made an error")
	}
}
