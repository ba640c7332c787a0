package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
)

// bootLimit is generous: tests share the machine's processors.
const bootLimit = 60 * time.Second

func TestMain(m *testing.M) {
	if conf := os.Getenv("BRAID_TEST_START"); conf != "" {
		startAndHang(conf)
	}
	if os.Getenv("BRAID_TEST_ONCE") != "" {
		onceAndHang()
	}
	os.Exit(m.Run())
}

// config is a guest with a management and a trunk link.
func config(t *testing.T, nsPath, name, addr string) guest.Config {
	return guest.Config{
		Name:  name,
		Dir:   filepath.Join(t.TempDir(), name),
		NetNS: nsPath,
		NICs: []guest.NIC{
			{Name: "eth0", Tap: "braid" + name + "m", Bridge: "braidmgmt", Addr: netip.MustParsePrefix(addr)},
			{Name: "trunk0", Tap: "braid" + name + "t", Bridge: "braidtrunk"},
		},
		MemoryMiB: 256,
		Modules:   []string{"bridge"},
	}
}

// furnished is a guest with all that one can be given on every kind of kernel,
// and the host's directory that it sees as /mnt/shared.
func furnished(t *testing.T, nsPath, name string) (c guest.Config, shared string) {
	c, shared = config(t, nsPath, name, "192.168.77.2/24"), t.TempDir()
	c.Shares = []guest.Share{{Host: shared, Guest: "/mnt/shared"}}
	c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	c.Hosts = map[string]netip.Addr{"other": netip.MustParseAddr("192.168.77.3")}
	c.NICs[0].Gateway = netip.MustParseAddr("192.168.77.1")
	return c, shared
}

func start(t *testing.T, c guest.Config) *guest.Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	begin := time.Now()
	g, err := guest.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("guest %s is ready after %v", c.Name, time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		stop(t, g, c.Dir)
		if t.Failed() {
			console, err := os.ReadFile(g.ConsoleLog())
			t.Logf("console of %s: %v\n%s", c.Name, err, console[max(0, len(console)-8<<10):])
		}
	})
	return g
}

// stop ends a guest and sees that nothing is left.
func stop(t *testing.T, g *guest.Guest, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		t.Error(err)
	}
	noneLeft(t, dir)
}

// noneLeft checks that no process of the guest in dir exists. All of them have
// the path of its boot file on their command line.
func noneLeft(t *testing.T, dir string) {
	t.Helper()
	if left := processes(t, dir); len(left) > 0 {
		t.Errorf("processes left of the guest in %s: %v", dir, left)
	}
}

func processes(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		cmdline, err := os.ReadFile(f)
		if err == nil && (bytes.Contains(cmdline, []byte("="+dir+"/")) || bytes.Contains(cmdline, []byte("\x00"+dir+"/"))) {
			found = append(found, filepath.Base(filepath.Dir(f)))
		}
	}
	return found
}

func output(t *testing.T, g *guest.Guest, args ...string) string {
	t.Helper()
	out, err := g.Output(t.Context(), args...)
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(out)
}

func TestGuest(t *testing.T) {
	ns, nsPath := bridgeNS(t)
	c, shared := furnished(t, nsPath, "one")
	c.Tmpfs = []string{"/etc/kubernetes"}
	g := start(t, c)

	t.Run("commands", func(t *testing.T) { testCommands(t, g) })
	t.Run("input", func(t *testing.T) { testInput(t, g) })
	t.Run("cancel", func(t *testing.T) { testCancel(t, g) })
	t.Run("files", func(t *testing.T) { testFiles(t, g, shared) })
	t.Run("system", func(t *testing.T) { testSystem(t, g) })
	t.Run("daemons", func(t *testing.T) { testDaemons(t, g) })
	t.Run("open", func(t *testing.T) { testOpen(t, g, c) })
	t.Run("containers need", func(t *testing.T) { testContainerNeeds(t, g) })

	stop(t, g, c.Dir)
	console, err := os.ReadFile(g.ConsoleLog())
	if err != nil || !bytes.Contains(console, []byte("System halted")) {
		t.Errorf("the guest did not power off: %v; console:\n%s", err, console)
	}
	for link := range linksIn(t, ns) {
		if strings.HasPrefix(link, "braidone") {
			t.Errorf("tap %s is left", link)
		}
	}
	if _, err := g.Run(t.Context(), guest.Cmd{Args: []string{"true"}}); !errors.Is(err, guest.ErrNotRunning) {
		t.Errorf("run in a stopped guest: %v, want ErrNotRunning", err)
	}
}

