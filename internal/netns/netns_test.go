package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"braid.dev/braid/internal/netns"
)

func newNS(t *testing.T) *netns.NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("creating network namespaces needs root")
	}
	name := fmt.Sprintf("braid-test-%d-%s", os.Getpid(), filepath.Base(t.Name()))
	ns, err := netns.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	ns := newNS(t)
	want, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	before := currentID(t)
	var inside netns.ID
	err = ns.Do(func() error {
		inside = currentID(t)
		links, err := net.Interfaces()
		if err == nil && (len(links) != 1 || links[0].Name != "lo") {
			err = fmt.Errorf("links of a new namespace: %v", links)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside != want {
		t.Errorf("Do ran in namespace %v, want %v", inside, want)
	}
	if after := currentID(t); after != before || after == want {
		t.Errorf("after Do: in namespace %v, before: %v", after, before)
	}
}

func currentID(t *testing.T) netns.ID {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestDeletingTwiceSucceeds(t *testing.T) {
	newNS(t)
	if err := netns.Delete("braid-test-never-made"); err != nil {
		t.Error(err)
	}
}

func TestNewRefusesATakenName(t *testing.T) {
	newNS(t)
	name := fmt.Sprintf("braid-test-%d-%s", os.Getpid(), filepath.Base(t.Name()))
	if ns, err := netns.New(name); err == nil {
		ns.Close()
		t.Error("a second namespace took the same name")
	}
}

func TestOpenTellsAVanishedNamespace(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left-over")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{left, filepath.Join(t.TempDir(), "missing")} {
		if _, err := netns.Open(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%s) = %v, want fs.ErrNotExist", path, err)
		}
	}
	if _, err := netns.Open("/proc/self/ns/mnt"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a mount namespace: %v, want a refusal", err)
	}
}

// A thread that stayed behind would keep the namespace alive after Delete, and
// with it the hardware that is in it.
func TestNoThreadStaysInANewNamespace(t *testing.T) {
	id := func(path string) (netns.ID, error) {
		ns, err := netns.Open(path)
		if err != nil {
			return netns.ID{}, err
		}
		defer ns.Close()
		return ns.ID()
	}
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			want, err := newNS(t).ID()
			if err != nil {
				t.Fatal(err)
			}
			threads, err := filepath.Glob("/proc/self/task/*/ns/net")
			if err != nil || len(threads) == 0 {
				t.Fatalf("threads: %v, %v", threads, err)
			}
			for _, path := range threads {
				if got, err := id(path); err == nil && got == want {
					t.Errorf("%s is in it", path)
				}
			}
		})
	}
}

// What is not a name must not reach the directory of all namespaces.
func TestDeleteRefusesWhatIsNoName(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../netns"} {
		if err := netns.Delete(name); err == nil {
			t.Errorf("%q was deleted", name)
		}
	}
}
