package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFullDiskIsAnErrorUntilThereIsSpaceAgain(t *testing.T) {
	dir, ctx := mountTmpfs(t, "512k"), context.Background()
	s := open(t, dir)
	must(t, s.Begin(ctx, []Record{record("first", "eth0", 0)}))
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)

	var stored []Key
	var failure error
	for i := 0; failure == nil && i < 1000; i++ {
		r := record(fmt.Sprintf("c%d", i), "eth0", 0)
		r.Sandbox.Args = strings.Repeat("x", 4000)
		if failure = s.Begin(ctx, []Record{r}); failure == nil {
			stored = append(stored, r.Key())
		}
	}
	if failure == nil {
		t.Fatal("a full disk took everything")
	}
	if !strings.Contains(failure.Error(), "no space left on device") {
		t.Errorf("Begin = %v", failure)
	}
	got, err := s.All()
	if err != nil || len(got) != 1+len(stored) {
		t.Errorf("%d records, want %d: %v", len(got), 1+len(stored), err)
	}

	must(t, os.Remove(ballast))
	must(t, s.Healthy(ctx))
	must(t, s.Attached(ctx, attached(record("first", "eth0", 0), `{}`)))
	must(t, s.Remove(ctx, stored...))
	must(t, s.Close())
	got, err = open(t, dir).All()
	if err != nil || len(got) != 1 || !got[0].Complete() {
		t.Errorf("after reopening: %+v, %v", got, err)
	}
}

// fill takes all the space that is left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
}
