// Package drivertest is the conformance suite of the driver contract: what
// every driver must do, whatever it builds.
//
// A driver's tests describe the driver as a Subject and run the suite:
//
//	func TestMain(m *testing.M)       { drivertest.Main(m, subject) }
//	func TestConformance(t *testing.T) { drivertest.Run(t, subject) }
//
// Golden, SameAsReference and Bench run a table of scenarios through the same
// worlds: against golden files, against the reference plugin, and against time.
package drivertest

import (
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Subject is a driver under test.
type Subject struct {
	// Type is the plugin type.
	Type string
	// Needs are the features of the kernel without which no test runs.
	Needs []kerneltest.Feature
	// New returns the driver for the node whose network namespace is node.
	New func(node *netns.NS) driver.Driver
	// Node prepares a fresh node: the links that the configurations name. Nil
	// prepares nothing.
	Node func(t testing.TB, node *netns.NS)
	// Prev makes a driver one that stands behind others in its chain: it makes
	// in a fresh container what those would have made, and returns their result.
	// The suite then expects that Attach and Detach leave it alone.
	Prev func(t testing.TB, w *World, p Pod) *current.Result
	// Variants are configurations that every test of the suite's core runs
	// with. The suite adds cniVersion, name, type and ipam.
	Variants []Variant
	// Addresses says what the driver does with ipam.
	Addresses Addresses
	// MAC, MTU: the driver takes a requested MAC; the key "mtu".
	MAC, MTU bool
	// Shared: the first attachment makes things on the node that stay, because
	// they belong to all containers of the network. Otherwise a detached node
	// is as it was.
	Shared bool
	// Exclusive: one container at a time can have the attachment.
	Exclusive bool
	// Observe adds to what rtnl.Observe says of a world: nftables rules, qdiscs,
	// sysctls. Nil adds nothing.
	Observe func(t testing.TB, w *World, p Pod) string
	// Tampering is what the driver's Check must notice beside what the suite
	// itself does to a link with an address.
	Tampering []Tampering
	// IfName is the interface name, "net1" when empty.
	IfName string
	// Except names tests of the suite that mean nothing for this driver, each
	// with the reason.
	Except map[string]string
}

// Variant is one configuration of a Subject.
type Variant struct {
	Name string
	// Keys are members of the configuration's JSON object: `"master":"up0"`.
	Keys string
	// Needs are features of the kernel beside those of the Subject.
	Needs []kerneltest.Feature
}

// Addresses says what a driver does with ipam.
type Addresses int

// What a driver does with ipam.
const (
	Optional Addresses = iota // without ipam the interface is L2 only
	Required                  // without ipam it is refused
	Never                     // the driver has no use for ipam
)

// Tampering is a change behind the driver's back that Check must notice.
type Tampering struct {
	Name string
	// Keys replace those of the Subject's first variant unless empty.
	Keys   string
	Change func(t testing.TB, w *World, p Pod)
	// Want is a part of what Check says.
	Want string
}

func (s Subject) ifName() string {
	if s.IfName != "" {
		return s.IfName
	}
	return "net1"
}

// Parent returns a Subject.Node that makes a link of that name, up and with a
// carrier, for links that stand on another one. It is one end of a veth, which
// every kernel has; the other end, NAME-far, is in the node too.
func Parent(name string) func(testing.TB, *netns.NS) {
	return func(t testing.TB, node *netns.NS) {
		t.Helper()
		h := Handle(t, node)
		_, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: name, Up: true}, Peer: rtnl.New{Name: name + "-far"}})
		try(t, err)
		far, err := h.Link(name + "-far")
		try(t, err)
		try(t, h.SetUp(far.Index))
	}
}

// Handle opens a netlink handle that the test closes.
func Handle(t testing.TB, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h, err := rtnl.Open(ns)
	try(t, err)
	t.Cleanup(h.Close)
	return h
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
