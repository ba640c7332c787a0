package snapshot

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func values(texts ...string) Values {
	return func(e *json.Encoder) error {
		for _, s := range texts {
			if err := e.Encode(s); err != nil {
				return err
			}
		}
		return nil
	}
}

func readAll(path string) (texts []string, sum uint32, err error) {
	sum, err = Read(path, func(d *json.Decoder) error {
		for {
			var s string
			if err := d.Decode(&s); err != nil {
				if err == io.EOF {
					return nil
				}
				return err
			}
			texts = append(texts, s)
		}
	})
	return texts, sum, err
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "s")
	if _, _, err := readAll(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the first: %v", err)
	}
	for _, want := range [][]string{{"a", "b\nbraid 00000000"}, nil, {"c"}} {
		if err := Write(path, values(want...)); err != nil {
			t.Fatal(err)
		}
		got, sum, err := readAll(path)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		if same, err := Sum(values(want...)); err != nil || same != sum {
			t.Errorf("sum %x, want %x (%v)", same, sum, err)
		}
		if other, _ := Sum(values(append(want, "more")...)); other == sum {
			t.Error("more has the same sum")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: others may read it", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestADamagedSnapshotIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := Write(path, values("some", "text")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := readAll(path); !errors.Is(err, ErrDamaged) || got != nil {
			t.Errorf("%s: read as %q, %v", what, got, err)
		}
	}
	for cut := range whole {
		damage("cut off", whole[:cut])
	}
	for i := range whole {
		changed := slices.Clone(whole)
		changed[i] ^= 1
		damage("one bit", changed)
	}
	damage("more behind it", append(slices.Clone(whole), '\n'))
}

func TestAWriteThatFailsLeavesTheOldOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := Write(path, values("old")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no more")
	err := Write(path, func(e *json.Encoder) error { return errors.Join(e.Encode("new"), broken) })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if got, _, err := readAll(path); err != nil || !slices.Equal(got, []string{"old"}) {
		t.Errorf("got %q, %v", got, err)
	}
	// What a crash left in the way is no obstacle.
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".s.tmp"), []byte("half"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, values("new")); err != nil {
		t.Error(err)
	}
}
