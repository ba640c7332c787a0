package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/kmod"
)

// modules loads kernel modules from one directory. It does what modprobe does
// with modules.dep, without a process per module, which is slow in a guest.
type modules struct {
	dir  string
	deps kmod.Deps
}

func openModules(dir string) (modules, error) {
	data, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return modules{}, fmt.Errorf("kernel modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return modules{}, fmt.Errorf("kernel modules: %w", err)
	}
	return modules{dir: dir, deps: kmod.Parse(string(data), string(builtin))}, nil
}

// load loads a module and what it needs. One that is loaded already is fine.
func (m modules) load(name string) error {
	files := m.deps.Files(name)
	if files == nil {
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
