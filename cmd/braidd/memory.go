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
	"time"

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

const (
	// shedEvery is how often the program's mapped pages are looked at.
	shedEvery = time.Minute
	// keptMapped is how much may stay mapped, in bytes: somewhat more than what
	// a node where nothing happens needs.
	keptMapped = 10 << 20
)

// shed takes the pages of the program's file out of the process that it has not
// needed lately: once ready says that the start is over, and then now and
// again. Most of them the start alone needs, in which the packages that speak
// Kubernetes prepare every kind of object there is, and around each one that is
// needed the kernel maps another 15. One that is still needed comes back from
// the page cache, in about a microsecond.
func shed(ctx context.Context, ready func(context.Context) error, log *slog.Logger) error {
	if err := ready(ctx); err != nil {
		return nil // the end came before it was ready
	}
	tick := time.NewTicker(shedEvery)
	defer tick.Stop()
	for {
		debug.FreeOSMemory()
		if err := unmapProgram(keptMapped); err != nil {
			log.Debug("pages of the program stay mapped", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// unmapProgram unmaps the program's file if more than kept bytes of it and of
// other files are mapped.
func unmapProgram(kept int) error {
	if mapped, err := mappedFiles(); err != nil || mapped <= kept {
		return err
	}
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

// mappedFiles is how much of files is in the process's memory, in bytes (proc(5),
// statm: the third number is in pages).
func mappedFiles() (int, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, resident, shared int
	if _, err := fmt.Sscan(string(text), &size, &resident, &shared); err != nil {
		return 0, fmt.Errorf("read %q: %w", text, err)
	}
	return shared * os.Getpagesize(), nil
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
