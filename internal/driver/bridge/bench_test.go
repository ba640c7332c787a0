package bridge_test

import (
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

// BenchmarkAttachDetach compares the driver with the reference plugin run as a
// program, as a runtime would, and with the netlink requests alone that every
// way to build a port must make.
func BenchmarkAttachDetach(b *testing.B) {
	kerneltest.Need(b, kerneltest.Veth, kerneltest.Bridge)
	conf := scenario{keys: `"bridge":"braidbr0"`}.conf()
	withIP := scenario{keys: `"bridge":"braidbr0","isGateway":true`, ipam: oneIPv4}.conf()
	for name, conf := range map[string]string{"l2": conf, "address": withIP} {
		b.Run(name+"/driver", func(b *testing.B) {
			w := newWorld(b)
			s := w.spec(conf)
			for b.Loop() {
				res, err := w.d.Attach(b.Context(), s)
				try(b, err)
				s.Prev = res
				try(b, w.d.Detach(b.Context(), s))
				s.Prev = nil
			}
		})
		b.Run(name+"/reference", func(b *testing.B) {
			w := newWorld(b)
			ref, s := newReference(b, w), w.spec(conf)
			for b.Loop() {
				_, err := ref.run(b.Context(), "ADD", s)
				try(b, err)
				_, err = ref.run(b.Context(), "DEL", s)
				try(b, err)
			}
		})
	}
	b.Run("netlink", func(b *testing.B) {
		w := newWorld(b)
		node := w.node(b)
		br := must(node.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0", Up: true}}))(b)
		for b.Loop() {
			port := must(node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "veth00000001"}, Peer: rtnl.New{Name: "net1"}, PeerNS: w.pod}))(b)
			try(b, node.SetMaster(port.Index, br.Index))
			try(b, node.SetUp(port.Index))
			try(b, node.Del(port.Index))
		}
	})
}
