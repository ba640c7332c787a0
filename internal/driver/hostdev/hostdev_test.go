package hostdev_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/hostdev"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

const deviceMAC = "02:00:00:00:0d:01"

var subject = drivertest.Subject{
	Type:  "host-device",
	Needs: []kerneltest.Feature{kerneltest.Veth},
	New:   func(node *netns.NS) driver.Driver { return hostdev.New(hostdev.Config{HostNS: node}) },
	Node:  device,
	Variants: []drivertest.Variant{
		{Name: "by name", Keys: `"device":"dev0"`},
		{Name: "by address", Keys: `"hwaddr":"` + deviceMAC + `"`},
	},
	Exclusive: true,
	Observe:   loans,
	Except: map[string]string{
		"DetachAfterTheNamespaceIsGone": "the kernel destroys the suite's virtual device with the namespace; TestDeviceOfANamespaceThatEnded… has others",
		"DetachWithoutNamespace":        "the device cannot be reached then",
	},
	Tampering: []drivertest.Tampering{{Name: "another device", Keys: `"device":"dev0"`, Want: "is not device dev0",
		Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
			h := drivertest.Handle(t, p.NS)
			l, err := h.Link("net1")
			try(t, err)
			try(t, h.SetAlias(l.Index, "dev7"))
		}}},
}

// device makes dev0, a virtual device with a carrier.
func device(t testing.TB, node *netns.NS) {
	t.Helper()
	h := drivertest.Handle(t, node)
	_, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "dev0", MAC: []byte{2, 0, 0, 0, 0xd, 1}}, Peer: rtnl.New{Name: "dev0-far"}})
	try(t, err)
	far, err := h.Link("dev0-far")
	try(t, err)
	try(t, h.SetUp(far.Index))
}

// loans tells what links remember of the node.
func loans(t testing.TB, w *drivertest.World, p drivertest.Pod) string {
	t.Helper()
	var b strings.Builder
	for _, ns := range []*netns.NS{w.Node, p.NS} {
		links, err := drivertest.Handle(t, ns).Links()
		try(t, err)
		for _, l := range links {
			if l.Alias != "" || len(l.AltNames) > 0 {
				fmt.Fprintf(&b, "%s alias %q, %d more names\n", l.Name, l.Alias, len(l.AltNames))
			}
		}
	}
	return b.String()
}

var scenarios = []drivertest.Scenario{
	{Name: "l2only", Keys: `"device":"dev0"`},
	{Name: "ipv4", Keys: `"device":"dev0"`, IPAM: drivertest.OneIPv4},
	{Name: "routes", Keys: `"device":"dev0"`, IPAM: drivertest.WithRoutes},
	{Name: "dual", Keys: `"device":"dev0"`, IPAM: drivertest.Dual},
	{Name: "dns", Keys: `"device":"dev0","dns":{"nameservers":["192.0.2.53"]}`, IPAM: drivertest.Dual},
	{Name: "hwaddr", Keys: `"hwaddr":"` + deviceMAC + `"`, IPAM: drivertest.OneIPv4},
	{Name: "device-goes-before-hwaddr", Keys: `"device":"dev0","hwaddr":"02:00:00:00:00:99"`},
	{Name: "name-of-the-device", Keys: `"device":"net1"`, Node: func(t testing.TB, node *netns.NS) {
		h := drivertest.Handle(t, node)
		l, err := h.Link("dev0")
		try(t, err)
		try(t, h.SetName(l.Index, "net1"))
	}},
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) { drivertest.Run(t, subject) }

func TestBuildsWhatTheConfigurationSays(t *testing.T) { drivertest.Golden(t, subject, scenarios) }

func TestSameAsTheReferencePlugin(t *testing.T) {
	if inGuest() {
		t.Skip("compared on the host's kernel in tier net; to start programs in a guest is slow")
	}
	s := subject
	s.Observe = nil // the reference makes no alternative name
	drivertest.SameAsReference(t, s, scenarios)
}

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	drivertest.SameRefusals(t, subject, `"device":""`, `"device":"none0"`, `"hwaddr":"zz"`, `"hwaddr":"02:00:00:00:00:99"`,
		`"kernelpath":"/tmp/net"`, `"kernelpath":"/sys/devices/none"`, `"pciBusID":"0000:ff:ff.7"`,
		`"runtimeConfig":{"deviceID":"none"}`, `"device":"lo"`)
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		keys, want string
		code       uint
	}{
		{`"mtu":1500`, "no device is named", types.ErrInvalidNetworkConfig},
		{`"hwaddr":"zz"`, "no hardware address", types.ErrInvalidNetworkConfig},
		{`"kernelpath":"/sys/devices/../../etc"`, "not below /sys/devices", types.ErrInvalidNetworkConfig},
		{`"pciBusID":"../../x"`, "no id of a device", types.ErrInvalidNetworkConfig},
		{`"runtimeConfig":{"deviceID":".."}`, "no id of a device", types.ErrInvalidNetworkConfig},
		{`"device":"none0"`, "device none0 is not there", types.ErrTryAgainLater},
		{`"pciBusID":"0000:ff:ff.7"`, "PCI device 0000:ff:ff.7 is not there", types.ErrTryAgainLater},
	} {
		w := drivertest.NewWorld(t, subject)
		_, err := w.Driver.Attach(t.Context(), w.Spec(w.Pod(t), drivertest.Scenario{Keys: tc.keys}.Conf("host-device")))
		drivertest.WantError(t, err, tc.code, tc.want)
	}
}

