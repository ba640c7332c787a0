package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
)

const (
	// maxDepth is how many directories below the conf dir are read: the name
	// of a network may contain slashes and lead to its plugins.
	maxDepth = 3
	// maxFiles bounds what is read from a directory that is no conf dir at all.
	maxFiles = 10_000
	// versionTimeout bounds a plugin that does not answer.
	versionTimeout = 5 * time.Second
)

// ReadDir reads the conf dir for Explain. Entries that cannot be read are in
// the result with the reason.
func ReadDir(dir string) ([]File, error) {
	var files []File
	err := readBelow(dir, "", 0, &files)
	if err != nil {
		return nil, fmt.Errorf("read conf dir: %w", err)
	}
	return files, nil
}

func readBelow(dir, below string, depth int, files *[]File) error {
	entries, err := os.ReadDir(filepath.Join(dir, below))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if len(*files) == maxFiles {
			return fmt.Errorf("%s has more than %d files", dir, maxFiles)
		}
		f := readEntry(dir, path.Join(below, entry.Name()), entry)
		if errors.Is(f.Err, fs.ErrNotExist) && !f.Link {
			continue // removed since the directory was read
		}
		*files = append(*files, f)
		if f.Kind == Directory && depth < maxDepth {
			// What cannot be read gives no plugins, here as in a runtime that
			// runs without the right to.
			if err := readBelow(dir, f.Path, depth+1, files); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func readEntry(dir, name string, entry fs.DirEntry) File {
	f := File{Path: name, Link: entry.Type()&fs.ModeSymlink != 0}
	info, err := os.Stat(filepath.Join(dir, name))
	switch {
	case err != nil:
		f.Err = err
	case info.IsDir():
		f.Kind = Directory
	case !info.Mode().IsRegular():
		f.Kind = Special
	case isConf(name):
		f.Data, f.Err = os.ReadFile(filepath.Join(dir, name))
	}
	return f
}

// Types are the plugin types that the configurations among files name, without
// repetition.
func Types(files []File, r Runtime) []string {
	e := explainer{Input: Input{Files: files, Runtime: r}}
	var out []string
	for _, f := range e.candidates() {
		n, err := e.read(f)
		if err != nil {
			continue
		}
		for _, p := range n.plugins {
			out = append(out, p.Network.Type)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ReadPrograms looks for the binaries of the given types in the CNI bin dirs,
// and asks each for the versions that it supports (VERSION of the CNI
// specification), which touches nothing.
func ReadPrograms(ctx context.Context, dirs, types []string) map[string]Program {
	programs := map[string]Program{}
	cni := libcni.NewCNIConfig(dirs, nil)
	for _, kind := range types {
		if _, err := invoke.FindInPath(kind, dirs); err != nil {
			continue
		}
		var p Program
		asked, cancel := context.WithTimeout(ctx, versionTimeout)
		if info, err := cni.GetVersionInfo(asked, kind); err == nil {
			p.Versions = info.SupportedVersions()
		}
		cancel()
		programs[kind] = p
	}
	return programs
}

// ReadAttached reads libcni's cache, such as /var/lib/cni, which both runtimes
// keep. A missing cache is empty; files that are no entries do not count.
func ReadAttached(cache string) ([]Attached, error) {
	files, err := filepath.Glob(filepath.Join(cache, "results", "*"))
	if err != nil {
		return nil, fmt.Errorf("read CNI cache %s: %w", cache, err)
	}
	var out []Attached
	for _, path := range files {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its pod went away since the directory was read
		}
		if err != nil {
			return nil, fmt.Errorf("read CNI cache: %w", err)
		}
		var entry struct {
			Kind        string `json:"kind"`
			ContainerID string `json:"containerId"`
			IfName      string `json:"ifName"`
			NetworkName string `json:"networkName"`
		}
		if json.Unmarshal(data, &entry) != nil || entry.Kind != libcni.CNICacheV1 {
			continue
		}
		out = append(out, Attached{Network: entry.NetworkName, Container: entry.ContainerID, IfName: entry.IfName})
	}
	return out, nil
}
