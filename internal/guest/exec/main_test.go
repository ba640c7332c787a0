package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
)

// TestMain makes this program the command under test when it is asked to.
func TestMain(m *testing.M) {
	if os.Getenv("BRAID_TEST_EXEC") != "" {
		main()
	}
	os.Exit(m.Run())
}

// command is the command with args. Its output goes to the two buffers.
func command(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	kerneltest.Need(t, kerneltest.UML, kerneltest.NetNS)
	init, err := guest.BuildInit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "BRAID_TEST_EXEC=1", "BRAID_TIER=", "A=one", "BRAID_GUEST_INIT="+init)
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

func TestAProgramRunsAsIfItRanHere(t *testing.T) {
	cmd, stdout, stderr := command(t, "-mem", "128", "sh", "-c", `echo "$A $1 $PWD"; uname -r >&2; exit 7`, "sh", "arg")
	err := cmd.Run()
	cwd, _ := os.Getwd()
	if cmd.ProcessState.ExitCode() != 7 || stdout.String() != "one arg "+cwd+"\n" || !strings.HasPrefix(stderr.String(), "6.") {
		t.Errorf("%v, stdout %q, stderr %q", err, stdout, stderr)
	}
}

func TestATestMayWriteBesideItsBinary(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "x.test")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho profile > $0.out\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd, _, stderr := command(t, "-mem", "128", script, "-test.v")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v, %s", err, stderr)
	}
	if data, err := os.ReadFile(script + ".out"); string(data) != "profile\n" {
		t.Errorf("%q, %v", data, err)
	}
}

// stopper sends a signal to the command once it has written something.
type stopper struct {
	said   strings.Builder
	signal func()
}

func (s *stopper) Write(p []byte) (int, error) {
	s.signal()
	return s.said.Write(p)
}

func TestQuitReachesTheProgram(t *testing.T) {
	cmd, _, stderr := command(t, "-mem", "128", "sh", "-c", `trap "echo here; exit 2" QUIT; echo up; while :; do sleep 0.1; done`)
	out := &stopper{}
	out.signal = func() { _ = cmd.Process.Signal(unix.SIGQUIT) }
	cmd.Stdout = out
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != noExit || out.said.String() != "up\nhere\n" {
		t.Errorf("%v, output %q, stderr %q", err, out.said.String(), stderr)
	}
}

func TestTheTierIsGuestUnlessSet(t *testing.T) {
	if got := environment([]string{"A=1"}); !slices.Equal(got, []string{"A=1", "BRAID_TIER=guest"}) {
		t.Error(got)
	}
	if got := environment([]string{"BRAID_TIER=net"}); !slices.Equal(got, []string{"BRAID_TIER=net"}) {
		t.Error(got)
	}
}