func byName() string { return drivertest.Scenario{Keys: `"device":"dev0"`}.Conf("host-device") }

func TestOneOfManyContainersGetsTheDevice(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	const n = 8
	var specs [n]driver.Spec
	for i := range n {
		specs[i] = w.Spec(w.Pod(t), byName())
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []driver.Spec
	for _, s := range specs {
		wg.Go(func() {
			res, err := w.Driver.Attach(context.Background(), s)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				s.Prev = res
				winners = append(winners, s)
				return
			}
			drivertest.WantError(t, err, types.ErrTryAgainLater, "another container has it")
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d containers have the device", len(winners))
	}
	try(t, w.Driver.Check(t.Context(), winners[0]))
	// The others' clean-up does not take it away.
	for _, s := range specs {
		if s.ContainerID != winners[0].ContainerID {
			try(t, w.Driver.Detach(t.Context(), s))
		}
	}
	try(t, w.Driver.Check(t.Context(), winners[0]))
	try(t, w.Driver.Detach(t.Context(), winners[0]))
	w.Attached(t, w.Spec(w.Pod(t), byName()))
}

// comesBack does what the kernel does with hardware when a namespace ends: it
// is in the node, down, under the name that the container had for it.
func comesBack(t *testing.T, w *drivertest.World, p drivertest.Pod) {
	t.Helper()
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	try(t, err)
	try(t, h.MoveTo(l.Index, w.Node))
}

func TestDeviceOfANamespaceThatEndedGetsItsNameBack(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	s := w.Attached(t, w.Spec(p, byName()))
	comesBack(t, w, p)
	s.NetNS = nil
	try(t, w.Driver.Detach(t.Context(), s))
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
}

// The kernel takes a namespace apart in its own time.
func TestDeviceOfANamespaceThatEndsDuringDetachIsAwaited(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	s := w.Attached(t, w.Spec(p, byName()))
	s.NetNS = nil
	done := make(chan error, 1)
	go func() { done <- w.Driver.Detach(context.Background(), s) }()
	comesBack(t, w, p)
	try(t, <-done)
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
}

// Its DEL may have come too early, or never.
func TestDeviceThatCameBackLaterIsFoundByTheNextContainer(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p, next := w.Pod(t), w.Pod(t)
	before := w.Text(t, p, next)
	first := w.Attached(t, w.Spec(p, byName()))
	comesBack(t, w, p)
	s := w.Attached(t, w.Spec(next, byName()))
	try(t, w.Driver.Check(t.Context(), s))
	first.NetNS = nil
	try(t, w.Driver.Detach(t.Context(), first))
	try(t, w.Driver.Check(t.Context(), s))
	try(t, w.Driver.Detach(t.Context(), s))
	if after := w.Text(t, p, next); after != before {
		t.Errorf("left:\n%s", after)
	}
}

// A link of the node that somebody gave the alias of a device is none.
func TestAliasOfAnUnmarkedLinkMeansNothing(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	h := drivertest.Handle(t, w.Node)
	other, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "uplink0", Up: true}, Peer: rtnl.New{Name: "uplink1"}})
	try(t, err)
	try(t, h.SetAlias(other.Index, "dev1"))
	before := w.Text(t)
	_, err = w.Driver.Attach(t.Context(), w.Spec(w.Pod(t), drivertest.Scenario{Keys: `"device":"dev1"`}.Conf("host-device")))
	drivertest.WantError(t, err, types.ErrTryAgainLater, "dev1")
	if after := w.Text(t); after != before {
		t.Errorf("changed:\n%s", after)
	}
}

