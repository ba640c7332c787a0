package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"braid.dev/braid/internal/wire"
)

// handed is a daemon that asks every shim for a hand, and passes on the hands
// that offer themselves; each stays until its channel is closed.
type handed struct {
	socket string
	hands  chan offered
}

type offered struct {
	*wire.Conn
	letGo chan struct{}
}

func daemonThatWantsAHand(t *testing.T, answer wire.Reply) handed {
	t.Helper()
	d := handed{hands: make(chan offered, 8)}
	d.socket = daemon(t, func(c *wire.Conn) {
		if c.Request().Command != wire.CommandStay {
			answer.Stay = true
			_ = c.Reply(answer)
			return
		}
		h := offered{c, make(chan struct{})}
		d.hands <- h
		select {
		case <-h.letGo:
			_ = c.Reply(wire.Reply{})
		case <-c.Context().Done():
		}
	})
	return d
}

// pid is the process number of the hand.
func (h offered) pid(t *testing.T) string {
	t.Helper()
	r, err := h.Exec(h.Context(), wire.Exec{Name: "sh", Args: []string{"-c", "echo $PPID"}})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func TestShimLeavesAHandBehindThatHasNothingOfTheRuntime(t *testing.T) {
	d := daemonThatWantsAHand(t, wire.Reply{Stdout: []byte("{}")})
	// A file that the runtime forgot to keep from its children.
	leak, err := os.Create(filepath.Join(t.TempDir(), "leak"))
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	invocation := call{verb: "ADD", socket: d.socket}
	cmd := exec.Command(binary(t))
	cmd.Env = append(invocation.environment(), "SECRET=of the runtime")
	cmd.Stdin = strings.NewReader(invocation.input())
	cmd.ExtraFiles = []*os.File{leak}
	// Output returns when nobody has the pipe any more.
	out, err := cmd.Output()
	if err != nil || string(out) != "{}" {
		t.Fatalf("%q, %v", out, err)
	}
	h := receive(t, "hand", d.hands)
	defer close(h.letGo)
	if dir := h.Request().Path; dir != filepath.Dir(binary(t)) {
		t.Errorf("it is in %s", dir)
	}
	pid := h.pid(t)
	if cwd, err := os.Readlink("/proc/" + pid + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("working directory %s, %v", cwd, err)
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	// state, parent, group, session
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if fields[2] != pid || fields[3] != pid {
		t.Errorf("process %s is of group %s, session %s", pid, fields[2], fields[3])
	}
	fds, err := filepath.Glob("/proc/" + pid + "/fd/*")
	if err != nil || len(fds) < 4 {
		t.Fatalf("%v, %v", fds, err)
	}
	for _, fd := range fds {
		switch target, err := os.Readlink(fd); {
		case err != nil:
			t.Error(err)
		case target == os.DevNull, strings.HasPrefix(target, "socket:"), strings.HasPrefix(target, "anon_inode:"),
			strings.HasPrefix(target, "pipe:"),           // of the program that it runs
			strings.HasPrefix(target, "/sys/fs/cgroup/"): // Go's, for the number of its threads
		default:
			t.Errorf("it holds %s", target)
		}
	}
	if environment, err := os.ReadFile("/proc/" + pid + "/environ"); err != nil || strings.Contains(string(environment), "CNI_") || strings.Contains(string(environment), "SECRET") {
		t.Errorf("its environment: %q, %v", environment, err)
	}
}

func TestRequestThatFailsLeavesAHandToo(t *testing.T) {
	d := daemonThatWantsAHand(t, wire.Reply{Error: &wire.Error{Code: 50, Msg: "not yet"}})
	if e := (call{verb: "STATUS", socket: d.socket}).run(t).failure(t); e.Code != 50 {
		t.Errorf("%+v", e)
	}
	close(receive(t, "hand", d.hands).letGo)
}

func TestHandEndsWhenItIsLetGo(t *testing.T) {
	d := daemonThatWantsAHand(t, wire.Reply{})
	if o := (call{verb: "DEL", socket: d.socket}).run(t); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	h := receive(t, "hand", d.hands)
	pid := h.pid(t)
	close(h.letGo)
	eventually(t, "the hand ends", func() bool { return !alive(t, pid) })
}

func TestHandEndsWithItsDaemonAndItsPrograms(t *testing.T) {
	dir := t.TempDir()
	pids := fifo(t, dir)
	script(t, dir, "hangs", `sleep 1000 & echo $PPID $$ $! > `+pids.path+`; wait`)
	socket := socketPath(t)
	first := exec.Command(os.Args[0])
	first.Env = []string{"SHIM_TEST_DAEMON=" + socket}
	startDaemon(t, first)
	// The hand is asked to run the program that the test's daemon runs for all.
	linked := filepath.Join(dir, "braid-cni")
	if err := os.Link(binary(t), linked); err != nil {
		data, readErr := os.ReadFile(binary(t))
		if readErr != nil {
			t.Fatal(err, readErr)
		}
		write(t, linked, string(data), 0o755)
	}
	stay := exec.Command(linked, "stay", socket)
	if err := stay.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stay.Wait() }()
	t.Cleanup(func() { _ = stay.Process.Kill() })
	running := pids.read()
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the end of the hand", ended); err == nil {
		t.Error("it does not say that its daemon was lost")
	}
	for _, pid := range running[1:] {
		if alive(t, pid) {
			t.Errorf("process %s runs on", pid)
		}
	}
}

