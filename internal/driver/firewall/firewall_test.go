package firewall_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
)

// needRules is for tests of one backend: a kernel has nftables for IP, or else
// the old iptables.
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

// scenarios say who reaches whom when pod and stranger are attached, on a node
// that forwards nothing otherwise.
var scenarios = []struct {
	name, keys string
	answers    map[string]bool
}{
	{"open", ``, map[string]bool{
		"pod to outside": true, "outside to pod": false, "stranger to pod": true, "neighbour to outside": false,
		"neighbour to pod": true, "outside to neighbour": false,
	}},
	{"same-bridge", `"ingressPolicy":"same-bridge"`, map[string]bool{
		"pod to outside": true, "outside to pod": false, "stranger to pod": false, "pod to stranger": false,
		"neighbour to pod": true,
	}},
	{"isolated", `"ingressPolicy":"isolated"`, map[string]bool{
		"pod to outside": true, "outside to pod": false, "stranger to pod": false, "neighbour to pod": true,
	}},
	{"admin chain", `"iptablesAdminChainName":"OWN-ADMIN"`, map[string]bool{"pod to outside": true}},
}

func with(keys, backend string) string {
	if backend == "" {
		return keys
	}
	return strings.Trim(keys+`,"backend":"`+backend+`"`, ",")
}

// Whichever backend makes them, the rules are the same, word by word, and the
// reference plugin's too.
func TestContainersPassTheFirewall(t *testing.T) {
	for i, sc := range scenarios {
		for _, backend := range []string{"nftables", "iptables", ""} {
			t.Run(sc.name+"/backend "+backend, func(t *testing.T) {
				needRules(t, backend)
				if inGuest() && i != 1 {
					t.Skip("tested on the host's kernel in tier net; to start programs in a guest is slow")
				}
				t.Parallel()
				w := newWorld(t)
				w.forwardNothing(t)
				w.expect(t, map[string]bool{"pod to outside": false})
				pod, stranger := w.spec("pod", with(sc.keys, backend)), w.spec("stranger", with(sc.keys, backend))
				for range 2 { // a repetition adds nothing
					for _, s := range []driver.Spec{pod, stranger} {
						res, err := w.d.Attach(t.Context(), s)
						try(t, err)
						if res != s.Prev {
							t.Errorf("result %+v", res)
						}
						try(t, w.d.Check(t.Context(), s))
					}
				}
				w.expect(t, sc.answers)
				golden(t, strings.ReplaceAll(sc.name, " ", "-"), w.rules(t))
				pod.NetNS, pod.Prev = nil, nil // as after a crash
				for range 2 {
					try(t, w.d.Detach(t.Context(), pod))
				}
				if left := w.rules(t); strings.Contains(left, "10.1.1.2") || strings.Contains(left, "fd01::2") || !strings.Contains(left, "10.1.2.2") {
					t.Errorf("left:\n%s", left)
				}
				w.expect(t, map[string]bool{"pod to outside": false})
				if err := w.d.Check(t.Context(), w.spec("pod", with(sc.keys, backend))); err == nil {
					t.Error("Check of nothing succeeds")
				}
				try(t, w.d.Detach(t.Context(), stranger))
				if left := w.run(t, "iptables", "-S"); strings.Contains(left, "10.1.") || strings.Contains(left, "CNI-FW-") {
					t.Errorf("left:\n%s", left)
				}
			})
		}
	}
}

