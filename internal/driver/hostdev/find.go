package hostdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/rtnl"
)

// userspaceDrivers take a PCI device away from the kernel's network, for
// programs that drive it themselves.
var userspaceDrivers = []string{"vfio-pci", "uio_pci_generic", "igb_uio"}

// place is where sysfs has a device: one that the configuration gives no name
// for. The zero value is none.
type place struct {
	dir string
	// userspace: the device has no link; the container's program drives it.
	userspace bool
}

// place finds the device in sysfs when the configuration or the runtime names
// it by an id or a path.
func (a *attachment) place() (place, error) {
	at, err := a.placeByID()
	if err == nil && a.KernelPath != "" {
		at.dir = filepath.Join(a.cfg.Sysfs, strings.TrimPrefix(filepath.Clean(a.KernelPath), "/sys"))
	}
	return at, err
}

func (a *attachment) placeByID() (place, error) {
	pci := filepath.Join(a.cfg.Sysfs, "bus/pci/devices")
	addr := a.PCIAddr
	if id := a.RuntimeConfig.DeviceID; id != "" {
		if aux := filepath.Join(a.cfg.Sysfs, "bus/auxiliary/devices", id); exists(aux) && !exists(filepath.Join(pci, id)) {
			return place{dir: aux}, nil
		}
		addr = id
	}
	if addr == "" {
		return place{}, nil
	}
	dir := filepath.Join(pci, addr)
	driven, err := filepath.EvalSymlinks(filepath.Join(dir, "driver"))
	if err != nil {
		return place{}, a.notHere(err)
	}
	return place{dir: dir, userspace: slices.Contains(userspaceDrivers, filepath.Base(driven))}, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// notHere is worth another try: the container that has the device will end,
// and nodes are prepared while pods already come.
func (a *attachment) notHere(why error) error {
	return types.NewError(types.ErrTryAgainLater,
		fmt.Sprintf("%s is not there: the node has none, or another container has it", a.wanted()), why.Error())
}

// device finds the link on the node. A device that came back from a container
// that is gone is given its own name first.
func (a *attachment) device(at place) (rtnl.Link, error) {
	links, err := a.host.Links()
	if err != nil {
		return rtnl.Link{}, err
	}
	l, err := a.choose(links, at)
	if err != nil {
		return l, a.notHere(err)
	}
	if marks(l) == nil {
		return l, nil
	}
	if err := a.restore(l); err != nil {
		return l, err
	}
	return a.host.LinkByIndex(l.Index)
}

// choose decides which link of the node is meant. The reference plugin looks
// at the keys in the same order.
func (a *attachment) choose(links []rtnl.Link, at place) (rtnl.Link, error) {
	is := func(l rtnl.Link) bool { return l.Name == a.Device || slices.Contains(l.AltNames, a.Device) }
	why := errors.New("no link has that name")
	switch {
	case a.Device != "":
		if i := slices.IndexFunc(links, is); i >= 0 {
			return links[i], nil
		}
		// It may be back under the name that a container had for it.
		is = func(l rtnl.Link) bool { return marks(l) != nil && a.oldName(l) == a.Device }
	case a.HWAddr != "":
		is = func(l rtnl.Link) bool { return bytes.Equal(l.MAC, a.mac) }
		why = errors.New("no link has that address")
	default:
		name, err := linkAt(at.dir)
		if err != nil {
			return rtnl.Link{}, err
		}
		is = func(l rtnl.Link) bool { return l.Name == name }
		why = fmt.Errorf("its link %s is in another namespace", name)
	}
	if i := slices.IndexFunc(links, is); i >= 0 {
		return links[i], nil
	}
	return rtnl.Link{}, why
}

// linkAt names the link of the device whose directory in sysfs that is.
func linkAt(dir string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "net"))
	if errors.Is(err, os.ErrNotExist) {
		// A virtio device is one level further down.
		if below, _ := filepath.Glob(filepath.Join(dir, "virtio*", "net")); len(below) > 0 {
			entries, err = os.ReadDir(below[0])
		}
	}
	if err != nil {
		return "", err
	}
	if len(entries) == 0 {
		return "", fmt.Errorf("%s has no link on the node", dir)
	}
	return entries[0].Name(), nil
}
