package bridge_test

import (
	"testing"

	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/rtnl"
)

func BenchmarkAttachDetach(b *testing.B) {
	for _, sc := range []drivertest.Scenario{
		{Name: "l2", Keys: `"bridge":"braidbr0"`},
		{Name: "address", Keys: `"bridge":"braidbr0","isGateway":true`, IPAM: drivertest.OneIPv4},
	} {
		b.Run(sc.Name, func(b *testing.B) {
			drivertest.Bench(b, subject, sc, func(b *testing.B, w *drivertest.World, p drivertest.Pod) func() error {
				return barePort(b, w, p, sc.IPAM != "")
			})
		})
	}
}

// barePort makes and removes a port of a bridge, and nothing beside it.
func barePort(b *testing.B, w *drivertest.World, p drivertest.Pod, address bool) func() error {
	node, pod := drivertest.Handle(b, w.Node), drivertest.Handle(b, p.NS)
	br := must(node.AddBridge(rtnl.Bridge{New: rtnl.New{Name: "braidbr0", Up: true}}))(b)
	return func() error {
		port, err := node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "veth00000001"}, Peer: rtnl.New{Name: "net1"}, PeerNS: p.NS})
		if err != nil {
			return err
		}
		if err := node.SetMaster(port.Index, br.Index); err != nil {
			return err
		}
		if err := node.SetUp(port.Index); err != nil {
			return err
		}
		end, err := pod.Link("net1")
		if err != nil {
			return err
		}
		if address {
			if err := pod.AddAddr(end.Index, rtnl.Addr{Prefix: prefix("10.1.0.5/24")}); err != nil {
				return err
			}
		}
		if err := pod.SetUp(end.Index); err != nil {
			return err
		}
		return node.Del(port.Index)
	}
}
