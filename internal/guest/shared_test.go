package guest_test

import (
	"os"
	"strings"
	"testing"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
)

// TestHostKernel holds a guest on this machine's own kernel to what a guest
// with a kernel of its own does.
func TestHostKernel(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns, nsPath := bridgeNS(t)
	c, shared := furnished(t, nsPath, "shared")
	c.Kernel = guest.Host
	panicBefore := read(t, "/proc/sys/kernel/panic")
	g := start(t, c)

	t.Run("commands", func(t *testing.T) { testCommands(t, g) })
	t.Run("input", func(t *testing.T) { testInput(t, g) })
	t.Run("cancel", func(t *testing.T) { testCancel(t, g) })
	t.Run("files", func(t *testing.T) { testFiles(t, g, shared) })
	t.Run("daemons", func(t *testing.T) { testDaemons(t, g) })
	t.Run("open", func(t *testing.T) { testOpen(t, g, c) })
	t.Run("a machine of its own", func(t *testing.T) {
		for command, want := range map[string]string{
			"hostname":                          "shared",
			"cat /proc/1/comm":                  "braid-guest-ini",
			"cat /proc/sys/net/ipv4/ip_forward": "1",
			"ls /sys/class/net":                 "eth0\nlo\ntrunk0",
			"ip -4 -o route show default":       "default via 192.168.77.1 dev eth0",
			"busybox ping -c 1 -W 5 192.168.77.1 >/dev/null; echo $?": "0",
			"ls /run /etc/cni /opt/cni/ | tr '\\n' ' '":               "/etc/cni:  /opt/cni/:  /run: braid-guest lock",
			"stat -f -c %T /sys/fs/bpf":                               "bpf_fs",
		} {
			if got := output(t, g, "sh", "-c", command); got != want {
				t.Errorf("%s: %q, want %q", command, got, want)
			}
		}
	})
	t.Run("what a kubelet sets stays in it", func(t *testing.T) {
		output(t, g, "sh", "-c", "echo 77 >/proc/sys/kernel/panic")
		if got := output(t, g, "cat", "/proc/sys/kernel/panic"); got != "77" {
			t.Errorf("in the guest: %q", got)
		}
		if now := read(t, "/proc/sys/kernel/panic"); now != panicBefore {
			t.Errorf("on the machine: %q, and before %q", now, panicBefore)
		}
	})

	stop(t, g, c.Dir)
	if g.Running() {
		t.Error("it runs after Stop")
	}
	for link := range linksIn(t, ns) {
		if strings.HasPrefix(link, "braidshared") {
			t.Errorf("link %s is left", link)
		}
	}
}

func TestHostKernelSaysWhyItDoesNotStart(t *testing.T) {
	_, nsPath := bridgeNS(t)
	c := config(t, nsPath, "bad", "192.168.77.2/24")
	c.Kernel = guest.Host
	c.Sysctls = map[string]string{"net.braid.none": "1"}
	_, err := guest.Start(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "set net.braid.none to 1") {
		t.Errorf("error %v", err)
	}
	noneLeft(t, c.Dir)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
