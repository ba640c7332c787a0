package hostexec_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/hostexec"
)

func TestRunsTheHostsProgram(t *testing.T) {
	out, err := hostexec.Root("").Run(t.Context(), []byte("in"), "cat")
	if err != nil || string(out) != "in" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestExitCodeAndComplaintAreKept(t *testing.T) {
	_, err := hostexec.Root("/").Run(t.Context(), nil, "sh", "-c", "echo no >&2; exit 4")
	var exit *hostexec.ExitError
	if !errors.As(err, &exit) || exit.Code != 4 || exit.Stderr != "no" {
		t.Errorf("%v", err)
	}
}

func TestAMissingProgramIsNamed(t *testing.T) {
	_, err := hostexec.Root("").Run(t.Context(), nil, "braid-no-such-program")
	if !errors.Is(err, hostexec.ErrNotFound) || !strings.Contains(err.Error(), "braid-no-such-program") {
		t.Errorf("%v", err)
	}
}

// A tree of its own, whose one program is found by a link that only makes sense
// inside.
func TestRunsInTheTreeThatIsMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chroot takes root: make test runs as root")
	}
	root := t.TempDir()
	const busybox = "/bin/busybox"
	if err := copyFile(busybox, filepath.Join(root, busybox)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(busybox, filepath.Join(root, "usr/bin/ls")); err != nil {
		t.Fatal(err)
	}
	out, err := hostexec.Root(root).Run(t.Context(), nil, "ls", "/")
	if err != nil || string(out) != "bin\nusr\n" {
		t.Errorf("%q, %v", out, err)
	}
	if hostexec.Root(root).Has("cat") {
		t.Error("cat of the machine was found")
	}
}

func TestAProgramThatHangsIsEndedWithItsChildren(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := hostexec.Root("").Run(ctx, nil, "sh", "-c", "sleep 60 & sleep 60"); err == nil {
		t.Error("no error")
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
