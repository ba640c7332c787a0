package hostdev

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"braid.dev/braid/internal/rtnl"
)

// A device that is lent has its name on the node as its alias, which is how
// the reference plugin remembers it, and an alternative name that tells which
// attachment has it. The kernel keeps both when it moves the device, also when
// the container's namespace ends.
const markPrefix = "braid-lent-"

// returnTimeout bounds the wait for a device that the kernel has not yet taken
// out of a namespace that ended.
const returnTimeout = 2 * time.Second

// mark is the alternative name of a device that this attachment has.
func (a *attachment) mark() string {
	sum := sha256.Sum256([]byte(a.spec.Key()))
	return markPrefix + hex.EncodeToString(sum[:8])
}

// marks are the marks of a link, of whichever attachment.
func marks(l rtnl.Link) (marks []string) {
	for _, name := range l.AltNames {
		if strings.HasPrefix(name, markPrefix) {
			marks = append(marks, name)
		}
	}
	return marks
}

// oldName is the name that a marked link had on the node. What runs in the
// container may have changed the alias; the configuration it cannot change.
func (a *attachment) oldName(l rtnl.Link) string {
	switch {
	case a.Device != "" && slices.Contains(marks(l), a.mark()) && !slices.Contains(l.AltNames, a.Device):
		return a.Device
	case utils.ValidateInterfaceName(l.Alias) == nil:
		return l.Alias
	}
	return l.Name
}

// take moves the device into the container.
func (a *attachment) take(at place) (rtnl.Link, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, err := a.device(at)
	if err != nil {
		return l, err
	}
	a.wasUp = l.Up
	// In this order: a link with a mark has its old name as its alias, or still
	// as its name, and one without a mark nothing that tells of a loan.
	if l.Alias != "" {
		if err := a.host.SetAlias(l.Index, ""); err != nil {
			return l, err
		}
	}
	if err := a.host.AddAltName(l.Index, a.mark()); err != nil {
		return l, err
	}
	if err := a.host.SetAlias(l.Index, l.Name); err != nil {
		return l, err
	}
	if err := a.host.MoveAs(l.Index, a.spec.NetNS, a.spec.IfName); err != nil {
		return l, fmt.Errorf("%s (link %s of kind %s): %w", a.wanted(), l.Name, l.Kind, err)
	}
	return a.pod.Link(a.spec.IfName)
}

// giveBack returns the device to the node under its old name, wherever it is.
// Without one there is nothing to do.
func (a *attachment) giveBack(ctx context.Context) error {
	if err := a.awaitReturn(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	lent, err := a.lent()
	if err != nil {
		return err
	}
	if lent != nil {
		if err := a.bringHome(*lent); err != nil {
			return err
		}
	}
	home, err := a.home()
	if err != nil || home == nil {
		return err
	}
	return a.restore(*home)
}

// lent finds the device in the container, whatever it is called there: by the
// mark, or, when the reference plugin took it, by what the result tells.
func (a *attachment) lent() (*rtnl.Link, error) {
	if a.pod == nil {
		return nil, nil
	}
	told, ok := a.spec.Told()
	return find(a.pod, func(l rtnl.Link) bool {
		theirs := ok && len(marks(l)) == 0 && l.Name == a.spec.IfName && l.Alias != "" && l.MAC.String() == told.Mac
		return slices.Contains(l.AltNames, a.mark()) || theirs
	})
}

// home finds the device on the node while it still has the mark: Attach had not
// moved it yet, or the kernel took it out of a namespace that ended.
func (a *attachment) home() (*rtnl.Link, error) {
	return find(a.host, func(l rtnl.Link) bool { return slices.Contains(l.AltNames, a.mark()) })
}

func find(h *rtnl.Handle, is func(rtnl.Link) bool) (*rtnl.Link, error) {
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(links, is); i >= 0 {
		return &links[i], nil
	}
	return nil, nil
}

// bringHome moves the device out of the container.
func (a *attachment) bringHome(l rtnl.Link) error {
	name := a.oldName(l)
	err := a.pod.MoveAs(l.Index, a.hostNS, name)
	if errors.Is(err, rtnl.ErrNotFound) {
		return nil // the namespace ended meanwhile
	}
	if err != nil {
		return a.nameTaken(err, name)
	}
	if len(marks(l)) > 0 {
		return nil // restore does the rest
	}
	back, err := a.host.Link(name)
	if err != nil {
		return err
	}
	return a.host.SetAlias(back.Index, "")
}

// restore gives a link of the node that has a mark its old name, and takes off
// everything that tells of the loan.
func (a *attachment) restore(l rtnl.Link) error {
	if name := a.oldName(l); l.Name != name {
		if err := a.host.SetDown(l.Index); err != nil { // older kernels rename only then
			return err
		}
		if err := a.host.SetName(l.Index, name); err != nil {
			return a.nameTaken(err, name)
		}
	}
	if err := a.host.SetAlias(l.Index, ""); err != nil {
		return err
	}
	for _, mark := range marks(l) {
		if err := a.host.DelAltName(l.Index, mark); err != nil && !errors.Is(err, rtnl.ErrNotFound) {
			return err
		}
	}
	if a.wasUp {
		return a.host.SetUp(l.Index)
	}
	return nil
}

func (a *attachment) nameTaken(err error, name string) error {
	if !errors.Is(err, rtnl.ErrExists) {
		return err
	}
	return types.NewError(types.ErrTryAgainLater,
		fmt.Sprintf("give device %s back to the node: another link has that name now", name), "rename that link: "+err.Error())
}

// awaitReturn waits for a device whose container's namespace has ended, but
// which the kernel has not yet moved back to the node. It may wait in vain: a
// virtual device has ended with the namespace.
func (a *attachment) awaitReturn(ctx context.Context) error {
	if a.pod != nil || a.spec.Prev == nil {
		return nil
	}
	if at, err := a.place(); err == nil && at.userspace {
		return nil
	}
	inVain := errors.New("the device did not come back")
	ctx, cancel := context.WithTimeoutCause(ctx, returnTimeout, inVain)
	defer cancel()
	err := rtnl.Await(ctx, a.hostNS, func() (bool, error) {
		home, err := a.home()
		return home != nil, err
	})
	if errors.Is(err, inVain) {
		return nil
	}
	return err
}
