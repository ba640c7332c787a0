// Package install puts a program where others run it from, at any time.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Program copies the program from into the directory to, under its own base
// name. The old program is replaced by a rename: whoever runs it goes on with
// it, and nobody ever finds half a file or none. An equal program is left
// alone, so that doing it again changes nothing.
func Program(from, to string) error {
	target := filepath.Join(to, filepath.Base(from))
	if err := program(from, target); err != nil {
		return fmt.Errorf("install %s as %s: %w", from, target, err)
	}
	return nil
}

func program(from, target string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if same, err := installed(src, target); same || err != nil {
		return err
	}
	// Beside the target, because a rename works within one file system only.
	// A dot in front keeps it from being taken for a plugin.
	tmp, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, copyErr := io.Copy(tmp, src)
	// Sync before the rename: otherwise a power cut may leave the new name
	// with no content.
	err = errors.Join(copyErr, tmp.Chmod(0o755), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), target)
}

// installed reports whether target is an executable file with src's content.
// It leaves src at its beginning.
func installed(src *os.File, target string) (bool, error) {
	have, err := os.Open(target)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer have.Close()
	info, err := have.Stat()
	if err != nil {
		return false, err
	}
	if info.IsDir() {
		return false, errors.New("the target is a directory")
	}
	same, err := equal(src, have)
	if err != nil {
		return false, err
	}
	_, err = src.Seek(0, io.SeekStart)
	return same && info.Mode().Perm() == 0o755, err
}

func equal(a, b io.Reader) (bool, error) {
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		endA, endB := isEnd(errA), isEnd(errB)
		switch {
		case errA != nil && !endA:
			return false, errA
		case errB != nil && !endB:
			return false, errB
		case endA || endB:
			return endA == endB, nil
		}
	}
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
