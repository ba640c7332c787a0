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

func TestLinksLeadWhereTheHostFollowsThem(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"run/netns", "var", "opt/cni"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"var/run": "/run", "opt/up": "../run", "opt/out": "../../../../run", "opt/round": "round", "opt/cni/far": "/var/run/netns"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/var/run/netns/cni-1": "run/netns/cni-1",
		"/opt/up/netns":        "run/netns",
		"/opt/out/netns":       "run/netns",
		"opt/cni/far/x":        "run/netns/x",
		"/opt/round/x":         "opt/round/x",
		"/../../etc":           "etc",
		"/":                    "",
		"/not/there":           "not/there",
	} {
		if have := hostexec.Root(root).Path(path); have != filepath.Join(root, want) {
			t.Errorf("%s: have %s, want %s", path, have, want)
		}
	}
	if have := hostexec.Root("/").Path("var/run"); have != "/var/run" {
		t.Errorf("outside of a container: %s", have)
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
