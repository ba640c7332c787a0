package main

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write what testdata/script compares with anew")

// TestMain lets scripts run braid itself.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"braid": main})
}

// TestScripts runs braid as a person does.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", UpdateScripts: *update})
}

// TestPlanPageShowsWhatIsPrinted runs the commands of docs/plan.md, which are
// the lines that begin with "$ bin/braid", in the root of the repository.
func TestPlanPageShowsWhatIsPrinted(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/plan.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, block := range strings.Split(string(text), "```")[1:] {
		_, block, _ = strings.Cut(block, "\n") // the rest of the fence
		command, want, _ := strings.Cut(block, "\n")
		args, ok := strings.CutPrefix(command, "$ bin/braid ")
		if !ok {
			continue
		}
		ran++
		// testscript makes the test program behave as the command it is named.
		braid := t.TempDir() + "/braid"
		if err := os.Symlink(self, braid); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(braid, strings.Fields(args)...)
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState.ExitCode() != 2 {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		if string(out) != want {
			t.Errorf("docs/plan.md shows for %s\n%s\nbut it prints\n%s", command, want, out)
		}
	}
	if ran == 0 {
		t.Error("no command in docs/plan.md")
	}
}
