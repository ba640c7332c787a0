package differential

import (
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	cnicreate "github.com/containernetworking/cni/pkg/types/create"

	"braid.dev/braid/cmd/braidd/native"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/refplugin"
)

// TestMain lets more cases run at once than there are processors: most of the
// time goes by waiting for the kernel to end namespaces.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestSameAsTheReferencePlugins does every case with both sides.
func TestSameAsTheReferencePlugins(t *testing.T) {
	for _, c := range cases {
		t.Run(c.title, func(t *testing.T) {
			c.here(t)
			t.Parallel()
			compare(t, c)
		})
	}
}

func compare(t *testing.T, c testCase) {
	t.Logf("%s", c.list())
	plugins := refplugin.Dir(t, c.programs()...)
	ours, theirs := newWorld(t, c), newWorld(t, c)
	b, r := newBraid(t, ours, plugins), newReference(t, theirs, plugins)
	before := ours.text(t)

	res, err := b.add(t.Context())
	refRes, refErr := r.add(t.Context())
	if c.defaultTwice(refErr) {
		allowed.use("default-twice", t)
		try(t, err)
		try(t, b.del(t.Context(), res))
		return
	}
	if err != nil || refErr != nil {
		sameRefusal(t, c, err, refErr)
		after := ours.text(t)
		switch {
		case after == before:
		case withoutLines(after, forwarding) == withoutLines(before, forwarding):
			allowed.use("forwarding-stays", t)
		default: // what belongs to all containers, such as a bridge with its gateway
			leavesNoMore(t, c, withoutLines(after, forwarding), withoutLines(theirs.text(t), forwarding))
		}
		return
	}
	same(t, c, "result", ours.canonical(t, inVersion(t, res, c.version())), theirs.canonical(t, refRes))
	same(t, c, "world", ours.text(t), theirs.text(t))
	if c.version() != "0.3.1" { // which has no CHECK
		crossCheck(t, c, ours, theirs, res, refRes, plugins)
	}

	if crossed, own := c.removals(); crossed {
		try(t, newBraid(t, theirs, plugins).del(t.Context(), latest(t, refRes)))
		try(t, newReference(t, ours, plugins).del(t.Context(), inVersion(t, res, c.version())))
		same(t, c, "world after the other removed it", ours.text(t), theirs.text(t))
		sameFiles(t, ours, theirs)
		if !own {
			return
		}
		b = newBraid(t, ours, plugins)
		res = must(b.add(t.Context()))(t)
		refRes = must(r.add(t.Context()))(t)
		same(t, c, "second result", ours.canonical(t, inVersion(t, res, c.version())), theirs.canonical(t, refRes))
		same(t, c, "second world", ours.text(t), theirs.text(t))
	}
	try(t, b.del(t.Context(), latest(t, res)))
	try(t, r.del(t.Context(), refRes))
	same(t, c, "world after each removed its own", ours.text(t), theirs.text(t))
	sameFiles(t, ours, theirs)
}

// leavesNoMore compares the worlds after a refusal by a later plugin of a
// chain. The reference may leave something that only it would.
func leavesNoMore(t *testing.T, c testCase, ours, theirs string) {
	t.Helper()
	ours, theirs = allowed.without(c, ours), allowed.without(c, theirs)
	if ours == theirs {
		return
	}
	known := strings.Split(theirs, "\n")
	for line := range strings.SplitSeq(ours, "\n") {
		if !slices.Contains(known, line) {
			t.Errorf("left after a refusal, and not by the reference: %s", line)
		}
	}
	allowed.use("refused-clean", t)
}

// removals says whether each side removes what the other built, and whether
// what it built itself: both, but in a guest, where a program takes 0.1 s to
// start, one or the other.
func (c testCase) removals() (crossed, own bool) {
	if !inGuest() {
		return true, true
	}
	sum := 0
	for _, b := range []byte(c.title) {
		sum += int(b)
	}
	return sum%2 == 0, sum%2 != 0
}

