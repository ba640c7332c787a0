package hostlocal_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/hostlocal"
	"braid.dev/braid/internal/refplugin"
)

var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// side is one of the two implementations.
type side func(command, id, args string, conf []byte) (result []byte, err error)

func braid() side {
	plugin := hostlocal.New(hostlocal.Config{})
	return func(command, id, args string, conf []byte) ([]byte, error) {
		ctx := context.Background()
		r := ipam.Request{ContainerID: id, IfName: "net1", Args: args, Conf: conf}
		switch command {
		case "DEL":
			return nil, plugin.Del(ctx, r)
		case "CHECK":
			return nil, plugin.Check(ctx, r)
		}
		res, err := plugin.Add(ctx, r)
		if err != nil {
			return nil, err
		}
		var head struct {
			CNIVersion string `json:"cniVersion"`
		}
		if err := json.Unmarshal(conf, &head); err != nil {
			return nil, err
		}
		// A plugin's result leaves it in the configuration's version.
		old, err := res.GetAsVersion(head.CNIVersion)
		if err != nil {
			return nil, err
		}
		return json.Marshal(old)
	}
}

func reference(t testing.TB) side {
	dir := refplugin.Dir(t, "host-local")
	return func(command, id, args string, conf []byte) ([]byte, error) {
		// The reference refuses keys that it does not know unless told so.
		if args != "" {
			args = "IgnoreUnknown=1;" + args
		}
		return refplugin.Run(context.Background(), dir, "host-local",
			refplugin.Call{Command: command, ContainerID: id, IfName: "net1", Args: args, Conf: conf})
	}
}

// pair asks both the same, each with a data dir of its own, and compares the
// answers and the files.
type pair struct {
	rapid.TB
	braid, ref       side
	braidDir, refDir string
}

func newPair(t interface {
	rapid.TB
	Cleanup(func())
}, braid, ref side) *pair {
	p := &pair{TB: t, braid: braid, ref: ref}
	for _, dir := range []*string{&p.braidDir, &p.refDir} {
		d, err := os.MkdirTemp("", "braid-host-local-*")
		if err != nil {
			t.Fatal(err)
		}
		*dir = d
		t.Cleanup(func() { os.RemoveAll(d) })
	}
	return p
}

func withDataDir(t rapid.TB, conf []byte, dir string) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(conf, &m); err != nil {
		t.Fatal(err)
	}
	m["ipam"].(map[string]any)["dataDir"] = dir
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ask returns a description of the difference, empty when there is none.
func (p *pair) ask(command, id, args string, conf []byte) (accepted bool, diff string) {
	p.Helper()
	ours, err := p.braid(command, id, args, withDataDir(p, conf, p.braidDir))
	theirs, refErr := p.ref(command, id, args, withDataDir(p, conf, p.refDir))
	if (err == nil) != (refErr == nil) {
		return err == nil, fmt.Sprintf("braid: %s, %v\nreference: %s, %v", ours, err, theirs, refErr)
	}
	return err == nil, cmp.Diff(decoded(p, theirs), decoded(p, ours))
}

// files compares the data dirs, modes included.
func (p *pair) files() string {
	p.Helper()
	return cmp.Diff(tree(p, p.refDir), tree(p, p.braidDir))
}

