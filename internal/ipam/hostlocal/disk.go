package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// disk is the real file system. File modes are the reference's.
type disk struct{}

func (d disk) MakeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return d.Sync(filepath.Dir(dir))
}

func (disk) Names(dir string) ([]string, error) {
	f, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.close()
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := uninterrupted(func() (int, error) { return unix.ReadDirent(f.fd, buf) })
		if n <= 0 || err != nil {
			return names, f.failed("readdirent", err)
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func (disk) Stat(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return stamp{
		inode:   st.Ino,
		changed: time.Unix(st.Ctim.Unix()).UnixNano(),
		size:    st.Size,
		regular: st.Mode&unix.S_IFMT == unix.S_IFREG,
	}, nil
}

// Local knows the file systems that nodes keep such files on.
func (disk) Local(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// maxRecord is far more than a container ID and an interface name need.
const maxRecord = 4096

func (disk) Read(path string) ([]byte, error) {
	f, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.close()
	data := make([]byte, 0, maxRecord)
	for len(data) < cap(data) {
		n, err := uninterrupted(func() (int, error) { return unix.Read(f.fd, data[len(data):cap(data)]) })
		if n <= 0 || err != nil {
			return data, f.failed("read", err)
		}
		data = data[:len(data)+n]
	}
	return data, nil
}

// Overwrite does not truncate the file to nothing: ext4 takes that for a file
// that is replaced, and begins to write it out when it is closed.
func (disk) Overwrite(path string, data []byte) error {
	f, err := open(path, unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		return err
	}
	if err = f.write(data); err == nil {
		err = f.failed("truncate", unix.Ftruncate(f.fd, int64(len(data))))
	}
	return errors.Join(err, f.close())
}

// Create writes at once what is shorter than a page: no signal comes in between.
func (disk) Create(path string, data []byte) error {
	f, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	if err = errors.Join(f.write(data), f.close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// file does without os.File, whose preparations for waiting cost more than
// reading an address.
type file struct {
	fd   int
	path string
}

// open opens a file that, if it is a new one, nobody but the owner can read. It
// does not wait for the other end of a pipe.
func open(path string, flags int) (file, error) {
	fd, err := uninterrupted(func() (int, error) {
		return unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	})
	f := file{fd, path}
	return f, f.failed("open", err)
}

// uninterrupted begins a call again that a signal came into, such as Go's own. A
// file system of a program or of another machine may let it.
func uninterrupted(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func (f file) write(data []byte) error {
	for len(data) > 0 {
		n, err := uninterrupted(func() (int, error) { return unix.Write(f.fd, data) })
		if err != nil {
			return f.failed("write", err)
		}
		data = data[n:] // less than all when the disk is nearly full
	}
	return nil
}

func (f file) close() error { return f.failed("close", unix.Close(f.fd)) }

func (f file) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.path, Err: err}
}

func (disk) Remove(path string) error { return os.Remove(path) }

// Sync accepts a file system that cannot sync a directory: there is no way to
// be more durable on it.
func (disk) Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// Lock polls, because a thread that sleeps in flock cannot be called back when
// ctx ends, and there is no event for a lock that becomes free. Calls of one
// process queue up before they come here, so it waits only for the reference
// plugin, which holds the lock for milliseconds.
func (disk) Lock(ctx context.Context, path string) (func(), error) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o750)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { unix.Close(fd) }, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			unix.Close(fd)
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			return nil, fmt.Errorf("another process holds it: %w", context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// readSmallFile reads a regular file of at most 1 MiB: the path comes from the
// configuration of a network and may lead to a pipe or an endless device.
func readSmallFile(path string) ([]byte, error) {
	const limit = 1 << 20
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case st.Size() > limit:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}
