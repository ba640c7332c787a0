package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/kerneltest"
)

func missing(t *testing.T, s *Store) bool {
	t.Helper()
	m, err := s.Missing()
	must(t, err)
	return m
}

func TestUnreadableFileIsKeptAsideAndANewOneBegun(t *testing.T) {
	whole := t.TempDir()
	must(t, open(t, whole).Close())
	db, err := os.ReadFile(filepath.Join(whole, FileName))
	must(t, err)
	later := t.TempDir()
	must(t, open(t, later).Close())
	tamper(t, later, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("2")) })
	future, err := os.ReadFile(filepath.Join(later, FileName))
	must(t, err)
	for name, content := range map[string][]byte{
		"text":         []byte("hello, I am no database\n"),
		"zeros":        make([]byte, len(db)),
		"cut":          db[:len(db)/2],
		"one page":     db[:os.Getpagesize()],
		"list":         []byte("[]"),
		"overgrown":    append(bytes.Clone(db[:2*os.Getpagesize()]), []byte(strings.Repeat("x", len(db)))...),
		"later layout": future,
	} {
		t.Run(name, func(t *testing.T) {
			dir, ctx := t.TempDir(), context.Background()
			path := filepath.Join(dir, FileName)
			must(t, os.WriteFile(path, content, 0o600))
			s := open(t, dir)
			aside := s.Aside()
			if len(aside) != 1 || aside[0].Reason == "" || !strings.HasPrefix(aside[0].Path, path) {
				t.Fatalf("set aside: %+v", aside)
			}
			if kept, err := os.ReadFile(aside[0].Path); err != nil || !bytes.Equal(kept, content) {
				t.Errorf("the file was not kept as it was: %v", err)
			}
			if !missing(t, s) {
				t.Error("nothing is said to be missing")
			}
			must(t, s.Begin(ctx, []Record{record("c1", "eth0", 0)}))
			must(t, s.Close())
			s = open(t, dir)
			if all, err := s.All(); err != nil || len(all) != 1 || len(s.Aside()) != 0 {
				t.Errorf("the new file has %v, %v, set aside %v", all, err, s.Aside())
			}
		})
	}
}

func TestEmptiedFileIsAStoreThatMissesRecords(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	must(t, os.WriteFile(filepath.Join(dir, FileName), nil, 0o600))
	s := open(t, dir)
	if !missing(t, s) {
		t.Error("nothing is said to be missing")
	}
	must(t, s.Close())
	s = open(t, dir)
	if !missing(t, s) {
		t.Error("a restart made it forget that records are missing")
	}
	must(t, s.Rebuilt(ctx))
	must(t, s.Close())
	if missing(t, open(t, dir)) {
		t.Error("what was rebuilt is still missing")
	}
}

// manyRecords fill several pages.
func manyRecords() (rs []Record) {
	for i := range 60 {
		r := record(fmt.Sprintf("c%02d", i), "eth0", 0)
		r.Sandbox.Args = strings.Repeat("x", 400)
		rs = append(rs, r)
	}
	return rs
}

// spoil overwrites the page that holds the container's record.
func spoil(t *testing.T, path, id string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	data, err := os.ReadFile(path)
	must(t, err)
	page := os.Getpagesize()
	garbage := bytes.Repeat([]byte{0xff}, page)
	found := false
	for at := 0; at+page <= len(data); at += page {
		// Every copy: only one of them is in use.
		if bytes.Contains(data[at:at+page], []byte(id+"\x00eth0\x00")) && bytes.Contains(data[at:at+page], []byte(`"sandbox"`)) {
			_, err = f.WriteAt(garbage, int64(at))
			must(t, err)
			found = true
		}
	}
	if !found {
		t.Fatalf("no page holds %s", id)
	}
}

func TestRecordsOfADamagedFileAreCarriedOver(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s := open(t, dir)
	must(t, s.Begin(ctx, manyRecords()))
	must(t, s.Close())
	spoil(t, filepath.Join(dir, FileName), "c30")
	s = open(t, dir)
	all, err := s.All()
	must(t, err)
	aside := s.Aside()
	if len(aside) != 1 || aside[0].Saved != len(all) {
		t.Errorf("%d records, set aside %+v", len(all), aside)
	}
	ids := map[string]bool{}
	for _, r := range all {
		ids[r.Sandbox.ContainerID] = true
	}
	if !ids["c00"] || !ids["c59"] || ids["c30"] {
		t.Errorf("carried over: %v; want all but those of the spoilt page", ids)
	}
}

func TestDamageWhileTheDaemonRunsIsHealed(t *testing.T) {
	for name, touch := range map[string]func(s *Store) error{
		"by reading": func(s *Store) error { _, err := s.All(); return err },
		"by writing": func(s *Store) error { return s.Begin(context.Background(), manyRecords()[30:31]) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, ctx := t.TempDir(), context.Background()
			s := open(t, dir)
			must(t, s.Begin(ctx, manyRecords()))
			spoil(t, filepath.Join(dir, FileName), "c30")
			must(t, touch(s))
			if aside := s.Aside(); len(aside) != 1 || !missing(t, s) {
				t.Fatalf("set aside %+v", aside)
			}
			must(t, s.Begin(ctx, []Record{record("new", "eth0", 0)}))
			must(t, s.Close())
			all, err := open(t, dir).Sandbox("new", "eth0")
			if err != nil || len(all) != 1 {
				t.Errorf("after healing: %v, %v", all, err)
			}
		})
	}
}

func TestFewDamagedFilesAreKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	var last string
	for range maxAside + 3 {
		must(t, os.WriteFile(path, []byte("no database"), 0o600))
		s := open(t, dir)
		last = s.Aside()[0].Path
		must(t, s.Close())
	}
	kept, err := filepath.Glob(path + ".damaged-*")
	must(t, err)
	if len(kept) != maxAside || kept[maxAside-1] != last {
		t.Errorf("kept %v, the last is %s", kept, last)
	}
}

// mountTmpfs mounts a file system of this size on a new directory.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS) // it is root that may mount
	dir := t.TempDir()
	must(t, unix.Mount("braid-test", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestStoreThatCannotBeWrittenIsReadUntilItCan(t *testing.T) {
	dir, ctx := mountTmpfs(t, "1m"), context.Background()
	s := open(t, dir)
	must(t, s.Begin(ctx, []Record{record("c1", "eth0", 0)}))
	must(t, s.Close())
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	s = open(t, dir)
	if all, err := s.All(); err != nil || len(all) != 1 {
		t.Errorf("All = %v, %v", all, err)
	}
	for range 2 {
		if err := s.Begin(ctx, []Record{record("c2", "eth0", 0)}); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("Begin = %v", err)
		}
	}
	if err := s.Healthy(ctx); err == nil {
		t.Error("it is said to be healthy")
	}
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	must(t, s.Healthy(ctx))
	must(t, s.Attached(ctx, attached(record("c1", "eth0", 0), `{}`)))
	if all, err := s.All(); err != nil || len(all) != 1 || !all[0].Complete() {
		t.Errorf("All = %v, %v", all, err)
	}
}

func TestFullDiskLeavesNoHalfOfANewStore(t *testing.T) {
	dir := mountTmpfs(t, "64k")
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)
	if s, err := Open(context.Background(), filepath.Join(dir, "state", FileName)); err == nil {
		s.Close()
		t.Fatal("a store was made on a full disk")
	}
	must(t, os.Remove(ballast))
	s := open(t, filepath.Join(dir, "state"))
	if aside := s.Aside(); len(aside) > 0 {
		t.Errorf("half a file was taken for a damaged one: %v", aside)
	}
}
