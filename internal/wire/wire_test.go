package wire_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/internal/wire"
)

// limit is for a test that would otherwise hang.
const limit = 20 * time.Second

func TestMain(m *testing.M) {
	if socket := os.Getenv("WIRE_TEST_DIAL"); socket != "" {
		_, err := wire.Do(context.Background(), wire.Call{Socket: socket, Request: wire.Request{Command: "STATUS"}})
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// daemon serves handle on a fresh socket until the test ends.
type daemon struct {
	socket  string
	refused chan error
	stop    func() error // stops serving and returns what Serve returned
}

func serve(t *testing.T, handle func(c *wire.Conn)) daemon {
	t.Helper()
	return serveOn(t, socketPath(t), wire.Server{Handle: handle})
}

func serveOn(t *testing.T, socket string, s wire.Server) daemon {
	t.Helper()
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	d := daemon{socket: socket, refused: make(chan error, 100)}
	s.Refused = func(err error) { d.refused <- err }
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	d.stop = sync.OnceValue(func() error { cancel(); return <-served })
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return d
}

// socketPath is short enough for the kernel whatever the test's name.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
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

func TestRequestArrivesWithItsNamespace(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	want := wire.Request{
		Version: wire.Version, Command: "ADD", ContainerID: "c1", NetNS: "/run/netns/c1", IfName: "eth0",
		Args: "K8S_POD_NAME=x", Path: "/opt/cni/bin", Stdin: []byte(`{"name":"n"}`), Timeout: time.Minute,
	}
	got := make(chan wire.Request, 1)
	same := make(chan error, 1)
	d := serve(t, func(c *wire.Conn) {
		got <- c.Request()
		same <- sameFile(c.NetNS(), ns)
		_ = c.Reply(wire.Reply{Stdout: []byte("{}\n")})
	})
	reply, err := wire.Do(within(t), wire.Call{Socket: d.socket, Request: want, NetNS: ns})
	if err != nil || string(reply.Stdout) != "{}\n" || reply.Error != nil {
		t.Errorf("Do = %+v, %v", reply, err)
	}
	if r := receive(t, "request", got); !equal(r, want) {
		t.Errorf("daemon got %+v, want %+v", r, want)
	}
	if err := receive(t, "namespace", same); err != nil {
		t.Error(err)
	}
}

func equal(a, b wire.Request) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

func sameFile(got, want *os.File) error {
	if got == nil {
		return errors.New("no namespace arrived")
	}
	a, err := got.Stat()
	if err != nil {
		return err
	}
	b, err := want.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("%v arrived instead of %v", a.Sys(), b.Sys())
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, got.Fd(), syscall.F_GETFD, 0)
	if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
		return fmt.Errorf("the descriptor would leak into plugins: flags %#x, %v", flags, errno)
	}
	return nil
}

func TestRequestWithoutNamespaceHasNone(t *testing.T) {
	has := make(chan bool, 1)
	d := serve(t, func(c *wire.Conn) {
		has <- c.NetNS() != nil
		_ = c.Reply(wire.Reply{})
	})
	if _, err := wire.Do(within(t), wire.Call{Socket: d.socket, Request: wire.Request{Command: "GC"}}); err != nil {
		t.Error(err)
	}
	if receive(t, "namespace", has) {
		t.Error("a namespace came out of nothing")
	}
}

// Whatever of the request the daemon left unread, its answer counts: a daemon
// of another version answers before it has understood everything.
func TestReplyIsReadAlthoughTheRequestCouldNotBeSent(t *testing.T) {
	socket := socketPath(t)
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			return // the test has failed
		}
		body := []byte(`{"reply":{"error":{"code":11,"msg":"not you"}}}`)
		_, _ = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
		conn.Close()
	}()
	// More than a socket buffers.
	reply, err := wire.Do(within(t), wire.Call{Socket: socket, Request: wire.Request{Stdin: make([]byte, 8<<20)}})
	if err != nil || reply.Error == nil || reply.Error.Msg != "not you" {
		t.Errorf("Do = %+v, %v", reply, err)
	}
}

