package guest

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/guest/control"
)

func nic(spoil func(*NIC)) NIC {
	n := NIC{Name: "eth0", Tap: "braidtap0", Addr: netip.MustParsePrefix("10.0.0.2/24")}
	if spoil != nil {
		spoil(&n)
	}
	return n
}

func TestABadConfigIsRefusedBeforeAnythingIsMade(t *testing.T) {
	good := Config{Name: "node1", Dir: "/run/x", NICs: []NIC{nic(nil)}}
	if _, err := good.normalize(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no name":       func(c *Config) { c.Name = "" },
		"name":          func(c *Config) { c.Name = "a b" },
		"name too long": func(c *Config) { c.Name = strings.Repeat("a", 33) },
		"no directory":  func(c *Config) { c.Dir = "" },
		"directory":     func(c *Config) { c.Dir = "/run/x y" },
		"memory":        func(c *Config) { c.MemoryMiB = 8 },
		"processors":    func(c *Config) { c.Kernel, c.Processors = QEMU, -1 },
		"UML's second":  func(c *Config) { c.Processors = 2 },
		"disk":          func(c *Config) { c.Disk = "/run/a,b" },
		"share":         func(c *Config) { c.Shares = []Share{{Host: "a", Guest: "/a"}} },
		"link name":     func(c *Config) { c.NICs[0].Name = "sixteencharsname" },
		"no link name":  func(c *Config) { c.NICs[0].Name = "" },
		"tap":           func(c *Config) { c.NICs[0].Tap = "a,b" },
		"MTU":           func(c *Config) { c.NICs[0].MTU = 67 },
		"MAC":           func(c *Config) { c.NICs[0].MAC = []byte{1} },
		"useless gateway": func(c *Config) {
			c.NICs[0] = nic(func(n *NIC) { n.Addr = netip.Prefix{}; n.Gateway = netip.MustParseAddr("10.0.0.1") })
		},
	} {
		c := good
		c.NICs = slices.Clone(good.NICs)
		spoil(&c)
		if _, err := c.normalize(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNormalizeLeavesTheCallersConfigAlone(t *testing.T) {
	c := Config{Name: "node1", Dir: "/run/x", NICs: []NIC{nic(nil)}}
	if _, err := c.normalize(); err != nil || c.NICs[0].MAC != nil || c.Hostname != "" {
		t.Errorf("%v, %+v", err, c)
	}
}

func TestDerivedMACsAreStableLocalAndDifferent(t *testing.T) {
	seen := map[string]bool{}
	for _, parts := range [][]string{{"node1", "eth0"}, {"node1", "trunk0"}, {"node2", "eth0"}, {"node", "1eth0"}} {
		mac := deriveMAC(parts...)
		if mac[0]&3 != 2 || mac.String() != deriveMAC(parts...).String() || seen[mac.String()] {
			t.Errorf("%v: %s", parts, mac)
		}
		seen[mac.String()] = true
	}
}

func TestArgumentsOfUserModeLinux(t *testing.T) {
	c, err := Config{
		Name: "node1", Dir: "/run/x", Program: "/usr/bin/linux", Init: "/i", MemoryMiB: 300,
		NICs: []NIC{nic(func(n *NIC) { n.MAC = []byte{2, 0, 0, 0, 0, 1} })},
	}.normalize()
	if err != nil {
		t.Fatal(err)
	}
	want := "/usr/bin/linux mem=300M root=/dev/root rootfstype=hostfs rootflags=/ rw init=/i uml_dir=./uml/ umid=guest " +
		"con=null con0=fd:6,fd:1 con1=null,fd:3 con2=null,fd:4 con3=null,fd:5 ssl=null quiet " +
		"initcall_blacklist=raid6_select_algo,calibrate_xor_blocks lpj=20000000 " +
		"BRAID_BOOT=/run/x/boot.json vec0:transport=tap,ifname=braidtap0,depth=128,gro=1,mac=02:00:00:00:00:01"
	if got := strings.Join(umlArgs(c, "/run/x/boot.json"), " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	c.Disk = "/run/d"
	if got := strings.Join(umlArgs(c, "/run/x/boot.json"), " "); !strings.Contains(got, " ubd0=/run/d/disk.ext4 ") {
		t.Errorf("no disk in %s", got)
	}
}

func TestTheAgentAnswersOnTheFirstAddress(t *testing.T) {
	trunk := nic(func(n *NIC) { n.Addr = netip.Prefix{} })
	if got, err := agentAddr([]NIC{trunk, nic(nil)}); err != nil || got != netip.MustParseAddrPort("10.0.0.2:61") {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := agentAddr([]NIC{trunk}); err == nil {
		t.Error("a guest without an address was accepted")
	}
}

func TestClockRate(t *testing.T) {
	for info, want := range map[string]string{
		"processor\t: 0\ncpu MHz\t\t: 2596.148\nprocessor\t: 1\ncpu MHz\t\t: 1.0\n": "2596.148",
		"processor\t: 0\nmodel name\t: x\n":                                         "1000.000",
		"":                                                                          "1000.000",
	} {
		if got := clockRate(info); got != want {
			t.Errorf("%q: %s, want %s", info, got, want)
		}
	}
}

func TestLastWordsBeginWithThePanic(t *testing.T) {
	trace := strings.Repeat("  at somewhere\n", 30)
	if got := lastWords("boot\nKernel panic - not syncing\n" + trace); got[0] != "Kernel panic - not syncing" || len(got) != 31 {
		t.Errorf("%d lines from %q", len(got), got[0])
	}
	if got := lastWords(trace); len(got) != 15 {
		t.Errorf("%d lines of a long console", len(got))
	}
	if got := lastWords("Kernel panic\nx"); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestAReusedProcessIDIsNotTheGuest(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := process{PID: p.PID, Start: p.Start - 1}
	if !p.running() || other.running() {
		t.Errorf("running: %v, with another start time: %v", p.running(), other.running())
	}
	if err := other.kill(t.Context()); err != nil || !p.running() {
		t.Errorf("kill of a process that is gone: %v; the one with its id still runs: %v", err, p.running())
	}
	if err := p.kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
	if p.running() {
		t.Error("it survived")
	}
	if _, err := p.pin(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pin: %v", err)
	}
}

func TestNoProcessIsNotRunning(t *testing.T) {
	var p process
	if p.running() || p.kill(t.Context()) != nil || p.wait(t.Context()) != nil {
		t.Error("process 0 is something")
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	p, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait for this very process: %v", err)
	}
}

func TestMemoryThatTheHostLacksIsRefused(t *testing.T) {
	if err := checkMemory(1 << 30); err == nil {
		t.Error("a guest with 1 PiB of memory was accepted")
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own))
	f.Add("1 (a) b (c)) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 6 7")
	f.Add("1 (")
	f.Add(") S")
	f.Fuzz(func(t *testing.T, stat string) {
		start, state, err := parseStat(stat)
		if err == nil && state == 0 || err != nil && start != 0 {
			t.Errorf("%q: %d %q %v", stat, start, state, err)
		}
	})
}

func TestStatOfAProgramWithParenthesesInItsName(t *testing.T) {
	const stat = "1 (a) S 1 (b)) R 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 6 7"
	if start, state, err := parseStat(stat); start != 12345 || state != 'R' || err != nil {
		t.Errorf("%d %q %v", start, state, err)
	}
}

func FuzzReadStatus(f *testing.F) {
	for _, s := range []string{"ready \"\"\n", "exit \"7\"\n", "fail \"no \\n such\"\n", "ready", "\n", "exit 7\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		word, _, err := readStatus(bufio.NewReader(strings.NewReader(text)))
		if err == nil && word == "" {
			t.Errorf("%q: an empty word", text)
		}
	})
}

func TestStatusLines(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("fail \"mount a\\nb\"\nexit \"7\"\n"))
	if word, arg, err := readStatus(r); word != control.StatusFail || arg != "mount a\nb" || err != nil {
		t.Errorf("%q %q %v", word, arg, err)
	}
	if word, arg, err := readStatus(r); word != control.StatusExit || arg != "7" || err != nil {
		t.Errorf("%q %q %v", word, arg, err)
	}
	if _, _, err := readStatus(r); !errors.Is(err, errDied) {
		t.Errorf("at the end: %v", err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x02hix\x00\x00\x00\x02{}"))
	f.Add([]byte("x\x00\x00\x00\x02{]"))
	f.Add([]byte("z\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out strings.Builder
		if _, err := receive(strings.NewReader(string(data)), &out, nil); err == nil && len(data) < 7 {
			t.Errorf("%q is no whole answer", data)
		}
	})
}

func TestArgumentsOfQEMU(t *testing.T) {
	c, err := Config{
		Name: "node1", Dir: "/run/x", Kernel: QEMU, Program: "/usr/bin/qemu", Init: "/i", MemoryMiB: 300,
		NICs: []NIC{nic(func(n *NIC) { n.MAC = []byte{2, 0, 0, 0, 0, 1} })}, Disk: "/run/d",
	}.normalize()
	if err != nil {
		t.Fatal(err)
	}
	c.linux = linux{release: "6.1", image: "/k/boot/vmlinuz-6.1", modules: "/k/lib/modules"}
	c.tscKHz = 2445431
	got := strings.Join(qemuArgs(c, "/run/x/boot.json"), " ")
	for _, want := range []string{
		"/usr/bin/qemu -machine q35 -accel tcg", " -smp 1 ", " maxcpus=1 ", " -m 300M ", "size=300M,mem-path=/dev/shm,share=on",
		"-kernel /k/boot/vmlinuz-6.1 -initrd /run/x/initrd", "BRAID_BOOT=/run/x/boot.json BRAID_TTY=/dev/ttyS",
		"clocksource=tsc tsc_early_khz=2445431 ",
		"-drive file=/run/d/disk.ext4,format=raw,if=virtio",
		"-netdev tap,id=net0,ifname=braidtap0,script=no,downscript=no -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	b := qemuBoot(c, umlBoot(c, "1000.000"))
	if b.ModuleDir != "/k/lib/modules" || b.Hostfs || b.Links[0].Device != "eth0" || b.Disk.Device != "vda" {
		t.Errorf("boot file: %+v", b)
	}
}
