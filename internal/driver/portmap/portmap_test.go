package portmap_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/portmap"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/refplugin"
	"braid.dev/braid/internal/rtnl"
)

// needRules is for tests of one backend: a kernel has nftables, or else the
// old iptables.
func needRules(t testing.TB, backend string) {
	t.Helper()
	switch {
	case !inGuest():
		kerneltest.Need(t, kerneltest.NftInet)
	case backend == "nftables":
		t.Skip("the guest's kernel has no nftables for IP")
	default:
		kerneltest.Need(t, kerneltest.IptablesLegacy)
	}
}

// scenarios are configurations with what follows from them, the answers to
// some questions. Both backends, and both backends of the reference plugin,
// must give the same.
var scenarios = []struct {
	name, keys, mappings string
	answers              map[string]string // by "WHO NETWORK ADDRESS"
	// notNFT is why the reference's nftables backend is not expected to.
	notNFT string
}{
	{"default", "", someMappings, map[string]string{
		"outside tcp 192.0.2.1:8080":     "80 from 192.0.2.2",
		"outside udp 192.0.2.1:8053":     "53 from 192.0.2.2",
		"outside tcp [2001:db8::1]:8080": "80 from 2001:db8::2",
		"outside udp [2001:db8::1]:8053": "53 from 2001:db8::2",
		"outside tcp 192.0.2.1:8081":     "no connection",
		"node tcp 127.0.0.1:8080":        "80 from 10.1.1.1",
		"node tcp 192.0.2.1:8080":        "80 from 192.0.2.1",
		"pod tcp 192.0.2.1:8080":         "80 from 10.1.1.1",
		"pod tcp [2001:db8::1]:8080":     "80 from fd01::1",
	}, ""},
	{"neighbour", "", someMappings, map[string]string{
		"neighbour tcp 192.0.2.1:8080":     "80 from 10.1.1.1",
		"neighbour tcp [2001:db8::1]:8080": "80 from fd01::1",
		"neighbour udp 192.0.2.1:8053":     "53 from 10.1.1.1",
	}, "it does not masquerade neighbours, whose answers then bypass the node"},
	{"no snat", `"snat":false`, someMappings, map[string]string{
		"outside tcp 192.0.2.1:8080":     "80 from 192.0.2.2",
		"outside tcp [2001:db8::1]:8080": "80 from 2001:db8::2",
		"node tcp 192.0.2.1:8080":        "80 from 192.0.2.1",
	}, ""},
	{"masquerade all", `"masqAll":true`, someMappings, map[string]string{
		"outside tcp 192.0.2.1:8080":     "80 from 10.1.1.1",
		"outside udp 192.0.2.1:8053":     "53 from 10.1.1.1",
		"outside tcp [2001:db8::1]:8080": "80 from fd01::1",
		"neighbour tcp 192.0.2.1:8080":   "80 from 10.1.1.1",
		"node tcp 127.0.0.1:8080":        "80 from 10.1.1.1",
	}, "it does not have masqAll"},
	{"mark bit", `"markMasqBit":7`, someMappings, map[string]string{
		"pod tcp 192.0.2.1:8080": "80 from 10.1.1.1",
	}, ""},
	{"host ip", "", `[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"},
		{"hostPort":8081,"containerPort":81,"protocol":"tcp","hostIP":"0.0.0.0"},
		{"hostPort":8082,"containerPort":80,"protocol":"TCP","hostIP":"2001:db8::1"},
		{"hostPort":8083,"containerPort":80,"protocol":"tcp","hostIP":"::"}]`, map[string]string{
		"outside tcp 192.0.2.1:8080":     "80 from 192.0.2.2",
		"outside tcp 10.1.1.1:8080":      "no connection",
		"outside tcp [2001:db8::1]:8080": "no connection",
		"outside tcp 192.0.2.1:8081":     "81 from 192.0.2.2",
		"outside tcp 10.1.1.1:8081":      "81 from 192.0.2.2",
		"outside tcp [2001:db8::1]:8081": "no connection",
		"outside tcp 192.0.2.1:8082":     "no connection",
		"outside tcp [2001:db8::1]:8082": "80 from 2001:db8::2",
		"outside tcp [fd01::1]:8082":     "no connection",
		"outside tcp [fd01::1]:8083":     "80 from 2001:db8::2",
	}, ""},
	{"sctp", "", `[{"hostPort":8080,"containerPort":80,"protocol":"sctp"},{"hostPort":8080,"containerPort":81,"protocol":"tcp"}]`, map[string]string{
		"outside tcp 192.0.2.1:8080": "81 from 192.0.2.2",
	}, ""},
}

