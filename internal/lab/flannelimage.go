package lab

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/image"
)

// FlannelImage is the image of examples/migrate/flannel: flanneld, the CNI
// plugin flannel, and the iptables that nodes of the lab have.
const FlannelImage = "braid.dev/flannel:dev"

// LoadFlannel builds FlannelImage, unless that was done before, and loads it on
// all nodes.
func (l *Lab) LoadFlannel(ctx context.Context, cfg BuildConfig) error {
	cfg.Only = []string{"flanneld", "flannel"}
	bin, err := Build(ctx, cfg)
	if err != nil {
		return err
	}
	cache, err := cacheDir(cfg.Cache)
	if err != nil {
		return err
	}
	spec, err := flannelSpec(ctx, bin, l.state.Config.NodeKernel)
	if err != nil {
		return fmt.Errorf("image %s: %w", FlannelImage, err)
	}
	path, err := cachedImage(cache, spec)
	if err != nil {
		return err
	}
	return l.LoadImage(ctx, path)
}

// flannelSpec is Flannel's image for nodes on a kind of kernel.
func flannelSpec(ctx context.Context, bin Binaries, kernel guest.Kernel) (image.Spec, error) {
	s := image.Spec{
		Ref:        FlannelImage,
		Entrypoint: []string{"/opt/bin/flanneld"},
		Env:        []string{"PATH=/usr/sbin:/bin"},
		Files: []image.File{
			{Path: "/opt/bin/flanneld", Source: bin["flanneld"], Mode: 0o755},
			{Path: "/flannel", Source: bin["flannel"], Mode: 0o755},
			{Path: "/bin/cp", Source: busyboxPath, Mode: 0o755},
		},
	}
	program := "/usr/sbin/xtables-nft-multi"
	if kernel == guest.UML { // as on its nodes
		program = "/usr/sbin/xtables-legacy-multi"
	}
	for _, name := range iptablesNames {
		s.Files = append(s.Files, image.File{Path: "/usr/sbin/" + name, Link: filepath.Base(program)})
	}
	files, err := withLibraries(ctx, program, xtablesModules)
	for _, f := range files {
		s.Files = append(s.Files, image.File{Path: f, Source: f, Mode: 0o755})
	}
	return s, err
}

// iptablesNames are the names that the one program of iptables is called by.
var iptablesNames = []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"}

// xtablesModules are what iptables loads for its matches and targets.
const xtablesModules = "/usr/lib/x86_64-linux-gnu/xtables/*.so"

// withLibraries lists a program of the machine, the modules that it loads, and
// the libraries that the linker finds for all of them.
func withLibraries(ctx context.Context, program, modules string) ([]string, error) {
	files, err := filepath.Glob(modules)
	if err != nil {
		return nil, err
	}
	files = append(files, program)
	out, err := exec.CommandContext(ctx, "ldd", files...).Output()
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: ldd: %w", program, err)
	}
	files = append(files, libraries(string(out))...)
	slices.Sort(files)
	return slices.Compact(files), nil
}

// libraries reads the paths from what ldd prints.
func libraries(ldd string) []string {
	var paths []string
	for lines := bufio.NewScanner(strings.NewReader(ldd)); lines.Scan(); {
		for _, field := range strings.Fields(lines.Text()) {
			if strings.HasPrefix(field, "/") && !strings.HasSuffix(field, ":") {
				paths = append(paths, field)
			}
		}
	}
	return paths
}
