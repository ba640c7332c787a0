package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/internal/wire"
)

// limit is for a test that would otherwise hang.
const limit = 30 * time.Second

func TestMain(m *testing.M) {
	if socket := os.Getenv("SHIM_TEST_DAEMON"); socket != "" {
		os.Exit(hangingDaemon(socket))
	}
	code := m.Run()
	if dir, err := buildDir(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// buildDir is made at most once, so that TestMain can remove it.
var buildDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "braid-cni") })

// built is the program as it is shipped.
var built = sync.OnceValues(func() (string, error) {
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "braid-cni")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v0-test", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return path, nil
})

func binary(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// call is one invocation of the shim by a runtime.
type call struct {
	env   []string // added to the variables of the verb
	unset string   // a variable not to give
	verb  string
	// socket, version and conf make the configuration on standard input,
	// unless stdin replaces it.
	socket  string
	version string
	conf    string // further keys, such as `,"timeout":1`
	stdin   *string
}

// ownNS is a namespace that needs no privilege; CNI_NETNS_OVERRIDE allows it.
const ownNS = "/proc/self/ns/net"

func (c call) environment() []string {
	all := []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + c.verb, "CNI_CONTAINERID=abc-1", "CNI_NETNS=" + ownNS,
		"CNI_NETNS_OVERRIDE=1", "CNI_IFNAME=eth0", "CNI_ARGS=K8S_POD_NAME=p;X=y=z", "CNI_PATH=/opt/cni/bin",
	}
	var env []string
	for _, kv := range append(all, c.env...) {
		if name, _, _ := strings.Cut(kv, "="); name != c.unset {
			env = append(env, kv)
		}
	}
	return env
}

func (c call) input() string {
	if c.stdin != nil {
		return *c.stdin
	}
	version := c.version
	if version == "" {
		version = "1.1.0"
	}
	// Notes lie beside the socket, so that no test leaves any on this machine.
	if filepath.IsAbs(c.socket) && !strings.Contains(c.conf, `"notes"`) {
		c.conf += fmt.Sprintf(`,"notes":%q`, c.notes())
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":"net","type":"braid-cni","socket":%q%s}`, version, c.socket, c.conf)
}

func (c call) notes() string { return filepath.Join(filepath.Dir(c.socket), "notes") }

// shim is the running program.
type shim struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	done           chan struct{}
}

func (c call) start(t *testing.T) *shim {
	t.Helper()
	s := &shim{t: t, cmd: exec.Command(binary(t)), done: make(chan struct{})}
	s.cmd.Env = c.environment()
	s.cmd.Stdin = strings.NewReader(c.input())
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // the exit code is asked of ProcessState
		close(s.done)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
	})
	return s
}

// ran is how the program ended.
type ran struct {
	stdout, stderr string
	code           int
}

func (s *shim) wait() ran {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(limit):
		s.t.Fatalf("braid-cni still runs after %v", limit)
	}
	return ran{s.stdout.String(), s.stderr.String(), s.cmd.ProcessState.ExitCode()}
}

func (c call) run(t *testing.T) ran {
	t.Helper()
	return c.start(t).wait()
}

// cniError is the error result that the specification asks for.
type cniError struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

