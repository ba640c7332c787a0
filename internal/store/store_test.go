package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"braid.dev/braid/internal/plan"
)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func record(id, ifName string, index int) Record {
	return Record{
		Sandbox: Sandbox{ContainerID: id, IfName: ifName, NetNS: "/run/netns/" + id},
		Index:   index,
		Attachment: plan.Attachment{
			Network: "default/vlan",
			IfName:  fmt.Sprintf("net%d", index),
			Config: plan.Network{Name: "vlan", Plugins: []plan.Plugin{{
				Type: "bridge",
				Conf: json.RawMessage(`{"type":"bridge","big":12345678901234567890.10,"unknown":{"b":1,"a":2}}`),
			}}},
		},
	}
}

// attached is what an ADD with this result makes of a record.
func attached(r Record, result string) Record {
	r.Result = json.RawMessage(result)
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecordsSurviveReopeningByteForByte(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s := open(t, dir)
	// Ten and more: the order must be the number's, not the text's.
	var want []Record
	for i := range 12 {
		want = append(want, record("c1", "eth0", i))
	}
	must(t, s.Begin(ctx, want))
	must(t, s.Begin(ctx, []Record{record("c1", "eth", 0), record("c", "eth0", 0), record("c11", "eth0", 0)}))
	result := json.RawMessage(`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/24"}]}`)
	device := json.RawMessage(`{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:02.2"}}`)
	want[3].Result, want[3].DeviceInfo = result, device
	must(t, s.Attached(ctx, want[3]))
	must(t, s.Close())

	got, err := open(t, dir).Sandbox("c1", "eth0")
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after reopening (-want +got):\n%s", diff)
	}
	if !got[3].Complete() || got[4].Complete() {
		t.Error("only the record with a result is complete")
	}
}

func TestRemoveForgetsAndMayBeRepeated(t *testing.T) {
	s, ctx := open(t, t.TempDir()), context.Background()
	rs := []Record{record("c1", "eth0", 0), record("c1", "eth0", 1), record("c2", "eth0", 0)}
	must(t, s.Begin(ctx, rs))
	for range 2 {
		must(t, s.Remove(ctx, rs[0].Key(), rs[1].Key()))
	}
	got, err := s.All()
	must(t, err)
	if diff := cmp.Diff(rs[2:], got); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestResultWithoutRecordIsRefused(t *testing.T) {
	s, ctx := open(t, t.TempDir()), context.Background()
	if err := s.Attached(ctx, attached(record("c1", "eth0", 0), `{}`)); err == nil {
		t.Error("a result was stored for an attachment that never began")
	}
	must(t, s.Begin(ctx, []Record{record("c1", "eth0", 0)}))
	if err := s.Attached(ctx, record("c1", "eth0", 0)); err == nil {
		t.Error("no result was stored as one")
	}
	if err := s.Attached(ctx, attached(record("c1", "eth0", 0), `{`)); err == nil {
		t.Error("a result that is not JSON was stored")
	}
	r := attached(record("c1", "eth0", 0), `{}`)
	r.DeviceInfo = json.RawMessage(`{`)
	if err := s.Attached(ctx, r); err == nil {
		t.Error("device info that is not JSON was stored")
	}
	if all, err := s.All(); err != nil || len(all) != 1 || all[0].Complete() {
		t.Errorf("what was refused changed the record: %+v, %v", all, err)
	}
}

func TestNamesThatNoKeyCanHoldAreRefused(t *testing.T) {
	s, ctx := open(t, t.TempDir()), context.Background()
	for _, r := range []Record{
		record("", "eth0", 0), record("c", "", 0), record("c\x00x", "eth0", 0),
		record("c", "eth0", -1), record("c", "eth0", 1<<16), record(strings.Repeat("c", 1<<16), "eth0", 0),
	} {
		if err := s.Begin(ctx, []Record{record("ok", "eth0", 0), r}); err == nil {
			t.Errorf("%v was stored", r.Key())
		}
	}
	if got, err := s.All(); err != nil || len(got) != 0 {
		t.Errorf("a refused call left %v, %v", got, err)
	}
}

func TestSecondDaemonIsToldToWait(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, filepath.Join(dir, FileName))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Open of an open store: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it waited %v", d)
	}
}

// tamper changes the closed store behind its back.
func tamper(t *testing.T, dir string, fn func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, FileName), 0o600, nil)
	must(t, err)
	defer db.Close()
	must(t, db.Update(fn))
}