func TestNameThatIsTakenOnTheNodeIsToldAndTheDeviceKept(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	s := w.Attached(t, w.Spec(p, byName()))
	h := drivertest.Handle(t, w.Node)
	thief, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "dev0"}, Peer: rtnl.New{Name: "thief1"}})
	try(t, err)
	for range 2 {
		drivertest.WantError(t, w.Driver.Detach(t.Context(), s), types.ErrTryAgainLater, "dev0")
	}
	try(t, h.Del(thief.Index))
	try(t, w.Driver.Detach(t.Context(), s))
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
}

func TestDetachFindsADeviceThatWasRenamedAndRelabelled(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	before := w.Text(t, p)
	s := w.Attached(t, w.Spec(p, byName()))
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	try(t, err)
	try(t, h.SetDown(l.Index))
	try(t, h.SetName(l.Index, "mine0"))
	try(t, h.SetAlias(l.Index, "dev0-far")) // a name that the node has
	try(t, w.Driver.Detach(t.Context(), s))
	if after := w.Text(t, p); after != before {
		t.Errorf("left:\n%s", after)
	}
}

func TestFailedAttachLeavesTheDeviceUp(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	h := drivertest.Handle(t, w.Node)
	l, err := h.Link("dev0")
	try(t, err)
	try(t, h.SetUp(l.Index))
	s := w.Spec(w.Pod(t), drivertest.Scenario{Keys: `"device":"dev0"`, IPAM: `{"type":"static"}`}.Conf("host-device"))
	_, err = w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "no address")
	if l, err = h.Link("dev0"); err != nil || !l.Up {
		t.Errorf("dev0: %+v, %v", l, err)
	}
}

