package braid_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// requirements is how many the NPWG multi-network specification 1.3 has.
const requirements = 48

// TestEveryRequirementHasATest compares the table of docs/multus.md with the
// tests TestSpecNN of the tree: each requirement that Braid says it keeps has
// one, and the packages that the table names are those that have it.
func TestEveryRequirementHasATest(t *testing.T) {
	tests := specTests(t)
	text, err := os.ReadFile("docs/multus.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| (\d+) \|(.*)\|(.*)\|(.*)\|(.*)\|$`)
	seen := map[string]bool{}
	for i, m := range row.FindAllStringSubmatch(string(text), -1) {
		number, braid, packages := m[1], strings.TrimSpace(m[4]), strings.TrimSpace(m[5])
		if number != fmt.Sprint(i+1) {
			t.Errorf("row %d of docs/multus.md has number %s", i+1, number)
		}
		seen[number] = true
		without := strings.HasPrefix(braid, "later") || strings.HasPrefix(braid, "not ours")
		if have := strings.Join(tests[number], ", "); sorted(packages) != have || (have == "") != without {
			t.Errorf("requirement %s: docs/multus.md says %q with tests in %q; the tests are in %q", number, braid, packages, have)
		}
	}
	if len(seen) != requirements {
		t.Errorf("docs/multus.md has %d requirements, want %d", len(seen), requirements)
	}
	for number := range tests {
		if !seen[number] {
			t.Errorf("there are tests for requirement %s, which is not in docs/multus.md", number)
		}
	}
}

func sorted(list string) string {
	items := strings.Split(list, ", ")
	slices.Sort(items)
	return strings.Join(items, ", ")
}

// specTests are the packages below internal that hold each requirement.
func specTests(t *testing.T) map[string][]string {
	t.Helper()
	name := regexp.MustCompile(`^TestSpec(\d\d)`)
	found := map[string][]string{}
	err := filepath.WalkDir("internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), "internal/"))
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			m := name.FindStringSubmatch(fn.Name.Name)
			if m == nil {
				continue
			}
			number := strings.TrimPrefix(m[1], "0")
			if !slices.Contains(found[number], pkg) {
				found[number] = append(found[number], pkg)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for number := range found {
		slices.Sort(found[number])
	}
	return found
}
