package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Runtime is how one range of versions of a container runtime reads its conf
// dir.
type Runtime struct {
	// Name is the name by which users ask for it.
	Name string
	crio bool
	// lib is the version of libcni: what it accepts changed with 1.2 (the keys
	// cniVersions and disableGC) and 1.3 (plugins in a directory).
	lib libVersion
	// serial: setup_serially exists.
	serial bool
}

type libVersion int

const (
	lib11 libVersion = iota + 1
	lib12
	lib13
)

// Runtimes are the known ones; the last of a family is its newest.
var Runtimes = []Runtime{
	{Name: "containerd-1.6", lib: lib11},
	{Name: "containerd-1.7", lib: lib11, serial: true},
	{Name: "containerd-2.0", lib: lib12, serial: true},
	{Name: "containerd-2", lib: lib13, serial: true},
	{Name: "cri-o", lib: lib13, crio: true},
}

// RuntimeNamed finds a runtime by one of its names; "containerd" is the newest.
func RuntimeNamed(name string) (Runtime, error) {
	wanted := name
	switch name {
	case "containerd":
		wanted = "containerd-2"
	case "crio":
		wanted = "cri-o"
	}
	for _, r := range Runtimes {
		if r.Name == wanted {
			return r, nil
		}
	}
	var names []string
	for _, r := range Runtimes {
		names = append(names, r.Name)
	}
	return Runtime{}, fmt.Errorf("runtime %q is unknown: there are containerd (the newest), %s", name, strings.Join(names, ", "))
}

var leadingVersion = regexp.MustCompile(`^v?(\d+)\.(\d+)`)

// RuntimeOf finds the Runtime of a running one, by what it says of itself in
// the CRI's Version. A version that is newer than all known counts as the
// newest.
func RuntimeOf(name, version string) (Runtime, error) {
	if slices.Contains([]string{"cri-o", "crio"}, strings.ToLower(name)) {
		return RuntimeNamed("cri-o")
	}
	m := leadingVersion.FindStringSubmatch(version)
	if name != "containerd" || m == nil {
		return Runtime{}, fmt.Errorf("runtime %s %s is unknown", name, version)
	}
	major, errMajor := strconv.Atoi(m[1])
	minor, errMinor := strconv.Atoi(m[2])
	switch {
	case errMajor != nil || errMinor != nil:
		return Runtime{}, fmt.Errorf("runtime %s %s is unknown", name, version)
	case major < 1 || major == 1 && minor <= 6:
		return RuntimeNamed("containerd-1.6")
	case major == 1:
		return RuntimeNamed("containerd-1.7")
	case major == 2 && minor == 0:
		return RuntimeNamed("containerd-2.0")
	}
	return RuntimeNamed("containerd-2")
}

// versions are those of the CNI specification that the runtime's libcni knows.
func (r Runtime) versions() []string {
	known := []string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"}
	if r.lib >= lib12 {
		known = append(known, "1.1.0")
	}
	return known
}
