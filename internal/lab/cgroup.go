package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A cgroup holds every process of a lab, so that they can be told from all
// others and killed as one: whoever starts a process in it, and whatever that
// starts in turn, cannot leave it by accident.
type cgroup struct{ dir string }

// cgroupOf names the cgroup of a lab; it need not exist.
func cgroupOf(p paths) (cgroup, error) {
	root, err := cgroupRoot("/sys/fs/cgroup")
	if err != nil {
		return cgroup{}, err
	}
	return cgroup{filepath.Join(root, p.cgroupName())}, nil
}

// cgroupRoot finds the version 2 hierarchy: at the usual place, or below it on
// a machine that has both versions.
func cgroupRoot(mount string) (string, error) {
	for _, dir := range []string{mount, filepath.Join(mount, "unified")} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no cgroup v2 hierarchy at %s or %s/unified: the processes of a lab are kept together by one", mount, mount)
}

func (c cgroup) create() error {
	if err := os.Mkdir(c.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

// open returns a descriptor to start a process in the cgroup with.
func (c cgroup) open() (*os.File, error) {
	return os.OpenFile(c.dir, unix.O_DIRECTORY|unix.O_PATH, 0)
}

func (c cgroup) exists() bool {
	_, err := os.Stat(c.dir)
	return err == nil || len(c.legacy()) > 0
}

// root is the path of the group of a node on the machine's kernel, as a
// kubelet names it: the same in every hierarchy.
func (c cgroup) root(n node) string { return "/" + filepath.Base(c.dir) + "/" + n.Name }

// createFor makes the group of a node in every version 1 hierarchy of the
// machine. A group of cpuset is of no use before it has processors and memory.
func (c cgroup) createFor(n node) error {
	for _, h := range c.hierarchies() {
		for _, dir := range []string{filepath.Join(h, filepath.Base(c.dir)), filepath.Join(h, c.root(n))} {
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("create cgroup: %w", err)
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				inherited, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
				if errors.Is(err, fs.ErrNotExist) {
					continue // another hierarchy
				}
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, file), inherited, 0); err != nil {
					return fmt.Errorf("create cgroup: %w", err)
				}
			}
		}
	}
	return nil
}

// renewFor replaces the groups of a node that does not run: the kernel of a
// machine that restarts has forgotten them.
func (c cgroup) renewFor(ctx context.Context, n node, progress *Progress) error {
	wait := Wait{What: "the processes of " + n.Name + " to end", Limit: 20 * time.Second, Every: 10 * time.Millisecond}
	for _, h := range append(c.hierarchies(), filepath.Dir(c.dir)) {
		// A process that was killed is in its group until the kernel is done with it.
		err := progress.Wait(ctx, wait, func(context.Context) error {
			if err := removeTree(filepath.Join(h, c.root(n))); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return c.createFor(n)
}

// hierarchies are the directories of the version 1 hierarchies, if any.
func (c cgroup) hierarchies() []string {
	unified := filepath.Dir(c.dir)
	if filepath.Base(unified) != "unified" {
		return nil
	}
	// The pattern is well-formed, which is all that can be wrong.
	all, _ := filepath.Glob(filepath.Join(filepath.Dir(unified), "*", "cgroup.procs"))
	var list []string
	for _, file := range all {
		if dir := filepath.Dir(file); dir != unified {
			list = append(list, dir)
		}
	}
	return list
}

// legacy lists the groups of the lab in version 1 hierarchies.
func (c cgroup) legacy() []string {
	var list []string
	for _, h := range c.hierarchies() {
		dir := filepath.Join(h, filepath.Base(c.dir))
		if _, err := os.Stat(dir); err == nil {
			list = append(list, dir)
		}
	}
	return list
}

// populated reports whether a process is left in it or below.
func (c cgroup) populated() (bool, error) {
	text, err := os.ReadFile(filepath.Join(c.dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.Contains(string(text), "populated 1"), err
}

// remove kills what is in the cgroup, waits until all of it is gone, and
// removes the cgroup. Removing what does not exist succeeds.
func (c cgroup) remove(ctx context.Context, progress *Progress) error {
	if !c.exists() {
		return nil
	}
	if err := c.create(); err != nil { // only legacy ones may be left
		return err
	}
	wait := Wait{What: "the processes in " + c.dir + " to end", Limit: 20 * time.Second, Every: 10 * time.Millisecond}
	return progress.Wait(ctx, wait, func(context.Context) error {
		// Again each time: a process that was just being started into the
		// cgroup may have missed the kill.
		if err := os.WriteFile(filepath.Join(c.dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			return err
		}
		if still, err := c.populated(); err != nil || still {
			return errors.Join(err, fmt.Errorf("still running: %s", c.describe()))
		}
		for _, dir := range c.legacy() {
			if err := removeTree(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return removeTree(c.dir)
	})
}

// removeTree removes a cgroup and those below; they contain only files that
// the kernel put there, so each directory goes by rmdir.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// describe lists the processes in the cgroup, for a message.
func (c cgroup) describe() string {
	text, err := os.ReadFile(filepath.Join(c.dir, "cgroup.procs"))
	if err != nil {
		return err.Error()
	}
	var list []string
	for _, pid := range strings.Fields(string(text)) {
		comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err == nil {
			list = append(list, fmt.Sprintf("%s (%s)", pid, strings.TrimSpace(string(comm))))
		}
	}
	return strings.Join(list, ", ")
}
