package known

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/leftover"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile/profiletest"
	"braid.dev/braid/internal/netns"
)

// left are what CNIs leave on a node, as shell scripts in a namespace. Files are
// below $R.
var left = map[string]struct {
	side preflight.Side
	make string
}{
	"cilium": {preflight.Side{Network: "cilium", PodCIDRs: profiletest.Prefixes("172.20.0.0/16")}, `
iptables-nft-restore --noflush <<'E'
*nat
:CILIUM_POST_nat - [0:0]
:CILIUM_PRE_nat - [0:0]
:OLD_CILIUM_POST_nat - [0:0]
-I POSTROUTING -m comment --comment "cilium-feeder: CILIUM_POST_nat" -j CILIUM_POST_nat
-I PREROUTING -m comment --comment "cilium-feeder: CILIUM_PRE_nat" -j CILIUM_PRE_nat
-A CILIUM_POST_nat -s 172.20.0.0/24 ! -d 172.20.0.0/24 ! -o cilium_+ -m comment --comment "cilium masquerade non-cluster" -j MASQUERADE
-A CILIUM_POST_nat ! -s 172.20.0.0/24 ! -d 172.20.0.0/24 -o cilium_host -m comment --comment "cilium host->cluster masquerade" -j SNAT --to-source 172.20.0.139
COMMIT
*filter
:CILIUM_FORWARD - [0:0]
-I FORWARD -m comment --comment "cilium-feeder: CILIUM_FORWARD" -j CILIUM_FORWARD
-A CILIUM_FORWARD -o cilium_host -m comment --comment "cilium: any->cluster on cilium_host forward accept" -j ACCEPT
COMMIT
E
ip link add cilium_host type veth peer name cilium_net
ip link set cilium_host up; ip link set cilium_net up
ip addr add 172.20.0.139/32 dev cilium_host
ip route add 172.20.0.0/24 dev cilium_host proto kernel
ip route add 172.20.1.0/24 dev cilium_host
ip rule add fwmark 0x200/0xf00 lookup 2004 priority 9
ip rule add from all lookup local priority 100; ip rule del priority 0
ip route add local default dev lo table 2004
mkdir -p $R/run/cilium/state/7 $R/var/lib/cilium/bpf $R/etc/sysctl.d
echo x >$R/run/cilium/state/7/ep_config.h; echo x >$R/var/lib/cilium/bpf/x.h; echo x >$R/etc/sysctl.d/99-zzz-override_cilium.conf
mkdir -p $R/sys/fs/bpf/cilium/devices/eth0/links $R/sys/fs/bpf/tc/globals
echo x >$R/sys/fs/bpf/cilium/devices/eth0/links/cil_from_netdev; echo x >$R/sys/fs/bpf/tc/globals/cilium_ipcache
`},
	"calico": {preflight.Side{Network: "k8s-pod-network", PodCIDRs: profiletest.Prefixes("192.168.0.0/16")}, `
iptables-nft-restore --noflush <<'E'
*filter
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-fw-cali1 - [0:0]
-I FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -i cali+ -j cali-from-wl-dispatch
-A cali-from-wl-dispatch -i cali1 -g cali-fw-cali1
-A cali-fw-cali1 -j DROP
COMMIT
*nat
:cali-nat-outgoing - [0:0]
:cali-POSTROUTING - [0:0]
-I POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
-A cali-POSTROUTING -j cali-nat-outgoing
-A cali-nat-outgoing -s 192.168.0.0/16 ! -d 192.168.0.0/16 -j MASQUERADE
COMMIT
E
ip route add blackhole 192.168.1.0/26 proto 80
ip route add 192.168.7.0/26 via 10.99.0.2 proto bird
mkdir -p $R/run/calico $R/var/lib/calico $R/etc/cni/net.d
echo node1 >$R/var/lib/calico/nodename; echo x >$R/etc/cni/net.d/calico-kubeconfig
`},
	"kindnet": {preflight.Side{Network: "kindnet", Plugins: []string{"ptp", "portmap"}, PodCIDRs: profiletest.Prefixes("10.244.0.0/16")}, `
nft 'table inet kindnet-ipmasq { chain postrouting { type nat hook postrouting priority 90; ip saddr 10.244.0.0/16 masquerade; }; }'
iptables-nft-restore --noflush <<'E'
*nat
:KIND-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "kind-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom KIND-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j KIND-MASQ-AGENT
-A KIND-MASQ-AGENT -d 10.244.0.0/16 -j RETURN
-A KIND-MASQ-AGENT -j MASQUERADE
COMMIT
E
ip route add 10.244.1.0/24 via 10.99.0.2
mkdir -p $R/run/cni-ipam-state/kindnet
printf 'dead\r\neth0' >$R/run/cni-ipam-state/kindnet/10.244.0.2; touch $R/run/cni-ipam-state/kindnet/lock
`},
	"bridge": {preflight.Side{Network: "pods", ConfFile: "20-pods.conflist", Links: []string{"cni0"}, Plugins: []string{"bridge", "firewall"}, PodCIDRs: profiletest.Prefixes("10.200.0.0/22")}, `
iptables-nft-restore --noflush <<'E'
*nat
:CNI-0123456789abcdef01234567 - [0:0]
-A POSTROUTING -s 10.200.0.5/32 -m comment --comment "name: \"pods\" id: \"dead\"" -j CNI-0123456789abcdef01234567
-A CNI-0123456789abcdef01234567 -d 10.200.0.0/24 -m comment --comment "name: \"pods\" id: \"dead\"" -j ACCEPT
-A CNI-0123456789abcdef01234567 ! -d 224.0.0.0/4 -m comment --comment "name: \"pods\" id: \"dead\"" -j MASQUERADE
COMMIT
*filter
:CNI-FORWARD - [0:0]
:CNI-ADMIN - [0:0]
-I FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-A CNI-FORWARD -d 10.200.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.200.0.5/32 -j ACCEPT
COMMIT
E
ip link add cni0 type bridge; ip addr add 10.200.0.1/24 dev cni0; ip link set cni0 up
mkdir -p $R/var/lib/cni/networks/pods; printf 'dead\neth0' >$R/var/lib/cni/networks/pods/10.200.0.5
`},
}