func TestHandThatIsNotWantedEnds(t *testing.T) {
	socket := daemon(t, func(c *wire.Conn) {
		_ = c.Reply(wire.Reply{Error: &wire.Error{Code: 11, Msg: "no hand is wanted"}})
	})
	for what, args := range map[string][]string{
		"no hand is wanted": {"stay", socket},
		"no daemon listens": {"stay", socketPath(t)},
		"absolute path":     {"stay", "s"},
	} {
		var exit *exec.ExitError
		if _, err := exec.Command(binary(t), args...).Output(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(exit.Stderr), what) {
			t.Errorf("%q: %v; want %q", args, err, what)
		}
	}
}

func TestReachBringsTheNamespaceAndServesAsHand(t *testing.T) {
	for name, test := range map[string]struct {
		env   []string
		hasNS bool
	}{
		"there":                 {nil, true},
		"gone":                  {[]string{"CNI_NETNS=/run/netns/nowhere"}, false},
		"never given":           {[]string{"CNI_NETNS="}, false},
		"that of the runtime's": {[]string{"CNI_NETNS_OVERRIDE=0"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			hasNS := make(chan bool, 1)
			socket := daemon(t, func(c *wire.Conn) {
				hasNS <- c.NetNS() != nil
				r, err := c.Exec(c.Context(), wire.Exec{Name: "echo", Args: []string{"served"}})
				_ = c.Reply(wire.Reply{Stdout: r.Stdout})
				if err != nil {
					t.Error(err)
				}
			})
			o := call{verb: "REACH", socket: socket, env: test.env, conf: `,"reach":"token"`}.run(t)
			if o.code != 0 || o.stdout != "served\n" {
				t.Errorf("%+v", o)
			}
			if receive(t, "request", hasNS) != test.hasNS {
				t.Errorf("namespace passed: %v", !test.hasNS)
			}
		})
	}
}

func TestNamespacesAreListed(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "unmounted")
	write(t, plain, "", 0o444)
	// Whoever may not look must not conclude that nothing is there.
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	asked, err := json.Marshal([]string{ownNS, plain, loop, "/run/netns/nowhere", ""})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t), "namespaces")
	cmd.Stdin = strings.NewReader(string(asked))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var found map[string]wire.Namespace
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(ownNS, &st); err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[ownNS] != (wire.Namespace{Dev: st.Dev, Ino: st.Ino}) || found[loop] != (wire.Namespace{}) {
		t.Errorf("%s; want %d/%d and nothing known of %s", out, st.Dev, st.Ino, loop)
	}
	cmd = exec.Command(binary(t), "namespaces")
	cmd.Stdin = strings.NewReader("no JSON")
	var exit *exec.ExitError
	if _, err := cmd.Output(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("no JSON: %v", err)
	}
}

func TestHandIsOfNoUseToAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be another user than the one that listens")
	}
	dir := filepath.Dir(socketPath(t))
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(testBinary(t, dir))
	cmd.Dir = dir
	cmd.Env = []string{"SHIM_TEST_DAEMON=" + socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	startDaemon(t, cmd)
	if err := offerHand(context.Background(), socket); !errors.Is(err, wire.ErrPeer) {
		t.Errorf("a hand for another user's daemon: %v", err)
	}
}