func TestSameAsTheReferencePlugin(t *testing.T) {
	if inGuest() {
		t.Skip("compared on the host's kernel in tier net; here the reference plugin does not find the right iptables")
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			needRules(t, "nftables")
			t.Parallel()
			ours, theirs := newWorld(t), newWorld(t)
			for _, w := range []*world{ours, theirs} {
				w.forwardNothing(t)
			}
			for _, who := range []string{"pod", "stranger"} {
				must(ours.d.Attach(t.Context(), ours.spec(who, sc.keys)))(t)
				try(t, theirs.reference(t, "ADD", theirs.spec(who, sc.keys)))
			}
			if a, b := ours.rules(t), theirs.rules(t); a != b {
				t.Errorf("rules differ\n--- driver\n%s--- reference\n%s", a, b)
			}
			theirs.expect(t, sc.answers)
			if err := theirs.d.Check(t.Context(), theirs.spec("pod", sc.keys)); err != nil {
				t.Errorf("Check of what the reference built: %v", err)
			}
			if err := ours.reference(t, "CHECK", ours.spec("pod", sc.keys)); err != nil {
				t.Errorf("the reference's CHECK of what the driver built: %v", err)
			}
			// The reference finds what is there and adds nothing.
			before := ours.rules(t)
			try(t, ours.reference(t, "ADD", ours.spec("pod", sc.keys)))
			if after := ours.rules(t); after != before {
				t.Errorf("rules after the reference's ADD\n%s, before\n%s", after, before)
			}
			try(t, ours.reference(t, "DEL", ours.spec("pod", sc.keys)))
			try(t, theirs.d.Detach(t.Context(), theirs.spec("pod", sc.keys)))
			if a, b := ours.rules(t), theirs.rules(t); a != b || strings.Contains(a, "10.1.1.2") {
				t.Errorf("rules after the other removed them\n--- driver's\n%s--- reference's\n%s", a, b)
			}
		})
	}
}

// The chain of the node's administrator is asked first.
func TestAdministratorOverrides(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			needRules(t, backend)
			w := newWorld(t)
			must(w.d.Attach(t.Context(), w.spec("pod", with("", backend))))(t)
			w.expect(t, map[string]bool{"pod to outside": true})
			for _, program := range []string{"iptables", "ip6tables"} {
				w.run(t, program, "-A", "CNI-ADMIN", "-p", "tcp", "--dport", "80", "-j", "DROP")
			}
			w.expect(t, map[string]bool{"pod to outside": false})
			must(w.d.Attach(t.Context(), w.spec("stranger", with("", backend))))(t)
			w.expect(t, map[string]bool{"pod to outside": false, "stranger to outside": false})
		})
	}
}

// A reload of other rules may flush the hook. Then the isolation must not end
// up behind what it restricts.
func TestIsolationStaysFirst(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			needRules(t, backend)
			w := newWorld(t)
			s := w.spec("pod", with(`"ingressPolicy":"isolated"`, backend))
			must(w.d.Attach(t.Context(), s))(t)
			want := w.rules(t)
			for _, program := range []string{"iptables", "ip6tables"} {
				w.run(t, program, "-D", "FORWARD", "-m", "comment", "--comment", "CNI firewall plugin rules", "-j", "CNI-FORWARD")
			}
			if err := w.d.Check(t.Context(), s); err == nil || !strings.Contains(err.Error(), "CNI-FORWARD") {
				t.Errorf("Check: %v", err)
			}
			must(w.d.Attach(t.Context(), s))(t)
			if got := w.rules(t); got != want {
				t.Errorf("rules\n%s, want\n%s", got, want)
			}
		})
	}
}

func TestCheckNamesTheMissingRule(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			needRules(t, backend)
			w := newWorld(t)
			s := w.spec("pod", with(`"ingressPolicy":"same-bridge"`, backend))
			must(w.d.Attach(t.Context(), s))(t)
			for command, want := range map[string]string{
				"iptables -D CNI-FORWARD -s 10.1.1.2/32 -j ACCEPT":                                         "-s 10.1.1.2/32 -j ACCEPT",
				"ip6tables -D CNI-FORWARD -d fd01::2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": "-d fd01::2/128",
				"iptables -F CNI-ISOLATION-STAGE-2":                                                        "CNI-ISOLATION-STAGE-2",
				"ip6tables -F FORWARD":                                                                     "FORWARD",
			} {
				words := strings.Fields(command)
				w.run(t, words[0], words[1:]...)
				if err := w.d.Check(t.Context(), s); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Check after %q: %v", command, err)
				}
				if inGuest() {
					break // programs are slow to start there
				}
				must(w.d.Attach(t.Context(), s))(t)
				try(t, w.d.Check(t.Context(), s))
			}
		})
	}
}

