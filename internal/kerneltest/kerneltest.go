// Package kerneltest tells tests what the kernel under them can do, and gives
// them namespaces to do it in.
//
// A test names what it needs:
//
//	kerneltest.Need(t, kerneltest.BridgeVLAN)
//	ns := kerneltest.NewNS(t)
//
// Need tries the feature in a throw-away namespace: versions and module lists
// are never asked. The environment variable BRAID_TIER says where the tests
// are meant to run. What that tier promises must work, or the test fails; what
// it does not promise and does not work skips the test. So a tier whose tests
// pass has run all of them that it must.
package kerneltest

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"braid.dev/braid/internal/netns"
)

// Feature is something that a kernel, with the rights of the test, may be able
// to do. The names are those of the skip messages.
type Feature string

// Features of a kernel.
const (
	NetNS          Feature = "network namespaces" // includes being root
	Veth           Feature = "veth"
	Bridge         Feature = "bridge"
	BridgeVLAN     Feature = "bridge VLAN filtering"
	Tap            Feature = "tap"
	Macvlan        Feature = "macvlan"
	IPVlan         Feature = "ipvlan"
	VLAN           Feature = "802.1Q"
	VXLAN          Feature = "vxlan"
	Geneve         Feature = "geneve"
	Dummy          Feature = "dummy"
	VRF            Feature = "vrf"
	Shaping        Feature = "traffic shaping" // ifb, tbf, and filters on ingress
	NftInet        Feature = "nftables inet"
	NftBridge      Feature = "nftables bridge"
	IptablesLegacy Feature = "iptables-legacy"
	UML            Feature = "user-mode-linux" // can boot guests (internal/guest)
	QEMU           Feature = "QEMU"            // the same with Debian's cloud kernel
)

// Tier is a place where tests run.
type Tier string

// Tiers, the values of BRAID_TIER.
const (
	Any     Tier = ""        // BRAID_TIER is not set: whatever works is tested
	Unit    Tier = "unit"    // any machine, any user: nothing of the kernel is even tried
	Net     Tier = "net"     // root on the machine's own kernel
	Guest   Tier = "guest"   // Debian's user-mode-linux, by internal/guest/exec
	Cluster Tier = "cluster" // root on the machine's own kernel, with a lab
)

// promises is what has to work in each tier.
var promises = map[Tier][]Feature{
	Any:     {},
	Unit:    {},
	Net:     {NetNS, Veth, Bridge, Tap, Macvlan, Shaping, NftInet, UML, QEMU},
	Cluster: {NetNS, Veth, Bridge, Tap, UML, QEMU},
	Guest: {
		NetNS, Veth, Bridge, BridgeVLAN, Tap, Macvlan, IPVlan, VLAN, VXLAN, Geneve, Dummy, VRF, Shaping,
		NftBridge, IptablesLegacy,
	},
}

// EnvTier is the environment variable that names the tier.
const EnvTier = "BRAID_TIER"

// Need skips the test when the kernel cannot do one of the features, or fails
// it when the tier promises that it can.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	tier, err := currentTier(os.Getenv(EnvTier))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range features {
		try, ok := probes[f]
		if !ok {
			t.Fatalf("kerneltest: unknown feature %q", f)
		}
		err := errUnit
		if tier != Unit {
			err = try()
		}
		switch {
		case err == nil:
		case slices.Contains(promises[tier], f):
			t.Fatal(&Missing{Feature: f, Tier: tier, Promised: true, Err: err})
		default:
			t.Skip(&Missing{Feature: f, Tier: tier, Err: err})
		}
	}
}

// Missing says that a feature does not work here.
type Missing struct {
	Feature Feature
	Tier    Tier
	// Promised is set when the tier is broken, rather than the feature optional.
	Promised bool
	Err      error
}

func (m *Missing) Error() string {
	if m.Promised {
		return fmt.Sprintf("missing feature: %s, which tier %s must have: %v", m.Feature, m.Tier, m.Err)
	}
	if m.Tier == Any {
		return fmt.Sprintf("missing feature: %s: %v", m.Feature, m.Err)
	}
	return fmt.Sprintf("missing feature: %s, which tier %s may lack: %v", m.Feature, m.Tier, m.Err)
}

// Unwrap returns what the kernel said.
func (m *Missing) Unwrap() error { return m.Err }

// errUnit keeps tests of the kernel from running in two tiers.
var errUnit = errors.New("tests of the kernel run in other tiers")

func currentTier(env string) (Tier, error) {
	if _, ok := promises[Tier(env)]; !ok {
		return "", fmt.Errorf("%s=%s: unknown tier", EnvTier, env)
	}
	return Tier(env), nil
}

// NewNS returns a network namespace of the test's own, which has only a
// loopback link that is down. It disappears with the test, and with it all
// links that are in it by then.
func NewNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, _ := NewNamedNS(t)
	return ns
}

// NewNamedNS is NewNS for a test that also needs the path of the namespace.
func NewNamedNS(t testing.TB) (ns *netns.NS, path string) {
	t.Helper()
	Need(t, NetNS)
	name := freshName()
	ns, err := netns.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return ns, netns.Path(name)
}

// freshName tells whose namespace it is, should one be left over.
func freshName() string {
	b := make([]byte, 4)
	rand.Read(b) // never fails
	return fmt.Sprintf("braid-test-%d-%s", os.Getpid(), hex.EncodeToString(b))
}
