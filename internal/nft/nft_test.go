package nft

import (
	"strings"
	"testing"
)

func TestOwnerKnowsItsRules(t *testing.T) {
	net1, net10 := Owner{"container", "net1"}, Owner{"container", "net10"}
	other := Owner{"container2", "net1"}
	reference := appendTag(nil, tagComment, "container")
	for _, tc := range []struct {
		name string
		data []byte
		want [3]bool // net1, net10, other
	}{
		{"own", net1.UserData(), [3]bool{true, false, false}},
		{"of another interface", net10.UserData(), [3]bool{false, true, false}},
		{"of another container", other.UserData(), [3]bool{false, false, true}},
		{"of the reference plugin", reference, [3]bool{true, true, false}},
		{"nobody's", nil, [3]bool{}},
	} {
		if got := [3]bool{net1.Owns(tc.data), net10.Owns(tc.data), other.Owns(tc.data)}; got != tc.want {
			t.Errorf("rule %s: owned by net1, net10, other = %v, want %v", tc.name, got, tc.want)
		}
	}
	long := Owner{strings.Repeat("c", 200), "net1"}
	if data := long.UserData(); len(data) > 256 || !long.Owns(data) {
		t.Errorf("user data of a long id has %d bytes, found again: %v", len(data), long.Owns(data))
	}
}

// User data is written by any program on the node.
func FuzzOwns(f *testing.F) {
	f.Add(Owner{"c", "net1"}.UserData())
	f.Add([]byte{0, 200, 'c'})
	f.Add([]byte{0})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		Owner{"c", "net1"}.Owns(data)
	})
}