func tree(t rapid.TB, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var data []byte
		if !d.IsDir() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		out[strings.TrimPrefix(path, root)] = fmt.Sprintf("%v %q", info.Mode(), data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func decoded(t rapid.TB, data []byte) (v any) {
	t.Helper()
	if len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

const everything = `{"ipam":{"type":"host-local","subnet":"10.0.0.0/24","rangeStart":"10.0.0.20","rangeEnd":"10.0.0.30","gateway":"10.0.0.254",
	"ranges":[[{"subnet":"fd00::/64"}],[{"subnet":"10.1.0.0/30"},{"subnet":"10.2.0.0/30"}]],
	"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.9.0.0/16","gw":"10.0.0.5","mtu":1400,"priority":3},{"dst":"fd01::/48","gw":"fd00::9"}]},
	"runtimeConfig":{"ipRanges":[[{"subnet":"192.0.2.0/28"}]]}}`

func TestResultAndFilesAreTheReferencesInEveryVersion(t *testing.T) {
	ours, ref := braid(), reference(t)
	for _, version := range versions {
		for _, text := range []string{everything, `{"subnet":"10.0.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}`, `{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"FD00::/64"}]]}`} {
			p := newPair(t, ours, ref)
			c := withVersion(t, conf(t, text), version)
			accepted, diff := p.ask("ADD", "c1", "", c)
			if diff != "" {
				t.Errorf("%s, %s (-reference +braid):\n%s", version, text, diff)
			}
			old := version < "0.3.0" && text == everything // four addresses
			if accepted == old {
				t.Errorf("%s, %s: accepted: %v", version, text, accepted)
			}
			if old {
				continue
			}
			if diff := p.files(); diff != "" {
				t.Errorf("%s, %s (-reference +braid):\n%s", version, text, diff)
			}
		}
	}
}

func withVersion(t rapid.TB, conf []byte, version string) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(conf, &m); err != nil {
		t.Fatal(err)
	}
	m["cniVersion"] = version
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestResolvConfIsReadAsTheReferenceDoes(t *testing.T) {
	p := newPair(t, braid(), reference(t))
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for i, text := range []string{"", "nameserver 1.1.1.1\nnameserver 2.2.2.2 # no\n  domain a.b\ndomain c.d\nsearch x y\nsearch z\noptions a:1 b\n;c\n#nameserver 9.9.9.9\nnameserver\nfoo bar\r\nnameserver fd00::1", "#", "\n\n \n;\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if ok, diff := p.ask("ADD", fmt.Sprint("c", i), "", conf(t, `{"subnet":"10.0.0.0/24","resolvConf":"`+file+`"}`)); !ok || diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

// Both refuse these, and nothing changes.
func TestRefusalsAreTheReferences(t *testing.T) {
	p := newPair(t, braid(), reference(t))
	for _, text := range []string{
		`{}`, `{"ranges":[]}`, `{"ranges":[[]]}`, `{"ranges":[null]}`, `{"ranges":[[{}]]}`, `{"ranges":{}}`,
		`{"subnet":""}`, `{"subnet":5}`, `{"subnet":"10.0.0.0"}`, `{"subnet":"10.0.0.0/31"}`, `{"subnet":"10.0.0.0/32"}`, `{"subnet":"fd00::/127"}`,
		`{"subnet":"10.0.0.1/24"}`, `{"subnet":"::ffff:a00:0/120"}`, `{"rangeStart":"10.0.0.1"}`,
		`{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}`, `{"subnet":"10.0.0.0/24","rangeEnd":"fd00::1"}`,
		`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}`, `{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.0"}`,
		`{"subnet":"10.0.0.0/24","gateway":"10.0.0"}`, `{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.05"}`,
		`{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}`, `{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.128/25"}]]}`,
		`{"subnet":"10.0.0.0/24","ranges":[[{"subnet":"10.0.0.0/8"}]]}`, `{"subnet":"10.0.0.0/30","rangeStart":"10.0.0.1","rangeEnd":"10.0.0.1"}`,
		`{"subnet":"10.0.0.0/24","routes":[{"dst":"x"}]}`, `{"subnet":"10.0.0.0/24","resolvConf":"/nonexistent"}`,
		`{"name":"a/b","ipam":{"subnet":"10.0.0.0/24"}}`, `{"name":"","ipam":{"subnet":"10.0.0.0/24"}}`, `{"cniVersion":"8.0.0","ipam":{"subnet":"10.0.0.0/24"}}`,
		`{"runtimeConfig":{"ips":["x"]},"ipam":{"subnet":"10.0.0.0/24"}}`, `{"runtimeConfig":{"ips":[""]},"ipam":{"subnet":"10.0.0.0/24"}}`,
		`{"runtimeConfig":{"ips":["10.0.0.5","10.0.0.6"]},"ipam":{"subnet":"10.0.0.0/24"}}`, `{"runtimeConfig":{"ips":["10.0.0.1"]},"ipam":{"subnet":"10.0.0.0/24"}}`,
		`{"args":{"cni":{"ips":["10.0.1.5"]}},"ipam":{"subnet":"10.0.0.0/24"}}`, `{"args":{"cni":{"ips":["10.0.0.255"]}},"ipam":{"subnet":"10.0.0.0/24"}}`,
	} {
		if accepted, diff := p.ask("ADD", "c1", "", conf(t, text)); accepted || diff != "" {
			t.Errorf("%s: accepted: %v, %s", text, accepted, diff)
		}
	}
	for _, args := range []string{"IP=x", "IP=10.0.0.5,10.0.0.6", "IP=10.0.0.1", "IP=10.0.1.1/24"} {
		if accepted, diff := p.ask("ADD", "c1", args, conf(t, `{"subnet":"10.0.0.0/24"}`)); accepted || diff != "" {
			t.Errorf("%s: accepted: %v, %s", args, accepted, diff)
		}
	}
	for name, file := range tree(t, p.braidDir) {
		if strings.Contains(file, "c1") {
			t.Errorf("%s is left", name)
		}
	}
}

// drawIPAM draws ranges small enough to be used up.
func drawIPAM(t *rapid.T) map[string]any {
	one := func(family int, label string) map[string]any {
		pool := map[int]map[string][]string{
			4: {"subnet": {"10.0.0.0/29", "10.0.0.8/30", "10.1.0.0/30", "10.0.0.0/24"}, "addr": {"10.0.0.1", "10.0.0.2", "10.0.0.5", "10.0.0.6", "10.0.0.9", "10.0.0.0", "10.1.0.2", "::ffff:10.0.0.4"}},
			6: {"subnet": {"fd00::/126", "fd00::10/125", "FD00:1::/64"}, "addr": {"fd00::1", "fd00::2", "fd00::3", "fd00::12", "fd00::15", "fd00:1::8000:0:0:1"}},
		}[family]
		r := map[string]any{"subnet": rapid.SampledFrom(pool["subnet"]).Draw(t, label+".subnet")}
		for _, key := range []string{"rangeStart", "rangeEnd", "gateway"} {
			if rapid.IntRange(0, 4).Draw(t, label+" with "+key) == 0 {
				r[key] = rapid.SampledFrom(pool["addr"]).Draw(t, label+"."+key)
			}
		}
		return r
	}
	var ranges []any
	for i := range rapid.IntRange(1, 2).Draw(t, "sets") {
		var set []any
		family := rapid.SampledFrom([]int{4, 6}).Draw(t, "family")
		for j := range rapid.IntRange(1, 2).Draw(t, "ranges") {
			set = append(set, one(family, fmt.Sprint(i, ".", j)))
		}
		ranges = append(ranges, set)
	}
	return map[string]any{"type": "host-local", "ranges": ranges}
}

// TestRandomHistoriesAreTheReferences gives both the same sequence of calls.
func TestRandomHistoriesAreTheReferences(t *testing.T) {
	ours, ref := braid(), reference(t)
	rapid.Check(t, func(t *rapid.T) {
		data, err := json.Marshal(drawIPAM(t))
		if err != nil {
			t.Fatal(err)
		}
		c := conf(t, string(data))
		p := newPair(t, ours, ref)
		held := make(map[string]bool)
		for step := range rapid.IntRange(1, 10).Draw(t, "steps") {
			id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "id")
			command := rapid.SampledFrom([]string{"ADD", "ADD", "DEL"}).Draw(t, "command")
			args := ""
			// README, differences: the reference refuses a second ADD, and DEL
			// with a configuration that ADD refuses; DEL makes a directory.
			if command == "ADD" && held[id] || command == "DEL" && len(held) == 0 {
				continue
			}
			if command == "ADD" {
				args = rapid.SampledFrom([]string{"", "", "IP=10.0.0.2", "IP=10.0.0.5/29", "IP=fd00::2", "IP=fd00::12/125", "IP=10.0.0.1", "IP=10.9.9.9"}).Draw(t, "args")
			}
			accepted, diff := p.ask(command, id, args, c)
			if diff != "" {
				t.Fatalf("step %d, %s %s %s with %s (-reference +braid):\n%s", step, command, id, args, data, diff)
			}
			if !accepted {
				// When a later range set fails, the order may differ in which
				// set was advanced in vain; start afresh.
				return
			}
			held[id] = command == "ADD"
			if diff := p.files(); diff != "" {
				t.Fatalf("step %d, %s %s %s with %s: files (-reference +braid):\n%s", step, command, id, args, data, diff)
			}
		}
	})
}

// TestOneDirectoryServesBoth lets both work on one data dir in turn.
func TestOneDirectoryServesBoth(t *testing.T) {
	ours, ref := braid(), reference(t)
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "braid-host-local-*")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		c := withDataDir(t, conf(t, `{"ranges":[[{"subnet":"10.0.0.0/29"}],[{"subnet":"fd00::/64"}]]}`), dir)
		owner := make(map[string]string) // by address
		ids := make(map[string][]byte)   // result by owner
		sides := []side{ours, ref}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "id")
			s := sides[rapid.IntRange(0, 1).Draw(t, "side")]
			if prev, ok := ids[id]; ok {
				// The other one knows what the first one did.
				if _, err := s("CHECK", id, "", withPrev(t, c, prev)); err != nil {
					t.Fatalf("CHECK %s: %v", id, err)
				}
				if _, err := s("DEL", id, "", c); err != nil {
					t.Fatalf("DEL %s: %v", id, err)
				}
				if _, err := s("CHECK", id, "", withPrev(t, c, prev)); err == nil {
					t.Fatalf("CHECK of %s succeeds after DEL", id)
				}
				for a, o := range owner {
					if o == id {
						delete(owner, a)
					}
				}
				delete(ids, id)
				continue
			}
			out, err := s("ADD", id, "", c)
			if len(ids) == 5 {
				if err == nil {
					t.Fatalf("a sixth address of five: %s", out)
				}
				continue
			}
			if err != nil {
				t.Fatalf("ADD %s: %v", id, err)
			}
			ids[id] = out
			for _, a := range addressesIn(t, out) {
				if owner[a] != "" {
					t.Fatalf("%s is given to %s and %s", a, owner[a], id)
				}
				owner[a] = id
			}
		}
	})
}

