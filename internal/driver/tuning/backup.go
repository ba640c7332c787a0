package tuning

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/rtnl"
)

// was is what an interface was before it was changed: the file format of the
// reference plugin, so that each restores what the other has changed.
type was struct {
	MAC      string `json:"mac,omitempty"`
	Promisc  *bool  `json:"promisc,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	AllMulti *bool  `json:"allmulti,omitempty"`
	TxQLen   *int   `json:"txQLen,omitempty"`
}

// apply changes the interface as w says. Everything is attempted.
func (a *attachment) apply(l rtnl.Link, w was) error {
	var errs []error
	if w.MTU != 0 {
		errs = append(errs, a.pod.SetMTU(l.Index, w.MTU))
	}
	if w.MAC != "" {
		mac, err := net.ParseMAC(w.MAC)
		if err == nil {
			err = a.pod.SetMAC(l.Index, mac)
		}
		errs = append(errs, err)
	}
	if w.Promisc != nil {
		errs = append(errs, a.pod.SetPromisc(l.Index, *w.Promisc))
	}
	if w.AllMulti != nil {
		errs = append(errs, a.pod.SetAllMulti(l.Index, *w.AllMulti))
	}
	if w.TxQLen != nil {
		errs = append(errs, a.pod.SetTxQLen(l.Index, *w.TxQLen))
	}
	return errors.Join(errs...)
}

// restore makes the interface again what it was, and forgets that. When either
// is gone there is nothing to do.
func (a *attachment) restore() error {
	b := a.backup()
	w, ok, err := b.read()
	if err != nil {
		return err
	}
	if ok {
		l, err := a.pod.Link(a.spec.IfName)
		if err == nil {
			err = a.apply(l, w)
		}
		if err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return fmt.Errorf("restore interface %s: %w", a.spec.IfName, err)
		}
	}
	return b.remove()
}

// backup is the file that says what the interface of one attachment was.
type backup struct{ dir, name string }

func (a *attachment) backup() backup {
	dir := a.Config.DataDir
	if own := a.conf.DataDir; own != "" && a.visible(own) {
		dir = own
	}
	if utils.ValidateContainerID(a.spec.ContainerID) != nil {
		return backup{} // it names no file, and no runtime has it
	}
	return backup{dir, a.spec.ContainerID + "_" + a.spec.IfName + ".json"}
}

func (d *tuning) visible(dir string) bool {
	return d.HostDirs == nil || slices.ContainsFunc(d.HostDirs, func(shown string) bool {
		rel, err := filepath.Rel(shown, dir)
		return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
	})
}

func (b backup) path() string { return filepath.Join(b.dir, b.name) }

// passing is the file's name until all of it is written.
func (b backup) passing() string { return filepath.Join(b.dir, "."+b.name+".new") }

// read returns ok false when there is no file, or one that says nothing.
func (b backup) read() (w was, ok bool, err error) {
	if b.name == "" {
		return w, false, nil
	}
	text, err := os.ReadFile(b.path())
	if errors.Is(err, fs.ErrNotExist) {
		return w, false, nil
	}
	if err != nil {
		return w, false, err
	}
	return w, json.Unmarshal(text, &w) == nil, nil
}

// write leaves the whole file or none. It need not outlive the kernel, whose
// links it is about.
func (b backup) write(w was) error {
	if b.name == "" {
		return errors.New("the container's ID is not valid")
	}
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(b.passing(), text, 0o600); err != nil {
		return errors.Join(err, b.remove())
	}
	return os.Rename(b.passing(), b.path())
}

func (b backup) remove() error {
	if b.name == "" {
		return nil
	}
	var errs []error
	for _, file := range []string{b.passing(), b.path()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