func (o ran) failure(t *testing.T) cniError {
	t.Helper()
	var e cniError
	decoder := json.NewDecoder(strings.NewReader(o.stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil || e.Msg == "" || o.code != 1 {
		t.Fatalf("no error result: exit code %d, %q, stderr %q: %v", o.code, o.stdout, o.stderr, err)
	}
	return e
}

// daemon serves handle until the test ends and returns its socket.
func daemon(t *testing.T, handle func(c *wire.Conn)) string {
	t.Helper()
	socket := socketPath(t)
	serveOn(t, socket, handle)
	return socket
}

func serveOn(t *testing.T, socket string, handle func(c *wire.Conn)) {
	t.Helper()
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	s := wire.Server{Handle: handle}
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(limit):
		t.Fatalf("%s: nothing within %v", what, limit)
		panic("unreachable")
	}
}

func TestEveryVerbReachesTheDaemon(t *testing.T) {
	for _, verb := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS", "REACH"} {
		for _, version := range supportedVersions() {
			if version < verbs()[verb].since {
				continue
			}
			t.Run(verb+" "+version, func(t *testing.T) {
				type seen struct {
					wire.Request
					hasNS bool
				}
				got := make(chan seen, 1)
				socket := daemon(t, func(c *wire.Conn) {
					got <- seen{c.Request(), c.NetNS() != nil}
					_ = c.Reply(wire.Reply{Stdout: []byte("{\"ips\":[]}\n")})
				})
				invocation := call{verb: verb, version: version, socket: socket}
				if o := invocation.run(t); o.code != 0 || o.stdout != "{\"ips\":[]}\n" || o.stderr != "" {
					t.Errorf("exit code %d, printed %q, stderr %q", o.code, o.stdout, o.stderr)
				}
				s := receive(t, "request", got)
				want := wire.Request{
					Version: wire.Version, Command: verb, ContainerID: "abc-1", NetNS: ownNS, IfName: "eth0",
					Args: "K8S_POD_NAME=p;X=y=z", Path: "/opt/cni/bin", Stdin: []byte(invocation.input()), Timeout: s.Timeout,
				}
				if fmt.Sprintf("%+v", s.Request) != fmt.Sprintf("%+v", want) {
					t.Errorf("daemon got %+v\nwant %+v", s.Request, want)
				}
				if wantNS := verb != "GC" && verb != "STATUS"; s.hasNS != wantNS {
					t.Errorf("namespace passed: %v", s.hasNS)
				}
				if s.Timeout <= 0 || s.Timeout >= defaultTimeout {
					t.Errorf("timeout %v leaves nothing for a roll-back", s.Timeout)
				}
			})
		}
	}
}

func TestVersionIsAnsweredWithoutADaemon(t *testing.T) {
	for name, test := range map[string]struct{ stdin, want string }{
		"as libcni asks":     {`{"cniVersion":"1.0.0"}`, "1.0.0"},
		"without input":      {"", "1.1.0"},
		"of an unknown one":  {`{"cniVersion":"9.0.0"}`, "1.1.0"},
		"with a broken ask":  {`{"cniVersion":`, "1.1.0"},
		"with a wrong value": {`{"cniVersion":7}`, "1.1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			o := call{verb: "VERSION", stdin: &test.stdin, unset: "CNI_CONTAINERID"}.run(t)
			want := fmt.Sprintf(`{"cniVersion":%q,"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`+"\n", test.want)
			if o.code != 0 || o.stdout != want {
				t.Errorf("exit code %d, printed %q, want %q", o.code, o.stdout, want)
			}
		})
	}
}

// The reference library does not read the input of VERSION.
func TestVersionDoesNotWaitForTheEndOfItsInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // only after the program has ended
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t))
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = r
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), `"cniVersion":"1.1.0"`) {
		t.Errorf("%q, %v", out, err)
	}
}

