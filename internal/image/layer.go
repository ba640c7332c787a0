package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layer is a tar of files, made anew each time it is read. It is not
// compressed: these images travel from one directory of a machine to another,
// and unpacking costs more there than reading.
type layer struct {
	files  []File
	digest v1.Hash
	size   int64
}

// newLayer checks the files, adds their parent directories and computes the
// layer's digest.
func newLayer(files []File) (*layer, error) {
	all, err := arrange(files)
	if err != nil {
		return nil, err
	}
	l := &layer{files: all}
	r, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	l.digest, l.size, err = v1.SHA256(r)
	return l, err
}

func (l *layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) Size() (int64, error)                { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return types.DockerUncompressedLayer, nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return l.Uncompressed() }
func (l *layer) Uncompressed() (rc io.ReadCloser, err error) {
	// The writer ends when it is done or when the reader is closed.
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeTar(w, l.files)) }()
	return r, nil
}

// arrange returns the files with all their parents, sorted by path.
func arrange(files []File) ([]File, error) {
	byPath := make(map[string]File, len(files))
	for _, f := range files {
		if err := f.valid(); err != nil {
			return nil, err
		}
		if _, twice := byPath[f.Path]; twice {
			return nil, fmt.Errorf("%s is in the image twice", f.Path)
		}
		byPath[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			parent, there := byPath[dir]
			if there && !parent.Dir {
				return nil, fmt.Errorf("%s is below %s, which is no directory", f.Path, dir)
			}
			if !there {
				byPath[dir] = File{Path: dir, Dir: true}
			}
		}
	}
	all := slices.Collect(maps.Values(byPath))
	slices.SortFunc(all, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

func (f File) valid() error {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
		return fmt.Errorf("%q is not a clean absolute path of a file", f.Path)
	}
	kinds := 0
	for _, is := range []bool{f.Source != "", f.Link != "", f.Dir, f.Data != nil} {
		if is {
			kinds++
		}
	}
	if kinds > 1 {
		return fmt.Errorf("%s has more than one of source, link, dir and data", f.Path)
	}
	return nil
}

func writeTar(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		if err := f.writeTo(tw); err != nil {
			return fmt.Errorf("add %s: %w", f.Path, err)
		}
	}
	return tw.Close()
}

func (f File) writeTo(tw *tar.Writer) error {
	h := &tar.Header{
		Name:    strings.TrimPrefix(f.Path, "/"),
		Mode:    int64(f.Mode.Perm()),
		ModTime: created,
	}
	var content io.Reader
	switch {
	case f.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		h.Mode = orMode(h.Mode, 0o755)
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Source != "":
		src, info, err := openRegular(f.Source)
		if err != nil {
			return err
		}
		defer src.Close()
		h.Typeflag, h.Size, content = tar.TypeReg, info.Size(), src
		h.Mode = orMode(h.Mode, int64(info.Mode().Perm()))
	default:
		h.Typeflag, h.Size, content = tar.TypeReg, int64(len(f.Data)), strings.NewReader(string(f.Data))
		h.Mode = orMode(h.Mode, 0o644)
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	_, err := io.Copy(tw, content)
	return err
}

func orMode(mode, otherwise int64) int64 {
	if mode == 0 {
		return otherwise
	}
	return mode
}

func openRegular(name string) (*os.File, fs.FileInfo, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, info, nil
}
