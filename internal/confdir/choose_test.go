package confdir_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/plan"
)

// conf is a network with a name of its own.
func conf(name string) []byte {
	return []byte(`{"cniVersion": "1.0.0", "name": "` + name + `", "plugins": [{"type": "ptp", "capabilities": {"portMappings": true}}]}`)
}

func file(name string, data []byte) confdir.File { return confdir.File{Name: name, Data: data} }

// choose follows a directory through several states of it.
func choose(steps ...[]confdir.File) confdir.State {
	var s confdir.State
	for _, files := range steps {
		s = confdir.Choose(files, s)
	}
	return s
}

func TestChoose(t *testing.T) {
	own := file(confdir.OwnFile, confdir.OwnConf(choose([]confdir.File{file("a.conf", conf("a"))}).Default.Network, confdir.Place{Socket: "/s"}))
	flannel, cilium := file("10-flannel.conflist", conf("cbr0")), file("05-cilium.conflist", conf("cilium"))
	half := func(f confdir.File) confdir.File { return file(f.Name, f.Data[:len(f.Data)/2]) }
	for _, c := range []struct {
		name  string
		steps [][]confdir.File
		// want is the file and the network of the default, or empty.
		want string
		note string
	}{
		{"an empty directory", [][]confdir.File{nil}, "", ""},
		{"Braid's own file is no network", [][]confdir.File{{own}}, "", ""},
		{"the first in byte order", [][]confdir.File{{own, flannel, cilium}}, "05-cilium.conflist cilium", ""},
		{"bytes, not numbers, order files", [][]confdir.File{{file("9-x.conf", conf("nine")), flannel}}, "10-flannel.conflist cbr0", ""},
		{"capitals before small letters", [][]confdir.File{{file("a.conf", conf("a")), file("Z.conf", conf("Z"))}}, "Z.conf Z", ""},
		{"all three extensions", [][]confdir.File{{file("3.conf", conf("c")), file("2.json", conf("b")), file("4.conflist", conf("d"))}}, "2.json b", ""},
		{"other extensions", [][]confdir.File{{file("05-cilium.conflist.cilium_bak", conf("x")), file("06.bak", conf("x")), file(".00-braid.conflist.tmp", conf("x")), flannel}}, "10-flannel.conflist cbr0", "Cilium has renamed 05-cilium.conflist"},
		{"extensions that no agent uses", [][]confdir.File{{file("06.bak", conf("x")), file("x.old", nil), file("README.cilium_bak", nil), flannel}}, "10-flannel.conflist cbr0", ""},
		{"renamed by Multus", [][]confdir.File{{file("05-a.conf.old", nil), flannel}}, "10-flannel.conflist cbr0", "Multus has renamed 05-a.conf to 05-a.conf.old, and Braid leaves it so. To use that network again, start Multus without --rename-conf-file"},
		{"Braid's own renamed by Cilium", [][]confdir.File{{own, file(confdir.OwnFile+".cilium_bak", nil), flannel}}, "10-flannel.conflist cbr0", "Cilium renames 00-braid.conflist to 00-braid.conflist.cilium_bak. Braid puts it back"},
		{"Cilium's own old file renamed by itself", [][]confdir.File{{own, file("05-cilium.conf.cilium_bak", nil), cilium}}, "05-cilium.conflist cilium", ""},
		{"a copy of Braid's file", [][]confdir.File{{file("05-copy.conflist", own.Data), flannel}}, "10-flannel.conflist cbr0", "05-copy.conflist is skipped: plugin type \"braid-cni\""},
		{"a network that leads back to Braid", [][]confdir.File{{file("00-multus.conf", []byte(`{"name": "m", "type": "multus", "delegates": [{"type": "braid-cni"}]}`)), flannel}}, "10-flannel.conflist cbr0", "00-multus.conf is skipped"},
		{"Multus before the network that it wraps", [][]confdir.File{{file("00-multus.conf", []byte(`{"name": "m", "cniVersion": "0.3.1", "type": "multus-shim"}`)), flannel}}, "10-flannel.conflist cbr0", "00-multus.conf is passed over"},
		{"Multus with a daemon, as a list", [][]confdir.File{{file("00-multus.conflist", []byte(`{"name": "m", "cniVersion": "1.0.0", "plugins": [{"type": "multus"}]}`)), flannel}}, "10-flannel.conflist cbr0", "remove Multus"},
		{"Multus alone", [][]confdir.File{{file("00-multus.conf", []byte(`{"name": "m", "cniVersion": "0.3.1", "type": "multus"}`))}}, "", "00-multus.conf is passed over"},
		{"Multus after the network that it wraps is gone", [][]confdir.File{{flannel}, {file("00-multus.conf", []byte(`{"name": "m", "cniVersion": "0.3.1", "type": "multus"}`))}}, "10-flannel.conflist cbr0", "stays the default network"},
		{"a file in front of Braid's", [][]confdir.File{{own, file(".hidden.conflist", conf("hidden"))}}, ".hidden.conflist hidden", "the runtime uses it instead of Braid"},
		{"broken files", [][]confdir.File{{file("01.conf", nil), file("02.conf", []byte("{")), file("03.conf", []byte(`{"type": "ptp"}`)), flannel}}, "10-flannel.conflist cbr0", "03.conf is skipped: name: missing"},
		{"a file that cannot be read", [][]confdir.File{{{Name: "01.conf", Err: fs.ErrPermission}, flannel}}, "10-flannel.conflist cbr0", "01.conf is skipped: permission denied"},
		{"nothing but broken files", [][]confdir.File{{half(flannel)}}, "", "10-flannel.conflist is skipped: broken JSON"},

		{"half written anew", [][]confdir.File{{cilium, flannel}, {half(cilium), flannel}}, "05-cilium.conflist cilium", "05-cilium.conflist: its last good version stays in force"},
		{"emptied", [][]confdir.File{{flannel}, {file(flannel.Name, nil)}}, "10-flannel.conflist cbr0", "stays in force"},
		{"unreadable for a while", [][]confdir.File{{flannel}, {{Name: flannel.Name, Err: errors.New("input/output error")}}}, "10-flannel.conflist cbr0", "stays in force: input/output error"},
		{"written completely", [][]confdir.File{{flannel}, {half(flannel)}, {file(flannel.Name, conf("new"))}}, "10-flannel.conflist new", ""},
		{"half written for long", [][]confdir.File{{flannel}, {half(flannel)}, {half(flannel)}, {half(flannel)}}, "10-flannel.conflist cbr0", "stays in force"},
		{"renamed away", [][]confdir.File{{own, flannel}, {own, file(flannel.Name+".cilium_bak", flannel.Data)}}, "10-flannel.conflist cbr0", "cbr0 of 10-flannel.conflist stays the default network"},
		{"removed with its directory's other files", [][]confdir.File{{flannel}, nil, nil}, "10-flannel.conflist cbr0", "stays the default network"},
		{"removed, but not alone", [][]confdir.File{{cilium, flannel}, {flannel}}, "10-flannel.conflist cbr0", ""},
		{"removed, then half written", [][]confdir.File{{flannel}, nil, {half(flannel)}}, "10-flannel.conflist cbr0", "stays in force"},
		{"removed, then another one half written", [][]confdir.File{{flannel}, nil, {half(cilium)}}, "10-flannel.conflist cbr0", "stays the default network"},
		{"removed, then another one", [][]confdir.File{{flannel}, nil, {cilium}}, "05-cilium.conflist cilium", ""},
		{"an earlier one appears", [][]confdir.File{{flannel}, {cilium, flannel}}, "05-cilium.conflist cilium", ""},
		{"an earlier one appears by halves", [][]confdir.File{{flannel}, {half(cilium), flannel}}, "10-flannel.conflist cbr0", "05-cilium.conflist is skipped"},
		{"overwritten with Braid's own", [][]confdir.File{{cilium, flannel}, {file(cilium.Name, own.Data), flannel}}, "10-flannel.conflist cbr0", "05-cilium.conflist is skipped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := choose(c.steps...)
			have := ""
			if s.Default != nil {
				have = s.Default.File + " " + s.Default.Network.Name
			}
			if have != c.want {
				t.Errorf("default network: have %q, want %q", have, c.want)
			}
			notes := strings.Join(s.Notes, "\n")
			if c.note == "" && notes != "" || !strings.Contains(notes, c.note) {
				t.Errorf("notes: have %q, want %q", notes, c.note)
			}
		})
	}
}

