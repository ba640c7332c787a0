package attach

import (
	"context"
	"errors"
	"slices"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

var errUnheard = errors.New("nobody heard it")

// unheard is a driver whose Finish fails.
type unheard struct{ driver.Driver }

func (unheard) Finish(context.Context, driver.Spec, *current.Result) error { return errUnheard }

// What a driver leaves to the end is a part of the ADD: when it fails, the pod
// gets nothing, and nothing stays.
func TestAttachmentThatCannotBeFinishedIsTakenDown(t *testing.T) {
	p := newPod(t)
	planned, err := p.plan("pods4", "lan")
	if err != nil {
		t.Fatal(err)
	}
	before := p.observe()
	whole := p.Drivers["bridge"]
	p.Drivers["bridge"] = unheard{whole}
	if _, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns}); !errors.Is(err, errUnheard) {
		t.Fatalf("Add = %v, want %v", err, errUnheard)
	}
	records, err := p.store.Sandbox(p.sandbox().ContainerID, p.sandbox().IfName)
	if err != nil || len(records) != 0 {
		t.Errorf("records %+v, %v", records, err)
	}
	if after := p.observe(); after != before {
		t.Errorf("the namespace was\n%s\nand is\n%s", before, after)
	}
	p.Drivers["bridge"] = whole
	done, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
	if err != nil || slices.ContainsFunc(done, func(a Attached) bool { return a.Result == nil }) {
		t.Errorf("then: %+v, %v", done, err)
	}
}

// finishing is a driver that counts what it finished.
type finishing struct {
	driver.Finisher
	times *int
}

func (f finishing) Finish(ctx context.Context, s driver.Spec, res *current.Result) error {
	*f.times++
	return f.Finisher.Finish(ctx, s, res)
}

// A daemon may be killed when the results are stored and the neighbours have not
// been told. The shim asks the next one again.
func TestRepeatedAddFinishesWhatMayBeLeft(t *testing.T) {
	p := newPod(t)
	planned, err := p.plan("pods4", "lan")
	if err != nil {
		t.Fatal(err)
	}
	whole := p.Drivers["bridge"]
	times := 0
	p.Drivers["bridge"] = finishing{whole.(driver.Finisher), &times}
	first, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
	if err != nil || times != len(first) {
		t.Fatalf("finished %d of %d: %v", times, len(first), err)
	}
	ways := map[string]func() ([]Attached, error){
		"Add":   func() ([]Attached, error) { return p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns}) },
		"Again": func() ([]Attached, error) { return p.Again(t.Context(), p.sandbox(), Reach{NS: p.ns}) },
	}
	before := p.observe()
	for way, ask := range ways {
		times = 0
		p.Drivers["bridge"] = finishing{whole.(driver.Finisher), &times}
		if again, err := ask(); err != nil || len(again) != len(first) || times != len(first) {
			t.Errorf("%s finished %d of %d: %v", way, times, len(first), err)
		}
		p.Drivers["bridge"] = unheard{whole}
		if _, err := ask(); !errors.Is(err, errUnheard) {
			t.Errorf("%s = %v, want %v", way, err, errUnheard)
		}
	}
	if after := p.observe(); after != before {
		t.Errorf("the namespace was\n%s\nand is\n%s", before, after)
	}
}