func TestErrorReplyArrivesWhole(t *testing.T) {
	want := wire.Error{Code: wire.CodeTryAgainLater, Msg: "not yet", Details: "no default network"}
	d := serve(t, func(c *wire.Conn) { _ = c.Reply(wire.Reply{Error: &want}) })
	reply, err := wire.Do(within(t), wire.Call{Socket: d.socket})
	if err != nil || reply.Error == nil || *reply.Error != want {
		t.Errorf("Do = %+v, %v", reply, err)
	}
	if got := reply.Error.Error(); got != "not yet: no default network" {
		t.Errorf("Error() = %q", got)
	}
}

func TestProgramsRunAtOnceAndResultsFindTheirCaller(t *testing.T) {
	const n = 8
	failures := make(chan error, n)
	d := serve(t, func(c *wire.Conn) {
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				name := "p" + strconv.Itoa(i)
				r, err := c.Exec(c.Context(), wire.Exec{Name: name, Stdin: []byte(name)})
				if err == nil && (string(r.Stdout) != name || r.ExitCode != i) {
					err = fmt.Errorf("%s got %+v", name, r)
				}
				failures <- err
			})
		}
		all.Wait()
		_ = c.Reply(wire.Reply{})
	})
	// No program ends before all of them run.
	var together sync.WaitGroup
	together.Add(n)
	_, err := wire.Do(within(t), wire.Call{Socket: d.socket, Run: func(ctx context.Context, e wire.Exec) wire.ExecResult {
		together.Done()
		together.Wait()
		code, _ := strconv.Atoi(strings.TrimPrefix(e.Name, "p"))
		return wire.ExecResult{Stdout: e.Stdin, ExitCode: code}
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := receive(t, "result", failures); err != nil {
			t.Error(err)
		}
	}
}

func TestProgramThatCouldNotRunIsAnExecError(t *testing.T) {
	for _, failure := range []wire.Failure{wire.NotFound, wire.NotExecutable, wire.BadFormat, wire.TimedOut, wire.Killed, wire.TooMuchOutput} {
		t.Run(string(failure), func(t *testing.T) {
			result := make(chan error, 1)
			d := serve(t, func(c *wire.Conn) {
				r, err := c.Exec(c.Context(), wire.Exec{Name: "flannel"})
				if string(r.Stdout) != "half" {
					t.Errorf("what it printed is lost: %+v", r)
				}
				result <- err
			})
			_, _ = wire.Do(within(t), wire.Call{Socket: d.socket, Run: func(context.Context, wire.Exec) wire.ExecResult {
				return wire.ExecResult{Stdout: []byte("half"), Failure: failure, Detail: "because"}
			}})
			err := receive(t, "result", result)
			var execErr *wire.ExecError
			if !errors.As(err, &execErr) || execErr.Failure != failure || execErr.Name != "flannel" {
				t.Fatalf("Exec: %v", err)
			}
			if want := "flannel: " + string(failure) + ": because"; err.Error() != want {
				t.Errorf("message %q, want %q", err, want)
			}
			if got := errors.Is(err, context.DeadlineExceeded); got != (failure == wire.TimedOut) {
				t.Errorf("is DeadlineExceeded: %v", got)
			}
		})
	}
}

func TestDaemonLearnsThatTheShimIsGone(t *testing.T) {
	type seen struct{ exec, cause error }
	end := make(chan seen, 1)
	d := serve(t, func(c *wire.Conn) {
		// Its own context, as for a roll-back: only the loss ends the Exec.
		_, err := c.Exec(context.WithoutCancel(c.Context()), wire.Exec{Name: "hangs"})
		<-c.Context().Done()
		end <- seen{err, context.Cause(c.Context())}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	killed := errors.New("runtime killed the shim")
	returned := false
	_, err := wire.Do(ctx, wire.Call{Socket: d.socket, Run: func(ctx context.Context, e wire.Exec) wire.ExecResult {
		cancel(killed)
		<-ctx.Done()
		returned = true
		return wire.ExecResult{}
	}})
	if err != killed || !returned {
		t.Errorf("Do: %v, want the cause; program ended before Do returned: %v", err, returned)
	}
	s := receive(t, "loss", end)
	if !errors.Is(s.exec, wire.ErrLost) || !errors.Is(s.cause, wire.ErrLost) {
		t.Errorf("Exec: %v; context: %v; want ErrLost", s.exec, s.cause)
	}
}

func TestShimLearnsThatTheDaemonIsGone(t *testing.T) {
	inExec := make(chan struct{})
	d := serveOn(t, socketPath(t), wire.Server{Handle: func(c *wire.Conn) {
		_, _ = c.Exec(c.Context(), wire.Exec{Name: "hangs"})
	}})
	go func() {
		<-inExec
		_ = d.stop() // without any grace, and without a reply
	}()
	ended := make(chan struct{})
	_, err := wire.Do(within(t), wire.Call{Socket: d.socket, Run: func(ctx context.Context, e wire.Exec) wire.ExecResult {
		close(inExec)
		<-ctx.Done()
		close(ended)
		return wire.ExecResult{Failure: wire.Canceled}
	}})
	if !errors.Is(err, wire.ErrLost) {
		t.Errorf("Do: %v, want ErrLost", err)
	}
	select {
	case <-ended:
	default:
		t.Error("Do returned before the program had ended")
	}
}

func TestProgramIsKilledWhenNobodyWaitsForIt(t *testing.T) {
	result := make(chan error, 1)
	running := make(chan struct{})
	d := serve(t, func(c *wire.Conn) {
		ctx, cancel := context.WithCancel(c.Context())
		go func() { <-running; cancel() }()
		r, err := c.Exec(ctx, wire.Exec{Name: "hangs"})
		if r.Failure != wire.Canceled {
			t.Errorf("Exec returned before the program was dead: %+v", r)
		}
		result <- err
		// The connection serves on, such as to roll back.
		if _, err := c.Exec(c.Context(), wire.Exec{Name: "next"}); err != nil {
			t.Error(err)
		}
		_ = c.Reply(wire.Reply{})
	})
	_, err := wire.Do(within(t), wire.Call{Socket: d.socket, Run: func(ctx context.Context, e wire.Exec) wire.ExecResult {
		if e.Name == "next" {
			return wire.ExecResult{}
		}
		close(running)
		<-ctx.Done()
		return wire.ExecResult{Failure: wire.Canceled}
	}})
	if err != nil {
		t.Error(err)
	}
	if err := receive(t, "result", result); !errors.Is(err, context.Canceled) {
		t.Errorf("Exec: %v, want context.Canceled", err)
	}
}

func TestTimeoutOfTheRequestEndsItsContext(t *testing.T) {
	cause := make(chan error, 1)
	d := serve(t, func(c *wire.Conn) {
		<-c.Context().Done()
		cause <- context.Cause(c.Context())
		_ = c.Reply(wire.Reply{Error: &wire.Error{Code: wire.CodeTryAgainLater, Msg: "too slow"}})
	})
	reply, err := wire.Do(within(t), wire.Call{Socket: d.socket, Request: wire.Request{Timeout: 10 * time.Millisecond}})
	if err != nil || reply.Error == nil || reply.Error.Msg != "too slow" {
		t.Errorf("the failure did not arrive: %+v, %v", reply, err)
	}
	if err := receive(t, "cause", cause); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cause %v", err)
	}
}

func TestNoDaemonIsUnreachable(t *testing.T) {
	missing := socketPath(t)
	stale := socketPath(t)
	d := serveOn(t, stale, wire.Server{})
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	for name, socket := range map[string]string{"missing": missing, "stale": stale} {
		if _, err := wire.Do(within(t), wire.Call{Socket: socket}); !errors.Is(err, wire.ErrUnreachable) {
			t.Errorf("%s socket: %v, want ErrUnreachable", name, err)
		}
	}
}

func TestMessagesThatAreTooLargeAreRefusedAtEitherEnd(t *testing.T) {
	big := make([]byte, wire.MaxFrame) // grows by a third in JSON
	t.Run("request", func(t *testing.T) {
		d := serve(t, func(c *wire.Conn) { t.Error("it arrived") })
		_, err := wire.Do(within(t), wire.Call{Socket: d.socket, Request: wire.Request{Stdin: big}})
		if !errors.Is(err, wire.ErrTooLarge) {
			t.Errorf("Do: %v", err)
		}
	})
	t.Run("request of a shim that does not check", func(t *testing.T) {
		d := serve(t, func(c *wire.Conn) { t.Error("it arrived") })
		conn := dialRaw(t, d.socket)
		if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, wire.MaxFrame+1)); err != nil {
			t.Fatal(err)
		}
		if err := receive(t, "refusal", d.refused); !errors.Is(err, wire.ErrTooLarge) {
			t.Errorf("refused for %v", err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still open")
		}
	})
	t.Run("exec", func(t *testing.T) {
		d := serve(t, func(c *wire.Conn) {
			if _, err := c.Exec(c.Context(), wire.Exec{Stdin: big}); !errors.Is(err, wire.ErrTooLarge) {
				t.Errorf("Exec: %v", err)
			}
			_ = c.Reply(wire.Reply{})
		})
		if _, err := wire.Do(within(t), wire.Call{Socket: d.socket}); err != nil {
			t.Error(err)
		}
	})
	t.Run("result", func(t *testing.T) {
		d := serve(t, func(c *wire.Conn) {
			_, err := c.Exec(c.Context(), wire.Exec{Name: "x"})
			var execErr *wire.ExecError
			if !errors.As(err, &execErr) || execErr.Failure != wire.TooMuchOutput {
				t.Errorf("Exec: %v", err)
			}
			_ = c.Reply(wire.Reply{})
		})
		_, err := wire.Do(within(t), wire.Call{Socket: d.socket, Run: func(context.Context, wire.Exec) wire.ExecResult {
			return wire.ExecResult{Stdout: big}
		}})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("reply", func(t *testing.T) {
		d := serve(t, func(c *wire.Conn) {
			if err := c.Reply(wire.Reply{Stdout: big}); !errors.Is(err, wire.ErrTooLarge) {
				t.Errorf("Reply: %v", err)
			}
		})
		reply, err := wire.Do(within(t), wire.Call{Socket: d.socket})
		if err != nil || reply.Error == nil || reply.Error.Code != wire.CodeInternal {
			t.Errorf("Do = %+v, %v", reply.Error, err)
		}
	})
}

func TestBrokenRequestsAreRefused(t *testing.T) {
	frame := func(body string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
	}
	for name, data := range map[string]string{
		"no JSON":           frame("hello"),
		"wrong kind":        frame(`{"request":{"version":"one"}}`),
		"not a request":     frame(`{"cancel":1}`),
		"null":              frame("null"),
		"cut in the header": "\x00\x00",
		"cut in the body":   frame(`{"request":{}}`)[:9],
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, func(c *wire.Conn) { t.Error("it arrived") })
			conn := dialRaw(t, d.socket)
			if _, err := io.WriteString(conn, data); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			receive(t, "refusal", d.refused)
		})
	}
}

