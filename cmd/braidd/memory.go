package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// limitMemory has the garbage collector keep below the memory limit of the
// control group, if there is one, rather than have the kernel end the process.
// A quarter is left for what the collector does not manage: the pages of the
// program itself and of the store's file. GOMEMLIMIT goes before it.
func limitMemory(log *slog.Logger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit, err := groupLimit("/proc/self/cgroup", "/sys/fs/cgroup")
	if err != nil {
		log.Debug("no memory limit of the control group", "err", err)
		return
	}
	debug.SetMemoryLimit(limit / 4 * 3)
}

var errNoLimit = errors.New("there is none")

// groupLimit reads memory.max of the process's control group (version 2), in
// bytes. groups lists the groups, root is where their tree is mounted.
func groupLimit(groups, root string) (int64, error) {
	list, err := os.ReadFile(groups)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(list)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, path, "memory.max"))
		if errors.Is(err, fs.ErrNotExist) {
			break // the root group, or version 1
		}
		if err != nil {
			return 0, err
		}
		value := strings.TrimSpace(string(text))
		if value == "max" {
			break
		}
		return strconv.ParseInt(value, 10, 64)
	}
	return 0, errNoLimit
}

// shedStart takes the pages of the program's file that are mapped out of the
// process, once ready says that the start is over. Most of them were touched by
// the start alone: the packages that speak Kubernetes prepare every kind of
// object there is. What is still needed comes back from the page cache, at a
// microsecond or so per page.
func shedStart(ctx context.Context, ready func(context.Context) error, log *slog.Logger) error {
	if err := ready(ctx); err != nil {
		return nil // the end came before it was ready
	}
	debug.FreeOSMemory()
	if err := unmapProgram(); err != nil {
		log.Debug("pages of the program stay mapped", "err", err)
	}
	return nil
}

func unmapProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	parts, err := unchanged(bytes.NewReader(maps), program)
	for _, p := range parts {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, p.from, p.to-p.from, unix.MADV_DONTNEED)
		if errno != 0 {
			err = errors.Join(err, fmt.Errorf("madvise %x-%x: %w", p.from, p.to, errno))
		}
	}
	return err
}

// extent is a part of the address space.
type extent struct{ from, to uintptr }

// unchanged lists the parts of maps, in the form of /proc/PID/maps, that show
// the file program and cannot be written: the kernel has what is there from the
// file and can get it again.
func unchanged(maps io.Reader, program string) ([]extent, error) {
	var parts []extent
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 || fields[5] != program || strings.Contains(fields[1], "w") {
			continue
		}
		var e extent
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &e.from, &e.to); err != nil {
			return nil, fmt.Errorf("read %q: %w", lines.Text(), err)
		}
		parts = append(parts, e)
	}
	return parts, lines.Err()
}
