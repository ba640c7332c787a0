package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestImageHoldsItsFilesAndConfiguration(t *testing.T) {
	src := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(src, []byte("#!program"), 0o750); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.tar")
	err := Write(out, Spec{
		Ref: "example.test/tool:1",
		Files: []File{
			{Path: "/usr/bin/tool", Source: src},
			{Path: "/bin/tool", Link: "../usr/bin/tool"},
			{Path: "/etc/motd", Data: []byte("hello\n")},
			{Path: "/tmp", Dir: true, Mode: 0o777},
			{Path: "/etc/empty"},
		},
		Entrypoint:   []string{"/usr/bin/tool"},
		Cmd:          []string{"serve"},
		Env:          []string{"A=b"},
		Architecture: "arm64",
	})
	if err != nil {
		t.Fatal(err)
	}

	img, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "arm64" {
		t.Errorf("platform is %s/%s, want linux/arm64", config.OS, config.Architecture)
	}
	want := v1.Config{Entrypoint: []string{"/usr/bin/tool"}, Cmd: []string{"serve"}, Env: []string{"A=b"}}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	wantFiles := strings.Join([]string{
		"drwxr-xr-x bin/",
		"Lrwxrwxrwx bin/tool -> ../usr/bin/tool",
		"drwxr-xr-x etc/",
		"-rw-r--r-- etc/empty \"\"",
		"-rw-r--r-- etc/motd \"hello\\n\"",
		"drwxrwxrwx tmp/",
		"drwxr-xr-x usr/",
		"drwxr-xr-x usr/bin/",
		"-rwxr-x--- usr/bin/tool \"#!program\"",
	}, "\n")
	if diff := cmp.Diff(wantFiles, listing(t, img)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// listing prints the only layer of an image like a long "ls".
func listing(t *testing.T, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("image has layers %v, %v; want one", layers, err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var lines []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(lines, "\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(created) || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s is from %v, owned by %d:%d; want %v, 0:0", h.Name, h.ModTime, h.Uid, h.Gid, created)
		}
		line := h.FileInfo().Mode().String() + " " + h.Name
		switch h.Typeflag {
		case tar.TypeSymlink:
			line += " -> " + h.Linkname
		case tar.TypeReg:
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			line += " \"" + strings.ReplaceAll(string(data), "\n", `\n`) + "\""
		}
		lines = append(lines, line)
	}
}

func TestSameFilesGiveSameBytes(t *testing.T) {
	dir := t.TempDir()
	var archives [2][]byte
	for i := range archives {
		src := filepath.Join(dir, "bin")
		if err := os.WriteFile(src, bytes.Repeat([]byte("x"), 1<<20), 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1e9*(i+1)), 0)
		if err := os.Chtimes(src, at, at); err != nil {
			t.Fatal(err)
		}
		files := []File{{Path: "/a/b", Source: src}, {Path: "/c", Data: []byte("c")}}
		if i == 1 {
			files[0], files[1] = files[1], files[0]
		}
		out := filepath.Join(dir, "out.tar")
		if err := Write(out, Spec{Ref: "example.test/x:1", Files: files}); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same files gave two different archives")
	}
}

func TestRefusesWhatCannotBeAnImage(t *testing.T) {
	for _, tc := range []struct {
		name  string
		ref   string
		files []File
		want  string
	}{
		{"relative path", "", []File{{Path: "bin/x"}}, `"bin/x" is not a clean absolute path`},
		{"escaping path", "", []File{{Path: "/../x"}}, "not a clean absolute path"},
		{"root", "", []File{{Path: "/", Dir: true}}, "not a clean absolute path"},
		{"twice", "", []File{{Path: "/x"}, {Path: "/x", Dir: true}}, "/x is in the image twice"},
		{"below a file", "", []File{{Path: "/x"}, {Path: "/x/y/z"}}, "/x/y/z is below /x, which is no directory"},
		{"two kinds", "", []File{{Path: "/x", Dir: true, Link: "y"}}, "more than one of"},
		{"missing source", "", []File{{Path: "/x", Source: "/nonexistent/x"}}, "add /x: open /nonexistent/x: no such file"},
		{"directory as source", "", []File{{Path: "/x", Source: "/"}}, "not a regular file"},
		{"no tag", "example.test/x", nil, "example.test/x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.ref == "" {
				tc.ref = "example.test/x:1"
			}
			dir := t.TempDir()
			err := Write(filepath.Join(dir, "out.tar"), Spec{Ref: tc.ref, Files: tc.files})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestBraidImageHasItsThreePrograms(t *testing.T) {
	bin := t.TempDir()
	for _, p := range []string{"braid", "braidd", "braid-cni"} {
		if err := os.WriteFile(filepath.Join(bin, p), []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img, err := build(Braid(bin, Ref))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"drwxr-xr-x usr/",
		"drwxr-xr-x usr/bin/",
		"-rwxr-xr-x usr/bin/braid \"braid\"",
		"-rwxr-xr-x usr/bin/braid-cni \"braid-cni\"",
		"-rwxr-xr-x usr/bin/braidd \"braidd\"",
	}, "\n")
	if diff := cmp.Diff(want, listing(t, img)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