func withPrev(t rapid.TB, conf, prev []byte) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(conf, &m); err != nil {
		t.Fatal(err)
	}
	m["prevResult"] = json.RawMessage(prev)
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func addressesIn(t rapid.TB, result []byte) []string {
	t.Helper()
	var r struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(result, &r); err != nil || len(r.IPs) == 0 {
		t.Fatalf("%v: %s", err, result)
	}
	var out []string
	for _, ip := range r.IPs {
		out = append(out, ip.Address)
	}
	return out
}

// TestBothAtOnce runs programs of the reference against Braid's process.
func TestBothAtOnce(t *testing.T) {
	c := withDataDir(t, conf(t, `{"subnet":"10.0.0.0/24"}`), t.TempDir())
	ours, ref := braid(), reference(t)
	got := make(chan string)
	const workers, rounds = 4, 6
	for worker := range workers {
		s := []side{ours, ref}[worker%2]
		go func() {
			for round := range rounds {
				out, err := s("ADD", fmt.Sprint("w", worker, "-", round), "", c)
				if err != nil {
					t.Error(err)
				}
				got <- string(out)
			}
		}()
	}
	var all []string
	for range workers * rounds {
		if out := <-got; out != "" {
			all = append(all, addressesIn(t, []byte(out))...)
		}
	}
	slices.Sort(all)
	if n := len(all); len(slices.Compact(all)) != n || n != workers*rounds {
		t.Errorf("%d addresses, not all different: %v", n, all)
	}
}

