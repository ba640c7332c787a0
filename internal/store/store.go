package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// FileName is the store's usual name in the state directory of the daemon.
const FileName = "braid.db"

// ErrLocked is returned by Open while another process has the store open.
var ErrLocked = errors.New("another braidd has it open; stop that one first, two daemons on one node would undo each other's work")

var errClosed = errors.New("it is closed")

var (
	bucketMeta        = []byte("meta")
	bucketAttachments = []byte("attachments")
	bucketQuarantine  = []byte("quarantine")
	keyVersion        = []byte("version")
	keyProbe          = []byte("probe")
	// keyMissing is there until Rebuilt.
	keyMissing = []byte("missing")
)

// version is the layout of the buckets. A daemon refuses a store that a later
// version of Braid has changed.
const version = "1"

// Store is the open database. All methods may be called concurrently.
type Store struct {
	path string
	file file

	writes chan write
	closed chan struct{} // closed by Close: no more writes are taken
	done   chan struct{} // closed by the writer when it has ended

	mu    sync.Mutex
	last  error     // outcome of the last commit
	began time.Time // when the commit under way began, zero when there is none
	aside []Aside   // files that could not be read
}

// write is one change that waits for the next commit.
type write struct {
	apply func(*bbolt.Tx) error
	done  chan error // buffered: the writer never waits for a caller
}

// lockWait is how long Open waits for another process to close the store:
// enough for a daemon that is being replaced.
const lockWait = 5 * time.Second

// Open opens or creates the store, a file with its directory. While another
// process has it open it waits, for 5 seconds at most, or until the deadline of
// ctx. Records that cannot be read are set aside, see DamagedError. So is a file
// that is no store of this version at all: what can be read of it is carried
// over into a new one, see Aside and Missing. A file that can be read but not
// written is opened to be read, see Healthy.
func Open(ctx context.Context, path string) (*Store, error) {
	wait := lockWait
	if deadline, ok := ctx.Deadline(); ok {
		// 0 would be for ever.
		wait = max(min(wait, time.Until(deadline)), time.Millisecond)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		path:   path,
		writes: make(chan write, 64),
		closed: make(chan struct{}),
		done:   make(chan struct{}),
	}
	if err := s.open(wait); err != nil {
		if errors.Is(err, berrors.ErrTimeout) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	go s.commitLoop()
	return s, nil
}

// prepare makes the buckets, checks the version and sets damaged records aside.
func prepare(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketMeta, bucketAttachments, bucketQuarantine} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	switch v := meta.Get(keyVersion); {
	case v == nil:
		if err := errors.Join(meta.Put(keyVersion, []byte(version)), meta.Put(keyMissing, []byte{1})); err != nil {
			return err
		}
	case string(v) != version:
		return &foreignError{fmt.Errorf("it has layout version %q, this version of Braid knows %s", v, version)}
	}
	_, damaged := collect(tx, nil)
	return quarantine(tx, damaged)
}

// Close finishes the writes under way and releases the file.
func (s *Store) Close() error {
	s.mu.Lock()
	select {
	case <-s.closed:
		s.mu.Unlock()
		<-s.done
		return nil
	default:
		close(s.closed)
	}
	s.mu.Unlock()
	<-s.done
	return s.file.close()
}

// Begin stores records, all of them or none. It is durable when it returns
// nil. An error leaves open whether they are stored, so the caller treats them
// as if they were.
func (s *Store) Begin(ctx context.Context, records []Record) error {
	entries, err := encodeAll(records)
	if err != nil {
		return err
	}
	return s.write(ctx, func(tx *bbolt.Tx) error { return put(tx, entries) })
}

// Attached replaces records by what their ADDs made of them, all of them or
// none: each has its result. One that is not in the store, or damaged there, is
// an error. (The caller has them whole. Were only the results passed, the rest
// would be decoded and encoded again while other changes wait.)
func (s *Store) Attached(ctx context.Context, records ...Record) error {
	for _, r := range records {
		if !r.Complete() {
			return fmt.Errorf("store result of %v: there is none", r.Key())
		}
	}
	entries, err := encodeAll(records)
	if err != nil {
		return err
	}
	// An outcome of this one change must not fail those committed with it.
	var refused error
	err = s.write(ctx, func(tx *bbolt.Tx) error {
		if refused = began(tx, records, entries); refused != nil {
			return nil
		}
		return put(tx, entries)
	})
	if err != nil {
		return err
	}
	return refused
}

// began refuses records of which none lies in the store intact.
func began(tx *bbolt.Tx, records []Record, entries []entry) error {
	for i, e := range entries {
		if _, err := unseal(tx.Bucket(bucketAttachments).Get(e.key)); err != nil {
			return fmt.Errorf("store result: record of %v: %w", records[i].Key(), err)
		}
	}
	return nil
}

