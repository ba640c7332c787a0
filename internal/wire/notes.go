package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// DefaultNotes is where the shim leaves its notes unless told otherwise.
	DefaultNotes = "/var/lib/braid/notes"
	// MaxNotes is how many notes are kept at most, and MaxNotesSize how many
	// bytes they have together: a daemon that stays away for days must not
	// cost the node its disk.
	MaxNotes     = 8192
	MaxNotesSize = 64 << 20

	noteFormat = 1
	noteSuffix = ".json"
	// noteTemp is what unfinished notes begin with. Old ones are what a crash
	// left.
	noteTemp    = ".tmp-"
	noteTempAge = time.Hour
	// maxNoteName leaves room below the kernel's 255 bytes.
	maxNoteName = 240
)

// Note is a DEL that no daemon has served yet. The shim leaves it when no
// daemon listens, and tells the runtime that the container is gone: the daemon
// owes it the DEL from then on.
type Note struct {
	// File is the note's name in its directory. There is one for each pair of
	// container and interface: a repeated DEL replaces the note of the first.
	File string `json:"-"`
	// Written is when the shim wrote it, by the clock of the node.
	Written time.Time `json:"written"`
	// Namespace is the container's at that moment, zero when it was gone already.
	Namespace Namespace `json:"namespace,omitzero"`
	Request   Request   `json:"request"`
}

// DamagedNote is a file among the notes that is none.
type DamagedNote struct {
	File string
	Err  error
}

// Error names the file and what is wrong with it.
func (d *DamagedNote) Error() string { return "note " + d.File + ": " + d.Err.Error() }

// Unwrap returns what is wrong with the file.
func (d *DamagedNote) Unwrap() error { return d.Err }

// Request is what the name of the file alone says of the DEL: a note that has
// its name was written to the end, whatever became of it. ok is false when the
// name says nothing.
func (d *DamagedNote) Request() (r Request, ok bool) {
	names, isNote := strings.CutSuffix(d.File, noteSuffix)
	id, ifName, isPair := strings.Cut(names, "@")
	r = Request{Command: "DEL", ContainerID: id, IfName: ifName}
	return r, isNote && isPair && checkNote(Note{File: d.File, Request: r}) == nil
}

// ErrTooManyNotes means that MaxNotes or MaxNotesSize is reached.
var ErrTooManyNotes = errors.New("too many notes already")

// noteFile is the frame around a note. A disk that forgets or invents a bit is
// found out by the sum.
type noteFile struct {
	Format int             `json:"format"`
	CRC32  uint32          `json:"crc32"`
	Note   json.RawMessage `json:"note"`
}

// WriteNote leaves a DEL for the next daemon. netns is the container's
// namespace, nil when it is gone. When WriteNote returns nil, the note outlasts
// a power cut.
func WriteNote(dir string, r Request, netns *os.File) (Note, error) {
	n, err := newNote(r, netns)
	if err != nil {
		return Note{}, err
	}
	data, err := encodeNote(n)
	if err != nil {
		return Note{}, err
	}
	if err := openNotes(dir); err != nil {
		return Note{}, err
	}
	if err := roomForNote(dir, n.File, int64(len(data))); err != nil {
		return Note{}, err
	}
	return n, putNote(dir, n.File, data)
}

func newNote(r Request, netns *os.File) (Note, error) {
	n := Note{File: NoteFile(r), Written: time.Now().UTC(), Request: r}
	if err := checkNote(n); err != nil {
		return n, err
	}
	if netns == nil {
		return n, nil
	}
	var err error
	n.Namespace, err = Identify(netns)
	return n, err
}