func TestBadInputIsRefusedWithTheCodeOfTheSpecification(t *testing.T) {
	in := func(s string) *string { return &s }
	for name, test := range map[string]struct {
		call
		code uint
		says string
	}{
		"no command":                 {call{verb: "ADD", unset: "CNI_COMMAND"}, 4, "CNI_COMMAND"},
		"unknown command":            {call{verb: "UPDATE"}, 4, "UPDATE"},
		"lower case":                 {call{verb: "add"}, 4, "add"},
		"ADD without container":      {call{verb: "ADD", unset: "CNI_CONTAINERID"}, 4, "CNI_CONTAINERID"},
		"ADD without namespace":      {call{verb: "ADD", unset: "CNI_NETNS"}, 4, "CNI_NETNS"},
		"ADD without interface":      {call{verb: "ADD", unset: "CNI_IFNAME"}, 4, "CNI_IFNAME"},
		"CHECK without namespace":    {call{verb: "CHECK", unset: "CNI_NETNS"}, 4, "CNI_NETNS"},
		"DEL without container":      {call{verb: "DEL", unset: "CNI_CONTAINERID"}, 4, "CNI_CONTAINERID"},
		"DEL without interface":      {call{verb: "DEL", unset: "CNI_IFNAME"}, 4, "CNI_IFNAME"},
		"container ID with a slash":  {call{verb: "ADD", env: []string{"CNI_CONTAINERID=../x"}}, 4, "CNI_CONTAINERID"},
		"container ID begins with -": {call{verb: "ADD", env: []string{"CNI_CONTAINERID=-x"}}, 4, "CNI_CONTAINERID"},
		"interface of 16 bytes":      {call{verb: "ADD", env: []string{"CNI_IFNAME=a234567890123456"}}, 4, "CNI_IFNAME"},
		"interface with a slash":     {call{verb: "ADD", env: []string{"CNI_IFNAME=a/b"}}, 4, "CNI_IFNAME"},
		"interface with a colon":     {call{verb: "ADD", env: []string{"CNI_IFNAME=a:b"}}, 4, "CNI_IFNAME"},
		"interface with a space":     {call{verb: "DEL", env: []string{"CNI_IFNAME=a b"}}, 4, "CNI_IFNAME"},
		"interface ..":               {call{verb: "ADD", env: []string{"CNI_IFNAME=.."}}, 4, "CNI_IFNAME"},
		"namespace that is missing":  {call{verb: "ADD", env: []string{"CNI_NETNS=/nowhere"}}, 4, "/nowhere"},
		"namespace that is a file":   {call{verb: "CHECK", env: []string{"CNI_NETNS=/etc/passwd"}}, 4, "/etc/passwd"},
		"namespace of the runtime":   {call{verb: "ADD", unset: "CNI_NETNS_OVERRIDE"}, 4, "namespace of the container runtime"},
		"empty input":                {call{verb: "ADD", stdin: in("")}, 6, "network configuration"},
		"broken JSON":                {call{verb: "ADD", stdin: in(`{"cniVersion":"1.0.0"`)}, 6, "network configuration"},
		"JSON of another kind":       {call{verb: "ADD", stdin: in(`["cniVersion"]`)}, 6, "network configuration"},
		"null":                       {call{verb: "ADD", stdin: in("null")}, 7, "no name"},
		"no name":                    {call{verb: "ADD", stdin: in(`{"cniVersion":"1.0.0"}`)}, 7, "no name"},
		"name with a slash":          {call{verb: "ADD", stdin: in(`{"cniVersion":"1.0.0","name":"../a"}`)}, 7, "../a"},
		"relative socket":            {call{verb: "ADD", socket: "run/s"}, 7, "absolute"},
		"long socket":                {call{verb: "ADD", socket: "/" + strings.Repeat("x", 107)}, 7, "107"},
		"relative notes":             {call{verb: "DEL", conf: `,"notes":"var/notes"`}, 7, "absolute"},
		"timeout of a wrong kind":    {call{verb: "ADD", conf: `,"timeout":"1s"`}, 7, "timeout"},
		"negative timeout":           {call{verb: "ADD", conf: `,"timeout":-1`}, 7, "timeout"},
		"timeout beyond reason":      {call{verb: "ADD", conf: `,"timeout":1000000000000`}, 7, "timeout"},
		"version missing":            {call{verb: "ADD", stdin: in(`{"name":"n"}`)}, 1, "0.1.0"},
		"version of the past":        {call{verb: "ADD", version: "0.2.0"}, 1, "0.2.0"},
		"version of the future":      {call{verb: "ADD", version: "2.0.0"}, 1, "2.0.0"},
		"CHECK before it was there":  {call{verb: "CHECK", version: "0.3.1"}, 1, "CHECK"},
		"GC before it was there":     {call{verb: "GC", version: "1.0.0"}, 1, "GC"},
		"STATUS before it was there": {call{verb: "STATUS", version: "1.0.0"}, 1, "STATUS"},
		"configuration without end":  {call{verb: "GC", conf: `,"x":"` + strings.Repeat("x", maxStdin) + `"`}, 7, "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Nothing listens: asking would end in another code.
			if test.socket == "" {
				test.socket = socketPath(t)
			}
			o := test.run(t)
			e := o.failure(t)
			if e.Code != test.code || !strings.Contains(e.Msg+e.Details, test.says) {
				t.Errorf("code %d, %q; want code %d saying %q", e.Code, e.Msg+": "+e.Details, test.code, test.says)
			}
			want := "1.1.0"
			if test.version != "" && test.code == 1 && test.version != "0.2.0" && test.version != "2.0.0" {
				want = test.version
			}
			if test.stdin == nil && e.CNIVersion != want {
				t.Errorf("cniVersion %q, want %q", e.CNIVersion, want)
			}
		})
	}
}

func TestErrorOfTheDaemonIsPrintedInTheVersionAskedFor(t *testing.T) {
	socket := daemon(t, func(c *wire.Conn) {
		_ = c.Reply(wire.Reply{Stdout: []byte("ignored"), Error: &wire.Error{Code: 51, Msg: "pool <a&b> is full", Details: "d"}})
	})
	o := call{verb: "ADD", version: "0.4.0", socket: socket}.run(t)
	want := `{
    "cniVersion": "0.4.0",
    "code": 51,
    "msg": "pool <a&b> is full",
    "details": "d"
}
`
	if o.code != 1 || o.stdout != want {
		t.Errorf("exit code %d, printed %s", o.code, o.stdout)
	}
}

