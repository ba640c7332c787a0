package braid_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "braid.dev/braid/"

// wall is a rule about imports: only the packages in allowed, as patterns of
// path.Match below the module, may import what is below forbidden.
type wall struct {
	forbidden string
	allowed   []string
	why       string
}

var walls = []wall{
	{"k8s.io/client-go", []string{"internal/kube"}, "one door to the cluster"},
	{"k8s.io/cri-api", []string{"internal/cri"}, "one door to the runtime"},
	{"k8s.io/kubelet", []string{"internal/devices", "internal/devices/kubelettest", "internal/demo/deviceplugin"}, "one door to the kubelet"},
	{"google.golang.org/grpc", []string{"internal/cri", "internal/devices", "internal/devices/kubelettest", "internal/demo/deviceplugin"}, "sockets of the node's services, and no other"},
	{"github.com/vishvananda/netlink", []string{"internal/rtnl"}, "one door to the kernel's links"},
	{"github.com/prometheus", []string{"internal/metrics"}, "one place for the names of metrics"},
	{"github.com/vishvananda/netns", nil, "internal/netns holds namespaces by descriptor"},
	{module + "internal/daemon", []string{"cmd/braidd"}, "only braidd serves the shim"},
	{module + "internal/lab", []string{"cmd/braid", "internal/demo", "internal/lab/*"}, "the lab tests Braid, it is no part of it"},
}

// pure packages decide; they must reach neither the kernel nor the cluster,
// not even through somebody else.
var pure = []string{
	"internal/plan", "internal/wire", "internal/status", "internal/topology",
	"internal/ipam", "internal/ipam/request", "internal/ipam/static", "internal/ipam/hostlocal",
	"internal/migrate", "internal/migrate/facts", "internal/migrate/preflight", "internal/migrate/probe/round",
}

var impure = []string{
	"k8s.io/client-go", "github.com/vishvananda/netlink",
	module + "internal/netns", module + "internal/rtnl", module + "internal/kube",
}

func TestImportsRespectTheWalls(t *testing.T) {
	for _, line := range goList(t, "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...") {
		importer, imports, _ := strings.Cut(line, " ")
		pkg := strings.TrimPrefix(importer, module)
		for _, imp := range strings.Fields(imports) {
			for _, w := range walls {
				if below(imp, w.forbidden) && !below(importer, w.forbidden) && !matches(pkg, w.allowed) {
					t.Errorf("%s imports %s: %s (allowed: %v)", pkg, imp, w.why, w.allowed)
				}
			}
			if driver(pkg) != "" && driver(strings.TrimPrefix(imp, module)) != "" && driver(pkg) != driver(strings.TrimPrefix(imp, module)) {
				t.Errorf("%s imports %s: drivers stand alone", pkg, imp)
			}
		}
		for _, bad := range []string{"util", "utils", "common", "helpers", "types", "manager"} {
			if filepath.Base(pkg) == bad {
				t.Errorf("%s: a package is named by what it is about", pkg)
			}
		}
	}
}

func TestPurePackagesReachNoKernelAndNoCluster(t *testing.T) {
	for _, pkg := range pure {
		for _, dep := range goList(t, "-deps", "./"+pkg) {
			for _, bad := range impure {
				if below(dep, bad) {
					t.Errorf("%s depends on %s", pkg, dep)
				}
			}
		}
	}
}

// The shim is started for every verb of every pod, so it is paid for in
// start-up time and memory by the whole node.
func TestShimDependsOnTheStandardLibraryOnly(t *testing.T) {
	for _, dep := range goList(t, "-deps", "-f", `{{if not .Standard}}{{.ImportPath}}{{end}}`, "./cmd/braid-cni") {
		if dep != "" && !below(dep, module+"cmd/braid-cni") && dep != module+"internal/wire" {
			t.Errorf("braid-cni depends on %s", dep)
		}
	}
}

func TestOnlyNetnsMovesThreadsBetweenNamespaces(t *testing.T) {
	eachGoFile(t, func(path string, f *ast.File) {
		if strings.HasPrefix(path, "internal/netns/") || strings.HasSuffix(path, "_test.go") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && (sel.Sel.Name == "LockOSThread" || sel.Sel.Name == "Setns") {
				t.Errorf("%s uses %s: only internal/netns may", path, sel.Sel.Name)
			}
			return true
		})
	})
}

// TestEveryTestOfTheClusterTierIsRun: which those are is said by their names.
func TestEveryTestOfTheClusterTierIsRun(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\tBRAID_TIER=cluster go test .* -run '(.+)' .*\./internal/e2e`).FindSubmatch(makefile)
	if m == nil {
		t.Fatal("make test-cluster does not run internal/e2e")
	}
	run := regexp.MustCompile(string(m[1]))
	eachGoFile(t, func(path string, f *ast.File) {
		if filepath.Dir(path) != "internal/e2e" {
			return
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" && !run.MatchString(fn.Name.Name) {
				t.Errorf("%s: make test-cluster does not run %s", path, fn.Name.Name)
			}
		}
	})
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, line := range goList(t, "-f", `{{.ImportPath}}{{"\t"}}{{len .GoFiles}}{{"\t"}}{{.Doc}}`, "./...") {
		fields := strings.SplitN(line, "\t", 3)
		if len(fields) == 3 && fields[1] != "0" && fields[2] == "" {
			t.Errorf("%s has no package sentence", fields[0])
		}
	}
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// eachGoFile calls visit for every Go file of this module.
func eachGoFile(t *testing.T, visit func(path string, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == "lab" || path == "out" || strings.HasPrefix(d.Name(), ".") && path != "."):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil {
			visit(path, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// below reports whether the package path is base or lies under it.
func below(path, base string) bool {
	return path == base || strings.HasPrefix(path, base+"/")
}

func matches(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := filepath.Match(p, pkg)
		return ok
	})
}

// driver is the name of the driver that pkg belongs to, empty for others.
func driver(pkg string) string {
	rest, ok := strings.CutPrefix(pkg, "internal/driver/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}
