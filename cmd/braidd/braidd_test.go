package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// The tests of this file run the programs as they are installed: braidd as a
// process in a network namespace that stands for the node, and braid-cni as
// the runtime starts it. Only Kubernetes is missing; internal/e2e has that.

// programs builds braidd and braid-cni once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "braid-programs-")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir, "braid.dev/braid/cmd/braidd", "braid.dev/braid/cmd/braid-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := programs(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

type node struct {
	t        testing.TB
	dir      string
	programs string
	ns       *netns.NS
	braidd   *exec.Cmd
	log      *os.File
	// pluginTimeout is the setting of that name, settings are more of them.
	pluginTimeout, settings string
}

// bridgeNetwork is a default network as reference plugins have it.
func (n *node) bridgeNetwork(more string) string {
	return `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"bridge","bridge":"braidbr0","isDefaultGateway":true,
		"ipam":{"type":"host-local","dataDir":"` + n.path("addresses") + `","subnet":"10.77.0.0/24"}}` + more + `]}`
}

func newNode(t testing.TB) *node {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Veth, kerneltest.Bridge)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: t.TempDir(), programs: dir, ns: kerneltest.NewNS(t), pluginTimeout: "300ms"}
	for _, d := range []string{"conf", "bin", "addresses"} {
		if err := os.Mkdir(n.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if n.log, err = os.Create(n.path("log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.kill()
		n.log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(n.path("log"))
			t.Logf("%s", text)
		}
	})
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, content string, mode os.FileMode) {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte(content), mode); err != nil {
		n.t.Fatal(err)
	}
}

// start starts braidd, and waits until it is ready when asked to.
func (n *node) start(ready bool) {
	n.t.Helper()
	n.write("braidd.yaml", "pluginTimeout: "+n.pluginTimeout+"\nrequestTimeout: 20s\n"+n.settings, 0o644)
	n.braidd = exec.Command(filepath.Join(n.programs, "braidd"), "--no-cluster", "--run-dir="+n.path("run"),
		"--state-dir="+n.path("state"), "--cni-conf-dir="+n.path("conf"), "--cni-bin-dir="+n.path("bin"), "--cni-cache-dir="+n.path("results"), "--config="+n.path("braidd.yaml"))
	n.braidd.Stdout, n.braidd.Stderr = n.log, n.log
	if err := n.ns.Do(n.braidd.Start); err != nil {
		n.t.Fatal(err)
	}
	if ready {
		n.awaitStatus("")
	}
}

// awaitStatus waits until braidd is ready or, when words are given, says them
// as the reason why it is not. It runs the program that a probe runs: that is
// also how long an installation waits.
func (n *node) awaitStatus(words string) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command(filepath.Join(n.programs, "braidd"), "status", "--run-dir="+n.path("run")).CombinedOutput()
		if (err == nil) == (words == "") && strings.Contains(string(out), words) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("status %q is awaited: %v: %s", words, err, out)
		}
	}
}

func (n *node) signal(s os.Signal) error {
	if n.braidd == nil {
		return nil
	}
	if err := n.braidd.Process.Signal(s); err != nil {
		n.t.Error(err)
	}
	err := n.braidd.Wait()
	n.braidd = nil
	return err
}

// kill ends braidd as a power cut would. Its exit status says only that.
func (n *node) kill() { _ = n.signal(syscall.SIGKILL) }

// pod is a container that a runtime asks networks for.
type pod struct {
	*node
	id string
	ns *netns.NS
	at string
}

func (n *node) newPod(id string) pod {
	n.t.Helper()
	ns, at := kerneltest.NewNamedNS(n.t)
	return pod{n, id, ns, at}
}

// cni runs the shim as a runtime does with the configuration that it found.
func (p pod) cni(ctx context.Context, verb string) ([]byte, error) {
	text, err := os.ReadFile(p.path("conf/00-braid.conflist"))
	if err != nil {
		return nil, err
	}
	var list struct {
		Name    string
		Plugins []map[string]any
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, "1.0.0"
	conf["notes"] = p.path("state/notes") // never the machine's own
	if verb == "STATUS" || verb == "GC" {
		conf["cniVersion"] = "1.1.0" // which brought them
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.programs, "braid-cni"))
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.at, "CNI_IFNAME=eth0",
		"CNI_PATH=" + p.path("bin"), "PATH=" + os.Getenv("PATH"),
	}
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	// The shim runs in the node's namespace, as its runtime does.
	err = p.node.ns.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.Bytes(), fmt.Errorf("%s %s: %w: %s", verb, p.id, err, stdout.Bytes())
	}
	return stdout.Bytes(), nil
}

