package known

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile/profiletest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
)

// runtime attaches containers by libcni and the real reference plugins.
type runtime struct {
	t    *testing.T
	s    shell
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func newRuntime(t *testing.T, s shell, backend string) *runtime {
	t.Helper()
	dir := refplugin.Dir(t, "bridge", "host-local", "portmap", "firewall")
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": %q,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.200.0.0/24"}]]}},
  {"type": "firewall", "backend": "iptables"},
  {"type": "portmap", "backend": %q, "capabilities": {"portMappings": true}}]}`, backend, s.root+"/var/lib/cni/networks", backend)
	list, err := libcni.NetworkConfFromBytes([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	return &runtime{t, s, libcni.NewCNIConfigWithCacheDir([]string{dir}, s.root+"/var/lib/cni", nil), list}
}

func (r *runtime) of(id, path string, port int) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: path, IfName: "eth0", CapabilityArgs: map[string]any{
		"portMappings": []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"}},
	}}
}

func (r *runtime) add(rc *libcni.RuntimeConf) {
	r.t.Helper()
	if err := r.s.ns.Do(func() error { _, err := r.cni.AddNetworkList(r.t.Context(), r.list, rc); return err }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *runtime) check(rc *libcni.RuntimeConf) error {
	return r.s.ns.Do(func() error { return r.cni.CheckNetworkList(r.t.Context(), r.list, rc) })
}

// A container whose end the plugins never heard of, beside one that lives: what
// the first had goes, and the second's own plugins find all of theirs in place.
// When the second is gone too, so is everything.
func TestRealPluginsRecordsOfTheDeadGoAndTheLivingKeepTheirs(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge, kerneltest.Veth, kerneltest.NftInet)
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			s := shell{kerneltest.NewNS(t), t.TempDir()}
			s.script(t, everybodys)
			before := s.script(t, show)
			r := newRuntime(t, s, backend)
			names := map[string]string{}
			confs := map[string]*libcni.RuntimeConf{}
			for i, id := range []string{"deaddeaddead", "livelivelive"} {
				names[id] = fmt.Sprintf("braid-known-%s-%d", backend[:3], i)
				name := names[id]
				netns.Delete(name) // of a run that was killed
				ns, err := netns.New(name)
				if err != nil {
					t.Fatal(err)
				}
				ns.Close()
				t.Cleanup(func() { netns.Delete(name) })
				confs[id] = r.of(id, netns.Path(names[id]), 8080+i)
				r.add(confs[id])
			}
			vanish := func(id string) {
				if err := netns.Delete(names[id]); err != nil {
					t.Fatal(err)
				}
				awaitPorts(t, s, len(names)-1)
				delete(names, id)
			}
			vanish("deaddeaddead")

			side := preflight.Side{Network: "pods", ConfFile: "20-pods.conflist", Links: []string{"cni0"},
				Plugins: []string{"bridge", "host-local", "firewall", "portmap"}, PodCIDRs: profiletest.Prefixes("10.200.0.0/24")}
			p, err := Profile("bridge")
			if err != nil {
				t.Fatal(err)
			}
			node := leftover.Node{NS: s.ns, Root: s.root, Host: s}
			use := leftover.InUse{Sandboxes: []facts.Sandbox{{ID: "livelivelive", Namespace: "default", Pod: "web-0", Ready: true, IPs: []string{"10.200.0.3"}}}}
			report, err := leftover.Clean(t.Context(), node, p.Leftovers(side), use)
			if err != nil || report.Cleaned == 0 || len(report.Changed) > 0 {
				t.Errorf("%+v, %v", report, err)
			}
			if text := s.script(t, show+"\ngrep -r . $R/var || true\n"); theDead.MatchString(text) {
				t.Errorf("the dead container's are still there:\n%s", text)
			}
			if err := r.check(confs["livelivelive"]); err != nil {
				t.Errorf("the living container's plugins: %v", err)
			}

			vanish("livelivelive")
			report, err = leftover.Clean(t.Context(), node, p.Leftovers(side), leftover.InUse{})
			if err != nil || len(report.Items) > 0 || len(report.Changed) > 0 {
				t.Errorf("%+v, %v", report, err)
			}
			if after := s.script(t, show); after != before {
				t.Error(cmp.Diff(before, after))
			}
		})
	}
}

var theDead = regexp.MustCompile(`deaddeaddead|10\.200\.0\.2\b`)

// awaitPorts waits until the bridge has so many ports: the kernel removes a
// namespace, and the links in it, after its last user is gone, and has no event
// for it in this namespace but the links' own.
func awaitPorts(t *testing.T, s shell, n int) {
	t.Helper()
	for {
		text := s.script(t, "ip -o link show master cni0 2>/dev/null | wc -l")
		if strings.TrimSpace(text) == fmt.Sprint(n) {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("the bridge has %s ports, not %d", strings.TrimSpace(text), n)
		default:
		}
	}
}
