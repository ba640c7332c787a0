package tuning_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/tuning"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
	"braid.dev/braid/internal/rtnl"
)

var everything = `"mac":"02:00:00:00:00:07","mtu":1400,"promisc":true,"allmulti":true,"txQLen":77`

// dataDir outlives one test, because a victim of the suite is another process.
func dataDir() string { return filepath.Join(os.TempDir(), "braid-test-tuning") }

func otherDir() string { return dataDir() + "-other" }

// removeEmpty removes those of the directories that were not there before,
// unless somebody else has a file in them by then.
func removeEmpty(dirs ...string) func() {
	dirs = slices.DeleteFunc(dirs, func(dir string) bool {
		_, err := os.Stat(dir)
		return err == nil
	})
	return func() {
		for _, dir := range dirs {
			os.Remove(dir)
		}
	}
}

var subject = drivertest.Subject{
	Type:  "tuning",
	Needs: []kerneltest.Feature{kerneltest.Veth},
	New: func(*netns.NS) driver.Driver {
		return tuning.New(tuning.Config{DataDir: dataDir(), Allowlist: "/nonexistent"})
	},
	Prev: prev,
	Variants: []drivertest.Variant{
		{Name: "everything", Keys: everything},
		{Name: "mtu", Keys: `"mtu":1300`},
		{Name: "nothing", Keys: `"mtu":0`},
	},
	Addresses: drivertest.Never,
	MTU:       true,
	MAC:       true,
	Observe:   observe,
	Tampering: []drivertest.Tampering{
		{Name: "sysctl", Keys: `"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"}`, Want: "arp_filter", Change: func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
			try(t, rtnl.Sysctl{}.Set(p.NS, rtnl.Setting{Path: "ipv4/conf/net1/arp_filter", Value: "0"}))
		}},
		{Name: "mtu", Want: "mtu 1300, not 1400", Change: link(func(h *rtnl.Handle, i int) error { return h.SetMTU(i, 1300) })},
		{Name: "mac", Want: "02:00:00:00:00:01", Change: link(func(h *rtnl.Handle, i int) error { return h.SetMAC(i, []byte{2, 0, 0, 0, 0, 1}) })},
		{Name: "promisc", Want: "promiscuous", Change: link(func(h *rtnl.Handle, i int) error { return h.SetPromisc(i, false) })},
		{Name: "allmulti", Want: "allmulti", Change: link(func(h *rtnl.Handle, i int) error { return h.SetAllMulti(i, false) })},
		{Name: "txQLen", Want: "transmit queue", Change: link(func(h *rtnl.Handle, i int) error { return h.SetTxQLen(i, 5) })},
		{Name: "link removed", Want: "net1", Change: link((*rtnl.Handle).Del)},
	},
}

// prev makes a veth with a transmit queue that is the same in every kernel.
func prev(t testing.TB, w *drivertest.World, p drivertest.Pod) *current.Result {
	t.Helper()
	res := drivertest.Veth([]string{"10.1.0.5/24 10.1.0.1", "fd00:1::5/64 fd00:1::1"}, "10.99.0.0/16")(t, w, p)
	link(func(h *rtnl.Handle, i int) error { return h.SetTxQLen(i, 1000) })(t, w, p)
	return res
}

func TestMain(m *testing.M) { drivertest.Main(m, subject) }

func TestConformance(t *testing.T) {
	t.Cleanup(removeEmpty(dataDir()))
	drivertest.Run(t, subject)
	left, err := filepath.Glob(dataDir() + "/*")
	try(t, err)
	for _, file := range left {
		t.Errorf("left behind: %s", file)
	}
}

func link(change func(*rtnl.Handle, int) error) func(testing.TB, *drivertest.World, drivertest.Pod) {
	return func(t testing.TB, _ *drivertest.World, p drivertest.Pod) {
		t.Helper()
		h := drivertest.Handle(t, p.NS)
		l, err := h.Link("net1")
		try(t, err)
		try(t, change(h, l.Index))
	}
}

// observe adds what rtnl.Observe leaves out of what tuning changes.
func observe(t testing.TB, _ *drivertest.World, p drivertest.Pod) string {
	t.Helper()
	h := drivertest.Handle(t, p.NS)
	l, err := h.Link("net1")
	if err != nil {
		return ""
	}
	tuned, err := h.Tuning(l.Index)
	try(t, err)
	mac := "random"
	if strings.HasPrefix(l.MAC.String(), "02:00:00") {
		mac = l.MAC.String()
	}
	text := fmt.Sprintf("net1 mac %s allmulti %t txqlen %d", mac, tuned.AllMulti, tuned.TxQLen)
	for _, key := range []string{"ipv4/conf/net1/arp_filter", "ipv4/ip_local_port_range", "ipv6/conf/net1/hop_limit"} {
		value, err := rtnl.Sysctl{}.Get(p.NS, key)
		try(t, err)
		text += fmt.Sprintf(" %s %q", filepath.Base(key), value)
	}
	return text + "\n"
}

