package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Aside is a file that was no store, or none any more. It was renamed and a new
// one begun in its place.
type Aside struct {
	// Path is where it is now.
	Path string
	// Reason says why it could not be used.
	Reason string
	// Saved is how many records could be carried over.
	Saved int
}

// String says what happened to the file.
func (a Aside) String() string {
	return fmt.Sprintf("%s; it is kept as %s, and a new one was begun with the %d records that could be read", a.Reason, a.Path, a.Saved)
}

// Aside lists the files that were set aside since Open began, oldest first.
func (s *Store) Aside() []Aside {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.aside)
}

// maxAside is how many files that were set aside are kept. A disk that damages
// one file after the other must not be filled by them.
const maxAside = 5

// file is the database as it is open now.
type file struct {
	mu sync.RWMutex // write-locked to replace db
	db *bbolt.DB
	// lock is what bbolt opened, which has the lock of the file. See abandon.
	lock *os.File
	// readOnly is why the file could not be opened for writing, nil when it is.
	readOnly error
}

// abandon gives up a file that bbolt has panicked on and that can therefore not
// be closed by it, as it may hold locks of its own. Its mapping stays until the
// process ends, and would keep the lock if it was not given back.
func abandon(lock *os.File) {
	if lock != nil {
		_ = errors.Join(syscall.Flock(int(lock.Fd()), syscall.LOCK_UN), lock.Close())
	}
}

func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return guard(f.db.Close)
}

// damagedError is a file that bbolt cannot work with.
type damagedError struct{ panicked any }

func (e *damagedError) Error() string { return fmt.Sprintf("the file is damaged (%v)", e.panicked) }

// foreignError is a file of which bbolt has no complaint, but Braid has.
type foreignError struct{ err error }

func (e *foreignError) Error() string { return e.err.Error() }

// guard turns a panic of bbolt on a damaged page, and a fault on a file that
// was truncated under its mapping, into an error.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &damagedError{r}
		}
	}()
	return fn()
}

// unusable reports that an error of opening the file will be the same for ever:
// it is about the file's content and not about the disk, rights or a lock.
func unusable(err error) bool {
	var errno syscall.Errno
	return err != nil && !errors.As(err, &errno) && !errors.Is(err, berrors.ErrTimeout)
}

// open opens the file as well as it can be: as it is, anew, or to be read.
func (s *Store) open(wait time.Duration) error {
	_, statErr := os.Stat(s.path)
	created := errors.Is(statErr, os.ErrNotExist)
	err := s.file.open(s.path, wait)
	switch {
	case err == nil:
		return nil
	case created && !errors.Is(err, berrors.ErrTimeout):
		// Half a new file would be taken for a damaged one.
		return errors.Join(err, os.RemoveAll(s.path))
	case unusable(err):
		return s.replace(err, wait)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return s.file.openToRead(s.path, wait, err)
	}
	return err
}

// replace sets the file aside for the given reason, begins a new one and carries
// over what can be read of the old one.
func (s *Store) replace(reason error, wait time.Duration) error {
	old := s.file.lock
	path, err := moveAside(s.path)
	if err != nil {
		return errors.Join(reason, err)
	}
	if err := s.file.open(s.path, wait); err != nil {
		// A daemon that comes later may have more luck with the new file.
		return errors.Join(reason, err, os.Rename(path, s.path))
	}
	abandon(old)
	saved := salvage(path)
	entries, err := encodeAll(saved)
	if err == nil {
		err = guard(func() error {
			return s.file.db.Update(func(tx *bbolt.Tx) error { return put(tx, entries) })
		})
	}
	if err != nil {
		return errors.Join(reason, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aside = append(s.aside, Aside{Path: path, Reason: reason.Error(), Saved: len(saved)})
	return nil
}

// open opens the database for writing. After an error nothing is open.
func (f *file) open(path string, wait time.Duration) error {
	var lock *os.File
	var db *bbolt.DB
	err := guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:      wait,
			FreelistType: bbolt.FreelistMapType,
			OpenFile:     remember(&lock),
		})
		if err != nil {
			return err
		}
		return db.Update(prepare)
	})
	var damaged *damagedError
	switch {
	case err == nil:
		f.db, f.lock, f.readOnly = db, lock, nil
	case errors.As(err, &damaged):
		abandon(lock)
	case db != nil:
		err = errors.Join(err, guard(db.Close))
	}
	return err
}

