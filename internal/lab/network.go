package lab

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// hostLinks are the links of a lab outside of its guests: a bridge for the
// management network, on which the control plane has an address, and a bridge
// that is the trunk. The trunk is a wire: it passes frames of every VLAN, and
// itself says nothing.
func hostLinks() string {
	return fmt.Sprintf(`link set lo up
link add %[1]s type bridge
addr add %[2]s/%[3]d dev %[1]s
link set %[1]s up
link add %[4]s type bridge mcast_snooping 0
link set %[4]s addrgenmode none
link set %[4]s up
`, mgmtBridge, mgmtHost, mgmtNet.Bits(), trunk)
}

func wireHost(ctx context.Context, p paths) error { return ipBatch(ctx, p, hostLinks()) }

// routePods lets the API server, and whoever else is in the lab's namespace,
// reach pods by their addresses.
func (b *builder) routePods(ctx context.Context) error {
	onCilium, err := b.ciliumRoutes(ctx)
	if err != nil {
		return fmt.Errorf("routes to pods on Cilium: %w", err)
	}
	others, err := b.unusedPodCIDRs(ctx)
	if err != nil {
		return fmt.Errorf("routes to pods in the nodes' podCIDRs: %w", err)
	}
	var s strings.Builder
	for _, n := range slices.Concat(b.subnets.all, onCilium, others) {
		fmt.Fprintf(&s, "route replace %s via %s\n", n.Subnet, n.Node.Addr)
	}
	return ipBatch(ctx, b.paths, s.String())
}

// unusedPodCIDRs are the nodes' podCIDRs where the default network has ranges of
// its own: another one may come to use them.
func (b *builder) unusedPodCIDRs(ctx context.Context) ([]nodeSubnet, error) {
	if !b.cfg.PodNet.IsValid() {
		return nil, nil
	}
	var list []nodeSubnet
	for _, n := range b.cfg.nodes() {
		subnet, err := b.api.podCIDR(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		list = append(list, nodeSubnet{n, subnet})
	}
	return list, nil
}

// ipBatch runs lines of ip(8) in the lab's namespace, in one process.
func ipBatch(ctx context.Context, p paths, lines string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", p.netnsName(), "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("links of the lab: ip: %w: %s", err, tail(out, 5))
	}
	return nil
}

// externalMachine is the machine of the host on the trunk. It answers an ARP
// request only on the link that has the address: without that, every VLAN
// would seem to contain all of its addresses.
var externalMachine = machine{
	memoryMiB: 192,
	modules:   []string{"8021q"},
	sysctls: map[string]string{
		"net.ipv4.conf.all.arp_ignore":   "1",
		"net.ipv4.conf.all.arp_announce": "2",
	},
}

// startExternal boots the host on the trunk that is no node, and gives it its
// addresses. It is a guest, because the kernel of the machine may not know
// 802.1Q.
func (b *builder) startExternal(ctx context.Context, n node) error {
	g, err := b.boot(ctx, n, externalMachine)
	if err != nil {
		return err
	}
	return wrap("VLAN links", script(ctx, g, externalLinks()))
}

// externalLinks makes one link per VLAN. Each has a MAC address of its own, so
// that an answer shows which VLAN it came from.
func externalLinks() string {
	var s strings.Builder
	s.WriteString("ip -batch - <<EOF\nlink set " + TrunkNIC + " up\n")
	for _, v := range ExternalVLANs {
		link := fmt.Sprintf("vlan%d", v.ID)
		fmt.Fprintf(&s, "link add link %s name %s address %s type vlan id %d\naddr add %s dev %s\nlink set %s up\n",
			TrunkNIC, link, v.MAC(), v.ID, v.Addr, link, link)
	}
	s.WriteString("EOF\n")
	return s.String()
}
