// Package snapshot keeps a copy of what somebody else knows best in a file, for
// the time when that one cannot be asked.
//
// A snapshot is JSON, one value after the other, and a checksum behind it. It
// is there in full or not at all, and one that is damaged is no snapshot: what
// it held can be had again.
package snapshot

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// ErrDamaged means a file that was cut off, changed, or never was a snapshot.
var ErrDamaged = errors.New("it is damaged")

// maxFile is the largest snapshot in bytes, so that a file that went wrong does
// not fill the memory.
const maxFile = 256 << 20

// trailer is the checksum behind the values, on a line of its own.
const trailer = "braid %08x\n"

// Values writes what the snapshot holds, the same in the same order each time.
type Values func(*json.Encoder) error

// Sum identifies the content: two snapshots with the same sum are the same.
func Sum(values Values) (uint32, error) {
	sum := newSum()
	err := values(json.NewEncoder(sum))
	return sum.Sum32(), err
}

func newSum() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// Write replaces the snapshot, readable by its owner alone. After a crash the
// file is as it was before or as it is now.
func Write(path string, values Values) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	// A fixed name: what an interrupted write left is overwritten.
	temp := filepath.Join(dir, "."+filepath.Base(path)+".tmp")
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write snapshot %s: %w", path, err), os.RemoveAll(temp))
		}
	}()
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(f, values), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func fill(f io.Writer, values Values) error {
	buffered, sum := bufio.NewWriter(f), newSum()
	if err := values(json.NewEncoder(io.MultiWriter(buffered, sum))); err != nil {
		return err
	}
	fmt.Fprintf(buffered, trailer, sum.Sum32())
	return buffered.Flush()
}

// syncDir makes a rename in the directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Read hands the snapshot's values to read, which decodes them one by one until
// io.EOF, and returns its sum. The error is fs.ErrNotExist when there is none,
// and ErrDamaged when it is not what was written.
func Read(path string, read func(*json.Decoder) error) (sum uint32, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read snapshot: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return 0, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	values, sum, err := verified(data)
	if err == nil {
		err = read(json.NewDecoder(bytes.NewReader(values)))
	}
	if err != nil {
		return 0, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	return sum, nil
}

// verified splits the trailer off and compares it.
func verified(data []byte) (values []byte, sum uint32, err error) {
	end := len(data) - len(fmt.Sprintf(trailer, 0))
	if end < 0 || len(data) > maxFile {
		return nil, 0, ErrDamaged
	}
	values = data[:end]
	h := newSum()
	h.Write(values)
	if fmt.Sprintf(trailer, h.Sum32()) != string(data[end:]) {
		return nil, 0, ErrDamaged
	}
	return values, h.Sum32(), nil
}