// FuzzChoose builds directories out of arbitrary bytes and follows them through
// two changes.
func FuzzChoose(f *testing.F) {
	f.Add(conf("a"), conf("b"), []byte("{"), uint8(0), uint64(1))
	f.Add([]byte(nil), conf("b"), conf("c"), uint8(0b101), uint64(2))
	f.Add([]byte(`{"type":"braid-cni","name":"x"}`), []byte(`{"type":"x","name":"y","cniVersion":"9.9.9"}`), conf("c"), uint8(0xff), uint64(3))
	names := []string{"05-a.conflist", confdir.OwnFile, "10-b.conf", ".h.json", "README", "c.json"}
	f.Fuzz(func(t *testing.T, a, b, c []byte, unreadable uint8, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		contents := [][]byte{a, b, c}
		directory := func() (files []confdir.File) {
			for i, name := range names {
				x := confdir.File{Name: name, Data: contents[random.IntN(3)]}
				if unreadable>>i&1 == 1 {
					x = confdir.File{Name: name, Err: fs.ErrPermission}
				}
				if random.IntN(3) > 0 {
					files = append(files, x)
				}
			}
			return files
		}
		var before confdir.State
		for range 3 {
			files := directory()
			now := confdir.Choose(files, before)
			random.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
			if again := confdir.Choose(files, before); !reflect.DeepEqual(now, again) {
				t.Fatalf("the order of reading matters:\n%+v\n%+v", now, again)
			}
			if again := confdir.Choose(files, now); !reflect.DeepEqual(now.Default, again.Default) || !reflect.DeepEqual(now.Networks, again.Networks) {
				t.Fatalf("looking twice changes the choice:\n%+v\n%+v", now, again)
			}
			if now.Default == nil {
				if before.Default != nil {
					t.Fatal("a default network was forgotten")
				}
				continue
			}
			if now.Default.File == confdir.OwnFile || now.Default.File == "README" {
				t.Fatalf("%s is the default network", now.Default.File)
			}
			own := confdir.OwnConf(now.Default.Network, confdir.Place{Socket: "/run/braid/braid.sock"})
			if !json.Valid(own) {
				t.Fatalf("own file: %s", own)
			}
			before = now
		}
	})
}

