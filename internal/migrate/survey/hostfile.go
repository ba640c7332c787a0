package survey

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/hostexec"
)

// hostFiles reads the host's files. Symbolic links are followed as the host
// follows them, absolute ones within its tree.
type hostFiles struct{ root hostexec.Root }

// open opens a path of the host. Nothing is waited for, as with a pipe.
func (h hostFiles) open(path string) (*os.File, error) {
	root, err := unix.Open(h.root.Path("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: h.root.Path("/"), Err: err}
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	fd, err := unix.Openat2(root, path, &how)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // before Linux 5.6, or a filter of system calls
		fd, err = unix.Open(h.root.Path(path), int(how.Flags), 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// read returns a regular file's text. A longer one is cut, with more set.
func (h hostFiles) read(path string, limit int) (text string, more bool, err error) {
	f, err := h.open(path)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", false, errors.Join(fmt.Errorf("%s is no regular file", path), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return "", false, err
	}
	if len(data) > limit {
		data, more = data[:limit], true
	}
	return strings.ToValidUTF8(string(data), "�"), more, nil
}

// word is the text of a short file without blanks around it, or nothing.
func (h hostFiles) word(path string) string {
	text, _, err := h.read(path, 4096)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(text)
}

// list returns a directory's entries by name, limit at most.
func (h hostFiles) list(path string, limit int) (entries []fs.DirEntry, more bool, err error) {
	f, err := h.open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	entries, err = f.ReadDir(limit + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("read directory %s: %w", path, err)
	}
	if len(entries) > limit {
		entries, more = entries[:limit], true
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, more, nil
}

// magic is the type of the file system that a directory of the host is on.
func (h hostFiles) magic(path string) int64 {
	var st unix.Statfs_t
	f, err := h.open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Fstatfs(int(f.Fd()), &st) != nil {
		return 0
	}
	return int64(st.Type)
}

// program tells whether a directory entry may be one that can be executed. A
// link's target is looked at as the host sees it.
func (h hostFiles) program(dir string, e fs.DirEntry) bool {
	f, err := h.open(filepath.Join(dir, e.Name()))
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