func TestShimOfAnotherVersionIsToldToComeBack(t *testing.T) {
	d := serve(t, func(c *wire.Conn) { t.Error("it arrived") })
	conn := dialRaw(t, d.socket)
	body := []byte(`{"request":{"version":99,"command":"ADD"}}`)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || len(answer) < 4 {
		t.Fatalf("answer %q, %v", answer, err)
	}
	var m struct{ Reply wire.Reply }
	if err := json.Unmarshal(answer[4:], &m); err != nil || m.Reply.Error == nil || m.Reply.Error.Code != wire.CodeTryAgainLater {
		t.Errorf("answer %s, %v", answer[4:], err)
	}
}

// Looking whether a daemon is there must not fill its log.
func TestAConnectionThatSaysNothingIsNoIncident(t *testing.T) {
	d := serve(t, func(c *wire.Conn) {})
	conn := dialRaw(t, d.socket)
	conn.Close()
	if err := d.stop(); err != nil { // waits for the connection
		t.Fatal(err)
	}
	select {
	case err := <-d.refused:
		t.Errorf("reported: %v", err)
	default:
	}
}

func TestHandlerWithoutAnswerIsAnInternalError(t *testing.T) {
	d := serve(t, func(c *wire.Conn) {})
	reply, err := wire.Do(within(t), wire.Call{Socket: d.socket, Request: wire.Request{Command: "ADD"}})
	if err != nil || reply.Error == nil || reply.Error.Code != wire.CodeInternal {
		t.Errorf("Do = %+v, %v", reply, err)
	}
}

