package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"
)

// DamagedError says that records could not be read. They are kept in the
// store's quarantine bucket, where they harm nobody, until they are removed.
type DamagedError struct {
	// Keys names the records, as far as their keys could be read.
	Keys []Key
	// Reasons says what is wrong with each, in the order in which they lie in
	// the store.
	Reasons []string
	// Guesses are records that can be read in spite of it. Any part of them may
	// be wrong; they are for when nothing better is known.
	Guesses []Record
}

// Error lists the damaged records.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("%d unreadable: %s", len(e.Reasons), strings.Join(e.Reasons, "; "))
}

// ExceptDamaged is err of a method that returned what it could read: nil when
// it is about damaged records, for a caller who works with the others.
func ExceptDamaged(err error) error {
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		return nil
	}
	return err
}

type damagedRecord struct {
	raw, value []byte
	key        Key // zero when raw is no key
	reason     string
}

// guess reads the record for what it is worth.
func (d damagedRecord) guess() (r Record, ok bool) {
	if len(d.value) < headerSize || d.value[0] != format || d.key == (Key{}) {
		return Record{}, false
	}
	err := json.Unmarshal(d.value[headerSize:], &r)
	return r, err == nil && r.Key() == d.key
}

func damage(ds []damagedRecord) error {
	if len(ds) == 0 {
		return nil
	}
	e := &DamagedError{}
	for _, d := range ds {
		name := fmt.Sprintf("record %q", d.raw)
		if d.key != (Key{}) {
			e.Keys = append(e.Keys, d.key)
			name = fmt.Sprintf("record of %v", d.key)
		}
		if r, ok := d.guess(); ok {
			e.Guesses = append(e.Guesses, r)
		}
		e.Reasons = append(e.Reasons, name+": "+d.reason)
	}
	return e
}

// quarantine moves damaged records out of the way of readers.
func quarantine(tx *bbolt.Tx, ds []damagedRecord) error {
	from, to := tx.Bucket(bucketAttachments), tx.Bucket(bucketQuarantine)
	for _, d := range ds {
		// Somebody may have written a good record since it was found.
		if !bytes.Equal(from.Get(d.raw), d.value) {
			continue
		}
		if d.key == (Key{}) {
			// It may be of any sandbox.
			if err := tx.Bucket(bucketMeta).Put(keyMissing, []byte{1}); err != nil {
				return err
			}
		}
		if err := errors.Join(to.Put(d.raw, d.value), from.Delete(d.raw)); err != nil {
			return err
		}
	}
	return nil
}

// quarantined lists what was set aside earlier.
func quarantined(tx *bbolt.Tx, prefix []byte) (ds []damagedRecord) {
	c := tx.Bucket(bucketQuarantine).Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		d := damagedRecord{raw: bytes.Clone(k), value: bytes.Clone(v), reason: "it was set aside"}
		var err error
		if d.key, err = decodeKey(k); err != nil {
			d.reason = err.Error()
		} else if _, err = decodeRecord(d.key, v); err != nil {
			d.reason = err.Error()
		}
		ds = append(ds, d)
	}
	return ds
}
