package confswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"braid.dev/braid/internal/confdir"
)

// backup copies the conf dir, once in a migration. The copy appears whole or
// not at all, and is never overwritten.
func (c Config) backup() (err error) {
	done := c.BackupDir()
	if _, err := os.Lstat(done); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(done)
	part := filepath.Join(parent, ".conf.part") // the lock is held
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	if err := copyDir(c.Dir, part); err != nil {
		return err
	}
	if err := os.Rename(part, done); err != nil {
		return err
	}
	return errors.Join(confdir.SyncDir(parent), confdir.SyncDir(c.StateDir))
}

// copyDir copies what a conf dir may hold: files, links as the files that they
// lead to, and directories of further files. What is neither is left out.
func copyDir(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		info, err := os.Stat(source)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // a link that leads nowhere, or removed meanwhile
		case err != nil:
			return err
		case e.IsDir():
			err = copyDir(source, target)
		case info.Mode().IsRegular():
			err = copyFile(source, target, info.Mode().Perm())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return confdir.SyncDir(to)
}

func copyFile(from, to string, mode fs.FileMode) (err error) {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}
