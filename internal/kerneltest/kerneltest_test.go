package kerneltest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
)

func TestEveryFeatureOfATierCanBeTried(t *testing.T) {
	for tier, features := range promises {
		for _, f := range features {
			if _, ok := probes[f]; !ok {
				t.Errorf("tier %s promises %q, which has no probe", tier, f)
			}
		}
	}
}

// TestTheTierKeepsItsPromises is the list of what must run: Need fails for
// each feature that is promised and does not work.
func TestTheTierKeepsItsPromises(t *testing.T) {
	tier, err := currentTier(os.Getenv(EnvTier))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range slices.Sorted(maps.Keys(probes)) {
		t.Run(string(f), func(t *testing.T) {
			Need(t, f)
			t.Logf("works in tier %s", tier)
		})
	}
}

func TestAnUnknownTierIsRefused(t *testing.T) {
	if _, err := currentTier("gest"); err == nil {
		t.Error("BRAID_TIER=gest was accepted, and would promise nothing")
	}
	if tier, err := currentTier(""); tier != Any || err != nil {
		t.Errorf("no BRAID_TIER: %q, %v", tier, err)
	}
}

// recorder is a test that notes how it ended. Fatal and Skip end a test by a
// panic here, as they end it by runtime.Goexit otherwise.
type recorder struct {
	testing.TB
	failed, skipped any
}

func (r *recorder) Helper()          {}
func (r *recorder) Fatal(why ...any) { r.failed = why[0]; panic(r) }
func (r *recorder) Skip(why ...any)  { r.skipped = why[0]; panic(r) }

func needIn(t *testing.T, tier Tier, f Feature) (r *recorder) {
	t.Helper()
	t.Setenv(EnvTier, string(tier))
	r = &recorder{TB: t}
	defer func() {
		if p := recover(); p != nil && p != r {
			panic(p)
		}
	}()
	Need(r, f)
	return r
}

func TestAMissingFeatureSkipsOrFailsAsTheTierSays(t *testing.T) {
	const f Feature = "testing nothing"
	reason := errors.New("not today")
	probes[f] = func() error { return reason }
	promises["test"] = []Feature{f}
	defer delete(probes, f)
	defer delete(promises, "test")

	var m *Missing
	r := needIn(t, "test", f)
	if err, _ := r.failed.(error); !errors.As(err, &m) || !m.Promised || !errors.Is(err, reason) {
		t.Errorf("promised: failed with %v, skipped with %v", r.failed, r.skipped)
	}
	r = needIn(t, Any, f)
	if err, _ := r.skipped.(error); !errors.As(err, &m) || m.Promised || !errors.Is(err, reason) {
		t.Errorf("not promised: failed with %v, skipped with %v", r.failed, r.skipped)
	}
}

func TestTierUnitTriesNothing(t *testing.T) {
	const f Feature = "testing nothing"
	probes[f] = func() error { t.Error("tried"); return nil }
	defer delete(probes, f)
	if r := needIn(t, Unit, f); r.skipped == nil || r.failed != nil {
		t.Errorf("failed with %v, skipped with %v", r.failed, r.skipped)
	}
}

func TestAnUnsupportedLinkIsReported(t *testing.T) {
	Need(t, NetNS)
	ns := NewNS(t)
	err := ns.Do(func() error { return addLink(link{kind: "nosuchkind", name: "probe"}) })
	if !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("create a link of no kind: %v, want EOPNOTSUPP", err)
	}
}

func TestNamespacesDisappearWithTheTest(t *testing.T) {
	Need(t, NetNS)
	var path string
	t.Run("inner", func(t *testing.T) {
		var ns *netns.NS
		ns, path = NewNamedNS(t)
		if _, err := ns.ID(); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(path, fmt.Sprintf("/run/netns/braid-test-%d-", os.Getpid())) {
			t.Errorf("path %s does not tell whose it is", path)
		}
	})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s after the test: %v", path, err)
	}
}
