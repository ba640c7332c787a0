package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A program is one executable that a lab runs and builds itself, from sources
// that the module proxy serves and a go.sum in this repository vouches for.
type program struct {
	// Name is the file name of the executable.
	Name string
	// Module is the directory of the module that pins the sources, relative to
	// the root of the repository. Each upstream project has a module of its own,
	// so that it is built with the dependencies it was released with.
	Module string
	// Package is the import path of the main package.
	Package string
	// For is the part of a lab that alone needs the program, such as "flannel";
	// empty when every lab does.
	For string
	// Tags and LDFlags are passed to go build when not empty.
	Tags, LDFlags string
}

const (
	kubernetesVersion = "v1.36.3"
	pluginsVersion    = "v1.9.1"
	pluginsModule     = "github.com/containernetworking/plugins"
	containerdModule  = "github.com/containerd/containerd/v2"
)

// programs is everything a lab runs that is not a package of the host. The
// slow ones come first, since they warm the build cache for the others.
func programs() []program {
	var list []program
	for _, name := range []string{
		"kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kubectl", "kube-proxy",
	} {
		list = append(list, program{
			Name: name, Module: "lab/kubernetes", Package: "k8s.io/kubernetes/cmd/" + name,
			LDFlags: "-s -w -X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
				" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
		})
	}
	list = append(list, program{
		Name: "etcd", Module: "lab/etcd", Package: "go.etcd.io/etcd/server/v3", LDFlags: "-s -w",
	})
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		list = append(list, program{
			Name: name, Module: "lab/containerd", Package: containerdModule + "/cmd/" + name,
			Tags:    "no_btrfs,no_devmapper,no_zfs",
			LDFlags: "-s -w -X " + containerdModule + "/version.Version=v2.4.2",
		})
	}
	for _, path := range referencePlugins {
		list = append(list, program{
			Name: filepath.Base(path), Module: "lab/cni", Package: pluginsModule + "/plugins/" + path,
			LDFlags: "-s -w -X " + pluginsModule + "/pkg/utils/buildversion.BuildVersion=" + pluginsVersion,
		})
	}
	list = append(append(list, networkPrograms()...), dnsProgram)
	return append(list,
		program{Name: "cnitool", Module: "lab/cni", Package: "github.com/containernetworking/cni/cnitool", LDFlags: "-s -w"},
		program{Name: "pause", Module: ".", Package: "braid.dev/braid/internal/lab/pause", LDFlags: "-s -w"},
	)
}

// referencePlugins are the CNI reference plugins that every node gets in its
// CNI bin dir, by their place in the upstream repository.
var referencePlugins = []string{
	"main/bridge", "main/loopback", "main/macvlan", "main/ipvlan", "main/vlan",
	"main/host-device", "main/ptp", "main/dummy", "main/tap",
	"ipam/host-local", "ipam/static", "ipam/dhcp",
	"meta/portmap", "meta/bandwidth", "meta/firewall", "meta/tuning", "meta/sbr", "meta/vrf",
}

// selectPrograms returns the programs with the given names; when there are
// none, all, or those that every lab needs.
func selectPrograms(names []string, everything bool) ([]program, error) {
	all := programs()
	switch {
	case len(names) == 0 && everything:
		return all, nil
	case len(names) == 0:
		return slices.DeleteFunc(all, func(p program) bool { return p.For != "" }), nil
	}
	var out []program
	for _, name := range names {
		i := slices.IndexFunc(all, func(p program) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("no program %q: a lab builds %s", name, strings.Join(programNames(all), ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

func programNames(list []program) []string {
	names := make([]string, len(list))
	for i, p := range list {
		names[i] = p.Name
	}
	return names
}

// fingerprint identifies an executable by everything that goes into it: two
// builds with one fingerprint are the same program.
func (p program) fingerprint(root, goVersion string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%s\n", goVersion, p.Package, p.Tags, p.LDFlags, "CGO_ENABLED=0")
	inputs := []string{filepath.Join(p.Module, "go.mod"), filepath.Join(p.Module, "go.sum")}
	if dir, own := strings.CutPrefix(p.Package, modulePath+"/"); own {
		// A program of this repository depends on its sources, too. One of the
		// main module uses the standard library only.
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil || len(files) == 0 {
			return "", fmt.Errorf("no Go files in %s", filepath.Join(root, dir))
		}
		if p.Module == "." {
			inputs = nil
		}
		for _, f := range files {
			inputs = append(inputs, filepath.Join(dir, filepath.Base(f)))
		}
	}
	for _, in := range inputs {
		if err := hashFile(h, filepath.Join(root, in)); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func hashFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(w, "%s\n", filepath.Base(path))
	_, err = io.Copy(w, f)
	return err
}
