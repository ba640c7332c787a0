package guest_test

import (
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
)

// TestQEMU holds a guest under QEMU to what one under user-mode-linux does,
// and to what it is there for: one kernel with all that Braid uses.
func TestQEMU(t *testing.T) {
	ns, nsPath := bridgeNS(t)
	kerneltest.Need(t, kerneltest.QEMU)
	c, shared := furnished(t, nsPath, "qemu")
	c.Kernel, c.MemoryMiB = guest.QEMU, 512
	g := start(t, c)
	begin := lookAtClock(t, g)

	t.Run("commands", func(t *testing.T) { testCommands(t, g) })
	t.Run("input", func(t *testing.T) { testInput(t, g) })
	t.Run("files", func(t *testing.T) { testFiles(t, g, shared) })
	t.Run("daemons", func(t *testing.T) { testDaemons(t, g) })
	t.Run("open", func(t *testing.T) { testOpen(t, g, c) })
	t.Run("a machine of its own", func(t *testing.T) {
		for command, want := range map[string]string{
			"hostname":                          "qemu",
			"nproc":                             "1",
			"cat /proc/sys/net/ipv4/ip_forward": "1",
			"ls /sys/class/net":                 "eth0\nlo\ntrunk0",
			"ip -4 -o route show default":       "default via 192.168.77.1 dev eth0",
			"busybox ping -c 1 -W 5 192.168.77.1 >/dev/null; echo $?": "0",
			"stat -f -c %T /": "overlayfs",
		} {
			if got := output(t, g, "sh", "-c", command); strings.TrimSpace(got) != want {
				t.Errorf("%s: %q, want %q", command, got, want)
			}
		}
	})
	// The scheduler runs the code that this changes. On two processors, 1400
	// changes stopped the guest for ever in two of three runs.
	t.Run("its kernel changes its own code", func(t *testing.T) {
		output(t, g, "sh", "-ec", `
			while :; do :; done &
			for i in $(seq 100); do
				echo 1 >/proc/sys/kernel/sched_schedstats
				echo 0 >/proc/sys/kernel/sched_schedstats
			done
			kill $!`)
	})
	t.Run("its kernel has everything", func(t *testing.T) {
		for _, command := range []string{
			"ip link add braidipvl0 link trunk0 type ipvlan mode l3s",
			"ip link add braidvlan0 link trunk0 type vlan id 5",
			"ip link add braidbr0 type bridge vlan_filtering 1",
			"ip link add braidvrf0 type vrf table 5",
			"ip link add braiddummy0 type dummy",
			"test -s /sys/kernel/btf/vmlinux",
			"test -e /proc/sys/kernel/perf_event_paranoid",
			"test -e /proc/sys/net/core/bpf_jit_enable",
		} {
			output(t, g, "sh", "-c", command)
		}
	})
	t.Run("its clock is the machine's", func(t *testing.T) { sameRate(t, begin, lookAtClock(t, g)) })
	t.Run("nothing is left of it", func(t *testing.T) {
		stop(t, g, c.Dir)
		if g.Running() {
			t.Error("it runs after Stop")
		}
		for link := range linksIn(t, ns) {
			if strings.HasPrefix(link, "braidqemu") {
				t.Errorf("link %s is left", link)
			}
		}
	})
}

// clockLook is what a guest's clock shows at a moment between two of the machine's.
type clockLook struct {
	before, after time.Time
	uptime        time.Duration
}

func lookAtClock(t *testing.T, g *guest.Guest) (l clockLook) {
	t.Helper()
	l.before = time.Now()
	uptime, _, _ := strings.Cut(output(t, g, "cat", "/proc/uptime"), " ")
	l.after = time.Now()
	var err error
	if l.uptime, err = time.ParseDuration(uptime + "s"); err != nil {
		t.Fatal(err)
	}
	return l
}

// sameRate compares the guest's time between two looks with the machine's. It
// is known within bounds, however slow the guest answers.
func sameRate(t *testing.T, first, second clockLook) {
	t.Helper()
	const grain = 20 * time.Millisecond // hundredths of a second, cut off twice
	shortest, longest := second.before.Sub(first.after), second.after.Sub(first.before)
	if d := second.uptime - first.uptime; d < shortest*99/100-grain || d > longest*101/100+grain {
		t.Errorf("%v by the guest's clock in %v to %v", d, shortest, longest)
	}
}
