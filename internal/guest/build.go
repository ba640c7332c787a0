package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// initName is the file name of the program of internal/guest/init.
const initName = "braid-guest-init"

// findProgram returns the path of the program that a kernel runs in.
func findProgram(k Kernel) (string, error) {
	names, packages := []string{"linux.uml", "linux"}, "user-mode-linux kmod"
	if k == QEMU {
		names, packages = []string{"qemu-system-x86_64"}, "qemu-system-x86 kmod"
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s on PATH (apt-get install %s)", names[0], packages)
}

// findInit returns the path of the init program: the one of BRAID_GUEST_INIT,
// the one beside the running program, or one built now.
func findInit(ctx context.Context) (string, error) {
	if path := os.Getenv("BRAID_GUEST_INIT"); path != "" {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), initName)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return BuildInit(ctx)
}

// BuildInit builds the init program from this module's source, or finds that
// it is up to date, and returns its path in the cache: $BRAID_CACHE, or braid
// in the user's cache directory. Guests that are booting are not disturbed.
func BuildInit(ctx context.Context) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", fmt.Errorf("build guest init: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", fmt.Errorf("build guest init: %w", err)
	}
	defer unlock()
	built, path := filepath.Join(dir, initName+".build"), filepath.Join(dir, initName)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", built,
		"braid.dev/braid/internal/guest/init")
	cmd.Dir = sourceDir()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build guest init (BRAID_GUEST_INIT names one that is built): %w: %s",
			err, bytes.TrimSpace(out))
	}
	if err := publish(built, path); err != nil {
		return "", fmt.Errorf("build guest init: %w", err)
	}
	return path, nil
}

func cacheDir() (string, error) {
	base := os.Getenv("BRAID_CACHE")
	if base == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		base = filepath.Join(user, "braid")
	}
	dir := filepath.Join(base, "guest")
	return dir, os.MkdirAll(dir, 0o755)
}

// sourceDir is where this file was compiled, empty when that is not here.
func sourceDir() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return ""
	}
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return filepath.Dir(file)
}

// lock waits for an exclusive lock on path.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// publish replaces path by a copy of built when they differ, in one step.
func publish(built, path string) error {
	data, err := os.ReadFile(built)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
