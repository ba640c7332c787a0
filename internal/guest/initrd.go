package guest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"braid.dev/braid/internal/guest/control"
	"braid.dev/braid/internal/guest/kmod"
)

// rootModules are what it takes to mount the host's tree under QEMU.
var rootModules = []string{"virtio_pci", "virtiofs"}

// writeInitrd writes the initial file tree of Debian's kernel, which has
// virtio as modules: init, and those modules.
func writeInitrd(c Config) error {
	program, err := os.ReadFile(c.Init)
	if err != nil {
		return err
	}
	var a cpio
	a.add("init", 0o100755, program)
	a.add("dev", 0o040755, nil)
	a.add("root", 0o040755, nil)
	a.add(control.InitrdModules[1:], 0o040755, nil)
	files, err := c.linux.files(rootModules)
	if err != nil {
		return err
	}
	for i, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("%s/%02d-%s", control.InitrdModules[1:], i, filepath.Base(file)), 0o100644, data)
	}
	return os.WriteFile(filepath.Join(c.Dir, initrdName), a.bytes(), 0o600)
}

// files are the files of modules and of what they need, each once, in the
// order of loading.
func (l linux) files(modules []string) ([]string, error) {
	dir := filepath.Join(l.modules, l.release)
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	deps := kmod.Parse(string(text), "")
	var files []string
	for _, m := range modules {
		if deps.Files(m) == nil {
			return nil, fmt.Errorf("no module %s in %s", m, dir)
		}
		for _, file := range deps.Files(m) {
			if file = filepath.Join(dir, file); !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// cpio is an archive in the format "newc", which the kernel unpacks into its
// first root: Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	buf   bytes.Buffer
	files int
}

// add appends a file or directory; mode is that of stat(2), the file type included.
func (a *cpio) add(name string, mode uint32, data []byte) {
	a.files++
	fields := []any{
		a.files, mode, 0, 0, 1, 0, len(data), // inode, mode, owner, group, links, time, size
		0, 0, 0, 0, len(name) + 1, 0, // devices, length of the name, checksum
	}
	a.buf.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(&a.buf, "%08X", f)
	}
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

// pad fills up to a multiple of four bytes.
func (a *cpio) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

// bytes is the whole archive, with the entry that ends it.
func (a *cpio) bytes() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
