package explain_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"braid.dev/braid/internal/confdir/explain"
)

var update = flag.Bool("update", false, "write the explanations in testdata/*.txtar anew")

// TestWorlds explains the directories of testdata. The comment of each archive
// says which runtime reads it and what is no plain file:
//
//	runtime NAME, max N, default NETWORK, link PATH, pipe PATH, dir PATH,
//	unreadable PATH, program TYPE VERSIONS, attached NETWORK
//
// The file "want" is the explanation; "want NAME" is that of another runtime.
func TestWorlds(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no worlds: %v", err)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			in := world(t, archive)
			wants := 0
			for i, f := range archive.Files {
				runtime, ok := strings.CutPrefix(f.Name, "want")
				if !ok {
					continue
				}
				wants++
				in := in
				if runtime = strings.TrimSpace(runtime); runtime != "" {
					in.Runtime = runtimeNamed(t, runtime)
				}
				have := text(explain.Explain(in))
				if *update {
					archive.Files[i].Data = []byte(have)
				} else if have != string(f.Data) {
					t.Errorf("%s: have\n%s\nwant\n%s", f.Name, have, f.Data)
				}
			}
			if wants == 0 {
				t.Error("the world says nothing about what is wanted")
			}
			if *update {
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// world is the input that an archive describes.
func world(t *testing.T, archive *txtar.Archive) explain.Input {
	t.Helper()
	in := explain.Input{Runtime: runtimeNamed(t, "containerd"), MaxConfNum: 1}
	for _, f := range archive.Files {
		if !strings.HasPrefix(f.Name, "want") {
			in.Files = append(in.Files, explain.File{Path: f.Name, Data: f.Data})
		}
	}
	at := func(name string) *explain.File {
		i := slices.IndexFunc(in.Files, func(f explain.File) bool { return f.Path == name })
		if i < 0 {
			in.Files = append(in.Files, explain.File{Path: name})
			i = len(in.Files) - 1
		}
		return &in.Files[i]
	}
	for line := range strings.Lines(string(archive.Comment)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		switch argument := words[1]; words[0] {
		case "runtime":
			in.Runtime = runtimeNamed(t, argument)
		case "max":
			n, err := strconv.Atoi(argument)
			if err != nil {
				t.Fatal(err)
			}
			in.MaxConfNum = n
		case "default":
			in.DefaultNetwork = argument
		case "link":
			at(argument).Link = true
		case "pipe":
			at(argument).Kind = explain.Special
		case "dir":
			at(argument).Kind = explain.Directory
		case "unreadable":
			at(argument).Err = fs.ErrPermission
		case "program":
			if in.Programs == nil {
				in.Programs = map[string]explain.Program{}
			}
			in.Programs[argument] = explain.Program{Versions: words[2:]}
		case "attached":
			in.Attached = append(in.Attached, explain.Attached{Network: argument, Container: "c", IfName: "eth0"})
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	return in
}

func runtimeNamed(t *testing.T, name string) explain.Runtime {
	t.Helper()
	r, err := explain.RuntimeNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// text is an explanation as the worlds hold it. The meaning and the fix of a
// finding are the table's, which a test of its own holds.
func text(e explain.Explanation) string {
	var b strings.Builder
	for _, n := range e.Networks {
		fmt.Fprintf(&b, "%s %s %s\n", n.IfName, n.Name, n.File)
	}
	for _, i := range e.Ignored {
		fmt.Fprintf(&b, "ignored %s: %s\n", i.File, i.Reason)
	}
	for _, f := range e.Findings {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Severity, f.Code, f.Message)
	}
	if e.Error != "" {
		fmt.Fprintf(&b, "error: %s\n", e.Error)
	}
	return b.String()
}

// TestEveryCodeHappens holds that no code is only in the table: the worlds and
// what a runtime reports produce all of them.
func TestEveryCodeHappens(t *testing.T) {
	happened := map[explain.Code]bool{}
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range archives {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if words := strings.Fields(line); len(words) > 1 {
				happened[explain.Code(strings.TrimSuffix(words[1], ":"))] = true
			}
		}
	}
	for _, c := range seenCases {
		for _, code := range c.want {
			happened[code] = true
		}
	}
	for code := range explain.Rules {
		if !happened[code] {
			t.Errorf("no test produces %s", code)
		}
	}
}

func TestEveryCodeIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/conf-explain.md")
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `") && strings.Count(line, " | ") == 3 {
			have = append(have, strings.TrimSpace(line))
		}
	}
	for code, r := range explain.Rules {
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", code, r.Severity, r.Meaning, r.Fix))
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("docs/conf-explain.md holds another table than the code, which says\n%s", strings.Join(want, "\n"))
	}
}

var seenCases = []struct {
	name   string
	change func(s *explain.Seen)
	want   []explain.Code
}{
	{"the same", func(*explain.Seen) {}, nil},
	{"a runtime that tells nothing", func(s *explain.Seen) { *s = explain.Seen{} }, nil},
	{"an older version", func(s *explain.Seen) { s.Networks[0].Plugins[0] = `{"type":"ptp","mtu":1}` }, []explain.Code{explain.RuntimeDiffers}},
	{"another network", func(s *explain.Seen) { s.Networks[0].Name = "old" }, []explain.Code{explain.RuntimeDiffers}},
	{"another interface", func(s *explain.Seen) { s.Networks[0].IfName = "eth1" }, []explain.Code{explain.RuntimeDiffers}},
	{"one more", func(s *explain.Seen) { s.Networks = append(s.Networks, explain.SeenNetwork{Name: "x", IfName: "eth1"}) }, []explain.Code{explain.RuntimeDiffers}},
	{"nothing loaded", func(s *explain.Seen) { s.Networks = []explain.SeenNetwork{} }, []explain.Code{explain.RuntimeDiffers}},
	{"a failed load", func(s *explain.Seen) { s.LoadError = "cni config load failed" }, []explain.Code{explain.RuntimeFailed}},
	{"not ready", func(s *explain.Seen) { s.NotReady = "cni plugin not initialized" }, []explain.Code{explain.RuntimeNotReady}},
	{"another directory", func(s *explain.Seen) { s.Dir = "/copy" }, []explain.Code{explain.RuntimeSettings}},
	{"another limit", func(s *explain.Seen) { s.MaxConfNum = 2 }, []explain.Code{explain.RuntimeSettings}},
	{"runtime classes", func(s *explain.Seen) {
		s.Classes = []explain.Class{{Name: "a", ConfDir: "/etc/cni/a.d"}, {Name: "b", MaxConfNum: 2}}
	}, []explain.Code{explain.ClassLimit, explain.ClassNetworks}},
}

// TestRuntimeComparedWithDirectory changes what the runtime reports, one fact
// at a time.
func TestRuntimeComparedWithDirectory(t *testing.T) {
	for _, c := range seenCases {
		t.Run(c.name, func(t *testing.T) {
			s, err := explain.ParseSeen(map[string]string{
				"lastCNILoadStatus": "OK",
				"cniconfig": `{"PluginConfDir":"/etc/cni/net.d","PluginMaxConfNum":1,"Prefix":"eth","Networks":[
 {"Config":{"Name":"cni-loopback","Plugins":[{"Source":"{\"type\":\"loopback\"}"}]},"IFName":"lo"},
 {"Config":{"Name":"net","Plugins":[{"Source":"{\"type\":\"ptp\",\"ipam\":{\"type\":\"x\"}}"}]},"IFName":"eth0"}]}`,
			})
			if err != nil {
				t.Fatal(err)
			}
			s.Dir = "/etc/cni/net.d"
			c.change(&s)
			e := explain.Explain(explain.Input{Runtime: runtimeNamed(t, "containerd"), MaxConfNum: 1, Seen: &s, Files: []explain.File{
				{Path: "a.conflist", Data: []byte(`{"name": "net", "cniVersion": "1.0.0", "plugins": [{"ipam": {"type": "x"}, "type": "ptp"}]}`)},
			}})
			var have []explain.Code
			for _, f := range e.Findings {
				have = append(have, f.Code)
			}
			if !slices.Equal(have, c.want) {
				t.Errorf("have %v, want %v", have, c.want)
			}
		})
	}
}

func TestRuntimeIsFoundByWhatItSays(t *testing.T) {
	for version, want := range map[string]string{
		"v1.6.8": "containerd-1.6", "1.7.25": "containerd-1.7", "v1.7.0-rc.1": "containerd-1.7", "1.5.9": "containerd-1.6",
		"v2.0.4": "containerd-2.0", "v2.1.0": "containerd-2", "v2.4.2": "containerd-2", "v3.0.0": "containerd-2",
	} {
		if r, err := explain.RuntimeOf("containerd", version); err != nil || r.Name != want {
			t.Errorf("containerd %s: have %s, %v, want %s", version, r.Name, err, want)
		}
	}
	if r, err := explain.RuntimeOf("cri-o", "1.36.0"); err != nil || r.Name != "cri-o" {
		t.Errorf("cri-o: have %s, %v", r.Name, err)
	}
	for _, bad := range [][2]string{{"docker", "27.0.1"}, {"containerd", "master"}, {"containerd", "v99999999999999999999.1"}} {
		if r, err := explain.RuntimeOf(bad[0], bad[1]); err == nil {
			t.Errorf("%s %s is %s", bad[0], bad[1], r.Name)
		}
	}
}

func TestReadDirSeesWhatARuntimeSees(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "10-a.conf"), []byte("a"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "README"), []byte("not read"), 0o600))
	must(os.Mkdir(filepath.Join(dir, "net"), 0o700))
	must(os.WriteFile(filepath.Join(dir, "net", "p.conf"), []byte("p"), 0o600))
	must(os.Symlink("10-a.conf", filepath.Join(dir, "20-link.conf")))
	must(os.Symlink("net", filepath.Join(dir, "25-net.conflist")))
	must(os.Symlink("nowhere", filepath.Join(dir, "30-dangling.conf")))
	must(os.Symlink(".", filepath.Join(dir, "loop")))
	files, err := explain.ReadDir(dir)
	must(err)
	have := map[string]string{}
	for _, f := range files {
		have[f.Path] = fmt.Sprintf("kind %d link %t data %q", f.Kind, f.Link, f.Data)
		if errors.Is(f.Err, fs.ErrNotExist) {
			have[f.Path] += " dangling"
		}
	}
	for name, want := range map[string]string{
		"10-a.conf":        `kind 0 link false data "a"`,
		"README":           `kind 0 link false data ""`,
		"net":              `kind 1 link false data ""`,
		"net/p.conf":       `kind 0 link false data "p"`,
		"20-link.conf":     `kind 0 link true data "a"`,
		"25-net.conflist":  `kind 1 link true data ""`,
		"30-dangling.conf": `kind 0 link true data "" dangling`,
		"loop/10-a.conf":   `kind 0 link false data "a"`,
	} {
		if have[name] != want {
			t.Errorf("%s: have %s, want %s", name, have[name], want)
		}
	}
	if _, err := explain.ReadDir(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}

func TestReadAttachedTakesEntriesOnly(t *testing.T) {
	cache := t.TempDir()
	results := filepath.Join(cache, "results")
	if have, err := explain.ReadAttached(cache); err != nil || have != nil {
		t.Fatalf("no cache: %v, %v", have, err)
	}
	if err := os.Mkdir(results, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"cbr0-c1-eth0": `{"kind":"cniCacheV1","containerId":"c1","ifName":"eth0","networkName":"cbr0","result":{}}`,
		"old-result":   `{"cniVersion":"0.4.0","ips":[]}`,
		"half":         `{"kind":"cniCa`,
	} {
		if err := os.WriteFile(filepath.Join(results, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	have, err := explain.ReadAttached(cache)
	if want := []explain.Attached{{Network: "cbr0", Container: "c1", IfName: "eth0"}}; err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("have %v, %v, want %v", have, err, want)
	}
}

// TestReadProgramsAsksForVersions runs a plugin that is a script.
func TestReadProgramsAsksForVersions(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}'\n"
	for name, data := range map[string]string{"good": script, "mute": "#!/bin/sh\nexit 1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	have := explain.ReadPrograms(t.Context(), []string{dir}, []string{"good", "mute", "absent"})
	want := map[string]explain.Program{"good": {Versions: []string{"0.4.0", "1.0.0"}}, "mute": {}}
	if !reflect.DeepEqual(have, want) {
		t.Errorf("have %v, want %v", have, want)
	}
}

func TestParseSeenRefusesWhatItCannotRead(t *testing.T) {
	if _, err := explain.ParseSeen(map[string]string{"cniconfig": "{"}); err == nil {
		t.Error("broken JSON is accepted")
	}
	if s, err := explain.ParseSeen(nil); err != nil || s.Networks != nil {
		t.Errorf("a runtime that tells nothing: %+v, %v", s, err)
	}
}

// FuzzExplain builds directories out of arbitrary bytes and holds what is true
// of every explanation.
func FuzzExplain(f *testing.F) {
	list := []byte(`{"name":"x","cniVersion":"1.1.0","plugins":[{"type":"bridge","ipam":{"type":"host-local","routes":[{"dst":"0.0.0.0/0"}]}}]}`)
	f.Add("10-a.conflist", list, "9-b.conf", []byte(`{"name":"y","type":"multus","clusterNetwork":"/etc/cni/net.d/10-a.conflist"}`), uint64(1))
	f.Add("x", []byte(nil), ".h.json", []byte(`{"type":"flannel","delegate":{"isGateway":false}}`), uint64(2))
	f.Add("x/p.conf", []byte(`{"type":"sbr","capabilities":{"portMappings":true}}`), "00-braid.conflist", []byte(`{"name":"x","plugins":[{"type":"braid-cni"}]}`), uint64(3))
	f.Add("a.conflist", []byte(`{"name":"../..","cniVersions":["1.0.0"]}`), "b.conflist", []byte(`{"name":"","disableCheck":"TRUE"}`), uint64(4))
	f.Fuzz(func(t *testing.T, name1 string, data1 []byte, name2 string, data2 []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		in := explain.Input{
			Runtime: explain.Runtimes[random.IntN(len(explain.Runtimes))], MaxConfNum: random.IntN(4),
			Files: []explain.File{{Path: "00-braid.conflist", Data: data2}, {Path: "50-x.conf", Data: data1}, {Path: "60-y.conflist", Data: data2}},
		}
		for i, name := range []string{name1, name2} {
			if fs.ValidPath(name) && name != "." && !slices.ContainsFunc(in.Files, func(f explain.File) bool { return f.Path == name }) {
				in.Files = append(in.Files, explain.File{Path: name, Data: [][]byte{data1, data2}[i], Kind: explain.Kind(random.IntN(6) / 4), Link: random.IntN(4) == 0})
			}
		}
		have := explain.Explain(in)
		holds(t, in, have)
		random.Shuffle(len(in.Files), func(i, j int) { in.Files[i], in.Files[j] = in.Files[j], in.Files[i] })
		if again := explain.Explain(in); !reflect.DeepEqual(again, have) {
			t.Errorf("the order of the input matters:\n%s\n%s", text(have), text(again))
		}
	})
}

// holds checks what is true of every explanation.
func holds(t *testing.T, in explain.Input, e explain.Explanation) {
	t.Helper()
	times := map[string]int{}
	for i, n := range e.Networks {
		times[n.File]++
		if n.IfName != fmt.Sprintf("eth%d", i) {
			t.Errorf("network %d is %s", i, n.IfName)
		}
		if i > 0 && e.Networks[i-1].File >= n.File {
			t.Errorf("%s comes before %s", e.Networks[i-1].File, n.File)
		}
	}
	for _, i := range e.Ignored {
		times[i.File]++
		if i.Reason == "" {
			t.Errorf("%s is ignored without a reason", i.File)
		}
	}
	for _, f := range in.Files {
		configuration := slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(f.Path)) && f.Kind != explain.Directory
		if !strings.Contains(f.Path, "/") && configuration && times[f.Path] != 1 {
			t.Errorf("%q is explained %d times", f.Path, times[f.Path])
		}
	}
	if in.MaxConfNum > 0 && in.Runtime.Name != "cri-o" && len(e.Networks) > in.MaxConfNum {
		t.Errorf("%d networks, max_conf_num is %d", len(e.Networks), in.MaxConfNum)
	}
	if (e.Error == "") != (len(e.Networks) > 0) {
		t.Errorf("%d networks and the error %q", len(e.Networks), e.Error)
	}
	for _, f := range e.Findings {
		if _, known := explain.Rules[f.Code]; !known || f.Message == "" || f.Fix == "" {
			t.Errorf("finding %+v", f)
		}
	}
}

// FuzzParseSeen holds that nothing a runtime reports is more than an error.
func FuzzParseSeen(f *testing.F) {
	f.Add([]byte(`{"PluginConfDir":"/etc/cni/net.d","Networks":[{"IFName":"eth0","Config":{"Name":"x","Plugins":[{"Source":"{"}]}}]}`), []byte(`{"containerd":{"runtimes":{"a":{"cniConfDir":"/x"}}}}`))
	f.Add([]byte(`{"Networks":[{"Config":null},null]}`), []byte(`{`))
	f.Fuzz(func(t *testing.T, cni, config []byte) {
		s, err := explain.ParseSeen(map[string]string{"cniconfig": string(cni), "config": string(config), "lastCNILoadStatus": "OK"})
		if err != nil {
			return
		}
		in := explain.Input{Runtime: explain.Runtimes[0], MaxConfNum: 1, Seen: &s, Files: []explain.File{{Path: "a.conf", Data: bytes.Clone(cni)}}}
		holds(t, in, explain.Explain(in))
	})
}
