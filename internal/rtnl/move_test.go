package rtnl_test

import (
	"errors"
	"testing"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/rtnl"
)

func TestLinkMovesToAnotherNamespaceUnderAnotherName(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	a, b := kerneltest.NewNS(t), kerneltest.NewNS(t)
	h, there := open(t, a), open(t, b)
	l := must(h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "a0", Up: true}, Peer: named("b0")}))(t)
	try(t, h.SetAlias(l.Index, "for people"))
	try(t, h.AddAltName(l.Index, "a-name-of-more-than-15-bytes"))
	must(there.AddVeth(rtnl.Veth{New: named("a0"), Peer: named("taken")}))(t) // its old name is no hindrance
	if err := h.MoveAs(l.Index, b, "taken"); !errors.Is(err, rtnl.ErrExists) {
		t.Errorf("a taken name: %v", err)
	}
	try(t, h.MoveAs(must(h.Link("a0"))(t).Index, b, "new"))
	got := must(there.Link("new"))(t)
	if got.Up || got.Alias != "for people" || len(got.AltNames) != 1 || got.MAC.String() != l.MAC.String() {
		t.Errorf("arrived: %+v", got)
	}
	if _, err := h.Link("a0"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("still here: %v", err)
	}
	if err := h.MoveAs(4711, b, "x"); !errors.Is(err, rtnl.ErrNotFound) {
		t.Errorf("no link: %v", err)
	}
	if err := there.MoveAs(got.Index, a, "sixteen-bytes-xx"); err == nil {
		t.Error("a long name")
	}
}