var scenarios = []drivertest.Scenario{
	{Name: "everything", Keys: everything},
	{Name: "mac", Keys: `"mac":"02:00:00:00:00:01"`},
	{Name: "mac-env", Keys: `"mac":"02:00:00:00:00:01"`, Args: "IgnoreUnknown=1;MAC=02:00:00:00:00:02"},
	{Name: "mac-runtime", Keys: `"mac":"02:00:00:00:00:01","runtimeConfig":{"mac":"02:00:00:00:00:03"}`, Args: "IgnoreUnknown=1;MAC=02:00:00:00:00:02"},
	{Name: "mac-args", Keys: `"runtimeConfig":{"mac":"02:00:00:00:00:03"},"args":{"cni":{"mac":"02:00:00:00:00:04"}}`, Args: "IgnoreUnknown=1;MAC=02:00:00:00:00:02"},
	{Name: "mtu", Keys: `"mtu":1400`},
	{Name: "mtu-args", Keys: `"mtu":1400,"args":{"cni":{"mtu":1300}}`},
	{Name: "promisc", Keys: `"promisc":true`},
	{Name: "promisc-off-by-args", Keys: `"promisc":true,"args":{"cni":{"promisc":false}}`},
	{Name: "allmulti", Keys: `"allmulti":true`},
	{Name: "allmulti-off", Keys: `"allmulti":false`},
	{Name: "txqlen", Keys: `"txQLen":20`},
	{Name: "txqlen-zero", Keys: `"txQLen":0`},
	{Name: "sysctl", Keys: `"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1","net/ipv6/conf/IFNAME/hop_limit":"33"}`},
	{Name: "sysctl-args", Keys: `"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"},"args":{"cni":{"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"0","net.ipv6.conf.IFNAME.hop_limit":"9"}}}`},
	{Name: "sysctl-args-only", Keys: `"args":{"cni":{"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"}}}`,
		Differs: "the reference plugin panics when only args.cni has sysctls"},
	{Name: "sysctl-several-values", Keys: `"sysctl":{"net.ipv4.ip_local_port_range":"2000 3000"}`,
		CheckFails: "it compares the text, and the kernel separates values by tabs"},
	{Name: "data-dir", Keys: `"mtu":1400,"dataDir":"` + otherDir() + `"`},
	{Name: "nothing", Keys: `"sysctl":{}`},
}

func TestBuildsWhatTheConfigurationSays(t *testing.T) {
	t.Cleanup(removeEmpty(dataDir()))
	drivertest.Golden(t, subject, goldens())
}

// goldens have no directory in them that differs between machines.
func goldens() []drivertest.Scenario {
	var out []drivertest.Scenario
	for _, sc := range scenarios {
		if sc.Name != "data-dir" {
			out = append(out, sc)
		}
	}
	return out
}

// TestSameAsTheReferencePlugin does what drivertest.SameAsReference does, with
// containers of different names: the notes of what an interface was are files
// of the machine, which both worlds share, and each must find the other's.
func TestSameAsTheReferencePlugin(t *testing.T) {
	t.Cleanup(removeEmpty(tuning.DefaultDataDir, filepath.Dir(tuning.DefaultDataDir), otherDir()))
	dir := refplugin.Dir(t, "tuning")
	for _, sc := range scenarios {
		t.Run(sc.Name, func(t *testing.T) {
			if sc.Differs != "" {
				t.Skip("different on purpose: " + sc.Differs)
			}
			d := tuning.New(tuning.Config{Allowlist: "/nonexistent"})
			ours, ourPod, a := spec(t, sc.Keys)
			theirs, theirPod, b := spec(t, sc.Keys)
			a.Args, b.Args = sc.Args, sc.Args
			a.ContainerID, b.ContainerID = "braid-test-ours", "braid-test-theirs"
			var err error
			a.Prev, err = d.Attach(t.Context(), a)
			try(t, err)
			out, err := reference(t, dir, "ADD", b)
			try(t, err)
			b.Prev = new(current.Result)
			try(t, json.Unmarshal(out, b.Prev))
			b.Prev.CNIVersion = a.Prev.CNIVersion
			same(t, "result", drivertest.Plain(t, a.Prev), drivertest.Plain(t, b.Prev))
			same(t, "world", ours.Text(t, ourPod), theirs.Text(t, theirPod))
			if err := d.Check(t.Context(), b); err != nil {
				t.Errorf("Check of what the reference built: %v", err)
			}
			if _, err := reference(t, dir, "CHECK", a); (err != nil) != (sc.CheckFails != "") {
				t.Errorf("the reference's CHECK of what the driver built: %v; expected to fail because: %q", err, sc.CheckFails)
			}
			try(t, d.Detach(t.Context(), b))
			_, err = reference(t, dir, "DEL", a)
			try(t, err)
			same(t, "world after the other removed it", ours.Text(t, ourPod), theirs.Text(t, theirPod))
		})
	}
}

