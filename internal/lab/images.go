package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"braid.dev/braid/internal/image"
)

// busyboxPath is where Debian's busybox-static has its one static program.
const busyboxPath = "/usr/bin/busybox"

// writeImages makes sure that the images every node needs are in the cache and
// returns the paths of their archives.
func writeImages(ctx context.Context, cache string, bin Binaries) ([]string, error) {
	applets, err := exec.CommandContext(ctx, busyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", busyboxPath, err)
	}
	var paths []string
	specs := []image.Spec{pauseSpec(bin["pause"]), toolboxSpec(strings.Fields(string(applets)))}
	if program, ok := bin[dnsProgram.Name]; ok {
		specs = append(specs, dnsSpec(program))
	}
	for _, spec := range specs {
		path, err := cachedImage(cache, spec)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func pauseSpec(program string) image.Spec {
	return image.Spec{
		Ref:        pauseImage,
		Entrypoint: []string{"/pause"},
		Files:      []image.File{{Path: "/pause", Source: program, Mode: 0o755}},
	}
}

// toolboxSpec is busybox under all of its names.
func toolboxSpec(applets []string) image.Spec {
	s := image.Spec{
		Ref: TestImage,
		Cmd: []string{"sh"},
		Env: []string{"PATH=/bin"},
		Files: []image.File{
			{Path: "/bin/busybox", Source: busyboxPath, Mode: 0o755},
			{Path: "/root", Dir: true, Mode: 0o700},
			{Path: "/tmp", Dir: true, Mode: 0o777},
			{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\n")},
			{Path: "/etc/group", Data: []byte("root:x:0:\n")},
		},
	}
	for _, name := range applets {
		if name != "busybox" {
			s.Files = append(s.Files, image.File{Path: "/bin/" + name, Link: "busybox"})
		}
	}
	return s
}

// cachedImage writes the image's archive unless the cache has it.
func cachedImage(cache string, s image.Spec) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%+v\n", s)
	for _, f := range s.Files {
		if f.Source == "" {
			continue
		}
		if err := hashFile(h, f.Source); err != nil {
			return "", fmt.Errorf("image %s: %w", s.Ref, err)
		}
	}
	path := filepath.Join(cache, "images", hex.EncodeToString(h.Sum(nil))[:16]+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, image.Write(path, s)
}
