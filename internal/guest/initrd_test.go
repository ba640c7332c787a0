package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The layout is that of the kernel's documentation, and what its unpacker takes
// is seen by every guest under QEMU.
func TestAnArchiveIsInTheFormatNewc(t *testing.T) {
	var a cpio
	a.add("dir", 0o040755, nil)
	a.add("file", 0o100644, []byte("12345"))
	const zeros = "00000000"
	entry := func(inode, mode, size, name string) string {
		return "070701" + inode + mode + zeros + zeros + "00000001" + zeros + size + strings.Repeat(zeros, 4) + name + zeros
	}
	want := entry("00000001", "000041ED", zeros, "00000004") + "dir\x00\x00\x00" +
		entry("00000002", "000081A4", "00000005", "00000005") + "file\x00\x00" + "12345\x00\x00\x00" +
		entry("00000003", zeros, zeros, "0000000B") + "TRAILER!!!\x00\x00\x00\x00"
	if got := string(a.bytes()); got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestModulesOfTheInitialTreeAreListedOnceInOrder(t *testing.T) {
	k := linux{release: "6.1", modules: t.TempDir()}
	dir := filepath.Join(k.modules, k.release)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	dep := "v/virtio.ko:\nv/virtio_pci.ko: v/virtio.ko\nf/fuse.ko:\nf/virtiofs.ko: f/fuse.ko v/virtio.ko\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := k.files([]string{"virtio_pci", "virtiofs"})
	want := []string{dir + "/v/virtio.ko", dir + "/v/virtio_pci.ko", dir + "/f/fuse.ko", dir + "/f/virtiofs.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := k.files([]string{"nope"}); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestTheNewestKernelIsWhatThePackageDependsOn(t *testing.T) {
	name, err := dependency("linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n")
	if err != nil || name != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := dependency(""); err == nil || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("without package lists: %v", err)
	}
}