// Remove forgets records, damaged ones included. Removing what is not there
// succeeds.
func (s *Store) Remove(ctx context.Context, keys ...Key) error {
	encoded := make([][]byte, len(keys))
	for i, k := range keys {
		key, err := k.encode()
		if err != nil {
			return fmt.Errorf("remove record: %w", err)
		}
		encoded[i] = key
	}
	return s.write(ctx, func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketAttachments, bucketQuarantine} {
			b := tx.Bucket(name)
			for _, key := range encoded {
				if err := b.Delete(key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Rebuild stores records in place of damaged ones, all of it or nothing. The
// damaged ones are forgotten.
func (s *Store) Rebuild(ctx context.Context, records []Record, damaged []Key) error {
	entries, err := encodeAll(records)
	if err != nil {
		return err
	}
	var forget [][]byte
	for _, k := range damaged {
		key, err := k.encode()
		if err != nil {
			return fmt.Errorf("forget damaged record: %w", err)
		}
		forget = append(forget, key)
	}
	for _, e := range entries {
		forget = append(forget, e.key)
	}
	return s.write(ctx, func(tx *bbolt.Tx) error {
		for _, key := range forget {
			if err := tx.Bucket(bucketQuarantine).Delete(key); err != nil {
				return err
			}
		}
		return put(tx, entries)
	})
}

// Sandbox returns the records of one sandbox in the order of its plan. When
// some cannot be read it returns the others and a *DamagedError, which names
// them again until they are removed.
func (s *Store) Sandbox(containerID, ifName string) ([]Record, error) {
	if _, err := (Key{ContainerID: containerID, IfName: ifName}).encode(); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	return s.read(sandboxPrefix(containerID, ifName))
}

// All returns every record, ordered by container, interface and plan. Damaged
// ones are reported as by Sandbox.
func (s *Store) All() ([]Record, error) { return s.read(nil) }

func (s *Store) read(prefix []byte) ([]Record, error) {
	var records []Record
	var found, earlier []damagedRecord
	err := s.view(func(tx *bbolt.Tx) error {
		records, found = collect(tx, prefix)
		earlier = quarantined(tx, prefix)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read store %s: %w", s.path, err)
	}
	if len(found) > 0 {
		// Setting them aside is a service to the reader of the file; that it
		// does not succeed changes nothing for the caller.
		_ = s.write(context.Background(), func(tx *bbolt.Tx) error { return quarantine(tx, found) })
	}
	return records, damage(append(found, earlier...))
}

// Missing reports that there may be attachments which the store does not know:
// it began empty, for the first time or because its file could not be read. It
// stays so, across restarts, until Rebuilt is called.
func (s *Store) Missing() (bool, error) {
	missing := false
	err := s.view(func(tx *bbolt.Tx) error {
		missing = tx.Bucket(bucketMeta).Get(keyMissing) != nil
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("read store %s: %w", s.path, err)
	}
	return missing, nil
}

// Rebuilt notes that everything that was missing has been looked for. Damaged
// records of which not even the key can be read are forgotten.
func (s *Store) Rebuilt(ctx context.Context) error {
	return s.write(ctx, func(tx *bbolt.Tx) error {
		for _, d := range quarantined(tx, nil) {
			if d.key != (Key{}) {
				continue
			}
			if err := tx.Bucket(bucketQuarantine).Delete(d.raw); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Delete(keyMissing)
	})
}

// slowCommit is how long a commit may take before the disk counts as one that
// hangs. Slow disks need tenths of a second.
const slowCommit = 2 * time.Second

// Healthy reports why records cannot be written at the moment, nil when they
// can. After a failed commit it tries a small one, for as long as ctx lasts.
func (s *Store) Healthy(ctx context.Context) error {
	s.mu.Lock()
	last, began := s.last, s.began
	s.mu.Unlock()
	if !began.IsZero() && time.Since(began) > slowCommit {
		return fmt.Errorf("write store %s: a write has not ended for %v; the disk hangs", s.path, time.Since(began).Round(time.Second))
	}
	if last == nil {
		return nil
	}
	return s.write(ctx, func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyProbe, []byte{1})
	})
}

// write has apply committed and waits for it, or for ctx.
func (s *Store) write(ctx context.Context, apply func(*bbolt.Tx) error) error {
	w := write{apply: apply, done: make(chan error, 1)}
	select {
	case <-s.closed:
		return fmt.Errorf("write store %s: %w", s.path, errClosed)
	default:
	}
	select {
	case s.writes <- w:
	case <-s.closed:
		return fmt.Errorf("write store %s: %w", s.path, errClosed)
	case <-ctx.Done():
		return fmt.Errorf("write store %s: %w", s.path, context.Cause(ctx))
	}
	var err error
	select {
	case err = <-w.done:
	case <-s.done:
		// The writer answers everything it took before it ends.
		select {
		case err = <-w.done:
		default:
			err = errClosed
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("write store %s: %w", s.path, err)
	}
	return nil
}

// maxGroup bounds one commit.
const maxGroup = 256

// commitLoop is the only writer. A lone change is committed at once; those
// that arrive during a commit share the next one, so that many parallel ADDs
// cost a few fsyncs and not one each. (bbolt's own Batch would make a lone
// change wait for company first.)
func (s *Store) commitLoop() {
	defer close(s.done)
	for {
		select {
		case w := <-s.writes:
			s.commit(s.group(w))
		case <-s.closed:
			for {
				select {
				case w := <-s.writes:
					s.commit(s.group(w))
				default:
					return
				}
			}
		}
	}
}

func (s *Store) group(first write) []write {
	ws := []write{first}
	for len(ws) < maxGroup {
		select {
		case w := <-s.writes:
			ws = append(ws, w)
		default:
			return ws
		}
	}
	return ws
}

func (s *Store) commit(ws []write) {
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	err := s.update(func(tx *bbolt.Tx) error {
		for _, w := range ws {
			if err := w.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})
	s.mu.Lock()
	s.last, s.began = err, time.Time{}
	s.mu.Unlock()
	for _, w := range ws {
		w.done <- err
	}
}

// collect reads the records below prefix.
func collect(tx *bbolt.Tx, prefix []byte) (records []Record, damaged []damagedRecord) {
	c := tx.Bucket(bucketAttachments).Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		key, err := decodeKey(k)
		if err == nil {
			var r Record
			if r, err = decodeRecord(key, v); err == nil {
				records = append(records, r)
				continue
			}
		}
		damaged = append(damaged, damagedRecord{raw: bytes.Clone(k), value: bytes.Clone(v), key: key, reason: err.Error()})
	}
	return records, damaged
}