func TestDamagedRecordsAreSetAsideAndNamed(t *testing.T) {
	good := record("c1", "eth0", 0)
	value, err := encodeRecord(record("c1", "eth0", 1))
	must(t, err)
	flipped := append([]byte(nil), value...)
	flipped[len(flipped)/2] ^= 1
	future := append([]byte(nil), value...)
	future[0] = 9
	for name, bad := range map[string][]byte{
		"empty": {}, "cut": value[:3], "cut in JSON": value[:len(value)-7], "flipped": flipped, "future": future,
		"list": []byte("[]"), "of another key": mustEncode(t, good),
	} {
		t.Run(name, func(t *testing.T) {
			dir, ctx := t.TempDir(), context.Background()
			s := open(t, dir)
			must(t, s.Begin(ctx, []Record{good}))
			must(t, s.Close())
			key, err := Key{"c1", "eth0", 1}.encode()
			must(t, err)
			tamper(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket(bucketAttachments).Put(key, bad) })

			s = open(t, dir)
			for range 2 { // it stays known until it is removed
				got, err := s.Sandbox("c1", "eth0")
				var damaged *DamagedError
				if !errors.As(err, &damaged) || !strings.Contains(err.Error(), "container c1") {
					t.Fatalf("Sandbox = %v", err)
				}
				if diff := cmp.Diff([]Key{{"c1", "eth0", 1}}, damaged.Keys); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff([]Record{good}, got); diff != "" {
					t.Error(diff)
				}
			}
			if got, err := s.Sandbox("c2", "eth0"); err != nil || len(got) != 0 {
				t.Errorf("another sandbox is affected: %v, %v", got, err)
			}
			must(t, s.Remove(ctx, Key{"c1", "eth0", 1}))
			if _, err := s.Sandbox("c1", "eth0"); err != nil {
				t.Errorf("after Remove: %v", err)
			}
		})
	}
}

func mustEncode(t *testing.T, r Record) []byte {
	t.Helper()
	b, err := encodeRecord(r)
	must(t, err)
	return b
}

func TestRebuiltRecordsTakeThePlaceOfDamagedOnes(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s := open(t, dir)
	lost := []Record{record("c1", "eth0", 1), record("c1", "eth0", 2)}
	must(t, s.Begin(ctx, append(lost, record("c1", "eth0", 0))))
	must(t, s.Close())
	tamper(t, dir, func(tx *bbolt.Tx) error {
		for _, r := range lost {
			key, err := r.Key().encode()
			must(t, err)
			value := mustEncode(t, r)
			value[len(value)-3] ^= 1
			must(t, tx.Bucket(bucketAttachments).Put(key, value))
		}
		return nil
	})
	s = open(t, dir)
	_, err := s.Sandbox("c1", "eth0")
	var damaged *DamagedError
	if !errors.As(err, &damaged) || len(damaged.Keys) != 2 {
		t.Fatalf("Sandbox = %v", err)
	}
	again := lost[0]
	again.Rebuilt = true
	must(t, s.Rebuild(ctx, []Record{again}, damaged.Keys))
	must(t, s.Close())
	got, err := open(t, dir).Sandbox("c1", "eth0")
	must(t, err)
	if diff := cmp.Diff([]Record{record("c1", "eth0", 0), again}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedRecordThatCanBeReadIsAGuess(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s := open(t, dir)
	r := record("c1", "eth0", 0)
	must(t, s.Begin(ctx, []Record{r}))
	must(t, s.Close())
	tamper(t, dir, func(tx *bbolt.Tx) error {
		key, err := r.Key().encode()
		must(t, err)
		value := mustEncode(t, r)
		value[1] ^= 1
		return tx.Bucket(bucketAttachments).Put(key, value)
	})
	_, err := open(t, dir).Sandbox("c1", "eth0")
	var damaged *DamagedError
	if !errors.As(err, &damaged) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Record{r}, damaged.Guesses); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedKeyIsSetAside(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, s.Rebuilt(context.Background()))
	must(t, s.Close())
	tamper(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket(bucketAttachments).Put([]byte("nonsense"), []byte("x")) })
	s = open(t, dir)
	if _, err := s.All(); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("All = %v", err)
	}
	// Whose it was is unknown, so everybody is looked after.
	if !missing(t, s) {
		t.Error("nothing is said to be missing")
	}
	must(t, s.Rebuilt(context.Background()))
	if _, err := s.All(); err != nil || missing(t, s) {
		t.Errorf("after everything was rebuilt: %v", err)
	}
}

func TestParallelWritersAreAllStored(t *testing.T) {
	s, ctx := open(t, t.TempDir()), context.Background()
	const n = 64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := record(fmt.Sprintf("c%d", i), "eth0", 0)
			if err := errors.Join(
				s.Begin(ctx, []Record{r}),
				s.Attached(ctx, attached(r, `{}`)),
			); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := s.All()
	must(t, err)
	if len(got) != n {
		t.Errorf("%d records, want %d", len(got), n)
	}
}

