package explain_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// directory is one to compare.
type directory struct {
	name string
	fill func(t *testing.T, dir string)
}

func list(name, kind string) string {
	return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"` + kind + `","ipam":{"type":"host-local","subnet":"10.1.0.0/16"}}]}`
}

func single(name, kind string) string {
	return `{"cniVersion":"0.4.0","name":"` + name + `","type":"` + kind + `","capabilities":{"mac":true}}`
}

// traps are the directories that surprise people.
func traps() []directory {
	files := func(pairs ...string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			for i := 0; i < len(pairs); i += 2 {
				put(t, filepath.Join(dir, pairs[i]), pairs[i+1])
			}
		}
	}
	linked := func(t *testing.T, dir string) {
		outside := filepath.Join(t.TempDir(), "target")
		put(t, outside, list("linked", "ptp"))
		must(t, os.Symlink(outside, filepath.Join(dir, "10-link.conflist")))
		put(t, filepath.Join(dir, "20-b.conflist"), list("b", "ptp"))
	}
	dangling := func(t *testing.T, dir string) {
		put(t, filepath.Join(dir, "10-a.conflist"), list("a", "ptp"))
		must(t, os.Symlink("nowhere", filepath.Join(dir, "20-b.conflist")))
	}
	renamed := func(t *testing.T, dir string) {
		put(t, filepath.Join(dir, ".10-a.tmp"), list("a", "ptp"))
		must(t, os.Rename(filepath.Join(dir, ".10-a.tmp"), filepath.Join(dir, "10-a.conflist")))
		put(t, filepath.Join(dir, "20-b.conflist"), list("b", "ptp"))
		must(t, os.Rename(filepath.Join(dir, "20-b.conflist"), filepath.Join(dir, "20-b.conflist.cilium_bak")))
	}
	movedIn := func(t *testing.T, dir string) {
		outside := filepath.Join(filepath.Dir(dir), "outside")
		put(t, outside, list("moved", "ptp"))
		must(t, os.Rename(outside, filepath.Join(dir, "10-moved.conflist")))
	}
	directories := func(t *testing.T, dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "05-dir.conflist"), 0o755))
		must(t, os.Mkdir(filepath.Join(dir, "a"), 0o755))
		put(t, filepath.Join(dir, "a", "20-second.conf"), `{"type":"tuning"}`)
		put(t, filepath.Join(dir, "a", "10-first.conf"), `{"type":"portmap"}`)
		put(t, filepath.Join(dir, "a", "30-list.conflist"), list("x", "ptp"))
		put(t, filepath.Join(dir, "10-a.conflist"), list("a", "ptp"))
		put(t, filepath.Join(dir, "20-a.conflist"), `{"name":"a","cniVersion":"1.0.0"}`)
		put(t, filepath.Join(dir, "30-a.conflist"), `{"name":"a","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}`)
	}
	brokenPlugin := func(t *testing.T, dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "a"), 0o755))
		put(t, filepath.Join(dir, "a", "10-broken.conf"), `{"type":`)
		put(t, filepath.Join(dir, "10-a.conflist"), list("a", "ptp"))
	}
	linkToDirectory := func(t *testing.T, dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
		put(t, filepath.Join(dir, "10-a.conflist"), list("a", "ptp"))
		must(t, os.Symlink("real", filepath.Join(dir, "20-real.conf")))
	}
	return []directory{
		{"empty", files()},
		{"one", files("10-a.conflist", list("a", "ptp"))},
		{"no configuration", files("README", "x", "10-a.conflist.bak", list("a", "ptp"), ".10-b.tmp", "{")},
		{"junk second", files("10-a.conflist", list("a", "ptp"), "20-junk.conf", "not JSON", "30-c.conflist", list("c", "ptp"))},
		{"junk third", files("10-a.conflist", list("a", "ptp"), "20-b.conf", single("b", "ptp"), "30-junk.json", "[]")},
		{"empty file first", files("10-a.conflist", "", "20-b.conflist", list("b", "ptp"))},
		{"empty file last", files("10-a.conflist", list("a", "ptp"), "20-b.conf", "")},
		{"dotfile", files(".hidden.conflist", list("hidden", "ptp"), "10-a.conflist", list("a", "ptp"))},
		{"nothing but an extension", files(".conf", single("dot", "ptp"), "10-a.conf", single("a", "ptp"))},
		{"same names", files("10-a.conflist", list("a", "ptp"), "20-a.conflist", list("a", "bridge"))},
		{"byte order", files("9-nine.conf", single("nine", "ptp"), "10-ten.conf", single("ten", "ptp"), "Z.conf", single("z", "ptp"), "a.conf", single("a", "ptp"))},
		{"conf before conflist", files("10-x.conflist", list("list", "ptp"), "10-x.conf", single("single", "ptp"), "10-x.json", single("json", "ptp"))},
		{"a list in a conf", files("10-a.conf", list("a", "ptp"))},
		{"a single plugin in a conflist", files("10-a.conflist", single("a", "ptp"))},
		{"both keys in a conf", files("10-a.conf", `{"name":"a","type":"ptp","plugins":[{"type":"bridge"}]}`)},
		{"no name", files("10-a.conf", `{"type":"ptp"}`, "20-b.conflist", `{"plugins":[{"type":"ptp"}]}`)},
		{"empty name", files("10-a.conflist", `{"name":"","plugins":[{"type":"ptp"}]}`, "20-b.conf", single("b", "tuning"))},
		{"name with a slash", files("10-a.conflist", list("x/y", "ptp"))},
		{"name that is a file", files("10-a.conflist", list("10-a.conflist", "ptp"))},
		{"name below a file", files("10-a.conflist", list("10-a.conflist/x", "ptp"))},
		{"name that is the directory", files("10-a.conflist", list(".", "ptp"), "20-b.conf", single("b", "tuning"))},
		{"name too long", files("10-a.conflist", list(strings.Repeat("n", 300), "ptp"))},
		{"no plugins", files("10-a.conflist", `{"name":"a","plugins":[]}`)},
		{"plugins of another type", files("10-a.conflist", `{"name":"a","plugins":{"type":"ptp"}}`)},
		{"a plugin without a type", files("10-a.conflist", `{"name":"a","plugins":[{"type":"ptp"},{"mtu":1}]}`)},
		{"unknown version", files("10-a.conflist", strings.Replace(list("a", "ptp"), "1.0.0", "9.9.9", 1))},
		{"several versions", files("10-a.conflist", `{"name":"a","cniVersions":["0.4.0","1.1.0","9.9.9"],"plugins":[{"type":"ptp"}]}`)},
		{"broken versions", files("10-a.conflist", `{"name":"a","cniVersions":["one"],"plugins":[{"type":"ptp"}]}`)},
		{"version of another type", files("10-a.conf", `{"name":"a","cniVersion":1,"type":"ptp"}`)},
		{"switches as text", files("10-a.conflist", `{"name":"a","disableCheck":"True","plugins":[{"type":"ptp"}]}`, "20-b.conflist", `{"name":"b","disableGC":"maybe","plugins":[{"type":"ptp"}]}`)},
		{"keys in capitals", files("10-a.conf", `{"NAME":"a","Type":"ptp"}`, "20-b.conflist", `{"Name":"b","plugins":[{"type":"ptp"}]}`)},
		{"Flannel and Cilium", files("05-cilium.conflist", list("cilium", "cilium-cni"), "10-flannel.conflist", `{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}`)},
		{"a link", linked},
		{"a dangling link", dangling},
		{"a link to a directory", linkToDirectory},
		{"by rename", renamed},
		{"moved in", movedIn},
		{"directories", directories},
		{"a broken plugin in a directory", brokenPlugin},
	}
}

