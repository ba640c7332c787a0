package firewall_test

import (
	"fmt"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/firewall"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

var subject = drivertest.Subject{
	Type:  "firewall",
	Needs: []kerneltest.Feature{kerneltest.Veth, kerneltest.NftInet},
	New:   func(node *netns.NS) driver.Driver { return firewall.New(firewall.Config{HostNS: node}) },
	// The driver looks at the result, and at no link.
	Prev: func(_ testing.TB, _ *drivertest.World, p drivertest.Pod) *current.Result {
		one := 1
		return &current.Result{
			CNIVersion: current.ImplementedSpecVersion,
			Interfaces: []*current.Interface{{Name: "braidbr0"}, {Name: "net1", Sandbox: p.Path}},
			IPs: []*current.IPConfig{
				{Interface: &one, Address: ipNet(fmt.Sprintf("10.1.0.%d/24", p.N+5))},
				{Interface: &one, Address: ipNet(fmt.Sprintf("fd00:1::%x/64", p.N+5))},
			},
		}
	},
	Variants: []drivertest.Variant{
		{Name: "open"},
		{Name: "own chain", Keys: `"iptablesAdminChainName":"OWN","backend":"nftables"`},
	},
	Addresses: drivertest.Never,
	Shared:    true,
	Observe: func(t testing.TB, w *drivertest.World, _ drivertest.Pod) string {
		out, err := inNode{w.Node}.Exec(t.Context(), driver.Program{Name: "nft", Args: []string{"-s", "list", "ruleset"}})
		try(t, err)
		return string(out)
	},
}

func TestMain(m *testing.M)        { drivertest.Main(m, subject) }
func TestConformance(t *testing.T) { drivertest.Run(t, subject) }