var conditions = map[string]string{
	"nftables": `"conditionsV4":["ip","saddr","!=","192.0.2.2"],"conditionsV6":["iifname != out0"]`,
	"iptables": `"conditionsV4":["!","-s","192.0.2.2"],"conditionsV6":["!","-i","out0"]`,
}

func (w *world) ask(question string) string {
	var who, network, address string
	fmt.Sscan(question, &who, &network, &address)
	from := map[string]*netns.NS{"outside": w.outside, "node": w.node, "pod": w.pod, "neighbour": w.neighbour}[who]
	return ask(from, network, address)
}

func (w *world) expect(t *testing.T, answers map[string]string) {
	t.Helper()
	for question, want := range answers {
		if got := w.ask(question); got != want {
			t.Errorf("%s: %q, want %q", question, got, want)
		}
	}
}

// expectOther holds a reason to differ to its word.
func (w *world) expectOther(t *testing.T, answers map[string]string, why string) {
	t.Helper()
	for question, want := range answers {
		if w.ask(question) != want {
			return
		}
	}
	t.Errorf("every answer is the same although %s", why)
}

func TestPortsLeadToTheContainer(t *testing.T) {
	for i, sc := range scenarios {
		for _, backend := range []string{"nftables", "iptables"} {
			t.Run(sc.name+"/"+backend, func(t *testing.T) {
				needRules(t, backend)
				if inGuest() && i > 0 {
					t.Skip("tested on the host's kernel in tier net; to start programs in a guest is slow")
				}
				w := newWorld(t)
				serve(t, w.pod)
				// Whoever looks at iptables first makes its tables.
				empty := w.rules(t)
				s := w.spec(conf(strings.Trim(sc.keys+`,"backend":"`+backend+`"`, ","), sc.mappings))
				for range 2 { // a repetition adds nothing
					res, err := w.d.Attach(t.Context(), s)
					try(t, err)
					if res != s.Prev {
						t.Errorf("result %+v", res)
					}
				}
				try(t, w.d.Check(t.Context(), s))
				w.expect(t, sc.answers)
				if !inGuest() {
					golden(t, strings.ReplaceAll(sc.name, " ", "-")+"-"+backend, w.rules(t))
				}
				s.NetNS, s.Prev = nil, nil
				for range 2 {
					try(t, w.d.Detach(t.Context(), s))
				}
				if left := w.rules(t); strings.Contains(left, "test-container") || strings.Contains(left, "CNI-DN") {
					t.Errorf("left:\n%sbefore:\n%s", left, empty)
				}
				for question := range sc.answers {
					if got := w.ask(question); got != "no connection" && got != "no answer" {
						t.Errorf("after Detach %s: %q", question, got)
					}
				}
			})
		}
	}
}

// TestSameAsTheReferencePlugin lets the reference plugin build every scenario:
// the answers are the same, each checks what the other built, and removes it.
func TestSameAsTheReferencePlugin(t *testing.T) {
	if inGuest() {
		t.Skip("compared on the host's kernel in tier net; here the reference plugin does not find the right iptables")
	}
	for _, sc := range scenarios {
		for _, backend := range []string{"nftables", "iptables"} {
			t.Run(sc.name+"/"+backend, func(t *testing.T) {
				needRules(t, backend)
				ours, theirs := newWorld(t), newWorld(t)
				serve(t, theirs.pod)
				ours.rules(t) // makes the tables of iptables
				theirs.rules(t)
				c := conf(strings.Trim(sc.keys+`,"backend":"`+backend+`"`, ","), strings.ReplaceAll(sc.mappings, "TCP", "tcp"))
				a, b := ours.spec(c), theirs.spec(c)
				_, err := ours.d.Attach(t.Context(), a)
				try(t, err)
				try(t, reference(t, theirs, "ADD", b))
				if backend == "nftables" && sc.notNFT != "" {
					theirs.expectOther(t, sc.answers, sc.notNFT)
				} else {
					theirs.expect(t, sc.answers)
				}
				if backend == "iptables" {
					if a, b := ours.rules(t), theirs.rules(t); a != b {
						t.Errorf("rules differ\n--- driver\n%s--- reference\n%s", a, b)
					}
				}
				if err := theirs.d.Check(t.Context(), b); err != nil {
					t.Errorf("Check of what the reference built: %v", err)
				}
				if err := reference(t, ours, "CHECK", a); err != nil {
					t.Errorf("the reference's CHECK of what the driver built: %v", err)
				}
				try(t, theirs.d.Detach(t.Context(), b))
				try(t, reference(t, ours, "DEL", a))
				for _, left := range []string{ours.rules(t), theirs.rules(t)} {
					if strings.Contains(left, "test-container") || strings.Contains(left, "CNI-DN") {
						t.Errorf("left:\n%s", left)
					}
				}
			})
		}
	}
}

