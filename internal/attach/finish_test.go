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