// remember is os.OpenFile for bbolt, and keeps what it opened.
func remember(opened **os.File) func(string, int, os.FileMode) (*os.File, error) {
	return func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, mode)
		*opened = f
		return f, err
	}
}

// openToRead opens a database that cannot be written, for the given reason.
func (f *file) openToRead(path string, wait time.Duration, reason error) error {
	err := guard(func() (err error) {
		f.db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: wait})
		return err
	})
	if err != nil {
		return errors.Join(reason, err)
	}
	err = guard(func() error {
		return f.db.View(func(tx *bbolt.Tx) error {
			if v := tx.Bucket(bucketMeta); v == nil || string(v.Get(keyVersion)) != version {
				return errors.New("it is no store of this version")
			}
			return nil
		})
	})
	if err != nil {
		return errors.Join(reason, err, guard(f.db.Close))
	}
	f.readOnly = reason
	return nil
}

// view reads. A file that turns out to be damaged is set aside, and the new one
// is read.
func (s *Store) view(fn func(*bbolt.Tx) error) error {
	db, err := s.file.view(fn)
	if s.heal(db, err) {
		_, err = s.file.view(fn)
	}
	return err
}

func (f *file) view(fn func(*bbolt.Tx) error) (*bbolt.DB, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.db, guard(func() error { return f.db.View(fn) })
}

// update commits, and heals as view does. It is for the writer alone.
func (s *Store) update(fn func(*bbolt.Tx) error) error {
	if s.file.onlyRead() {
		if err := s.reopen(); err != nil {
			return err
		}
	}
	db, err := s.file.update(fn)
	if s.heal(db, err) {
		_, err = s.file.update(fn)
	}
	return err
}

func (f *file) update(fn func(*bbolt.Tx) error) (*bbolt.DB, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.db, guard(func() error { return f.db.Update(fn) })
}

// heal replaces db when err says that it is damaged. It reports whether another
// attempt makes sense.
func (s *Store) heal(db *bbolt.DB, err error) bool {
	var damaged *damagedError
	if !errors.As(err, &damaged) {
		return false
	}
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	if s.file.db != db {
		return true // somebody else was faster
	}
	return s.replace(err, lockWait) == nil
}

func (f *file) onlyRead() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.readOnly != nil
}

// reopen opens a file for writing that could only be read so far.
func (s *Store) reopen() error {
	s.file.mu.Lock()
	defer s.file.mu.Unlock()
	// The lock that is held for reading is in the way of the one for writing.
	if err := guard(s.file.db.Close); err != nil {
		return err
	}
	if err := s.file.open(s.path, lockWait); err != nil {
		return errors.Join(err, s.file.openToRead(s.path, lockWait, err))
	}
	return nil
}

// moveAside renames the file to a name that says since when it is damaged.
func moveAside(path string) (string, error) {
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(path, aside); err != nil {
		return "", err
	}
	kept, err := filepath.Glob(path + ".damaged-*")
	if err != nil {
		return aside, nil // the pattern is a name of ours
	}
	slices.Sort(kept)
	for _, name := range kept[:max(0, len(kept)-maxAside)] {
		_ = os.Remove(name) // one more file is no harm
	}
	return aside, nil
}

// salvage reads what can be read of a damaged file: from the front up to the
// first page that cannot be read, and from the back.
func salvage(path string) []Record {
	var db *bbolt.DB
	var lock *os.File
	err := guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockWait, OpenFile: remember(&lock)})
		return err
	})
	defer abandon(lock)
	if err != nil {
		return nil
	}
	found := map[Key]Record{}
	for _, step := range []func(*bbolt.Cursor, bool) ([]byte, []byte){forward, backward} {
		_ = guard(func() error {
			return db.View(func(tx *bbolt.Tx) error {
				b := tx.Bucket(bucketAttachments)
				if b == nil {
					return nil
				}
				c := b.Cursor()
				for k, v := step(c, true); k != nil; k, v = step(c, false) {
					if key, err := decodeKey(k); err == nil {
						if r, err := decodeRecord(key, v); err == nil {
							found[key] = r
						}
					}
				}
				return nil
			})
		})
	}
	records := make([]Record, 0, len(found))
	for _, r := range found {
		records = append(records, r)
	}
	return records
}

func forward(c *bbolt.Cursor, first bool) ([]byte, []byte) {
	if first {
		return c.First()
	}
	return c.Next()
}

func backward(c *bbolt.Cursor, first bool) ([]byte, []byte) {
	if first {
		return c.Last()
	}
	return c.Prev()
}
