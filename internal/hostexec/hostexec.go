// Package hostexec runs programs of the host, in the host's file tree, from
// inside a container that has that tree mounted. So the node's own iptables, of
// whichever kind, stays the one that knows its rules.
package hostexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// dirs are where the host's programs are looked for, in this order.
var dirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Root is the directory that the host's / is mounted on; "/" or "" outside of a
// container.
type Root string

// ErrNotFound is returned when the host has no program of that name; it is an
// exec.ErrNotFound.
var ErrNotFound = fmt.Errorf("the host has no such program: %w", exec.ErrNotFound)

// Run runs a program of the host and returns what it wrote to stdout. An exit
// status other than zero is an *ExitError.
func (r Root) Run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	path, err := r.find(args[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", args[0], err)
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + strings.Join(dirs, ":"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if r.contained() {
		cmd.SysProcAttr.Chroot = string(r)
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &complaint
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return out.Bytes(), &ExitError{Args: args, Code: exit.ExitCode(), Stderr: strings.TrimSpace(complaint.String())}
	}
	if err != nil {
		return out.Bytes(), fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return out.Bytes(), nil
}

// Has reports whether the host has a program of that name.
func (r Root) Has(name string) bool {
	_, err := r.find(name)
	return err == nil
}

func (r Root) contained() bool { return r != "" && r != "/" }

// find is the program's path as the host sees it. A link in the host's tree may
// be absolute, and so lead nowhere from here: that it is there is enough.
func (r Root) find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Lstat(filepath.Join(string(r), path)); err == nil && !info.IsDir() {
			return path, nil
		}
	}
	return "", ErrNotFound
}

// Path is where a file of the host is for this process. Links are followed as
// the host follows them, such as that of /var/run, which is absolute; what is
// not there, or leads round in circles, stays as it is named.
func (r Root) Path(path string) string {
	if !r.contained() {
		return filepath.Join("/", path)
	}
	const maxLinks = 40 // as in path_resolution(7)
	left, done := strings.Split(filepath.Clean("/" + path)[1:], "/"), "/"
	for links := 0; len(left) > 0; {
		name := left[0]
		left = left[1:]
		to, err := os.Readlink(filepath.Join(string(r), done, name))
		if err != nil || links == maxLinks {
			done = filepath.Join(done, name)
			continue
		}
		links++
		if !filepath.IsAbs(to) {
			to = filepath.Join(done, to)
		}
		left = append(strings.Split(filepath.Clean(to)[1:], "/"), left...)
		done = "/"
	}
	return filepath.Join(string(r), done)
}

// ExitError is a program that said no.
type ExitError struct {
	Args   []string
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.Args, " "), e.Code, e.Stderr)
}

// ExitCode is the program's exit status.
func (e *ExitError) ExitCode() int { return e.Code }