func TestOnlyTheFirstReplyCounts(t *testing.T) {
	second := make(chan error, 1)
	d := serve(t, func(c *wire.Conn) {
		_ = c.Reply(wire.Reply{Stdout: []byte("1")})
		second <- c.Reply(wire.Reply{Stdout: []byte("2")})
	})
	reply, err := wire.Do(within(t), wire.Call{Socket: d.socket})
	if err != nil || string(reply.Stdout) != "1" {
		t.Errorf("Do = %+v, %v", reply, err)
	}
	if receive(t, "second reply", second) == nil {
		t.Error("the second Reply succeeded")
	}
}

func TestStoppingServerFinishesWhatItBegan(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	d := serveOn(t, socketPath(t), wire.Server{Grace: limit, Handle: func(c *wire.Conn) {
		if c.Request().Command == "PROBE" {
			_ = c.Reply(wire.Reply{})
			return
		}
		close(began)
		<-finish
		if err := c.Context().Err(); err != nil {
			t.Errorf("the grace was not granted: %v", err)
		}
		_ = c.Reply(wire.Reply{Stdout: []byte("done")})
	}})
	answer := make(chan string, 1)
	go func() {
		reply, err := wire.Do(t.Context(), wire.Call{Socket: d.socket})
		answer <- fmt.Sprint(string(reply.Stdout), err)
	}()
	receive(t, "request", began)
	stopped := make(chan error, 1)
	go func() { stopped <- d.stop() }()
	// Once nobody can connect any more, the server is stopping.
	for {
		_, err := wire.Do(within(t), wire.Call{Socket: d.socket, Request: wire.Request{Command: "PROBE"}})
		if errors.Is(err, wire.ErrUnreachable) {
			break
		}
		if err != nil && !errors.Is(err, wire.ErrLost) {
			t.Fatal(err)
		}
	}
	close(finish)
	if got := receive(t, "answer", answer); got != "done<nil>" {
		t.Errorf("answer %q", got)
	}
	if err := receive(t, "stop", stopped); err != nil {
		t.Error(err)
	}
}