func TestFirstNetworksInTheOrderOfARuntime(t *testing.T) {
	s := confdir.Choose([]confdir.File{file("30-c.conflist", conf("c")), file("10-a.conflist", conf("a")), file("20-b.conf", conf("b"))}, confdir.State{})
	for n, want := range map[int]string{-1: "", 0: "", 1: "a", 2: "a b", 3: "a b c", 9: "a b c"} {
		var have []string
		for _, network := range s.First(n) {
			have = append(have, network.Name)
		}
		if strings.Join(have, " ") != want {
			t.Errorf("the first %d are %v, want %s", n, have, want)
		}
	}
	if gone := confdir.Choose(nil, s).First(2); len(gone) != 1 || gone[0].Name != "a" {
		t.Errorf("of an empty directory: %+v", gone)
	}
}

// TestSpec03OneBrokenFileHidesNoOther holds the third numbered requirement of
// the NPWG multi-network specification 1.3: lists by their JSON name first,
// then single configurations, whatever else lies in the directory.
func TestSpec03OneBrokenFileHidesNoOther(t *testing.T) {
	list := []byte(`{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "list"}]}`)
	single := []byte(`{"cniVersion": "1.0.0", "name": "lab", "type": "single"}`)
	rubbish := []confdir.File{
		file("00-half.conflist", list[:30]), file("01-empty.conf", nil), file("02-other.json", []byte(`[]`)),
		{Name: "03-unreadable.conflist", Err: fs.ErrPermission}, file("99-half.conflist", list[:20]),
	}
	for want, files := range map[string][]confdir.File{
		"list":   {file("10-lab.conf", single), file("20-lab.conflist", list)},
		"single": {file("10-lab.conf", single)},
	} {
		n, ok := choose(append(files, rubbish...)).OnDisk("lab")
		if !ok || n.Plugins[0].Type != want {
			t.Errorf("network %v, %v, want the %s", n, ok, want)
		}
	}
	if n, ok := choose(rubbish).OnDisk("lab"); ok {
		t.Errorf("a network out of rubbish: %v", n)
	}
}