// sysfs is a tree as a kernel shows it, with the link dev0 at several devices.
func sysfs(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{
		"bus/pci/drivers/e1000", "bus/pci/drivers/vfio-pci", "bus/pci/drivers/virtio-pci",
		"bus/pci/devices/0000:00:01.0/net/dev0",
		"bus/pci/devices/0000:00:02.0/virtio0/net/dev0",
		"bus/pci/devices/0000:00:03.0",
		"bus/pci/devices/0000:00:04.0/net",
		"bus/auxiliary/devices/mlx5_core.sf.4/net/dev0",
		"devices/pci0000:00/0000:00:01.0/net/dev0",
	} {
		try(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for addr, driven := range map[string]string{"01": "e1000", "02": "virtio-pci", "03": "vfio-pci", "04": "e1000"} {
		try(t, os.Symlink("../../drivers/"+driven, filepath.Join(root, "bus/pci/devices/0000:00:"+addr+".0/driver")))
	}
	return root
}

func TestDeviceIsFoundInSysfs(t *testing.T) {
	s := subject
	root := sysfs(t)
	s.New = func(node *netns.NS) driver.Driver { return hostdev.New(hostdev.Config{HostNS: node, Sysfs: root}) }
	for _, keys := range []string{
		`"pciBusID":"0000:00:01.0"`,
		`"pciBusID":"0000:00:02.0"`,
		`"runtimeConfig":{"deviceID":"0000:00:01.0"}`,
		`"pciBusID":"0000:00:04.0","runtimeConfig":{"deviceID":"0000:00:01.0"}`,
		`"runtimeConfig":{"deviceID":"mlx5_core.sf.4"}`,
		`"pciBusID":"0000:00:04.0","runtimeConfig":{"deviceID":"mlx5_core.sf.4"}`,
		`"kernelpath":"/sys/devices/pci0000:00/0000:00:01.0"`,
		`"kernelpath":"/sys/devices/pci0000:00/0000:00:01.0","pciBusID":"0000:00:04.0"`,
	} {
		t.Run(keys, func(t *testing.T) {
			w := drivertest.NewWorld(t, s)
			p := w.Pod(t)
			before := w.Text(t, p)
			spec := w.Attached(t, w.Spec(p, drivertest.Scenario{Keys: keys}.Conf("host-device")))
			if mac := spec.Prev.Interfaces[0].Mac; mac != deviceMAC {
				t.Errorf("mac %s", mac)
			}
			try(t, w.Driver.Check(t.Context(), spec))
			// dev0 is gone from the node, and so it is for everybody else.
			_, err := w.Driver.Attach(t.Context(), w.Spec(w.Pod(t), drivertest.Scenario{Keys: keys}.Conf("host-device")))
			drivertest.WantError(t, err, types.ErrTryAgainLater, "is not there")
			try(t, w.Driver.Detach(t.Context(), spec))
			if after := w.Text(t, p); after != before {
				t.Errorf("left:\n%s", after)
			}
		})
	}
	w := drivertest.NewWorld(t, s)
	_, err := w.Driver.Attach(t.Context(), w.Spec(w.Pod(t), drivertest.Scenario{Keys: `"pciBusID":"0000:00:04.0"`}.Conf("host-device")))
	drivertest.WantError(t, err, types.ErrTryAgainLater, "no link on the node")
}

// A device that a program drives has no link to move, only addresses.
func TestDeviceOfAUserspaceDriverOnlyGetsAddresses(t *testing.T) {
	s := subject
	root := sysfs(t)
	s.New = func(node *netns.NS) driver.Driver { return hostdev.New(hostdev.Config{HostNS: node, Sysfs: root}) }
	w := drivertest.NewWorld(t, s)
	p := w.Pod(t)
	before := w.Text(t, p)
	sc := drivertest.Scenario{Keys: `"runtimeConfig":{"deviceID":"0000:00:03.0"}`, IPAM: drivertest.OneIPv4}
	spec := w.Attached(t, w.Spec(p, sc.Conf("host-device")))
	res := spec.Prev
	if len(res.IPs) != 1 || res.Interfaces[0].Name != "net1" || res.Interfaces[0].Mac != "" {
		t.Errorf("result: %s", drivertest.Plain(t, res))
	}
	if after := w.Text(t, p); after != before {
		t.Errorf("changed:\n%s", after)
	}
	try(t, w.Driver.Check(t.Context(), spec))
	spec.NetNS = nil
	start := time.Now()
	try(t, w.Driver.Detach(t.Context(), spec))
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("Detach waited %s for a device that cannot come back", took)
	}
	if !spec.IPAM.(*drivertest.Static).Released() {
		t.Error("the address is not released")
	}
}

// The module eql makes a link that the kernel treats as hardware.
func TestHardwareComesBackFromANamespaceThatEnded(t *testing.T) {
	if !inGuest() {
		t.Skip("moves a device of the kernel's first namespace, so it runs in tier guest only")
	}
	out, err := exec.Command("modprobe", "eql").CombinedOutput()
	if err != nil {
		t.Fatalf("modprobe eql: %v: %s", err, out)
	}
	node := drivertest.Handle(t, nil)
	d := hostdev.New(hostdev.Config{})
	const name = "braid-test-hardware"
	for _, taken := range []bool{false, true} {
		ns, err := netns.New(name)
		try(t, err)
		s := driver.Spec{ContainerID: "c", IfName: "net1", NetNS: ns, NetNSPath: netns.Path(name),
			Conf: []byte(`{"cniVersion":"1.0.0","name":"n","type":"host-device","device":"eql"}`)}
		s.Prev, err = d.Attach(t.Context(), s)
		try(t, err)
		if taken { // the name of the container's link on the node
			_, err := node.AddVeth(rtnl.Veth{New: rtnl.New{Name: "net1"}, Peer: rtnl.New{Name: "other"}})
			try(t, err)
		}
		try(t, ns.Close())
		try(t, netns.Delete(name))
		s.NetNS = nil
		try(t, d.Detach(t.Context(), s))
		l, err := node.Link("eql")
		if err != nil || l.Alias != "" || len(l.AltNames) > 0 {
			t.Fatalf("eql: %+v, %v", l, err)
		}
	}
}

func TestDeviceComesHomeWithoutAddresses(t *testing.T) {
	w := drivertest.NewWorld(t, subject)
	s := w.Attached(t, w.Spec(w.Pod(t), drivertest.Scenario{Keys: `"device":"dev0"`, IPAM: drivertest.OneIPv4}.Conf("host-device")))
	try(t, w.Driver.Detach(t.Context(), s))
	h := drivertest.Handle(t, w.Node)
	l, err := h.Link("dev0")
	try(t, err)
	addrs, err := h.Addrs(l.Index)
	try(t, err)
	for _, a := range addrs {
		if a.Prefix == netip.MustParsePrefix("10.1.0.5/24") {
			t.Errorf("dev0 still has %s", a.Prefix)
		}
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	drivertest.Bench(b, subject, scenarios[0], func(b *testing.B, w *drivertest.World, p drivertest.Pod) func() error {
		node, pod := drivertest.Handle(b, w.Node), drivertest.Handle(b, p.NS)
		return func() error {
			l, err := node.Link("dev0")
			if err == nil {
				err = node.MoveAs(l.Index, p.NS, "net1")
			}
			if err == nil {
				l, err = pod.Link("net1")
			}
			if err == nil {
				err = pod.SetUp(l.Index)
			}
			if err == nil {
				err = pod.MoveAs(l.Index, w.Node, "dev0")
			}
			return err
		}
	})
}