func TestDelWorksWithoutTheNamespace(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "unmounted")
	if err := os.WriteFile(plain, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]call{
		"not given":           {unset: "CNI_NETNS"},
		"missing":             {env: []string{"CNI_NETNS=/run/netns/nowhere"}},
		"below a file":        {env: []string{"CNI_NETNS=" + plain + "/x"}},
		"no longer mounted":   {env: []string{"CNI_NETNS=" + plain}},
		"number given anew":   {unset: "CNI_NETNS_OVERRIDE"}, // /proc/PID/ns/net of a process of the node
		"process is gone too": {env: []string{"CNI_NETNS=/proc/4194305/ns/net"}},
	} {
		t.Run(name, func(t *testing.T) {
			hasNS := make(chan bool, 1)
			test.verb = "DEL"
			test.socket = daemon(t, func(c *wire.Conn) {
				hasNS <- c.NetNS() != nil
				_ = c.Reply(wire.Reply{})
			})
			if o := test.run(t); o.code != 0 || o.stdout != "" {
				t.Errorf("exit code %d, printed %q", o.code, o.stdout)
			}
			if receive(t, "request", hasNS) {
				t.Error("a namespace was passed")
			}
		})
	}
}

func TestAbsentDaemonIsWaitedForAndThenTriedAgainLater(t *testing.T) {
	for _, verb := range []string{"ADD", "CHECK", "GC", "REACH"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			socket := socketPath(t)
			e := call{verb: verb, socket: socket, conf: `,"timeout":1`}.run(t).failure(t)
			if e.Code != 11 || !strings.Contains(e.Details, socket) || !strings.Contains(e.Details, "braidd pod") {
				t.Errorf("%+v: want code 11, what was tried and what to do", e)
			}
			if once := strings.Contains(e.Details, "asked 1 time(s)"); once != (verb == "REACH") {
				t.Errorf("%q: want several attempts, one for REACH", e.Details)
			}
		})
	}
}

func TestStatusSaysAtOnceThatTheDaemonIsAbsent(t *testing.T) {
	e := call{verb: "STATUS", socket: socketPath(t)}.run(t).failure(t)
	if e.Code != 50 || !strings.Contains(e.Details, "asked 1 time(s)") {
		t.Errorf("%+v: want code 50 after one attempt", e)
	}
}

func TestHungDaemonIsGivenUp(t *testing.T) {
	for verb, code := range map[string]uint{"ADD": 11, "DEL": 11, "STATUS": 50} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			timeout := make(chan time.Duration, 1)
			gone := make(chan error, 1)
			socket := daemon(t, func(c *wire.Conn) {
				timeout <- c.Request().Timeout
				// Deaf to its deadline, it notices only that the shim left.
				_, err := c.Exec(context.WithoutCancel(c.Context()), wire.Exec{Name: "sleep", Args: []string{"1000"}})
				gone <- err
			})
			e := call{verb: verb, socket: socket, conf: `,"timeout":1`}.run(t).failure(t)
			if e.Code != code || !strings.Contains(e.Msg, "in time") {
				t.Errorf("%+v, want code %d", e, code)
			}
			if d := receive(t, "request", timeout); d <= 0 || d > 800*time.Millisecond {
				t.Errorf("the daemon was given %v of one second", d)
			}
			if err := receive(t, "loss", gone); !errors.Is(err, wire.ErrLost) {
				t.Errorf("Exec: %v", err)
			}
		})
	}
}

func TestDaemonThatAlwaysHangsUpIsTriedAgainLater(t *testing.T) {
	dying, die := context.WithCancel(t.Context())
	asked := make(chan struct{}, 1000)
	socket := socketPath(t)
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { die(); l.Close() })
	go func() {
		for dying.Err() == nil {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 4))
			asked <- struct{}{}
			conn.Close()
		}
	}()
	e := call{verb: "ADD", socket: socket, conf: `,"timeout":1`}.run(t).failure(t)
	if e.Code != 11 || len(asked) < 2 {
		t.Errorf("%+v after %d attempts", e, len(asked))
	}
}

func TestRefusedUserAnswersNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be another user than the one that listens")
	}
	dir := filepath.Dir(socketPath(t))
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	// The process that listens is what the kernel names as the peer.
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(testBinary(t, dir))
	cmd.Dir = dir
	cmd.Env = []string{"SHIM_TEST_DAEMON=" + socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	startDaemon(t, cmd)
	e := call{verb: "ADD", socket: socket}.run(t).failure(t)
	if e.Code != 5 || !strings.Contains(e.Details, "65534") {
		t.Errorf("%+v", e)
	}
}