// everybodys is what is there before, and must be there after.
const everybodys = `
ip link set lo up
ip link add br-up type bridge; ip addr add 10.99.0.1/24 dev br-up; ip link set br-up up
iptables-nft-restore --noflush <<'E'
*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
COMMIT
*filter
:MINE - [0:0]
-A INPUT -j ACCEPT
-A FORWARD -j MINE
-A OUTPUT -j ACCEPT
COMMIT
E
ip route add 10.60.0.0/16 via 10.99.0.9
mkdir -p $R/etc/cni/net.d $R/run $R/var/lib/cni/networks $R/sys/fs/bpf/tc/globals $R/etc/sysctl.d
echo '{}' >$R/etc/cni/net.d/01-other.conflist
echo x >$R/sys/fs/bpf/tc/globals/others_map; echo x >$R/etc/sysctl.d/10-mine.conf
`

const show = `
iptables-nft-save | sed -e /^#/d -e 's/ \[.*//'; nft -s list ruleset; ip rule; ip -4 route show table all; ip -br link | awk '{print $1}'
cd $R; find . -type f | sort | xargs md5sum
`

type shell struct {
	ns   *netns.NS
	root string
}

func (s shell) Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	var out, problem bytes.Buffer
	err := s.ns.Do(func() error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "R="+s.root)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &problem
		return cmd.Run()
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(problem.String()))
	}
	return out.Bytes(), nil
}

func (s shell) script(t *testing.T, text string) string {
	t.Helper()
	out, err := s.Run(t.Context(), []byte("set -e\n"+text), "sh")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestWhatACNILeavesIsRemovedAndNothingElse(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge, kerneltest.Veth, kerneltest.NftInet)
	for name, world := range left {
		t.Run(name, func(t *testing.T) {
			s := shell{kerneltest.NewNS(t), t.TempDir()}
			s.script(t, everybodys)
			before := s.script(t, show)
			s.script(t, world.make)
			if s.script(t, show) == before {
				t.Fatal("the world has nothing left in it")
			}
			p, err := Profile(name)
			if err != nil {
				t.Fatal(err)
			}
			node := leftover.Node{NS: s.ns, Root: s.root, Host: s}
			audit, err := leftover.Audit(t.Context(), node, p.Leftovers(world.side), leftover.InUse{})
			if err != nil {
				t.Fatal(err)
			}
			r, err := leftover.Clean(t.Context(), node, p.Leftovers(world.side), leftover.InUse{})
			if err != nil || len(r.Items) > 0 || len(r.Changed) > 0 || r.Cleaned != len(audit.Items) {
				t.Errorf("cleaned %d of %d, left %+v, changed %v: %v", r.Cleaned, len(audit.Items), r.Items, r.Changed, err)
			}
			if after := s.script(t, show); after != before {
				t.Error(cmp.Diff(before, after))
			}
			if _, err := os.Stat(filepath.Join(s.root, "etc/cni/net.d/01-other.conflist")); err != nil {
				t.Error(err)
			}
		})
	}
}
