package demo_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// shellBlocks are the contents of the ```sh blocks of a Markdown page.
func shellBlocks(page string) []string {
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(page, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// shell runs a block of the documentation, in the repository, against the lab
// of the test instead of the lab or the cluster that users have.
func (s *scenario) shell(ctx context.Context, block string) (string, error) {
	block = `kubectl() { bin/braid lab kubectl -- "$@"; }` + "\n" + block
	block = strings.ReplaceAll(block, "bin/braid lab ", "bin/braid lab --name "+s.lab.Name()+" ")
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", block)
	cmd.Dir = s.Root
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What a page tells people to run must be run by a test: either here, or it is
// one of the make targets, which CI runs, or a command that needs a cluster of
// the reader's own.
func TestEveryDocumentedCommandIsRunByATest(t *testing.T) {
	executed := map[string]bool{"docs/vlan.md": true, "docs/hotplug.md": true, "docs/install.md": true}
	known := regexp.MustCompile(`^(make (demo|test|demo-down|build|bench)|bin/braid lab (kubectl|exec|up|down|status|build|logs|kubeconfig|load|node|api|run -- bin/braid migrate)\b.*|bin/braid image build)$`)
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := filepath.Rel("../..", page)
		if executed[name] {
			continue
		}
		for _, block := range shellBlocks(string(text)) {
			for line := range strings.Lines(block) {
				if line = strings.TrimSpace(line); line != "" && !known.MatchString(line) {
					t.Errorf("%s: no test runs %q", name, line)
				}
			}
		}
	}
}

// Links in the documentation lead somewhere.
func TestDocumentationLinksLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}