func testCommands(t *testing.T, g *guest.Guest) {
	var stdout, stderr bytes.Buffer
	code, err := g.Run(t.Context(), guest.Cmd{
		Args:   []string{"sh", "-c", `echo "$A in $PWD"; echo bad >&2; exit 7`},
		Env:    []string{"A=one"},
		Dir:    "/usr",
		Stdout: &stdout, Stderr: &stderr,
	})
	if code != 7 || err != nil || stdout.String() != "one in /usr\n" || stderr.String() != "bad\n" {
		t.Errorf("exit code %d, %v, stdout %q, stderr %q", code, err, &stdout, &stderr)
	}
	if code, err := g.Run(t.Context(), guest.Cmd{Args: []string{"sh", "-c", "kill -9 $$"}}); code != 137 || err != nil {
		t.Errorf("killed by signal 9: exit code %d, %v, want 137", code, err)
	}
	if _, err := g.Run(t.Context(), guest.Cmd{Args: []string{"no-such-program"}}); err == nil ||
		!strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that does not exist: %v", err)
	}
	if _, err := g.Run(t.Context(), guest.Cmd{}); err == nil {
		t.Error("a command without arguments ran")
	}
	if _, err := g.Output(t.Context(), "sh", "-c", "echo why >&2; exit 3"); err == nil ||
		!strings.Contains(err.Error(), "exit status 3: why") {
		t.Errorf("Output of a command that fails: %v", err)
	}
	// A child that keeps the output open does not keep Run.
	begin := time.Now()
	output(t, g, "sh", "-c", "sleep 1000 & echo $!")
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("Run waited %v for a child in the background", d)
	}
}

func testInput(t *testing.T, g *guest.Guest) {
	in := bytes.Repeat([]byte("any\x00\xff\r\nbytes\x04"), 1<<18)
	var out bytes.Buffer
	code, err := g.Run(t.Context(), guest.Cmd{Args: []string{"cat"}, Stdin: bytes.NewReader(in), Stdout: &out})
	if code != 0 || err != nil || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("exit code %d, %v, %d bytes through cat, want %d unchanged", code, err, out.Len(), len(in))
	}
	// A command that does not read its input ends all the same.
	code, err = g.Run(t.Context(), guest.Cmd{Args: []string{"true"}, Stdin: bytes.NewReader(in)})
	if code != 0 || err != nil {
		t.Errorf("input that nobody reads: exit code %d, %v", code, err)
	}
}