func reference(t *testing.T, dir, verb string, s driver.Spec) ([]byte, error) {
	t.Helper()
	var conf map[string]any
	try(t, json.Unmarshal(s.Conf, &conf))
	conf["prevResult"] = s.Prev
	text, err := json.Marshal(conf)
	try(t, err)
	return refplugin.Run(t.Context(), dir, "tuning", refplugin.Call{
		Command: verb, ContainerID: s.ContainerID, IfName: s.IfName, NetNS: s.NetNSPath, Args: s.Args, Conf: text,
	})
}

func same(t *testing.T, what, ours, theirs string) {
	t.Helper()
	if ours != theirs {
		t.Errorf("%s differs\n--- driver\n%s--- reference\n%s", what, ours, theirs)
	}
}

func TestRefusesWhatTheReferencePluginRefuses(t *testing.T) {
	t.Cleanup(removeEmpty(dataDir(), tuning.DefaultDataDir, filepath.Dir(tuning.DefaultDataDir)))
	// What the reference noted before it failed.
	t.Cleanup(func() { os.Remove(filepath.Join(tuning.DefaultDataDir, "container-0_net1.json")) })
	drivertest.SameRefusals(t, subject,
		`"sysctl":{"kernel.hostname":"x"}`,
		`"sysctl":{"net.ipv4.conf.IFNAME.nosuch":"1"}`,
		`"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1","net.ipv4.conf.nosuch.arp_filter":"0"}`,
		`"sysctl":[]`,
		`"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":1}`,
		`"mac":"zz"`,
		`"mac":"01:00:5e:00:00:01"`,
		`"mtu":20`,
		`"mtu":100000`,
		`"mtu":"big"`,
	)
}

func TestRefusesWhatTheReferencePluginMisreads(t *testing.T) {
	for keys, want := range map[string]string{
		`"sysctl":{"net.ipv4.ip_forward":"1","net.ipv4.ip_forward":"0"}`: "ip_forward is given twice",
		`"sysctl":{"net.ipv4.ip_forward":"1","net/ipv4/ip_forward":"0"}`: "the same setting",
		`"txQLen":-1`:            "txQLen -1",
		`"dataDir":"run/tuning"`: "absolute",
		`"mtu":-1`:               "mtu -1",
	} {
		w, _, s := spec(t, keys)
		_, err := w.Driver.Attach(t.Context(), s)
		drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, want)
	}
}

// spec is the attachment of a fresh container by keys.
func spec(t *testing.T, keys string) (*drivertest.World, drivertest.Pod, driver.Spec) {
	t.Helper()
	w := drivertest.NewWorld(t, subject)
	p := w.Pod(t)
	return w, p, w.Spec(p, drivertest.Scenario{Keys: keys}.Conf("tuning"))
}

func TestAllowlistIsKept(t *testing.T) {
	list := filepath.Join(t.TempDir(), "allowlist.conf")
	d := tuning.New(tuning.Config{DataDir: t.TempDir(), Allowlist: list})
	const arpFilter, hopLimit = `"net.ipv4.conf.IFNAME.arp_filter":"1"`, `"net.ipv6.conf.IFNAME.hop_limit":"9"`
	for _, tc := range []struct {
		list, sysctls, want string
		missing             bool
	}{
		{missing: true, sysctls: arpFilter},
		{list: "", sysctls: arpFilter, want: "net.ipv4.conf.IFNAME.arp_filter"},
		{list: "", sysctls: ""},
		{list: `^net\.ipv4\.conf\.IFNAME\.[a-z_]*$` + "\n", sysctls: arpFilter},
		{list: "\n  ipv6  \r\n\n ipv4", sysctls: arpFilter + "," + hopLimit},
		{list: "ipv6", sysctls: arpFilter + "," + hopLimit, want: "arp_filter"},
		{list: "ipv4[", sysctls: arpFilter, want: "ipv4["},
	} {
		if !tc.missing {
			try(t, os.WriteFile(list, []byte(tc.list), 0o644))
		}
		w, p, s := spec(t, `"sysctl":{`+tc.sysctls+`}`)
		before := w.Text(t, p)
		_, err := d.Attach(t.Context(), s)
		if tc.want == "" {
			if err != nil {
				t.Errorf("list %q: %v", tc.list, err)
			}
			continue
		}
		drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, tc.want)
		if after := w.Text(t, p); after != before {
			t.Errorf("list %q: a refused Attach changed\n%sto\n%s", tc.list, before, after)
		}
	}
}

