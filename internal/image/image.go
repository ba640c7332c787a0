// Package image writes container images from files, without a container
// engine and without a base image.
//
// The archive is what "docker save" writes, so "ctr images import", "podman
// load", "docker load" and "kind load image-archive" all take it. The same
// files give the same bytes on every machine and at every time.
package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec is one image: one layer of files and how to start it.
type Spec struct {
	// Ref is the name and tag that the archive is imported under, such as
	// "braid.dev/braid:dev".
	Ref string
	// Files are the image's whole content. Parent directories are made.
	Files []File
	// Entrypoint, Cmd, Env ("KEY=value"), User and WorkingDir are the image's
	// configuration, as in a Dockerfile.
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	Labels     map[string]string
	// Architecture is the platform in Go's words, this machine's when empty.
	Architecture string
}

// File is one file of an image, from exactly one of Source, Link, Dir and
// Data (which may be empty: an empty file).
type File struct {
	// Path is absolute in the image.
	Path string
	// Mode holds the permission bits. Zero means 0755 for a directory, the
	// source's own permissions for Source, and 0644 for Data.
	Mode os.FileMode
	// Source is a file of this machine.
	Source string
	// Link makes a symbolic link that points there.
	Link string
	// Dir makes an empty directory.
	Dir bool
	// Data is the content itself.
	Data []byte
}

// created is the moment that every image and every file in it claims to be
// from. A constant makes equal content equal bytes.
var created = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// Write makes the archive at path, replacing what is there in one step.
func Write(path string, s Spec) error {
	if err := write(path, s); err != nil {
		return fmt.Errorf("write image %s to %s: %w", s.Ref, path, err)
	}
	return nil
}

func write(path string, s Spec) error {
	tag, err := name.NewTag(s.Ref, name.StrictValidation)
	if err != nil {
		return err
	}
	img, err := build(s)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	err = errors.Join(tarball.Write(tag, img, tmp), tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func build(s Spec) (v1.Image, error) {
	l, err := newLayer(s.Files)
	if err != nil {
		return nil, err
	}
	arch := s.Architecture
	if arch == "" {
		arch = runtime.GOARCH
	}
	at := v1.Time{Time: created}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:   l,
		History: v1.History{Created: at, CreatedBy: "braid.dev/braid/internal/image"},
	})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, at
	config.Config = v1.Config{
		Entrypoint: s.Entrypoint,
		Cmd:        s.Cmd,
		Env:        s.Env,
		User:       s.User,
		WorkingDir: s.WorkingDir,
		Labels:     s.Labels,
	}
	return mutate.ConfigFile(img, config)
}