// What the reference does wrong is documented in README.md; when it changes,
// README.md should.
func TestDocumentedDifferences(t *testing.T) {
	p := newPair(t, braid(), reference(t))
	c := conf(t, `{"subnet":"10.0.0.0/29"}`)
	both := func(what, command, id, args string, c []byte) {
		t.Helper()
		if accepted, diff := p.ask(command, id, args, c); !accepted || diff == "" {
			t.Errorf("%s: braid accepts: %v, the answers differ: %v", what, accepted, diff != "")
		}
	}
	if _, diff := p.ask("ADD", "c1", "", c); diff != "" {
		t.Fatal(diff)
	}
	both("a repeated ADD", "ADD", "c1", "", c)
	both("DEL without ranges", "DEL", "c1", "", conf(t, `{"type":"host-local"}`))
	for _, dir := range []string{p.braidDir, p.refDir} {
		for i := range 6 {
			if err := os.WriteFile(filepath.Join(dir, "vlan2001", fmt.Sprintf("10.0.0.%d", i+1)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	both("empty files", "ADD", "c2", "", c)

	// The range of the reference runs out of its subnet.
	outside := conf(t, `{"subnet":"10.0.3.0/29","rangeStart":"10.0.3.7"}`)
	for _, id := range []string{"o1", "o2"} {
		if _, err := p.ref("ADD", id, "", withDataDir(t, outside, p.refDir)); err != nil {
			t.Errorf("the reference refuses a start after the end: %v", err)
		}
	}
	if _, err := p.braid("ADD", "o1", "", withDataDir(t, outside, p.braidDir)); err == nil {
		t.Error("braid accepts a start after the end")
	}
	if _, err := os.Stat(filepath.Join(p.refDir, "vlan2001", "10.0.3.8")); err != nil {
		t.Errorf("the reference stays inside of the subnet: %v", err)
	}
}