// TestADirectoryOfTheNetworksNameHasPluginsOfIt: libcni 1.3 and later append
// them to the list, so a runtime without Braid would attach with them.
func TestADirectoryOfTheNetworksNameHasPluginsOfIt(t *testing.T) {
	list := func(more string) confdir.File {
		return file("10-a.conflist", []byte(`{"cniVersion": "1.0.0", "name": "a", `+more+`"plugins": [{"type": "ptp"}]}`))
	}
	dir := func(files ...confdir.File) confdir.File { return confdir.File{Name: "a", Plugins: files} }
	tuning, sbr := file("20-tuning.conf", []byte(`{"type": "tuning", "x": 1.0}`)), file("30-sbr.conf", []byte(`{"type": "sbr"}`))
	for name, c := range map[string]struct {
		steps [][]confdir.File
		want  string
	}{
		"appended in order":        {[][]confdir.File{{list(""), dir(tuning, sbr)}}, "ptp tuning sbr"},
		"of another network":       {[][]confdir.File{{list(""), {Name: "b", Plugins: []confdir.File{tuning}}}}, "ptp"},
		"not wanted":               {[][]confdir.File{{list(`"loadOnlyInlinedPlugins": true, `), dir(tuning)}}, "ptp"},
		"nothing else":             {[][]confdir.File{{file("10-a.conflist", []byte(`{"cniVersion": "1.0.0", "name": "a"}`)), dir(tuning)}}, "tuning"},
		"no list":                  {[][]confdir.File{{file("10-a.conf", []byte(`{"cniVersion": "1.0.0", "name": "a", "type": "ptp"}`)), dir(tuning)}}, "ptp"},
		"half written":             {[][]confdir.File{{list(""), dir(tuning)}, {list(""), dir(file("20-tuning.conf", tuning.Data[:10]))}}, "ptp tuning"},
		"half written from before": {[][]confdir.File{{list(""), dir(file("20-tuning.conf", tuning.Data[:10]))}}, ""},
		"unreadable":               {[][]confdir.File{{list(""), dir(confdir.File{Name: "20-tuning.conf", Err: fs.ErrPermission})}}, ""},
		"removed":                  {[][]confdir.File{{list(""), dir(tuning)}, {list("")}}, "ptp"},
	} {
		t.Run(name, func(t *testing.T) {
			s := choose(c.steps...)
			var types []string
			if s.Default != nil {
				for _, p := range s.Default.Network.Plugins {
					types = append(types, p.Type)
				}
			}
			if have := strings.Join(types, " "); have != c.want {
				t.Errorf("plugins %q, want %q; notes %q", have, c.want, s.Notes)
			}
			if c.want == "" && !strings.Contains(strings.Join(s.Notes, "\n"), "a/20-tuning.conf: ") {
				t.Errorf("notes %q do not name the file", s.Notes)
			}
			if s.Default == nil {
				return
			}
			// What is remembered needs no directory.
			if n, err := plan.ParseNetwork(s.Default.Data, ""); err != nil || len(n.Plugins) != len(types) {
				t.Errorf("remembered as %s: %v", s.Default.Data, err)
			}
		})
	}
}

func TestPluginsOfADirectoryAreThoseThatLibcniReads(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"10-a.conflist": `{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "ptp"}, {"type": "portmap", "capabilities": {"portMappings": true}}]}`,
		"a/b.conf":      `{"type": "tuning"}`, "a/a.conf": ` {"type": "sbr", "x": 1} `, "a/c.json": `{"type": "no"}`, "a/d.conflist": `{"type": "no"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := libcni.ConfListFromFile(filepath.Join(dir, "10-a.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := confdir.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	have := confdir.Choose(files, confdir.State{}).Default
	if have == nil || len(have.Network.Plugins) != len(want.Plugins) {
		t.Fatalf("have %+v, want %d plugins", have, len(want.Plugins))
	}
	for i, p := range have.Network.Plugins {
		if p.Type != want.Plugins[i].Network.Type {
			t.Errorf("plugin %d is %s, want %s", i+1, p.Type, want.Plugins[i].Network.Type)
		}
	}
}
