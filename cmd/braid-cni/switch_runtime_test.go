package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/confswitch"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
)

// node is a namespace with a conf dir, and a runtime: libcni, as containerd uses
// it, which asks the first configuration of the dir for every request.
type node struct {
	t     *testing.T
	ns    *netns.NS
	dir   string // everything of the node is below
	conf  confswitch.Config
	cni   *libcni.CNIConfig
	cache string
}

const (
	oldFile, newFile = "10-old.conflist", "05-new.conflist"
	// oldRange and newRange are the networks' addresses.
	oldRange, newRange = "10.91.0.", "10.92.0."
)

// newNode makes a node with two networks of the reference plugins. The old one
// has further plugins, as text, between its bridge and its portmap.
func newNode(t *testing.T, oldName, newName, between string) *node {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge, kerneltest.Veth)
	plugins := refplugin.Dir(t, "bridge", "ptp", "portmap", "host-local")
	n := &node{t: t, dir: t.TempDir(), cache: t.TempDir()}
	n.ns, _ = kerneltest.NewNamedNS(t)
	for _, dir := range []string{"conf", "state", "bin"} {
		if err := os.Mkdir(filepath.Join(n.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ipam := func(side, subnet string) string {
		return fmt.Sprintf(`{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"%s0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}`, filepath.Join(n.dir, side), subnet)
	}
	old := fmt.Sprintf(`{"cniVersion":"0.4.0","name":%q,"plugins":[
		{"type":"bridge","bridge":"braidold","isGateway":true,"ipMasq":true,"ipam":%s},%s
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, oldName, ipam("old", oldRange), between)
	target := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[
		{"type":"ptp","ipMasq":true,"ipam":%s},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, newName, ipam("new", newRange))
	write(t, filepath.Join(n.dir, "conf", oldFile), old, 0o600)
	n.conf = confswitch.Config{
		Dir: filepath.Join(n.dir, "conf"), StateDir: filepath.Join(n.dir, "state"), Migration: "m",
		Probes: "braid-migrate", Message: "please wait", CacheDir: n.cache,
		BinDirs: []string{plugins, filepath.Join(n.dir, "bin"), filepath.Dir(binary(t))},
		From:    v1alpha1.Network{Profile: "old", ConfFile: oldFile},
		To:      v1alpha1.Network{Profile: "new", ConfFile: newFile, Conf: target},
	}
	n.cni = libcni.NewCNIConfigWithCacheDir(n.conf.BinDirs, n.cache, nil)
	n.inside(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600) })
	return n
}

func (n *node) inside(fn func() error) {
	n.t.Helper()
	if err := n.ns.Do(fn); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) set(want v1alpha1.RuntimeState) {
	n.t.Helper()
	if err := confswitch.Set(n.t.Context(), n.conf, want); err != nil {
		n.t.Fatal(err)
	}
}

// loaded is what the runtime has loaded: the first of the conf dir.
func (n *node) loaded() *libcni.NetworkConfigList {
	n.t.Helper()
	files, err := confdir.ReadDir(n.conf.Dir)
	if err != nil {
		n.t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f confdir.File) bool { return !confdir.IsConf(f.Name) })
	list, err := libcni.ConfListFromFile(filepath.Join(n.conf.Dir, files[0].Name))
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// pod is a sandbox.
type pod struct {
	id, namespace, netns string
	port                 int
}

// pod makes a sandbox without a network.
func (n *node) pod(id, namespace string, port int) pod {
	n.t.Helper()
	_, path := kerneltest.NewNamedNS(n.t)
	return pod{id, namespace, path, port}
}

func (p pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.id, NetNS: p.netns, IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.namespace}, {"K8S_POD_NAME", p.id}},
		CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": p.port, "containerPort": 80, "protocol": "tcp"}}},
	}
}

func (n *node) add(p pod) (address string, err error) {
	n.t.Helper()
	list := n.loaded()
	var result types.Result
	n.inside(func() error {
		result, err = n.cni.AddNetworkList(n.t.Context(), list, p.runtimeConf())
		return nil
	})
	if err != nil {
		return "", err
	}
	r, err := current.NewResultFromResult(result)
	if err != nil {
		n.t.Fatal(err)
	}
	return r.IPs[0].Address.IP.String(), nil
}

// start starts a pod that must get an address of a range.
func (n *node) start(p pod, subnet string) {
	n.t.Helper()
	address, err := n.add(p)
	if err != nil || !strings.HasPrefix(address, subnet) {
		n.t.Fatalf("pod %s has the address %q, want one of %s: %v", p.id, address, subnet, err)
	}
	if !strings.Contains(n.rules(), n.portRule(p)) {
		n.t.Fatalf("pod %s has no port:\n%s", p.id, n.rules())
	}
}

func (n *node) portRule(p pod) string { return fmt.Sprintf("--dport %d ", p.port) }

func (n *node) del(ctx context.Context, p pod) (err error) {
	n.t.Helper()
	list := n.loaded()
	n.inside(func() error {
		err = n.cni.DelNetworkList(ctx, list, p.runtimeConf())
		return nil
	})
	return err
}

// stop stops a pod, of which nothing may be left.
func (n *node) stop(p pod) {
	n.t.Helper()
	if err := n.del(n.t.Context(), p); err != nil {
		n.t.Fatalf("stop pod %s: %v", p.id, err)
	}
	n.gone(p)
}

// gone checks that no address, rule, link or memory of a pod is left.
func (n *node) gone(p pod) {
	n.t.Helper()
	if files := n.files(p.id); len(files) > 0 {
		n.t.Errorf("of pod %s is left: %q", p.id, files)
	}
	if rules := n.rules(); strings.Contains(rules, p.id) || strings.Contains(rules, n.portRule(p)) {
		n.t.Errorf("of pod %s are left:\n%s", p.id, rules)
	}
}

// files are those of the node that name a container, but for libcni's memory of
// the others.
func (n *node) files(id string) (found []string) {
	n.t.Helper()
	for _, pattern := range []string{n.cache + "/results/*", n.dir + "/old/*/*", n.dir + "/new/*/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				n.t.Fatal(err)
			}
			if strings.Contains(path, id) || strings.Contains(string(data), id) {
				found = append(found, path)
			}
		}
	}
	return found
}

// rules are those of the node's NAT.
func (n *node) rules() (text string) {
	n.t.Helper()
	n.inside(func() error {
		out, err := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
		text = string(out)
		return err
	})
	return text
}

// clean checks that nothing is left of any pod.
func (n *node) clean() {
	n.t.Helper()
	for _, dir := range []string{n.cache + "/results", n.dir + "/old/*", n.dir + "/new/*"} {
		paths, err := filepath.Glob(dir + "/*")
		if err != nil {
			n.t.Fatal(err)
		}
		for _, path := range paths {
			if base := filepath.Base(path); base != "lock" && !strings.HasPrefix(base, "last_reserved_ip") {
				n.t.Errorf("left: %s", path)
			}
		}
	}
	for line := range strings.Lines(n.rules()) {
		if strings.HasPrefix(line, ":CNI-") && !strings.HasPrefix(line, ":CNI-HOSTPORT-") {
			n.t.Errorf("left: %s", line)
		}
	}
}

// A whole migration and the way back, with pods that end in every state that
// began in another.
func TestNothingIsLeftOfPodsThatEndDuringAMigration(t *testing.T) {
	for name, names := range map[string][2]string{"two names": {"old", "new"}, "one name": {"cbr0", "cbr0"}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, names[0], names[1], "")
			var olds []pod
			for i := range 4 {
				olds = append(olds, n.pod(fmt.Sprintf("old%d", i), "default", 7000+i))
				n.start(olds[i], oldRange)
			}
			n.stop(olds[0])

			n.set(v1alpha1.RuntimeClosedToTarget)
			n.refuses("early")
			probe := n.pod("probe", "braid-migrate", 7100)
			n.start(probe, newRange)
			n.stop(olds[1])

			n.set(v1alpha1.RuntimeOpenToTarget)
			n.stop(olds[2])
			n.stop(olds[3])
			var news []pod
			for i := range 4 {
				news = append(news, n.pod(fmt.Sprintf("new%d", i), "default", 7200+i))
				n.start(news[i], newRange)
			}
			n.stop(news[0])

			n.set(v1alpha1.RuntimeTarget)
			n.stop(probe)
			n.stop(news[1])
			last := n.pod("newest", "default", 7300)
			n.start(last, newRange)

			n.set(v1alpha1.RuntimeClosedToSource)
			n.refuses("late")
			n.stop(news[2])
			n.set(v1alpha1.RuntimeOpenToSource)
			n.stop(news[3])
			n.stop(last)
			back := n.pod("back", "default", 7400)
			n.start(back, oldRange)
			n.set(v1alpha1.RuntimeSource)
			n.stop(back)
			n.clean()
		})
	}
}

// After a reboot the runtime takes down pods whose namespaces are no more. The
// reference bridge then leaves the rules of its ipMasq, with a gate or without.
func TestAPodWhoseNamespaceIsGoneIsTakenDown(t *testing.T) {
	n := newNode(t, "old", "new", "")
	conf, err := os.ReadFile(filepath.Join(n.conf.Dir, oldFile))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(n.conf.Dir, oldFile), strings.Replace(string(conf), `"ipMasq":true,`, "", 1), 0o600)
	p := n.pod("rebooted", "default", 7000)
	n.start(p, oldRange)
	n.set(v1alpha1.RuntimeOpenToTarget)
	p.netns = ""
	n.stop(p)
	n.clean()
}

// refuses checks that no pod of a namespace other than the probes' starts.
func (n *node) refuses(id string) {
	n.t.Helper()
	p := n.pod(id, "default", 7999)
	_, err := n.add(p)
	var refusal *types.Error
	if !errors.As(err, &refusal) || refusal.Code != types.ErrTryAgainLater || refusal.Msg != "please wait" {
		n.t.Errorf("%v", err)
	}
	n.stop(p) // as a runtime does after every ADD that fails
}

// hang passes the result on, and waits for its end once, when it is to DEL.
const hang = `
case $CNI_COMMAND in
ADD) sed -n 's/.*"prevResult":\(.*\),"type":"hang".*/\1/p' ;;
DEL) if mkdir %[1]s/hung 2>/dev/null; then echo > %[1]s/hangs; exec sleep 1000; fi ;;
esac`

func TestAShimThatIsKilledInTheMiddleOfADELIsAskedAgain(t *testing.T) {
	n := newNode(t, "old", "new", `{"type":"hang"},`)
	script(t, filepath.Join(n.dir, "bin"), "hang", fmt.Sprintf(hang, n.dir))
	if err := syscall.Mkfifo(filepath.Join(n.dir, "hangs"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := n.pod("killed", "default", 7000)
	n.start(p, oldRange)
	n.set(v1alpha1.RuntimeClosedToTarget)
	ctx, kill := context.WithTimeout(t.Context(), limit)
	defer kill()
	go func() {
		_, _ = os.ReadFile(filepath.Join(n.dir, "hangs")) // returns when it hangs
		kill()
	}()
	if err := n.del(ctx, p); err == nil || ctx.Err() != context.Canceled {
		t.Fatalf("%v, %v", err, ctx.Err())
	}
	if strings.Contains(n.rules(), n.portRule(p)) || len(n.files(p.id)) == 0 {
		t.Errorf("it was not killed in the middle: %q\n%s", n.files(p.id), n.rules())
	}
	n.stop(p)
	n.clean()
}

// The network that comes fails half way, as a runtime sees it: it sends DEL, and
// later ADD again.
func TestNothingIsLeftOfAnADDThatFailsHalfWay(t *testing.T) {
	n := newNode(t, "old", "new", "")
	n.conf.To.Conf = strings.TrimSuffix(n.conf.To.Conf, "]}") + `,{"type":"fails"}]}`
	script(t, filepath.Join(n.dir, "bin"), "fails", `[ $CNI_COMMAND = DEL ] || { echo '{"code":77,"msg":"no luck"}'; exit 1; }`)
	n.set(v1alpha1.RuntimeOpenToTarget)
	p := n.pod("unlucky", "default", 7000)
	_, err := n.add(p)
	var failure *types.Error
	if !errors.As(err, &failure) || failure.Code != 77 || !strings.Contains(failure.Details, "plugin fails of network new") {
		t.Fatal(err)
	}
	if len(n.files(p.id)) == 0 || !strings.Contains(n.rules(), n.portRule(p)) {
		t.Error("nothing was done before it failed")
	}
	n.stop(p)
	n.clean()
}

// A whole node restarts its pods at once.
func TestManyPodsEndAtOnceThroughTheGate(t *testing.T) {
	n := newNode(t, "old", "new", "")
	const many = 12
	var pods []pod
	for i := range many {
		pods = append(pods, n.pod(fmt.Sprintf("many%02d", i), "default", 7000+i))
		n.start(pods[i], oldRange)
	}
	n.set(v1alpha1.RuntimeOpenToTarget)
	errs := make(chan error)
	list := n.loaded()
	start := time.Now()
	for _, p := range pods {
		go func() {
			errs <- n.ns.Do(func() error { return n.cni.DelNetworkList(t.Context(), list, p.runtimeConf()) })
		}()
	}
	for range pods {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d pods taken down in %v", many, time.Since(start))
	for _, p := range pods {
		n.gone(p)
	}
	n.clean()
}