// The old iptables is seen and used where the node has rules of it, because an
// accept of nftables does not undo its drop.
func TestOldIPTablesIsAskedWhereItFilters(t *testing.T) {
	if !inGuest() {
		t.Skip("the machine's own kernel has no old iptables; tier guest has")
	}
	needRules(t, "iptables")
	w := newWorld(t)
	w.forwardNothing(t)
	s := w.spec("pod", "")
	s.Host = nil
	var again *types.Error
	if _, err := w.d.Attach(t.Context(), s); !errors.As(err, &again) || again.Code != types.ErrTryAgainLater {
		t.Errorf("Attach without a hand on the host: %v", err)
	}
	if err := w.d.Detach(t.Context(), s); !errors.As(err, &again) || again.Code != types.ErrTryAgainLater {
		t.Errorf("Detach without a hand on the host: %v", err)
	}
	must(w.d.Attach(t.Context(), w.spec("pod", "")))(t)
	w.expect(t, map[string]bool{"pod to outside": true})
}

// Without a program of the host, where that is not needed.
func TestNeedsNoProgram(t *testing.T) {
	if inGuest() {
		t.Skip("the guest's kernel has no nftables for IP")
	}
	needRules(t, "nftables")
	w := newWorld(t)
	s := w.spec("pod", "")
	s.Host = nil
	must(w.d.Attach(t.Context(), s))(t)
	try(t, w.d.Check(t.Context(), s))
	try(t, w.d.Detach(t.Context(), s))
}

// fakeFirewalld answers as firewall-cmd does, which this machine does not have.
type fakeFirewalld map[string]bool

func (f fakeFirewalld) Exec(_ context.Context, p driver.Program) ([]byte, error) {
	if p.Name != "firewall-cmd" || len(p.Args) != 2 || p.Args[0] != "--zone=inner" {
		return nil, errors.New("unexpected " + p.Name + " " + strings.Join(p.Args, " "))
	}
	verb, source, _ := strings.Cut(p.Args[1], "=")
	switch {
	case verb == "--add-source":
		f[source] = true
	case verb == "--remove-source" && f[source]:
		delete(f, source)
	case verb == "--query-source" && f[source]:
	default:
		return nil, &driver.ExitError{Program: p.Name, Code: 1}
	}
	return nil, nil
}

func TestFirewalldGetsTheAddressesAsSources(t *testing.T) {
	kerneltest.Need(t, kerneltest.NetNS)
	w := newWorld(t)
	zone := fakeFirewalld{}
	s := w.spec("pod", `"backend":"firewalld","firewalldZone":"inner"`)
	s.Host = zone
	for range 2 {
		must(w.d.Attach(t.Context(), s))(t)
	}
	if !zone["10.1.1.2/32"] || !zone["fd01::2/128"] || len(zone) != 2 {
		t.Errorf("sources %v", zone)
	}
	try(t, w.d.Check(t.Context(), s))
	delete(zone, "fd01::2/128")
	if err := w.d.Check(t.Context(), s); err == nil || !strings.Contains(err.Error(), "fd01::2") {
		t.Errorf("Check: %v", err)
	}
	for range 2 {
		try(t, w.d.Detach(t.Context(), s))
	}
	if len(zone) != 0 {
		t.Errorf("sources left: %v", zone)
	}
}

// firewalld that runs is recognized by its table.
func TestRunningFirewalldIsPreferred(t *testing.T) {
	if inGuest() {
		t.Skip("the guest's kernel has no nftables for IP")
	}
	needRules(t, "nftables")
	w := newWorld(t)
	zone := fakeFirewalld{}
	s := w.spec("pod", `"firewalldZone":"inner","ingressPolicy":"isolated"`)
	s.Host = zone
	w.run(t, "nft", "add", "table", "inet", "firewalld")
	must(w.d.Attach(t.Context(), s))(t)
	rules := w.rules(t)
	if len(zone) != 2 || strings.Contains(rules, "CNI-FORWARD") || !strings.Contains(rules, "-i braidbr0 -o braidbr0") {
		t.Errorf("sources %v, rules\n%s", zone, rules)
	}
	try(t, w.d.Detach(t.Context(), s))
	if len(zone) != 0 {
		t.Errorf("sources left: %v", zone)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	needRules(b, "nftables")
	w := newWorld(b)
	w.rules(b)
	s := w.spec("pod", "")
	b.Run("driver", func(b *testing.B) {
		for b.Loop() {
			must(w.d.Attach(b.Context(), s))(b)
			try(b, w.d.Detach(b.Context(), s))
		}
	})
	b.Run("reference", func(b *testing.B) {
		for b.Loop() {
			try(b, w.reference(b, "ADD", s))
			try(b, w.reference(b, "DEL", s))
		}
	})
}