// reference runs one verb of the reference plugin in the world's node.
func reference(t testing.TB, w *world, verb string, s driver.Spec) error {
	t.Helper()
	var c map[string]any
	try(t, json.Unmarshal(s.Conf, &c))
	c["prevResult"] = s.Prev
	stdin := must(json.Marshal(c))(t)
	dir := refplugin.Dir(t, "portmap")
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "portmap"))
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.ContainerID, "CNI_IFNAME=" + s.IfName,
		"CNI_NETNS=" + w.podPath, "CNI_PATH=" + dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
	cmd.Stdin = bytes.NewReader(stdin)
	return w.node.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("reference plugin: %s: %w: %s", verb, err, out)
		}
		return nil
	})
}

func TestConditionsLimitWhoIsLedToTheContainer(t *testing.T) {
	for backend, keys := range conditions {
		t.Run(backend, func(t *testing.T) {
			needRules(t, backend)
			w := newWorld(t)
			serve(t, w.pod)
			w.rules(t)
			s := w.spec(conf(keys, someMappings))
			_, err := w.d.Attach(t.Context(), s)
			try(t, err)
			try(t, w.d.Check(t.Context(), s))
			w.expect(t, map[string]string{
				"outside tcp 192.0.2.1:8080":       "no connection",
				"outside tcp [2001:db8::1]:8080":   "no connection",
				"neighbour tcp 192.0.2.1:8080":     "80 from 10.1.1.1",
				"neighbour tcp [2001:db8::1]:8080": "80 from fd01::1",
			})
			// One network's conditions are no other's.
			other := w.spec(conf("", `[{"hostPort":9090,"containerPort":81,"protocol":"tcp"}]`))
			other.ContainerID = "other-container"
			_, err = w.d.Attach(t.Context(), other)
			try(t, err)
			w.expect(t, map[string]string{
				"outside tcp 192.0.2.1:9090": "81 from 192.0.2.2", "outside tcp 192.0.2.1:8080": "no connection",
			})
			if !inGuest() {
				golden(t, "conditions-"+backend, w.rules(t))
			}
			try(t, w.d.Detach(t.Context(), s))
			w.expect(t, map[string]string{"outside tcp 192.0.2.1:9090": "81 from 192.0.2.2"})
			try(t, w.d.Detach(t.Context(), other))
		})
	}
}

// Kubernetes' own chain marks what shall be masqueraded.
func TestExternalChainSetsTheMark(t *testing.T) {
	needRules(t, "iptables")
	w := newWorld(t)
	serve(t, w.pod)
	w.rules(t)
	for _, args := range []string{
		"-N KUBE-MARK-MASQ", "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
		"-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE",
	} {
		for _, program := range []string{"iptables", "ip6tables"} {
			must(inNode{w.node}.Exec(t.Context(), driver.Program{Name: program, Args: append([]string{"-t", "nat"}, strings.Fields(args)...)}))(t)
		}
	}
	s := w.spec(conf(`"externalSetMarkChain":"KUBE-MARK-MASQ"`, someMappings))
	must(w.d.Attach(t.Context(), s))(t)
	w.expect(t, map[string]string{"pod tcp 192.0.2.1:8080": "80 from 10.1.1.1"})
	if rules := w.rules(t); strings.Contains(rules, "CNI-HOSTPORT-MASQ") || strings.Contains(rules, "cni_hostport") {
		t.Errorf("rules:\n%s", rules)
	}
	try(t, w.d.Detach(t.Context(), s))
}