// Identify identifies an open namespace.
func Identify(netns *os.File) (Namespace, error) {
	info, err := netns.Stat()
	if err != nil {
		return Namespace{}, fmt.Errorf("identify the network namespace: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Namespace{}, errors.ErrUnsupported
	}
	return Namespace{Dev: st.Dev, Ino: st.Ino}, nil
}

// NoteFile is the file of the note of a DEL of the request's container and
// interface. It is unambiguous: an ID of CNI has no "@".
func NoteFile(r Request) string { return r.ContainerID + "@" + r.IfName + noteSuffix }

// checkNote refuses what would not be read back.
func checkNote(n Note) error {
	r := n.Request
	switch {
	case r.Command != "DEL":
		return fmt.Errorf("a note of %q: there are notes of DEL only", r.Command)
	case r.ContainerID == "" || r.IfName == "" || strings.ContainsAny(r.ContainerID+r.IfName, "/\x00") || strings.HasPrefix(r.ContainerID, "."):
		return fmt.Errorf("a note of container %q, interface %q: that is no name", r.ContainerID, r.IfName)
	case len(n.File) > maxNoteName:
		return fmt.Errorf("a note of container %.32q…: its name has more than %d bytes", r.ContainerID, maxNoteName)
	}
	return nil
}

func encodeNote(n Note) ([]byte, error) {
	body, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encode note: %w", err)
	}
	data, err := json.Marshal(noteFile{Format: noteFormat, CRC32: crc32.ChecksumIEEE(body), Note: body})
	if err != nil {
		return nil, fmt.Errorf("encode note: %w", err)
	}
	if len(data) > MaxFrame {
		return nil, fmt.Errorf("encode note: %w: %d", ErrTooLarge, len(data))
	}
	return data, nil
}

// decodeNote reads the note in the file of this name.
func decodeNote(name string, data []byte) (Note, error) {
	var f noteFile
	if err := json.Unmarshal(data, &f); err != nil {
		return Note{}, err
	}
	if f.Format != noteFormat {
		return Note{}, fmt.Errorf("format %d, this daemon reads %d", f.Format, noteFormat)
	}
	if sum := crc32.ChecksumIEEE(f.Note); sum != f.CRC32 {
		return Note{}, fmt.Errorf("its sum is %#x and not %#x", sum, f.CRC32)
	}
	n := Note{File: name}
	if err := json.Unmarshal(f.Note, &n); err != nil {
		return Note{}, err
	}
	if err := checkNote(n); err != nil {
		return Note{}, err
	}
	if want := NoteFile(n.Request); name != want {
		return Note{}, fmt.Errorf("its name should be %q", want)
	}
	return n, nil
}

// openNotes makes the directory, for root's eyes only, and refuses one that
// others could have prepared.
func openNotes(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s: %w", dir, syscall.ENOTDIR)
	case !ok || int64(st.Uid) != int64(os.Geteuid()):
		return fmt.Errorf("%s belongs to another user", dir)
	case info.Mode().Perm() != 0o700:
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// roomForNote returns ErrTooManyNotes when one more would be too much. The note
// that the new one replaces does not count.
func roomForNote(dir, name string, size int64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	count, total := 1, size
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.Name() == name {
			continue // taken away meanwhile
		}
		count++
		total += info.Size()
	}
	if count > MaxNotes || total > MaxNotesSize {
		return fmt.Errorf("%w: %d with %d bytes in %s", ErrTooManyNotes, count-1, total-size, dir)
	}
	return nil
}

// putNote has the file there in one piece or not at all.
func putNote(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, noteTemp) // 0600, and never through a link
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ReadNotes returns the notes of a directory in the order of their names, and
// the files that are none. A directory that does not exist has no notes. What a
// shim that was killed left unfinished is removed after an hour.
func ReadNotes(dir string) ([]Note, []*DamagedNote, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read notes: %w", err)
	}
	var notes []Note
	var damaged []*DamagedNote
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), noteTemp) {
			removeStale(dir, e)
			continue
		}
		n, err := readNote(dir, e.Name())
		switch {
		case err == nil:
			notes = append(notes, n)
		case !errors.Is(err, fs.ErrNotExist): // another daemon served it meanwhile
			damaged = append(damaged, &DamagedNote{e.Name(), err})
		}
	}
	return notes, damaged, nil
}

func removeStale(dir string, e fs.DirEntry) {
	if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > noteTempAge {
		_ = os.Remove(filepath.Join(dir, e.Name())) // tried again next time
	}
}

// readNote opens nothing but plain files: a pipe would keep it waiting.
func readNote(dir, name string) (Note, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Note{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Note{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > MaxFrame {
		return Note{}, fmt.Errorf("no plain file of at most %d bytes", MaxFrame)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFrame))
	if err != nil {
		return Note{}, err
	}
	return decodeNote(name, data)
}

// RemoveNote removes the file of a note, or of what is none. Removing what is
// not there succeeds.
func RemoveNote(dir, file string) error {
	if file == "" || file == "." || file == ".." || strings.Contains(file, "/") {
		return fmt.Errorf("remove note %q: that is no name", file)
	}
	if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove note: %w", err)
	}
	return nil
}