// generated are n random directories out of names and contents that are each a
// trap of their own.
func generated(n int, seed uint64) []directory {
	random := rand.New(rand.NewPCG(seed, 7))
	names := []string{".a.conf", "00-x.conf", "00-x.conflist", "05-cilium.conflist", "10-y.json", "9-y.conflist", "A.conflist", "z.conf", "n/1.conf", "n/2.conflist", "README", "50.conflist.old"}
	contents := []string{
		list("n", "ptp"), list("m", "bridge"), list("n", "macvlan"), single("s", "ptp"), single("t", "vlan"), single("n", "ptp"),
		"", "{}", "null", "[]", `{"name":"n"}`, `{"type":"x"}`, list("n", "ptp") + "}", " " + list("w", "ptp") + "\n", `{"name":"v","cniVersions":["1.0.0","0.3.1"],"plugins":[{"type":"ptp"}]}`,
	}
	var out []directory
	for i := range n {
		content := map[string]string{}
		for range 1 + random.IntN(6) {
			// The first contents are good ones, and come twice as often.
			content[names[random.IntN(len(names))]] = contents[min(random.IntN(len(contents)), random.IntN(len(contents)))]
		}
		out = append(out, directory{"random " + strconv.Itoa(i), func(t *testing.T, dir string) {
			for name, data := range content {
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
				put(t, filepath.Join(dir, name), data)
			}
		}})
	}
	return out
}

func put(t *testing.T, path, data string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(data), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