func TestChangesThatArriveDuringACommitShareTheNext(t *testing.T) {
	s, ctx := open(t, t.TempDir()), context.Background()
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.write(ctx, func(*bbolt.Tx) error { close(started); <-release; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-started
	const n = 32
	ids := make([]int, n)
	for i := range n {
		wg.Go(func() {
			if err := s.write(ctx, func(tx *bbolt.Tx) error { ids[i] = tx.ID(); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	for len(s.writes) < n {
		runtime.Gosched()
	}
	close(release)
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("transactions %v, want one for all", ids)
		}
	}
}

func TestClosedStoreAnswersWithAnError(t *testing.T) {
	s := open(t, t.TempDir())
	must(t, s.Close())
	if err := s.Begin(context.Background(), []Record{record("c", "eth0", 0)}); err == nil {
		t.Error("Begin on a closed store succeeded")
	}
	if _, err := s.All(); err == nil {
		t.Error("All on a closed store succeeded")
	}
}

func TestCancelledWriteReturns(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// The writer may be faster than the check; then the write has succeeded.
	if err := s.Begin(ctx, []Record{record("c", "eth0", 0)}); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Begin = %v", err)
	}
}

func TestHealthTurnsWithTheDisk(t *testing.T) {
	s, ctx := open(t, t.TempDir()), context.Background()
	must(t, s.Healthy(ctx))
	broken := errors.New("no space left on device")
	if err := s.write(ctx, func(*bbolt.Tx) error { return broken }); !errors.Is(err, broken) {
		t.Fatalf("write = %v", err)
	}
	// The disk serves again: the next question finds out by trying.
	must(t, s.Healthy(ctx))
}

// TestStoreEqualsAMap compares the store with a map over random histories,
// reopened at random places.
func TestStoreEqualsAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "braid-store-")
		must(t, err)
		defer os.RemoveAll(dir)
		ctx := context.Background()
		s, err := Open(context.Background(), filepath.Join(dir, FileName))
		must(t, err)
		defer func() { s.Close() }()
		model := map[Key]Record{}
		ids := rapid.SampledFrom([]string{"a", "ab", "b"})
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			k := Key{ids.Draw(rt, "id"), "eth0", rapid.IntRange(0, 3).Draw(rt, "index")}
			switch rapid.IntRange(0, 3).Draw(rt, "op") {
			case 0:
				r := record(k.ContainerID, k.IfName, k.Index)
				must(t, s.Begin(ctx, []Record{r}))
				model[k] = r
			case 1:
				_, ok := model[k]
				r := attached(record(k.ContainerID, k.IfName, k.Index), `{"x":1}`)
				if err := s.Attached(ctx, r); (err == nil) != ok {
					rt.Fatalf("Attached(%v) = %v, known: %v", k, err, ok)
				}
				if ok {
					model[k] = r
				}
			case 2:
				must(t, s.Remove(ctx, k))
				delete(model, k)
			case 3:
				must(t, s.Close())
				s, err = Open(context.Background(), filepath.Join(dir, FileName))
				must(t, err)
			}
			got, err := s.All()
			must(t, err)
			have := map[Key]Record{}
			for _, r := range got {
				have[r.Key()] = r
			}
			if diff := cmp.Diff(model, have); diff != "" {
				rt.Fatalf("(-model +store):\n%s", diff)
			}
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	value, err := encodeRecord(record("c1", "eth0", 1))
	must(f, err)
	f.Add([]byte("c1\x00eth0\x00\x00\x01"), value)
	f.Add([]byte(""), []byte{format})
	f.Add([]byte("c1\x00eth0\x00\x00\x01"), value[5:])
	f.Fuzz(func(t *testing.T, key, value []byte) {
		k, err := decodeKey(key)
		if err != nil {
			return
		}
		if again, err := k.encode(); err != nil || string(again) != string(key) {
			t.Fatalf("key %q becomes %q, %v", key, again, err)
		}
		// No generated input has the checksum right, so what is behind it is
		// tried with one that is.
		for _, value := range [][]byte{value, seal(value)} {
			if r, err := decodeRecord(k, value); err == nil && r.Key() != k {
				t.Fatalf("record of %v under %v", r.Key(), k)
			}
		}
	})
}

func BenchmarkBeginAttachedRemove(b *testing.B) {
	s, ctx := open(b, b.TempDir()), context.Background()
	r := record("c1", "eth0", 0)
	for b.Loop() {
		must(b, s.Begin(ctx, []Record{r}))
		must(b, s.Attached(ctx, attached(r, `{}`)))
		must(b, s.Remove(ctx, r.Key()))
	}
}

// TestWriteThatDoesNotEndIsNotHealthy: a disk that hangs fails nothing, and
// nothing gets done.
func TestWriteThatDoesNotEndIsNotHealthy(t *testing.T) {
	s := open(t, t.TempDir())
	begun, goOn := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.write(t.Context(), func(*bbolt.Tx) error { close(begun); <-goOn; return nil })
	}()
	<-begun
	if err := s.Healthy(t.Context()); err != nil {
		t.Errorf("during a write: %v", err)
	}
	s.mu.Lock()
	s.began = s.began.Add(-slowCommit)
	s.mu.Unlock()
	if err := s.Healthy(t.Context()); err == nil || !strings.Contains(err.Error(), "the disk hangs") {
		t.Errorf("during a write without an end: %v", err)
	}
	close(goOn)
	must(t, <-ended)
	must(t, s.Healthy(t.Context()))
}
