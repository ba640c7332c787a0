package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"go.etcd.io/bbolt"
)

// Key identifies a record: one attachment of one sandbox.
type Key struct {
	ContainerID string
	// IfName is the CNI_IFNAME of the sandbox, not the attachment's own.
	IfName string
	Index  int
}

// String names the record in a message.
func (k Key) String() string {
	return fmt.Sprintf("container %s, interface %s, attachment %d", k.ContainerID, k.IfName, k.Index)
}

// maxPart bounds each of a key's names. CNI limits neither; container runtimes
// use 64 hexadecimal digits, and Linux 15 characters.
const maxPart = 1024

// encode is the key on disk. Its parts end in a zero byte, which neither a
// container id nor an interface name can hold (CNI specification 1.1, section
// 2), and the index is big-endian, so a sandbox's records lie together in the
// order of the plan.
func (k Key) encode() ([]byte, error) {
	for _, part := range []string{k.ContainerID, k.IfName} {
		if part == "" || len(part) > maxPart || bytes.IndexByte([]byte(part), 0) >= 0 {
			return nil, fmt.Errorf("%q is no name that a record can have", part)
		}
	}
	if k.Index < 0 || k.Index > math.MaxUint16 {
		return nil, fmt.Errorf("index %d of an attachment is out of range", k.Index)
	}
	return binary.BigEndian.AppendUint16(sandboxPrefix(k.ContainerID, k.IfName), uint16(k.Index)), nil
}

func sandboxPrefix(containerID, ifName string) []byte {
	b := make([]byte, 0, len(containerID)+len(ifName)+4)
	b = append(append(b, containerID...), 0)
	return append(append(b, ifName...), 0)
}

var errKey = errors.New("its key is damaged")

func decodeKey(b []byte) (Key, error) {
	id, rest, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return Key{}, errKey
	}
	ifName, index, ok := bytes.Cut(rest, []byte{0})
	if !ok || len(index) != 2 {
		return Key{}, errKey
	}
	k := Key{ContainerID: string(id), IfName: string(ifName), Index: int(binary.BigEndian.Uint16(index))}
	if _, err := k.encode(); err != nil {
		return Key{}, errKey
	}
	return k, nil
}

// format is the first byte of every value. The next four are a checksum of the
// JSON after them: bbolt has none of its own for data.
const (
	format     = 1
	headerSize = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeRecord(r Record) ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return seal(data), nil
}

// seal puts the format and the checksum before the JSON of a record.
func seal(data []byte) []byte {
	b := make([]byte, 0, headerSize+len(data))
	b = append(b, format)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(data, castagnoli))
	return append(b, data...)
}

// entry is a record as it lies in the store.
type entry struct{ key, value []byte }

func encodeAll(records []Record) ([]entry, error) {
	entries := make([]entry, len(records))
	for i, r := range records {
		key, err := r.Key().encode()
		if err != nil {
			return nil, fmt.Errorf("store attachment %s: %w", r.Attachment.IfName, err)
		}
		value, err := encodeRecord(r)
		if err != nil {
			return nil, fmt.Errorf("store attachment %s: %w", r.Attachment.IfName, err)
		}
		entries[i] = entry{key, value}
	}
	return entries, nil
}

func put(tx *bbolt.Tx, entries []entry) error {
	b := tx.Bucket(bucketAttachments)
	for _, e := range entries {
		if err := b.Put(e.key, e.value); err != nil {
			return err
		}
	}
	return nil
}

// unseal returns the JSON of a record that is as seal left it.
func unseal(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	if b[0] != format {
		return nil, fmt.Errorf("it has format %d, this version of Braid knows %d", b[0], format)
	}
	if len(b) < headerSize {
		return nil, errors.New("it is cut short")
	}
	data := b[headerSize:]
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(b[1:headerSize]) {
		return nil, errors.New("its checksum is wrong")
	}
	return data, nil
}

func decodeRecord(k Key, b []byte) (Record, error) {
	data, err := unseal(b)
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("decode it: %w", err)
	}
	if r.Key() != k {
		return Record{}, fmt.Errorf("it speaks of %v", r.Key())
	}
	return r, nil
}