func testCancel(t *testing.T, g *guest.Guest) {
	for name, in := range map[string][]byte{"idle": nil, "input": make([]byte, 8<<20)} {
		ctx, cancel := context.WithCancel(t.Context())
		first := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
		mark := fmt.Sprintf("98%d", 700+len(name))
		_, err := g.Run(ctx, guest.Cmd{
			Args:  []string{"sh", "-c", "sleep " + mark + " & echo started; wait"},
			Stdin: bytes.NewReader(in), Stdout: first,
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled run: %v", name, err)
		}
		waitFor(t, name+": the command's children to be killed", func() bool {
			code, err := g.Run(t.Context(), guest.Cmd{Args: []string{"pgrep", "-f", "sleep " + mark}})
			return err == nil && code == 1
		})
		cancel()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// waitFor polls: the guest has no event for what tests wait for.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !done() {
		select {
		case <-limit:
			t.Errorf("waited in vain for %s", what)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func testFiles(t *testing.T, g *guest.Guest, shared string) {
	path := filepath.Join(t.TempDir(), "written-in-the-guest")
	output(t, g, "sh", "-c", "echo hello > "+path)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the guest wrote to the host's tree: %v", err)
	}
	if err := g.WriteFile(t.Context(), "/new/dir/file", []byte("data"), 0o751); err != nil {
		t.Error(err)
	}
	if s := output(t, g, "stat", "-c", "%a %s", "/new/dir/file"); s != "751 4" {
		t.Errorf("mode and size of a written file: %s", s)
	}
	if err := g.WriteFile(t.Context(), "/proc/no/file", nil, 0o600); err == nil {
		t.Error("wrote a file below /proc")
	}
	output(t, g, "sh", "-c", "echo result > /mnt/shared/file; sync")
	if data, err := os.ReadFile(filepath.Join(shared, "file")); string(data) != "result\n" {
		t.Errorf("shared file on the host: %q, %v", data, err)
	}
}

func testSystem(t *testing.T, g *guest.Guest) {
	for _, check := range [][2]string{
		{"hostname; grep -w one /etc/hosts; grep -w other /etc/hosts", "one\n192.168.77.2 one\n192.168.77.3 other"},
		{"cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"ip -4 route show default", "default via 192.168.77.1 dev eth0"},
		{"cat /sys/class/net/trunk0/operstate /sys/class/net/trunk0/mtu", "unknown\n1500"},
		{"ls -A /etc/kubernetes | wc -l; stat -f -c %T /etc/kubernetes", "0\ntmpfs"},
		{"busybox ping -c 1 -W 5 -q 192.168.77.1 >&2; echo $?", "0"},
		{"ip link add probe0 type dummy && ip link del probe0; echo $?", "0"},
		{"cat /proc/mounts | grep -c hostfs", "2"}, // the logs and the share, not the root
	} {
		if got := output(t, g, "sh", "-c", check[0]); strings.TrimSpace(got) != check[1] {
			t.Errorf("%s: %q, want %q", check[0], got, check[1])
		}
	}
}

// testContainerNeeds checks what containerd, runc and a kubelet look for.
func testContainerNeeds(t *testing.T, g *guest.Guest) {
	for _, check := range []string{
		"grep -q 'cpu MHz' /proc/cpuinfo",
		"test -c /dev/kmsg -a -c /dev/net/tun -a -c /dev/pts/ptmx -a -e /dev/fd/0",
		"mkdir /sys/fs/cgroup/probe && grep -qw memory /sys/fs/cgroup/probe/cgroup.controllers",
		"echo 1 > /sys/fs/cgroup/probe/pids.max && rmdir /sys/fs/cgroup/probe",
		"echo 262144 > /proc/sys/vm/max_map_count",
		"touch /dev/shm/x /run/x /tmp/x",
		"grep -q ' / / .* shared:' /proc/self/mountinfo",
		"grep -Eq '^[0-9a-f]{32}$' /etc/machine-id",
		"mkdir -p /var/lib/containerd/a /var/lib/containerd/u /var/lib/containerd/w /var/lib/containerd/m",
		"cd /var/lib/containerd && mount -t overlay o m -o lowerdir=a,upperdir=u,workdir=w && touch m/x && umount m",
	} {
		output(t, g, "sh", "-c", check)
	}
	// A container of runc, with a root of its own and limits.
	if _, err := exec.LookPath("runc"); err != nil {
		t.Fatal("runc is missing (Debian package runc)")
	}
	output(t, g, "sh", "-ec", runcScript)
}

const runcScript = `mkdir -p /var/lib/containerd/c/rootfs/bin && cd /var/lib/containerd/c
cp /bin/busybox rootfs/bin/ && ln -s busybox rootfs/bin/sh && mkdir rootfs/proc rootfs/dev rootfs/sys
runc spec
sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"sh", "-c", "exit 0"/' config.json
runc run braid-probe </dev/null`

func testDaemons(t *testing.T, g *guest.Guest) {
	ctx := t.Context()
	d := guest.Daemon{
		Name: "echo", Args: []string{"sh", "-c", `trap "echo end; exit 4" TERM; echo "start $A" >&2; sleep 1000 & wait`},
		Env: []string{"A=one"}, Restart: true,
	}
	if err := g.StartDaemon(ctx, d); err != nil {
		t.Fatal(err)
	}
	log := func() string {
		data, err := os.ReadFile(g.DaemonLog("echo"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	waitFor(t, "the daemon's output on the host", func() bool { return log() == "start one\n" })
	if err := g.StartDaemon(ctx, d); err == nil {
		t.Error("a second daemon took the same name")
	}
	first := status(t, g, "echo")
	if first.PID == 0 || first.Starts != 1 || first.Exit != "" {
		t.Errorf("status %+v", first)
	}
	if err := g.SignalDaemon(ctx, "echo", int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	waitFor(t, "the daemon to be started again", func() bool {
		s := status(t, g, "echo")
		return s.Starts == 2 && s.PID != 0 && s.PID != first.PID && s.Exit == "signal: killed"
	})
	waitFor(t, "its output", func() bool { return log() == "start one\nstart one\n" })
	if err := g.StopDaemon(ctx, "echo"); err != nil {
		t.Error(err)
	}
	if s := status(t, g, "echo"); s.PID != 0 || s.Starts != 2 || s.Exit != "exit status 4" {
		t.Errorf("status after stop: %+v", s)
	}
	if !strings.HasSuffix(log(), "end\n") {
		t.Errorf("log after stop: %q", log())
	}
	if err := g.StopDaemon(ctx, "echo"); err != nil {
		t.Errorf("stop again: %v", err)
	}
	if err := g.SignalDaemon(ctx, "echo", int(unix.SIGHUP)); err == nil {
		t.Error("signalled a daemon that does not run")
	}
	if err := g.StartDaemon(ctx, guest.Daemon{Name: "../up", Args: []string{"true"}}); err == nil {
		t.Error("a daemon's log escaped its directory")
	}
	if err := g.StartDaemon(ctx, guest.Daemon{Name: "none", Args: []string{"/no/such"}}); err == nil {
		t.Error("started a program that does not exist")
	}
}

func status(t *testing.T, g *guest.Guest, name string) guest.DaemonStatus {
	t.Helper()
	all, err := g.Daemons(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d guest.DaemonStatus) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("no daemon %s in %+v", name, all)
	}
	return all[i]
}

func testOpen(t *testing.T, g *guest.Guest, c guest.Config) {
	again, err := guest.Open(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.PID() != g.PID() || again.Name() != c.Name || output(t, again, "hostname") != c.Name {
		t.Errorf("opened %s, process %d, want the guest that was started, %d", again.Name(), again.PID(), g.PID())
	}
	if _, err := guest.Start(t.Context(), c); err == nil {
		t.Error("a second guest was started in the same directory")
	}
	if _, err := guest.Open(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open an empty directory: %v, want fs.ErrNotExist", err)
	}
	stranger, err := guest.Open(withToken(t, c.Dir, "wrong"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := stranger.Output(t.Context(), "id"); err == nil {
		t.Errorf("the agent obeyed a wrong token: %s", out)
	}
}

// withToken copies a guest's state, with another token.
func withToken(t *testing.T, dir, token string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "guest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	state["Token"] = token
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	if err := os.WriteFile(filepath.Join(copied, "guest.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return copied
}

func TestGuestsTalkOnATrunkOnlyWithinAVLAN(t *testing.T) {
	_, nsPath := bridgeNS(t)
	a := start(t, config(t, nsPath, "a", "192.168.77.2/24"))
	b := start(t, config(t, nsPath, "b", "192.168.77.3/24"))
	for i, g := range []*guest.Guest{a, b} {
		output(t, g, "sh", "-ec", fmt.Sprintf(vlanScript, i+1))
	}
	// 1472 bytes make a full frame: the tag must not cost MTU.
	output(t, a, pingIn("red", "10", "10.20.1.2")...)
	output(t, b, pingIn("blue", "10", "10.20.1.1")...)
	// red and blue share a subnet: only the VLAN keeps them apart. red of a
	// pings an address that only blue of b has.
	output(t, b, "ip", "netns", "exec", "blue", "ip", "addr", "add", "10.20.1.77/24", "dev", "blue0")
	code, err := a.Run(t.Context(), guest.Cmd{Args: pingIn("red", "1", "10.20.1.77")})
	if code != 1 || err != nil {
		t.Errorf("ping from VLAN 2001 into VLAN 2002: exit code %d, %v, want 1: no answer", code, err)
	}
}

func pingIn(ns, wait, addr string) []string {
	return strings.Fields("ip netns exec " + ns + " busybox ping -q -c 2 -s 1472 -W " + wait + " " + addr)
}

// vlanScript makes a VLAN-aware bridge on the trunk and two "pods" of the same
// subnet, one in VLAN 2001 and one in VLAN 2002.
const vlanScript = `
ip link add vlanbr0 type bridge vlan_filtering 1
ip link set trunk0 master vlanbr0
ip link set vlanbr0 up
for v in 2001:red 2002:blue; do
	vid=${v%%%%:*} ns=${v#*:}
	bridge vlan add dev trunk0 vid $vid
	ip netns add $ns
	ip link add ${ns}0 type veth peer name $ns
	ip link set $ns master vlanbr0 up
	bridge vlan del dev $ns vid 1
	bridge vlan add dev $ns vid $vid pvid untagged
	ip link set ${ns}0 netns $ns
	ip netns exec $ns ip addr add 10.20.1.%[1]d/24 dev ${ns}0
	ip netns exec $ns ip link set ${ns}0 up
done`

func TestAGuestSurvivesItsStarterAndCanBeStopped(t *testing.T) {
	_, nsPath := bridgeNS(t)
	c := config(t, nsPath, "orphan", "192.168.77.2/24")
	conf, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	killWhenItSays(t, "started", "BRAID_TEST_START="+string(conf))
	g, err := guest.Open(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, g, "hostname"); got != "orphan" {
		t.Errorf("hostname %q", got)
	}
	stop(t, g, c.Dir)
}

func startAndHang(conf string) {
	var c guest.Config
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		panic(err)
	}
	if _, err := guest.Start(context.Background(), c); err != nil {
		panic(err)
	}
	fmt.Println("started")
	select {}
}

// killWhenItSays runs this program again with env and kills it with SIGKILL
// once it has written line.
func killWhenItSays(t *testing.T, line string, env ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	said := make(chan struct{})
	cmd.Stdout = writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte(line)) {
			close(said)
		}
		return len(p), nil
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-said:
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-ended
	case err := <-ended:
		t.Fatalf("it ended before it said %q: %v", line, err)
	}
}

func TestAFailedStartLeavesNothing(t *testing.T) {
	ns, nsPath := bridgeNS(t)
	before := linksIn(t, ns)
	for name, spoil := range map[string]func(*guest.Config){
		"share":  func(c *guest.Config) { c.Shares = []guest.Share{{Host: "/no/such/dir", Guest: "/mnt"}} },
		"module": func(c *guest.Config) { c.Modules = []string{"no_such_module"} },
		"init":   func(c *guest.Config) { c.Init = "/bin/true" },
		"bridge": func(c *guest.Config) { c.NICs[1].Bridge = "nobridge" },
		"kernel": func(c *guest.Config) { c.Program = "/bin/false" },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t, nsPath, "bad", "192.168.77.2/24")
			spoil(&c)
			ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
			defer cancel()
			g, err := guest.Start(ctx, c)
			if err == nil {
				stop(t, g, c.Dir)
				t.Fatal("it started")
			}
			t.Log(err)
			if ctx.Err() != nil {
				t.Error("it was noticed only by the limit")
			}
			noneLeft(t, c.Dir)
			if after := linksIn(t, ns); len(after) != len(before) {
				t.Errorf("links before %v, after %v", before, after)
			}
		})
	}
}

func TestStartGivesUpWhenItsTimeIsOver(t *testing.T) {
	_, nsPath := bridgeNS(t)
	c := config(t, nsPath, "slow", "192.168.77.2/24")
	init, err := guest.BuildInit(t.Context()) // not part of the time
	if err != nil {
		t.Fatal(err)
	}
	c.Init = init
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := guest.Start(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start: %v, want the deadline", err)
	}
	noneLeft(t, c.Dir)
}

func TestStopKillsAGuestThatHangs(t *testing.T) {
	_, nsPath := bridgeNS(t)
	c := config(t, nsPath, "hung", "192.168.77.2/24")
	g := start(t, c)
	for _, pid := range processes(t, c.Dir) {
		var n int
		if _, err := fmt.Sscan(pid, &n); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(n, unix.SIGSTOP); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := g.Stop(ctx); err != nil {
		t.Error(err)
	}
	noneLeft(t, c.Dir)
}

func TestARunEndsWhenItsGuestIsKilled(t *testing.T) {
	_, nsPath := bridgeNS(t)
	g := start(t, config(t, nsPath, "doomed", "192.168.77.2/24"))
	kill := writerFunc(func(p []byte) (int, error) { return len(p), unix.Kill(g.PID(), unix.SIGKILL) })
	_, err := g.Run(t.Context(), guest.Cmd{Args: []string{"sh", "-c", "echo up; sleep 1000"}, Stdout: kill})
	if !errors.Is(err, guest.ErrNotRunning) {
		t.Errorf("run: %v, want ErrNotRunning", err)
	}
}

func TestRunOnce(t *testing.T) {
	kerneltest.Need(t, kerneltest.UML, kerneltest.NetNS)
	once := func(t *testing.T, script string) (code int, stdout, stderr string, err error) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "once")
		ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
		defer cancel()
		var o, e bytes.Buffer
		code, err = guest.RunOnce(ctx, guest.Config{Name: "once", Dir: dir, MemoryMiB: 128}, guest.Cmd{
			Args: []string{"sh", "-c", script}, Env: []string{"A=one"}, Dir: "/usr", Stderr: &e,
			Stdout: writerFunc(func(p []byte) (int, error) {
				if bytes.HasPrefix(p, []byte("interrupt me")) {
					cancel()
				}
				return o.Write(p)
			}),
		})
		noneLeft(t, dir)
		return code, o.String(), e.String(), err
	}
	t.Run("exit code", func(t *testing.T) {
		code, out, errout, err := once(t, `echo $A in $PWD; echo bad >&2; exit 7`)
		if code != 7 || err != nil || out != "one in /usr\n" || errout != "bad\n" {
			t.Errorf("exit code %d, %v, stdout %q, stderr %q", code, err, out, errout)
		}
	})
	t.Run("output is complete", func(t *testing.T) {
		code, out, _, err := once(t, `seq 200000; printf 'a\r\n\000\004\377'`)
		var want strings.Builder
		for i := range 200000 {
			fmt.Fprintln(&want, i+1)
		}
		want.WriteString("a\r\n\x00\x04\xff")
		if code != 0 || err != nil || out != want.String() {
			t.Errorf("exit code %d, %v, %d bytes, want %d", code, err, len(out), want.Len())
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		code, out, _, err := once(t, `trap 'echo asked to quit; exit 3' QUIT; echo interrupt me; while :; do sleep 0.1; done`)
		if !errors.Is(err, context.Canceled) || code != 3 || out != "interrupt me\nasked to quit\n" {
			t.Errorf("exit code %d, %v, output %q", code, err, out)
		}
	})
	t.Run("stubborn", func(t *testing.T) {
		_, _, _, err := once(t, `trap '' QUIT; echo interrupt me; while :; do sleep 0.1; done`)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want the cancellation", err)
		}
	})
	t.Run("the kernel dies", func(t *testing.T) {
		_, _, _, err := once(t, `echo c > /proc/sysrq-trigger; echo survived`)
		if err == nil || !strings.Contains(err.Error(), "Kernel panic") {
			t.Errorf("%v, want the console's last words", err)
		}
	})
}

func TestAThrowAwayGuestDiesWithItsStarter(t *testing.T) {
	kerneltest.Need(t, kerneltest.UML, kerneltest.NetNS)
	dir := filepath.Join(t.TempDir(), "once")
	killWhenItSays(t, "booted", "BRAID_TEST_ONCE="+dir)
	waitFor(t, "the guest to be gone", func() bool { return len(processes(t, dir)) == 0 })
}

func onceAndHang() {
	_, err := guest.RunOnce(context.Background(), guest.Config{Name: "once", Dir: os.Getenv("BRAID_TEST_ONCE"), MemoryMiB: 128},
		guest.Cmd{Args: []string{"sh", "-c", "echo booted; sleep 1000"}, Stdout: os.Stdout})
	panic(err)
}
