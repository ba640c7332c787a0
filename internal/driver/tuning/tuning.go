// Package tuning changes sysctls and properties of an interface that a plugin
// before it in the chain has made, in process, as the CNI reference plugin of
// that name does. Its README says what it changes and what it refuses.
package tuning

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// The places where the reference plugin has its files.
const (
	DefaultDataDir   = "/run/cni/tuning"
	DefaultAllowlist = "/etc/cni/tuning/allowlist.conf"
)

// Config is what the driver needs to know about the node.
type Config struct {
	// Sysctl is where the node's /proc/sys/net can be written.
	Sysctl rtnl.Sysctl
	// DataDir holds what interfaces were before they were changed, for
	// configurations without a dataDir. Empty means DefaultDataDir.
	DataDir string
	// HostDirs are the directories of the host that are seen here at the same
	// path; nil means all. A dataDir elsewhere cannot be used, and DataDir is
	// used in its place.
	HostDirs []string
	// Allowlist is the file that says which sysctls are allowed, all when there
	// is no such file. Empty means DefaultAllowlist.
	Allowlist string
}

// New returns the driver for plugin type "tuning".
func New(cfg Config) driver.Driver {
	if cfg.DataDir == "" {
		cfg.DataDir = DefaultDataDir
	}
	if cfg.Allowlist == "" {
		cfg.Allowlist = DefaultAllowlist
	}
	return &tuning{cfg}
}

type tuning struct{ Config }

// Attach implements driver.Driver.
func (d *tuning) Attach(_ context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if err := s.Chained(); err != nil {
		return nil, err
	}
	if err := d.allow(c); err != nil {
		return nil, err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	a := attachment{tuning: d, conf: c, spec: s, pod: pod}
	before, err := a.setSysctls()
	if err == nil {
		err = a.changeLink()
	}
	if err != nil {
		return nil, errors.Join(err, a.restore(), a.resetSysctls(before))
	}
	return a.result(), nil
}

// Detach implements driver.Driver. Sysctls stay as they are: they belong to the
// namespace, or to the link, and end with it.
func (d *tuning) Detach(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		// What was refused changed nothing, but the file of another program's
		// attachment may be there.
		c = conf{DataDir: c.DataDir}
		if s.ValidIfName() != nil {
			return nil
		}
	}
	a := attachment{tuning: d, conf: c, spec: s}
	if s.NetNS == nil {
		return a.backup().remove()
	}
	if a.pod, err = driver.OpenPod(s); err != nil {
		return err
	}
	defer a.pod.Close()
	return a.restore()
}

// allow asks the node's administrator.
func (d *tuning) allow(c conf) error {
	if len(c.sysctls) == 0 {
		return nil
	}
	list, err := os.ReadFile(d.Allowlist)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = allowed(c.sysctls, string(list))
	}
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("allowlist %s: %s", d.Allowlist, err), "")
	}
	return nil
}

// attachment is one attachment with what is open while it is worked on.
type attachment struct {
	*tuning
	conf
	spec driver.Spec
	pod  *rtnl.Handle
}

// setSysctls sets them in the order of their keys, and returns what they were,
// also when it fails in between.
func (a *attachment) setSysctls() (before []rtnl.Setting, err error) {
	for _, want := range a.sysctls {
		old, err := a.Sysctl.Get(a.spec.NetNS, want.Path)
		if errors.Is(err, fs.ErrPermission) { // there are some that can only be written
			old, err = "", nil
		}
		if err != nil {
			return before, err
		}
		if old != "" {
			before = append(before, rtnl.Setting{Path: want.Path, Value: old})
		}
		if err := a.Sysctl.Set(a.spec.NetNS, want.Setting); err != nil {
			return before, err
		}
	}
	return before, nil
}

func (a *attachment) resetSysctls(before []rtnl.Setting) error {
	slices.Reverse(before)
	return a.Sysctl.Set(a.spec.NetNS, before...)
}

// changeLink changes the interface, once what it was is on disk.
func (a *attachment) changeLink() error {
	// An interrupted call may have changed it already.
	if err := a.restore(); err != nil {
		return err
	}
	if !a.changesLink() {
		return nil
	}
	l, err := a.spec.PodLink(a.pod)
	if err != nil {
		return err
	}
	tuning, err := a.pod.Tuning(l.Index)
	if err != nil {
		return err
	}
	if err := a.backup().write(a.before(l, tuning)); err != nil {
		return err
	}
	want := was{MTU: a.mtu(), AllMulti: a.AllMulti, TxQLen: a.TxQLen}
	if a.mac != nil {
		want.MAC = a.mac.String()
	}
	if a.promisc() {
		want.Promisc = a.Promisc
	}
	return a.apply(l, want)
}

// before is what of the interface is about to be changed.
func (a *attachment) before(l rtnl.Link, t rtnl.Tuning) was {
	var w was
	if a.mac != nil {
		w.MAC = l.MAC.String()
	}
	if a.promisc() {
		w.Promisc = &l.Promisc
	}
	if a.mtu() != 0 {
		w.MTU = l.MTU
	}
	if a.AllMulti != nil {
		w.AllMulti = &t.AllMulti
	}
	if a.TxQLen != nil {
		w.TxQLen = &t.TxQLen
	}
	return w
}

// result is the previous one, with the MAC that the interface has now.
func (a *attachment) result() *current.Result {
	if a.mac == nil {
		return a.spec.Prev
	}
	res := driver.WithInterfaces(a.spec.Prev)
	for _, i := range res.Interfaces {
		if i.Name == a.spec.IfName && i.Sandbox != "" {
			i.Mac = a.mac.String()
		}
	}
	return res
}

// Check implements driver.Driver.
func (d *tuning) Check(_ context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if err := s.Chained(); err != nil {
		return err
	}
	pod, err := driver.OpenPod(s)
	if err != nil {
		return err
	}
	defer pod.Close()
	a := attachment{tuning: d, conf: c, spec: s, pod: pod}
	for _, want := range a.sysctls {
		have, err := a.Sysctl.Get(s.NetNS, want.Path)
		if err != nil {
			return err
		}
		// The kernel separates several values by tabs, people by spaces.
		if strings.Join(strings.Fields(have), " ") != strings.Join(strings.Fields(want.Value), " ") {
			return fmt.Errorf("sysctl %s is %q, not %q", want.key, have, want.Value)
		}
	}
	return a.checkLink()
}

func (a *attachment) checkLink() error {
	l, err := a.spec.PodLink(a.pod)
	if err != nil {
		return err
	}
	t, err := a.pod.Tuning(l.Index)
	if err != nil {
		return err
	}
	switch {
	case a.mac != nil && a.mac.String() != l.MAC.String():
		return fmt.Errorf("interface %s has mac %s, not %s", l.Name, l.MAC, a.mac)
	case a.promisc() && !l.Promisc:
		return fmt.Errorf("interface %s is not in promiscuous mode", l.Name)
	case a.mtu() != 0 && a.mtu() != l.MTU:
		return fmt.Errorf("interface %s has mtu %d, not %d", l.Name, l.MTU, a.mtu())
	case a.AllMulti != nil && *a.AllMulti != t.AllMulti:
		return fmt.Errorf("interface %s has allmulti %t, not %t", l.Name, t.AllMulti, *a.AllMulti)
	case a.TxQLen != nil && *a.TxQLen != t.TxQLen:
		return fmt.Errorf("interface %s has a transmit queue of %d packets, not %d", l.Name, t.TxQLen, *a.TxQLen)
	}
	return nil
}
