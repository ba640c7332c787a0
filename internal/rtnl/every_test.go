package rtnl

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/kerneltest"
)

// Routes and rules of every sort are seen, and each can be removed alone.
func TestEveryRouteAndRuleIsSeenAndRemoved(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge)
	ns := kerneltest.NewNS(t)
	h, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	br, err := h.AddBridge(Bridge{New: New{Name: "braid0", Up: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddAddr(br.Index, Addr{Prefix: netip.MustParsePrefix("10.9.0.1/24")}); err != nil {
		t.Fatal(err)
	}
	names := map[int]string{br.Index: "braid0"}
	fresh, err := h.EveryRule()
	if err != nil {
		t.Fatal(err)
	}
	dead := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.8.0.0/26")), Type: unix.RTN_BLACKHOLE, Protocol: 80, Table: unix.RT_TABLE_MAIN}
	if err := h.call(func(lib *netlink.Handle) error { return lib.RouteAdd(dead) }); err != nil {
		t.Fatal(err)
	}
	if err := h.AddRoute(Route{Dst: netip.MustParsePrefix("10.7.0.0/24"), Via: netip.MustParseAddr("10.9.0.2"), Link: br.Index, Table: 2005}); err != nil {
		t.Fatal(err)
	}
	marked := netlink.NewRule()
	mask := uint32(0xf00)
	marked.Priority, marked.Table, marked.Mark, marked.Mask, marked.Family = 9, 2004, 0x200, &mask, unix.AF_INET
	if err := h.call(func(lib *netlink.Handle) error { return lib.RuleAdd(marked) }); err != nil {
		t.Fatal(err)
	}
	rules, err := h.EveryRule()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.Table != 2004 {
			continue
		}
		if r.String() != "9: from all fwmark 0x200/0xf00 lookup 2004" || r.Plain {
			t.Errorf("rule %s, plain %t", r, r.Plain)
		}
		if err := h.DelAnyRule(r); err != nil {
			t.Error(err)
		}
		if err := h.DelAnyRule(r); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed again: %v", err)
		}
	}
	if rules, err = h.EveryRule(); err != nil || len(rules) != len(fresh) {
		t.Errorf("%d rules, %d at first: %v", len(rules), len(fresh), err)
	}
	if err := h.AddLocalRule(false); !errors.Is(err, ErrExists) {
		t.Errorf("a second rule of the local table: %v", err)
	}
	routes, err := h.EveryRoute()
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, r := range routes {
		texts = append(texts, r.Text(names))
	}
	want := []string{"10.7.0.0/24 via 10.9.0.2 dev braid0 table 2005 proto 3", "10.9.0.0/24 dev braid0 src 10.9.0.1 proto 2", "blackhole 10.8.0.0/26 proto 80"}
	if !slices.Equal(texts, want) {
		t.Errorf("routes %q", texts)
	}
	for _, r := range routes {
		if err := h.DelAnyRoute(r); err != nil {
			t.Errorf("%s: %v", r.Text(names), err)
		}
		if err := h.DelAnyRoute(r); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s removed again: %v", r.Text(names), err)
		}
	}
	if routes, err = h.EveryRoute(); err != nil || len(routes) != 0 {
		t.Errorf("%v, %v", routes, err)
	}
}

// Programs on a link are told apart by their names, and one goes without the
// other.
func TestAProgramIsTakenOffItsLink(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Bridge, kerneltest.Shaping)
	ns := kerneltest.NewNS(t)
	h, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	br, err := h.AddBridge(Bridge{New: New{Name: "braid0"}})
	if err != nil {
		t.Fatal(err)
	}
	if programs, others, err := h.Programs(br.Index); err != nil || len(programs) != 0 || others != 0 {
		t.Errorf("without clsact: %v, %d, %v", programs, others, err)
	}
	if err := h.DelClsact(br.Index); !errors.Is(err, ErrNotFound) {
		t.Errorf("no clsact is removed: %v", err)
	}
	if err := h.AddClsact(br.Index); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"cil_from_netdev-braid0", "somebodys"} {
		f := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: br.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: uint16(i + 1)},
			Fd:          loadProgram(t), Name: name, DirectAction: true,
		}
		if err := h.call(func(lib *netlink.Handle) error { return lib.FilterAdd(f) }); err != nil {
			t.Fatal(err)
		}
	}
	programs, others, err := h.Programs(br.Index)
	if err != nil || len(programs) != 2 || others != 0 || programs[0].String() != "ingress cil_from_netdev-braid0" {
		t.Fatalf("%v, %d, %v", programs, others, err)
	}
	if err := h.DelProgram(programs[0]); err != nil {
		t.Fatal(err)
	}
	if err := h.DelProgram(programs[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed again: %v", err)
	}
	if programs, _, err = h.Programs(br.Index); err != nil || len(programs) != 1 || programs[0].Name != "somebodys" {
		t.Errorf("%v, %v", programs, err)
	}
	if err := h.DelClsact(br.Index); err != nil {
		t.Error(err)
	}
}

// loadProgram loads a program that lets everything pass.
func loadProgram(t *testing.T) int {
	t.Helper()
	code := []uint64{0xb7, 0x95} // r0 = 0; exit
	license := []byte("GPL\x00")
	attr := struct {
		kind, n       uint32
		code, license uint64
		rest          [13]uint64
	}{kind: 3, n: uint32(len(code)), code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	const load = 5 // BPF_PROG_LOAD of BPF_PROG_TYPE_SCHED_CLS
	fd, _, errno := unix.Syscall(unix.SYS_BPF, load, uintptr(unsafe.Pointer(&attr)), 64)
	if errno == unix.EPERM || errno == unix.ENOSYS {
		t.Skipf("missing feature: eBPF: %v", errno)
	}
	if errno != 0 {
		t.Fatalf("load program: %v", errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	return int(fd)
}
