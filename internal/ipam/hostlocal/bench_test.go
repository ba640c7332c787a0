package hostlocal_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"braid.dev/braid/internal/ipam/hostlocal"
	"braid.dev/braid/internal/refplugin"
)

// BenchmarkAddDel compares an ADD followed by its DEL with the reference
// program, next to others that hold addresses in the same network.
func BenchmarkAddDel(b *testing.B) {
	for _, others := range []int{0, 250, 1000} {
		fill := func(b *testing.B) *node {
			n := &node{TB: b, dir: b.TempDir(), plugin: hostlocal.New(hostlocal.Config{})}
			dir := filepath.Join(n.dir, "vlan2001")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			for i := range others {
				name := filepath.Join(dir, fmt.Sprintf("10.0.%d.%d", i/250, 2+i%250))
				if err := os.WriteFile(name, fmt.Appendf(nil, "other-%d\r\nnet1", i), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			return n
		}
		b.Run(fmt.Sprintf("braid/%d", others), func(b *testing.B) {
			n := fill(b)
			text := `{"subnet":"10.0.0.0/16","dataDir":"` + n.dir + `"}`
			for b.Loop() {
				if _, err := n.plugin.Add(b.Context(), n.request("c1", text, "")); err != nil {
					b.Fatal(err)
				}
				n.del("c1", text)
			}
		})
		b.Run(fmt.Sprintf("reference/%d", others), func(b *testing.B) {
			n := fill(b)
			dir := refplugin.Dir(b, "host-local")
			c := withDataDir(b, conf(b, `{"subnet":"10.0.0.0/16"}`), n.dir)
			for b.Loop() {
				for _, command := range []string{"ADD", "DEL"} {
					if _, err := refplugin.Run(context.Background(), dir, "host-local", refplugin.Call{Command: command, ContainerID: "c1", IfName: "net1", Conf: c}); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