func (p pod) ok(verb string) []byte {
	p.t.Helper()
	out, err := p.cni(p.t.Context(), verb)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// world is what may be left behind on the node.
func (n *node) world() string {
	n.t.Helper()
	text, err := rtnl.Observe(n.ns)
	if err != nil {
		n.t.Fatal(err)
	}
	reserved, err := filepath.Glob(n.path("addresses/*/*.*.*.*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, file := range reserved {
		if !strings.Contains(filepath.Base(file), "last_reserved_ip") {
			text += "reserved " + filepath.Base(file) + "\n"
		}
	}
	return text
}

// records are what braidd remembers. It must not be running.
func (n *node) records() []store.Record {
	n.t.Helper()
	s, err := store.Open(n.t.Context(), n.path("state/braid.db"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer s.Close()
	all, err := s.All()
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

func TestContainerIsAttachedCheckedAndDetached(t *testing.T) {
	n := newNode(t)
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.start(true)
	first := n.newPod("warm-up") // the bridge stays, as the reference plugin's does
	first.ok("ADD")
	first.ok("DEL")
	before := n.world()
	p := n.newPod("c1")
	result := p.ok("ADD")
	if !bytes.Contains(result, []byte("10.77.0.")) {
		t.Errorf("result %s", result)
	}
	if again := p.ok("ADD"); !bytes.Equal(result, again) {
		t.Errorf("the same ADD again: %s, first %s", again, result)
	}
	p.ok("CHECK")
	if n.world() == before {
		t.Error("nothing was made on the node")
	}
	p.ok("DEL")
	p.ok("DEL")
	if after := n.world(); after != before {
		t.Errorf("before ADD:\n%s\nafter DEL:\n%s", before, after)
	}
	if err := n.signal(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if left := n.records(); len(left) > 0 {
		t.Errorf("records: %+v", left)
	}
	if _, err := os.Stat(n.path("conf/00-braid.conflist")); err != nil {
		t.Errorf("the configuration was taken along: %v", err)
	}
}

// There is no program flannel on the node, nor one that it would run.
func TestFlannelIsServedInProcess(t *testing.T) {
	n := newNode(t)
	n.write("subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n", 0o644)
	n.write("conf/10-flannel.conflist", `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel","subnetFile":"`+n.path("subnet.env")+`",
		"ipam":{"dataDir":"`+n.path("addresses")+`"},"delegate":{"bridge":"braidbr0","hairpinMode":true,"isDefaultGateway":true}}]}`, 0o644)
	n.start(true)
	warm := n.newPod("warm-up")
	warm.ok("ADD")
	warm.ok("DEL")
	before := n.world()
	p := n.newPod("c1")
	p.ok("ADD")
	inside, err := rtnl.Observe(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mtu 1400", "10.244.7.3/24", "0.0.0.0/0 via 10.244.7.1", "10.244.0.0/16 via 10.244.7.1"} {
		if !strings.Contains(inside, want) {
			t.Errorf("no %q in the container:\n%s", want, inside)
		}
	}
	p.ok("CHECK")
	if err := os.Remove(n.path("subnet.env")); err != nil {
		t.Fatal(err)
	}
	p.ok("DEL")
	if after := n.world(); after != before {
		t.Errorf("before ADD:\n%s\nafter DEL:\n%s", before, after)
	}
}

func TestEveryContainerGetsTwoNetworksOfTheConfDir(t *testing.T) {
	n := newNode(t)
	n.settings = "confDirNetworks: 2\n"
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.start(false)
	second := func(subnet string) string {
		return `{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"bridge","bridge":"braidbr1",
			"ipam":{"type":"host-local","dataDir":"` + n.path("addresses") + `","subnet":"` + subnet + `"}}]}`
	}
	n.write("conf/.20-second.tmp", second("10.78.0.0/24"), 0o644)
	n.awaitStatus("first 2 networks")
	if err := os.Rename(n.path("conf/.20-second.tmp"), n.path("conf/20-second.conflist")); err != nil {
		t.Fatal(err)
	}
	n.awaitStatus("")
	warm := n.newPod("warm-up")
	warm.ok("ADD")
	warm.ok("DEL")
	before := n.world()
	p := n.newPod("c1")
	result := p.ok("ADD")
	if !bytes.Contains(result, []byte("10.77.0.")) || bytes.Contains(result, []byte("10.78.0.")) {
		t.Errorf("the runtime is told %s, not of eth0", result)
	}
	inside, err := rtnl.Observe(p.ns)
	if err != nil || !strings.Contains(inside, "eth1") || !strings.Contains(inside, "10.78.0.") {
		t.Errorf("%v, in the container:\n%s", err, inside)
	}
	p.ok("CHECK")
	// The second one goes away: pods that have it lose it as they end.
	if err := os.Remove(n.path("conf/20-second.conflist")); err != nil {
		t.Fatal(err)
	}
	n.awaitStatus("first 2 networks")
	p.ok("DEL")
	if after := n.world(); after != before {
		t.Errorf("before ADD:\n%s\nafter DEL:\n%s", before, after)
	}
}

func TestBadPluginsAreNamedAndLeaveNothing(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		mode   os.FileMode
		words  []string
	}{
		"missing":        {"", 0, []string{"not found", "bin"}},
		"not executable": {"#!/bin/sh\n", 0o644, []string{"not executable"}},
		"no program":     {"hello", 0o755, []string{"bad DEL"}},
		"hangs":          {"#!/bin/sh\necho $$ >>PIDS\nexec sleep 1000\n", 0o755, []string{"did not end within 300ms"}},
		"prints rubbish": {"#!/bin/sh\necho hello\n", 0o755, []string{"printed no CNI result", "hello"}},
		"prints nothing": {"#!/bin/sh\n", 0o755, []string{"printed no result"}},
		"fails":          {"#!/bin/sh\necho '{\"code\":123,\"msg\":\"no more colours\"}'\ntest $CNI_COMMAND = DEL\n", 0o755, []string{"no more colours"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if name == "no program" {
				// A file that the shell would run; the kernel does not.
				c.words = []string{"not a program"}
			}
			if c.mode != 0 {
				n.write("bin/bad", strings.ReplaceAll(c.script, "PIDS", n.path("pids")), c.mode)
			}
			n.write("conf/10-default.conflist", n.bridgeNetwork(`,{"type":"bad"}`), 0o644)
			n.start(true)
			n.newPod("warm-up").cni(t.Context(), "ADD")
			n.newPod("warm-up").cni(t.Context(), "DEL")
			before := n.world()
			p := n.newPod("c1")
			_, err := p.cni(t.Context(), "ADD")
			for _, w := range append(c.words, "eth0", "plugin bad") {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("ADD = %v, which lacks %q", err, w)
				}
			}
			if after := n.world(); after != before {
				t.Errorf("before ADD:\n%s\nafter it failed:\n%s", before, after)
			}
			p.ok("DEL")
			if pids, err := os.ReadFile(n.path("pids")); err == nil {
				for _, pid := range strings.Fields(string(pids)) {
					n.ended(pid)
				}
			}
			n.kill()
			for _, r := range n.records() {
				if r.Sandbox.ContainerID == "c1" {
					t.Errorf("record left: %+v", r)
				}
			}
		})
	}
}

func TestStatusOfTheDefaultNetworksOwnProgramIsPassedOn(t *testing.T) {
	n := newNode(t)
	n.write("bin/other", "#!/bin/sh\necho '{\"code\":51,\"msg\":\"no more colours\"}'\nexit 1\n", 0o755)
	n.write("conf/10-default.conflist", `{"cniVersion":"1.1.0","name":"other","plugins":[{"type":"other"}]}`, 0o644)
	n.start(true) // Braid itself is ready: the probe does not ask the program
	p := n.newPod("c1")
	var said struct {
		Code int
		Msg  string
	}
	// STATUS does not wait for programs: the first may come before the answer.
	for deadline := time.Now().Add(20 * time.Second); said.Code != 51; time.Sleep(10 * time.Millisecond) {
		out, err := p.cni(t.Context(), "STATUS")
		if err == nil || json.Unmarshal(out, &said) != nil || said.Code != 50 && said.Code != 51 {
			t.Fatalf("STATUS = %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("STATUS = %v, and not what the program says", err)
		}
	}
	if !strings.Contains(said.Msg, "no more colours") {
		t.Errorf("STATUS = %+v", said)
	}
}

// The runtime kills its plugin when its own time is over, and then asks for a
// DEL. What the plugin had running on the host ends with it.
func TestRuntimeThatGivesUpAndDeletes(t *testing.T) {
	n := newNode(t)
	n.write("bin/slow", "#!/bin/sh\ntest $CNI_COMMAND = DEL && exit\necho $$ >"+n.path("pid")+"\nexec sleep 1000\n", 0o755)
	n.write("conf/10-default.conflist", n.bridgeNetwork(`,{"type":"slow"}`), 0o644)
	n.pluginTimeout = "20s"
	n.start(true)
	warm := n.newPod("warm-up")
	giveUp := func(p pod) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := p.cni(ctx, "ADD")
			done <- err
		}()
		pid := n.pidOfPlugin()
		cancel()
		if err := <-done; err == nil {
			t.Error("ADD succeeded")
		}
		p.ok("DEL")
		n.ended(pid)
	}
	giveUp(warm)
	before := n.world()
	giveUp(n.newPod("c1"))
	if after := n.world(); after != before {
		t.Errorf("before ADD:\n%s\nafter DEL:\n%s", before, after)
	}
	n.kill()
	if left := n.records(); len(left) > 0 {
		t.Errorf("records: %+v", left)
	}
}

// ended fails the test when the process is still there. The kernel kills it
// when its shim dies and somebody else reaps it, neither of which can be waited
// for; a process that is to be reaped has ended.
func (n *node) ended(pid string) {
	n.t.Helper()
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		_, state, _ := strings.Cut(string(stat), ") ")
		if err != nil || strings.HasPrefix(state, "Z") {
			return
		}
		if time.Now().After(deadline) {
			n.t.Errorf("process %s still runs: %s", pid, stat)
			return
		}
	}
}

// pidOfPlugin waits until the plugin slow runs.
func (n *node) pidOfPlugin() string {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(n.path("pid")); err == nil && bytes.HasSuffix(text, []byte("\n")) {
			os.Remove(n.path("pid"))
			return strings.TrimSpace(string(text))
		}
	}
	n.t.Fatal("the plugin was not run")
	return ""
}

// TestKilledDaemonLosesNothing kills braidd at random moments of an ADD or a
// DEL. The shim asks the next one, so the runtime sees no failure at all.
func TestKilledDaemonLosesNothing(t *testing.T) {
	n := newNode(t)
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.start(true)
	stays := n.newPod("stays")
	warm := n.newPod("warm-up")
	warm.ok("ADD")
	began := time.Now()
	warm.ok("DEL")
	verbTime := max(time.Since(began), 5*time.Millisecond)
	stays.ok("ADD")
	before := n.world()
	for i := range 20 {
		p := n.newPod(fmt.Sprintf("c%d", i))
		for _, verb := range []string{"ADD", "DEL"} {
			done := make(chan error, 1)
			go func() {
				_, err := p.cni(t.Context(), verb)
				done <- err
			}()
			time.Sleep(rand.N(2 * verbTime)) // any moment will do
			n.kill()
			n.start(false)
			if err := <-done; err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			if verb == "ADD" {
				p.ok("CHECK")
			}
		}
		if after := n.world(); after != before {
			t.Fatalf("round %d, before:\n%s\nafter:\n%s", i, before, after)
		}
	}
	stays.ok("CHECK")
	stays.ok("DEL")
	n.kill()
	if left := n.records(); len(left) > 0 {
		t.Errorf("records: %+v", left)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	n := newNode(t)
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.start(true)
	second := exec.Command(filepath.Join(n.programs, "braidd"), "--no-cluster", "--run-dir="+n.path("run"),
		"--state-dir="+n.path("state"), "--cni-conf-dir="+n.path("conf"))
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another braidd") {
		t.Errorf("second daemon: %v: %s", err, out)
	}
	n.newPod("c").ok("ADD")
}

func TestStatusWithoutDaemonFails(t *testing.T) {
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--live", "--live=false"} {
		out, err := exec.Command(filepath.Join(dir, "braidd"), "status", flag, "--run-dir="+t.TempDir()).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "no daemon listens") {
			t.Errorf("status %s: %v: %s", flag, err, out)
		}
	}
}

func TestStatusTellsLiveFromReady(t *testing.T) {
	n := newNode(t) // without a default network
	n.start(false)
	var out []byte
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		out, err = exec.Command(filepath.Join(n.programs, "braidd"), "status", "--live", "--run-dir="+n.path("run")).CombinedOutput()
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("status --live: %v: %s", err, out)
	}
	out, err = exec.Command(filepath.Join(n.programs, "braidd"), "status", "--run-dir="+n.path("run")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no default network") {
		t.Errorf("status: %v: %s", err, out)
	}
}

// BenchmarkAddDel is what a runtime waits for: the shim's whole life, with the
// bridge driver and host-local addresses.
func BenchmarkAddDel(b *testing.B) {
	n := newNode(b)
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.start(true)
	p := n.newPod("bench")
	var add, del time.Duration
	for b.Loop() {
		start := time.Now()
		p.ok("ADD")
		middle := time.Now()
		p.ok("DEL")
		add, del = add+middle.Sub(start), del+time.Since(middle)
	}
	b.ReportMetric(float64(add.Microseconds())/float64(b.N)/1000, "ms/ADD")
	b.ReportMetric(float64(del.Microseconds())/float64(b.N)/1000, "ms/DEL")
}
