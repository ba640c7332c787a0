package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMemoryLimitIsThatOfTheControlGroup(t *testing.T) {
	for name, c := range map[string]struct {
		groups, file, text string
		want               int64
		err                bool
	}{
		"limited":      {"0::/\n", "memory.max", "268435456\n", 268435456, false},
		"nested":       {"1:name=systemd:/x\n0::/a/b\n", "a/b/memory.max", "1000000\n", 1000000, false},
		"unlimited":    {"0::/\n", "memory.max", "max\n", 0, true},
		"root group":   {"0::/\n", "memory.stat", "", 0, true},
		"version 1":    {"4:memory:/a\n", "memory.max", "1\n", 0, true},
		"unintended":   {"0::/\n", "memory.max", "a lot\n", 0, true},
		"another part": {"0::/c\n", "a/memory.max", "1\n", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			groups := filepath.Join(dir, "cgroup")
			for file, text := range map[string]string{groups: c.groups, filepath.Join(dir, c.file): c.text} {
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := groupLimit(groups, dir); got != c.want || (err != nil) != c.err {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
}

func TestOnlyPagesThatNobodyWritesAreUnmapped(t *testing.T) {
	const maps = `00400000-01960000 r-xp 00000000 fe:00 10527747                           /usr/bin/braidd
01960000-02fd5000 r--p 01560000 fe:00 10527747                           /usr/bin/braidd
02fd5000-03071000 rw-p 02bd5000 fe:00 10527747                           /usr/bin/braidd
03071000-050bc000 rw-p 00000000 00:00 0
7f0000000000-7f0000100000 r--s 00000000 fe:00 12                         /var/lib/braid/braid.db
7ffc9ddc4000-7ffc9ddc8000 r--p 00000000 00:00 0                          [vvar]
`
	got, err := unchanged(strings.NewReader(maps), "/usr/bin/braidd")
	want := []extent{{0x400000, 0x1960000}, {0x1960000, 0x2fd5000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(extent{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestPagesOfTheProgramAreGivenBackWhenTheyAreMany(t *testing.T) {
	before := mapped(t)
	if err := unmapProgram(1 << 40); err != nil || mapped(t) < before/2 {
		t.Errorf("pages were given back of few (%v)", err)
	}
	if err := unmapProgram(0); err != nil {
		t.Fatal(err)
	}
	if after := mapped(t); after > before/2 {
		t.Errorf("%d bytes mapped from files, %d before", after, before)
	}
}

func TestPagesStayMappedUntilTheStartIsOver(t *testing.T) {
	before := mapped(t)
	away := func(context.Context) error { return errors.New("ended") }
	if err := shed(t.Context(), away, slog.New(slog.DiscardHandler)); err != nil || mapped(t) < before/2 {
		t.Errorf("pages were given back before the start was over (%v)", err)
	}
}

func mapped(t *testing.T) int {
	t.Helper()
	n, err := mappedFiles()
	if err != nil {
		t.Fatal(err)
	}
	return n
}
