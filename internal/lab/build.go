package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// modulePath is the module of this repository, by which its root is found.
const modulePath = "braid.dev/braid"

// BuildConfig says what Build builds and where.
type BuildConfig struct {
	// Source is the root of the Braid repository, which holds the modules that
	// pin the programs. Empty means: found from the working directory or from
	// the place of the running executable.
	Source string
	// Cache is the directory for executables and images. Empty means
	// $BRAID_CACHE, or else ~/.cache/braid.
	Cache string
	// Only names the programs to build; empty means those that every lab needs.
	Only []string
	// All means also those that only some labs need, such as Cilium's.
	All bool
	// Progress receives one line per program; nil discards them.
	Progress *Progress
}

// Binaries maps the name of a program to the path of its executable.
type Binaries map[string]string

// Build makes sure that the programs of a lab exist and returns where. What
// was built before from the same inputs is found by a stat; nothing is run for
// it but `go env`.
func Build(ctx context.Context, cfg BuildConfig) (Binaries, error) {
	list, err := selectPrograms(cfg.Only, cfg.All)
	if err != nil {
		return nil, err
	}
	source, err := sourceRoot(cfg.Source)
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir(cfg.Cache)
	if err != nil {
		return nil, err
	}
	version, err := goVersion(ctx, source)
	if err != nil {
		return nil, err
	}
	built := Binaries{}
	var missing []program
	for _, p := range list {
		id, err := p.fingerprint(source, version)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", p.Name, err)
		}
		built[p.Name] = filepath.Join(cache, "bin", id, p.Name)
		if _, err := os.Stat(built[p.Name]); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return built, nil
	}
	return built, buildMissing(ctx, cfg.Progress, source, cache, missing, built)
}

// buildMissing builds one program after the other: the compiler uses every
// core by itself, and two links at once would need the memory twice.
func buildMissing(ctx context.Context, progress *Progress, source, cache string, missing []program, built Binaries) error {
	unlock, err := lockCache(ctx, progress, cache)
	if err != nil {
		return err
	}
	defer unlock()
	for i, p := range missing {
		path := built[p.Name]
		if _, err := os.Stat(path); err == nil {
			continue // built by someone else while this waited for the lock
		}
		what := fmt.Sprintf("build %s (%d of %d)", p.Name, i+1, len(missing))
		done := progress.Step(what)
		if err := p.build(ctx, source, path); err != nil {
			return fmt.Errorf("build %s: %w", p.Name, err)
		}
		done()
	}
	return nil
}

// build compiles p into path. The file appears there complete or not at all.
func (p program) build(ctx context.Context, source, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	args := []string{"build", "-mod=readonly", "-buildvcs=false", "-o", tmp}
	if p.Tags != "" {
		args = append(args, "-tags", p.Tags)
	}
	if p.LDFlags != "" {
		args = append(args, "-ldflags", p.LDFlags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, p.Package)...)
	cmd.Dir = filepath.Join(source, p.Module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// go build starts compilers; a process group lets all of them be stopped.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		os.Remove(tmp)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("go %s (in %s): %w\n%s", strings.Join(args, " "), cmd.Dir, err, tail(out.Bytes(), 20))
	}
	return os.Rename(tmp, path)
}

func goVersion(ctx context.Context, source string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Dir = source
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("the Go tool chain is not in PATH: the programs of a lab are built with it (https://go.dev/dl/)")
	}
	if err != nil {
		return "", fmt.Errorf("go env GOVERSION: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// lockCache lets one process at a time build into the cache.
func lockCache(ctx context.Context, progress *Progress, cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	// The kernel offers no lock that a context can interrupt, so this polls;
	// a cold build holds it for minutes.
	err = progress.Wait(ctx, Wait{What: "another build into " + cache, Limit: 30 * time.Minute, Every: 200 * time.Millisecond},
		func(context.Context) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// cacheDir returns the directory for what is expensive to make and safe to
// delete.
func cacheDir(configured string) (string, error) {
	if configured == "" {
		configured = os.Getenv("BRAID_CACHE")
	}
	if configured != "" {
		return filepath.Abs(configured)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory (set BRAID_CACHE): %w", err)
	}
	return filepath.Join(base, "braid"), nil
}

// sourceRoot finds the repository: the given directory, the working directory
// and above, the directory of the executable and above.
func sourceRoot(configured string) (string, error) {
	if configured != "" {
		if isSourceRoot(configured) {
			return filepath.Abs(configured)
		}
		return "", fmt.Errorf("%s is not the root of module %s", configured, modulePath)
	}
	var from []string
	if wd, err := os.Getwd(); err == nil {
		from = append(from, wd)
	}
	if exe, err := os.Executable(); err == nil {
		from = append(from, filepath.Dir(exe))
	}
	for _, dir := range from {
		for ; ; dir = filepath.Dir(dir) {
			if isSourceRoot(dir) {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("the sources of Braid are needed and were not found from %s upwards: run this inside the repository",
		strings.Join(from, " or "))
}

func isSourceRoot(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	return err == nil && strings.TrimSpace(line) == "module "+modulePath
}

// tail returns the last n lines of text.
func tail(text []byte, n int) string {
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// tailFile returns the last n lines of the file with its path, for an error
// message. A file that is not there is worth a word too.
func tailFile(path string, n int) string {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path + " does not exist"
	}
	if err != nil {
		return err.Error()
	}
	if len(text) == 0 {
		return path + " is empty"
	}
	return fmt.Sprintf("end of %s:\n%s", path, tail(text, n))
}

// quote adds the end of a log to an error, unless the error has done so.
func quote(err error, log string) error {
	if err == nil || errors.Is(err, errGiveUp) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w\n%s", err, tailFile(log, 12))
}