// testBinary is a copy of this test that any user may execute.
func testBinary(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "daemon")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// hangingDaemon is a daemon in a process of its own, there to be killed: it
// says on standard output that it listens, and has each request wait for a
// program of the request's CNI_PATH that never ends.
func hangingDaemon(socket string) int {
	l, err := wire.Listen(socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("listening")
	s := wire.Server{Handle: func(c *wire.Conn) {
		_, err := c.Exec(c.Context(), wire.Exec{Name: "hangs", Dirs: []string{c.Request().Path}})
		fmt.Fprintln(os.Stderr, err)
	}}
	fmt.Fprintln(os.Stderr, s.Serve(context.Background(), l))
	return 1
}

// startDaemon returns once the process listens.
func startDaemon(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len("listening\n"))); err != nil {
		t.Fatalf("daemon: %v: %s", err, stderr.String())
	}
}

func TestRequestOfAKilledDaemonGoesToTheNextOne(t *testing.T) {
	for _, verb := range []string{"ADD", "DEL"} {
		t.Run(verb, func(t *testing.T) { killedDaemon(t, verb) })
	}
}

func killedDaemon(t *testing.T, verb string) {
	dir := t.TempDir()
	pids := fifo(t, dir)
	script(t, dir, "hangs", `sleep 1000 & echo $$ $! > `+pids.path+`; wait`)
	socket := socketPath(t)
	first := exec.Command(os.Args[0])
	first.Env = []string{"SHIM_TEST_DAEMON=" + socket}
	startDaemon(t, first)

	s := call{verb: verb, socket: socket, env: []string{"CNI_PATH=" + dir}}.start(t)
	running := pids.read()
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	// What the first daemon had begun must be over before the second begins.
	request := make(chan wire.Request, 1)
	serveOn(t, socket, func(c *wire.Conn) {
		for _, pid := range running {
			if alive(t, pid) {
				t.Errorf("process %s runs on", pid)
			}
		}
		request <- c.Request()
		_ = c.Reply(wire.Reply{Stdout: []byte("second")})
	})
	if o := s.wait(); o.code != 0 || o.stdout != "second" {
		t.Errorf("exit code %d, printed %q", o.code, o.stdout)
	}
	if r := receive(t, "request", request); r.Command != verb || r.ContainerID != "abc-1" || len(r.Stdin) == 0 {
		t.Errorf("the second daemon got %+v", r)
	}
	if _, err := os.Stat(call{socket: socket}.notes()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a note was left although it was served: %v", err)
	}
}

func TestTerminatedShimLeavesNothingRunning(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			s, running, cause := hanging(t)
			if err := s.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			e := s.wait().failure(t)
			if e.Code != 11 || !strings.Contains(e.Details, sig.String()) {
				t.Errorf("%+v", e)
			}
			for _, pid := range running {
				if alive(t, pid) {
					t.Errorf("process %s runs on", pid)
				}
			}
			if err := receive(t, "loss", cause); !errors.Is(err, wire.ErrLost) {
				t.Errorf("daemon: %v", err)
			}
		})
	}
}

func TestKilledShimTakesItsProgramWithIt(t *testing.T) {
	s, running, cause := hanging(t)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "loss", cause); !errors.Is(err, wire.ErrLost) {
		t.Errorf("daemon: %v", err)
	}
	eventually(t, "the program dies", func() bool { return !alive(t, running[0]) })
	// Nobody is left to kill its child; the kernel only promises the program.
	if err := syscall.Kill(atoi(t, running[1]), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// hanging is a shim that runs a program, which has a child, without end.
func hanging(t *testing.T) (*shim, []string, <-chan error) {
	t.Helper()
	dir := t.TempDir()
	pids := fifo(t, dir)
	script(t, dir, "hangs", `sleep 1000 & echo $$ $! > `+pids.path+`; wait`)
	cause := make(chan error, 1)
	socket := daemon(t, func(c *wire.Conn) {
		_, _ = c.Exec(context.WithoutCancel(c.Context()), wire.Exec{Name: "hangs", Dirs: []string{dir}})
		<-c.Context().Done()
		cause <- context.Cause(c.Context())
	})
	s := call{verb: "ADD", socket: socket}.start(t)
	return s, pids.read(), cause
}
