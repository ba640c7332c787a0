package daemon

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNetworksThatMultusAttachedAreRemoved: a pod of before the switch is
// deleted after it, and none of its networks may stay.
func TestNetworksThatMultusAttachedAreRemoved(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, func(c *Config) { c.MultusCacheDir = dir })
	remember := func(file, id, ifName, conf string) {
		t.Helper()
		text := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":%q,"ifName":%q,"networkName":"lab",
			"cniArgs":[["IgnoreUnknown","true"],["K8S_POD_NAME","old"],["IP","10.0.0.2"]],"capabilityArgs":{"ips":["10.0.0.2"]},
			"result":{"cniVersion":"0.4.0","interfaces":[{"name":%[3]q,"sandbox":"/x"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.2/24"}]}}`,
			id, base64.StdEncoding.EncodeToString([]byte(conf)), ifName)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const list = `{"cniVersion":"0.4.0","name":"lab","plugins":[{"type":"fake","capabilities":{"ips":true}}]}`
	remember("cbr0-old-eth0", "old", "eth0", list) // its default network is in the conf dir
	remember("lab-old-net1", "old", "net1", list)
	remember("lab-old-net10", "old", "net10", `{"cniVersion":"0.3.1","name":"lab","type":"fake"}`)
	remember("lab-old-net2", "old", "net2", list)
	remember("lab-old-net3", "old", "net3", `{"type":`)
	remember("lab-of-old-ones-net1", "of-old-ones", "net1", list)
	if err := os.WriteFile(filepath.Join(dir, "lab-old-net4"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.set(func(_ *cluster, k *kernel) {
		for _, link := range []string{"old/eth0", "old/net1", "old/net2", "old/net10"} {
			k.links[link] = true
		}
	})
	n.ok("DEL", "old")
	if diff := cmp.Diff([]string{"old/net10", "old/net2", "old/net1", "old/eth0"}, n.kernel.takeDetached()); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	n.nothingLeft()
	for _, file := range []string{"lab-old-net3", "lab-old-net4"} {
		if !strings.Contains(n.log.String(), file) {
			t.Errorf("the log does not name %s", file)
		}
	}
}

func TestWithoutMultusNothingIsLookedUp(t *testing.T) {
	n := newNode(t, func(c *Config) { c.MultusCacheDir = filepath.Join(t.TempDir(), "none") })
	n.ok("DEL", "old")
	if strings.Contains(n.log.String(), "Multus") {
		t.Error(n.log.String())
	}
}