// The first choice is nftables, without any program; a kernel that does not
// have it gets iptables.
func TestBackendFollowsTheKernel(t *testing.T) {
	needRules(t, "")
	w := newWorld(t)
	serve(t, w.pod)
	s := w.spec(conf("", someMappings))
	if !inGuest() {
		s.Host = nil
	}
	must(w.d.Attach(t.Context(), s))(t)
	try(t, w.d.Check(t.Context(), s))
	w.expect(t, map[string]string{"outside tcp 192.0.2.1:8080": "80 from 192.0.2.2"})
	try(t, w.d.Detach(t.Context(), s))
	w.expect(t, map[string]string{"outside tcp 192.0.2.1:8080": "no connection"})
}

// A node has rules of the reference plugin, whose first choice is iptables,
// when Braid comes.
func TestRulesFromBeforeBraidAreRemoved(t *testing.T) {
	if inGuest() {
		t.Skip("compared on the host's kernel in tier net; here the reference plugin does not find the right iptables")
	}
	needRules(t, "iptables")
	w := newWorld(t)
	s := w.spec(conf("", someMappings))
	try(t, reference(t, w, "ADD", s))
	try(t, w.d.Check(t.Context(), s))
	host := s.Host
	s.Host = nil
	var again *types.Error
	if err := w.d.Detach(t.Context(), s); !errors.As(err, &again) || again.Code != types.ErrTryAgainLater {
		t.Errorf("Detach without a hand on the host: %v", err)
	}
	s.Host = host
	try(t, w.d.Detach(t.Context(), s))
	if left := w.rules(t); strings.Contains(left, "CNI-DN") {
		t.Errorf("left:\n%s", left)
	}
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	for backend, tamper := range map[string][]driver.Program{
		"nftables": {
			{Name: "nft", Args: []string{"flush", "chain", "ip", "cni_hostport", "prerouting"}},
			{Name: "nft", Args: []string{"flush", "chain", "ip6", "cni_hostport", "hostports"}},
			{Name: "nft", Args: []string{"flush", "chain", "ip", "cni_hostport", "masquerading"}},
			{Name: "nft", Args: []string{"delete", "table", "ip6", "cni_hostport"}},
		},
		"iptables": {
			{Name: "iptables", Args: []string{"-t", "nat", "-F", "PREROUTING"}},
			{Name: "ip6tables", Args: []string{"-t", "nat", "-F", "OUTPUT"}},
			{Name: "iptables", Args: []string{"-t", "nat", "-F", "CNI-HOSTPORT-DNAT"}},
			{Name: "ip6tables", Args: []string{"-t", "nat", "-F"}},
		},
	} {
		t.Run(backend, func(t *testing.T) {
			needRules(t, backend)
			w := newWorld(t)
			s := w.spec(conf(`"backend":"`+backend+`"`, someMappings))
			if err := w.d.Check(t.Context(), s); err == nil {
				t.Error("Check of nothing succeeds")
			}
			if inGuest() {
				tamper = tamper[:1]
			}
			for _, p := range tamper {
				must(w.d.Attach(t.Context(), s))(t)
				try(t, w.d.Check(t.Context(), s))
				must(inNode{w.node}.Exec(t.Context(), p))(t)
				if err := w.d.Check(t.Context(), s); err == nil {
					t.Errorf("Check after %v succeeds", p.Args)
				} else {
					t.Log(err)
				}
			}
		})
	}
}

// Two interfaces of one container may both have ports mapped to them.
func TestAttachmentsOfOneContainerDoNotShareRules(t *testing.T) {
	needRules(t, "nftables")
	w := newWorld(t)
	serve(t, w.pod)
	one := w.spec(conf("", someMappings))
	two := w.spec(strings.Replace(conf("", `[{"hostPort":9090,"containerPort":81,"protocol":"tcp"}]`), "testnet", "other", 1))
	two.IfName = "net1"
	two.Prev = result()
	two.Prev.Interfaces[1].Name = "net1"
	must(w.d.Attach(t.Context(), one))(t)
	must(w.d.Attach(t.Context(), two))(t)
	try(t, w.d.Detach(t.Context(), one))
	w.expect(t, map[string]string{
		"outside tcp 192.0.2.1:8080": "no connection", "outside tcp 192.0.2.1:9090": "81 from 192.0.2.2",
	})
	try(t, w.d.Check(t.Context(), two))
	try(t, w.d.Detach(t.Context(), two))
	if left := w.rules(t); strings.Contains(left, "dnat to") {
		t.Errorf("left:\n%s", left)
	}
}

