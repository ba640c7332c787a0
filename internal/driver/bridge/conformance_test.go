package bridge_test

import (
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

var subject = drivertest.Subject{
	Type:  "bridge",
	Needs: []kerneltest.Feature{kerneltest.Veth, kerneltest.Bridge},
	New:   func(node *netns.NS) driver.Driver { return bridge.New(bridge.Config{HostNS: node}) },
	Variants: []drivertest.Variant{
		{Name: "plain", Keys: `"bridge":"braidbr0"`},
		{Name: "gateway", Keys: `"bridge":"braidbr0","isGateway":true,"isDefaultGateway":false,"hairpinMode":true`},
		{Name: "vlan", Keys: `"bridge":"braidbr0","vlan":2001`, Needs: []kerneltest.Feature{kerneltest.BridgeVLAN}},
		{Name: "masquerade and spoof check", Needs: []kerneltest.Feature{kerneltest.NftInet, kerneltest.NftBridge},
			Keys: `"bridge":"braidbr0","isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","macspoofchk":true`},
	},
	MAC: true, MTU: true,
	Shared:  true,
	Observe: rulesInForce,
}

// rulesInForce are the chains that have rules: empty ones stay.
func rulesInForce(t testing.TB, w *drivertest.World, _ drivertest.Pod) string {
	if inGuest() {
		return "" // its kernel cannot even list them all
	}
	var b strings.Builder
	for line := range strings.Lines(nftRules(t, w.Node)) {
		if !strings.Contains(line, ": 0 rules") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }
