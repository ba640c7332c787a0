// Package kmod reads which files a kernel module consists of, as modprobe does.
package kmod

import (
	"path/filepath"
	"slices"
	"strings"
)

// Deps maps the names of a kernel's modules to the files to load for each, in
// the order of loading, relative to the kernel's module directory.
type Deps map[string][]string

// Parse reads modules.dep(5), "file: dependency…" per line, where each
// dependency needs those to the right of it, and modules.builtin, a file per
// line, of which there is nothing to load. Other lines are left out.
func Parse(dep, builtin string) Deps {
	deps := Deps{}
	for line := range strings.Lines(builtin) {
		deps[name(strings.TrimSpace(line))] = []string{}
	}
	for line := range strings.Lines(dep) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		files := append([]string{file}, strings.Fields(rest)...)
		slices.Reverse(files)
		deps[name(file)] = files
	}
	return deps
}

// Files returns the files to load for a module, the module's own last: none for
// one that is built in, nil when there is no such module.
func (d Deps) Files(module string) []string { return d[name(module)] }

// name is the name of the module in file; the kernel does not distinguish '-'
// and '_' in it.
func name(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}