// A sender that never pauses keeps its connection tracked, and with it the
// decision of the time before there was a mapping.
func TestSenderOfUDPFindsANewMapping(t *testing.T) {
	needRules(t, "nftables")
	w := newWorld(t)
	w.rules(t) // iptables makes the kernel track connections
	var c net.Conn
	try(t, w.outside.Do(func() (err error) {
		c, err = net.Dial("udp", "192.0.2.1:8053")
		return err
	}))
	defer c.Close()
	var local net.PacketConn
	try(t, w.node.Do(func() (err error) {
		local, err = net.ListenPacket("udp", "192.0.2.1:8053")
		return err
	}))
	defer local.Close()
	// Whatever mapping there is makes the kernel track connections.
	other := w.spec(conf("", `[{"hostPort":1,"containerPort":1,"protocol":"tcp"}]`))
	other.ContainerID = "other"
	must(w.d.Attach(t.Context(), other))(t)
	must(c.Write([]byte("?")))(t)
	local.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := local.ReadFrom(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	serve(t, w.pod)
	must(w.d.Attach(t.Context(), w.spec(conf("", someMappings))))(t)
	must(c.Write([]byte("?")))(t)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	try(t, err)
	if got := string(buf[:n]); got != "53 from 192.0.2.2" {
		t.Errorf("answer %q", got)
	}
}

func TestContainersComeAndGoAtOnce(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			needRules(t, backend)
			w := newWorld(t)
			w.rules(t)
			many := 12
			if inGuest() {
				many = 3 // programs are slow to start there
			}
			var group errgroup.Group
			for i := range many {
				s := w.spec(conf(`"backend":"`+backend+`"`, fmt.Sprintf(`[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]`, 8000+i)))
				s.ContainerID = fmt.Sprintf("test-container-%d", i)
				group.Go(func() error {
					if _, err := w.d.Attach(t.Context(), s); err != nil {
						return err
					}
					return w.d.Check(t.Context(), s)
				})
			}
			try(t, group.Wait())
			for i := range many {
				s := w.spec(conf(`"backend":"`+backend+`"`, fmt.Sprintf(`[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]`, 8000+i)))
				s.ContainerID = fmt.Sprintf("test-container-%d", i)
				group.Go(func() error { return w.d.Detach(t.Context(), s) })
			}
			try(t, group.Wait())
			if left := w.rules(t); strings.Contains(left, "test-container") || strings.Contains(left, "CNI-DN") {
				t.Errorf("left:\n%s", left)
			}
		})
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	needRules(t, "nftables")
	w := newWorld(t)
	w.d = portmap.New(portmap.Config{HostNS: w.node, Sysctl: rtnl.Sysctl{Root: t.TempDir()}})
	if _, err := w.d.Attach(t.Context(), w.spec(conf("", someMappings))); err == nil || !strings.Contains(err.Error(), "route_localnet") {
		t.Errorf("Attach: %v", err)
	}
	if left := w.rules(t); strings.Contains(left, "test-container") {
		t.Errorf("left:\n%s", left)
	}
}

func TestNothingToMapTouchesNothing(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	w := newWorld(t)
	s := w.spec(conf("", "[]"))
	s.Host = nil
	must(w.d.Attach(t.Context(), s))(t)
	try(t, w.d.Check(t.Context(), s))
	try(t, w.d.Detach(t.Context(), s))
	try(t, w.d.Detach(context.Background(), driver.Spec{Conf: []byte("no JSON")}))
}

func BenchmarkAttachDetach(b *testing.B) {
	needRules(b, "nftables")
	for _, backend := range []string{"nftables", "iptables"} {
		b.Run(backend+"/driver", func(b *testing.B) {
			w := newWorld(b)
			s := w.spec(conf(`"backend":"`+backend+`"`, someMappings))
			for b.Loop() {
				must(w.d.Attach(b.Context(), s))(b)
				try(b, w.d.Detach(b.Context(), s))
			}
		})
		b.Run(backend+"/reference", func(b *testing.B) {
			w := newWorld(b)
			s := w.spec(conf(`"backend":"`+backend+`"`, someMappings))
			for b.Loop() {
				try(b, reference(b, w, "ADD", s))
				try(b, reference(b, w, "DEL", s))
			}
		})
	}
}