func TestStoppingServerEndsRequestsAfterItsGrace(t *testing.T) {
	cause := make(chan error, 1)
	began := make(chan struct{})
	d := serveOn(t, socketPath(t), wire.Server{Grace: time.Millisecond, Handle: func(c *wire.Conn) {
		close(began)
		<-c.Context().Done()
		cause <- context.Cause(c.Context())
	}})
	lost := make(chan error, 1)
	go func() {
		_, err := wire.Do(t.Context(), wire.Call{Socket: d.socket})
		lost <- err
	}()
	receive(t, "request", began)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if err := receive(t, "cause", cause); err != wire.ErrShutdown {
		t.Errorf("cause %v, want ErrShutdown", err)
	}
	// No reply: the shim is to ask the next daemon.
	if err := receive(t, "loss", lost); !errors.Is(err, wire.ErrLost) {
		t.Errorf("Do: %v, want ErrLost", err)
	}
}

func TestListenReplacesADeadDaemonsSocketOnly(t *testing.T) {
	socket := socketPath(t)
	first := serveOn(t, socket, wire.Server{Handle: func(c *wire.Conn) { _ = c.Reply(wire.Reply{Stdout: []byte("first")}) }})
	if _, err := wire.Listen(socket); !errors.Is(err, wire.ErrInUse) {
		t.Fatalf("Listen next to a living daemon: %v", err)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	serveOn(t, socket, wire.Server{Handle: func(c *wire.Conn) { _ = c.Reply(wire.Reply{Stdout: []byte("second")}) }})
	reply, err := wire.Do(within(t), wire.Call{Socket: socket})
	if err != nil || string(reply.Stdout) != "second" {
		t.Errorf("Do = %+v, %v", reply, err)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(socket))
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestListenMakesItsDirectory(t *testing.T) {
	socket := filepath.Join(filepath.Dir(socketPath(t)), "run", "braid", "s")
	serveOn(t, socket, wire.Server{Handle: func(c *wire.Conn) { _ = c.Reply(wire.Reply{}) }})
	if _, err := wire.Do(within(t), wire.Call{Socket: socket}); err != nil {
		t.Error(err)
	}
}

// The socket's mode keeps other users away; this is the second lock.
func TestPeerOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	d := serve(t, func(c *wire.Conn) { t.Error("it was served") })
	dir := filepath.Dir(d.socket)
	for path, mode := range map[string]os.FileMode{dir: 0o755, d.socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	self := copySelf(t, dir)
	cmd := exec.Command(self)
	cmd.Dir = dir
	cmd.Env = []string{"WIRE_TEST_DIAL=" + d.socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	// It is hung up on before or after it has sent its request.
	if err != nil || !strings.Contains(string(out), wire.ErrLost.Error()) {
		t.Errorf("%s, %v", out, err)
	}
	if err := receive(t, "refusal", d.refused); !errors.Is(err, wire.ErrPeer) {
		t.Errorf("refused for %v", err)
	}
}

// copySelf puts the test binary where another user may execute it.
func copySelf(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "self")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNoDescriptorIsLeftBehind(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	d := serve(t, func(c *wire.Conn) {
		_, _ = c.Exec(c.Context(), wire.Exec{Name: "x"})
		_ = c.Reply(wire.Reply{})
	})
	conversations := map[string]func(){
		"served": func() {
			if _, err := wire.Do(t.Context(), wire.Call{Socket: d.socket, NetNS: ns, Run: func(context.Context, wire.Exec) wire.ExecResult {
				return wire.ExecResult{}
			}}); err != nil {
				t.Error(err)
			}
		},
		"broken request with a namespace": func() { sendRaw(t, d.socket, "\x00\x00\x00\x02{]", ns) },
		"cut request with a namespace":    func() { sendRaw(t, d.socket, "\x00\x00\x00\x09{", ns) },
		"two namespaces":                  func() { sendRaw(t, d.socket, "\x00\x00\x00\x02{}", ns, ns) },
		"too many namespaces":             func() { sendRaw(t, d.socket, "\x00\x00\x00\x02{}", ns, ns, ns, ns, ns, ns, ns) },
		"another version":                 func() { sendRaw(t, d.socket, "\x00\x00\x00\x0e{\"request\":{}}", ns) },
	}
	for _, converse := range conversations { // the first of each may open lasting ones
		converse()
	}
	before := descriptors(t)
	for name, converse := range conversations {
		for range 10 {
			converse()
		}
		if err := settles(func() error {
			if after := descriptors(t); len(after) > len(before) {
				return fmt.Errorf("open before %v, after %v", before, after)
			}
			return nil
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// settles polls: the server closes its end of a connection after the client
// has seen the end of the conversation, and nothing announces that.
func settles(ok func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") {
			open = append(open, e.Name()+"="+target)
		}
	}
	slices.Sort(open)
	return open
}

func dialRaw(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(limit))
	return conn
}

// sendRaw sends data with descriptors attached and waits for the hang-up.
func sendRaw(t *testing.T, socket, data string, files ...*os.File) {
	t.Helper()
	conn := dialRaw(t, socket)
	defer conn.Close()
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix([]byte(data), syscall.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
}
