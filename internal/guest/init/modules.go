package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// modules loads kernel modules from one directory. It does what modprobe does
// with modules.dep, without a process per module, which is slow in a guest.
type modules struct {
	dir  string
	deps map[string][]string // name to files, in the order of loading
}

func openModules(dir string) (modules, error) {
	data, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return modules{}, fmt.Errorf("kernel modules: %w", err)
	}
	return modules{dir: dir, deps: parseDeps(string(data))}, nil
}

// parseDeps reads modules.dep: "file: dependency…" per line, where each
// dependency needs those to the right of it.
func parseDeps(text string) map[string][]string {
	deps := map[string][]string{}
	for line := range strings.Lines(text) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		files := append([]string{file}, strings.Fields(rest)...)
		slices.Reverse(files)
		deps[moduleName(file)] = files
	}
	return deps
}

// moduleName is the name of the module in file; the kernel does not
// distinguish '-' and '_' in it.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

// load loads a module and what it needs. One that is loaded already is fine.
func (m modules) load(name string) error {
	files, ok := m.deps[moduleName(name)]
	if !ok {
		return fmt.Errorf("load module %s: none in %s", name, m.dir)
	}
	for _, file := range files {
		if err := loadFile(filepath.Join(m.dir, file)); err != nil {
			return fmt.Errorf("load module %s: %s: %w", name, file, err)
		}
	}
	return nil
}

func loadFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
