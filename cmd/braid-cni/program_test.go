package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/internal/wire"
)

// script writes a shell script that may be executed.
func script(t *testing.T, dir, name, body string) {
	t.Helper()
	write(t, filepath.Join(dir, name), "#!/bin/sh\n"+body+"\n", 0o755)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// pipe is where a program says who it is.
type pipe struct {
	t    *testing.T
	path string
}

func fifo(t *testing.T, dir string) pipe {
	t.Helper()
	p := pipe{t, filepath.Join(dir, "pids")}
	if err := syscall.Mkfifo(p.path, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// read waits for one line.
func (p pipe) read() []string {
	p.t.Helper()
	words := make(chan []string, 1)
	go func() {
		data, _ := os.ReadFile(p.path)
		words <- strings.Fields(string(data))
	}()
	return receive(p.t, "process numbers", words)
}

// alive is false for zombies too: they wait for their parent, which is not us.
func alive(t *testing.T, pid string) bool {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	// "pid (comm) state …", where comm may hold anything
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	return !bytes.HasPrefix(rest, []byte(" Z")) && !bytes.HasPrefix(rest, []byte(" X"))
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually polls for what the kernel does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// viaShim runs one program through a real shim.
func viaShim(t *testing.T, e wire.Exec) (wire.ExecResult, error) {
	t.Helper()
	type end struct {
		r   wire.ExecResult
		err error
	}
	ended := make(chan end, 1)
	socket := daemon(t, func(c *wire.Conn) {
		r, err := c.Exec(c.Context(), e)
		ended <- end{r, err}
		_ = c.Reply(wire.Reply{Stdout: []byte("{}")})
	})
	if o := (call{verb: "ADD", socket: socket}).run(t); o.code != 0 || o.stdout != "{}" || o.stderr != "" {
		t.Errorf("the shim: exit code %d, printed %q, stderr %q", o.code, o.stdout, o.stderr)
	}
	got := receive(t, "result", ended)
	return got.r, got.err
}

func TestProgramGetsExactlyWhatItIsGiven(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "plugin", `echo "args:$*"; env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= -e ^OLDPWD= | sort; cat; echo noise >&2`)
	r, err := viaShim(t, wire.Exec{
		Name: "plugin", Dirs: []string{"/nowhere", dir}, Args: []string{"a b", "c"},
		Env: []string{"CNI_COMMAND=DEL", "X=1"}, Stdin: []byte(`{"name":"n"}`), Timeout: limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "args:a b c\nCNI_COMMAND=DEL\nPATH=" + os.Getenv("PATH") + "\nX=1\n" + `{"name":"n"}`
	if string(r.Stdout) != want || string(r.Stderr) != "noise\n" || r.ExitCode != 0 {
		t.Errorf("stdout %q\nwant   %q\nstderr %q, exit code %d", r.Stdout, want, r.Stderr, r.ExitCode)
	}
}

func TestProgramKeepsItsOwnPath(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "plugin", `echo $PATH`)
	r, err := viaShim(t, wire.Exec{Name: "plugin", Dirs: []string{dir}, Env: []string{"PATH=/mine"}})
	if err != nil || string(r.Stdout) != "/mine\n" {
		t.Errorf("%q, %v", r.Stdout, err)
	}
}

func TestProgramIsTheFirstOfItsName(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	script(t, first, "plugin", "echo first")
	script(t, second, "plugin", "echo second")
	if err := os.Mkdir(filepath.Join(second, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	script(t, first, "dir", "echo no directory")
	r, err := viaShim(t, wire.Exec{Name: "plugin", Dirs: []string{first, second}})
	if err != nil || string(r.Stdout) != "first\n" {
		t.Errorf("%q, %v", r.Stdout, err)
	}
	r, err = viaShim(t, wire.Exec{Name: "dir", Dirs: []string{second, first}})
	if err != nil || string(r.Stdout) != "no directory\n" {
		t.Errorf("%q, %v", r.Stdout, err)
	}
}

func TestProgramWithoutDirsComesFromThePathOfTheHost(t *testing.T) {
	r, err := viaShim(t, wire.Exec{Name: "echo", Args: []string{"found"}})
	if err != nil || string(r.Stdout) != "found\n" {
		t.Errorf("%q, %v", r.Stdout, err)
	}
}

func TestExitCodeAndRubbishArePassedThrough(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "plugin", `printf 'not JSON \377\000'; echo sorry >&2; exit 3`)
	r, err := viaShim(t, wire.Exec{Name: "plugin", Dirs: []string{dir}})
	if err != nil || r.ExitCode != 3 || string(r.Stdout) != "not JSON \xff\x00" || string(r.Stderr) != "sorry\n" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestProgramThatCannotRunSaysWhy(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "plain"), "#!/bin/sh\n", 0o644)
	write(t, filepath.Join(dir, "garbage"), "\x7fELF but not really", 0o755)
	write(t, filepath.Join(dir, "no-interpreter"), "#!/nowhere/python9\n", 0o755)
	script(t, dir, "crashes", "echo begun; kill -SEGV $$")
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		want wire.Failure
		says string
	}{
		"missing":        {wire.NotFound, dir},
		"directory":      {wire.NotFound, dir},
		"plain":          {wire.NotExecutable, "permission denied"},
		"no-interpreter": {wire.NotExecutable, "interpreter"},
		"garbage":        {wire.BadFormat, "exec format error"},
		"crashes":        {wire.Killed, "segmentation fault"},
		"../x":           {wire.NotStarted, "bare file name"},
		"/bin/sh":        {wire.NotStarted, "bare file name"},
		"..":             {wire.NotStarted, "bare file name"},
		"":               {wire.NotStarted, "bare file name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := viaShim(t, wire.Exec{Name: name, Dirs: []string{dir}})
			var execErr *wire.ExecError
			if !errors.As(err, &execErr) || execErr.Failure != test.want || !strings.Contains(execErr.Detail, test.says) {
				t.Errorf("%v; want %q saying %q", err, test.want, test.says)
			}
		})
	}
}

func TestHangingProgramIsKilledWithItsChildrenAtTheDeadline(t *testing.T) {
	dir := t.TempDir()
	pids := fifo(t, dir)
	for name, body := range map[string]string{
		"plugin waits":         `sleep 1000 & echo $$ $! > ` + pids.path + `; echo begun; wait`,
		"plugin ends, a child": `sleep 1000 & echo $$ $! > ` + pids.path + `; echo begun; exec sleep 1000`,
		"plugin is deaf":       `trap '' TERM INT HUP; sleep 1000 & echo $$ $! > ` + pids.path + `; echo begun; wait; wait`,
	} {
		t.Run(name, func(t *testing.T) {
			script(t, dir, "plugin", body)
			running := make(chan []string, 1)
			go func() { running <- pids.read() }()
			r, err := viaShim(t, wire.Exec{Name: "plugin", Dirs: []string{dir}, Timeout: 300 * time.Millisecond})
			var execErr *wire.ExecError
			if !errors.As(err, &execErr) || execErr.Failure != wire.TimedOut || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want %q", err, wire.TimedOut)
			}
			if string(r.Stdout) != "begun\n" {
				t.Errorf("what it printed is lost: %q", r.Stdout)
			}
			for _, pid := range receive(t, "process numbers", running) {
				eventually(t, "process "+pid+" dies", func() bool { return !alive(t, pid) })
			}
		})
	}
}

func TestEndOfTheDaemonsContextKillsTheProgram(t *testing.T) {
	dir := t.TempDir()
	pids := fifo(t, dir)
	script(t, dir, "plugin", `sleep 1000 & echo $$ $! > `+pids.path+`; wait`)
	result := make(chan error, 1)
	socket := daemon(t, func(c *wire.Conn) {
		ctx, cancel := context.WithCancel(c.Context())
		var running []string
		go func() { running = pids.read(); cancel() }()
		_, err := c.Exec(ctx, wire.Exec{Name: "plugin", Dirs: []string{dir}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Exec: %v", err)
		}
		for _, pid := range running {
			eventually(t, "process "+pid+" dies", func() bool { return !alive(t, pid) })
		}
		result <- c.Reply(wire.Reply{})
	})
	if o := (call{verb: "ADD", socket: socket}).run(t); o.code != 0 {
		t.Errorf("%+v", o)
	}
	if err := receive(t, "reply", result); err != nil {
		t.Error(err)
	}
}

// A plugin may start a daemon, which then holds its standard output.
func TestProgramThatLeavesAChildBehindSucceeds(t *testing.T) {
	dir := t.TempDir()
	pids := fifo(t, dir)
	script(t, dir, "plugin", `sleep 1000 & echo $! > `+pids.path+`; echo done`)
	running := make(chan []string, 1)
	go func() { running <- pids.read() }()
	r, err := viaShim(t, wire.Exec{Name: "plugin", Dirs: []string{dir}, Timeout: limit})
	if err != nil || string(r.Stdout) != "done\n" {
		t.Errorf("%+v, %v", r, err)
	}
	pid := receive(t, "process number", running)[0]
	if !alive(t, pid) {
		t.Error("the child was killed")
	}
	if err := syscall.Kill(atoi(t, pid), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestProgramThatPrintsWithoutEndIsKilled(t *testing.T) {
	r, err := viaShim(t, wire.Exec{Name: "yes", Timeout: limit})
	var execErr *wire.ExecError
	if !errors.As(err, &execErr) || execErr.Failure != wire.TooMuchOutput || len(r.Stdout) != maxStdout {
		t.Errorf("%d bytes, %v", len(r.Stdout), err)
	}
}

func TestNoiseOnStandardErrorIsCutNotPunished(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "plugin", `head -c 1000000 /dev/zero >&2; echo fine`)
	r, err := viaShim(t, wire.Exec{Name: "plugin", Dirs: []string{dir}})
	if err != nil || string(r.Stdout) != "fine\n" || len(r.Stderr) != maxStderr {
		t.Errorf("stdout %q, %d bytes of stderr, %v", r.Stdout, len(r.Stderr), err)
	}
}

func TestProgramBeingInstalledIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "plugin")
	script(t, dir, "plugin", "echo installed")
	open, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	result, err := runOnce(t.Context(), func(error) {}, path, wire.Exec{Name: "plugin"})
	if !errors.Is(err, syscall.ETXTBSY) || result.Failure != wire.NotStarted {
		t.Fatalf("this kernel executes a file that is open for writing: %+v, %v", result, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { open.Close() })
	r := runProgram(t.Context(), wire.Exec{Name: "plugin", Dirs: []string{dir}})
	if r.Failure != "" || string(r.Stdout) != "installed\n" {
		t.Errorf("%+v", r)
	}
}

func TestProgramThatIsNeverInstalledIsGivenUp(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "plugin", "echo installed")
	open, err := os.OpenFile(filepath.Join(dir, "plugin"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	r := runProgram(t.Context(), wire.Exec{Name: "plugin", Dirs: []string{dir}, Timeout: limit})
	if r.Failure != wire.NotStarted || !strings.Contains(r.Detail, "busy") {
		t.Errorf("%+v", r)
	}
}
