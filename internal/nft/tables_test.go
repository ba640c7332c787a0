package nft_test

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/nft"
)

func run(t *testing.T, ns *netns.NS, script string) string {
	t.Helper()
	var out bytes.Buffer
	err := ns.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(script), &out, &out
		return cmd.Run()
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return out.String()
}

func table(t *testing.T, ns *netns.NS, name string) nft.Table {
	t.Helper()
	tables, err := nft.Tables(ns)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(tables, func(t nft.Table) bool { return t.Name == name })
	if i < 0 {
		return nft.Table{}
	}
	return tables[i]
}

const hostPorts = `table ip cni_hostport {
 set s { type ipv4_addr; }
 chain hostports {
  tcp dport 8080 dnat to 10.243.0.7:80 comment "dead"
  ip daddr 192.0.2.1 udp dport 53 counter dnat to 10.243.0.9:53 comment "living"
  counter
 }
}
table ip6 cni_hostport {
 chain hostports {
  tcp dport 8080 dnat to [fd43::7]:80 comment "dead"
 }
}
`

func TestATableIsReadAsFarAsItCanBeCompared(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.NftInet)
	ns := kerneltest.NewNS(t)
	if tables, err := nft.Tables(ns); err != nil || len(tables) != 0 {
		t.Errorf("a fresh namespace: %v, %v", tables, err)
	}
	run(t, ns, hostPorts)
	first := table(t, ns, "cni_hostport")
	if first.Family != "ip" || first.Rules != 3 || len(first.Marked) != 2 || !slices.Equal(first.Chains, []string{"hostports"}) {
		t.Fatalf("%+v", first)
	}
	var seen []string
	for _, m := range first.Marked {
		for _, a := range m.Addrs {
			seen = append(seen, m.Comment+" "+a.String())
		}
	}
	if !slices.Equal(seen, []string{"dead 10.243.0.7", "living 192.0.2.1", "living 10.243.0.9"}) {
		t.Errorf("marked %q", seen)
	}
	run(t, ns, "add element ip cni_hostport s { 10.0.0.1 }")
	if again := table(t, ns, "cni_hostport"); again.Digest != first.Digest {
		t.Error("an element of a set changes the digest")
	}
	run(t, ns, "add rule ip cni_hostport hostports drop")
	if again := table(t, ns, "cni_hostport"); again.Digest == first.Digest {
		t.Error("a rule does not change the digest")
	}
}

func TestOneMarkedRuleIsRemoved(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.NftInet)
	ns := kerneltest.NewNS(t)
	run(t, ns, hostPorts)
	before := table(t, ns, "cni_hostport")
	for range 2 { // removing what is gone succeeds
		if err := nft.DeleteMarked(ns, before.Marked[0]); err != nil {
			t.Fatal(err)
		}
	}
	after := table(t, ns, "cni_hostport")
	if after.Rules != 2 || len(after.Marked) != 1 || after.Marked[0].Comment != "living" {
		t.Errorf("%+v", after)
	}
}

func TestATableIsRemovedByFamilyAndName(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.NftInet)
	ns := kerneltest.NewNS(t)
	run(t, ns, hostPorts)
	for range 2 {
		if err := nft.DeleteTable(ns, "ip", "cni_hostport"); err != nil {
			t.Fatal(err)
		}
	}
	if left := table(t, ns, "cni_hostport"); left.Family != "ip6" {
		t.Errorf("%+v", left)
	}
}