func TestSysctlsBesideAnUnwritableOneAreReset(t *testing.T) {
	w, p, s := spec(t, `"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1","net.ipv6.conf.IFNAME.hop_limit":"many"}`)
	before := w.Text(t, p)
	if _, err := w.Driver.Attach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "hop_limit = many") {
		t.Errorf("Attach: %v", err)
	}
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

// A link that goes back to the node must be what it was.
func TestChangesBesideAnImpossibleOneAreUndone(t *testing.T) {
	t.Cleanup(removeEmpty(dataDir()))
	w, p, s := spec(t, `"mac":"02:00:00:00:00:07","mtu":65536,"promisc":true`)
	before := w.Text(t, p)
	if _, err := w.Driver.Attach(t.Context(), s); err == nil {
		t.Error("a veth has no mtu of 65536")
	}
	if after := w.Text(t, p); after != before {
		t.Errorf("left\n%swant\n%s", after, before)
	}
}

func TestResultHasTheMACOfTheContainersInterfaceOnly(t *testing.T) {
	t.Cleanup(removeEmpty(dataDir()))
	w, _, s := spec(t, `"mac":"02-00-00-00-00-AB"`)
	s.Prev.Interfaces[0].Name = "net1" // of the node, by chance
	given := s.Prev.Interfaces[0].Mac
	res, err := w.Driver.Attach(t.Context(), s)
	try(t, err)
	if res.Interfaces[0].Mac != given || res.Interfaces[1].Mac != "02:00:00:00:00:ab" {
		t.Errorf("interfaces: %+v %+v", res.Interfaces[0], res.Interfaces[1])
	}
	if s.Prev.Interfaces[1].Mac == "02:00:00:00:00:ab" {
		t.Error("the result of the plugin before was changed")
	}
	s.Prev = res
	try(t, w.Driver.Check(t.Context(), s))
	try(t, w.Driver.Detach(t.Context(), s))
}

func TestDataDirThatCannotBeSeenIsReplaced(t *testing.T) {
	own, shown := t.TempDir(), t.TempDir()
	d := tuning.New(tuning.Config{DataDir: own, HostDirs: []string{shown}, Allowlist: "/nonexistent"})
	for dir, want := range map[string]string{shown + "/sub": shown + "/sub", "/nonexistent/braid": own, shown + "-not": own} {
		_, _, s := spec(t, fmt.Sprintf(`"mtu":1400,"dataDir":%q`, dir))
		_, err := d.Attach(t.Context(), s)
		try(t, err)
		if _, err := os.Stat(filepath.Join(want, s.ContainerID+"_net1.json")); err != nil {
			t.Errorf("dataDir %s: %v", dir, err)
		}
		try(t, d.Detach(t.Context(), s))
	}
}

func TestUnreadableNoteIsForgotten(t *testing.T) {
	t.Cleanup(removeEmpty(dataDir()))
	w, p, s := spec(t, `"mtu":1400`)
	try(t, os.MkdirAll(dataDir(), 0o755))
	note := filepath.Join(dataDir(), p.ID+"_net1.json")
	try(t, os.WriteFile(note, []byte(`{"mtu":`), 0o600))
	try(t, w.Driver.Detach(t.Context(), s))
	if _, err := os.Stat(note); !os.IsNotExist(err) {
		t.Errorf("the note after Detach: %v", err)
	}
}

func TestStandingAloneIsRefused(t *testing.T) {
	w, _, s := spec(t, `"mtu":1400`)
	s.Prev = nil
	_, err := w.Driver.Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidNetworkConfig, "prevResult")
	drivertest.WantError(t, w.Driver.Check(t.Context(), s), types.ErrInvalidNetworkConfig, "prevResult")
}

func BenchmarkAttachDetach(b *testing.B) {
	b.Cleanup(removeEmpty(dataDir(), tuning.DefaultDataDir, filepath.Dir(tuning.DefaultDataDir)))
	drivertest.Bench(b, subject, drivertest.Scenario{Keys: everything}, nil)
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
