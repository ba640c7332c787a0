package attach

import (
	"context"
	"errors"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/driver"
)

// waiting is a driver whose Attach waits until told is closed, and fails with
// err unless that is nil.
type waiting struct {
	foresees
	told chan struct{}
	err  error
}

func (w waiting) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	select {
	case <-w.told:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if w.err != nil {
		return nil, w.err
	}
	return w.foresees.Attach(ctx, s)
}

// TestWhatAnAddComesToIsToldBeforeItIsMade: the cluster hears of it meanwhile,
// and each address is asked for once.
func TestWhatAnAddComesToIsToldBeforeItIsMade(t *testing.T) {
	m := newMachine(t, t.TempDir())
	w := waiting{foresees: foresees{native{m.world}}, told: make(chan struct{})}
	m.Drivers["waits"] = w
	reach := m.reach()
	var told []Attached
	reach.Foretold = func(done []Attached) {
		told = done
		close(w.told)
	}
	p := planOf(network("eth0", "foreign"), network("net1", "waits+"), network("net2", "sees+"))
	done, err := m.Add(t.Context(), sandbox("c"), p, reach)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(done, told); diff != "" {
		t.Errorf("told of something else: %s", diff)
	}
	asked := 0
	for _, op := range m.takeLog() {
		if op == "attach c/net1/address" || op == "attach c/net2/address" {
			asked++
		}
	}
	if asked != 2 {
		t.Errorf("addresses were asked for %d times", asked)
	}
}

// TestNothingIsToldAheadThatIsNotKnown: not when the last one is a program's.
func TestNothingIsToldAheadThatIsNotKnown(t *testing.T) {
	for _, p := range []struct{ chains [][]string }{
		{[][]string{{"one+"}}},
		{[][]string{{"sees+"}, {"foreign"}}},
		{[][]string{{"sees+"}, {"sees+", "foreign"}}},
		{[][]string{{"sees+"}, {"one+"}}},
	} {
		m := newMachine(t, t.TempDir())
		reach := m.reach()
		reach.Foretold = func(done []Attached) { t.Errorf("%v: told of %+v", p.chains, done) }
		at := planOf(network("eth0", p.chains[0]...))
		for _, chain := range p.chains[1:] {
			at.Attachments = append(at.Attachments, network("net1", chain...))
		}
		if _, err := m.Add(t.Context(), sandbox("c"), at, reach); err != nil {
			t.Error(err)
		}
	}
}

// TestAddressesThatWereAskedForAheadAreReleased: those of the attachment that
// fails, and of those that were never begun.
func TestAddressesThatWereAskedForAheadAreReleased(t *testing.T) {
	m := newMachine(t, t.TempDir())
	broken := errors.New("broken as designed")
	w := waiting{foresees: foresees{native{m.world}}, told: make(chan struct{}), err: broken}
	m.Drivers["waits"] = w
	reach := m.reach()
	reach.Foretold = func([]Attached) { close(w.told) }
	p := planOf(network("eth0", "sees+"), network("net1", "waits+"), network("net2", "sees+"))
	if _, err := m.Add(t.Context(), sandbox("c"), p, reach); !errors.Is(err, broken) {
		t.Fatalf("Add: %v", err)
	}
	m.nothingLeft(t)
}

// TestAddressIsAskedForAgainAfterItWasReleased: what was told ahead of it is
// void.
func TestAddressIsAskedForAgainAfterItWasReleased(t *testing.T) {
	m := newMachine(t, t.TempDir())
	c := m.chain(intents(sandbox("c"), planOf(network("eth0", "sees+")))[0], m.reach())
	c.prepare()
	if !c.foreseeable() {
		t.Fatal("it cannot be foretold")
	}
	ipam := c.first.spec.IPAM
	for range 2 {
		if _, err := ipam.Add(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := ipam.Add(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := ipam.Del(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"attach c/eth0/address", "detach c/eth0/address",
		"attach c/eth0/address", "detach c/eth0/address",
	}
	if diff := cmp.Diff(want, m.takeLog()); diff != "" {
		t.Error(diff)
	}
}
