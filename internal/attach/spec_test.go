package attach

// The tests TestSpecNN hold the numbered requirements of the NPWG multi-network
// specification 1.3 that are kept here; docs/multus.md lists them all.

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/driver"
)

// witness notes which attachment programs are called for.
type witness struct {
	host
	calls *[]string
}

func (w witness) Exec(ctx context.Context, p driver.Program) ([]byte, error) {
	var conf struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(p.Stdin, &conf); err != nil {
		return nil, err
	}
	env := func(key string) string {
		for _, pair := range p.Env {
			if value, ok := strings.CutPrefix(pair, key+"="); ok {
				return value
			}
		}
		return ""
	}
	*w.calls = append(*w.calls, strings.Join([]string{env("CNI_COMMAND"), env("CNI_CONTAINERID"), conf.Name, env("CNI_IFNAME")}, " "))
	return w.host.Exec(ctx, p)
}

func TestSpec22ADDAndDELNameTheSameAttachment(t *testing.T) {
	m := newMachine(t, t.TempDir())
	var calls []string
	reach := Reach{Host: witness{host{m.world}, &calls}}
	twice := network("net2", "foreign")
	twice.Network, twice.Config.Name = "default/net-net1", "net-net1" // the same network a second time
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "foreign"), network("net1", "foreign"), twice), reach); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Del(t.Context(), "c", "eth0", reach); err != nil {
		t.Fatal(err)
	}
	var added, deleted []string
	for _, call := range calls {
		verb, tuple, _ := strings.Cut(call, " ")
		if verb == "ADD" {
			added = append(added, tuple)
		} else {
			deleted = append(deleted, tuple)
		}
	}
	if distinct := slices.Compact(slices.Sorted(slices.Values(added))); len(distinct) != 3 {
		t.Errorf("ADD was called for %q", added)
	}
	slices.Reverse(deleted)
	if diff := cmp.Diff(added, deleted); diff != "" {
		t.Errorf("DEL is about others than ADD:\n%s", diff)
	}
}
