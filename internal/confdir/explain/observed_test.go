package explain_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/confdir/explain"
)

var observe = flag.Bool("observe", false, "build the runtimes' own libraries and write testdata/observed anew")

// The programs of testdata/observe contain the libraries with which runtimes
// load their conf dirs, in the versions that they were released with; CRI-O's
// with the libcni of today.
var observers = []struct {
	runtime string
	dir     string
	build   []string
	limits  []int
}{
	{"containerd-1.6", "containerd", []string{"-modfile=1.6.mod"}, []int{1, 2, 0}},
	{"containerd-1.7", "containerd", []string{"-modfile=1.7.mod"}, []int{1, 2, 0}},
	{"containerd-2.0", "containerd", []string{"-modfile=2.0.mod"}, []int{1, 2, 0}},
	{"cri-o", "cri-o", nil, []int{1}},
}

// programs are the plugins of the runtimes that ask for them.
var programs = map[string]explain.Program{
	"ptp":        {Versions: []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}},
	"bridge":     {Versions: []string{"0.4.0", "1.0.0"}},
	"macvlan":    {Versions: []string{"0.4.0"}},
	"tuning":     {Versions: []string{"0.4.0", "1.0.0"}},
	"portmap":    {Versions: []string{"0.3.1"}},
	"flannel":    {Versions: []string{"0.3.1"}},
	"cilium-cni": {Versions: []string{"0.3.1", "1.0.0"}},
}

// TestExplanationsAgreeWithObservations compares the explanation of each
// directory with what a runtime's own library loaded from it when that was last
// tried (go test -args -observe).
func TestExplanationsAgreeWithObservations(t *testing.T) {
	for _, o := range observers {
		t.Run(o.runtime, func(t *testing.T) {
			path := filepath.Join("testdata", "observed", o.runtime+".txt")
			program := ""
			if *observe {
				program = filepath.Join(t.TempDir(), "observe")
				build := exec.Command("go", append(append([]string{"build", "-o", program}, o.build...), ".")...)
				build.Dir = filepath.Join("testdata", "observe", o.dir)
				if out, err := build.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			bin := plugins(t)
			var have, observed []string
			for _, limit := range o.limits {
				for _, d := range slices.Concat(traps(), generated(30, uint64(limit))) {
					dir := filepath.Join(t.TempDir(), "net.d")
					must(t, os.Mkdir(dir, 0o755))
					d.fill(t, dir)
					key := fmt.Sprintf("max %d, %s: ", limit, d.name)
					have = append(have, key+explained(t, o.runtime, dir, limit))
					if *observe {
						out, err := exec.Command(program, dir, fmt.Sprint(limit), bin).Output()
						must(t, err)
						observed = append(observed, key+parseObserved(t, out))
					}
				}
			}
			if *observe {
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must(t, os.WriteFile(path, []byte(strings.Join(observed, "\n")+"\n"), 0o644))
			}
			data, err := os.ReadFile(path)
			must(t, err)
			want := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
			if len(have) != len(want) {
				t.Fatalf("%d directories, %d were observed", len(have), len(want))
			}
			for i := range have {
				if have[i] != want[i] {
					t.Errorf("explained %s\nobserved  %s", have[i], want[i])
				}
			}
		})
	}
}

// plugins is a directory with the programs, which only tell their versions.
func plugins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, p := range programs {
		versions, err := json.Marshal(p.Versions)
		must(t, err)
		script := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":%s}'\n", versions)
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	}
	return dir
}

// explained is the explanation as the observations are written.
func explained(t *testing.T, runtime, dir string, limit int) string {
	t.Helper()
	files, err := explain.ReadDir(dir)
	must(t, err)
	in := explain.Input{Runtime: runtimeNamed(t, runtime), MaxConfNum: limit, Files: files}
	if runtime == "cri-o" {
		in.Programs = programs
	}
	e := explain.Explain(in)
	if e.Error != "" {
		return "nothing"
	}
	var parts []string
	for _, n := range e.Networks {
		parts = append(parts, fmt.Sprintf("%s=%q", n.IfName, n.Name))
	}
	return strings.Join(parts, " ")
}

func parseObserved(t *testing.T, out []byte) string {
	t.Helper()
	var observed struct {
		Networks []struct{ IfName, Name string }
		Failed   bool
	}
	must(t, json.Unmarshal(out, &observed))
	if observed.Failed {
		return "nothing"
	}
	var parts []string
	for _, n := range observed.Networks {
		parts = append(parts, fmt.Sprintf("%s=%q", n.IfName, n.Name))
	}
	return strings.Join(parts, " ")
}