// crossCheck lets each side check what the other built. A CHECK of the
// reference that does not even accept what the reference built says nothing.
func crossCheck(t *testing.T, c testCase, ours, theirs *world, res, refRes []byte, plugins string) {
	t.Helper()
	if err := newBraid(t, ours, plugins).check(t.Context(), res); err != nil {
		t.Errorf("Braid's CHECK of what Braid built: %v", err)
	}
	if err := newBraid(t, theirs, plugins).check(t.Context(), latest(t, refRes)); err != nil {
		t.Errorf("Braid's CHECK of what the reference built: %v", err)
	}
	err := newReference(t, ours, plugins).check(t.Context(), inVersion(t, res, c.version()))
	if err == nil {
		return
	}
	if own := newReference(t, theirs, plugins).check(t.Context(), refRes); own == nil {
		t.Errorf("the reference's CHECK of what Braid built: %v", err)
	} else {
		allowed.use("check-own", t)
	}
}

// same compares two texts without what may differ.
func same(t *testing.T, c testCase, what, ours, theirs string) {
	t.Helper()
	ours, theirs = allowed.without(c, ours), allowed.without(c, theirs)
	if ours != theirs {
		t.Errorf("%s differs:\n%s", what, difference(ours, theirs))
	}
}

func sameFiles(t *testing.T, ours, theirs *world) {
	t.Helper()
	if a, b := ours.leftovers(t), theirs.leftovers(t); !slices.Equal(a, b) {
		t.Errorf("files left: %v, by the reference %v", a, b)
	}
}

// sameRefusal: what one refuses, the other refuses too, and by the same code
// where the reference has one that means something.
func sameRefusal(t *testing.T, c testCase, err, refErr error) {
	t.Helper()
	if (err == nil) != (refErr == nil) {
		t.Fatalf("one refuses, the other does not:\nBraid: %v\nreference: %v", err, refErr)
	}
	var cni *types.Error
	if !errors.As(err, &cni) {
		t.Logf("refused by both: %v / %v", err, refErr)
	}
	if !c.refused && !c.generated {
		t.Errorf("refused by both, which is not what the case is about:\n%v\n%v", err, refErr)
	}
}

// defaultTwice recognises that the reference's bridge adds a default route to
// the one that ipam has brought, and fails.
func (c testCase) defaultTwice(refErr error) bool {
	return refErr != nil && strings.Contains(c.list(), `"isDefaultGateway":true`) &&
		strings.Contains(refErr.Error(), "failed to add route") && strings.Contains(refErr.Error(), "file exists")
}

// create reads a result of any version.
func create(raw []byte) (*current.Result, error) {
	any, err := cnicreate.CreateFromBytes(raw)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(any)
}

func TestThereAreEnoughCasesForEveryDriver(t *testing.T) {
	perType := map[string]int{}
	titles := map[string]bool{}
	for _, c := range cases {
		if titles[c.title] {
			t.Errorf("two cases are called %s", c.title)
		}
		titles[c.title] = true
		for _, typ := range c.types() {
			perType[typ]++
		}
	}
	if len(cases) < 150 {
		t.Errorf("%d cases, want 150", len(cases))
	}
	if !inGuest() { // where it is too late to build them
		for _, c := range cases {
			refplugin.Dir(t, c.programs()...)
		}
	}
	for typ := range native.Drivers(native.Node{}) {
		if perType[typ] < 2 && !unreferenced[typ] {
			t.Errorf("driver %s is in %d cases", typ, perType[typ])
		}
	}
	t.Logf("%d cases: %v", len(cases), perType)
}

// unreferenced are the drivers of types that the reference plugins do not have.
var unreferenced = map[string]bool{"flannel": true, "passthru": true}

// here skips the case where it belongs to another tier: what every kernel can
// do is compared on the machine's own, where starting programs is cheap.
func (c testCase) here(t *testing.T) {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS)
	if inGuest() && !c.guest {
		t.Skip("compared on the machine's own kernel in tier net; to start programs in a guest is slow")
	}
	if c.guest {
		kerneltest.Need(t, kerneltest.BridgeVLAN)
	}
	kerneltest.Need(t, c.needs...)
}
